//! Test pairs with the model's verdicts: photo, sentence, probability, and right or wrong, shown by colour and by mark.

use super::canvas::Canvas;
use super::font::Face;
use super::palette::{GREY, INK, LINE, PANEL, RIGHT, Rgb, WHITE, WRONG};
use super::regions::fit;
use super::shapes::{Align, Rect};
use super::sheet::{Look, Sheet};
use crate::{Error, Result};
use image::RgbImage;

/// One pair and the model's verdict.
#[derive(Debug, Clone)]
pub struct Card {
    /// The photo.
    pub photo: RgbImage,
    /// The sentence.
    pub caption: String,
    /// The model's probability that the two belong together, 0..1.
    pub probability: f32,
    /// Whether they do.
    pub is_match: bool,
}

impl Card {
    /// Whether the model is right with the threshold 0.5.
    pub fn is_right(&self) -> bool {
        (self.probability >= 0.5) == self.is_match
    }
}

/// Cards in rows.
#[derive(Debug, Clone, Default)]
pub struct PredictionPicture {
    /// The title.
    pub title: String,
    /// The figures behind it.
    pub subtitle: String,
    /// The cards, row by row.
    pub cards: Vec<Card>,
    /// Cards per row, at least 1.
    pub across: usize,
    /// Sizes and colours.
    pub look: Look,
}

const NUMBER: Face = Face::bold(14.0);
const TRUTH: Face = Face::regular(12.5);
const SENTENCE: Face = Face::regular(13.0);
const SIGN: Face = Face::bold(17.0);
const GAP: i32 = 18;
/// The space for a card's photo.
const PHOTO: (i32, i32) = (276, 200);
/// The height of the text below the photo, and of the key above the cards.
const BELOW: i32 = 140;
const KEY: i32 = 34;
const SENTENCE_LINES: usize = 4;

/// The colour and the mark of right or wrong.
pub const fn verdict(right: bool) -> (Rgb, &'static str) {
    if right { (RIGHT, "✓") } else { (WRONG, "✗") }
}

impl PredictionPicture {
    /// The positions of the cards if the picture's left and top are 0, and its width and height.
    fn layout(&self) -> (Vec<Rect>, (i32, i32)) {
        let across = self.across.max(1).min(self.cards.len().max(1)) as i32;
        // Narrow cards would leave no space for the sentences.
        let (width, height) = (self.look.px(PHOTO.0).max(240) + 8, self.look.px(PHOTO.1) + 8 + BELOW);
        let cards: Vec<Rect> = (0..self.cards.len() as i32)
            .map(|i| Rect::sized(i % across * (width + GAP), KEY + i / across * (height + GAP), width, height))
            .collect();
        let size = (across * (width + GAP) - GAP, cards.last().map_or(KEY, |card| card.y1));
        (cards, size)
    }

    /// Draws the picture.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are no cards.
    pub fn draw(&self) -> Result<Canvas> {
        Ok(self.draw_with_cards()?.0)
    }

    fn draw_with_cards(&self) -> Result<(Canvas, Vec<Rect>)> {
        if self.cards.is_empty() {
            return Err(Error::Shape("no pairs to show".into()));
        }
        let (mut places, size) = self.layout();
        let (mut sheet, body) = Sheet { title: &self.title, subtitle: &self.subtitle, legend: None }.begin(size);
        places.iter_mut().for_each(|place| *place = place.moved(body.x0, body.y0));
        let y = body.y0 + 12;
        let mut x = body.x0;
        for (right, meaning) in [(true, "right"), (false, "wrong")] {
            sign(&mut sheet, (x + 9, y - 5), right);
            sheet.text((x + 24, y), Align::Left, TRUTH, INK, meaning);
            x += 24 + TRUTH.width(meaning) + 22;
        }
        let rule = "P = probability that sentence and photo belong together; “match” from 0.5";
        let room = sheet.width() - super::canvas::MARGIN - x;
        sheet.text((x, y), Align::Left, TRUTH, GREY, &TRUTH.fit(rule, room));
        for (card, place) in self.cards.iter().zip(&places) {
            draw_card(&mut sheet, card, *place);
        }
        Ok((sheet, places))
    }
}

fn sign(sheet: &mut Canvas, centre: (i32, i32), right: bool) {
    let (colour, mark) = verdict(right);
    sheet.fill(Rect::sized(centre.0 - 10, centre.1 - 10, 20, 20), colour, 1.0);
    sheet.text((centre.0 + 1, centre.1 + 6), Align::Centre, SIGN, WHITE, mark);
}

fn draw_card(sheet: &mut Canvas, card: &Card, place: Rect) {
    let (colour, _) = verdict(card.is_right());
    sheet.frame(place, colour, 3);
    let inner = place.grown(-4);
    let room = Rect { y1: inner.y1 - BELOW, ..inner };
    sheet.fill(room, PANEL, 1.0);
    let (width, height) = fit(&card.photo, (room.width(), room.height()));
    let (x, y) = ((room.width() - width) / 2, (room.height() - height) / 2);
    sheet.photo(Rect::sized(room.x0 + x, room.y0 + y, width, height), &card.photo);
    let line = room.y1 + 24;
    sign(sheet, (inner.x0 + 16, line - 5), card.is_right());
    let probability = if card.probability.is_finite() { card.probability.clamp(0.0, 1.0) } else { 0.0 };
    let number = format!("P {}", percent(probability));
    sheet.text((inner.x0 + 34, line), Align::Left, NUMBER, INK, &number);
    let truth = if card.is_match { "truth: match" } else { "truth: mismatch" };
    sheet.text((inner.x1 - 8, line), Align::Right, TRUTH, INK, truth);
    let bar = Rect::sized(inner.x0 + 8, line + 10, inner.width() - 16, 8);
    sheet.fill(bar, PANEL, 1.0);
    let filled = (probability * bar.width() as f32).round() as i32;
    sheet.fill(Rect { x1: bar.x0 + filled, ..bar }, colour, 1.0);
    sheet.frame(bar, LINE, 1);
    sheet.fill(Rect::sized(bar.x0 + bar.width() / 2, bar.y0 - 3, 1, bar.height() + 6), INK, 1.0);
    let mut y = bar.y1 + 5;
    for text in SENTENCE.wrap(&card.caption, inner.width() - 16, SENTENCE_LINES) {
        y += SENTENCE.line_height();
        sheet.text((inner.x0 + 8, y), Align::Left, SENTENCE, INK, &text);
    }
}

/// Two decimals, or more if the last one would round to 0 or 1.
pub fn percent(probability: f32) -> String {
    if probability > 0.995 && probability < 1.0 || probability > 0.0 && probability < 0.005 {
        let text = format!("{probability:.4}");
        return if text == "1.0000" || text == "0.0000" {
            if probability > 0.5 { "> 0.9999".into() } else { "< 0.0001".into() }
        } else {
            text
        };
    }
    format!("{probability:.2}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    fn picture(count: usize) -> PredictionPicture {
        let cards = (0..count)
            .map(|i| Card {
                photo: RgbImage::from_pixel(50 + 30 * i as u32, 60, Rgb([30, 160, 90])),
                caption: "a small red circle is to the left of a striped blue square ".repeat(1 + i % 4),
                probability: i as f32 / count as f32,
                is_match: i % 2 == 0,
            })
            .collect();
        PredictionPicture {
            title: "Test pairs".into(),
            subtitle: "accuracy 0.97".into(),
            cards,
            across: 4,
            look: Look::default(),
        }
    }

    #[test]
    fn cards_do_not_overlap_and_stay_inside() {
        let mut picture = picture(7);
        for room in [0.5, 1.0, 1.7] {
            picture.look.room = room;
            let (sheet, places) = picture.draw_with_cards().unwrap();
            for (i, place) in places.iter().enumerate() {
                assert!(sheet.bounds().contains(place));
                assert!(places[i + 1..].iter().all(|other| !other.overlaps(place)));
            }
        }
    }

    #[test]
    fn right_and_wrong_differ_in_colour_and_mark() {
        let picture = picture(4);
        let (sheet, places) = picture.draw_with_cards().unwrap();
        let pixels = sheet.pixels(1.0).unwrap();
        for (card, place) in picture.cards.iter().zip(places) {
            let corner = pixels.get_pixel(place.x0 as u32 + 1, place.y0 as u32 + 1).0;
            assert_eq!(corner, verdict(card.is_right()).0);
        }
        assert_ne!(verdict(true), verdict(false));
        assert_ne!(verdict(true).1, verdict(false).1);
    }

    #[test]
    fn probabilities_never_read_as_certain_unless_they_are() {
        assert_eq!(percent(0.5), "0.50");
        assert_eq!(percent(0.998), "0.9980");
        assert_eq!(percent(0.999_99), "> 0.9999");
        assert_eq!(percent(0.000_01), "< 0.0001");
        assert_eq!(percent(1.0), "1.00");
    }

    #[test]
    fn drawing_without_pairs_is_an_error() {
        assert!(PredictionPicture::default().draw().is_err());
    }
}
