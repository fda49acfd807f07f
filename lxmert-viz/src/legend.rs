//! What colours mean: a scale from 0 to a round number, and its colour bar with numbers.

use crate::Result;
use crate::canvas::{Align, Canvas, Rect};
use crate::font::Face;
use crate::palette::{ColourScale, GREY, INK, LINE, Rgb, tick_labels, ticks};

/// The face of numbers beside a colour bar.
const NUMBERS: Face = Face::regular(12.0);

/// Numbers to colours: 0 is the low end, the last tick is the high end.
#[derive(Debug, Clone)]
pub struct Scale {
    colours: ColourScale,
    ticks: Vec<f32>,
    labels: Vec<String>,
}

impl Scale {
    /// From 0 to the round number at or above `max`.
    pub fn up_to(max: f32, colours: ColourScale) -> Self {
        let ticks = ticks(max, 4);
        let labels = tick_labels(&ticks);
        Self { colours, ticks, labels }
    }

    /// From 0 to the round number at or above the largest finite value.
    pub fn of<'a>(values: impl IntoIterator<Item = &'a f32>, colours: ColourScale) -> Self {
        Self::up_to(values.into_iter().copied().filter(|v| v.is_finite()).fold(0.0, f32::max), colours)
    }

    /// The value at the scale's high end.
    pub fn max(&self) -> f32 {
        self.ticks.last().copied().unwrap_or(1.0)
    }

    /// Where `value` lies, 0..1.
    pub fn position(&self, value: f32) -> f32 {
        value / self.max()
    }

    /// The colour of `value`.
    pub fn colour(&self, value: f32) -> Rgb {
        self.colours.at(self.position(value))
    }

    /// The width that [`Scale::draw_upright`] needs for a bar 16 pixels wide.
    pub fn upright_width(&self, title: &str) -> i32 {
        let numbers = self.labels.iter().map(|label| NUMBERS.width(label)).max().unwrap_or(0);
        (16 + 8 + numbers).max(NUMBERS.width(title))
    }

    /// A bar growing upwards in `bar`, its numbers to the right, `title` above.
    ///
    /// # Errors
    /// When drawing fails.
    pub fn draw_upright(&self, sheet: &mut Canvas, bar: Rect, title: &str) -> Result<()> {
        sheet.text((bar.x0, bar.y0 - 12), Align::Left, NUMBERS, GREY, title)?;
        let height = bar.height().max(2);
        for row in 0..height {
            let colour = self.colours.at(1.0 - row as f32 / (height - 1) as f32);
            sheet.fill(Rect::sized(bar.x0, bar.y0 + row, bar.width(), 1), colour, 1.0)?;
        }
        sheet.frame(bar.grown(1), LINE, 1)?;
        for (tick, label) in self.ticks.iter().zip(&self.labels) {
            let y = bar.y1 - 1 - (self.position(*tick) * (height - 1) as f32).round() as i32;
            sheet.fill(Rect::sized(bar.x1, y, 5, 1), GREY, 1.0)?;
            sheet.text((bar.x1 + 8, y + 4), Align::Left, NUMBERS, INK, label)?;
        }
        Ok(())
    }

    /// A bar growing to the right in `bar`, its numbers below (15 pixels), `title` above.
    ///
    /// # Errors
    /// When drawing fails.
    pub fn draw_level(&self, sheet: &mut Canvas, bar: Rect, title: &str) -> Result<()> {
        sheet.text((bar.x0, bar.y0 - 8), Align::Left, NUMBERS, GREY, title)?;
        let width = bar.width().max(2);
        for column in 0..width {
            let colour = self.colours.at(column as f32 / (width - 1) as f32);
            sheet.fill(Rect::sized(bar.x0 + column, bar.y0, 1, bar.height()), colour, 1.0)?;
        }
        sheet.frame(bar.grown(1), LINE, 1)?;
        for (i, (tick, label)) in self.ticks.iter().zip(&self.labels).enumerate() {
            let x = bar.x0 + (self.position(*tick) * (width - 1) as f32).round() as i32;
            let align = match i {
                0 => Align::Left,
                _ if i + 1 == self.ticks.len() => Align::Right,
                _ => Align::Centre,
            };
            sheet.fill(Rect::sized(x, bar.y1, 1, 4), GREY, 1.0)?;
            sheet.text((x, bar.y1 + 16), align, NUMBERS, INK, label)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_ends_at_a_round_number_above_its_largest_value() {
        let scale = Scale::of(&[0.02, f32::NAN, 0.43], ColourScale::Viridis);
        assert_eq!(scale.max(), 0.6);
        assert_eq!(scale.colour(0.6), ColourScale::Viridis.at(1.0));
        assert_eq!(scale.colour(0.0), ColourScale::Viridis.at(0.0));
        assert_eq!(Scale::of(&[], ColourScale::Viridis).max(), 1.0);
    }

    #[test]
    fn the_drawn_bar_runs_from_the_low_to_the_high_colour() {
        let scale = Scale::up_to(1.0, ColourScale::Viridis);
        let mut sheet = Canvas::new(120, 160).unwrap();
        let bar = Rect::sized(20, 30, 16, 100);
        scale.draw_upright(&mut sheet, bar, "weight").unwrap();
        assert_eq!(sheet.pixel(25, 30), Some(scale.colour(1.0)));
        assert_eq!(sheet.pixel(25, 129), Some(scale.colour(0.0)));
    }
}
