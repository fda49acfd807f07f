//! 2-D convolution with gradients with respect to input, weights and bias, computed as matrix products.
//!
//! An image's windows become columns (im2col), one cache-sized tile of output rows at a time; the forward pass and both
//! gradients are then products: `y = w · cols`, `dw += dy · colsᵀ`, `dx = col2im(wᵀ · dy)`. A 1×1 convolution with
//! stride 1 needs no columns: the image already has that form. Images of a batch run in parallel, each product on one
//! thread; a batch smaller than the thread pool uses the pool inside each product instead.

use super::im2col::{col2im, im2col};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use lxmert_core::ops::{Matrix, MatrixMut, Threads, Windows, Write, contiguous_f32, gemm, use_fast, with_f32};
use rayon::prelude::*;
use std::ops::Range;

/// Values of a tile in column form: 1 MiB, which fits a core's second-level cache on current server CPUs.
const TILE: usize = 1 << 18;

/// Convolution (cross-correlation, as everywhere in deep learning) of `x` `[batch, channels, height, width]` with
/// `weight` `[out_channels, channels, kernel_height, kernel_width]` and `bias` `[out_channels]`; stride and padding are
/// the same along both sides. Returns `[batch, out_channels, out_height, out_width]`.
///
/// # Errors
/// Returns an error if the shapes do not fit each other, or the kernel is larger than the padded image.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, stride: usize, padding: usize) -> Result<Tensor> {
    let op = Conv2d { stride, padding };
    op.windows(x.shape(), weight.shape())?;
    if weight.elem_count() == 0 {
        bail!("a convolution without channels: weights {:?}", weight.dims());
    }
    if let Some(bias) = bias
        && bias.dims() != [weight.dim(0)?]
    {
        bail!("a bias {:?} does not fit convolution weights {:?}", bias.dims(), weight.dims());
    }
    if !use_fast(&[x, weight]) || x.elem_count() == 0 {
        return conv2d_reference(x, weight, bias, stride, padding);
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    match bias {
        None => x.apply_op2(&weight, op),
        Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, op),
    }
}

/// The plain composition that [`conv2d`] equals: Candle's own convolution, then the bias.
///
/// # Errors
/// See [`conv2d`].
pub fn conv2d_reference(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stride: usize,
    padding: usize,
) -> Result<Tensor> {
    let windows = Conv2d { stride, padding }.windows(x.shape(), weight.shape())?;
    let out_channels = weight.dim(0)?;
    if x.elem_count() == 0 {
        // Candle's convolution does not accept empty batches.
        return Tensor::zeros((x.dim(0)?, out_channels, windows.out_height, windows.out_width), x.dtype(), x.device());
    }
    // Candle's gradient is right only if the windows end with the image in both directions, so pad the image here and
    // cut off what no window reaches.
    let reached = |out: usize, kernel: usize| (out - 1) * stride + kernel;
    let x = x.pad_with_zeros(2, padding, padding)?.pad_with_zeros(3, padding, padding)?;
    let x = x.narrow(2, 0, reached(windows.out_height, windows.kernel.0))?;
    let x = x.narrow(3, 0, reached(windows.out_width, windows.kernel.1))?;
    let y = x.conv2d(weight, 0, stride, 1, 1)?;
    match bias {
        None => Ok(y),
        Some(bias) => y.broadcast_add(&bias.reshape((1, out_channels, 1, 1))?),
    }
}

#[derive(Clone, Copy, Debug)]
struct Conv2d {
    stride: usize,
    padding: usize,
}

impl Conv2d {
    fn windows(&self, x: &Shape, weight: &Shape) -> Result<Windows> {
        let ((_, channels, height, width), (_, inner, kernel_height, kernel_width)) = (x.dims4()?, weight.dims4()?);
        if channels != inner {
            bail!("an image of {channels} channels does not fit convolution weights {:?}", weight.dims());
        }
        Windows::new((channels, height, width), (kernel_height, kernel_width), self.stride, self.padding)
    }

    fn forward(
        &self,
        (x, x_shape): (&[f32], &Shape),
        (weight, weight_shape): (&[f32], &Shape),
        bias: Option<&[f32]>,
    ) -> Result<(CpuStorage, Shape)> {
        let windows = self.windows(x_shape, weight_shape)?;
        let (batch, out_channels) = (x_shape.dims()[0], weight_shape.dims()[0]);
        let weight = Matrix::new(weight, out_channels, windows.window_len());
        let image_len = out_channels * windows.out_len();
        let mut y = vec![0.0f32; batch * image_len];
        if y.is_empty() {
            return Ok((CpuStorage::F32(y), (batch, out_channels, windows.out_height, windows.out_width).into()));
        }
        let image = |y: &mut [f32], x: &[f32], columns: &mut Vec<f32>, threads: Threads| {
            let write = match bias {
                None => Write::Replace,
                Some(bias) => {
                    for (channel, &bias) in y.chunks_exact_mut(windows.out_len()).zip(bias) {
                        channel.fill(bias);
                    }
                    Write::Add
                }
            };
            for_tiles(&windows, |first, rows| {
                let tile = rows.len() * windows.out_width;
                let columns = columns_of(&windows, x, rows, columns);
                let out = MatrixMut::strided(&mut y[first..], out_channels, tile, windows.out_len());
                gemm(out, write, weight, columns, threads);
            });
        };
        if batch < rayon::current_num_threads() {
            let mut columns = Vec::new();
            for (y, x) in y.chunks_exact_mut(image_len).zip(x.chunks_exact(windows.in_len())) {
                image(y, x, &mut columns, Threads::Pool);
            }
        } else {
            y.par_chunks_exact_mut(image_len)
                .zip(x.par_chunks_exact(windows.in_len()))
                .for_each_init(Vec::new, |columns, (y, x)| image(y, x, columns, Threads::One));
        }
        Ok((CpuStorage::F32(y), (batch, out_channels, windows.out_height, windows.out_width).into()))
    }

    /// Gradients with respect to input and weights (if requested) and bias.
    fn backward(&self, x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let windows = self.windows(x.shape(), weight.shape())?;
        let (batch, out_channels) = (x.dim(0)?, weight.dim(0)?);
        let (x_needed, weight_needed) = (x.track_op(), weight.track_op());
        let (dx, dweight, dbias) = with_f32(x, |x| {
            with_f32(weight, |weight| {
                with_f32(grad, |grad| {
                    let pass = BackwardPass { windows, out_channels, weight, x_needed, weight_needed };
                    pass.run(x, grad, batch)
                })
            })
        })???;
        Ok(Gradients {
            x: dx.map(|dx| Tensor::from_vec(dx, x.shape(), x.device())).transpose()?,
            weight: dweight.map(|dw| Tensor::from_vec(dw, weight.shape(), x.device())).transpose()?,
            bias: Tensor::from_vec(dbias, out_channels, x.device())?,
        })
    }
}

/// Calls `f(offset of the tile in an output channel, its output rows)` for tiles that fit the cache.
fn for_tiles(windows: &Windows, mut f: impl FnMut(usize, Range<usize>)) {
    let row_len = windows.window_len() * windows.out_width;
    let step = if windows.is_identity() { windows.out_height } else { (TILE / row_len.max(1)).max(1) };
    let mut start = 0;
    while start < windows.out_height {
        let end = (start + step).min(windows.out_height);
        f(start * windows.out_width, start..end);
        start = end;
    }
}

/// The column form of some output rows; in `scratch` unless the image already has that form.
fn columns_of<'a>(windows: &Windows, x: &'a [f32], rows: Range<usize>, scratch: &'a mut Vec<f32>) -> Matrix<'a> {
    let tile = rows.len() * windows.out_width;
    if windows.is_identity() {
        return Matrix::new(x, windows.window_len(), tile);
    }
    let len = windows.window_len() * tile;
    scratch.resize(scratch.len().max(len), 0.0);
    im2col(windows, x, rows, &mut scratch[..len]);
    Matrix::new(&scratch[..len], windows.window_len(), tile)
}

struct Gradients {
    x: Option<Tensor>,
    weight: Option<Tensor>,
    bias: Tensor,
}

type RawGradients = (Option<Vec<f32>>, Option<Vec<f32>>, Vec<f32>);

struct BackwardPass<'a> {
    windows: Windows,
    out_channels: usize,
    weight: &'a [f32],
    x_needed: bool,
    weight_needed: bool,
}

impl BackwardPass<'_> {
    /// The batch is divided into as many runs of images as there are threads. Each sums its own weight gradient, and
    /// the sums are added in order, so the result depends only on the number of threads.
    fn run(&self, x: &[f32], grad: &[f32], batch: usize) -> RawGradients {
        let windows = &self.windows;
        let weight_len = self.out_channels * windows.window_len();
        let groups = rayon::current_num_threads().min(batch).max(1);
        let threads = if groups == 1 { Threads::Pool } else { Threads::One };
        let per_group = batch.div_ceil(groups).max(1);
        let mut dx = vec![0.0f32; if self.x_needed { x.len() } else { 0 }];
        let dx_chunks: Vec<Option<&mut [f32]>> = if self.x_needed {
            dx.chunks_mut(per_group * windows.in_len()).map(Some).collect()
        } else {
            (0..groups).map(|_| None).collect()
        };
        let sums: Vec<(Vec<f32>, Vec<f32>)> = x
            .par_chunks(per_group * windows.in_len())
            .zip(grad.par_chunks(per_group * self.out_channels * windows.out_len()))
            .zip(dx_chunks)
            .map(|((x, grad), dx)| self.group(x, grad, dx, threads))
            .collect();
        let mut dweight = vec![0.0f32; if self.weight_needed { weight_len } else { 0 }];
        let mut dbias = vec![0.0f32; self.out_channels];
        for (weight, bias) in &sums {
            dweight.iter_mut().zip(weight).for_each(|(sum, value)| *sum += value);
            dbias.iter_mut().zip(bias).for_each(|(sum, value)| *sum += value);
        }
        (self.x_needed.then_some(dx), self.weight_needed.then_some(dweight), dbias)
    }

    fn group(&self, x: &[f32], grad: &[f32], mut dx: Option<&mut [f32]>, threads: Threads) -> (Vec<f32>, Vec<f32>) {
        let windows = &self.windows;
        let (window_len, out_channels) = (windows.window_len(), self.out_channels);
        let weight = Matrix::new(self.weight, out_channels, window_len);
        let mut dweight = vec![0.0f32; if self.weight_needed { out_channels * window_len } else { 0 }];
        let mut dbias = vec![0.0f32; out_channels];
        let (mut columns, mut dcolumns) = (Vec::new(), Vec::new());
        let grads = grad.chunks_exact(out_channels * windows.out_len());
        for (n, (x, grad)) in x.chunks_exact(windows.in_len()).zip(grads).enumerate() {
            for (sum, channel) in dbias.iter_mut().zip(grad.chunks_exact(windows.out_len())) {
                *sum += channel.iter().sum::<f32>();
            }
            let mut dx = dx.as_mut().map(|dx| &mut dx[n * windows.in_len()..][..windows.in_len()]);
            for_tiles(windows, |first, rows| {
                let tile = rows.len() * windows.out_width;
                let grad = Matrix::strided(&grad[first..], out_channels, tile, windows.out_len());
                if self.weight_needed {
                    let columns = columns_of(windows, x, rows.clone(), &mut columns);
                    let out = MatrixMut::new(&mut dweight, out_channels, window_len);
                    gemm(out, Write::Add, grad, columns.t(), threads);
                }
                match &mut dx {
                    None => {}
                    Some(dx) if windows.is_identity() => {
                        gemm(MatrixMut::new(dx, window_len, tile), Write::Replace, weight.t(), grad, threads);
                    }
                    Some(dx) => {
                        dcolumns.resize(dcolumns.len().max(window_len * tile), 0.0);
                        let dcolumns = &mut dcolumns[..window_len * tile];
                        let out = MatrixMut::new(dcolumns, window_len, tile);
                        gemm(out, Write::Replace, weight.t(), grad, threads);
                        col2im(windows, dcolumns, rows, dx);
                    }
                }
            });
        }
        (dweight, dbias)
    }
}

impl CustomOp2 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward((contiguous_f32(x, lx)?, lx.shape()), (contiguous_f32(w, lw)?, lw.shape()), None)
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradients = self.backward(x, weight, grad)?;
        Ok((gradients.x, gradients.weight))
    }
}

impl CustomOp3 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let bias = contiguous_f32(b, lb)?;
        self.forward((contiguous_f32(x, lx)?, lx.shape()), (contiguous_f32(w, lw)?, lw.shape()), Some(bias))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradients = self.backward(x, weight, grad)?;
        Ok((gradients.x, gradients.weight, bias.track_op().then_some(gradients.bias)))
    }
}
