//! Convolutions for inference: weights packed once, activations channels-last, bias, residual and ReLU done while a tile
//! of the output is still in the cache.
//!
//! With channels last a window's row is contiguous, so that a convolution is a product whose left side is gathered by
//! plain copies (a 1×1 convolution has nothing to gather). 3×3 convolutions with stride 1 go through `winograd.rs`.

use super::bf16::pairs;
use super::feature_map::{FeatureMap, Residual, ResidualRows};
use super::geometry::Windows;
use super::microkernel::{Columns, Kernel, balanced, finish};
use super::precision::Precision;
use super::scratch::with_scratch;
use super::winograd::Winograd;
use super::with_f32;
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

/// Values of gathered windows that a task keeps in the second-level cache.
const GATHERED: usize = 1 << 17;
/// Rows (pixels) of a task at most.
const MOST_ROWS: usize = 192;

/// A convolution with its weights packed for this machine's vector instructions.
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
    /// Panels of `[kernel_height · kernel_width · channels]` × panel width.
    Product(Kernel, Vec<f32>),
    Winograd(Winograd),
}

impl PrepackedConv2d {
    /// `weight`: `[out_channels, channels, kernel_height, kernel_width]`, f32 on the CPU, with any norm folded in; `bias`:
    /// `[out_channels]`. With `relu`, negative outputs become 0. Weights and inputs are rounded to `precision`; bias, residual and
    /// sums are not.
    ///
    /// # Errors
    /// When the tensors are of another kind or do not fit each other.
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
        let method = with_f32(weight, |weight| match Winograd::applies(dims, stride, &kernel) {
            true => Method::Winograd(Winograd::new(weight, out_channels, channels, kernel)),
            false => {
                let area = height * width;
                let packed = kernel.pack(channels * area, out_channels, |k, out| {
                    let (tap, channel) = (k / channels, k % channels);
                    weight[(out * channels + channel) * area + tap]
                });
                Method::Product(kernel, packed)
            }
        })?;
        Ok(Self { method, bias, channels, out_channels, kernel_size: (height, width), stride, padding, relu })
    }

    /// Whether a convolution of such weights goes through Winograd's transforms, which multiply the rounding to bf16 by four.
    ///
    /// # Errors
    /// When `weight` does not have four dimensions.
    pub fn is_winograd(weight: &Tensor, stride: usize, precision: Precision) -> Result<bool> {
        Ok(Winograd::applies(weight.dims4()?, stride, &Kernel::new(precision)))
    }

    /// Channels that leave.
    pub fn out_channels(&self) -> usize {
        self.out_channels
    }

    /// `x` convolved, plus bias and `residual`, then ReLU if there is one. The result lies in `x`'s pool.
    ///
    /// # Errors
    /// When the channels do not fit, the kernel is larger than the padded image, or the residual has another shape.
    pub fn forward(&self, x: &FeatureMap, residual: Residual) -> Result<FeatureMap> {
        let [batch, height, width, channels] = x.shape();
        if channels != self.channels {
            bail!("a map of {channels} channels does not fit a convolution of {}", self.channels);
        }
        let windows = Windows::new((channels, height, width), self.kernel_size, self.stride, self.padding)?;
        let shape = [batch, windows.out_height, windows.out_width, self.out_channels];
        let residual = ResidualRows::new(residual, shape)?;
        let mut out = FeatureMap::unwritten(shape, x.pool());
        if batch > 0 {
            match &self.method {
                Method::Winograd(winograd) => {
                    winograd.forward(x, &windows, &self.bias, residual.as_ref(), self.relu, out.values_mut());
                }
                Method::Product(kernel, packed) => {
                    self.product(kernel, packed, x, &windows, residual.as_ref(), out.values_mut());
                }
            }
        }
        Ok(out)
    }

    fn product(
        &self,
        kernel: &Kernel,
        packed: &[f32],
        x: &FeatureMap,
        windows: &Windows,
        residual: Option<&ResidualRows>,
        out: &mut [f32],
    ) {
        let (inner, panel, out_channels) = (windows.window_len(), kernel.columns, self.out_channels);
        let words = kernel.words(inner);
        // Rows a power of two apart would fall into the same sets of the cache.
        let stride = words.next_multiple_of(16) + 16;
        let most = (GATHERED / stride).min(MOST_ROWS);
        let per_task = balanced(out.len() / out_channels, kernel.large_rows(), most);
        out.par_chunks_mut(per_task * out_channels).enumerate().for_each(|(task, out)| {
            let (first, count) = (task * per_task, out.len() / out_channels);
            let rows = kernel.round_rows(count);
            with_scratch([rows * stride, rows * panel, inner], |[gathered, products, window]| {
                for (row, to) in gathered.chunks_exact_mut(stride).take(count).enumerate() {
                    match (kernel.precision(), pixel(x, windows, first + row)) {
                        (Precision::F32, Some(values)) => to[..inner].copy_from_slice(values),
                        (Precision::F32, None) => gather(x, windows, first + row, &mut to[..inner]),
                        (Precision::Bf16, Some(values)) => pairs(values, to),
                        (Precision::Bf16, None) => {
                            gather(x, windows, first + row, window);
                            pairs(window, to);
                        }
                    }
                }
                for (index, weights) in packed.chunks_exact(words * panel).enumerate() {
                    kernel.multiply(rows, words, gathered, stride, weights, products);
                    let start = index * panel;
                    let columns = Columns { leading: out_channels, start, width: panel.min(out_channels - start) };
                    let bias = &self.bias[start..];
                    match residual {
                        Some(residual) if !residual.is_same() => {
                            let pixels = out.chunks_exact_mut(out_channels).zip(products.chunks_exact(panel));
                            for (row, (out, values)) in pixels.enumerate() {
                                let (image, y, x) = place(windows, first + row);
                                let residual = Some(residual.pixel(image, y, x));
                                finish(out, columns, values, panel, bias, residual, self.relu);
                            }
                        }
                        _ => {
                            let residual = residual.map(|residual| &residual.values()[first * out_channels..]);
                            finish(out, columns, products, panel, bias, residual, self.relu);
                        }
                    }
                }
            });
        });
    }
}

/// Image, row and column of an output pixel.
fn place(windows: &Windows, pixel: usize) -> (usize, usize, usize) {
    let (image, pixel) = (pixel / windows.out_len(), pixel % windows.out_len());
    (image, pixel / windows.out_width, pixel % windows.out_width)
}

/// The window of an output pixel, where it is no more than one of the input.
fn pixel<'a>(x: &'a FeatureMap, windows: &Windows, pixel: usize) -> Option<&'a [f32]> {
    windows.is_identity().then(|| &x.values()[pixel * windows.channels..][..windows.channels])
}

/// Copies the window of an output pixel: kernel rows, kernel columns, channels fastest; the padding is 0.
fn gather(x: &FeatureMap, windows: &Windows, pixel: usize, to: &mut [f32]) {
    let channels = windows.channels;
    let (image, out_y, out_x) = place(windows, pixel);
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
