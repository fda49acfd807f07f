//! Linear maps: the op `x Wᵀ + b` with its gradient, and the products on rows that the sub-layers also use.

use super::epilogue::Epilogue;
use super::gradients::deliver;
use super::math::add_scaled;
use super::matrix::{Matrix, Threads};
use super::microkernel::Base;
use super::precision::Precision;
use super::prepacked_weights::PrepackedWeights;
use super::product::{self, Output};
use super::simd::vectorised;
use super::{contiguous_f32, cpu_tensor, cuda, hold, use_fast};
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, TensorId};
use rayon::prelude::*;

/// Rows of the bias gradient summed per task; fixed, so that the order of summation does not depend on the number of
/// threads.
const ROWS_PER_TASK: usize = 256;

/// `x`: `[…, in]`, `weight`: `[out, in]`, `bias`: `[out]`; returns `[…, out]`.
///
/// # Errors
/// Returns an error if the shapes do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    linear_with(x, weight, bias, Precision::F32)
}

/// [`linear`] with `x`, `weight` and, in the backward pass, the gradient rounded to `precision` for the products.
///
/// # Errors
/// As there.
pub fn linear_with(x: &Tensor, weight: &Tensor, bias: &Tensor, precision: Precision) -> Result<Tensor> {
    if use_fast(&[x, weight, bias]) {
        return x.contiguous()?.apply_op3(weight, bias, Linear { weight: weight.id(), precision });
    }
    let product = linear_product(x, weight, precision)?;
    let fused = cuda::fused::activate(&product, Some(bias), 0, None)?;
    fused.map_or_else(|| product.broadcast_add(bias), Ok)
}

/// `x Wᵀ`, composed.
pub(crate) fn linear_product(x: &Tensor, weight: &Tensor, precision: Precision) -> Result<Tensor> {
    let (out, inner) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    let rows = rows_of(&shape);
    if let Some(last) = shape.last_mut() {
        *last = out;
    }
    let dtype = x.dtype();
    let x = x.reshape((rows, inner))?;
    let product = match precision {
        Precision::F32 | Precision::Tf32 => x.matmul(&weight.t()?)?,
        // On the CPU the rounded values are multiplied as f32, which is exact; elsewhere as bf16, where the sums are
        // rounded too.
        Precision::Bf16 => {
            let factor = |t: &Tensor| match t.device().is_cpu() {
                true => t.to_dtype(DType::BF16)?.to_dtype(t.dtype()),
                false => t.to_dtype(DType::BF16),
            };
            factor(&x)?.matmul(&factor(&weight.t()?)?)?.to_dtype(dtype)?
        }
    };
    product.reshape(shape)
}

/// The number of rows of a `[…, width]` tensor; its width may be 0.
fn rows_of(shape: &[usize]) -> usize {
    shape.iter().rev().skip(1).product()
}

struct Linear {
    weight: TensorId,
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
fn add_rows(total: &mut [f32], rows: &[f32]) {
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

/// A weight matrix of a linear map, `[out, in]`.
#[derive(Clone, Copy)]
pub(crate) struct Factor<'a> {
    pub values: &'a [f32],
    pub id: TensorId,
    /// Where its prepacked form may be.
    pub prepacked: Option<&'a PrepackedWeights>,
}

/// `out = epilogue(x wᵀ + bias)`; `x`: `[rows, in]`, `w`: `[out, in]`.
pub(crate) fn linear_rows(
    out: &mut [f32],
    x: &[f32],
    w: Factor,
    bias: &[f32],
    epilogue: Epilogue,
    precision: Precision,
) {
    let width = bias.len();
    if out.is_empty() {
        return;
    }
    let (rows, inner) = (out.len() / width, w.values.len() / width);
    let (x, weights) = (Matrix::new(x, rows, inner), Matrix::new(w.values, width, inner));
    let out = Output { values: out, leading: width, base: Base::Bias(bias), epilogue };
    match w.prepacked {
        Some(prepacked) if product::applies(&x, &weights.t()) => {
            let weights = prepacked.get(w.id, weights, precision);
            product::multiply_prepacked(out, x, &weights, Threads::Pool);
        }
        _ => product::multiply(out, x, weights.t(), precision, Threads::Pool),
    }
}

/// `dx = epilogue(base + grad w)`; `dx` stays unchanged if nothing is multiplied.
pub(crate) fn linear_dx(
    dx: &mut [f32],
    base: Base,
    grad: &[f32],
    w: &[f32],
    width: usize,
    epilogue: Epilogue,
    precision: Precision,
) {
    if !grad.is_empty() && !w.is_empty() {
        let (rows, inner) = (grad.len() / width, w.len() / width);
        let (grad, w) = (Matrix::new(grad, rows, width), Matrix::new(w, width, inner));
        product::multiply(Output { values: dx, leading: inner, base, epilogue }, grad, w, precision, Threads::Pool);
    }
}

/// `dw = gradᵀ x`, and `db`, the sum of `grad`'s rows; both must be 0 before. An empty one is not wanted.
pub(crate) fn linear_dw(dw: &mut [f32], db: &mut [f32], grad: &[f32], x: &[f32], width: usize, precision: Precision) {
    if !dw.is_empty() && !grad.is_empty() {
        let (rows, inner) = (grad.len() / width, dw.len() / width);
        let (grad, x) = (Matrix::new(grad, rows, width).t(), Matrix::new(x, rows, inner));
        let out = Output { values: dw, leading: inner, base: Base::Zero, epilogue: Epilogue::Nothing };
        product::multiply(out, grad, x, precision, Threads::Pool);
    }
    if !db.is_empty() {
        add_rows(db, grad);
    }
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
        let weight = Factor { values: weight, id: self.weight, prepacked: None };
        let mut out = vec![0.0f32; rows * out_width];
        linear_rows(&mut out, x, weight, bias, Epilogue::Nothing, self.precision);
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
        let width = weight.dim(0)?;
        let (x_held, weight_held, grad_held) = (hold(x), hold(weight), hold(&grad));
        let (xs, weights, grads) = (x_held.values()?, weight_held.values()?, grad_held.values()?);
        let wanted = |tensor: &Tensor| vec![0.0f32; if tensor.track_op() { tensor.elem_count() } else { 0 }];
        let (mut dx, mut dw, mut db) = (wanted(x), wanted(weight), wanted(bias));
        if x.track_op() {
            linear_dx(&mut dx, Base::Zero, grads, weights, width, Epilogue::Nothing, self.precision);
        }
        linear_dw(&mut dw, &mut db, grads, xs, width, self.precision);
        let dx = x.track_op().then(|| cpu_tensor(dx, x.shape())).transpose()?;
        Ok((dx, deliver(weight, dw)?, deliver(bias, db)?))
    }
}
