//! The photo with its regions: the most attended ones tinted by their weight, numbered and named,
//! the sentence below with the chosen word marked.

use crate::canvas::{Align, Canvas, Rect};
use crate::font::Face;
use crate::legend::Scale;
use crate::palette::{ColourScale, GREY, INK, LINE, MARK, PANEL, WHITE, mix};
use crate::sheet::{Heading, MARGIN, NamedBox, box_px, fit_photo, name_boxes, outline_boxes};
use crate::{Error, Result};
use image::RgbImage;
use lxmert_core::boxes::BoxXyxy;

/// A word of the sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptionWord {
    /// As written.
    pub text: String,
    /// Whether the picture is about this word.
    pub marked: bool,
}

/// A photo, its regions and how much each is attended to.
#[derive(Debug, Clone)]
pub struct OverlayPicture {
    /// What is shown.
    pub title: String,
    /// Which layer, heads, method.
    pub subtitle: String,
    /// The photo.
    pub photo: RgbImage,
    /// The regions' boxes, normalised x0 y0 x1 y1.
    pub boxes_normalised: Vec<BoxXyxy>,
    /// The regions' names with their numbers, as in the other pictures: "3 red circle".
    pub names: Vec<String>,
    /// A weight for each region, ≥ 0.
    pub weights: Vec<f32>,
    /// What a weight is: "attention weight", "relevance".
    pub weight_kind: String,
    /// The sentence.
    pub caption: Vec<CaptionWord>,
    /// How many regions to tint and name.
    pub top: usize,
    /// A box to compare with, normalised, drawn dashed: where the named object truly is.
    pub truth_normalised: Option<BoxXyxy>,
    /// The colours.
    pub colours: ColourScale,
}

const LIST: Face = Face::regular(13.0);
const CAPTION: Face = Face::regular(17.0);
const CAPTION_MARKED: Face = Face::bold(17.0);
const SIDE: i32 = 290;
/// The room for the photo: small photos are enlarged to it, so that labels stay legible.
const PHOTO_ROOM: (u32, u32) = (860, 640);
/// Below this share of the largest weight a region is not named.
const FAINT: f32 = 0.1;

impl OverlayPicture {
    /// The regions to tint and name, the strongest first.
    pub fn strongest(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.weights.len()).filter(|i| self.weights[*i].is_finite()).collect();
        order.sort_by(|a, b| self.weights[*b].total_cmp(&self.weights[*a]));
        let largest = order.first().map_or(0.0, |i| self.weights[*i]);
        order.retain(|i| self.weights[*i] > 0.0 && self.weights[*i] >= FAINT * largest);
        order.truncate(self.top);
        order
    }

    /// Draws the picture.
    ///
    /// # Errors
    /// [`Error::Shape`] when boxes, names and weights differ in number or the photo is empty;
    /// [`Error::Drawing`].
    pub fn draw(&self) -> Result<Canvas> {
        let counts = (self.boxes_normalised.len(), self.names.len(), self.weights.len());
        if counts.0 != counts.1 || counts.0 != counts.2 {
            return Err(Error::Shape(format!("{} boxes, {} names and {} weights", counts.0, counts.1, counts.2)));
        }
        if self.photo.width() == 0 || self.photo.height() == 0 {
            return Err(Error::Shape("a photo without pixels".into()));
        }
        let photo = fit_photo(&self.photo, PHOTO_ROOM);
        let (photo_width, photo_height) = (photo.width() as i32, photo.height() as i32);
        let width = (2 * MARGIN + photo_width + 28 + SIDE).max(700);
        let heading = Heading::new(&self.title, &self.subtitle, width);
        let head = heading.bottom();
        let frame = Rect::sized(MARGIN, head, photo_width, photo_height);
        let strongest = self.strongest();
        let side =
            Rect { x0: frame.x1 + 28, y0: head, x1: width - MARGIN, y1: head + self.side_height(strongest.len()) };
        let (caption, caption_height) = flow(&self.caption, width - 2 * MARGIN);
        let caption_top = frame.y1.max(side.y1) + 14;
        let mut sheet = Canvas::new(width as u32, (caption_top + caption_height + MARGIN) as u32)?;
        heading.draw(&mut sheet)?;
        self.draw_photo(&mut sheet, &photo, frame, &strongest)?;
        self.draw_side(&mut sheet, side, &strongest)?;
        for (word, (x, y)) in self.caption.iter().zip(caption) {
            let (x, y) = (MARGIN + x, caption_top + y);
            if word.marked {
                let pill = Rect::sized(x - 5, y - 17, CAPTION_MARKED.width(&word.text) + 10, 24);
                sheet.fill(pill, mix(MARK, WHITE, 0.72), 1.0)?;
                sheet.fill(Rect { y0: pill.y1 - 3, ..pill }, MARK, 1.0)?;
                sheet.text((x, y), Align::Left, CAPTION_MARKED, INK, &word.text)?;
            } else {
                sheet.text((x, y), Align::Left, CAPTION, INK, &word.text)?;
            }
        }
        Ok(sheet)
    }

    fn scale(&self) -> Scale {
        Scale::of(&self.weights, self.colours)
    }

    fn boxes_px(&self, frame: Rect) -> Vec<Rect> {
        self.boxes_normalised.iter().map(|b| box_px(b, frame)).collect()
    }

    fn draw_photo(&self, sheet: &mut Canvas, photo: &RgbImage, frame: Rect, strongest: &[usize]) -> Result<()> {
        let scale = self.scale();
        let boxes = self.boxes_px(frame);
        sheet.photo((frame.x0, frame.y0), photo);
        // A light veil, so that the tint stands out; the photo stays recognisable.
        sheet.fill(frame, WHITE, 0.22)?;
        for (i, rect) in boxes.iter().enumerate() {
            if !strongest.contains(&i) {
                sheet.frame(*rect, mix(WHITE, GREY, 0.35), 1)?;
            }
        }
        for i in strongest.iter().rev() {
            let strength = scale.position(self.weights[*i]).clamp(0.0, 1.0);
            sheet.fill(boxes[*i], scale.colour(self.weights[*i]), f64::from(0.12 + 0.38 * strength))?;
        }
        let named: Vec<NamedBox> = (strongest.iter())
            .map(|&i| NamedBox { rect: boxes[i], name: &self.names[i], colour: scale.colour(self.weights[i]) })
            .collect();
        outline_boxes(sheet, &named, 3)?;
        if let Some(truth) = &self.truth_normalised {
            dashed(sheet, box_px(truth, frame).grown(-6))?;
        }
        name_boxes(sheet, &named, frame)?;
        sheet.frame(frame.grown(1), LINE, 1)
    }

    fn side_height(&self, regions: usize) -> i32 {
        let truth = if self.truth_normalised.is_some() { 30 } else { 0 };
        64 + 34 + regions.max(1) as i32 * 26 + 12 + 26 + truth
    }

    fn draw_side(&self, sheet: &mut Canvas, side: Rect, strongest: &[usize]) -> Result<()> {
        let scale = self.scale();
        scale.draw_level(sheet, Rect::sized(side.x0, side.y0 + 22, side.width(), 14), &self.weight_kind)?;
        let mut y = side.y0 + 64 + 26;
        let heading = match strongest.len() {
            0 => "no region has a weight".to_string(),
            1 => "the region with the most".to_string(),
            n => format!("the {n} regions with the most"),
        };
        sheet.text((side.x0, y - 4), Align::Left, LIST, GREY, &heading)?;
        y += 8;
        let numbers = LIST.width("0.000");
        for i in strongest {
            let value = self.weights[*i];
            let row = Rect::sized(side.x0, y, side.width(), 22);
            sheet.fill(row, PANEL, 1.0)?;
            let length = (scale.position(value).clamp(0.0, 1.0) * (row.width() as f32)) as i32;
            sheet.fill(Rect { y0: row.y1 - 4, x1: row.x0 + length.max(2), ..row }, scale.colour(value), 1.0)?;
            let name = LIST.fit(&self.names[*i], row.width() - numbers - 20);
            sheet.text((row.x0 + 6, row.y0 + 14), Align::Left, LIST, INK, &name)?;
            sheet.text((row.x1 - 6, row.y0 + 14), Align::Right, LIST, INK, &decimals(value, scale.max()))?;
            y += 26;
        }
        let rest = self.weights.len() - strongest.len();
        y += 22;
        if rest > 0 {
            let swatch = Rect::sized(side.x0, y - 12, 18, 14);
            sheet.fill(swatch, PANEL, 1.0)?;
            sheet.frame(swatch, mix(WHITE, GREY, 0.35), 1)?;
            let text = format!("{rest} more {}", if rest == 1 { "region" } else { "regions" });
            sheet.text((side.x0 + 26, y), Align::Left, LIST, GREY, &text)?;
        }
        if self.truth_normalised.is_some() {
            y += 26;
            dashed(sheet, Rect::sized(side.x0, y - 13, 18, 16))?;
            sheet.text((side.x0 + 26, y), Align::Left, LIST, GREY, "the named object's true box")?;
        }
        Ok(())
    }
}

fn dashed(sheet: &mut Canvas, rect: Rect) -> Result<()> {
    let dash = |from: i32, to: i32| (from..to).step_by(10).map(move |start| (start, (start + 6).min(to)));
    for (start, end) in dash(rect.x0, rect.x1) {
        for y in [rect.y0, rect.y1 - 2] {
            sheet.fill(Rect { x0: start - 1, y0: y - 1, x1: end + 1, y1: y + 3 }, INK, 1.0)?;
            sheet.fill(Rect { x0: start, y0: y, x1: end, y1: y + 2 }, WHITE, 1.0)?;
        }
    }
    for (start, end) in dash(rect.y0, rect.y1) {
        for x in [rect.x0, rect.x1 - 2] {
            sheet.fill(Rect { x0: x - 1, y0: start - 1, x1: x + 3, y1: end + 1 }, INK, 1.0)?;
            sheet.fill(Rect { x0: x, y0: start, x1: x + 2, y1: end }, WHITE, 1.0)?;
        }
    }
    Ok(())
}

fn decimals(value: f32, max: f32) -> String {
    if max < 0.01 { format!("{value:.1e}") } else { format!("{value:.3}") }
}

/// Where each word's base line begins, and the height of all lines.
fn flow(words: &[CaptionWord], width: i32) -> (Vec<(i32, i32)>, i32) {
    let (mut x, mut y) = (0, 20);
    let space = CAPTION.width(" ").max(5) + 1;
    let places = words
        .iter()
        .map(|word| {
            // A marked word's pill sticks out by 5 pixels on both sides.
            let (face, pad) = if word.marked { (CAPTION_MARKED, 5) } else { (CAPTION, 0) };
            let wide = face.width(&word.text) + 2 * pad;
            if x > 0 && x + wide > width {
                (x, y) = (0, y + 30);
            }
            let place = (x + pad, y);
            x += wide + space;
            place
        })
        .collect();
    (places, if words.is_empty() { 0 } else { y + 8 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    fn picture() -> OverlayPicture {
        OverlayPicture {
            title: "circle".into(),
            subtitle: "cross layer 2".into(),
            photo: RgbImage::from_pixel(64, 48, Rgb([90, 120, 90])),
            boxes_normalised: vec![[0.1, 0.1, 0.4, 0.5], [0.5, 0.5, 0.9, 0.9], [0.0, 0.0, 1.0, 1.0]],
            names: vec!["1 red circle".into(), "2 blue square".into(), "3 star".into()],
            weights: vec![0.7, 0.2, 0.01],
            weight_kind: "attention weight".into(),
            caption: vec![
                CaptionWord { text: "a".into(), marked: false },
                CaptionWord { text: "circle".into(), marked: true },
            ],
            top: 5,
            truth_normalised: None,
            colours: ColourScale::Viridis,
        }
    }

    #[test]
    fn faint_regions_are_not_named() {
        let mut picture = picture();
        assert_eq!(picture.strongest(), [0, 1]);
        picture.weights = vec![0.0, 0.0, f32::NAN];
        assert!(picture.strongest().is_empty());
        picture.draw().unwrap();
    }

    #[test]
    fn the_most_attended_region_has_the_strongest_tint() {
        let picture = picture();
        let sheet = picture.draw().unwrap();
        let photo = fit_photo(&picture.photo, PHOTO_ROOM);
        assert_eq!((photo.width(), photo.height()), (853, 640));
        let head = Heading::new(&picture.title, &picture.subtitle, 1195).bottom();
        let at = |x: f32, y: f32| sheet.pixel(MARGIN + (x * 853.0) as i32, head + (y * 640.0) as i32).unwrap();
        let (strong, weak, bare) = (at(0.25, 0.4), at(0.7, 0.8), at(0.05, 0.9));
        let change = |c: [u8; 3]| (0..3).map(|i| c[i].abs_diff(bare[i]) as u32).sum::<u32>();
        assert!(change(strong) > change(weak) && change(weak) > 0, "{strong:?} {weak:?} {bare:?}");
    }

    #[test]
    fn counts_that_disagree_are_refused() {
        let mut picture = picture();
        picture.weights.pop();
        assert_eq!(picture.draw().err().unwrap().to_string(), "3 boxes, 3 names and 2 weights");
    }

    #[test]
    fn boxes_off_the_photo_and_odd_photos_do_no_harm() {
        let mut picture = picture();
        picture.boxes_normalised = vec![[-1.0, -5.0, 7.0, f32::NAN], [0.9, 0.9, 0.1, 0.1], [f32::INFINITY; 4]];
        picture.photo = RgbImage::new(1, 3000);
        picture.truth_normalised = Some([0.0, 0.0, 0.0, 0.0]);
        picture.draw().unwrap();
    }

    #[test]
    fn a_sentence_flows_within_its_width() {
        let words: Vec<CaptionWord> = "a small red circle is to the left of a striped blue square"
            .split(' ')
            .enumerate()
            .map(|(i, text)| CaptionWord { text: text.into(), marked: i == 3 })
            .collect();
        let (places, height) = flow(&words, 200);
        for (word, (x, y)) in words.iter().zip(&places) {
            assert!(x + CAPTION.width(&word.text) <= 200 && *y < height);
        }
        assert!(places.last().unwrap().1 > 60);
    }
}
