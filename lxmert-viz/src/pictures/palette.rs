//! Colours that everybody can distinguish, and that keep their order in greyscale.
//!
//! Quantities use viridis or cividis: both increase evenly in lightness, so the order of two values survives colour
//! blindness and black-and-white printing. Right and wrong use blue and vermilion of Okabe & Ito's set, and never
//! colour alone.

/// Red, green, blue, 0..=255.
pub type Rgb = [u8; 3];

/// Paper.
pub const WHITE: Rgb = [255, 255, 255];
/// Text.
pub const INK: Rgb = [28, 30, 34];
/// Secondary text.
pub const GREY: Rgb = [98, 103, 112];
/// Hair lines and frames.
pub const LINE: Rgb = [205, 209, 216];
/// Panels behind text.
pub const PANEL: Rgb = [244, 245, 247];
/// Right predictions (Okabe & Ito's blue).
pub const RIGHT: Rgb = [0, 114, 178];
/// Wrong predictions (Okabe & Ito's vermilion).
pub const WRONG: Rgb = [213, 94, 0];
/// The chosen word, and the largest value of a row.
pub const MARK: Rgb = [240, 120, 0];

/// Lines of one plot (Okabe & Ito's set; the last, grey, for the baseline).
pub const LINES: [Rgb; 6] =
    [[230, 159, 0], [86, 180, 233], [0, 114, 178], [0, 158, 115], [204, 121, 167], [120, 120, 120]];

/// A colour scale from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum ColourScale {
    /// Dark violet over green to yellow (Smith & van der Walt 2015)
    #[default]
    Viridis,
    /// Dark blue over grey to yellow, tuned for colour-deficient vision (Nuñez et al. 2018)
    Cividis,
}

/// matplotlib's table (CC0) at 33 even steps.
const VIRIDIS: [Rgb; 33] = [
    [68, 1, 84],
    [71, 13, 96],
    [72, 24, 106],
    [72, 35, 116],
    [71, 45, 123],
    [69, 55, 129],
    [66, 64, 134],
    [62, 73, 137],
    [59, 82, 139],
    [55, 91, 141],
    [51, 99, 141],
    [47, 107, 142],
    [44, 114, 142],
    [41, 122, 142],
    [38, 130, 142],
    [35, 137, 142],
    [33, 145, 140],
    [31, 152, 139],
    [31, 160, 136],
    [34, 167, 133],
    [40, 174, 128],
    [50, 182, 122],
    [63, 188, 115],
    [78, 195, 107],
    [94, 201, 98],
    [112, 207, 87],
    [132, 212, 75],
    [152, 216, 62],
    [173, 220, 48],
    [194, 223, 35],
    [216, 226, 25],
    [236, 229, 27],
    [253, 231, 37],
];

/// matplotlib's table (CC0) at 33 even steps.
const CIVIDIS: [Rgb; 33] = [
    [0, 34, 78],
    [0, 40, 91],
    [0, 46, 106],
    [5, 51, 113],
    [26, 56, 111],
    [39, 62, 110],
    [50, 67, 109],
    [59, 73, 108],
    [67, 78, 108],
    [75, 84, 108],
    [83, 90, 109],
    [90, 95, 110],
    [97, 101, 111],
    [104, 106, 113],
    [111, 112, 115],
    [118, 118, 118],
    [125, 124, 120],
    [132, 130, 121],
    [140, 136, 120],
    [147, 142, 120],
    [155, 148, 118],
    [163, 154, 116],
    [171, 160, 114],
    [180, 167, 111],
    [188, 174, 108],
    [196, 180, 104],
    [205, 187, 99],
    [213, 194, 94],
    [222, 201, 88],
    [231, 209, 80],
    [240, 216, 70],
    [249, 224, 58],
    [254, 232, 56],
];

impl ColourScale {
    /// The colour at `position`, 0..1; values outside take the nearest end, NaN the low one.
    pub fn at(self, position: f32) -> Rgb {
        let table = match self {
            Self::Viridis => &VIRIDIS,
            Self::Cividis => &CIVIDIS,
        };
        let position = if position.is_nan() { 0.0 } else { position.clamp(0.0, 1.0) };
        let place = position * 32.0;
        let low = (place as usize).min(31);
        mix(table[low], table[low + 1], place - low as f32)
    }
}

/// `(1 - weight) · a + weight · b`, with `weight` in 0..1.
pub fn mix(a: Rgb, b: Rgb, weight: f32) -> Rgb {
    let channel = |i: usize| (f32::from(a[i]) + (f32::from(b[i]) - f32::from(a[i])) * weight).round() as u8;
    [channel(0), channel(1), channel(2)]
}

/// Relative luminance, 0 black to 1 white (WCAG 2, §"relative luminance").
pub fn luminance(colour: Rgb) -> f32 {
    let linear = |c: u8| {
        let c = f32::from(c) / 255.0;
        if c <= 0.040_45 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
    };
    0.2126 * linear(colour[0]) + 0.7152 * linear(colour[1]) + 0.0722 * linear(colour[2])
}

/// Black or white ink, whichever contrasts more with `background`.
pub fn ink_on(background: Rgb) -> Rgb {
    // Equal contrast (L + 0.05) / 0.05 = 1.05 / (L + 0.05) at L = 0.179.
    if luminance(background) > 0.179 { INK } else { WHITE }
}

/// About `count` evenly spaced, round tick values from 0 to the first one at or above `max`; the last one is a scale's
/// top. `[0, 1]` if `max` is not a positive number.
pub fn ticks(max: f32, count: usize) -> Vec<f32> {
    if !max.is_finite() || max <= f32::MIN_POSITIVE {
        return vec![0.0, 1.0];
    }
    let rough = f64::from(max) / count.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|s| s * power).find(|s| *s >= rough * 0.999).unwrap_or(rough);
    let steps = (f64::from(max) / step - 1e-6).ceil().max(1.0) as usize;
    (0..=steps).map(|i| (i as f64 * step) as f32).collect()
}

/// The tick values of [`ticks`] written with as many decimals as they need.
pub fn tick_labels(ticks: &[f32]) -> Vec<String> {
    let step = ticks.get(1).copied().unwrap_or(1.0);
    let decimals = (0..=6).find(|d| {
        let scaled = step * 10f32.powi(*d);
        (scaled - scaled.round()).abs() < 1e-3 * scaled.max(1.0)
    });
    let decimals = decimals.unwrap_or(6) as usize;
    if step < 1e-6 {
        return ticks.iter().map(|t| format!("{t:.1e}")).collect();
    }
    ticks.iter().map(|t| format!("{t:.decimals$}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_increase_in_lightness() {
        for scale in [ColourScale::Viridis, ColourScale::Cividis] {
            let lightness: Vec<f32> = (0..=100).map(|i| luminance(scale.at(i as f32 / 100.0))).collect();
            for (i, pair) in lightness.windows(2).enumerate() {
                assert!(pair[1] > pair[0] - 2e-3, "{scale:?} at {i}: {pair:?}");
            }
            assert!(lightness[100] > lightness[0] + 0.6, "{scale:?}");
        }
    }

    #[test]
    fn values_outside_the_scale_take_its_ends() {
        let scale = ColourScale::Viridis;
        assert_eq!(scale.at(-3.0), [68, 1, 84]);
        assert_eq!(scale.at(f32::NAN), [68, 1, 84]);
        assert_eq!(scale.at(7.0), [253, 231, 37]);
        assert_eq!(scale.at(0.5), [33, 145, 140]);
    }

    #[test]
    fn ticks_are_round_and_reach_the_largest_value() {
        assert_eq!(tick_labels(&ticks(0.83, 4)), ["0.00", "0.25", "0.50", "0.75", "1.00"]);
        assert_eq!(tick_labels(&ticks(1.0, 5)), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(tick_labels(&ticks(12.0, 4)), ["0", "5", "10", "15"]);
        assert_eq!(ticks(0.0, 4), [0.0, 1.0]);
        assert_eq!(ticks(f32::NAN, 4), [0.0, 1.0]);
        for max in [1e-5f32, 0.031, 0.2, 0.9999, 3.3, 1e4] {
            let ticks = ticks(max, 4);
            let top = ticks[ticks.len() - 1];
            assert!(top >= max * 0.999 && top <= max * 2.6, "{max}: {ticks:?}");
            assert!((2..=7).contains(&ticks.len()), "{max}: {ticks:?}");
        }
    }

    #[test]
    fn ink_contrasts_with_every_colour_of_the_scale() {
        for i in 0..=100 {
            let colour = ColourScale::Viridis.at(i as f32 / 100.0);
            let (a, b) = (luminance(colour) + 0.05, luminance(ink_on(colour)) + 0.05);
            assert!(a.max(b) / a.min(b) > 3.5, "{colour:?}");
        }
    }
}
