//! A sheet's shapes as pixels.

use super::font::Face;
use super::palette::{Rgb, mix};
use super::shapes::{Align, Rect, Shape};
use crate::{Error, Result};
use image::RgbImage;
use image::imageops::FilterType;

/// Draws one shape with every length multiplied by `scale`.
pub(super) fn draw(pixels: &mut RgbImage, shape: &Shape, scale: f32) -> Result<()> {
    let points = |points: &[(i32, i32)]| -> Vec<[f32; 2]> {
        // A whole number means the middle of that pixel.
        points.iter().map(|(x, y)| [(*x as f32 + 0.5) * scale, (*y as f32 + 0.5) * scale]).collect()
    };
    match shape {
        Shape::Fill { rect, colour, opacity } => {
            // A veil that is rounded away must not come back as a line over its neighbour; what is opaque stays visible.
            let rect = scaled(rect, scale, i32::from(*opacity >= 1.0));
            for y in rect.y0..rect.y1 {
                (rect.x0..rect.x1).for_each(|x| blend(pixels, x, y, *colour, *opacity));
            }
        }
        Shape::Line { points: corners, colour, width } => {
            for ends in points(corners).windows(2) {
                let [a, b] = [ends[0], ends[1]];
                near(pixels, &[a, b], width * scale / 2.0, *colour, |point| distance(point, a, b));
            }
        }
        Shape::Disc { centre, radius, colour } => {
            let centre = points(&[*centre])[0];
            near(pixels, &[centre], *radius as f32 * scale, *colour, |[x, y]| (x - centre[0]).hypot(y - centre[1]));
        }
        Shape::Polygon { points: corners, colour, opacity } => {
            polygon(pixels, &points(corners), *colour, *opacity);
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
            // Enlarged smoothly, reduced without aliasing.
            let filter = if width > photo.width() { FilterType::CatmullRom } else { FilterType::Triangle };
            let photo = image::imageops::resize(photo, width, height, filter);
            image::imageops::replace(pixels, &photo, i64::from(rect.x0), i64::from(rect.y0));
        }
    }
    Ok(())
}

/// `pixels` as a PNG file's bytes.
pub(super) fn png(pixels: &RgbImage) -> Result<Vec<u8>> {
    use image::codecs::png::{CompressionType, FilterType, PngEncoder};
    let mut bytes = Vec::new();
    let encoder = PngEncoder::new_with_quality(&mut bytes, CompressionType::Default, FilterType::Adaptive);
    pixels.write_with_encoder(encoder).map_err(|e| Error::Drawing(e.to_string()))?;
    Ok(bytes)
}

/// Neighbours stay neighbours: each edge is rounded by itself. `least`: the least width and height.
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

/// Colours the pixels whose middle is at most `reach` away, by `distance`, from something that lies around `points`; the
/// edge is smooth.
fn near(pixels: &mut RgbImage, points: &[[f32; 2]], reach: f32, colour: Rgb, distance: impl Fn([f32; 2]) -> f32) {
    let bounds = |axis: usize| {
        let values = || points.iter().map(|point| point[axis]);
        let least = values().fold(f32::INFINITY, f32::min) - reach - 1.0;
        least.floor() as i32..=(values().fold(f32::NEG_INFINITY, f32::max) + reach + 1.0).ceil() as i32
    };
    for y in bounds(1) {
        for x in bounds(0) {
            let coverage = reach + 0.5 - distance([x as f32 + 0.5, y as f32 + 0.5]);
            if coverage > 0.0 {
                blend(pixels, x, y, colour, coverage.min(1.0));
            }
        }
    }
}

/// From a point to the line between `a` and `b`.
fn distance([x, y]: [f32; 2], a: [f32; 2], b: [f32; 2]) -> f32 {
    let (dx, dy) = (b[0] - a[0], b[1] - a[1]);
    let length = dx * dx + dy * dy;
    let along = if length > 0.0 { (((x - a[0]) * dx + (y - a[1]) * dy) / length).clamp(0.0, 1.0) } else { 0.0 };
    (x - a[0] - along * dx).hypot(y - a[1] - along * dy)
}

/// Fills by the even-odd rule, with four rows of samples a pixel and exact ends in each row.
fn polygon(pixels: &mut RgbImage, points: &[[f32; 2]], colour: Rgb, opacity: f32) {
    const ROWS: usize = 4;
    let width = pixels.width() as usize;
    for y in 0..pixels.height() {
        let mut coverage = vec![0f32; width];
        for sample in 0..ROWS {
            let row = y as f32 + (sample as f32 + 0.5) / ROWS as f32;
            let mut crossings: Vec<f32> = (points.iter().zip(points.iter().cycle().skip(1)))
                .filter(|(a, b)| (a[1] <= row) != (b[1] <= row))
                .map(|(a, b)| a[0] + (row - a[1]) / (b[1] - a[1]) * (b[0] - a[0]))
                .collect();
            crossings.sort_by(f32::total_cmp);
            for span in crossings.chunks_exact(2) {
                let (from, to) = (span[0].max(0.0), span[1].min(width as f32));
                for (x, covered) in coverage.iter_mut().enumerate().take(to.ceil() as usize).skip(from as usize) {
                    *covered += ((x as f32 + 1.0).min(to) - (x as f32).max(from)).max(0.0) / ROWS as f32;
                }
            }
        }
        for (x, covered) in coverage.into_iter().enumerate().filter(|(_, covered)| *covered > 0.0) {
            blend(pixels, x as i32, y as i32, colour, covered * opacity);
        }
    }
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
        for (shape, area, slack) in [
            // 50 long, 3 wide, with round ends.
            (Shape::Line { points: vec![(10, 10), (40, 50)], colour: RED, width: 3.0 }, 157.0, 5.0),
            (Shape::Disc { centre: (30, 30), radius: 10, colour: RED }, 314.0, 8.0),
            (triangle, 600.0, 4.0),
        ] {
            for scale in [1.0, 2.5] {
                let pixels = drawn(150, std::slice::from_ref(&shape), scale);
                let covered: f32 = pixels.pixels().map(|pixel| f32::from(WHITE[1] - pixel.0[1]) / 255.0).sum();
                assert!((covered / scale / scale - area).abs() < slack, "{shape:?}: {covered} at {scale}");
            }
        }
    }

    #[test]
    fn veils_side_by_side_leave_no_line_at_any_scale() {
        let rows = [(0, 7), (7, 8), (8, 9), (9, 20)];
        let veil = |(y0, y1)| Shape::Fill { rect: Rect { x0: 0, y0, x1: 20, y1 }, colour: RED, opacity: 0.5 };
        for scale in [0.3, 0.7, 1.0, 1.4] {
            let pixels = drawn((20.0 * scale) as u32, &rows.map(veil), scale);
            let first = pixels.get_pixel(0, 0);
            assert!(pixels.pixels().all(|pixel| pixel == first), "{scale}");
        }
    }

    #[test]
    fn shapes_off_the_sheet_do_no_harm() {
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
