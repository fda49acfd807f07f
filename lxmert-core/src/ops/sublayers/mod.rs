//! A transformer's sub-layers, each as one operation over ragged rows ([`Ragged`]) with its gradient.
//!
//! Each has one entry, `forward`. Where it applies, the CPU's fused kernel runs: what is between input and output never
//! becomes a tensor, and bias and activation are applied while a product's values are in the cache. Everywhere else,
//! and if attention maps are requested, the composition of the other operations runs, which defines the sub-layer. Both
//! draw the same dropout masks.

mod attention;
mod feed_forward;
mod parameters;

pub use attention::{AttentionSublayer, Watch};
pub use feed_forward::FeedForwardSublayer;

use super::cuda;
use super::dropout::mask_rows;
use super::dropout_mask::{DropoutRng, Mask};
use super::linear::{linear_product, linear_with};
use super::precision::Precision;
use super::prepacked_weights::PrepackedWeights;
use super::ragged::Ragged;
use candle_core::{Result, Tensor};

/// A layer norm's weights, `[width]` each.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// Factor of the normalised values.
    pub weight: &'a Tensor,
    /// Added to the normalised values.
    pub bias: &'a Tensor,
    /// Added to the variance.
    pub eps: f64,
}

/// The settings that all sub-layers of a pass share.
#[derive(Debug, Clone, Copy, Default)]
pub struct Run<'a> {
    /// Draws the dropout masks; `None` in evaluation.
    pub rng: Option<&'a DropoutRng>,
    /// Precision to which the products with weights round their operands, forward and backward.
    pub precision: Precision,
    /// The prepacked weights, kept between passes; for weights that do not change.
    pub prepacked: Option<&'a PrepackedWeights>,
}

impl Run<'_> {
    /// The mask of the next dropout call.
    fn mask(&self, probability: f32) -> Option<Mask> {
        self.rng.filter(|_| probability > 0.0).map(|rng| Mask::new(probability, rng.next_key()))
    }
}

/// A linear map's weights, `[out, in]` and `[out]`.
pub type Weights<'a> = (&'a Tensor, &'a Tensor);

/// The end of a sub-layer as a composition: `norm(x + dropout(inner Wᵀ + b))` for ragged rows.
fn composed_output(
    x: &Tensor,
    inner: &Tensor,
    (weight, bias): Weights,
    norm: &Norm,
    probability: f32,
    rows: &Ragged,
    run: &Run,
) -> Result<Tensor> {
    let mask = run.mask(probability);
    if x.device().is_cuda() {
        let product = linear_product(inner, weight, run.precision)?;
        let end = (norm.weight, norm.bias, norm.eps);
        if let Some(y) = cuda::fused::norm(&product, Some(bias), Some(x), end, mask.map(|mask| (mask, rows)))? {
            return Ok(y);
        }
    }
    let out = linear_with(inner, weight, bias, run.precision)?;
    let out = mask.map_or(Ok(out.clone()), |mask| mask_rows(&out, rows, mask))?;
    super::layer_norm(&(x + out)?, norm.weight, norm.bias, norm.eps)
}
