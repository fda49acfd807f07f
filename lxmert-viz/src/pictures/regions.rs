//! Regions on their photo: those with little weight fade, those that stand out are outlined and named. No colour is
//! laid over the photo, since captions mention its colours.

use super::canvas::Canvas;
use super::font::Face;
use super::labels::{Label, place};
use super::legend::Scale;
use super::palette::{GREY, INK, LINE, Rgb, WHITE, ink_on, mix};
use super::shapes::{Align, Rect};
use image::RgbImage;
use lxmert_core::boxes::{BoxXyxy, to_pixels};

/// The font of the names on boxes.
const NAMES: Face = Face::bold(12.5);
/// Opacity of the white veil over a region without weight.
const VEIL: f32 = 0.6;

/// A photo and its regions with their weights.
#[derive(Debug, Clone, Copy)]
pub struct WeightedRegions<'a> {
    /// The photo.
    pub photo: &'a RgbImage,
    /// The regions' boxes, normalised.
    pub boxes_normalised: &'a [BoxXyxy],
    /// The regions' names.
    pub names: &'a [String],
    /// A weight for each region, ≥ 0.
    pub weights: &'a [f32],
    /// The box for comparison, drawn dashed.
    pub truth_normalised: Option<BoxXyxy>,
}

impl WeightedRegions<'_> {
    /// The regions that stand out, strongest first, at most `count`.
    pub fn strongest(&self, scale: &Scale, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.weights.len()).filter(|i| scale.stands_out(self.weights[*i])).collect();
        order.sort_by(|a, b| self.weights[*b].total_cmp(&self.weights[*a]));
        order.truncate(count);
        order
    }

    /// Draws the photo in `frame`, outlines the regions `named`, and writes their names and weights.
    pub fn draw(&self, sheet: &mut Canvas, frame: Rect, scale: &Scale, named: &[usize]) {
        let boxes: Vec<Rect> = self.boxes_normalised.iter().map(|b| box_px(b, frame)).collect();
        sheet.photo(frame, self.photo);
        let strengths: Vec<f32> = self.weights.iter().map(|weight| scale.position(*weight)).collect();
        veil(sheet, frame, &boxes, &strengths);
        for (_, rect) in boxes.iter().enumerate().filter(|(i, _)| !named.contains(i)) {
            sheet.frame(*rect, mix(WHITE, GREY, 0.35), 1);
        }
        let labels = named.iter().map(|&i| format!("{} · {}", self.names[i], scale.number(self.weights[i])));
        let labels: Vec<String> = labels.collect();
        let named: Vec<NamedBox> = (named.iter().zip(&labels))
            .map(|(&i, name)| NamedBox { rect: boxes[i], name, colour: scale.colour(self.weights[i]) })
            .collect();
        outline_boxes(sheet, &named, 3);
        if let Some(truth) = &self.truth_normalised {
            dashed(sheet, box_px(truth, frame).grown(-6));
        }
        name_boxes(sheet, &named, frame);
        sheet.frame(frame.grown(1), LINE, 1);
    }
}

/// Covers `frame` with white; the stronger the strongest box at a place, the thinner the veil. `strengths`: 0..1.
fn veil(sheet: &mut Canvas, frame: Rect, boxes: &[Rect], strengths: &[f32]) {
    let edges = |of: fn(&Rect) -> [i32; 2], from: i32, to: i32| {
        let inside = boxes.iter().flat_map(of).filter(|v| (from..to).contains(v));
        let mut edges: Vec<i32> = inside.chain([from, to]).collect();
        edges.sort_unstable();
        edges.dedup();
        edges
    };
    let xs = edges(|b| [b.x0, b.x1], frame.x0, frame.x1);
    let ys = edges(|b| [b.y0, b.y1], frame.y0, frame.y1);
    for row in ys.windows(2) {
        // Merge neighbours of equal strength into one piece.
        let mut piece: Option<(Rect, f32)> = None;
        for column in xs.windows(2) {
            let cell = Rect { x0: column[0], y0: row[0], x1: column[1], y1: row[1] };
            let over = boxes.iter().zip(strengths).filter(|(rect, _)| rect.contains(&cell));
            let strength = over.map(|(_, strength)| *strength).fold(0.0, f32::max);
            match &mut piece {
                Some((rect, same)) if *same == strength => rect.x1 = cell.x1,
                _ => {
                    if let Some((rect, strength)) = piece.replace((cell, strength)) {
                        sheet.fill(rect, WHITE, VEIL * (1.0 - strength));
                    }
                }
            }
        }
        if let Some((rect, strength)) = piece {
            sheet.fill(rect, WHITE, VEIL * (1.0 - strength));
        }
    }
}

/// Width and height of `photo`, scaled to fill `room` with its aspect ratio kept.
pub fn fit(photo: &RgbImage, room: (i32, i32)) -> (i32, i32) {
    let (width, height) = (photo.width().max(1) as f32, photo.height().max(1) as f32);
    let scale = (room.0 as f32 / width).min(room.1 as f32 / height);
    let side = |length: f32, most: i32| ((length * scale).round() as i32).clamp(1, most.max(1));
    (side(width, room.0), side(height, room.1))
}

/// A normalised box in pixels of `frame`, clamped to it and never empty.
pub fn box_px(normalised: &BoxXyxy, frame: Rect) -> Rect {
    let clamped = normalised.map(|v| if v.is_nan() { 0.0 } else { v.clamp(0.0, 1.0) });
    let [x0, y0, x1, y1] = to_pixels(&clamped, frame.width() as f32, frame.height() as f32).map(|v| v.round() as i32);
    Rect { x0, y0, x1: x1.max(x0 + 1), y1: y1.max(y0 + 1) }.moved(frame.x0, frame.y0)
}

/// A box with its name and colour.
#[derive(Debug, Clone, Copy)]
struct NamedBox<'a> {
    rect: Rect,
    name: &'a str,
    colour: Rgb,
}

/// Outlines boxes with lines `thick` pixels wide and a dark edge, the first on top.
fn outline_boxes(sheet: &mut Canvas, boxes: &[NamedBox], thick: i32) {
    for NamedBox { rect, colour, .. } in boxes.iter().rev() {
        sheet.frame(rect.grown(1), INK, thick + 2);
        sheet.frame(*rect, *colour, thick);
    }
}

/// Writes the names of boxes beside them within `frame`, never one over another; a line joins a name to a box that it
/// does not touch. Earlier names are placed first; a name without space is left out.
fn name_boxes(sheet: &mut Canvas, boxes: &[NamedBox], frame: Rect) {
    let names: Vec<String> = boxes.iter().map(|named| NAMES.fit(named.name, frame.width() / 2)).collect();
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
            sheet.line(&ends, INK, 3.0);
            sheet.line(&ends, named.colour, 1.0);
        }
        sheet.fill(rect.grown(1), INK, 1.0);
        sheet.fill(rect, named.colour, 1.0);
        let base = rect.y0 + (rect.height() + NAMES.cap_height() as i32) / 2;
        sheet.text((rect.x0 + 5, base), Align::Left, NAMES, ink_on(named.colour), name);
    }
}

fn centre(rect: Rect) -> (i32, i32) {
    ((rect.x0 + rect.x1) / 2, (rect.y0 + rect.y1) / 2)
}

/// Draws a dashed white frame with a dark edge.
pub fn dashed(sheet: &mut Canvas, rect: Rect) {
    let dash = |from: i32, to: i32| (from..to).step_by(10).map(move |start| (start, (start + 6).min(to)));
    let mut draw = |x0, y0, x1, y1| {
        let rect = Rect { x0, y0, x1, y1 };
        sheet.fill(rect.grown(1), INK, 1.0);
        sheet.fill(rect, WHITE, 1.0);
    };
    for (start, end) in dash(rect.x0, rect.x1) {
        [rect.y0, rect.y1 - 2].into_iter().for_each(|y| draw(start, y, end, y + 2));
    }
    for (start, end) in dash(rect.y0, rect.y1) {
        [rect.x0, rect.x1 - 2].into_iter().for_each(|x| draw(x, start, x + 2, end));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pictures::palette::{ColourScale, MARK};

    #[test]
    fn a_name_is_placed_on_its_box_in_its_colour() {
        let mut sheet = Canvas::new(300, 200);
        let named = NamedBox { rect: Rect::sized(100, 100, 60, 40), name: "1 star", colour: MARK };
        outline_boxes(&mut sheet, &[named], 3);
        name_boxes(&mut sheet, &[named], Rect::sized(0, 0, 300, 200));
        let pixels = sheet.pixels(1.0).unwrap();
        let at = |x, y| pixels.get_pixel(x, y).0;
        assert_eq!((at(101, 120), at(99, 120)), (MARK, INK));
        assert_eq!(at(101, 98), MARK, "the name's background, above the box");
        assert_eq!((at(130, 120), at(40, 40)), (WHITE, WHITE));
    }

    #[test]
    fn boxes_stay_within_their_frame_and_are_never_empty() {
        let frame = Rect::sized(10, 20, 100, 50);
        assert_eq!(box_px(&[-1.0, 0.5, 2.0, f32::NAN], frame), Rect { x0: 10, y0: 45, x1: 110, y1: 46 });
    }

    #[test]
    fn the_veil_is_thinnest_over_the_strongest_box() {
        let (mut sheet, frame) = (Canvas::new(100, 100), Rect::sized(0, 0, 100, 100));
        sheet.fill(frame, [0; 3], 1.0);
        let boxes = [Rect::sized(0, 0, 60, 100), Rect::sized(40, 0, 40, 100), Rect::sized(-9, -9, 4, 4)];
        veil(&mut sheet, frame, &boxes, &[0.2, 1.0, 1.0]);
        let pixels = sheet.pixels(1.0).unwrap();
        let at = |x| f32::from(pixels.get_pixel(x, 50).0[0]) / 255.0;
        for (x, strength) in [(20, 0.2), (50, 1.0), (70, 1.0), (90, 0.0)] {
            assert!((at(x) - VEIL * (1.0 - strength)).abs() < 0.01, "{x}: {}", at(x));
        }
    }

    #[test]
    fn a_strong_region_keeps_the_photos_own_colours() {
        let photo = RgbImage::from_pixel(10, 10, image::Rgb([150, 40, 200]));
        let weights = [0.9, 0.05, 0.05];
        let regions = WeightedRegions {
            photo: &photo,
            boxes_normalised: &[[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 0.5], [0.5, 0.5, 1.0, 1.0]],
            names: &["1 star", "2 cross", "3 ring"].map(String::from),
            weights: &weights,
            truth_normalised: None,
        };
        let scale = Scale::new(&weights, 0.1, "", ColourScale::Viridis);
        assert_eq!(regions.strongest(&scale, 5), [0]);
        let (mut sheet, frame) = (Canvas::new(400, 400), Rect::sized(0, 0, 400, 400));
        regions.draw(&mut sheet, frame, &scale, &[0]);
        let pixels = sheet.pixels(1.0).unwrap();
        let change = |x| pixels.get_pixel(x, 300).0[1].abs_diff(40);
        assert!(change(100) < 25 && change(300) > 100, "{} {}", change(100), change(300));
    }
}
