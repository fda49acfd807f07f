//! The exact GELU, `x · Φ(x)` (Hendrycks & Gimpel 2016), with its gradient. candle's `gelu` is the
//! tanh approximation; LXMERT uses this one.

use super::math::{erf, exp};
use super::simd::vectorised;
use super::{contiguous_f32, cpu_tensor, cuda, hold, use_fast};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use candle_nn::{Activation, Module};
use rayon::prelude::*;

const TASK: usize = 16 * 1024;
const FRAC_1_SQRT_2PI: f32 = 0.398_942_3;

/// `x · Φ(x)`, elementwise.
///
/// # Errors
/// When the tensor cannot be read.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if use_fast(&[x]) {
        return x.contiguous()?.apply_op1(Gelu);
    }
    cuda::fused::activate(x, None, 1, None)?.map_or_else(|| x.gelu_erf(), Ok)
}

/// The activation, with this workspace's kernel where it has one.
///
/// # Errors
/// As [`gelu`].
pub fn activate(activation: Activation, x: &Tensor) -> Result<Tensor> {
    if activation == Activation::Gelu { gelu(x) } else { activation.forward(x) }
}

struct Gelu;

#[inline(always)]
pub(super) fn normal_cdf(x: f32) -> f32 {
    erf(x * std::f32::consts::FRAC_1_SQRT_2).mul_add(0.5, 0.5)
}

/// The standard normal density.
#[inline(always)]
pub(super) fn density(x: f32) -> f32 {
    FRAC_1_SQRT_2PI * exp(-0.5 * x * x)
}

vectorised! {
    fn forward(out: &mut [f32], values: &[f32]) {
        for (o, x) in out.iter_mut().zip(values) {
            *o = x * normal_cdf(*x);
        }
    }
}

vectorised! {
    fn backward(dx: &mut [f32], values: &[f32], grads: &[f32]) {
        for ((d, &x), g) in dx.iter_mut().zip(values).zip(grads) {
            *d = g * x.mul_add(density(x), normal_cdf(x));
        }
    }
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu-erf"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let values = contiguous_f32(storage, layout)?;
        let mut out = vec![0.0f32; values.len()];
        out.par_chunks_mut(TASK).zip(values.par_chunks(TASK)).for_each(|(out, values)| {
            forward(out, values);
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let (x_held, grad_held) = (hold(x), hold(&grad));
        let (values, grads) = (x_held.values()?, grad_held.values()?);
        let mut dx = vec![0.0f32; values.len()];
        let inputs = values.par_chunks(TASK).zip(grads.par_chunks(TASK));
        dx.par_chunks_mut(TASK).zip(inputs).for_each(|(dx, (values, grads))| {
            backward(dx, values, grads);
        });
        cpu_tensor(dx, x.shape()).map(Some)
    }
}
