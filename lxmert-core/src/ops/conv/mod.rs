//! Convolutions for inference: weights prepacked once, activations channels-last; bias, residual and ReLU are applied
//! while a tile of the output is still in the cache.
//!
//! With channels last, a window's row is contiguous, so a convolution is a product with a left side gathered by plain
//! copies. Nothing need be gathered for a 1×1 convolution, or for a window as large as the image (a linear layer over
//! all of it). 3×3 convolutions with stride 1 use `winograd.rs`.

mod feature_map;
mod windows;
mod winograd;

pub use feature_map::{BufferPool, FeatureMap, Residual, add_weighted, keep_larger};
pub use windows::Windows;

pub(super) use feature_map::ResidualRows;

use super::activation::FusedActivation;
use super::epilogue::Epilogue;
use super::matrix::{Matrix, Threads};
use super::microkernel::{Base, Kernel, balanced};
use super::precision::Precision;
use super::product::{MOST_ROWS, Output, Prepacked, Right, multiply_prepacked, multiply_right};
use super::scratch::with_scratch;
use super::with_f32;
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;
use winograd::Winograd;

/// Values of gathered windows that a task keeps in the second-level cache.
const GATHERED: usize = 1 << 17;

/// A convolution with its weights prepacked for this machine's vector instructions.
#[derive(Debug)]
pub struct PrepackedConv2d {
    method: Method,
    bias: Vec<f32>,
    channels: usize,
    out_channels: usize,
    kernel_size: (usize, usize),
    stride: usize,
    padding: usize,
    relu: bool,
}

#[derive(Debug)]
enum Method {
    /// With weights `[kernel_height · kernel_width · channels, out_channels]`.
    Product(Prepacked),
    Winograd(Winograd),
}

impl PrepackedConv2d {
    /// `weight`: `[out_channels, channels, kernel_height, kernel_width]`, f32 on the CPU, with any norm folded in;
    /// `bias`: `[out_channels]`. With `relu`, negative outputs become 0. Weights and inputs are rounded to `precision`;
    /// bias, residual and sums are not.
    ///
    /// # Errors
    /// Returns an error if the tensors are of another kind or do not fit each other.
    pub fn new(
        weight: &Tensor,
        bias: Option<&Tensor>,
        stride: usize,
        padding: usize,
        relu: bool,
        precision: Precision,
    ) -> Result<Self> {
        let dims @ (out_channels, channels, height, width) = weight.dims4()?;
        let bias = match bias {
            Some(bias) => with_f32(bias, <[f32]>::to_vec)?,
            None => vec![0.0; out_channels],
        };
        if bias.len() != out_channels || weight.elem_count() == 0 || stride == 0 {
            bail!("convolution weights {:?} with {} biases and stride {stride}", weight.dims(), bias.len());
        }
        let kernel = Kernel::new(precision);
        let method = match Winograd::applies(dims, stride, &kernel) {
            true => Method::Winograd(with_f32(weight, |w| Winograd::new(w, out_channels, channels, kernel))?),
            // Put each row into the order of a window's values in a map.
            false => Method::Product(with_f32(&weight.permute((0, 2, 3, 1))?, |w| {
                Prepacked::new(Matrix::new(w, out_channels, height * width * channels).t(), kernel)
            })?),
        };
        Ok(Self { method, bias, channels, out_channels, kernel_size: (height, width), stride, padding, relu })
    }

    /// Whether a convolution with such weights uses Winograd's transforms, which multiply the rounding to bf16 by four.
    ///
    /// # Errors
    /// Returns an error if `weight` does not have four dimensions.
    pub fn is_winograd(weight: &Tensor, stride: usize, precision: Precision) -> Result<bool> {
        Ok(Winograd::applies(weight.dims4()?, stride, &Kernel::new(precision)))
    }

    /// Output channels.
    pub fn out_channels(&self) -> usize {
        self.out_channels
    }

    /// Convolves `x`, adds bias and `residual`, then applies the ReLU if there is one. The result uses `x`'s pool.
    ///
    /// # Errors
    /// Returns an error if the channels do not fit, the kernel is larger than the padded image, or the residual has
    /// another shape.
    pub fn forward(&self, x: &FeatureMap, residual: Residual) -> Result<FeatureMap> {
        let [batch, height, width, channels] = x.shape();
        if channels != self.channels {
            bail!("a map of {channels} channels does not fit a convolution of {}", self.channels);
        }
        let windows = Windows::new((channels, height, width), self.kernel_size, self.stride, self.padding)?;
        let shape = [batch, windows.out_height, windows.out_width, self.out_channels];
        let residual = ResidualRows::new(residual, shape)?;
        let epilogue = |first: usize| match (&residual, self.relu) {
            (Some(residual), relu) => Epilogue::Add { residual, first, relu },
            (None, true) => Epilogue::Activate { activation: FusedActivation::Relu, dropout: None, derivative: None },
            (None, false) => Epilogue::Nothing,
        };
        let mut out = FeatureMap::unwritten(shape, x.pool());
        if batch > 0 {
            match &self.method {
                Method::Winograd(winograd) => winograd.forward(x, &windows, &self.bias, &epilogue, out.values_mut()),
                Method::Product(weights) => self.product(weights, x, &windows, &epilogue, out.values_mut()),
            }
        }
        Ok(out)
    }

    fn product<'a>(
        &'a self,
        weights: &Prepacked,
        x: &FeatureMap,
        windows: &Windows,
        epilogue: EpilogueFrom<'a>,
        out: &'a mut [f32],
    ) {
        let (inner, columns) = weights.shape();
        let pixels = out.len() / columns;
        // From pixel `first` on.
        let output = |values: &'a mut [f32], first: usize| {
            let (base, epilogue) = (Base::Bias(&self.bias), epilogue(first));
            Output { values, leading: columns, base, epilogue }
        };
        if windows.is_identity() {
            let a = Matrix::new(x.values(), pixels, inner);
            return multiply_prepacked(output(out, 0), a, weights, Threads::Pool);
        }
        // Rows a power of two apart would fall into the same cache sets.
        let stride = inner.next_multiple_of(16) + 16;
        let per_task = balanced(pixels, weights.kernel().large_rows(), (GATHERED / stride).min(MOST_ROWS));
        out.par_chunks_mut(per_task * columns).enumerate().for_each(|(task, out)| {
            let (first, count) = (task * per_task, out.len() / columns);
            with_scratch([count * stride], |[gathered]| {
                for (row, to) in gathered.chunks_exact_mut(stride).enumerate() {
                    gather(x, windows, first + row, &mut to[..inner]);
                }
                let a = Matrix::strided(gathered, count, inner, stride);
                multiply_right(output(out, first), a, Right::Prepacked(weights), Threads::One);
            });
        });
    }
}

/// The epilogue for the output's pixels from a given one on, counted over the batch.
type EpilogueFrom<'a> = &'a (dyn Fn(usize) -> Epilogue<'a> + Sync);

/// Copies the window of an output pixel: kernel rows, kernel columns, channels fastest; the padding is 0.
fn gather(x: &FeatureMap, windows: &Windows, pixel: usize, to: &mut [f32]) {
    let channels = windows.channels;
    let (image, pixel) = (pixel / windows.out_len(), pixel % windows.out_len());
    let (out_y, out_x) = (pixel / windows.out_width, pixel % windows.out_width);
    let image = &x.values()[image * windows.in_len()..][..windows.in_len()];
    let kernel_width = windows.kernel.1;
    let left = out_x * windows.stride;
    // Kernel columns that meet the image: padding ≤ left + j < width + padding.
    let start = windows.padding.saturating_sub(left).min(kernel_width);
    let end = (windows.width + windows.padding).saturating_sub(left).min(kernel_width).max(start);
    for (i, to) in to.chunks_exact_mut(kernel_width * channels).enumerate() {
        match windows.in_row(out_y, i) {
            Some(y) if start < end => {
                let from = (y * windows.width + left + start - windows.padding) * channels;
                to[..start * channels].fill(0.0);
                to[start * channels..end * channels].copy_from_slice(&image[from..][..(end - start) * channels]);
                to[end * channels..].fill(0.0);
            }
            _ => to.fill(0.0),
        }
    }
}
