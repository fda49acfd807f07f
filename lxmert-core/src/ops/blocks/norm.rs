//! Dropout, residual and layer norm in one pass over the rows.

use super::super::finish::RowDropout;
use super::super::layer_norm::statistics;
use super::super::math::{add_scaled, dot, sum};
use super::super::simd::vectorised;
use super::ROWS_PER_TASK;
use candle_core::Tensor;
use rayon::prelude::*;

/// A layer norm's weights, `[width]` each.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// Multiplies the normalised values.
    pub weight: &'a Tensor,
    /// Is added to them.
    pub bias: &'a Tensor,
    /// Added to the variance.
    pub eps: f64,
}

/// What the backward needs: the normalised rows, and what each was multiplied by.
#[derive(Default)]
pub(super) struct Normed {
    rows: Vec<f32>,
    scales: Vec<f32>,
}

vectorised! {
    /// `out = norm(dropout(out) + residual)`; `rows` and `scales` are empty when nobody needs them.
    fn forward_rows(
        out: &mut [f32], residual: &[f32], rows: &mut [f32], scales: &mut [f32], weight: &[f32], bias: &[f32], eps: f32,
        dropout: Option<RowDropout>,
    ) {
        let width = weight.len();
        for (row, (out, residual)) in out.chunks_exact_mut(width).zip(residual.chunks_exact(width)).enumerate() {
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
            for ((((v, g), w), n), (dw, db)) in
                dx.iter_mut().zip(g).zip(weight).zip(normed).zip(dw.iter_mut().zip(db.iter_mut()))
            {
                *v = g * w;
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

/// `out = norm(dropout(out) + residual)`, `[rows, width]`. `keep` asks for what the backward needs.
pub(super) fn forward(
    out: &mut [f32],
    residual: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f64,
    dropout: Option<RowDropout>,
    keep: bool,
) -> Normed {
    let (width, eps) = (weight.len(), eps as f32);
    let task = ROWS_PER_TASK * width;
    let dropout = |index: usize| dropout.map(|d| d.skip(index * ROWS_PER_TASK));
    let outputs = out.par_chunks_mut(task).zip(residual.par_chunks(task)).enumerate();
    if !keep {
        outputs.for_each(|(i, (out, residual))| {
            forward_rows(out, residual, &mut [], &mut [], weight, bias, eps, dropout(i));
        });
        return Normed::default();
    }
    let mut normed = Normed { rows: vec![0.0; residual.len()], scales: vec![0.0; residual.len() / width] };
    let kept = normed.rows.par_chunks_mut(task).zip(normed.scales.par_chunks_mut(ROWS_PER_TASK));
    outputs.zip(kept).for_each(|((i, (out, residual)), (rows, scales))| {
        forward_rows(out, residual, rows, scales, weight, bias, eps, dropout(i));
    });
    normed
}

/// Writes the gradient by the residual to `dx`, and where there is dropout that by its input to `dropped`; gives those by
/// weight and bias.
pub(super) fn backward(
    dx: &mut [f32],
    dropped: &mut [f32],
    grad: &[f32],
    normed: &Normed,
    weight: &[f32],
    dropout: Option<RowDropout>,
) -> (Vec<f32>, Vec<f32>) {
    let width = weight.len();
    let task = ROWS_PER_TASK * width;
    let mut parts: Vec<&mut [f32]> = match dropout {
        Some(_) => dropped.chunks_mut(task).collect(),
        None => dx.chunks(task).map(|_| Default::default()).collect(),
    };
    let inputs = grad.par_chunks(task).zip(normed.rows.par_chunks(task)).zip(normed.scales.par_chunks(ROWS_PER_TASK));
    let partial: Vec<(Vec<f32>, Vec<f32>)> = dx
        .par_chunks_mut(task)
        .zip(&mut parts)
        .zip(inputs)
        .enumerate()
        .map(|(i, ((dx, dropped), ((grad, rows), scales)))| {
            let (mut dw, mut db) = (vec![0.0f32; width], vec![0.0f32; width]);
            let dropout = dropout.map(|d| d.skip(i * ROWS_PER_TASK));
            backward_rows(dx, dropped, &mut dw, &mut db, grad, rows, scales, weight, dropout);
            (dw, db)
        })
        .collect();
    let (mut dw, mut db) = (vec![0.0f32; width], vec![0.0f32; width]);
    for (w, b) in &partial {
        add_scaled(&mut dw, 1.0, w);
        add_scaled(&mut db, 1.0, b);
    }
    (dw, db)
}
