//! Convolutions for inference: weights prepacked once, activations channels-last; bias, residual and ReLU are applied
//! while a tile of the output is still in the cache.
//!
//! With channels last, a window's row is contiguous, so a convolution is a product with a left side gathered by plain
//! copies. Nothing need be gathered for a 1×1 convolution, or for a window as large as the image (a linear layer over
//! all of it). 3×3 convolutions with stride 1 use `winograd.rs`.

pub(super) mod feature_map;
mod windows;
mod winograd;

pub use feature_map::{BufferPool, FeatureMap, Residual, add_weighted, keep_larger};
pub use windows::Windows;

use super::activation::FusedActivation;
use super::epilogue::Epilogue;
use super::matrix::{Matrix, Threads};
use super::microkernel::{Base, Kernel, balanced};
use super::precision::Precision;
use super::product::{MOST_ROWS, Output, Prepacked, Right, multiply_prepacked, multiply_right};
use super::scratch::with_scratch;
use super::with_f32;
use candle_core::{Result, Tensor, bail};
use feature_map::ResidualRows;
use rayon::prelude::*;
use std::borrow::Cow;
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

    fn is_product(&self) -> bool {
        matches!(self.method, Method::Product(_))
    }

    fn windows(&self, x: &FeatureMap) -> Result<Windows> {
        let [_, height, width, channels] = x.shape();
        if channels != self.channels {
            bail!("a map of {channels} channels does not fit a convolution of {}", self.channels);
        }
        Windows::new((channels, height, width), self.kernel_size, self.stride, self.padding)
    }

    /// Convolves `x`, adds bias and `residual`, then applies the ReLU if there is one. The result uses `x`'s pool.
    ///
    /// # Errors
    /// Returns an error if the channels do not fit, the kernel is larger than the padded image, or the residual has
    /// another shape.
    pub fn forward(&self, x: &FeatureMap, residual: Residual) -> Result<FeatureMap> {
        let projected = self.projected(residual)?;
        let residual = projected.as_ref().map_or(residual, Residual::Same);
        let sum = Sum::new(self, x, residual)?;
        let mut out = FeatureMap::unwritten(sum.shape, x.pool());
        let values = out.values_mut();
        let epilogue = |first: usize| sum.epilogue(first);
        match (&self.method, &*sum.products) {
            _ if values.is_empty() => {}
            (Method::Winograd(winograd), _) => winograd.forward(x, &sum.windows, &sum.bias, &epilogue, values),
            // With few rows, the tasks are panels.
            (Method::Product(weights), [_]) if sum.windows.is_identity() => {
                let (inner, leading) = weights.shape();
                let a = Matrix::new(x.values(), values.len() / leading, inner);
                let output = Output { values, leading, base: Base::Bias(&sum.bias), epilogue: epilogue(0) };
                multiply_prepacked(output, a, weights, Threads::Pool);
            }
            (Method::Product(weights), products) => {
                let most = products.iter().map(Product::most_rows).min().unwrap_or(MOST_ROWS);
                let pixels = values.len() / self.out_channels;
                let per_task = balanced(pixels, weights.kernel().large_rows(), most);
                let tasks = values.par_chunks_mut(per_task * self.out_channels).enumerate();
                tasks.for_each(|(task, out)| sum.compute(task * per_task, out));
            }
        }
        Ok(out)
    }

    /// The means of what [`forward`](Self::forward) returns over every `pixels` pixels, counted over the batch: `[…,
    /// out_channels]`. The map itself, which may not fit into any cache, is not stored.
    ///
    /// # Errors
    /// As for [`forward`](Self::forward).
    ///
    /// # Panics
    /// If `pixels` is 0 or does not divide the map's pixels.
    pub fn forward_means(&self, x: &FeatureMap, residual: Residual, pixels: usize) -> Result<Vec<f32>> {
        let projected = self.projected(residual)?;
        let residual = projected.as_ref().map_or(residual, Residual::Same);
        let sum = Sum::new(self, x, residual)?;
        let [batch, height, width, columns] = sum.shape;
        assert!((batch * height * width).is_multiple_of(pixels));
        let mut out = vec![0.0; batch * height * width / pixels * columns];
        let whole = if sum.products.is_empty() { Some(self.forward(x, residual)?) } else { None };
        out.par_chunks_mut(columns).enumerate().for_each(|(run, out)| match &whole {
            Some(map) => mean(&map.values()[run * pixels * columns..][..pixels * columns], out),
            None => with_scratch([pixels * columns], |[values]| {
                sum.compute(run * pixels, values);
                mean(values, out);
            }),
        });
        Ok(out)
    }

    /// The residual's map, if it is a projection that cannot be added as one more product.
    fn projected(&self, residual: Residual) -> Result<Option<FeatureMap>> {
        match residual {
            Residual::Projected(map, conv) if !(self.is_product() && conv.is_product()) => {
                conv.forward(map, Residual::None).map(Some)
            }
            _ => Ok(None),
        }
    }
}

/// What a convolution computes for a map and a residual.
struct Sum<'a> {
    windows: Windows,
    /// Of the output.
    shape: [usize; 4],
    /// None for Winograd's transforms.
    products: Vec<Product<'a>>,
    bias: Cow<'a, [f32]>,
    residual: Option<ResidualRows<'a>>,
    relu: bool,
}

impl<'a> Sum<'a> {
    fn new(conv: &'a PrepackedConv2d, x: &'a FeatureMap, residual: Residual<'a>) -> Result<Self> {
        let windows = conv.windows(x)?;
        let shape = [x.shape()[0], windows.out_height, windows.out_width, conv.out_channels];
        let mut sum =
            Sum { windows, shape, products: vec![], bias: (&*conv.bias).into(), residual: None, relu: conv.relu };
        if let Residual::Projected(map, conv) = residual {
            let of_map = Sum::new(conv, map, Residual::None)?;
            if of_map.shape != shape {
                bail!("a projection to {:?} does not fit a convolution's output {shape:?}", of_map.shape);
            }
            sum.products = of_map.products;
            sum.bias = sum.bias.iter().zip(&*of_map.bias).map(|(a, b)| a + b).collect();
        } else {
            sum.residual = ResidualRows::new(residual, shape)?;
        }
        if let Method::Product(weights) = &conv.method {
            sum.products.push(Product { weights, x, windows });
        }
        Ok(sum)
    }

    /// For the output's pixels from `first` on.
    fn epilogue(&self, first: usize) -> Epilogue<'_> {
        match (&self.residual, self.relu) {
            (Some(residual), relu) => Epilogue::Add { residual, first, relu },
            (None, true) => Epilogue::Activate { activation: FusedActivation::Relu, dropout: None, derivative: None },
            (None, false) => Epilogue::Nothing,
        }
    }

    /// The output's pixels from `first` on, by products.
    fn compute(&self, first: usize, out: &mut [f32]) {
        let (leading, count) = (self.shape[3], self.products.len());
        for (i, product) in self.products.iter().enumerate() {
            let base = if i == 0 { Base::Bias(&self.bias) } else { Base::Out };
            let epilogue = if i + 1 == count { self.epilogue(first) } else { Epilogue::Nothing };
            product.compute(first, Output { values: out, leading, base, epilogue });
        }
    }
}

/// A convolution as a product, whose left side is the map itself or its gathered windows.
struct Product<'a> {
    weights: &'a Prepacked,
    x: &'a FeatureMap,
    windows: Windows,
}

impl Product<'_> {
    /// Distance of gathered rows. A power of two apart they would fall into the same cache sets.
    fn stride(&self) -> usize {
        self.weights.shape().0.next_multiple_of(16) + 16
    }

    /// Maximum rows of a task.
    fn most_rows(&self) -> usize {
        if self.windows.is_identity() { MOST_ROWS } else { (GATHERED / self.stride()).min(MOST_ROWS) }
    }

    /// The rows from pixel `first` on.
    fn compute(&self, first: usize, out: Output) {
        let (inner, columns) = self.weights.shape();
        let (count, weights) = (out.values.len() / columns, Right::Prepacked(self.weights));
        if self.windows.is_identity() {
            let a = Matrix::new(&self.x.values()[first * inner..], count, inner);
            return multiply_right(out, a, weights, Threads::One);
        }
        with_scratch([count * self.stride()], |[gathered]| {
            for (row, to) in gathered.chunks_exact_mut(self.stride()).enumerate() {
                gather(self.x, &self.windows, first + row, &mut to[..inner]);
            }
            let a = Matrix::strided(gathered, count, inner, self.stride());
            multiply_right(out, a, weights, Threads::One);
        });
    }
}

/// The epilogue for the output's pixels from a given one on, counted over the batch.
type EpilogueFrom<'a> = &'a (dyn Fn(usize) -> Epilogue<'a> + Sync);

/// The mean of rows as long as `out`.
fn mean(rows: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    for row in rows.chunks_exact(out.len()) {
        out.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
    let count = (rows.len() / out.len()) as f32;
    out.iter_mut().for_each(|sum| *sum /= count);
}

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
