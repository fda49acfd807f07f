//! RoIAlign (He et al. 2017, §3), exactly as torchvision's `roi_align` with `aligned=False` (the form in Faster R-CNN),
//! with its gradient with respect to the features.
//!
//! The kernel works on channels-last features, where a sample point's four neighbours are four rows of `channels`
//! consecutive values: arithmetic on positions is done once per region, and the inner loops run over channels.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use lxmert_core::ops::{BufferPool, FeatureMap, add_weighted, contiguous_f32, hold, use_fast, with_f32};
use rayon::prelude::*;

/// How to sample regions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoiAlign {
    /// Scale from the regions' unit to the features' pixels, such as 1/16 for boxes in pixels of the image.
    pub spatial_scale: f32,
    /// Bins along each side.
    pub output_size: usize,
    /// Sample points per side of a bin; 0 for as many as the region's size requires.
    pub sampling_ratio: usize,
}

/// The average of bilinear samples in each of `output_size` × `output_size` bins of each region.
///
/// `features`: `[batch, channels, height, width]`; `rois`: `[regions, 4]`, x0 y0 x1 y1, all in the only image of the
/// batch, or `[regions, 5]` with the image's index first, as in torchvision. Returns `[regions, channels, output_size,
/// output_size]`. There is a gradient with respect to the features, none for the regions.
///
/// # Errors
/// Returns an error if the shapes do not match or an image index is outside the batch.
pub fn roi_align(features: &Tensor, rois: &Tensor, options: RoiAlign) -> Result<Tensor> {
    let (batch, _, height, width) = features.dims4()?;
    let regions = regions(rois, batch)?;
    // [batch, height, width, channels]; free if the features are already channels-last in memory.
    let channels_last = to_channels_last(features)?;
    if !use_fast(&[features]) || channels_last.elem_count() == 0 || regions.is_empty() || options.output_size == 0 {
        return reference(&channels_last, &regions, options);
    }
    let samples = regions.par_iter().map(|region| Samples::new(region, (height, width), &options)).collect();
    channels_last.apply_op1(RoiAlignOp { samples, options })
}

/// A region, and the level of the pyramid from which it is pooled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LevelRegion {
    /// Index of the level.
    pub level: usize,
    /// Index in the batch.
    pub image: usize,
    /// x0 y0 x1 y1, in the unit of the level's options.
    pub xyxy: [f32; 4],
}

/// [`roi_align`] for regions on several levels, for inference: channels-last, in the regions' order, each written
/// directly to its place. `levels`: `[batch, channels, height, width]`, f32 on the CPU, fastest if channels-last in
/// memory; the options' output sizes must be equal. Returns `[regions, output_size, output_size, channels]`.
///
/// # Errors
/// Returns an error if a level or an image does not exist, the levels differ in channels, or a tensor is of another
/// kind.
pub fn roi_align_levels(
    levels: &[(&Tensor, RoiAlign)],
    regions: &[LevelRegion],
    pool: &BufferPool,
) -> Result<FeatureMap> {
    let Some((first, options)) = levels.first() else { bail!("regions of a pyramid without levels") };
    let (channels, size) = (first.dim(1)?, options.output_size);
    if levels.iter().any(|(level, options)| level.dims().get(1) != Some(&channels) || options.output_size != size) {
        bail!("the levels of a pyramid differ in channels or in their regions' size");
    }
    let places = regions.iter().map(|region| match levels.get(region.level) {
        Some((level, options)) if region.image < level.dim(0)? && level.elem_count() > 0 => {
            Ok((Region { image: region.image, xyxy: region.xyxy }, (level.dim(2)?, level.dim(3)?), *options))
        }
        _ => bail!("a region of level {} and image {}: there is none", region.level, region.image),
    });
    let places = places.collect::<Result<Vec<_>>>()?;
    let tensors = levels.iter().map(|(level, _)| to_channels_last(level)).collect::<Result<Vec<_>>>()?;
    let held: Vec<_> = tensors.iter().map(hold).collect();
    let values = held.iter().map(|held| held.values()).collect::<Result<Vec<_>>>()?;
    let mut out = FeatureMap::unwritten([regions.len(), size, size, channels], pool);
    if out.values().is_empty() {
        return Ok(out);
    }
    let rows = out.values_mut().par_chunks_exact_mut(size * size * channels).zip(regions).zip(&places);
    rows.for_each(|((out, region), (place, sides, options))| {
        let features = values[region.level];
        out.fill(0.0);
        Samples::new(place, *sides, options).for_each(*sides, size, |bin, row, weight| {
            add_weighted(&mut out[bin * channels..][..channels], &features[row * channels..][..channels], weight);
        });
    });
    Ok(out)
}

/// The plain composition that [`roi_align`] equals: for each sample point and neighbour, the features' rows selected by
/// index, weighted and summed.
///
/// # Errors
/// See [`roi_align`].
pub fn roi_align_reference(features: &Tensor, rois: &Tensor, options: RoiAlign) -> Result<Tensor> {
    let regions = regions(rois, features.dim(0)?)?;
    reference(&features.permute((0, 2, 3, 1))?.contiguous()?, &regions, options)
}

struct Region {
    image: usize,
    xyxy: [f32; 4],
}

fn regions(rois: &Tensor, batch: usize) -> Result<Vec<Region>> {
    let (_, columns) = rois.dims2()?;
    if columns != 5 && !(columns == 4 && batch == 1) {
        bail!("regions {:?} for {batch} images: expected [regions, 5] with the image's index first", rois.dims());
    }
    let rows = rois.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    rows.iter()
        .map(|row| {
            let image = if columns == 5 { row[0] } else { 0.0 };
            if !(image >= 0.0 && image < batch as f32) {
                bail!("a region of image {image} in a batch of {batch}");
            }
            let at = columns - 4;
            Ok(Region { image: image as usize, xyxy: [row[at], row[at + 1], row[at + 2], row[at + 3]] })
        })
        .collect()
}

/// `[batch, channels, height, width]` to `[batch, height, width, channels]`.
pub(super) fn to_channels_last(features: &Tensor) -> Result<Tensor> {
    features.permute((0, 2, 3, 1))?.contiguous()
}

/// One axis of a sample point: the two neighbours and their weights.
#[derive(Clone, Copy, Debug)]
struct Axis {
    low: usize,
    high: usize,
    low_weight: f32,
    high_weight: f32,
}

impl Axis {
    /// `None` if the point is more than a pixel outside (it then counts as zero).
    fn new(at: f32, size: usize) -> Option<Self> {
        // Written so that NaN counts as outside too.
        if !(at >= -1.0 && at <= size as f32) {
            return None;
        }
        let at = at.max(0.0);
        let low = at as usize;
        if low >= size - 1 {
            return Some(Self { low: size - 1, high: size - 1, low_weight: 1.0, high_weight: 0.0 });
        }
        let fraction = at - low as f32;
        Some(Self { low, high: low + 1, low_weight: 1.0 - fraction, high_weight: fraction })
    }
}

/// The sample points of one region as rows and columns; the points are their product.
struct Samples {
    image: usize,
    /// Sample rows, `output_size · grid.0` of them, bin after bin; likewise columns.
    rows: Vec<Option<Axis>>,
    columns: Vec<Option<Axis>>,
    /// Samples per bin along y and x.
    grid: (usize, usize),
}

impl Samples {
    /// The order of operations is torchvision's (`roi_align_kernel.cpp`), so that positions agree bit for bit.
    fn new(region: &Region, (height, width): (usize, usize), options: &RoiAlign) -> Self {
        let [x0, y0, x1, y1] = region.xyxy.map(|side| side * options.spatial_scale);
        let (roi_width, roi_height) = ((x1 - x0).max(1.0), (y1 - y0).max(1.0));
        let axis = |start: f32, length: f32, size: usize| {
            let bin = length / options.output_size as f32;
            // Only a region far larger than the features, from a broken file, needs more points than this; stop there.
            let limit = (4 * size).max(1024);
            let grid =
                if options.sampling_ratio > 0 { options.sampling_ratio } else { (bin.ceil() as usize).min(limit) };
            let points = (0..options.output_size)
                .flat_map(|p| {
                    (0..grid)
                        .map(move |i| Axis::new(start + p as f32 * bin + (i as f32 + 0.5) * bin / grid as f32, size))
                })
                .collect();
            (points, grid)
        };
        let (rows, grid_y) = axis(y0, roi_height, height);
        let (columns, grid_x) = axis(x0, roi_width, width);
        Self { image: region.image, rows, columns, grid: (grid_y, grid_x) }
    }

    /// Calls `f(bin, row, weight)` for every neighbour of every sample; `row` is its index in `[batch · height ·
    /// width]`.
    fn for_each(&self, (height, width): (usize, usize), output_size: usize, mut f: impl FnMut(usize, usize, f32)) {
        let (grid_y, grid_x) = self.grid;
        let count = (grid_y * grid_x).max(1) as f32;
        let base = self.image * height * width;
        for bin in 0..output_size * output_size {
            let (bin_y, bin_x) = (bin / output_size, bin % output_size);
            for y in self.rows[bin_y * grid_y..][..grid_y].iter().flatten() {
                for x in self.columns[bin_x * grid_x..][..grid_x].iter().flatten() {
                    f(bin, base + y.low * width + x.low, y.low_weight * x.low_weight / count);
                    f(bin, base + y.low * width + x.high, y.low_weight * x.high_weight / count);
                    f(bin, base + y.high * width + x.low, y.high_weight * x.low_weight / count);
                    f(bin, base + y.high * width + x.high, y.high_weight * x.high_weight / count);
                }
            }
        }
    }
}

struct RoiAlignOp {
    samples: Vec<Samples>,
    options: RoiAlign,
}

impl CustomOp1 for RoiAlignOp {
    fn name(&self) -> &'static str {
        "roi-align"
    }

    /// Input `[batch, height, width, channels]`, output `[regions, channels, output_size, output_size]`.
    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let features = contiguous_f32(storage, layout)?;
        let (_, height, width, channels) = layout.shape().dims4()?;
        let size = self.options.output_size;
        let bins = size * size;
        let mut out = vec![0.0f32; self.samples.len() * channels * bins];
        out.par_chunks_exact_mut(channels * bins).zip(&self.samples).for_each_init(
            || vec![0.0f32; bins * channels],
            |sums, (out, samples)| {
                sums.fill(0.0);
                samples.for_each((height, width), size, |bin, row, weight| {
                    add_weighted(
                        &mut sums[bin * channels..][..channels],
                        &features[row * channels..][..channels],
                        weight,
                    );
                });
                for (channel, out) in out.chunks_exact_mut(bins).enumerate() {
                    for (bin, out) in out.iter_mut().enumerate() {
                        *out = sums[bin * channels + channel];
                    }
                }
            },
        );
        Ok((CpuStorage::F32(out), (self.samples.len(), channels, size, size).into()))
    }

    /// Regions overlap, so threads divide the channels, not the regions: one thread sums each feature in the regions'
    /// order, and the result does not depend on the number of threads.
    fn bwd(&self, features: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        if !features.track_op() {
            return Ok(None);
        }
        let (batch, height, width, channels) = features.dims4()?;
        let (size, bins) = (self.options.output_size, self.options.output_size * self.options.output_size);
        let slice = channels.div_ceil(rayon::current_num_threads()).max(1);
        let parts: Vec<Vec<f32>> = with_f32(grad, |grad| {
            (0..channels.div_ceil(slice))
                .into_par_iter()
                .map(|part| {
                    let first = part * slice;
                    let count = slice.min(channels - first);
                    let mut sums = vec![0.0f32; batch * height * width * count];
                    let mut rows = vec![0.0f32; bins * count];
                    for (samples, grad) in self.samples.iter().zip(grad.chunks_exact(channels * bins)) {
                        for (channel, grad) in grad[first * bins..][..count * bins].chunks_exact(bins).enumerate() {
                            for (bin, value) in grad.iter().enumerate() {
                                rows[bin * count + channel] = *value;
                            }
                        }
                        samples.for_each((height, width), size, |bin, row, weight| {
                            add_weighted(&mut sums[row * count..][..count], &rows[bin * count..][..count], weight);
                        });
                    }
                    sums
                })
                .collect()
        })?;
        let mut out = vec![0.0f32; batch * height * width * channels];
        out.par_chunks_exact_mut(channels).enumerate().for_each(|(row, out)| {
            for (out, part) in out.chunks_mut(slice).zip(&parts) {
                out.copy_from_slice(&part[row * out.len()..][..out.len()]);
            }
        });
        Tensor::from_vec(out, features.shape(), features.device()).map(Some)
    }
}

/// `channels_last`: `[batch, height, width, channels]`.
fn reference(channels_last: &Tensor, regions: &[Region], options: RoiAlign) -> Result<Tensor> {
    let (batch, height, width, channels) = channels_last.dims4()?;
    let (size, bins) = (options.output_size, options.output_size * options.output_size);
    let device = channels_last.device();
    let shape = (regions.len(), channels, size, size);
    if regions.is_empty() || channels_last.elem_count() == 0 || bins == 0 {
        return Tensor::zeros(shape, channels_last.dtype(), device);
    }
    // The i-th neighbour of every bin together, padded with weight 0 where a bin has fewer.
    let mut neighbours: Vec<(Vec<u32>, Vec<f32>)> = Vec::new();
    for (r, region) in regions.iter().enumerate() {
        let mut seen = vec![0; bins];
        Samples::new(region, (height, width), &options).for_each((height, width), size, |bin, row, weight| {
            if seen[bin] == neighbours.len() {
                neighbours.push((vec![0; regions.len() * bins], vec![0.0; regions.len() * bins]));
            }
            let (rows, weights) = &mut neighbours[seen[bin]];
            rows[r * bins + bin] = row as u32;
            weights[r * bins + bin] = weight;
            seen[bin] += 1;
        });
    }
    let rows = channels_last.reshape((batch * height * width, channels))?;
    let count = regions.len() * bins;
    let mut sum = Tensor::zeros((count, channels), channels_last.dtype(), device)?;
    for (indices, weights) in neighbours {
        let weights = Tensor::from_vec(weights, (count, 1), device)?.to_dtype(channels_last.dtype())?;
        let picked = rows.index_select(&Tensor::from_vec(indices, count, device)?, 0)?;
        sum = (sum + picked.broadcast_mul(&weights)?)?;
    }
    sum.reshape((regions.len(), bins, channels))?.transpose(1, 2)?.contiguous()?.reshape(shape)
}
