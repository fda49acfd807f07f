//! Layer normalisation over the last dimension (Ba, Kiros & Hinton 2016), with its gradient; for the sub-layers
//! together with the dropout and the residual before it, in one pass over the rows.
//!
//! candle's own fused layer norm has no backward pass: everything before it would silently stop learning.

use super::epilogue::RowDropout;
use super::gradients::deliver;
use super::math::{add_scaled, dot, sum};
use super::simd::vectorised;
use super::{contiguous_f32, cpu_tensor, cuda, hold, use_fast};
use candle_core::{CpuStorage, CustomOp3, D, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// Rows per task; fixed, so that the order of summation does not depend on the number of threads.
const ROWS_PER_TASK: usize = 64;

/// `(x − mean) / sqrt(variance + eps) · weight + bias` over the last dimension. `x`: `[…, width]`; `weight`, `bias`:
/// `[width]`. Statistics are in f32 whatever the type.
///
/// # Errors
/// Returns an error if the shapes do not fit.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if use_fast(&[x, weight, bias]) {
        return x.contiguous()?.apply_op3(weight, bias, LayerNorm { eps });
    }
    let fused = cuda::fused::norm(x, None, None, (weight, bias, eps), None)?;
    fused.map_or_else(|| composed(x, weight, bias, eps), Ok)
}

/// The composition of candle's own operations.
pub(crate) fn composed(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let dtype = x.dtype();
    let inner = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let x = x.to_dtype(inner)?;
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    normed.to_dtype(dtype)?.broadcast_mul(weight)?.broadcast_add(bias)
}

/// Mean and 1 / sqrt(variance + eps) of one row.
#[inline(always)]
fn statistics(row: &[f32], eps: f32) -> (f32, f32) {
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

/// What the backward pass needs: the normalised rows, and the scale of each.
#[derive(Default)]
pub(crate) struct Normed {
    rows: Vec<f32>,
    scales: Vec<f32>,
}

vectorised! {
    /// `out = norm(dropout(out) + residual)`; `residual`, `rows` and `scales` are empty if absent or not needed.
    fn forward_rows(
        out: &mut [f32], residual: &[f32], rows: &mut [f32], scales: &mut [f32], weight: &[f32], bias: &[f32], eps: f32,
        dropout: Option<RowDropout>,
    ) {
        let width = weight.len();
        for (row, out) in out.chunks_exact_mut(width).enumerate() {
            let residual = residual.get(row * width..(row + 1) * width).unwrap_or_default();
            match &dropout {
                Some(dropout) => {
                    let first = dropout.first(row);
                    for (i, (o, r)) in out.iter_mut().zip(residual).enumerate() {
                        *o = *o * dropout.mask.factor(first.wrapping_add(i as u32)) + r;
                    }
                }
                None => {
                    for (o, r) in out.iter_mut().zip(residual) {
                        *o += r;
                    }
                }
            }
            let (mean, scale) = statistics(out, eps);
            if let Some(kept) = scales.get_mut(row) {
                *kept = scale;
                let normed = &mut rows[row * width..][..width];
                for (n, o) in normed.iter_mut().zip(out.iter()) {
                    *n = (o - mean) * scale;
                }
            }
            for ((o, w), b) in out.iter_mut().zip(weight).zip(bias) {
                *o = ((*o - mean) * scale).mul_add(*w, *b);
            }
        }
    }
}

vectorised! {
    fn backward_rows(
        dx: &mut [f32], dropped: &mut [f32], dw: &mut [f32], db: &mut [f32], grad: &[f32], rows: &[f32], scales: &[f32],
        weight: &[f32], dropout: Option<RowDropout>,
    ) {
        let width = weight.len();
        let inputs = grad.chunks_exact(width).zip(rows.chunks_exact(width)).zip(scales);
        for (row, (dx, ((g, normed), scale))) in dx.chunks_exact_mut(width).zip(inputs).enumerate() {
            for ((v, g), w) in dx.iter_mut().zip(g).zip(weight) {
                *v = g * w;
            }
            for (((dw, db), g), n) in dw.iter_mut().zip(db.iter_mut()).zip(g).zip(normed) {
                *dw = g.mul_add(*n, *dw);
                *db += g;
            }
            let a = sum(dx) / width as f32;
            let b = dot(dx, normed) / width as f32;
            for (v, n) in dx.iter_mut().zip(normed) {
                *v = scale * (*v - a - n * b);
            }
            if let Some(dropout) = &dropout {
                let first = dropout.first(row);
                for (i, (d, v)) in dropped[row * width..][..width].iter_mut().zip(dx.iter()).enumerate() {
                    *d = v * dropout.mask.factor(first.wrapping_add(i as u32));
                }
            }
        }
    }
}

/// `out = norm(dropout(out) + residual)`, `[rows, width]`; dropout requires a residual. `keep` keeps what the backward
/// pass needs.
pub(crate) fn forward(
    out: &mut [f32],
    residual: Option<&[f32]>,
    weight: &[f32],
    bias: &[f32],
    eps: f64,
    dropout: Option<RowDropout>,
    keep: bool,
) -> Normed {
    let (width, eps) = (weight.len(), eps as f32);
    let task = ROWS_PER_TASK * width;
    let dropout = |index: usize| dropout.map(|d| d.skip(index * ROWS_PER_TASK));
    let residual = |index: usize, len: usize| residual.map_or(&[][..], |residual| &residual[index * task..][..len]);
    let (len, tasks) = (out.len(), out.len().div_ceil(task));
    let mut normed = match keep {
        true => Normed { rows: vec![0.0; len], scales: vec![0.0; len / width] },
        false => Normed::default(),
    };
    let kept = chunks(&mut normed.rows, task, tasks).into_par_iter();
    let kept = kept.zip(chunks(&mut normed.scales, ROWS_PER_TASK, tasks));
    out.par_chunks_mut(task).zip(kept).enumerate().for_each(|(i, (out, (rows, scales)))| {
        forward_rows(out, residual(i, out.len()), rows, scales, weight, bias, eps, dropout(i));
    });
    normed
}

/// `values` in chunks of `len` for `count` tasks; empty chunks if `values` is empty.
fn chunks(values: &mut [f32], len: usize, count: usize) -> Vec<&mut [f32]> {
    let chunks = values.chunks_mut(len).map(Some).chain(std::iter::repeat_with(|| None));
    chunks.take(count).map(Option::unwrap_or_default).collect()
}

/// Writes the gradient with respect to the residual to `dx` and, if there is dropout, that with respect to its input to
/// `dropped`; returns those with respect to weight and bias, empty unless `weights_wanted`.
pub(crate) fn backward(
    dx: &mut [f32],
    dropped: &mut [f32],
    grad: &[f32],
    normed: &Normed,
    weight: &[f32],
    dropout: Option<RowDropout>,
    weights_wanted: bool,
) -> (Vec<f32>, Vec<f32>) {
    let width = weight.len();
    let learned = if weights_wanted { width } else { 0 };
    let task = ROWS_PER_TASK * width;
    let dropped = chunks(dropped, task, dx.len().div_ceil(task));
    let inputs = grad.par_chunks(task).zip(normed.rows.par_chunks(task)).zip(normed.scales.par_chunks(ROWS_PER_TASK));
    let partial: Vec<(Vec<f32>, Vec<f32>)> = dx
        .par_chunks_mut(task)
        .zip(dropped)
        .zip(inputs)
        .enumerate()
        .map(|(i, ((dx, dropped), ((grad, rows), scales)))| {
            let (mut dw, mut db) = (vec![0.0f32; learned], vec![0.0f32; learned]);
            let dropout = dropout.map(|d| d.skip(i * ROWS_PER_TASK));
            backward_rows(dx, dropped, &mut dw, &mut db, grad, rows, scales, weight, dropout);
            (dw, db)
        })
        .collect();
    let (mut dw, mut db) = (vec![0.0f32; learned], vec![0.0f32; learned]);
    for (w, b) in &partial {
        add_scaled(&mut dw, 1.0, w);
        add_scaled(&mut db, 1.0, b);
    }
    (dw, db)
}

struct LayerNorm {
    eps: f64,
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
        let (weight, bias) = (contiguous_f32(weight, weight_layout)?, contiguous_f32(bias, bias_layout)?);
        let width = x_layout.shape().dim(D::Minus1)?;
        if weight.len() != width || bias.len() != width || width == 0 {
            candle_core::bail!("layer norm of width {width} with {} weights and {} biases", weight.len(), bias.len());
        }
        let mut out = contiguous_f32(x, x_layout)?.to_vec();
        forward(&mut out, None, weight, bias, self.eps, None, false);
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
        let (x_held, weight_held, bias_held, grad_held) = (hold(&x), hold(weight), hold(bias), hold(&grad));
        let (weights, biases, grads) = (weight_held.values()?, bias_held.values()?, grad_held.values()?);
        let mut normed = x_held.values()?.to_vec();
        let normed = forward(&mut normed, None, weights, biases, self.eps, None, true);
        let mut dx = vec![0.0f32; grads.len()];
        let learned = weight.track_op() || bias.track_op();
        let (dw, db) = backward(&mut dx, &mut [], grads, &normed, weights, None, learned);
        Ok((Some(cpu_tensor(dx, x.shape())?), deliver(weight, dw)?, deliver(bias, db)?))
    }
}
