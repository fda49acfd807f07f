//! A product's epilogue: activation with its derivative, dropout, a factor or a residual, applied while the values are
//! still in the cache.

use super::activation::FusedActivation;
use super::conv::feature_map::ResidualRows;
use super::dropout_mask::Mask;
use super::simd::vectorised;

/// Dropout of ragged rows `[rows, width]`: row `i` uses the mask of row `rows[i]` of the padded matrix.
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

    /// Index of a row's first mask.
    #[inline(always)]
    pub fn first(&self, row: usize) -> u32 {
        self.rows[row].wrapping_mul(self.width as u32)
    }
}

/// What a product applies to each of its values before it finishes them.
pub(crate) enum Epilogue<'a> {
    Nothing,
    /// Multiply by the value at the same position.
    Times(&'a [f32]),
    /// Add a residual (row `first` of it belongs to the product's first row), then apply the ReLU if there is one.
    Add {
        residual: &'a ResidualRows<'a>,
        first: usize,
        relu: bool,
    },
    Activate {
        activation: FusedActivation,
        dropout: Option<RowDropout<'a>>,
        /// Where to store the derivative of each result with respect to the product's value, if wanted.
        derivative: Option<&'a mut [f32]>,
    },
}

impl<'a> Epilogue<'a> {
    /// Splits it for `count` tasks of `per_task` rows, which are `leading` apart.
    pub fn split(self, per_task: usize, leading: usize, count: usize) -> Vec<Epilogue<'a>> {
        let size = per_task * leading;
        match self {
            Self::Nothing => (0..count).map(|_| Epilogue::Nothing).collect(),
            Self::Times(values) => values.chunks(size).map(Epilogue::Times).collect(),
            Self::Add { residual, first, relu } => {
                let part = |task| Epilogue::Add { residual, first: first + task * per_task, relu };
                (0..count).map(part).collect()
            }
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

    /// Applies it to `width` columns from `start` on in all rows of `out`, which are `leading` apart.
    pub fn apply(&mut self, out: &mut [f32], leading: usize, start: usize, width: usize) {
        match self {
            Self::Nothing => {}
            Self::Times(values) => times(out, values, leading, start, width),
            Self::Add { residual, first, relu } => add(out, leading, start, width, residual, *first, *relu),
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
    fn add(
        out: &mut [f32], leading: usize, start: usize, width: usize, residual: &ResidualRows, first: usize, relu: bool,
    ) {
        let least = if relu { 0.0 } else { f32::NEG_INFINITY };
        for (row, out) in out.chunks_mut(leading).enumerate() {
            let values = &residual.pixel(first + row)[start..start + width];
            for (o, v) in out[start..start + width].iter_mut().zip(values) {
                let sum = *o + v;
                // NaN stays NaN.
                *o = if sum < least { least } else { sum };
            }
        }
    }
}

vectorised! {
    /// `derivative` is empty if it is not wanted.
    fn activate(
        out: &mut [f32], derivative: &mut [f32], leading: usize, start: usize, width: usize, activation: FusedActivation,
        dropout: Option<RowDropout>,
    ) {
        for (row, out) in out.chunks_mut(leading).enumerate() {
            let out = &mut out[start..start + width];
            let at = row * leading + start;
            let slopes = derivative.get_mut(at..at + width).unwrap_or_default();
            activation.apply(out, slopes);
            let Some(dropout) = &dropout else { continue };
            let first = dropout.first(row).wrapping_add(start as u32);
            for (i, o) in out.iter_mut().enumerate() {
                *o *= dropout.mask.factor(first.wrapping_add(i as u32));
            }
            for (i, slope) in slopes.iter_mut().enumerate() {
                *slope *= dropout.mask.factor(first.wrapping_add(i as u32));
            }
        }
    }
}
