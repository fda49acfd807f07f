//! The meaning of colours: a scale from 0 to a round number, and its colour bar with numbers.

use super::canvas::Canvas;
use super::font::Face;
use super::palette::{ColourScale, GREY, INK, LINE, Rgb, tick_labels, ticks};
use super::shapes::{Align, Rect};

/// The font of the numbers below a colour bar.
const NUMBERS: Face = Face::regular(12.0);

/// A weight below this multiple of the uniform share does not stand out: it is neither named nor called the largest.
const STANDS_OUT: f32 = 1.5;
/// A scale extends at least to this multiple of the uniform share, so that nearly uniform weights look uniform.
const LEAST_RANGE: f32 = 4.0;

/// Maps numbers to colours: 0 is the low end, the last tick the high end.
#[derive(Debug, Clone)]
pub struct Scale {
    colours: ColourScale,
    ticks: Vec<f32>,
    labels: Vec<String>,
    unit: &'static str,
    /// The uniform share: the weight of each part if all are equal.
    even: f32,
}

impl Scale {
    /// From 0 to the round number at or above the largest of some weights; `even` is their uniform share. `unit`
    /// follows each number of the bar.
    pub fn new<'a>(
        weights: impl IntoIterator<Item = &'a f32>,
        even: f32,
        unit: &'static str,
        colours: ColourScale,
    ) -> Self {
        let even = if even.is_finite() { even.max(0.0) } else { 0.0 };
        // No share of 1 is larger than 1, however few there are.
        let least = LEAST_RANGE * even;
        let least = if unit.is_empty() && even <= 1.0 { least.min(1.0) } else { least };
        let largest = weights.into_iter().copied().filter(|v| v.is_finite()).fold(least, f32::max);
        let ticks = ticks(largest, 4);
        let labels = tick_labels(&ticks).into_iter().map(|label| label + unit).collect();
        Self { colours, ticks, labels, unit, even }
    }

    /// The same for weights whose uniform share is their mean.
    pub fn of(weights: &[f32], colours: ColourScale) -> Self {
        let finite = || weights.iter().filter(|w| w.is_finite());
        Self::new(weights, finite().sum::<f32>() / finite().count().max(1) as f32, "", colours)
    }

    /// The value at the scale's high end.
    pub fn max(&self) -> f32 {
        self.ticks.last().copied().unwrap_or(1.0)
    }

    /// The position of `value` on the scale, 0..1.
    pub fn position(&self, value: f32) -> f32 {
        (value / self.max()).clamp(0.0, 1.0)
    }

    /// The colour of `value`.
    pub fn colour(&self, value: f32) -> Rgb {
        self.colours.at(self.position(value))
    }

    /// Whether `value` is well above the uniform share.
    pub fn stands_out(&self, value: f32) -> bool {
        value > 0.0 && value >= STANDS_OUT * self.even
    }

    /// `value` in as few characters as needed: ".43", "1.0", "0.012" on small scales, "4.2×".
    pub fn number(&self, value: f32) -> String {
        let text = match self.max() {
            max if max < 0.01 => format!("{value:.1e}"),
            max if max < 0.1 => format!("{value:.3}"),
            max if max <= 1.0 => format!("{value:.2}"),
            max if max < 100.0 => format!("{value:.1}"),
            _ => format!("{value:.0}"),
        };
        let short = text.strip_prefix('0').filter(|rest| rest.starts_with('.') && self.max() <= 1.0);
        short.map_or(text.clone(), String::from) + self.unit
    }

    /// The height of what [`Scale::draw`] draws.
    pub const HEIGHT: i32 = 60;

    /// Draws the bar with its top left corner at `(x, y)`: `title` above, the numbers below, the uniform share beside
    /// it.
    pub fn draw(&self, sheet: &mut Canvas, (x, y): (i32, i32), title: &str) {
        let bar = Rect::sized(x, y + 22, 320, 14);
        sheet.text((x, y + 14), Align::Left, NUMBERS, GREY, title);
        for column in 0..bar.width() / 2 {
            let colour = self.colours.at(column as f32 / (bar.width() / 2 - 1) as f32);
            sheet.fill(Rect::sized(bar.x0 + 2 * column, bar.y0, 2, bar.height()), colour, 1.0);
        }
        sheet.frame(bar.grown(1), LINE, 1);
        for (i, (tick, label)) in self.ticks.iter().zip(&self.labels).enumerate() {
            let x = bar.x0 + (self.position(*tick) * (bar.width() - 1) as f32).round() as i32;
            let align = match i {
                0 => Align::Left,
                _ if i + 1 == self.ticks.len() => Align::Right,
                _ => Align::Centre,
            };
            sheet.fill(Rect::sized(x, bar.y1, 1, 4), GREY, 1.0);
            sheet.text((x, bar.y1 + 16), align, NUMBERS, INK, label);
        }
        if self.even > 0.0 {
            let swatch = Rect::sized(bar.x1 + 28, bar.y0, 18, 14);
            sheet.fill(swatch, self.colour(self.even), 1.0);
            sheet.frame(swatch.grown(1), LINE, 1);
            let text = format!("if all are equal: {}", self.number(self.even));
            sheet.text((swatch.x1 + 8, bar.y1 - 2), Align::Left, NUMBERS, GREY, &text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_ends_at_a_round_number_above_its_largest_value() {
        let scale = Scale::new(&[0.02, f32::NAN, 0.43], 0.0, "", ColourScale::Viridis);
        assert_eq!(scale.max(), 0.6);
        assert_eq!(scale.colour(0.6), ColourScale::Viridis.at(1.0));
        assert_eq!(scale.colour(0.0), ColourScale::Viridis.at(0.0));
        assert_eq!(Scale::of(&[], ColourScale::Viridis).max(), 1.0);
    }

    #[test]
    fn nearly_uniform_weights_are_in_the_lower_third_and_none_stands_out() {
        let weights = [0.24, 0.25, 0.26, 0.25];
        let scale = Scale::of(&weights, ColourScale::Viridis);
        assert!(weights.iter().all(|w| scale.position(*w) < 0.34 && !scale.stands_out(*w)));
        let scale = Scale::of(&[0.7, 0.1, 0.1, 0.1], ColourScale::Viridis);
        assert!(scale.stands_out(0.7) && !scale.stands_out(0.1));
        assert!(!Scale::of(&[0.0; 3], ColourScale::Viridis).stands_out(0.0));
        for shares in [&[0.4, 0.3, 0.3][..], &[1.0]] {
            assert_eq!(Scale::of(shares, ColourScale::Viridis).max(), 1.0);
        }
    }

    #[test]
    fn numbers_are_as_short_as_the_scale_allows() {
        let number = |max: f32, unit, value| Scale::new(&[max], 0.0, unit, ColourScale::Viridis).number(value);
        assert_eq!(number(0.6, "", 0.434), ".43");
        assert_eq!(number(1.0, "", 1.0), "1.00");
        assert_eq!(number(0.05, "", 0.0123), ".012");
        assert_eq!(number(0.001, "", 0.00052), "5.2e-4");
        assert_eq!(number(12.0, "×", 0.25), "0.2×");
    }

    #[test]
    fn the_drawn_bar_runs_from_the_low_to_the_high_colour() {
        let scale = Scale::of(&[1.0, 0.0], ColourScale::Viridis);
        let mut sheet = Canvas::new(600, 80);
        scale.draw(&mut sheet, (20, 10), "weight");
        let pixels = sheet.pixels(1.0).unwrap();
        let at = |x| pixels.get_pixel(x, 38).0;
        assert_eq!((at(21), at(338)), (scale.colour(0.0), scale.colour(scale.max())));
        assert_eq!(at(372), scale.colour(0.5), "the uniform share");
    }
}
