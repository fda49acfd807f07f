//! Max pooling with padding: for tensors with the gradient, which Candle lacks, and for channels-last maps in
//! inference.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use lxmert_core::ops::{FeatureMap, Windows, contiguous_f32, keep_larger, use_fast, with_f32};
use rayon::prelude::*;

/// The largest value in each `kernel` × `kernel` window of `x` `[batch, channels, height, width]`; padding never wins.
/// Returns `[batch, channels, out_height, out_width]`. The gradient goes to the first of equal values, and NaN counts
/// as the largest value, as in PyTorch's `max_pool2d`.
///
/// # Errors
/// Returns an error if `padding` is more than half of `kernel`, or the kernel is larger than the padded image.
pub fn max_pool2d(x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    let op = MaxPool2d { kernel, stride, padding };
    op.windows(x.dims4()?)?;
    if !use_fast(&[x]) || x.elem_count() == 0 {
        return max_pool2d_reference(x, kernel, stride, padding);
    }
    x.contiguous()?.apply_op1(op)
}

/// The plain composition that [`max_pool2d`] equals: slices of the padded image by kernel position, keeping the larger
/// values.
///
/// # Errors
/// See [`max_pool2d`].
pub fn max_pool2d_reference(x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    let dims @ (batch, channels, ..) = x.dims4()?;
    let windows = MaxPool2d { kernel, stride, padding }.windows(dims)?;
    if x.elem_count() == 0 {
        return Tensor::zeros((batch, channels, windows.out_height, windows.out_width), x.dtype(), x.device());
    }
    let mut padded = x.clone();
    for dim in [2, 3] {
        if padding > 0 {
            let mut shape = padded.dims().to_vec();
            shape[dim] = padding;
            let border = Tensor::full(f32::NEG_INFINITY, shape, x.device())?.to_dtype(x.dtype())?;
            padded = Tensor::cat(&[&border, &padded, &border], dim)?;
        }
    }
    let places = |start: usize, count: usize| {
        let indices: Vec<u32> = (0..count).map(|i| (start + i * stride) as u32).collect();
        Tensor::from_vec(indices, count, x.device())
    };
    let mut best: Option<Tensor> = None;
    for i in 0..kernel {
        let rows = padded.index_select(&places(i, windows.out_height)?, 2)?;
        for j in 0..kernel {
            let value = rows.index_select(&places(j, windows.out_width)?, 3)?;
            best = Some(match best {
                None => value,
                // The first of equal values stays, and so does NaN.
                Some(best) => (best.ge(&value)? + best.ne(&best)?)?.where_cond(&best, &value)?,
            });
        }
    }
    match best {
        Some(best) => Ok(best),
        None => bail!("an empty pooling window"),
    }
}

#[derive(Clone, Copy, Debug)]
struct MaxPool2d {
    kernel: usize,
    stride: usize,
    padding: usize,
}

impl MaxPool2d {
    /// Each channel separately.
    fn windows(&self, (_, _, height, width): (usize, usize, usize, usize)) -> Result<Windows> {
        if 2 * self.padding > self.kernel {
            bail!("a padding of {} is more than half of the pooling kernel, {}", self.padding, self.kernel);
        }
        Windows::new((1, height, width), (self.kernel, self.kernel), self.stride, self.padding)
    }
}

/// The position of a window's largest value in its plane: the first of equal ones, or the last NaN.
fn arg_max(windows: &Windows, plane: &[f32], out_y: usize, out_x: usize) -> usize {
    let (mut best, mut place) = (f32::NEG_INFINITY, None);
    for i in 0..windows.kernel.0 {
        let Some(y) = windows.in_row(out_y, i) else { continue };
        for j in 0..windows.kernel.1 {
            if let Some(x) = windows.in_column(out_x, j) {
                let value = plane[y * windows.width + x];
                if value > best || value.is_nan() || place.is_none() {
                    (best, place) = (value, Some(y * windows.width + x));
                }
            }
        }
    }
    // With a padding of at most half the kernel, every window has a value.
    place.unwrap_or(0)
}

impl CustomOp1 for MaxPool2d {
    fn name(&self) -> &'static str {
        "max-pool2d"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous_f32(storage, layout)?;
        let dims @ (batch, channels, ..) = layout.shape().dims4()?;
        let windows = self.windows(dims)?;
        let mut y = vec![0.0f32; batch * channels * windows.out_len()];
        y.par_chunks_exact_mut(windows.out_len()).zip(x.par_chunks_exact(windows.in_len())).for_each(|(y, x)| {
            for (out_y, row) in y.chunks_exact_mut(windows.out_width).enumerate() {
                for (out_x, value) in row.iter_mut().enumerate() {
                    *value = x[arg_max(&windows, x, out_y, out_x)];
                }
            }
        });
        Ok((CpuStorage::F32(y), (batch, channels, windows.out_height, windows.out_width).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        if !x.track_op() {
            return Ok(None);
        }
        let windows = self.windows(x.dims4()?)?;
        let dx = with_f32(x, |x| {
            with_f32(grad, |grad| {
                let mut dx = vec![0.0f32; x.len()];
                dx.par_chunks_exact_mut(windows.in_len())
                    .zip(x.par_chunks_exact(windows.in_len()))
                    .zip(grad.par_chunks_exact(windows.out_len()))
                    .for_each(|((dx, x), grad)| {
                        for (out_y, row) in grad.chunks_exact(windows.out_width).enumerate() {
                            for (out_x, value) in row.iter().enumerate() {
                                dx[arg_max(&windows, x, out_y, out_x)] += value;
                            }
                        }
                    });
                dx
            })
        })??;
        Tensor::from_vec(dx, x.shape(), x.device()).map(Some)
    }
}

/// [`max_pool2d`] for a channels-last map.
///
/// # Errors
/// As there.
pub fn max_pool_map(x: &FeatureMap, kernel: usize, stride: usize, padding: usize) -> Result<FeatureMap> {
    let [batch, height, width, channels] = x.shape();
    largest(x, &MaxPool2d { kernel, stride, padding }.windows((batch, channels, height, width))?)
}

/// Max pooling without padding whose output size is rounded up ("ceil mode", as in Caffe); the part of a window past
/// the border does not count.
///
/// # Errors
/// Returns an error if `stride` is 0 or larger than `kernel`.
pub fn max_pool_map_ceil(x: &FeatureMap, kernel: usize, stride: usize) -> Result<FeatureMap> {
    let [_, height, width, _] = x.shape();
    if stride > kernel {
        bail!("a stride of {stride} leaves out cells between windows of {kernel}");
    }
    let reached = |side: usize| side.saturating_sub(kernel).next_multiple_of(stride.max(1)) + kernel;
    let windows = Windows::new((1, reached(height), reached(width)), (kernel, kernel), stride, 0)?;
    largest(x, &Windows { height, width, ..windows })
}

/// The largest value of each window in each channel.
fn largest(x: &FeatureMap, windows: &Windows) -> Result<FeatureMap> {
    let ([batch, height, width, channels], kernel) = (x.shape(), windows.kernel.0);
    let mut out = FeatureMap::unwritten([batch, windows.out_height, windows.out_width, channels], x.pool());
    let row_len = windows.out_width * channels;
    if row_len == 0 {
        return Ok(out);
    }
    out.values_mut().par_chunks_exact_mut(row_len).enumerate().for_each(|(row, out)| {
        let (image, out_y) = (row / windows.out_height, row % windows.out_height);
        let image = &x.values()[image * height * width * channels..][..height * width * channels];
        for (out_x, out) in out.chunks_exact_mut(channels).enumerate() {
            let rows = (0..kernel).filter_map(|i| windows.in_row(out_y, i));
            let columns = || (0..kernel).filter_map(|j| windows.in_column(out_x, j));
            let mut cells = rows.flat_map(|y| columns().map(move |x| &image[(y * width + x) * channels..][..channels]));
            // With a padding of at most half the kernel, every window has a cell.
            if let Some(first) = cells.next() {
                out.copy_from_slice(first);
            }
            cells.for_each(|cell| keep_larger(out, cell));
        }
    });
    Ok(out)
}
