//! Activations in inference: channels-last, in reused buffers.
//!
//! The first touch of fresh memory costs more than a layer's computation (a Faster R-CNN writes a gigabyte of
//! activations per image). So a dropped map returns its buffer to the pool, and the next layer takes it from there.

use super::super::simd::vectorised;
use super::super::with_f32;
use super::PrepackedConv2d;
use candle_core::{Device, Result, Tensor};
use std::sync::{Arc, Mutex, PoisonError};

/// Buffers of dropped [`FeatureMap`]s, for reuse. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct BufferPool(Arc<Mutex<Vec<Vec<f32>>>>);

impl BufferPool {
    /// Creates an empty pool.
    pub fn new() -> Self {
        Self::default()
    }

    /// A buffer of at least `len` values with arbitrary contents: the smallest free one that fits, or a new one.
    fn take(&self, len: usize) -> Vec<f32> {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = free.iter().enumerate().filter(|(_, buffer)| buffer.len() >= len && buffer.len() / 4 <= len);
        match fits.min_by_key(|(_, buffer)| buffer.len()).map(|(i, _)| i) {
            Some(i) => free.swap_remove(i),
            None => vec![0.0; len],
        }
    }

    fn give_back(&self, buffer: Vec<f32>) {
        /// More than the maps of one image that are alive at once; a limit so that images of many sizes do not fill the
        /// memory.
        const MOST: usize = 12;
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(buffer);
        if free.len() > MOST {
            free.remove(0);
        }
    }
}

/// Activations `[batch, height, width, channels]` on the CPU, in f32.
#[derive(Debug)]
pub struct FeatureMap {
    /// At least as long as the shape requires.
    data: Vec<f32>,
    shape: [usize; 4],
    pool: BufferPool,
}

impl Drop for FeatureMap {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        if !data.is_empty() {
            self.pool.give_back(data);
        }
    }
}

impl FeatureMap {
    /// A map of shape `[batch, height, width, channels]` with arbitrary values, which the caller must overwrite.
    pub fn unwritten(shape: [usize; 4], pool: &BufferPool) -> Self {
        Self { data: pool.take(shape.iter().product()), shape, pool: pool.clone() }
    }

    /// From an f32 CPU tensor `[batch, channels, height, width]`; if it is channels-last in memory, the copy is direct.
    ///
    /// # Errors
    /// Returns an error if it is of another rank, type or device.
    pub fn from_tensor(tensor: &Tensor, pool: &BufferPool) -> Result<Self> {
        let (batch, channels, height, width) = tensor.dims4()?;
        let mut map = Self::unwritten([batch, height, width, channels], pool);
        with_f32(&tensor.permute((0, 2, 3, 1))?, |values| map.values_mut().copy_from_slice(values))?;
        Ok(map)
    }

    /// Converts it to a tensor `[batch, channels, height, width]`, a view of channels-last memory, without copying.
    ///
    /// # Errors
    /// Never in practice: the shape fits the values.
    pub fn into_tensor(mut self) -> Result<Tensor> {
        let mut data = std::mem::take(&mut self.data);
        data.truncate(self.shape.iter().product());
        Tensor::from_vec(data, self.shape.as_slice(), &Device::Cpu)?.permute((0, 3, 1, 2))
    }

    /// `[batch, height, width, channels]`.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// The values, channels fastest.
    pub fn values(&self) -> &[f32] {
        &self.data[..self.shape.iter().product()]
    }

    /// The values, for writing.
    pub fn values_mut(&mut self) -> &mut [f32] {
        let len = self.shape.iter().product();
        &mut self.data[..len]
    }

    /// The pool that its buffer returns to, and that others like it come from.
    pub fn pool(&self) -> &BufferPool {
        &self.pool
    }
}

vectorised! {
    /// `sum += weight · values` over the channels of a pixel.
    pub fn add_weighted(sum: &mut [f32], values: &[f32], weight: f32) {
        for (sum, value) in sum.iter_mut().zip(values) {
            *sum += weight * value;
        }
    }
}

vectorised! {
    /// `best = max(best, values)` over the channels of a pixel; NaN wins.
    pub fn keep_larger(best: &mut [f32], values: &[f32]) {
        for (best, &value) in best.iter_mut().zip(values) {
            *best = if value > *best || value.is_nan() { value } else { *best };
        }
    }
}

/// The residual that a convolution adds before its activation.
#[derive(Clone, Copy, Debug)]
pub enum Residual<'a> {
    /// Nothing.
    None,
    /// A map with the output's shape.
    Same(&'a FeatureMap),
    /// A coarser map with the same batch and channels, enlarged by nearest-neighbour interpolation as in torch: source
    /// index ⌊target · (input size / output size)⌋, the ratio in f32.
    Upsampled(&'a FeatureMap),
    /// What a convolution makes of a map (without its ReLU): one more product into the same sums.
    Projected(&'a FeatureMap, &'a PrepackedConv2d),
}

/// A residual prepared for access by the output's pixels.
#[derive(Debug)]
pub(crate) struct ResidualRows<'a> {
    values: &'a [f32],
    height: usize,
    width: usize,
    channels: usize,
    /// The source rows and columns of an enlarged map.
    sources: Option<(Vec<usize>, Vec<usize>)>,
}

impl<'a> ResidualRows<'a> {
    /// # Errors
    /// Returns an error if the map does not fit an output of `shape`.
    pub fn new(residual: Residual<'a>, shape: [usize; 4]) -> Result<Option<Self>> {
        let (map, sources) = match residual {
            Residual::None | Residual::Projected(..) => return Ok(None),
            Residual::Same(map) => (map, None),
            Residual::Upsampled(map) => {
                let source = |from: usize, to: usize| {
                    let ratio = from as f32 / to as f32;
                    (0..to).map(|i| ((i as f32 * ratio) as usize).min(from.saturating_sub(1))).collect()
                };
                (map, Some((source(map.shape[1], shape[1]), source(map.shape[2], shape[2]))))
            }
        };
        let fits = match &sources {
            None => map.shape == shape,
            Some(_) => map.shape[0] == shape[0] && map.shape[3] == shape[3] && !map.values().is_empty(),
        };
        if !fits {
            candle_core::bail!("a residual {:?} does not fit a convolution's output {shape:?}", map.shape);
        }
        let [_, height, width, channels] = map.shape;
        Ok(Some(Self { values: map.values(), height, width, channels, sources }))
    }

    /// The channels at a pixel of the output, counted over the batch.
    pub fn pixel(&self, pixel: usize) -> &'a [f32] {
        let pixel = match &self.sources {
            None => pixel,
            Some((rows, columns)) => {
                let (row, x) = (pixel / columns.len(), pixel % columns.len());
                let (image, y) = (row / rows.len(), row % rows.len());
                (image * self.height + rows[y]) * self.width + columns[x]
            }
        };
        &self.values[pixel * self.channels..][..self.channels]
    }
}
