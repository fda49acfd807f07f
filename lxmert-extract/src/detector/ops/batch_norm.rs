//! Batch normalisation for training, over the images and positions of a channel, with its gradient and an optional ReLU
//! after it, which saves two passes over memory.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use lxmert_core::ops::{contiguous_f32, use_fast, with_f32};
use rayon::prelude::*;

/// The result of [`batch_norm`].
#[derive(Debug, Clone)]
pub struct Normalised {
    /// `[batch, channels, height, width]`.
    pub y: Tensor,
    /// Mean of each channel: `[channels]`, without gradient.
    pub mean: Tensor,
    /// Biased variance of each channel: `[channels]`, without gradient.
    pub variance: Tensor,
}

/// `(x − mean) / √(variance + eps) · weight + bias` with the moments of this batch (Ioffe & Szegedy 2015), then the
/// ReLU if requested. `x`: `[batch, channels, height, width]`; `weight`, `bias`: `[channels]`.
///
/// # Errors
/// Returns an error if the shapes do not match or `x` is empty.
pub fn batch_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64, relu: bool) -> Result<Normalised> {
    let (batch, channels, height, width) = x.dims4()?;
    if weight.dims() != [channels] || bias.dims() != [channels] || batch * height * width == 0 {
        bail!("batch norm of {:?} with weight {:?} and bias {:?}", x.dims(), weight.dims(), bias.dims());
    }
    if !use_fast(&[x, weight, bias]) {
        return batch_norm_reference(x, weight, bias, eps, relu);
    }
    let (x, weight, bias) = (x.contiguous()?, weight.contiguous()?, bias.contiguous()?);
    let moments = with_f32(&x, |x| channel_moments(x, channels, height * width))?;
    let mean: Vec<f32> = moments.iter().map(|m| m.0).collect();
    let variance: Vec<f32> = moments.iter().map(|m| m.1).collect();
    let scale: Vec<f32> = variance.iter().map(|v| (f64::from(*v) + eps).sqrt().recip() as f32).collect();
    let y = x.apply_op3(&weight, &bias, BatchNorm { mean: mean.clone(), scale, relu })?;
    Ok(Normalised {
        y,
        mean: Tensor::from_vec(mean, channels, x.device())?,
        variance: Tensor::from_vec(variance, channels, x.device())?,
    })
}

/// The plain composition that [`batch_norm`] equals.
///
/// # Errors
/// See [`batch_norm`].
pub fn batch_norm_reference(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64, relu: bool) -> Result<Normalised> {
    let channels = x.dim(1)?;
    let mean = x.mean_keepdim((0, 2, 3))?;
    let centred = x.broadcast_sub(&mean)?;
    let variance = centred.sqr()?.mean_keepdim((0, 2, 3))?;
    let y = centred.broadcast_div(&(&variance + eps)?.sqrt()?)?;
    let y = y.broadcast_mul(&weight.reshape((1, channels, 1, 1))?)?;
    let y = y.broadcast_add(&bias.reshape((1, channels, 1, 1))?)?;
    Ok(Normalised {
        y: if relu { y.relu()? } else { y },
        mean: mean.flatten_all()?.detach(),
        variance: variance.flatten_all()?.detach(),
    })
}

/// Mean and biased variance of each channel, summed in f64.
fn channel_moments(x: &[f32], channels: usize, plane: usize) -> Vec<(f32, f32)> {
    let count = (x.len() / channels) as f64;
    (0..channels)
        .into_par_iter()
        .map(|channel| {
            let planes = || x.chunks_exact(plane).skip(channel).step_by(channels);
            let sum_of = |plane: &[f32], f: &dyn Fn(f32) -> f32| -> f64 {
                plane.chunks(256).map(|run| f64::from(run.iter().map(|&v| f(v)).sum::<f32>())).sum()
            };
            let mean = (planes().map(|plane| sum_of(plane, &|v| v)).sum::<f64>() / count) as f32;
            let squares: f64 = planes().map(|plane| sum_of(plane, &|v| (v - mean) * (v - mean))).sum();
            (mean, (squares / count) as f32)
        })
        .collect()
}

#[derive(Debug, Clone)]
struct BatchNorm {
    mean: Vec<f32>,
    /// 1 / standard deviation.
    scale: Vec<f32>,
    relu: bool,
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        weight: &CpuStorage,
        lw: &Layout,
        bias: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight, bias) = (contiguous_f32(x, lx)?, contiguous_f32(weight, lw)?, contiguous_f32(bias, lb)?);
        let channels = self.mean.len();
        let plane = plane_of(lx.shape())?;
        let least = if self.relu { 0.0 } else { f32::NEG_INFINITY };
        let mut y = vec![0.0f32; x.len()];
        y.par_chunks_exact_mut(plane).zip(x.par_chunks_exact(plane)).enumerate().for_each(|(index, (y, x))| {
            let channel = index % channels;
            let scale = self.scale[channel] * weight[channel];
            let shift = bias[channel] - self.mean[channel] * scale;
            y.iter_mut().zip(x).for_each(|(y, x)| {
                let value = x * scale + shift;
                // NaN stays NaN.
                *y = if value < least { least } else { value };
            });
        });
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let channels = self.mean.len();
        let plane = plane_of(x.shape())?;
        let gamma = weight.to_vec1::<f32>()?;
        let (dx, sums) =
            with_f32(x, |x| with_f32(y, |y| with_f32(grad, |grad| self.backward(x, y, grad, &gamma, plane))))???;
        let (dbias, dweight) = sums.into_iter().unzip();
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), x.device())?),
            Some(Tensor::from_vec::<_, f32>(dweight, channels, x.device())?),
            Some(Tensor::from_vec(dbias, channels, x.device())?),
        ))
    }
}

impl BatchNorm {
    /// The gradient with respect to `x`, and per channel those with respect to bias and weight.
    fn backward(&self, x: &[f32], y: &[f32], grad: &[f32], gamma: &[f32], plane: usize) -> (Vec<f32>, Vec<(f32, f32)>) {
        let channels = self.mean.len();
        let count = (x.len() / channels) as f32;
        let passed = |y: f32, grad: f32| if self.relu && y <= 0.0 { 0.0 } else { grad };
        let sums: Vec<(f32, f32)> = (0..channels)
            .into_par_iter()
            .map(|channel| {
                let (mean, scale) = (self.mean[channel], self.scale[channel]);
                let mut sums = (0.0f64, 0.0f64);
                for first in (channel * plane..x.len()).step_by(channels * plane) {
                    let (mut to_bias, mut to_weight) = (0.0f32, 0.0f32);
                    let run = first..first + plane;
                    for ((&x, &y), &grad) in x[run.clone()].iter().zip(&y[run.clone()]).zip(&grad[run]) {
                        let grad = passed(y, grad);
                        to_bias += grad;
                        to_weight += grad * (x - mean);
                    }
                    sums = (sums.0 + f64::from(to_bias), sums.1 + f64::from(to_weight * scale));
                }
                (sums.0 as f32, sums.1 as f32)
            })
            .collect();
        let mut dx = vec![0.0f32; x.len()];
        dx.par_chunks_exact_mut(plane).enumerate().for_each(|(index, dx)| {
            let channel = index % channels;
            let (mean, scale) = (self.mean[channel], self.scale[channel]);
            let (to_bias, to_weight) = (sums[channel].0 / count, sums[channel].1 / count * scale);
            let factor = gamma[channel] * scale;
            let run = index * plane..(index + 1) * plane;
            for (((dx, &x), &y), &grad) in dx.iter_mut().zip(&x[run.clone()]).zip(&y[run.clone()]).zip(&grad[run]) {
                *dx = factor * (passed(y, grad) - to_bias - (x - mean) * to_weight);
            }
        });
        (dx, sums)
    }
}

fn plane_of(shape: &Shape) -> Result<usize> {
    let (_, _, height, width) = shape.dims4()?;
    Ok(height * width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;
    use lxmert_core::procedural;

    #[test]
    fn values_moments_and_gradients_equal_the_composition() -> Result<()> {
        let x = Var::from_tensor(&procedural::tensor("x", &[3, 4, 5, 6], -1.0, 3.0, 0)?)?;
        let weight = Var::from_tensor(&procedural::tensor("weight", &[4], 0.5, 1.5, 0)?)?;
        let bias = Var::from_tensor(&procedural::tensor("bias", &[4], -0.5, 0.5, 0)?)?;
        let pull = procedural::tensor("pull", &[3, 4, 5, 6], -1.0, 1.0, 0)?;
        for relu in [false, true] {
            let fast = batch_norm(&x, &weight, &bias, 1e-3, relu)?;
            let plain = batch_norm_reference(&x, &weight, &bias, 1e-3, relu)?;
            close(&fast.y, &plain.y)?;
            close(&fast.mean, &plain.mean)?;
            close(&fast.variance, &plain.variance)?;
            let fast = (fast.y * &pull)?.sum_all()?.backward()?;
            let plain = (plain.y * &pull)?.sum_all()?.backward()?;
            for var in [&x, &weight, &bias] {
                close(fast.get(var).expect("used"), plain.get(var).expect("used"))?;
            }
        }
        Ok(())
    }

    fn close(a: &Tensor, b: &Tensor) -> Result<()> {
        let distance = (a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
        assert!(distance < 2e-5, "{distance}");
        Ok(())
    }

    #[test]
    fn nan_stays_nan() -> Result<()> {
        let x = Tensor::from_vec(vec![f32::NAN, 1.0], (1, 1, 1, 2), &candle_core::Device::Cpu)?;
        let one = procedural::tensor("one", &[1], 1.0, 1.0, 0)?;
        for relu in [false, true] {
            let y = batch_norm(&x, &one, &one, 1e-5, relu)?.y.flatten_all()?.to_vec1::<f32>()?;
            assert!(y.iter().all(|y| y.is_nan()), "{y:?}");
        }
        Ok(())
    }

    #[test]
    fn rejects_shapes_that_do_not_match() -> Result<()> {
        let x = procedural::tensor("x", &[1, 2, 3, 3], -1.0, 1.0, 0)?;
        let three = procedural::tensor("w", &[3], -1.0, 1.0, 0)?;
        assert!(batch_norm(&x, &three, &three, 1e-5, false).is_err());
        Ok(())
    }
}
