//! `x Wᵀ + b` with the bias added in the product's own output, and its gradient.

use super::bf16::Precision;
use super::gradients::deliver;
use super::math::add_scaled;
use super::matmul::{Matrix, MatrixMut, Threads, Write, gemm_with};
use super::simd::vectorised;
use super::{contiguous_f32, cpu_tensor, hold, use_fast};
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// Rows of the bias gradient summed by one task; fixed, so that the order of summation does not
/// depend on the thread count.
const ROWS_PER_TASK: usize = 256;

/// `x`: `[…, in]`, `weight`: `[out, in]`, `bias`: `[out]`; gives `[…, out]`.
///
/// # Errors
/// When the shapes do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    linear_with(x, weight, bias, Precision::F32)
}

/// As [`linear`], `x` and `weight`, and in the backward the gradient, rounded to `precision` for the products.
///
/// # Errors
/// As there.
pub fn linear_with(x: &Tensor, weight: &Tensor, bias: &Tensor, precision: Precision) -> Result<Tensor> {
    if use_fast(&[x, weight, bias]) {
        return x.contiguous()?.apply_op3(weight, bias, Linear { precision });
    }
    let (out, inner) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    let rows = rows_of(&shape);
    if let Some(last) = shape.last_mut() {
        *last = out;
    }
    let x = x.reshape((rows, inner))?;
    let product = match precision {
        Precision::F32 => x.matmul(&weight.t()?)?,
        // On the CPU the rounded values are multiplied as f32, which is exact; elsewhere as bf16, the sums rounded too.
        Precision::Bf16 => {
            let factor = |t: &Tensor| match t.device().is_cpu() {
                true => t.to_dtype(DType::BF16)?.to_dtype(t.dtype()),
                false => t.to_dtype(DType::BF16),
            };
            factor(&x)?.matmul(&factor(&weight.t()?)?)?.to_dtype(bias.dtype())?
        }
    };
    product.broadcast_add(bias)?.reshape(shape)
}

/// Of a `[…, width]` tensor, whose width may be 0.
fn rows_of(shape: &[usize]) -> usize {
    shape.iter().rev().skip(1).product()
}

struct Linear {
    precision: Precision,
}

vectorised! {
    fn sum_rows(sum: &mut [f32], rows: &[f32]) {
        for row in rows.chunks_exact(sum.len()) {
            add_scaled(sum, 1.0, row);
        }
    }
}

/// Adds the rows of `rows` to `total`.
pub(super) fn sum_rows_in_tasks(total: &mut [f32], rows: &[f32]) {
    let width = total.len();
    let partial: Vec<Vec<f32>> = rows
        .par_chunks(ROWS_PER_TASK * width.max(1))
        .map(|rows| {
            let mut sum = vec![0.0f32; width];
            sum_rows(&mut sum, rows);
            sum
        })
        .collect();
    partial.iter().for_each(|part| add_scaled(total, 1.0, part));
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
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
        let (out_width, in_width) = weight_layout.shape().dims2()?;
        let mut shape = x_layout.dims().to_vec();
        if shape.last() != Some(&in_width) || bias_layout.shape().elem_count() != out_width {
            candle_core::bail!(
                "linear of {:?} with weight {:?} and bias {:?}",
                x_layout.dims(),
                weight_layout.dims(),
                bias_layout.dims()
            );
        }
        let rows = rows_of(&shape);
        let (x, weight, bias) =
            (contiguous_f32(x, x_layout)?, contiguous_f32(weight, weight_layout)?, contiguous_f32(bias, bias_layout)?);
        let mut out = Vec::with_capacity(rows * out_width);
        for _ in 0..rows {
            out.extend_from_slice(bias);
        }
        gemm_with(
            MatrixMut::new(&mut out, rows, out_width),
            Write::Add,
            1.0,
            Matrix::new(x, rows, in_width),
            Matrix::new(weight, out_width, in_width).t(),
            self.precision,
            Threads::Pool,
        );
        if let Some(last) = shape.last_mut() {
            *last = out_width;
        }
        Ok((CpuStorage::F32(out), shape.into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (out_width, in_width) = weight.dims2()?;
        let rows = rows_of(grad.dims());
        let (x_held, weight_held, grad_held) = (hold(x), hold(weight), hold(&grad));
        let (xs, weights, grads) = (x_held.values()?, weight_held.values()?, grad_held.values()?);
        let grads_matrix = Matrix::new(grads, rows, out_width);
        let dx = match x.track_op() {
            false => None,
            true => {
                let mut dx = vec![0.0f32; xs.len()];
                let weights = Matrix::new(weights, out_width, in_width);
                let out = MatrixMut::new(&mut dx, rows, in_width);
                gemm_with(out, Write::Replace, 1.0, grads_matrix, weights, self.precision, Threads::Pool);
                Some(cpu_tensor(dx, x.shape())?)
            }
        };
        let mut dw = vec![0.0f32; weights.len()];
        gemm_with(
            MatrixMut::new(&mut dw, out_width, in_width),
            Write::Replace,
            1.0,
            grads_matrix.t(),
            Matrix::new(xs, rows, in_width),
            self.precision,
            Threads::Pool,
        );
        let mut db = vec![0.0f32; out_width];
        sum_rows_in_tasks(&mut db, grads);
        Ok((dx, deliver(weight, dw)?, deliver(bias, db)?))
    }
}
