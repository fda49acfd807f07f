//! Several methods side by side: for each the photo with its regions shaded and the sentence with its words
//! shaded, one legend for all.

use crate::canvas::{Align, Canvas, Rect};
use crate::font::Face;
use crate::legend::Scale;
use crate::palette::{ColourScale, GREY, INK, LINE, Rgb, ink_on, mix};
use crate::sheet::{Heading, MARGIN, NamedBox, SUBTITLE, box_px, fit_photo, name_boxes, outline_boxes};
use crate::{Error, Result};
use image::{Rgb as Pixel, RgbImage};
use lxmert_core::boxes::BoxXyxy;

/// What one method says.
#[derive(Debug, Clone)]
pub struct MethodPanel {
    /// The method.
    pub title: String,
    /// What it reads.
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
    /// The image, the score, how to read it.
    pub subtitle: String,
    /// The photo.
    pub photo: RgbImage,
    /// The regions' boxes, normalised x0 y0 x1 y1.
    pub boxes_normalised: Vec<BoxXyxy>,
    /// The regions' names with their numbers.
    pub names: Vec<String>,
    /// The sentence's words.
    pub words: Vec<String>,
    /// The methods.
    pub panels: Vec<MethodPanel>,
    /// The colours.
    pub colours: ColourScale,
}

const PANEL_TITLE: Face = Face::bold(15.0);
const WORDS: Face = Face::regular(15.0);
const GAP: i32 = 28;
const WORD_LINE: i32 = 30;
/// A panel's photo when there are several, and when there is one.
const ROOMS: [(u32, u32); 2] = [(470, 400), (860, 640)];
/// Regions that are named in a panel.
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

    /// Draws the picture.
    ///
    /// # Errors
    /// [`Error::Shape`] when weights, boxes, names and words differ in number, or there is nothing to draw;
    /// [`Error::Drawing`].
    pub fn draw(&self) -> Result<Canvas> {
        self.check()?;
        let across = if self.panels.len() > 1 { 2 } else { 1 };
        let photo = fit_photo(&self.photo, ROOMS[usize::from(across == 1)]);
        let (photo_width, photo_height) = (photo.width() as i32, photo.height() as i32);
        let column = photo_width.max(300);
        let width = (2 * MARGIN + across * column + (across - 1) * GAP).max(660);
        let heading = Heading::new(&self.title, &self.subtitle, width);
        let bar = Rect::sized(MARGIN, 0, 320.min(width - 2 * MARGIN), 14);
        let bar = bar.moved(0, heading.bottom() + 20);
        let head = bar.y1 + 20 + GAP;
        let (places, words_height) = flow(&self.words, column);
        let photo_top = PANEL_TITLE.line_height() + SUBTITLE.line_height() + 8;
        let panel_height = photo_top + photo_height + 14 + words_height + GAP;
        let down = (self.panels.len() as i32 + across - 1) / across;
        let mut sheet = Canvas::new(width as u32, (head + down * panel_height + MARGIN - GAP) as u32)?;
        heading.draw(&mut sheet)?;
        let scale = Scale::up_to(1.0, self.colours);
        let legend = "relevance, of words and of regions apart: share of the method's largest";
        scale.draw_level(&mut sheet, bar, legend)?;
        for (i, panel) in self.panels.iter().enumerate() {
            let (x, y) = (MARGIN + i as i32 % across * (column + GAP), head + i as i32 / across * panel_height);
            sheet.text((x, y + 14), Align::Left, PANEL_TITLE, INK, &panel.title)?;
            let none = |weights: &[f32]| weights.iter().all(|weight| *weight <= 0.0 || weight.is_nan());
            let note = match (none(&panel.regions), none(&panel.words)) {
                (false, false) => panel.note.clone(),
                (true, false) => format!("{}; no region above zero", panel.note),
                (false, true) => format!("{}; no word above zero", panel.note),
                (true, true) => format!("{}; nothing above zero", panel.note),
            };
            let note = SUBTITLE.fit(&note, column);
            sheet.text((x, y + 16 + SUBTITLE.line_height()), Align::Left, SUBTITLE, GREY, &note)?;
            let frame = Rect::sized(x, y + photo_top, photo_width, photo_height);
            self.draw_regions(&mut sheet, &photo, frame, &shares(&panel.regions))?;
            for ((word, share), (dx, dy)) in self.words.iter().zip(shares(&panel.words)).zip(&places) {
                let colour = self.colours.at(share);
                let pill = Rect::sized(x + dx, frame.y1 + 14 + dy, WORDS.width(word) + 10, WORD_LINE - 6);
                sheet.fill(pill, colour, 1.0)?;
                sheet.text((pill.x0 + 5, pill.y0 + 17), Align::Left, WORDS, ink_on(colour), word)?;
            }
        }
        Ok(sheet)
    }

    fn draw_regions(&self, sheet: &mut Canvas, photo: &RgbImage, frame: Rect, shares: &[f32]) -> Result<()> {
        let boxes: Vec<Rect> = self.boxes_normalised.iter().map(|b| box_px(b, frame)).collect();
        let within: Vec<Rect> = boxes.iter().map(|b| b.moved(-frame.x0, -frame.y0)).collect();
        sheet.photo((frame.x0, frame.y0), &shaded(photo, &within, shares, self.colours));
        let mut order: Vec<usize> = (0..shares.len()).filter(|i| shares[*i] > 0.0).collect();
        order.sort_by(|a, b| shares[*b].total_cmp(&shares[*a]));
        order.truncate(NAMED);
        let named: Vec<NamedBox> = (order.iter())
            .map(|&i| NamedBox { rect: boxes[i], name: &self.names[i], colour: self.colours.at(shares[i]) })
            .collect();
        outline_boxes(sheet, &named, 2)?;
        name_boxes(sheet, &named, frame)?;
        sheet.frame(frame.grown(1), LINE, 1)
    }
}

/// Weights as shares of the largest; zeros when none is above zero.
fn shares(weights: &[f32]) -> Vec<f32> {
    let largest = weights.iter().copied().filter(|w| w.is_finite()).fold(0.0, f32::max);
    weights.iter().map(|w| if largest > 0.0 && w.is_finite() { (w / largest).max(0.0) } else { 0.0 }).collect()
}

/// The photo in grey where no region matters, each pixel coloured by the strongest of the regions that cover it.
fn shaded(photo: &RgbImage, boxes: &[Rect], shares: &[f32], colours: ColourScale) -> RgbImage {
    let mut strongest = vec![0f32; photo.width() as usize * photo.height() as usize];
    for (rect, share) in boxes.iter().zip(shares) {
        for y in rect.y0.max(0)..rect.y1.min(photo.height() as i32) {
            for x in rect.x0.max(0)..rect.x1.min(photo.width() as i32) {
                // Within the photo, so both are at least 0.
                let at = &mut strongest[y as usize * photo.width() as usize + x as usize];
                *at = at.max(*share);
            }
        }
    }
    let mut out = photo.clone();
    for (Pixel(pixel), share) in out.pixels_mut().zip(strongest) {
        let pale: Rgb = mix(*pixel, [255; 3], 0.25);
        *pixel = mix(pale, colours.at(share), 0.15 + 0.45 * share);
    }
    out
}

/// Where each word's pill begins, and the height of all lines.
fn flow(words: &[String], width: i32) -> (Vec<(i32, i32)>, i32) {
    let (mut x, mut y) = (0, 0);
    let places = words
        .iter()
        .map(|word| {
            let wide = WORDS.width(word) + 10;
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

    fn picture(panels: usize) -> MethodsPicture {
        let panel = |i: usize| MethodPanel {
            title: format!("method {i}"),
            note: "what it reads".into(),
            words: vec![0.1, 0.2, 0.4],
            regions: vec![0.3, 0.0],
        };
        MethodsPicture {
            title: "What the match rests on".into(),
            photo: RgbImage::from_pixel(64, 48, Pixel([90, 120, 90])),
            boxes_normalised: vec![[0.1, 0.1, 0.4, 0.5], [0.5, 0.5, 0.9, 0.9]],
            names: vec!["1 circle".into(), "2 square".into()],
            words: vec!["a".into(), "red".into(), "circle".into()],
            panels: (0..panels).map(panel).collect(),
            ..MethodsPicture::default()
        }
    }

    #[test]
    fn each_pixel_takes_the_strongest_region_over_it() {
        let photo = RgbImage::from_pixel(10, 1, Pixel([128; 3]));
        let boxes = [Rect::sized(0, 0, 6, 1), Rect::sized(4, 0, 4, 1), Rect::sized(-9, -9, 4, 4)];
        let out = shaded(&photo, &boxes, &[0.2, 1.0, 1.0], ColourScale::Viridis);
        let at = |x| out.get_pixel(x, 0).0;
        assert_eq!(at(5), at(7));
        assert!(at(0) != at(5) && at(9) != at(0));
        let want = mix(mix([128; 3], [255; 3], 0.25), ColourScale::Viridis.at(1.0), 0.6);
        assert_eq!(at(4), want);
    }

    #[test]
    fn a_method_without_any_weight_and_odd_numbers_are_drawn() {
        assert_eq!(shares(&[0.0, 0.0]), [0.0, 0.0]);
        assert_eq!(shares(&[f32::NAN, 2.0, -1.0, 1.0]), [0.0, 1.0, 0.0, 0.5]);
        let mut picture = picture(4);
        picture.panels[0].regions = vec![f32::NAN, 0.0];
        picture.panels[1].words = vec![0.0; 3];
        assert!(picture.draw().unwrap().width() > 900);
        picture.panels.truncate(1);
        picture.draw().unwrap();
    }

    #[test]
    fn counts_that_disagree_are_refused() {
        let mut picture = picture(2);
        picture.panels[1].words.pop();
        let message = picture.draw().err().unwrap().to_string();
        assert_eq!(message, "method 1: 2 weights for 2 boxes and 2 names, 2 for 3 words");
        picture.panels.clear();
        assert!(picture.draw().is_err());
    }
}
