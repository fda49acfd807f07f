//! RoI max pooling (Girshick 2015) for inference, exactly as torchvision's `roi_pool` and Caffe's `ROIPooling`.

use super::roi_align::{LevelRegion, to_channels_last};
use candle_core::{Result, Tensor, bail};
use lxmert_core::ops::{BufferPool, FeatureMap, keep_larger, with_f32};
use rayon::prelude::*;
use std::ops::Range;

/// How to pool regions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoiPool {
    /// Scale from the regions' unit to the features' cells, such as 1/16 for boxes in pixels of the image.
    pub spatial_scale: f32,
    /// Bins along each side.
    pub output_size: usize,
    /// Every `dilation`-th bin goes to a separate map: a 3×3 convolution of this dilation never mixes them with others,
    /// so on these maps it is a plain one. 1 leaves a region whole.
    pub dilation: usize,
}

/// The largest value in each of `output_size` × `output_size` bins of each region; 0 if a bin is outside the features.
/// Corners are rounded to whole cells, halves away from zero, and the last cell is inside. The bins' edges are computed
/// in f32, which moves some of them by a cell (for example, of regions 57 or 62 cells wide in 14 bins).
///
/// `features`: `[batch, channels, height, width]`, f32 on the CPU, fastest if channels-last in memory; the regions are
/// of level 0. Returns `[regions · d², output_size / d, output_size / d, channels]` for a dilation of d: the bins whose
/// row and column leave the remainders 0 and 0 modulo d, then 0 and 1, and so on.
///
/// # Errors
/// Returns an error if an image does not exist, the dilation does not divide the output size, or the tensor is of
/// another kind.
pub fn roi_pool(features: &Tensor, regions: &[LevelRegion], options: RoiPool, pool: &BufferPool) -> Result<FeatureMap> {
    let (batch, channels, height, width) = features.dims4()?;
    let RoiPool { output_size: size, dilation, .. } = options;
    if dilation == 0 || !size.is_multiple_of(dilation) {
        bail!("a dilation of {dilation} does not divide {size} bins");
    }
    if let Some(region) = regions.iter().find(|region| region.level != 0 || region.image >= batch) {
        bail!("a region of level {} and image {}: there is none", region.level, region.image);
    }
    let side = size / dilation;
    let mut out = FeatureMap::unwritten([regions.len() * dilation * dilation, side, side, channels], pool);
    if out.values().is_empty() {
        return Ok(out);
    }
    with_f32(&to_channels_last(features)?, |values| {
        let rows = out.values_mut().par_chunks_exact_mut(size * size * channels).zip(regions);
        rows.for_each(|(out, region)| {
            let features = &values[region.image * height * width * channels..][..height * width * channels];
            let [x0, y0, x1, y1] = region.xyxy.map(|v| (v * options.spatial_scale).round() as i64);
            let (rows, columns) = (bins(y0, y1, size, height), bins(x0, x1, size, width));
            for (bin, out) in out.chunks_exact_mut(channels).enumerate() {
                let (phase, cell) = (bin / (side * side), bin % (side * side));
                let row = &rows[cell / side * dilation + phase / dilation];
                let column = &columns[cell % side * dilation + phase % dilation];
                let mut cells = row.clone().flat_map(|y| column.clone().map(move |x| (y * width + x) * channels));
                match cells.next() {
                    Some(first) => out.copy_from_slice(&features[first..][..channels]),
                    None => out.fill(0.0),
                }
                cells.for_each(|cell| keep_larger(out, &features[cell..][..channels]));
            }
        });
    })?;
    Ok(out)
}

/// The cells of each bin along one side of a region from cell `start` to cell `end`, clipped to `cells`. The order of
/// operations is torchvision's (`roi_pool_kernel.cpp`).
fn bins(start: i64, end: i64, count: usize, cells: usize) -> Vec<Range<usize>> {
    let length = end.saturating_sub(start).saturating_add(1).max(1);
    let bin = length as f32 / count as f32;
    let inside = |edge: f32| start.saturating_add(edge as i64).clamp(0, cells as i64) as usize;
    (0..count).map(|i| inside((i as f32 * bin).floor())..inside(((i + 1) as f32 * bin).ceil())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lxmert_core::procedural;

    #[test]
    fn bin_edges_are_computed_in_f32() {
        let edges = |width: i64| bins(0, width - 1, 14, 200);
        // python: 14 * np.float32(57 / 14) > 57; 7 * np.float32(62 / 14) < 31
        assert_eq!(edges(57)[13], 52..58);
        assert_eq!(edges(62)[7].start, 30);
        assert_eq!(edges(28), (0..14).map(|i| 2 * i..2 * i + 2).collect::<Vec<_>>());
        // An inverted region is one cell.
        assert!(bins(5, 3, 14, 10).iter().all(|bin| *bin == (5..6)));
        assert!(bins(i64::MIN, i64::MAX, 2, 10).iter().all(|bin| bin.end <= 10));
    }

    #[test]
    fn dilation_separates_every_second_bin() -> Result<()> {
        let features = procedural::tensor("features", &[2, 3, 9, 11], -1.0, 1.0, 0)?;
        let regions =
            [[0.0, 0.0, 9.0, 8.0], [3.0, 2.0, 6.0, 20.0]].map(|xyxy| LevelRegion { level: 0, image: 1, xyxy });
        let pooled = |dilation| -> Result<Tensor> {
            let options = RoiPool { spatial_scale: 1.0, output_size: 4, dilation };
            roi_pool(&features, &regions, options, &BufferPool::new())?.into_tensor()
        };
        let (whole, phases) = (pooled(1)?, pooled(2)?);
        assert_eq!((whole.dims(), phases.dims()), (&[2, 3, 4, 4][..], &[8, 3, 2, 2][..]));
        let expected = whole.reshape((2, 3, 2, 2, 2, 2))?.permute((0, 3, 5, 1, 2, 4))?.reshape((8, 3, 2, 2))?;
        assert_eq!(phases.flatten_all()?.to_vec1::<f32>()?, expected.flatten_all()?.to_vec1::<f32>()?);
        Ok(())
    }

    #[test]
    fn rejects_impossible_regions() -> Result<()> {
        let features = procedural::tensor("features", &[1, 3, 9, 11], -1.0, 1.0, 0)?;
        let pool = |image, dilation| {
            let options = RoiPool { spatial_scale: 1.0, output_size: 4, dilation };
            roi_pool(&features, &[LevelRegion { level: 0, image, xyxy: [0.0; 4] }], options, &BufferPool::new())
        };
        assert!(pool(0, 1).is_ok());
        assert!(pool(1, 1).is_err());
        assert!(pool(0, 3).is_err());
        Ok(())
    }
}
