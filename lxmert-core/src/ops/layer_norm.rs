//! Layer normalisation over the last dimension (Ba, Kiros & Hinton 2016), with its gradient.
//!
//! candle's own fused layer norm has no backward: everything before it would silently stop learning.

use super::math::{dot, sum};
use super::simd::vectorised;
use super::{contiguous_f32, cpu_tensor, hold, use_fast};
use candle_core::{CpuStorage, CustomOp3, D, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// Rows in one task; fixed, so that the order of summation does not depend on the thread count.
const ROWS_PER_TASK: usize = 64;

/// `(x − mean) / sqrt(variance + eps) · weight + bias` over the last dimension. `x`: `[…, width]`;
/// `weight`, `bias`: `[width]`. Statistics in f32 whatever the type.
///
/// # Errors
/// When the shapes do not fit.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if use_fast(&[x, weight, bias]) {
        let op = LayerNorm { eps: eps as f32 };
        return x.contiguous()?.apply_op3(weight, bias, op);
    }
    composed(x, weight, bias, eps)
}

/// The same from candle's own operations.
pub(crate) fn composed(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let dtype = x.dtype();
    let inner = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let x = x.to_dtype(inner)?;
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    normed.to_dtype(dtype)?.broadcast_mul(weight)?.broadcast_add(bias)
}

struct LayerNorm {
    eps: f32,
}

/// Mean and 1 / sqrt(variance + eps) of one row.
#[inline(always)]
pub(super) fn statistics(row: &[f32], eps: f32) -> (f32, f32) {
    let width = row.len() as f32;
    let mean = sum(row) / width;
    let mut lanes = [0.0f32; 16];
    let (chunks, rest) = row.as_chunks::<16>();
    for chunk in chunks {
        for i in 0..16 {
            let d = chunk[i] - mean;
            lanes[i] = d.mul_add(d, lanes[i]);
        }
    }
    let variance = (sum(&lanes) + rest.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>()) / width;
    (mean, 1.0 / (variance + eps).sqrt())
}

vectorised! {
    fn forward_rows(out: &mut [f32], values: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
        let width = weight.len();
        for (out, row) in out.chunks_exact_mut(width).zip(values.chunks_exact(width)) {
            let (mean, scale) = statistics(row, eps);
            for (((o, x), w), b) in out.iter_mut().zip(row).zip(weight).zip(bias) {
                *o = ((x - mean) * scale).mul_add(*w, *b);
            }
        }
    }
}

vectorised! {
    /// `dx` of these rows, and their share of `dw` and `db`.
    fn backward_rows(
        dx: &mut [f32], dw: &mut [f32], db: &mut [f32], values: &[f32], grads: &[f32], weight: &[f32], eps: f32,
    ) {
        let width = weight.len();
        let (mut normed, mut weighted) = (vec![0.0f32; width], vec![0.0f32; width]);
        let rows = values.chunks_exact(width).zip(grads.chunks_exact(width));
        for (dx, (row, g)) in dx.chunks_exact_mut(width).zip(rows) {
            let (mean, scale) = statistics(row, eps);
            for (n, x) in normed.iter_mut().zip(row) {
                *n = (x - mean) * scale;
            }
            for ((v, g), w) in weighted.iter_mut().zip(g).zip(weight) {
                *v = g * w;
            }
            for ((dw, g), n) in dw.iter_mut().zip(g).zip(&normed) {
                *dw = g.mul_add(*n, *dw);
            }
            for (db, g) in db.iter_mut().zip(g) {
                *db += g;
            }
            let a = sum(&weighted) / width as f32;
            let b = dot(&weighted, &normed) / width as f32;
            for ((d, v), n) in dx.iter_mut().zip(&weighted).zip(&normed) {
                *d = scale * (v - a - n * b);
            }
        }
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (values, weight, bias) =
            (contiguous_f32(x, x_layout)?, contiguous_f32(weight, weight_layout)?, contiguous_f32(bias, bias_layout)?);
        let width = x_layout.shape().dim(D::Minus1)?;
        if weight.len() != width || bias.len() != width {
            candle_core::bail!("layer norm of width {width} with {} weights and {} biases", weight.len(), bias.len());
        }
        let mut out = vec![0.0f32; values.len()];
        let task = ROWS_PER_TASK * width.max(1);
        out.par_chunks_mut(task).zip(values.par_chunks(task)).for_each(|(out, values)| {
            forward_rows(out, values, weight, bias, self.eps);
        });
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (x, grad) = (x.contiguous()?, grad.contiguous()?);
        let width = x.dim(D::Minus1)?;
        let (x_held, weight_held, grad_held) = (hold(&x), hold(weight), hold(&grad));
        let (values, weights, grads) = (x_held.values()?, weight_held.values()?, grad_held.values()?);
        let mut dx = vec![0.0f32; values.len()];
        let task = ROWS_PER_TASK * width.max(1);
        let partial: Vec<(Vec<f32>, Vec<f32>)> = dx
            .par_chunks_mut(task)
            .zip(values.par_chunks(task).zip(grads.par_chunks(task)))
            .map(|(dx, (values, grads))| {
                let (mut dw, mut db) = (vec![0.0f32; width], vec![0.0f32; width]);
                backward_rows(dx, &mut dw, &mut db, values, grads, weights, self.eps);
                (dw, db)
            })
            .collect();
        let (mut dw, mut db) = (vec![0.0f32; width], vec![0.0f32; width]);
        for (w, b) in &partial {
            super::math::add_scaled(&mut dw, 1.0, w);
            super::math::add_scaled(&mut db, 1.0, b);
        }
        Ok((
            Some(cpu_tensor(dx, x.shape())?),
            Some(cpu_tensor(dw, weight.shape())?),
            Some(cpu_tensor(db, bias.shape())?),
        ))
    }
}
