//! Several methods side by side: for each the photo with weighed regions and the sentence with weighed words, all on
//! one scale.

use super::canvas::Canvas;
use super::font::Face;
use super::legend::Scale;
use super::palette::{GREY, INK, ink_on};
use super::regions::{WeightedRegions, fit};
use super::shapes::{Align, Rect};
use super::sheet::{Look, Sheet};
use crate::{Error, Result};
use image::RgbImage;
use lxmert_core::boxes::BoxXyxy;

/// One method's result. Its weights are multiples of the uniform share: 1 if all words, or all regions, have the same.
#[derive(Debug, Clone)]
pub struct MethodPanel {
    /// The method.
    pub title: String,
    /// A one-line explanation of the method.
    pub note: String,
    /// A weight for each word, ≥ 0.
    pub words: Vec<f32>,
    /// A weight for each region, ≥ 0.
    pub regions: Vec<f32>,
}

/// One photo and one sentence, by several methods.
#[derive(Debug, Clone, Default)]
pub struct MethodsPicture {
    /// What is explained.
    pub title: String,
    /// The image, the score, and how to read it.
    pub subtitle: String,
    /// The photo.
    pub photo: RgbImage,
    /// The regions' boxes, normalised.
    pub boxes_normalised: Vec<BoxXyxy>,
    /// The regions' names with their numbers.
    pub names: Vec<String>,
    /// The sentence's words.
    pub words: Vec<String>,
    /// The methods.
    pub panels: Vec<MethodPanel>,
    /// Sizes and colours.
    pub look: Look,
}

const PANEL_TITLE: Face = Face::bold(15.0);
const NOTE: Face = Face::regular(13.0);
const WORDS: Face = Face::regular(15.0);
const NUMBERS: Face = Face::regular(11.0);
const GAP: i32 = 28;
const PILL: i32 = 24;
const WORD_LINE: i32 = PILL + 20;
/// The space for a panel's photo if there are several panels, and if there is one.
const ROOMS: [(i32, i32); 2] = [(470, 400), (860, 640)];
/// Minimum width of a panel.
const LEAST_COLUMN: i32 = 330;
/// How many regions to name in a panel.
const NAMED: usize = 3;

impl MethodsPicture {
    fn check(&self) -> Result<()> {
        let (boxes, names, words) = (self.boxes_normalised.len(), self.names.len(), self.words.len());
        if self.panels.is_empty() || self.photo.width() == 0 || self.photo.height() == 0 {
            return Err(Error::Shape("no method to draw, or a photo without pixels".into()));
        }
        for panel in &self.panels {
            if panel.regions.len() != boxes || boxes != names || panel.words.len() != words {
                return Err(Error::Shape(format!(
                    "{}: {} weights for {boxes} boxes and {names} names, {} for {words} words",
                    panel.title,
                    panel.regions.len(),
                    panel.words.len()
                )));
            }
        }
        Ok(())
    }

    fn scale(&self) -> Scale {
        let weights = self.panels.iter().flat_map(|panel| panel.words.iter().chain(&panel.regions));
        Scale::new(weights, 1.0, "×", self.look.colours)
    }

    /// Draws the picture.
    ///
    /// # Errors
    /// [`Error::Shape`] if weights, boxes, names and words differ in number, or there is nothing to draw.
    pub fn draw(&self) -> Result<Canvas> {
        self.check()?;
        let across = if self.panels.len() > 1 { 2 } else { 1 };
        let room = ROOMS[usize::from(across == 1)];
        let photo = fit(&self.photo, (self.look.px(room.0), self.look.px(room.1)));
        let column = photo.0.max(LEAST_COLUMN);
        let (places, words_height) = flow(&self.words, column);
        let photo_top = PANEL_TITLE.line_height() + 2 * NOTE.line_height() + 8;
        let panel_height = photo_top + photo.1 + 14 + words_height + GAP;
        let down = (self.panels.len() as i32 + across - 1) / across;
        let scale = self.scale();
        let legend = Some((&scale, "share of the weight, in multiples of the uniform share"));
        let sheet = Sheet { title: &self.title, subtitle: &self.subtitle, legend };
        let (mut sheet, body) = sheet.begin((across * column + (across - 1) * GAP, down * panel_height - GAP));
        for (i, panel) in self.panels.iter().enumerate() {
            let (x, y) = (i as i32 % across * (column + GAP), i as i32 / across * panel_height);
            let (x, y) = (body.x0 + x, body.y0 + y);
            sheet.text((x, y + 14), Align::Left, PANEL_TITLE, INK, &panel.title);
            for (line, text) in NOTE.wrap(&self.note(panel, &scale), column, 2).iter().enumerate() {
                let base = y + 16 + (line as i32 + 1) * NOTE.line_height();
                sheet.text((x, base), Align::Left, NOTE, GREY, text);
            }
            let frame = Rect::sized(x, y + photo_top, photo.0, photo.1);
            let regions = WeightedRegions {
                photo: &self.photo,
                boxes_normalised: &self.boxes_normalised,
                names: &self.names,
                weights: &panel.regions,
                truth_normalised: None,
            };
            regions.draw(&mut sheet, frame, &scale, &regions.strongest(&scale, NAMED));
            for ((word, weight), (dx, dy)) in self.words.iter().zip(&panel.words).zip(&places) {
                let colour = scale.colour(*weight);
                let pill = Rect::sized(x + dx, frame.y1 + 14 + dy, pill_width(word), PILL);
                let (middle, face, numbers) = ((pill.x0 + pill.x1) / 2, WORDS, NUMBERS);
                sheet.fill(pill, colour, 1.0);
                sheet.text((middle, pill.y0 + 17), Align::Centre, face, ink_on(colour), word);
                sheet.text((middle, pill.y1 + 12), Align::Centre, numbers, GREY, &scale.number(*weight));
            }
        }
        Ok(sheet)
    }

    /// The method's explanation, and whether its result says anything.
    fn note(&self, panel: &MethodPanel, scale: &Scale) -> String {
        let kinds = [("region", &panel.regions), ("word", &panel.words)];
        let silent = kinds.into_iter().filter(|(_, weights)| !weights.iter().any(|w| scale.stands_out(*w)));
        let silent: Vec<String> = silent.map(|(kind, _)| format!("no {kind} stands out")).collect();
        std::iter::once(panel.note.clone()).chain(silent).collect::<Vec<_>>().join("; ")
    }
}

fn pill_width(word: &str) -> i32 {
    (WORDS.width(word) + 10).max(NUMBERS.width("88.8×") + 4)
}

/// The start of each word's pill, and the total height of the lines.
fn flow(words: &[String], width: i32) -> (Vec<(i32, i32)>, i32) {
    let (mut x, mut y) = (0, 0);
    let places = words
        .iter()
        .map(|word| {
            let wide = pill_width(word);
            if x > 0 && x + wide > width {
                (x, y) = (0, y + WORD_LINE);
            }
            let place = (x, y);
            x += wide + 4;
            place
        })
        .collect();
    (places, if words.is_empty() { 0 } else { y + WORD_LINE })
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    fn picture(panels: usize) -> MethodsPicture {
        let panel = |i: usize| MethodPanel {
            title: format!("method {i}"),
            note: "what it reads".into(),
            words: vec![0.1, 0.2, 2.7],
            regions: vec![1.9, 0.1],
        };
        MethodsPicture {
            title: "What speaks for and against the match".into(),
            photo: RgbImage::from_pixel(64, 48, Rgb([90, 120, 90])),
            boxes_normalised: vec![[0.1, 0.1, 0.4, 0.5], [0.5, 0.5, 0.9, 0.9]],
            names: vec!["1 circle".into(), "2 square".into()],
            words: vec!["a".into(), "red".into(), "circle".into()],
            panels: (0..panels).map(panel).collect(),
            ..MethodsPicture::default()
        }
    }

    #[test]
    fn the_note_says_if_nothing_stands_out() {
        let mut picture = picture(4);
        picture.panels[0].regions = vec![f32::NAN, 0.0];
        picture.panels[1].words = vec![1.1, 0.9, 1.0];
        let scale = picture.scale();
        assert_eq!(picture.note(&picture.panels[0], &scale), "what it reads; no region stands out");
        assert_eq!(picture.note(&picture.panels[1], &scale), "what it reads; no word stands out");
        assert_eq!(picture.note(&picture.panels[2], &scale), "what it reads");
        assert!(picture.draw().unwrap().width() > 900);
        picture.panels.truncate(1);
        picture.draw().unwrap();
    }

    #[test]
    fn rejects_counts_that_disagree() {
        let mut picture = picture(2);
        picture.panels[1].words.pop();
        let message = picture.draw().err().unwrap().to_string();
        assert_eq!(message, "method 1: 2 weights for 2 boxes and 2 names, 2 for 3 words");
        picture.panels.clear();
        assert!(picture.draw().is_err());
    }
}
