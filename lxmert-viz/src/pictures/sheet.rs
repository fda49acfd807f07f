//! The frame of every picture: the title, how to read it, and the colour bar if colours are numbers; the picture itself
//! is below.

use super::canvas::{Canvas, MARGIN};
use super::font::Face;
use super::legend::Scale;
use super::palette::{ColourScale, GREY, INK};
use super::shapes::{Align, Rect};

const TITLE: Face = Face::bold(18.0);
const SUBTITLE: Face = Face::regular(13.0);
/// Minimum width of a picture, so that its heading has space.
const LEAST_WIDTH: i32 = 620;

/// How to draw pictures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Look {
    /// The size of photos, plots and cells relative to the text; 1 for the default proportion.
    pub room: f32,
    /// The colour scale for numbers.
    pub colours: ColourScale,
}

impl Default for Look {
    fn default() -> Self {
        Self { room: 1.0, colours: ColourScale::default() }
    }
}

impl Look {
    /// Scales `length` pixels of a photo, a plot or a cell.
    pub fn px(&self, length: i32) -> i32 {
        ((length as f32 * self.room).round() as i32).max(1)
    }
}

/// Title, subtitle and colour bar.
#[derive(Debug, Clone)]
pub struct Sheet<'a> {
    /// What is shown; at most 3 lines.
    pub title: &'a str,
    /// How to read it; at most 4 lines.
    pub subtitle: &'a str,
    /// The scale, and what the numbers are.
    pub legend: Option<(&'a Scale, &'a str)>,
}

impl Sheet<'_> {
    /// A sheet with heading and colour bar drawn, and the place for a picture of this width and height.
    pub fn begin(&self, (width, height): (i32, i32)) -> (Canvas, Rect) {
        let room = width.max(LEAST_WIDTH - 2 * MARGIN);
        let title = TITLE.wrap(self.title, room, 3);
        let subtitle = SUBTITLE.wrap(self.subtitle, room, 4);
        let mut y = MARGIN - 4;
        let mut lines = Vec::new();
        for line in &title {
            y += TITLE.line_height();
            lines.push((y - 6, TITLE, INK, line));
        }
        for line in &subtitle {
            y += SUBTITLE.line_height();
            lines.push((y, SUBTITLE, GREY, line));
        }
        y += 12;
        let bar = y;
        if self.legend.is_some() {
            y += Scale::HEIGHT + 8;
        }
        let mut sheet = Canvas::new(room + 2 * MARGIN, y + height + MARGIN);
        lines.into_iter().for_each(|(y, face, colour, line)| sheet.text((MARGIN, y), Align::Left, face, colour, line));
        if let Some((scale, title)) = self.legend {
            scale.draw(&mut sheet, (MARGIN, bar), title);
        }
        (sheet, Rect::sized(MARGIN, y, width, height))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pictures::palette::WHITE;

    #[test]
    fn the_picture_is_below_heading_and_colour_bar() {
        let scale = Scale::of(&[0.2, 0.8], ColourScale::Viridis);
        let (title, subtitle) = ("long title ".repeat(20), "how to read it ".repeat(40));
        for legend in [None, Some((&scale, "attention weight"))] {
            let (sheet, body) = Sheet { title: &title, subtitle: &subtitle, legend }.begin((500, 100));
            assert!(sheet.bounds().contains(&body) && (body.width(), body.height()) == (500, 100));
            let pixels = sheet.pixels(1.0).unwrap();
            let inked = |y: i32| (0..pixels.width()).any(|x| pixels.get_pixel(x, y as u32).0 != WHITE);
            assert!((0..body.y0).any(inked) && !(body.y0..sheet.height()).any(inked));
        }
    }
}
