//! A sheet of shapes in pixels: drawn once, then written as PNG in any size or as SVG.

use super::font::Face;
use super::palette::{Rgb, WHITE, WRONG};
use super::shapes::{Align, Rect, Shape};
use super::{raster, svg};
use crate::{Error, Result};
use image::RgbImage;
use std::collections::BTreeSet;

/// White margin around a picture, in pixels.
pub const MARGIN: i32 = 24;
/// Maximum side of a picture, in pixels.
pub const LARGEST_SIDE: u32 = 16_000;

/// The sheet: white, with shapes on it in drawing order.
#[derive(Debug, Clone)]
pub struct Canvas {
    width: i32,
    height: i32,
    shapes: Vec<Shape>,
}

impl Canvas {
    /// An empty sheet.
    pub const fn new(width: i32, height: i32) -> Self {
        Self { width, height, shapes: Vec::new() }
    }

    /// Width in pixels.
    pub const fn width(&self) -> i32 {
        self.width
    }

    /// Height in pixels.
    pub const fn height(&self) -> i32 {
        self.height
    }

    /// The whole sheet.
    pub const fn bounds(&self) -> Rect {
        Rect::sized(0, 0, self.width, self.height)
    }

    /// Fills `rect` with `colour` at `opacity` 0..1.
    pub fn fill(&mut self, rect: Rect, colour: Rgb, opacity: f32) {
        if rect.width() > 0 && rect.height() > 0 {
            self.shapes.push(Shape::Fill { rect, colour, opacity });
        }
    }

    /// Draws a frame `thickness` pixels wide along the inside of `rect`'s edges.
    pub fn frame(&mut self, rect: Rect, colour: Rgb, thickness: i32) {
        let t = thickness.min(rect.width() / 2).min(rect.height() / 2).max(1);
        self.fill(Rect { y1: rect.y0 + t, ..rect }, colour, 1.0);
        self.fill(Rect { y0: rect.y1 - t, ..rect }, colour, 1.0);
        let (y0, y1) = (rect.y0 + t, rect.y1 - t);
        self.fill(Rect { y0, y1, x1: rect.x0 + t, ..rect }, colour, 1.0);
        self.fill(Rect { y0, y1, x0: rect.x1 - t, ..rect }, colour, 1.0);
    }

    /// A polygonal line, `width` pixels wide.
    pub fn line(&mut self, points: &[(i32, i32)], colour: Rgb, width: f32) {
        self.shapes.push(Shape::Line { points: points.to_vec(), colour, width });
    }

    /// A filled polygon.
    pub fn polygon(&mut self, points: &[(i32, i32)], colour: Rgb, opacity: f32) {
        self.shapes.push(Shape::Polygon { points: points.to_vec(), colour, opacity });
    }

    /// A filled disc.
    pub fn disc(&mut self, centre: (i32, i32), radius: i32, colour: Rgb) {
        self.shapes.push(Shape::Disc { centre, radius, colour });
    }

    /// Draws text with its baseline at `y`.
    pub fn text(&mut self, at: (i32, i32), align: Align, face: Face, colour: Rgb, text: &str) {
        self.shapes.push(Shape::Text { at, align, upwards: false, face, colour, text: text.into() });
    }

    /// Draws text rotated by 90° to the left, reading upwards, with its baseline at column `x` and `align` along the
    /// column: `Left` starts at `y` and goes up.
    pub fn text_up(&mut self, at: (i32, i32), align: Align, face: Face, colour: Rgb, text: &str) {
        self.shapes.push(Shape::Text { at, align, upwards: true, face, colour, text: text.into() });
    }

    /// Draws `photo`, scaled to fill `rect`.
    pub fn photo(&mut self, rect: Rect, photo: &RgbImage) {
        self.shapes.push(Shape::Photo { rect, photo: photo.clone() });
    }

    /// Adds a line of text below everything.
    pub fn footer(&mut self, text: &str) {
        const FOOTER: Face = Face::bold(13.0);
        for line in FOOTER.wrap(text, self.width - 2 * MARGIN, 4) {
            self.text((MARGIN, self.height + 2), Align::Left, FOOTER, WRONG, &line);
            self.height += FOOTER.line_height();
        }
        self.height += MARGIN / 2;
    }

    /// The characters that the bundled font lacks; a PNG shows a box for each.
    pub fn missing_characters(&self) -> BTreeSet<char> {
        let texts = self.shapes.iter().filter_map(|shape| match shape {
            Shape::Text { face, text, .. } => Some((face, text)),
            _ => None,
        });
        texts.flat_map(|(face, text)| text.chars().filter(|c| face.lacks(*c))).collect()
    }

    /// The sheet as pixels, with each side multiplied by `scale`.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if a side would be 0 or more than [`LARGEST_SIDE`]; [`Error::Drawing`] if the bundled font
    /// cannot be read.
    pub fn pixels(&self, scale: f32) -> Result<RgbImage> {
        let side = |length: i32| (length as f32 * scale).round() as u32; // saturates
        let (width, height) = (side(self.width), side(self.height));
        if width.max(height) > LARGEST_SIDE || width.min(height) == 0 {
            let advice = "choose fewer words, regions or heads, or a smaller --width";
            return Err(Error::TooLarge { width, height, limit: LARGEST_SIDE, advice });
        }
        let mut pixels = RgbImage::from_pixel(width, height, image::Rgb(WHITE));
        self.shapes.iter().try_for_each(|shape| raster::draw(&mut pixels, shape, scale))?;
        Ok(pixels)
    }

    /// The sheet as the bytes of a PNG file, with each side multiplied by `scale`.
    ///
    /// # Errors
    /// See [`Canvas::pixels`].
    pub fn png(&self, scale: f32) -> Result<Vec<u8>> {
        raster::png(&self.pixels(scale)?)
    }

    /// The sheet as an SVG file, displayed `scale` times as large. Text stays text; photos are embedded.
    ///
    /// # Errors
    /// [`Error::Drawing`] if a photo cannot be encoded.
    pub fn svg(&self, scale: f32) -> Result<String> {
        svg::write((self.width, self.height), &self.shapes, scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pictures::palette::INK;

    #[test]
    fn shapes_land_on_their_pixels_at_every_scale() {
        let mut sheet = Canvas::new(20, 10);
        sheet.fill(Rect::sized(2, 3, 4, 5), [10, 20, 30], 1.0);
        sheet.frame(Rect::sized(10, 0, 6, 6), INK, 2);
        sheet.fill(Rect::sized(0, 9, 20, 1), [200, 100, 0], 0.5);
        for scale in [1, 3] {
            let pixels = sheet.pixels(scale as f32).unwrap();
            assert_eq!(pixels.dimensions(), (20 * scale, 10 * scale));
            let at = |x: u32, y: u32| pixels.get_pixel(x * scale, y * scale).0;
            assert_eq!((at(2, 3), at(5, 7)), ([10, 20, 30], [10, 20, 30]));
            assert_eq!((at(6, 7), at(5, 8)), (WHITE, WHITE));
            assert_eq!((at(11, 1), at(15, 5), at(12, 2)), (INK, INK, WHITE));
            assert!(
                at(19, 9).iter().zip([227, 177, 127]).all(|(got, want)| got.abs_diff(want) <= 2),
                "{:?}",
                at(19, 9)
            );
        }
    }

    #[test]
    fn text_up_reads_upwards_from_its_point() {
        let face = Face::regular(14.0);
        let mut sheet = Canvas::new(40, 100);
        sheet.text_up((25, 95), Align::Left, face, INK, "label");
        let pixels = sheet.pixels(1.0).unwrap();
        let dark = pixels.enumerate_pixels().filter(|(_, _, pixel)| pixel.0[0] < 128);
        let dark: Vec<(i32, i32)> = dark.map(|(x, y, _)| (x as i32, y as i32)).collect();
        let (top, bottom) = (dark.iter().map(|p| p.1).min().unwrap(), dark.iter().map(|p| p.1).max().unwrap());
        assert!(bottom <= 95 && bottom > 85, "{bottom}");
        assert!(top >= 95 - face.width("label") - 1 && top < 95 - face.width("label") + 6, "{top}");
        assert!(dark.iter().all(|p| p.0 >= 10 && p.0 <= 26), "the letters are left of their baseline");
    }

    #[test]
    fn a_footer_makes_the_sheet_taller() {
        let mut sheet = Canvas::new(300, 50);
        sheet.footer("other data than the run's: captions of some other folder, which is named here");
        assert!(sheet.height() > 80);
        let pixels = sheet.pixels(1.0).unwrap();
        assert!(pixels.enumerate_pixels().all(|(_, y, pixel)| pixel.0 == WHITE || y >= 38));
    }

    #[test]
    fn rejects_absurd_sizes() {
        for (width, height, scale) in [(0, 5, 1.0), (5, 20_000, 1.0), (500, 500, 99.0), (5, 5, f32::NAN)] {
            assert!(matches!(Canvas::new(width, height).pixels(scale), Err(Error::TooLarge { .. })));
        }
    }

    #[test]
    fn characters_that_the_font_lacks_are_counted_once() {
        let mut sheet = Canvas::new(100, 50);
        sheet.text((0, 20), Align::Left, Face::regular(12.0), INK, "a 猫 and a 猫, größer ✓");
        sheet.text((0, 40), Align::Left, Face::bold(12.0), INK, "🦊");
        assert_eq!(sheet.missing_characters(), BTreeSet::from(['猫', '🦊']));
    }
}
