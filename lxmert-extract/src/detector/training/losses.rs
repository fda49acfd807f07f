//! The losses of Faster R-CNN (Ren et al. 2015, §3.1.2; Girshick 2015, §2.3), as torchvision sums them.

use candle_core::{DType, Result, Tensor};

/// Where the box loss turns from a square into an absolute value.
const SMOOTH_L1_BETA: f64 = 1.0 / 9.0;

/// Mean binary cross entropy of `logits` `[n]` with `targets` `[n]` of 0 and 1.
///
/// # Errors
/// When the shapes do not fit.
pub fn binary_cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    // max(x, 0) − x·y + ln(1 + e^−|x|) neither overflows nor loses digits.
    let softplus = (logits.abs()?.neg()?.exp()? + 1.0)?.log()?;
    ((logits.relu()? - (logits * targets)?)? + softplus)?.mean_all()
}

/// Mean cross entropy of `logits` `[n, classes]` with `targets` `[n]` (u32).
///
/// # Errors
/// When the shapes do not fit or a target is no class.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let log_probabilities = candle_nn::ops::log_softmax(logits, 1)?;
    log_probabilities.gather(&targets.unsqueeze(1)?, 1)?.mean_all()?.neg()
}

/// Sum of smooth L1 over `deltas` and `targets` of the same shape.
///
/// # Errors
/// When the shapes do not fit.
pub fn smooth_l1_sum(deltas: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let distance = (deltas - targets)?.abs()?;
    let near = distance.lt(SMOOTH_L1_BETA)?.to_dtype(DType::F32)?;
    let square = (distance.sqr()? * (0.5 / SMOOTH_L1_BETA))?;
    let line = (distance - 0.5 * SMOOTH_L1_BETA)?;
    ((&near * square)? + ((1.0 - &near)? * line)?)?.sum_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn binary_cross_entropy_of_known_values() -> Result<()> {
        let device = Device::Cpu;
        let (logits, targets) = (Tensor::new(&[0f32, 3.0, -200.0], &device)?, Tensor::new(&[1f32, 0.0, 1.0], &device)?);
        // ln 2, ln(1 + e³), 200
        let expected = (2f32.ln() + (1.0 + 3f32.exp()).ln() + 200.0) / 3.0;
        assert!((binary_cross_entropy(&logits, &targets)?.to_scalar::<f32>()? - expected).abs() < 1e-4);
        Ok(())
    }

    #[test]
    fn cross_entropy_of_known_values() -> Result<()> {
        let device = Device::Cpu;
        let logits = Tensor::new(&[[0f32, 0.0], [2.0, 0.0]], &device)?;
        let expected = (2f32.ln() + (1.0 + 2f32.exp()).ln()) / 2.0;
        let loss = cross_entropy(&logits, &Tensor::new(&[0u32, 1], &device)?)?;
        assert!((loss.to_scalar::<f32>()? - expected).abs() < 1e-6);
        Ok(())
    }

    #[test]
    fn smooth_l1_is_a_square_near_zero_and_a_line_far_off() -> Result<()> {
        let device = Device::Cpu;
        let deltas = Var::new(&[0.05f32, -1.0, 0.0], &device)?;
        let loss = smooth_l1_sum(&deltas, &Tensor::zeros(3, DType::F32, &device)?)?;
        let expected = 0.5 * 0.05f32.powi(2) * 9.0 + (1.0 - 0.5 / 9.0);
        assert!((loss.to_scalar::<f32>()? - expected).abs() < 1e-6);
        let gradient = loss.backward()?.get(&deltas).expect("deltas are used").to_vec1::<f32>()?;
        assert!((gradient[0] - 0.45).abs() < 1e-6 && gradient[1] == -1.0 && gradient[2] == 0.0, "{gradient:?}");
        Ok(())
    }
}
