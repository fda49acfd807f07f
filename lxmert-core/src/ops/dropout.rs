//! Dropout of tensors and of ragged rows, with the masks of [`DropoutRng`].

use super::dropout_mask::{DropoutRng, Mask};
use super::ragged::Ragged;
use super::simd::vectorised;
use super::{contiguous_f32, cpu_tensor, cuda, hold, use_fast};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

const TASK: usize = 16 * 1024;

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
