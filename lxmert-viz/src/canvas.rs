//! A sheet of pixels: plotters draws the shapes, [`crate::font`] sets the text, photos are copied in,
//! and the whole is written as one PNG file or not at all.

use crate::font::Face;
use crate::palette::{Rgb, WHITE};
use crate::{Error, Result};
use image::RgbImage;
use lxmert_core::files::atomic_write;
use plotters::coord::Shift;
use plotters::prelude::{BitMapBackend, Circle, Color, DrawingArea, IntoDrawingArea, PathElement, RGBColor, Rectangle};
use std::io::Write as _;
use std::path::Path;

/// The largest side of a picture, in pixels.
pub const LARGEST_SIDE: u32 = 16_000;

/// A rectangle in pixels: left and top within, right and bottom beyond it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rect {
    /// Left edge.
    pub x0: i32,
    /// Top edge.
    pub y0: i32,
    /// One past the right edge.
    pub x1: i32,
    /// One past the bottom edge.
    pub y1: i32,
}

impl Rect {
    /// The rectangle at `(x, y)` of this width and height.
    pub const fn sized(x: i32, y: i32, width: i32, height: i32) -> Self {
        Self { x0: x, y0: y, x1: x + width, y1: y + height }
    }

    /// Width in pixels.
    pub const fn width(&self) -> i32 {
        self.x1 - self.x0
    }

    /// Height in pixels.
    pub const fn height(&self) -> i32 {
        self.y1 - self.y0
    }

    /// Whether the two share a pixel.
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.x0 < other.x1 && other.x0 < self.x1 && self.y0 < other.y1 && other.y0 < self.y1
    }

    /// Whether `other` lies within.
    pub const fn contains(&self, other: &Self) -> bool {
        self.x0 <= other.x0 && self.y0 <= other.y0 && self.x1 >= other.x1 && self.y1 >= other.y1
    }

    /// Grown by `margin` on every side (shrunk when negative).
    pub const fn grown(&self, margin: i32) -> Self {
        Self { x0: self.x0 - margin, y0: self.y0 - margin, x1: self.x1 + margin, y1: self.y1 + margin }
    }

    /// The same size, moved.
    pub const fn moved(&self, dx: i32, dy: i32) -> Self {
        Self { x0: self.x0 + dx, y0: self.y0 + dy, x1: self.x1 + dx, y1: self.y1 + dy }
    }
}

/// Where a text stands to its point, horizontally. Vertically the point is on the base line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// The text begins there.
    Left,
    /// Its middle is there.
    Centre,
    /// It ends there.
    Right,
}

/// The sheet.
pub struct Canvas {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl Canvas {
    /// A white sheet.
    ///
    /// # Errors
    /// [`Error::TooLarge`] when a side is 0 or more than [`LARGEST_SIDE`].
    pub fn new(width: u32, height: u32) -> Result<Self> {
        if width.max(height) > LARGEST_SIDE || width.min(height) == 0 {
            let advice = "choose fewer words, regions or heads";
            return Err(Error::TooLarge { width, height, limit: LARGEST_SIDE, advice });
        }
        Ok(Self { width, height, pixels: vec![WHITE[0]; width as usize * height as usize * 3] })
    }

    /// Width in pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The whole sheet.
    pub fn bounds(&self) -> Rect {
        Rect::sized(0, 0, self.width as i32, self.height as i32)
    }

    /// The colour at `(x, y)`, `None` off the sheet.
    pub fn pixel(&self, x: i32, y: i32) -> Option<Rgb> {
        let at = self.offset(x, y)?;
        Some([self.pixels[at], self.pixels[at + 1], self.pixels[at + 2]])
    }

    fn offset(&self, x: i32, y: i32) -> Option<usize> {
        let inside = x >= 0 && y >= 0 && x < self.width as i32 && y < self.height as i32;
        inside.then(|| (y as usize * self.width as usize + x as usize) * 3)
    }

    fn blend(&mut self, x: i32, y: i32, colour: Rgb, weight: f32) {
        if let Some(at) = self.offset(x, y) {
            for (channel, new) in self.pixels[at..at + 3].iter_mut().zip(colour) {
                *channel = (f32::from(*channel) + (f32::from(new) - f32::from(*channel)) * weight).round() as u8;
            }
        }
    }

    /// Draws with plotters on the whole sheet, in pixels.
    ///
    /// # Errors
    /// [`Error::Drawing`] when plotters fails.
    pub fn draw<T, E: std::fmt::Display>(
        &mut self,
        shapes: impl FnOnce(&DrawingArea<BitMapBackend<'_>, Shift>) -> std::result::Result<T, E>,
    ) -> Result<T> {
        let backend = BitMapBackend::with_buffer(&mut self.pixels, (self.width, self.height));
        let area = backend.into_drawing_area();
        let drawn = shapes(&area).map_err(|e| Error::Drawing(e.to_string()))?;
        area.present().map_err(|e| Error::Drawing(e.to_string()))?;
        Ok(drawn)
    }

    /// Fills `rect` with `colour` at `opacity` 0..1.
    ///
    /// # Errors
    /// [`Error::Drawing`].
    pub fn fill(&mut self, rect: Rect, colour: Rgb, opacity: f64) -> Result<()> {
        if rect.width() <= 0 || rect.height() <= 0 {
            return Ok(());
        }
        let style = rgb(colour).mix(opacity).filled();
        // plotters' filled rectangle ends before its second corner, as `Rect` does.
        self.draw(|area| area.draw(&Rectangle::new([(rect.x0, rect.y0), (rect.x1, rect.y1)], style)))
    }

    /// A frame `thickness` pixels wide along the inside of `rect`'s edges.
    ///
    /// # Errors
    /// [`Error::Drawing`].
    pub fn frame(&mut self, rect: Rect, colour: Rgb, thickness: i32) -> Result<()> {
        let t = thickness.min(rect.width() / 2).min(rect.height() / 2).max(1);
        self.fill(Rect { y1: rect.y0 + t, ..rect }, colour, 1.0)?;
        self.fill(Rect { y0: rect.y1 - t, ..rect }, colour, 1.0)?;
        let (y0, y1) = (rect.y0 + t, rect.y1 - t);
        self.fill(Rect { y0, y1, x1: rect.x0 + t, ..rect }, colour, 1.0)?;
        self.fill(Rect { y0, y1, x0: rect.x1 - t, ..rect }, colour, 1.0)
    }

    /// A polygonal line.
    ///
    /// # Errors
    /// [`Error::Drawing`].
    pub fn line(&mut self, points: &[(i32, i32)], colour: Rgb, thickness: u32) -> Result<()> {
        let style = rgb(colour).stroke_width(thickness);
        self.draw(|area| area.draw(&PathElement::new(points.to_vec(), style)))
    }

    /// A filled disc.
    ///
    /// # Errors
    /// [`Error::Drawing`].
    pub fn disc(&mut self, centre: (i32, i32), radius: i32, colour: Rgb) -> Result<()> {
        self.draw(|area| area.draw(&Circle::new(centre, radius, rgb(colour).filled())))
    }

    /// Text with its base line at `y`.
    ///
    /// # Errors
    /// [`Error::Drawing`].
    pub fn text(&mut self, (x, y): (i32, i32), align: Align, face: Face, colour: Rgb, text: &str) -> Result<()> {
        let shift = shift(align, face, text);
        face.rasterise(text, |dx, dy, coverage| self.blend(x - shift + dx, y + dy, colour, coverage))
    }

    /// Text turned a quarter to the left, reading upwards, with its base line on the column `x` and
    /// `align` along the column: `Left` begins at `y` and goes up.
    ///
    /// # Errors
    /// [`Error::Drawing`].
    pub fn text_up(&mut self, (x, y): (i32, i32), align: Align, face: Face, colour: Rgb, text: &str) -> Result<()> {
        let shift = shift(align, face, text);
        face.rasterise(text, |dx, dy, coverage| self.blend(x + dy, y + shift - dx, colour, coverage))
    }

    /// Copies `photo` with its top left corner at `(x, y)`; what hangs over is cut.
    pub fn photo(&mut self, (x, y): (i32, i32), photo: &RgbImage) {
        for (column, row, pixel) in photo.enumerate_pixels() {
            if let Some(at) = self.offset(x + column as i32, y + row as i32) {
                self.pixels[at..at + 3].copy_from_slice(&pixel.0);
            }
        }
    }

    /// The sheet as a PNG file's bytes.
    ///
    /// # Errors
    /// [`Error::Drawing`] when the encoder fails.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let encoder = image::codecs::png::PngEncoder::new_with_quality(
            &mut bytes,
            image::codecs::png::CompressionType::Default,
            image::codecs::png::FilterType::Adaptive,
        );
        image::ImageEncoder::write_image(
            encoder,
            &self.pixels,
            self.width,
            self.height,
            image::ExtendedColorType::Rgb8,
        )
        .map_err(|e| Error::Drawing(e.to_string()))?;
        Ok(bytes)
    }

    /// Writes the sheet as a PNG file, whole or not at all; folders are made as needed.
    ///
    /// # Errors
    /// [`Error::Core`] with the path; [`Error::Drawing`] when the encoder fails.
    pub fn save(&self, path: &Path) -> Result<()> {
        write_whole(path, &self.encode()?)
    }
}

/// Writes `bytes` beside `path`, then renames: the file appears whole or not at all.
///
/// # Errors
/// [`Error::Core`] with the path.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    Ok(atomic_write(path, |file| file.write_all(bytes))?)
}

fn rgb(colour: Rgb) -> RGBColor {
    RGBColor(colour[0], colour[1], colour[2])
}

fn shift(align: Align, face: Face, text: &str) -> i32 {
    match align {
        Align::Left => 0,
        Align::Centre => face.width(text) / 2,
        Align::Right => face.width(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::palette::INK;

    #[test]
    fn shapes_land_on_their_pixels() {
        let mut sheet = Canvas::new(20, 10).unwrap();
        sheet.fill(Rect::sized(2, 3, 4, 5), [10, 20, 30], 1.0).unwrap();
        assert_eq!(sheet.pixel(2, 3), Some([10, 20, 30]));
        assert_eq!(sheet.pixel(5, 7), Some([10, 20, 30]));
        assert_eq!(sheet.pixel(6, 7), Some(WHITE));
        assert_eq!(sheet.pixel(5, 8), Some(WHITE));
        sheet.frame(Rect::sized(10, 0, 6, 6), INK, 2).unwrap();
        assert_eq!(sheet.pixel(11, 1), Some(INK));
        assert_eq!(sheet.pixel(15, 5), Some(INK));
        assert_eq!(sheet.pixel(12, 2), Some(WHITE));
        assert_eq!(sheet.pixel(20, 0), None);
        sheet.fill(Rect::sized(0, 9, 20, 1), [200, 100, 0], 0.5).unwrap();
        let half = sheet.pixel(19, 9).unwrap();
        assert!(half.iter().zip([227, 177, 127]).all(|(got, want)| got.abs_diff(want) <= 2), "{half:?}");
    }

    #[test]
    fn text_up_reads_upwards_from_its_point() {
        let face = Face::regular(14.0);
        let mut sheet = Canvas::new(40, 100).unwrap();
        sheet.text_up((25, 95), Align::Left, face, INK, "label").unwrap();
        let dark: Vec<(i32, i32)> = (0..100)
            .flat_map(|y| (0..40).map(move |x| (x, y)))
            .filter(|(x, y)| sheet.pixel(*x, *y).unwrap()[0] < 128)
            .collect();
        let (top, bottom) = (dark.iter().map(|p| p.1).min().unwrap(), dark.iter().map(|p| p.1).max().unwrap());
        assert!(bottom <= 95 && bottom > 85, "{bottom}");
        assert!(top >= 95 - face.width("label") - 1 && top < 95 - face.width("label") + 6, "{top}");
        assert!(dark.iter().all(|p| p.0 >= 10 && p.0 <= 26), "the letters stand left of their base line");
    }

    #[test]
    fn absurd_sizes_are_refused() {
        assert!(matches!(Canvas::new(0, 5), Err(Error::TooLarge { .. })));
        assert!(matches!(Canvas::new(5, 20_000), Err(Error::TooLarge { .. })));
    }

    #[test]
    fn a_file_appears_whole_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/picture.png");
        let mut sheet = Canvas::new(30, 20).unwrap();
        sheet.fill(Rect::sized(0, 0, 15, 20), [200, 10, 10], 1.0).unwrap();
        sheet.save(&path).unwrap();
        let back = image::open(&path).unwrap().to_rgb8();
        assert_eq!(back.dimensions(), (30, 20));
        assert_eq!((back.get_pixel(3, 3).0, back.get_pixel(20, 3).0), ([200, 10, 10], WHITE));
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        let error = sheet.save(Path::new("/proc/nothing/here.png")).unwrap_err().to_string();
        assert!(error.contains("/proc/nothing"), "{error}");
    }
}
