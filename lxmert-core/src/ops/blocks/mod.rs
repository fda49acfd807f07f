//! A transformer's sub-layers, each as one operation with its gradient: what lies between input and output never becomes a
//! tensor, bias and activation are done while a product's values are in the cache, and rows are packed
//! ([`Packing`](super::Packing)), so that padding costs nothing.
//!
//! The model's composition of the same sub-layers from the other kernels says what they mean, and serves where these do
//! not apply.

mod attention;
mod feed_forward;
mod norm;
mod parameters;

pub use attention::{AttentionBlock, Projections};
pub use feed_forward::FeedForwardBlock;
pub use norm::Norm;

use super::bf16::Precision;
use super::finish::Finish;
use super::matmul::{Matrix, MatrixMut, Threads, Write, gemm_with};
use super::packed_weights::PackedWeights;
use super::product::{self, Base};
use candle_core::TensorId;

/// Whether these operations apply to rows `x`.
pub fn apply(x: &candle_core::Tensor) -> bool {
    super::use_fast(&[x])
}

/// A linear map's weights, `[out, in]` and `[out]`.
pub type Weights<'a> = (&'a candle_core::Tensor, &'a candle_core::Tensor);

/// Rows summed by one task; fixed, so that the order of summation does not depend on the thread count.
const ROWS_PER_TASK: usize = 64;

/// A weight matrix of a linear map, `[out, in]`.
#[derive(Clone, Copy)]
struct Factor<'a> {
    values: &'a [f32],
    /// Its tensor, and which of the tensor's equal parts it is.
    id: (TensorId, usize),
    /// Where it may lie packed.
    packed: Option<&'a PackedWeights>,
}

/// `out = finish(x wᵀ + bias)`; `x`: `[rows, in]`, `w`: `[out, in]`.
fn linear(out: &mut [f32], x: &[f32], w: Factor, bias: &[f32], finish: Finish, precision: Precision) {
    let width = bias.len();
    let (rows, inner) = (out.len() / width, w.values.len() / width);
    if rows == 0 {
        return;
    }
    let (x, weights) = (Matrix::new(x, rows, inner), Matrix::new(w.values, width, inner));
    let base = Base::Bias(bias);
    match w.packed {
        Some(packed) if product::wants_packed(&x, &weights.t(), precision) => {
            let packed = packed.get(w.id, weights, precision);
            packed.multiply(out, width, base, x, finish);
        }
        _ => product::multiply(out, width, base, 1.0, x, weights.t(), finish, precision, Threads::Pool),
    }
}

/// `dx = [dx +] grad w`, then `finish`.
fn linear_dx(
    dx: &mut [f32],
    write: Write,
    grad: &[f32],
    w: &[f32],
    width: usize,
    finish: Finish,
    precision: Precision,
) {
    let (rows, inner) = (grad.len() / width, w.len() / width);
    if rows > 0 {
        let base = if write == Write::Add { Base::Out } else { Base::Zero };
        let (grad, w) = (Matrix::new(grad, rows, width), Matrix::new(w, width, inner));
        product::multiply(dx, inner, base, 1.0, grad, w, finish, precision, Threads::Pool);
    }
}

/// `dw = gradᵀ x` and `db`, the sum of `grad`'s rows.
fn linear_dw(dw: &mut [f32], db: &mut [f32], grad: &[f32], x: &[f32], precision: Precision) {
    let width = db.len();
    let (rows, inner) = (grad.len() / width, dw.len() / width);
    let (out, x) = (MatrixMut::new(dw, width, inner), Matrix::new(x, rows, inner));
    gemm_with(out, Write::Replace, 1.0, Matrix::new(grad, rows, width).t(), x, precision, Threads::Pool);
    super::linear::sum_rows_in_tasks(db, grad);
}
