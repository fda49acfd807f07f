//! Training losses, composed of Candle operations so that they have gradients on every device.

use crate::{Error, Result};
use candle_core::{D, DType, Device, Tensor};

/// Cross entropy of each row, in nats. `logits`: `[rows, classes]`; `targets`: one class per row. Returns `[rows]`.
///
/// # Errors
/// Returns an error if a target is not a class, or the shapes do not match.
pub fn cross_entropy(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let (rows, classes) = logits.dims2()?;
    if targets.len() != rows || targets.iter().any(|&class| class as usize >= classes) {
        let most = targets.iter().max().copied().unwrap_or(0);
        return Err(Error::Argument(format!(
            "{} targets, the largest {most}, for {rows} rows of {classes} classes",
            targets.len()
        )));
    }
    let targets = Tensor::from_slice(targets, (rows, 1), logits.device())?;
    // Subtract the largest logit so that the exponential cannot overflow.
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let normaliser = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    Ok((normaliser - shifted.gather(&targets, 1)?)?.squeeze(1)?)
}

/// Elementwise binary cross entropy with logits: `max(x, 0) - x·y + ln(1 + e^-|x|)`, with `targets` in 0..1.
///
/// # Errors
/// Returns an error if the shapes differ.
pub fn binary_cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    // The exponent is at most 0, so nothing overflows.
    let softplus = ((logits.abs()?.neg()?.exp()? + 1.0)?.log()? + logits.relu()?)?;
    Ok((softplus - logits.mul(targets)?)?)
}

/// Elementwise smooth L1 (Girshick 2015, §2.3): quadratic for distances below `beta`, linear beyond.
///
/// # Errors
/// Returns an error if the shapes differ.
pub fn smooth_l1(values: &Tensor, targets: &Tensor, beta: f64) -> Result<Tensor> {
    let distance = (values - targets)?.abs()?;
    // With c = min(d, beta): c²/(2 beta) + (d - c) is d²/(2 beta) within beta and d - beta/2 beyond.
    let near = distance.clamp(0.0, beta)?;
    Ok(((near.sqr()? * (0.5 / beta))? + (distance - near)?)?)
}

/// Sum of `values` (`[rows]`) times `weights`.
///
/// # Errors
/// Returns an error if there is not one weight per row.
pub fn weighted_sum(values: &Tensor, weights: &[f32], device: &Device) -> Result<Tensor> {
    Ok((values * Tensor::from_slice(weights, weights.len(), device)?)?.sum_all()?)
}

/// How many rows' largest logits are their targets', counting each row `weights` times (once without them): a scalar, f32, which stays
/// on the device. `logits`: `[rows, classes]`.
///
/// # Errors
/// Returns an error if there is not one target and one weight per row.
pub fn right(logits: &Tensor, targets: &[u32], weights: Option<&[f32]>) -> Result<Tensor> {
    let targets = Tensor::from_slice(targets, targets.len(), logits.device())?;
    let hits = logits.argmax(D::Minus1)?.eq(&targets)?.to_dtype(DType::F32)?;
    Ok(match weights {
        Some(weights) => weighted_sum(&hits, weights, logits.device())?,
        None => hits.sum_all()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    fn close(tensor: &Tensor, want: &[f64]) {
        let got: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!((f64::from(*g) - w).abs() < 2e-6, "{got:?}, not {want:?}");
        }
    }

    #[test]
    fn cross_entropy_is_exact_for_huge_logits() {
        let logits = Var::new(&[[1f32, 2.0, 3.0], [1000.0, 0.0, 1000.0]], &Device::Cpu).unwrap();
        let loss = cross_entropy(&logits, &[0, 2]).unwrap();
        let z: f64 = (1..=3).map(|x| f64::from(x).exp()).sum();
        close(&loss, &[z.ln() - 1.0, 2f64.ln()]);
        // The gradient is the softmax minus the one-hot target.
        let gradients = loss.sum_all().unwrap().backward().unwrap();
        let e = |x: f64| x.exp() / z;
        close(gradients.get(&logits).unwrap(), &[e(1.0) - 1.0, e(2.0), e(3.0), 0.5, 0.0, -0.5]);
        assert!(cross_entropy(&logits, &[0, 3]).is_err());
    }

    #[test]
    fn binary_cross_entropy_is_exact_for_huge_logits() {
        let logits = Tensor::new(&[0f32, 3.0, -200.0], &Device::Cpu).unwrap();
        let targets = Tensor::new(&[1f32, 0.0, 1.0], &Device::Cpu).unwrap();
        let want = [2f64.ln(), (1.0 + 3f64.exp()).ln(), 200.0];
        close(&binary_cross_entropy(&logits, &targets).unwrap(), &want);
    }

    #[test]
    fn smooth_l1_is_quadratic_near_and_linear_far() {
        let x = Var::new(&[[0.5f32, -3.0], [0.0, 1.0]], &Device::Cpu).unwrap();
        let zeros = Tensor::zeros((2, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        close(&smooth_l1(&x, &zeros, 1.0 / 9.0).unwrap(), &[0.5 - 1.0 / 18.0, 3.0 - 1.0 / 18.0, 0.0, 1.0 - 1.0 / 18.0]);
        let loss = smooth_l1(&x, &zeros, 1.0).unwrap();
        close(&loss, &[0.125, 2.5, 0.0, 0.5]);
        let gradients = loss.sum_all().unwrap().backward().unwrap();
        let gradient = gradients.get(&x).unwrap().flatten_all().unwrap();
        close(&gradient.narrow(0, 0, 2).unwrap(), &[0.5, -1.0]);
    }
}
