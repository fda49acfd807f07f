//! The photo with its regions: those with the largest weights are outlined, numbered and named; the chosen word is
//! marked in the sentence below.

use super::canvas::Canvas;
use super::font::Face;
use super::legend::Scale;
use super::palette::{GREY, INK, MARK, PANEL, WHITE, mix};
use super::regions::{WeightedRegions, dashed, fit};
use super::shapes::{Align, Rect};
use super::sheet::{Look, Sheet};
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

/// A photo, its regions, and their weights.
#[derive(Debug, Clone)]
pub struct OverlayPicture {
    /// What is shown.
    pub title: String,
    /// Layer, heads and method.
    pub subtitle: String,
    /// The photo.
    pub photo: RgbImage,
    /// The regions' boxes, normalised x0 y0 x1 y1.
    pub boxes_normalised: Vec<BoxXyxy>,
    /// The regions' names with their numbers, as in the other pictures: "3 red circle".
    pub names: Vec<String>,
    /// A weight for each region, ≥ 0.
    pub weights: Vec<f32>,
    /// The kind of weight: "attention weight", "relevance".
    pub weight_kind: String,
    /// The sentence.
    pub caption: Vec<CaptionWord>,
    /// How many regions to outline and name.
    pub top: usize,
    /// A box for comparison, normalised, drawn dashed: the true box of the named object.
    pub truth_normalised: Option<BoxXyxy>,
    /// Sizes and colours.
    pub look: Look,
}

const LIST: Face = Face::regular(13.0);
const CAPTION: Face = Face::regular(17.0);
const CAPTION_MARKED: Face = Face::bold(17.0);
const SIDE: i32 = 290;
/// The space for the photo; small photos are enlarged to it, so that labels stay legible.
const PHOTO_ROOM: (i32, i32) = (860, 640);
const ROW: i32 = 26;

impl OverlayPicture {
    /// Draws the picture.
    ///
    /// # Errors
    /// [`Error::Shape`] if boxes, names and weights differ in number or the photo is empty.
    pub fn draw(&self) -> Result<Canvas> {
        let counts = (self.boxes_normalised.len(), self.names.len(), self.weights.len());
        if counts.0 != counts.1 || counts.0 != counts.2 {
            return Err(Error::Shape(format!("{} boxes, {} names and {} weights", counts.0, counts.1, counts.2)));
        }
        if self.photo.width() == 0 || self.photo.height() == 0 {
            return Err(Error::Shape("a photo without pixels".into()));
        }
        let scale = Scale::of(&self.weights, self.look.colours);
        let regions = WeightedRegions {
            photo: &self.photo,
            boxes_normalised: &self.boxes_normalised,
            names: &self.names,
            weights: &self.weights,
            truth_normalised: self.truth_normalised,
        };
        let strongest = regions.strongest(&scale, self.top);
        let photo = fit(&self.photo, (self.look.px(PHOTO_ROOM.0), self.look.px(PHOTO_ROOM.1)));
        let width = photo.0 + 28 + SIDE;
        let (caption, caption_height) = flow(&self.caption, width);
        let height = photo.1.max((strongest.len() as i32 + 3) * ROW) + 14;
        let legend = Some((&scale, self.weight_kind.as_str()));
        let sheet = Sheet { title: &self.title, subtitle: &self.subtitle, legend };
        let (mut sheet, body) = sheet.begin((width, height + caption_height));
        let frame = Rect::sized(body.x0, body.y0, photo.0, photo.1);
        regions.draw(&mut sheet, frame, &scale, &strongest);
        self.draw_list(&mut sheet, Rect { x0: frame.x1 + 28, ..body }, &scale, &strongest);
        for (word, (x, y)) in self.caption.iter().zip(caption) {
            let (x, y) = (body.x0 + x, body.y0 + height + y);
            if word.marked {
                let pill = Rect::sized(x - 5, y - 17, CAPTION_MARKED.width(&word.text) + 10, 24);
                sheet.fill(pill, mix(MARK, WHITE, 0.72), 1.0);
                sheet.fill(Rect { y0: pill.y1 - 3, ..pill }, MARK, 1.0);
                sheet.text((x, y), Align::Left, CAPTION_MARKED, INK, &word.text);
            } else {
                sheet.text((x, y), Align::Left, CAPTION, INK, &word.text);
            }
        }
        Ok(sheet)
    }

    /// The list of the strongest regions beside the photo.
    fn draw_list(&self, sheet: &mut Canvas, side: Rect, scale: &Scale, strongest: &[usize]) {
        let mut y = side.y0 + 12;
        let heading = match strongest.len() {
            0 if self.weights.iter().all(|w| *w <= 0.0 || w.is_nan()) => "no region has a weight".to_string(),
            0 => "no region stands out".to_string(),
            1 => "the region with the largest weight".to_string(),
            n => format!("the {n} regions with the largest weights"),
        };
        sheet.text((side.x0, y), Align::Left, LIST, GREY, &heading);
        y += 10;
        for i in strongest {
            let value = self.weights[*i];
            let row = Rect::sized(side.x0, y, side.width(), ROW - 4);
            sheet.fill(row, PANEL, 1.0);
            let length = (scale.position(value) * row.width() as f32) as i32;
            sheet.fill(Rect { y0: row.y1 - 4, x1: row.x0 + length.max(2), ..row }, scale.colour(value), 1.0);
            let number = scale.number(value);
            let name = LIST.fit(&self.names[*i], row.width() - LIST.width(&number) - 20);
            sheet.text((row.x0 + 6, row.y0 + 14), Align::Left, LIST, INK, &name);
            sheet.text((row.x1 - 6, row.y0 + 14), Align::Right, LIST, INK, &number);
            y += ROW;
        }
        let rest = self.weights.len() - strongest.len();
        y += 22;
        if rest > 0 {
            let swatch = Rect::sized(side.x0, y - 12, 18, 14);
            sheet.fill(swatch, PANEL, 1.0);
            sheet.frame(swatch, mix(WHITE, GREY, 0.35), 1);
            let more = if strongest.is_empty() { "" } else { "more " };
            let regions = if rest == 1 { "region" } else { "regions" };
            let text = format!("{rest} {more}{regions}; paler means less");
            sheet.text((side.x0 + 26, y), Align::Left, LIST, GREY, &text);
        }
        if self.truth_normalised.is_some() {
            y += ROW;
            dashed(sheet, Rect::sized(side.x0, y - 13, 18, 16));
            sheet.text((side.x0 + 26, y), Align::Left, LIST, GREY, "the named object's true box");
        }
    }
}

/// The start of each word's baseline, and the total height of the lines.
fn flow(words: &[CaptionWord], width: i32) -> (Vec<(i32, i32)>, i32) {
    let (mut x, mut y) = (0, 20);
    let space = CAPTION.width(" ").max(5) + 1;
    let places = words
        .iter()
        .map(|word| {
            // A marked word's pill extends 5 pixels on both sides.
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
            look: Look::default(),
        }
    }

    #[test]
    fn photos_fill_their_space_and_odd_weights_are_drawn() {
        let mut picture = picture();
        assert_eq!(picture.draw().unwrap().width(), 2 * super::super::canvas::MARGIN + 853 + 28 + SIDE);
        picture.look.room = 0.5;
        assert_eq!(picture.draw().unwrap().width(), 2 * super::super::canvas::MARGIN + 427 + 28 + SIDE);
        for weights in [[0.0, 0.0, f32::NAN], [0.3; 3]] {
            picture.weights = weights.to_vec();
            picture.draw().unwrap();
        }
    }

    #[test]
    fn rejects_counts_that_disagree() {
        let mut picture = picture();
        picture.weights.pop();
        assert_eq!(picture.draw().err().unwrap().to_string(), "3 boxes, 3 names and 2 weights");
    }

    #[test]
    fn accepts_boxes_off_the_photo_and_odd_photos() {
        let mut picture = picture();
        picture.boxes_normalised = vec![[-1.0, -5.0, 7.0, f32::NAN], [0.9, 0.9, 0.1, 0.1], [f32::INFINITY; 4]];
        picture.photo = RgbImage::new(1, 3000);
        picture.truth_normalised = Some([0.0, 0.0, 0.0, 0.0]);
        picture.draw().unwrap().pixels(1.0).unwrap();
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
