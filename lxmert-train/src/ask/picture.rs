//! The photo with the regions that an answer rests on, and the answers below it.

use super::Asked;
use crate::log::curves::{PALETTE, register_fonts};
use crate::{Error, Result};
use image::imageops::{FilterType, resize};
use image::{ImageFormat, RgbImage};
use lxmert_core::files::atomic_write;
use plotters::coord::Shift;
use plotters::prelude::*;
use std::io::Cursor;
use std::path::Path;

/// Limits in pixels of the photo's long side in the picture.
const SIDES: (u32, u32) = (640, 1280);

/// Height of a line of text.
const LINE: u32 = 26;

/// Writes the picture, whole or not at all.
pub(super) fn write(path: &Path, photo: RgbImage, asked: &Asked) -> Result<()> {
    let failed = |reason: String| Error::Drawing { path: path.to_path_buf(), reason };
    let long = photo.width().max(photo.height()).max(1);
    let scale = f64::from(long.clamp(SIDES.0, SIDES.1)) / f64::from(long);
    let side = |pixels: u32| ((f64::from(pixels) * scale).round() as u32).max(1);
    let photo = resize(&photo, side(photo.width()), side(photo.height()), FilterType::Triangle);
    let (width, height) = photo.dimensions();
    let mut canvas =
        RgbImage::from_pixel(width, height + LINE * (asked.answers.len() as u32 + 1) + LINE / 2, image::Rgb([255; 3]));
    image::imageops::replace(&mut canvas, &photo, 0, 0);
    let size = canvas.dimensions();
    draw(&mut canvas, size, height, scale, asked).map_err(|error| failed(error.to_string()))?;
    let mut bytes = Vec::new();
    canvas.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).map_err(|error| failed(error.to_string()))?;
    Ok(atomic_write(path, |file| std::io::Write::write_all(file, &bytes))?)
}

fn draw(
    canvas: &mut [u8],
    size: (u32, u32),
    below: u32,
    scale: f64,
    asked: &Asked,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    register_fonts();
    let area: DrawingArea<_, Shift> = BitMapBackend::with_buffer(canvas, size).into_drawing_area();
    let pixel = |value: f32| (f64::from(value) * scale).round() as i32;
    for (support, colour) in asked.rests_on.iter().zip(PALETTE.iter().cycle()) {
        let [x0, y0, x1, y1] = support.box_xyxy_px.map(pixel);
        area.draw(&Rectangle::new([(x0, y0), (x1, y1)], colour.stroke_width(3)))?;
        let text = format!("{} (−{:.2})", support.name, support.logit_falls_by);
        let (wide, tall) = area.estimate_text_size(&text, &("sans-serif", 17).into_text_style(&area))?;
        // On the box's upper edge, but within the picture.
        let left = x0.min(size.0 as i32 - wide as i32 - 8).max(0);
        let top = (y0 - tall as i32 - 6).max(0);
        area.draw(&Rectangle::new([(left, top), (left + wide as i32 + 8, top + tall as i32 + 6)], colour.filled()))?;
        area.draw(&Text::new(text, (left + 4, top + 2), ("sans-serif", 17).into_font().color(&WHITE)))?;
    }
    let mut at = below as i32 + LINE as i32 / 4;
    let mut line = |text: String, size: u32| {
        let text = Text::new(text, (8, at), ("sans-serif", size).into_font().color(&BLACK));
        at += LINE as i32;
        area.draw(&text)
    };
    line(asked.question.clone(), 20)?;
    for answer in &asked.answers {
        line(format!("{:.3}  {}", answer.probability, answer.answer), 17)?;
    }
    area.present()?;
    Ok(())
}
