//! A product's epilogue: activation with its derivative, dropout, or a factor, applied while the values are still in the cache.

use super::dropout::Mask;
use super::gelu::{density, normal_cdf};
use super::simd::vectorised;

/// The activations that an epilogue applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FusedActivation {
    /// `x Φ(x)`.
    Gelu,
    /// `max(x, 0)`.
    Relu,
}

impl FusedActivation {
    /// The one that computes `activation`, if there is one.
    pub fn of(activation: candle_nn::Activation) -> Option<Self> {
        match activation {
            candle_nn::Activation::Gelu => Some(Self::Gelu),
            candle_nn::Activation::Relu => Some(Self::Relu),
            _ => None,
        }
    }
}

/// Dropout of ragged rows `[rows, width]`: row `i` takes the mask of row `rows[i]` of the padded matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowDropout<'a> {
    pub mask: Mask,
    pub rows: &'a [u32],
    pub width: usize,
}

impl<'a> RowDropout<'a> {
    /// From row `first` on.
    pub fn skip(self, first: usize) -> Self {
        Self { rows: &self.rows[first..], ..self }
    }

    /// Index of the first mask of a row.
    #[inline(always)]
    pub fn first(&self, row: usize) -> u32 {
        self.rows[row].wrapping_mul(self.width as u32)
    }
}

/// What a product applies to each of its values before it is done with them.
pub(crate) enum Epilogue<'a> {
    Nothing,
    /// Multiplied by the value at the same place.
    Times(&'a [f32]),
    Activate {
        activation: FusedActivation,
        dropout: Option<RowDropout<'a>>,
        /// Where to store the derivative of each result by the product's value, if it is wanted.
        derivative: Option<&'a mut [f32]>,
    },
}

impl<'a> Epilogue<'a> {
    /// The parts for tasks of `per_task` rows that begin `leading` apart; `count` of them.
    pub fn split(self, per_task: usize, leading: usize, count: usize) -> Vec<Epilogue<'a>> {
        let size = per_task * leading;
        match self {
            Self::Nothing => (0..count).map(|_| Epilogue::Nothing).collect(),
            Self::Times(values) => values.chunks(size).map(Epilogue::Times).collect(),
            Self::Activate { activation, dropout, derivative } => {
                let mut derivatives = derivative.map(|values| values.chunks_mut(size));
                let part = |task| Epilogue::Activate {
                    activation,
                    dropout: dropout.map(|d: RowDropout| d.skip(task * per_task)),
                    derivative: derivatives.as_mut().and_then(Iterator::next),
                };
                (0..count).map(part).collect()
            }
        }
    }

    /// Applies it to `width` columns from `start` on in all rows of `out`, which begin `leading` apart.
    pub fn apply(&mut self, out: &mut [f32], leading: usize, start: usize, width: usize) {
        match self {
            Self::Nothing => {}
            Self::Times(values) => times(out, values, leading, start, width),
            Self::Activate { activation, dropout, derivative } => {
                let derivative = derivative.as_deref_mut().unwrap_or_default();
                activate(out, derivative, leading, start, width, *activation, *dropout);
            }
        }
    }
}

vectorised! {
    fn times(out: &mut [f32], values: &[f32], leading: usize, start: usize, width: usize) {
        for (out, values) in out.chunks_mut(leading).zip(values.chunks(leading)) {
            for (o, v) in out[start..start + width].iter_mut().zip(&values[start..start + width]) {
                *o *= v;
            }
        }
    }
}

vectorised! {
    /// `derivative` is empty when it is not wanted.
    fn activate(
        out: &mut [f32], derivative: &mut [f32], leading: usize, start: usize, width: usize, activation: FusedActivation,
        dropout: Option<RowDropout>,
    ) {
        let mut unwanted = [0.0f32; 64];
        let plain = derivative.is_empty();
        for (row, out) in out.chunks_mut(leading).enumerate() {
            let mut at = start;
            while at < start + width {
                let count = (start + width - at).min(unwanted.len());
                let out = &mut out[at..at + count];
                let slope = match plain {
                    true => &mut unwanted[..count],
                    false => &mut derivative[row * leading + at..][..count],
                };
                match activation {
                    FusedActivation::Relu => {
                        for (o, d) in out.iter_mut().zip(slope.iter_mut()) {
                            *d = if *o > 0.0 { 1.0 } else { 0.0 };
                            // NaN stays NaN.
                            *o = if *o < 0.0 { 0.0 } else { *o };
                        }
                    }
                    FusedActivation::Gelu if plain => {
                        for o in out.iter_mut() {
                            *o *= normal_cdf(*o);
                        }
                    }
                    FusedActivation::Gelu => {
                        for (o, d) in out.iter_mut().zip(slope.iter_mut()) {
                            let cdf = normal_cdf(*o);
                            *d = o.mul_add(density(*o), cdf);
                            *o *= cdf;
                        }
                    }
                }
                if let Some(dropout) = &dropout {
                    let first = dropout.first(row).wrapping_add(at as u32);
                    let slope = match plain {
                        true => &mut unwanted[..count],
                        false => &mut derivative[row * leading + at..][..count],
                    };
                    for (i, (o, d)) in out.iter_mut().zip(slope).enumerate() {
                        let factor = dropout.mask.factor(first.wrapping_add(i as u32));
                        *o *= factor;
                        *d *= factor;
                    }
                }
                at += count;
            }
        }
    }
}
