//! Activations with their derivatives, as elementwise operations and as epilogues of products.

use super::math::{erf, exp};
use super::simd::vectorised;
use super::{contiguous_f32, cpu_tensor, cuda, hold, use_fast};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use candle_nn::{Activation, Module};
use rayon::prelude::*;

const TASK: usize = 16 * 1024;
const FRAC_1_SQRT_2PI: f32 = 0.398_942_3;

/// The activations that have a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FusedActivation {
    /// The exact one, `x Φ(x)` (Hendrycks & Gimpel 2016), which LXMERT uses; candle's `gelu` is the tanh approximation.
    Gelu,
    /// `max(x, 0)`.
    Relu,
}

impl FusedActivation {
    /// The kernel for `activation`, if there is one.
    pub fn of(activation: Activation) -> Option<Self> {
        match activation {
            Activation::Gelu => Some(Self::Gelu),
            Activation::Relu => Some(Self::Relu),
            _ => None,
        }
    }

    /// Activates `values`, and writes the derivative of each to `slopes`, which is empty if not wanted.
    #[inline(always)]
    pub fn apply(self, values: &mut [f32], slopes: &mut [f32]) {
        // NaN stays NaN.
        let relu = |x: f32| if x < 0.0 { 0.0 } else { x };
        match (self, slopes.is_empty()) {
            (Self::Relu, true) => {
                for x in values {
                    *x = relu(*x);
                }
            }
            (Self::Gelu, true) => {
                for x in values {
                    *x *= normal_cdf(*x);
                }
            }
            (Self::Relu, false) => {
                for (x, slope) in values.iter_mut().zip(slopes) {
                    *slope = if *x > 0.0 { 1.0 } else { 0.0 };
                    *x = relu(*x);
                }
            }
            (Self::Gelu, false) => {
                for (x, slope) in values.iter_mut().zip(slopes) {
                    let cdf = normal_cdf(*x);
                    *slope = x.mul_add(density(*x), cdf);
                    *x *= cdf;
                }
            }
        }
    }
}

#[inline(always)]
fn normal_cdf(x: f32) -> f32 {
    erf(x * std::f32::consts::FRAC_1_SQRT_2).mul_add(0.5, 0.5)
}

/// The standard normal density.
#[inline(always)]
fn density(x: f32) -> f32 {
    FRAC_1_SQRT_2PI * exp(-0.5 * x * x)
}

/// The exact GELU, `x Φ(x)`, elementwise.
///
/// # Errors
/// Returns an error if the tensor cannot be read.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if use_fast(&[x]) {
        return x.contiguous()?.apply_op1(Gelu);
    }
    cuda::fused::activate(x, None, 1, None)?.map_or_else(|| x.gelu_erf(), Ok)
}

/// Applies the activation, with this workspace's kernel if there is one.
///
/// # Errors
/// See [`gelu`].
pub fn activate(activation: Activation, x: &Tensor) -> Result<Tensor> {
    if activation == Activation::Gelu { gelu(x) } else { activation.forward(x) }
}

struct Gelu;

vectorised! {
    fn forward(values: &mut [f32]) {
        FusedActivation::Gelu.apply(values, &mut []);
    }
}

vectorised! {
    /// Replaces `values` by the gradient with respect to them.
    fn backward(values: &mut [f32], grads: &[f32]) {
        let mut slopes = [0.0f32; 64];
        for (values, grads) in values.chunks_mut(slopes.len()).zip(grads.chunks(slopes.len())) {
            let slopes = &mut slopes[..values.len()];
            FusedActivation::Gelu.apply(values, slopes);
            for ((value, slope), grad) in values.iter_mut().zip(slopes).zip(grads) {
                *value = grad * *slope;
            }
        }
    }
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu-erf"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut out = contiguous_f32(storage, layout)?.to_vec();
        out.par_chunks_mut(TASK).for_each(forward);
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let (x_held, grad_held) = (hold(x), hold(&grad));
        let mut dx = x_held.values()?.to_vec();
        dx.par_chunks_mut(TASK).zip(grad_held.values()?.par_chunks(TASK)).for_each(|(dx, grads)| backward(dx, grads));
        cpu_tensor(dx, x.shape()).map(Some)
    }
}
