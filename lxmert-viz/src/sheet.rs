//! What the pictures share: the title with how to read them below it, a photo in its room, boxes on it with their names.

use crate::Result;
use crate::canvas::{Align, Canvas, Rect};
use crate::font::Face;
use crate::labels::{Label, place};
use crate::palette::{GREY, INK, Rgb, ink_on};
use image::RgbImage;
use image::imageops::FilterType;
use lxmert_core::boxes::{BoxXyxy, to_pixels};

/// The face of titles.
pub const TITLE: Face = Face::bold(18.0);
/// The face of the lines below a title.
pub const SUBTITLE: Face = Face::regular(13.0);
/// Pixels that stay white around a picture.
pub const MARGIN: i32 = 24;
/// The face of the names on boxes.
const NAMES: Face = Face::bold(12.5);

/// A title and a subtitle, broken into lines.
#[derive(Debug, Clone)]
pub struct Heading {
    title: Vec<String>,
    subtitle: Vec<String>,
}

impl Heading {
    /// Breaks both to a picture `width` pixels wide; a title has at most 3 lines, a subtitle 4.
    pub fn new(title: &str, subtitle: &str, width: i32) -> Self {
        let room = width - 2 * MARGIN;
        Self { title: TITLE.wrap(title, room, 3), subtitle: SUBTITLE.wrap(subtitle, room, 4) }
    }

    /// Where what follows may begin, in pixels from the top.
    pub fn bottom(&self) -> i32 {
        let lines = self.title.len() as i32 * TITLE.line_height() + self.subtitle.len() as i32 * SUBTITLE.line_height();
        MARGIN + lines + if self.subtitle.is_empty() { 4 } else { 12 }
    }

    /// Writes it.
    ///
    /// # Errors
    /// [`crate::Error::Drawing`].
    pub fn draw(&self, sheet: &mut Canvas) -> Result<()> {
        let mut y = MARGIN - 4;
        for line in &self.title {
            y += TITLE.line_height();
            sheet.text((MARGIN, y - 6), Align::Left, TITLE, INK, line)?;
        }
        for line in &self.subtitle {
            y += SUBTITLE.line_height();
            sheet.text((MARGIN, y), Align::Left, SUBTITLE, GREY, line)?;
        }
        Ok(())
    }
}

/// `photo` scaled to fill as much of `room` as its shape allows; enlarged smoothly, reduced without
/// aliasing.
pub fn fit_photo(photo: &RgbImage, room: (u32, u32)) -> RgbImage {
    let (width, height) = (photo.width().max(1) as f32, photo.height().max(1) as f32);
    let scale = (room.0 as f32 / width).min(room.1 as f32 / height);
    let size = |side: f32, most: u32| ((side * scale).round() as u32).clamp(1, most);
    let filter = if scale > 1.0 { FilterType::CatmullRom } else { FilterType::Triangle };
    image::imageops::resize(photo, size(width, room.0), size(height, room.1), filter)
}

/// A normalised box in the pixels of `frame`, clamped to it and never empty.
pub fn box_px(normalised: &BoxXyxy, frame: Rect) -> Rect {
    let clamped = normalised.map(|v| if v.is_nan() { 0.0 } else { v.clamp(0.0, 1.0) });
    let [x0, y0, x1, y1] = to_pixels(&clamped, frame.width() as f32, frame.height() as f32).map(|v| v.round() as i32);
    Rect { x0, y0, x1: x1.max(x0 + 1), y1: y1.max(y0 + 1) }.moved(frame.x0, frame.y0)
}

/// A box with its name and colour.
#[derive(Debug, Clone, Copy)]
pub struct NamedBox<'a> {
    /// Where it is, in pixels.
    pub rect: Rect,
    /// What it is called.
    pub name: &'a str,
    /// Its colour.
    pub colour: Rgb,
}

/// Outlines boxes by lines `thick` pixels wide with a dark edge, the first on top.
///
/// # Errors
/// [`crate::Error::Drawing`].
pub fn outline_boxes(sheet: &mut Canvas, boxes: &[NamedBox], thick: i32) -> Result<()> {
    for NamedBox { rect, colour, .. } in boxes.iter().rev() {
        sheet.frame(rect.grown(1), INK, thick + 2)?;
        sheet.frame(*rect, *colour, thick)?;
    }
    Ok(())
}

/// Names boxes beside them within `frame`, never one name over another; a name away from its box is joined to it by a
/// line. The first find room first; where there is none a name is left out.
///
/// # Errors
/// [`crate::Error::Drawing`].
pub fn name_boxes(sheet: &mut Canvas, boxes: &[NamedBox], frame: Rect) -> Result<()> {
    let names: Vec<String> = boxes.iter().map(|named| NAMES.fit(named.name, frame.width() / 3)).collect();
    let labels: Vec<Label> = (boxes.iter().zip(&names))
        .map(|(named, name)| Label {
            width: NAMES.width(name) + 10,
            height: NAMES.line_height() + 3,
            target: named.rect,
        })
        .collect();
    for ((named, name), rect) in boxes.iter().zip(&names).zip(place(&labels, frame, &[], 2)) {
        let Some(rect) = rect else { continue };
        if !rect.grown(3).overlaps(&named.rect) {
            let ends = [centre(rect), centre(named.rect)];
            sheet.line(&ends, INK, 3)?;
            sheet.line(&ends, named.colour, 1)?;
        }
        sheet.fill(rect.grown(1), INK, 1.0)?;
        sheet.fill(rect, named.colour, 1.0)?;
        let base = rect.y0 + (rect.height() + NAMES.cap_height() as i32) / 2;
        sheet.text((rect.x0 + 5, base), Align::Left, NAMES, ink_on(named.colour), name)?;
    }
    Ok(())
}

fn centre(rect: Rect) -> (i32, i32) {
    ((rect.x0 + rect.x1) / 2, (rect.y0 + rect.y1) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::palette::{MARK, WHITE};

    #[test]
    fn what_follows_begins_below_every_line() {
        let heading = Heading::new(&"long title ".repeat(20), &"how to read it ".repeat(40), 500);
        assert_eq!((heading.title.len(), heading.subtitle.len()), (3, 4));
        let mut sheet = Canvas::new(500, 400).unwrap();
        heading.draw(&mut sheet).unwrap();
        let inked = |y: i32| (0..500).any(|x| sheet.pixel(x, y) != Some(WHITE));
        assert!((0..heading.bottom()).any(inked) && !(heading.bottom()..400).any(inked));
    }

    #[test]
    fn a_name_stands_on_its_box_in_its_colour() {
        let mut sheet = Canvas::new(300, 200).unwrap();
        let named = NamedBox { rect: Rect::sized(100, 100, 60, 40), name: "1 star", colour: MARK };
        outline_boxes(&mut sheet, &[named], 3).unwrap();
        name_boxes(&mut sheet, &[named], Rect::sized(0, 0, 300, 200)).unwrap();
        assert_eq!((sheet.pixel(101, 120), sheet.pixel(99, 120)), (Some(MARK), Some(INK)));
        assert_eq!(sheet.pixel(101, 98), Some(MARK), "the name's ground, above the box");
        assert_eq!((sheet.pixel(130, 120), sheet.pixel(40, 40)), (Some(WHITE), Some(WHITE)));
    }

    #[test]
    fn boxes_stay_within_their_frame_and_are_never_empty() {
        let frame = Rect::sized(10, 20, 100, 50);
        assert_eq!(box_px(&[-1.0, 0.5, 2.0, f32::NAN], frame), Rect { x0: 10, y0: 45, x1: 110, y1: 46 });
    }
}
