//! Image-text matching: does this sentence describe this image?
//!
//! The loss is the binary cross entropy of the match logit, which equals LXMERT's two-way cross
//! entropy (Tan & Bansal 2019, §3.1) over the logit's two halves.

use crate::Result;
use crate::data::batches::Batch;
use crate::metrics::cross_entropy;
use candle_core::Tensor;
use lxmert_core::model::{Forward, MatchingModel};

/// What one batch gave.
#[derive(Debug)]
pub struct BatchLoss {
    /// Sum of the pairs' losses over `divisor`, to differentiate.
    pub loss: Tensor,
    /// The language output, `[batch, words, hidden]`, for losses beside this one.
    pub language: Tensor,
    /// Both streams before they meet: `[batch, words, hidden]` and `[batch, regions, hidden]`.
    pub encoded: (Tensor, Tensor),
    /// Match logits, one per pair.
    pub logits: Vec<f32>,
    /// Sum of the pairs' losses, in f64.
    pub sum: f64,
    /// Pairs on the right side of probability 0.5.
    pub right: usize,
}

/// Binary cross entropy with logits, summed: `Σ max(x, 0) - x·y + ln(1 + e^-|x|)`.
///
/// `logits`, `targets`: `[batch]`.
///
/// # Errors
/// When the shapes differ.
pub fn summed_loss(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    // The exponential is of a number at most 0, so nothing overflows.
    let softplus = ((logits.abs()?.neg()?.exp()? + 1.0)?.log()? + logits.relu()?)?;
    Ok((softplus - logits.mul(targets)?)?.sum_all()?)
}

/// Runs the model on a batch and forms the loss, divided by `divisor` (the pairs of the whole
/// optimiser step, so that accumulated batches weigh by their size).
///
/// # Errors
/// When the batch does not fit the model.
pub fn forward(
    model: &MatchingModel,
    batch: &Batch,
    divisor: usize,
    run: &Forward,
    device: &candle_core::Device,
) -> Result<BatchLoss> {
    let inputs = batch.inputs(device)?;
    let language = model.encode_language(&inputs.input_ids, inputs.attention_mask.as_ref(), run)?;
    let mask = inputs.visual_attention_mask.as_ref();
    let vision = model.encode_vision(&inputs.visual_feats, &inputs.visual_boxes, mask, run)?;
    let output = model.match_encoded(&language, &vision, run)?;
    let loss = (summed_loss(&output.logits, &batch.targets(device)?)? / divisor.max(1) as f64)?;
    let logits: Vec<f32> = output.logits.to_vec1()?;
    let mut sum = 0.0;
    let mut right = 0;
    for (&logit, pair) in logits.iter().zip(&batch.pairs) {
        sum += cross_entropy(logit, pair.matched());
        right += usize::from((logit > 0.0) == pair.matched());
    }
    Ok(BatchLoss {
        loss,
        language: output.trunk.language,
        encoded: (language.states, vision.states),
        logits,
        sum,
        right,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn loss_and_gradient_are_those_of_the_cross_entropy() {
        let x = Var::new(&[0.3f32, -2.0, 40.0, -90.0, 0.0], &Device::Cpu).unwrap();
        let y = Tensor::new(&[1f32, 0.0, 0.0, 1.0, 0.0], &Device::Cpu).unwrap();
        let loss = summed_loss(x.as_tensor(), &y).unwrap();
        let want: f64 = [(0.3, true), (-2.0, false), (40.0, false), (-90.0, true), (0.0, false)]
            .iter()
            .map(|&(l, m)| cross_entropy(l, m))
            .sum();
        assert!((f64::from(loss.to_scalar::<f32>().unwrap()) - want).abs() < 1e-4);
        let gradients = loss.backward().unwrap();
        let gradient: Vec<f32> = gradients.get(x.as_tensor()).unwrap().to_vec1().unwrap();
        // d/dx = sigmoid(x) - y; at exactly 0 the two pieces meet and candle's subgradients decide.
        for (g, want) in gradient.iter().zip([-0.425_557_5, 0.119_202_92, 1.0, -1.0]) {
            assert!((g - want).abs() < 1e-5, "{gradient:?}");
        }
    }
}
