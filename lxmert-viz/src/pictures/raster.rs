//! Renders a sheet's shapes to pixels: plotters draws the shapes, [`font`](super::font) sets the text, photos are
//! copied in.

use super::font::Face;
use super::palette::{Rgb, mix};
use super::shapes::{Align, Rect, Shape};
use crate::{Error, Result};
use image::RgbImage;
use image::imageops::FilterType;
use plotters::coord::Shift;
use plotters::prelude::{BitMapBackend, Circle, Color, DrawingArea, IntoDrawingArea, PathElement, Polygon, RGBColor};

/// Draws one shape with every length multiplied by `scale`.
pub(super) fn draw(pixels: &mut RgbImage, shape: &Shape, scale: f32) -> Result<()> {
    let length = |v: i32| (v as f32 * scale).round() as i32;
    // An integer coordinate means the middle of that pixel.
    let middle = |v: i32| ((v as f32 + 0.5) * scale).floor() as i32;
    let points =
        |points: &[(i32, i32)]| -> Vec<(i32, i32)> { points.iter().map(|(x, y)| (middle(*x), middle(*y))).collect() };
    match shape {
        Shape::Fill { rect, colour, opacity } => {
            // A veil that rounds to nothing must not return as a line over its neighbour; an opaque shape stays
            // visible.
            let rect = scaled(rect, scale, i32::from(*opacity >= 1.0));
            // Filled by hand: plotters places the ends of rectangles of up to two pixels differently, which shows where
            // veils meet.
            for y in rect.y0..rect.y1 {
                (rect.x0..rect.x1).for_each(|x| blend(pixels, x, y, *colour, *opacity));
            }
        }
        Shape::Line { points: corners, colour, width } => {
            let style = rgb(*colour).stroke_width((width * scale).round().max(1.0) as u32);
            on(pixels, &PathElement::new(points(corners), style))?;
        }
        Shape::Disc { centre, radius, colour } => {
            on(pixels, &Circle::new(points(&[*centre])[0], length(*radius), rgb(*colour).filled()))?;
        }
        Shape::Polygon { points: corners, colour, opacity } => {
            on(pixels, &Polygon::new(points(corners), rgb(*colour).mix(f64::from(*opacity)).filled()))?;
        }
        Shape::Text { at, align, upwards, face, colour, text } => {
            let face = Face { size: face.size * scale, ..*face };
            let shift = match align {
                Align::Left => 0.0,
                Align::Centre => face.width(text) as f32 / 2.0,
                Align::Right => face.width(text) as f32,
            };
            let (x, y) = (at.0 as f32 * scale, at.1 as f32 * scale);
            let (column, row) = (x.round() as i32, y.round() as i32);
            if *upwards {
                face.rasterise(text, (-shift).round(), |dx, dy, coverage| {
                    blend(pixels, column + dy, row - dx, *colour, coverage);
                })?;
            } else {
                face.rasterise(text, (x - shift).round(), |x, dy, coverage| {
                    blend(pixels, x, row + dy, *colour, coverage);
                })?;
            }
        }
        Shape::Photo { rect, photo } => {
            let rect = scaled(rect, scale, 1);
            let (width, height) = (rect.width().max(1) as u32, rect.height().max(1) as u32);
            // Enlarge smoothly, reduce without aliasing.
            let filter = if width > photo.width() { FilterType::CatmullRom } else { FilterType::Triangle };
            let photo = image::imageops::resize(photo, width, height, filter);
            image::imageops::replace(pixels, &photo, i64::from(rect.x0), i64::from(rect.y0));
        }
    }
    Ok(())
}

/// `pixels` as the bytes of a PNG file.
pub(super) fn png(pixels: &RgbImage) -> Result<Vec<u8>> {
    use image::codecs::png::{CompressionType, FilterType, PngEncoder};
    let mut bytes = Vec::new();
    let encoder = PngEncoder::new_with_quality(&mut bytes, CompressionType::Default, FilterType::Adaptive);
    pixels.write_with_encoder(encoder).map_err(|e| Error::Drawing(e.to_string()))?;
    Ok(bytes)
}

/// Rounds each edge separately, so that neighbours stay neighbours. `least`: the minimum width and height.
fn scaled(rect: &Rect, scale: f32, least: i32) -> Rect {
    let at = |v: i32| (v as f32 * scale).round() as i32;
    let (x0, y0) = (at(rect.x0), at(rect.y0));
    Rect { x0, y0, x1: at(rect.x1).max(x0 + least), y1: at(rect.y1).max(y0 + least) }
}

fn blend(pixels: &mut RgbImage, x: i32, y: i32, colour: Rgb, weight: f32) {
    let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else { return };
    if let Some(pixel) = pixels.get_pixel_mut_checked(x, y) {
        pixel.0 = mix(pixel.0, colour, weight);
    }
}

/// Draws a plotters element on all of `pixels`.
fn on<E>(pixels: &mut RgbImage, element: &E) -> Result<()>
where
    for<'a> &'a E: plotters::element::PointCollection<'a, (i32, i32)>,
    for<'b> E: plotters::element::Drawable<BitMapBackend<'b>>,
{
    let size = pixels.dimensions();
    let area: DrawingArea<_, Shift> = BitMapBackend::with_buffer(pixels, size).into_drawing_area();
    area.draw(element).and_then(|()| area.present()).map_err(|e| Error::Drawing(e.to_string()))
}

fn rgb([red, green, blue]: Rgb) -> RGBColor {
    RGBColor(red, green, blue)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pictures::palette::WHITE;

    const RED: Rgb = [200, 0, 0];

    fn drawn(side: u32, shapes: &[Shape], scale: f32) -> RgbImage {
        let mut pixels = RgbImage::from_pixel(side, side, image::Rgb(WHITE));
        shapes.iter().for_each(|shape| draw(&mut pixels, shape, scale).unwrap());
        pixels
    }

    #[test]
    fn lines_discs_and_polygons_cover_their_areas() {
        let triangle = Shape::Polygon { points: vec![(5, 5), (45, 5), (5, 35)], colour: RED, opacity: 1.0 };
        for (shape, area, perimeter) in [
            (Shape::Line { points: vec![(10, 10), (40, 50)], colour: RED, width: 3.0 }, 150.0, 106.0),
            (Shape::Disc { centre: (30, 30), radius: 10, colour: RED }, 314.0, 63.0),
            (triangle, 600.0, 120.0),
        ] {
            for scale in [1.0, 2.5] {
                let pixels = drawn(150, std::slice::from_ref(&shape), scale);
                let covered: f32 = pixels.pixels().map(|pixel| f32::from(WHITE[1] - pixel.0[1]) / 255.0).sum();
                // plotters uses whole pixels and smooths half a pixel beyond each edge, never less. Measured: 17.9, 32.4 and 55.9
                // at scale 1; 4.6, 11.3 and 22.1 at 2.5.
                let excess = covered / scale / scale - area;
                assert!((0.0..0.55 * perimeter / scale).contains(&excess), "{shape:?}: {excess} at {scale}");
            }
        }
    }

    #[test]
    fn adjacent_veils_leave_no_line_at_any_scale() {
        let rows = [(0, 7), (7, 8), (8, 9), (9, 20)];
        let veil = |(y0, y1)| Shape::Fill { rect: Rect { x0: 0, y0, x1: 20, y1 }, colour: RED, opacity: 0.5 };
        for scale in [0.3, 0.7, 1.0, 1.4] {
            let pixels = drawn((20.0 * scale) as u32, &rows.map(veil), scale);
            let first = pixels.get_pixel(0, 0);
            assert!(pixels.pixels().all(|pixel| pixel == first), "{scale}");
        }
    }

    #[test]
    fn accepts_shapes_off_the_sheet() {
        let (at, face) = ((-20, 5), Face::regular(20.0));
        let shapes = [
            Shape::Line { points: vec![(-50, -5), (90, 20)], colour: RED, width: 2.0 },
            Shape::Disc { centre: (-3, 12), radius: 5, colour: RED },
            Shape::Polygon { points: vec![(-10, -10), (30, 5), (-10, 40)], colour: RED, opacity: 0.5 },
            Shape::Fill { rect: Rect::sized(-5, -5, 100, 8), colour: RED, opacity: 1.0 },
            Shape::Photo { rect: Rect::sized(-4, -4, 20, 20), photo: RgbImage::new(3, 3) },
            Shape::Text { at, align: Align::Left, upwards: false, face, colour: RED, text: "beyond".into() },
        ];
        drawn(10, &shapes, 1.0);
    }
}
