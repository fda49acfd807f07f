//! Dropout whose masks are a function of (seed, step, call): nothing is stored, and a run that resumes at a step draws
//! the same masks as the uninterrupted run.

use super::ragged::Ragged;
use super::simd::vectorised;
use super::{contiguous_f32, cpu_tensor, cuda, hold, use_fast};
use crate::procedural::splitmix64;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::sync::atomic::{AtomicU64, Ordering};

const TASK: usize = 16 * 1024;

/// Draws one key per dropout call of one training step.
#[derive(Debug)]
pub struct DropoutRng {
    base: u64,
    calls: AtomicU64,
}

impl DropoutRng {
    /// The masks of training step `step` under `seed`.
    pub fn new(seed: u64, step: u64) -> Self {
        let base = splitmix64(seed ^ 0xD1B5_4A32_D192_ED03).wrapping_add(splitmix64(step.wrapping_add(1)));
        Self { base, calls: AtomicU64::new(0) }
    }

    /// The key of the next call.
    pub fn next_key(&self) -> u32 {
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        (splitmix64(self.base.wrapping_add(call.wrapping_mul(0x9E37_79B9_7F4A_7C15))) >> 32) as u32
    }
}

/// The probability and key of one dropout call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mask {
    threshold: u32,
    /// 1 / (1 − p), the factor for kept values.
    pub(crate) scale: f32,
    key: u32,
}

impl Mask {
    pub(crate) fn new(probability: f32, key: u32) -> Self {
        Self { threshold: (f64::from(probability) * 2f64.powi(32)) as u32, scale: 1.0 / (1.0 - probability), key }
    }

    /// Threshold of the hash, scale and key, for the device's kernels.
    pub(crate) fn parts(self) -> (u32, f32, u32) {
        (self.threshold, self.scale, self.key)
    }

    /// `scale` for a kept element, 0 for a dropped one.
    #[inline(always)]
    pub(crate) fn factor(&self, index: u32) -> f32 {
        let mut x = index.wrapping_mul(0x9E37_79B9) ^ self.key;
        x ^= x >> 16;
        x = x.wrapping_mul(0x7FEB_352D);
        x ^= x >> 15;
        x = x.wrapping_mul(0x846C_A68B);
        x ^= x >> 16;
        if x >= self.threshold { self.scale } else { 0.0 }
    }
}

/// Zeroes each element with `probability` and scales the rest by `1 / (1 − probability)`; returns `x` itself if `rng`
/// is `None` (evaluation) or the probability is 0.
///
/// # Errors
/// Returns an error if the tensor cannot be read.
pub fn dropout(x: &Tensor, probability: f32, rng: Option<&DropoutRng>) -> Result<Tensor> {
    let Some(rng) = rng.filter(|_| probability > 0.0) else { return Ok(x.clone()) };
    apply_mask(x, Mask::new(probability, rng.next_key()))
}

/// [`dropout`] for ragged rows `x`, `[rows, width]`, with the masks of the padded tensor, so that padding changes none.
///
/// # Errors
/// Returns an error if `x` has another number of rows.
pub fn dropout_rows(x: &Tensor, rows: &Ragged, probability: f32, rng: Option<&DropoutRng>) -> Result<Tensor> {
    let mask = rng.filter(|_| probability > 0.0).map(|rng| Mask::new(probability, rng.next_key()));
    mask.map_or_else(|| Ok(x.clone()), |mask| mask_rows(x, rows, mask))
}

/// Ragged rows times the factors of the padded tensor's mask.
pub(super) fn mask_rows(x: &Tensor, rows: &Ragged, mask: Mask) -> Result<Tensor> {
    if rows.is_dense() {
        return apply_mask(x, mask);
    }
    match cuda::fused::activate(x, None, 0, Some((mask, Some(rows))))? {
        Some(masked) => Ok(masked),
        None => rows.gather(&apply_mask(&rows.scatter(x)?, mask)?),
    }
}

/// `x` times the factors of `mask`.
pub(super) fn apply_mask(x: &Tensor, mask: Mask) -> Result<Tensor> {
    if use_fast(&[x]) {
        return x.contiguous()?.apply_op1(Dropout { mask });
    }
    if let Some(masked) = cuda::fused::activate(x, None, 0, Some((mask, None)))? {
        return Ok(masked);
    }
    // Other devices and types: the same mask, computed on the CPU and copied.
    let factors: Vec<f32> = (0..x.elem_count() as u32).map(|i| mask.factor(i)).collect();
    x * Tensor::from_vec(factors, x.shape(), x.device())?.to_dtype(x.dtype())?
}

struct Dropout {
    mask: Mask,
}

vectorised! {
    fn mask_values(out: &mut [f32], values: &[f32], mask: Mask, first: u32) {
        for (i, (o, x)) in out.iter_mut().zip(values).enumerate() {
            *o = x * mask.factor(first.wrapping_add(i as u32));
        }
    }
}

impl Dropout {
    fn apply(&self, values: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0f32; values.len()];
        out.par_chunks_mut(TASK).zip(values.par_chunks(TASK)).enumerate().for_each(|(task, (out, values))| {
            let first = (task * TASK) as u32;
            mask_values(out, values, self.mask, first);
        });
        out
    }
}

impl CustomOp1 for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.apply(contiguous_f32(storage, layout)?)), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let held = hold(&grad);
        cpu_tensor(self.apply(held.values()?), x.shape()).map(Some)
    }
}
