//! Grid features without proposals (Jiang et al. 2020): means over the cells of the backbone's last map.
//!
//! The part of the map that the image covers is divided into `side` × `side` rectangles of cells as in torch's
//! `AdaptiveAvgPool2d`, or fewer if the map has fewer cells; a region is the mean of its cells. There are no labels:
//! every region is a "cell" with score 1.

use super::{RegionSource, detector_info};
use crate::Result;
use crate::choice::LoadedDetector;
use crate::detector::transform::NetworkInput;
use crate::images::DecodedImage;
use candle_core::Tensor;
use lxmert_core::features::{Regions, StoreDtype, StoreInfo};
use std::ops::Range;

/// A detector's backbone, without its heads.
#[derive(Debug)]
pub struct CellSource {
    /// The detector.
    pub loaded: LoadedDetector,
    /// Maximum number of regions in each direction.
    pub side: usize,
}

impl RegionSource for CellSource {
    fn info(&self, dtype: StoreDtype) -> StoreInfo {
        let config = self.loaded.detector.config();
        let mut info = detector_info(&self.loaded, format!("cells:{}", self.side), self.side * self.side, dtype);
        info.feature_dim = config.backbone.stage_widths.last().copied().unwrap_or_default();
        info.label_names = vec!["cell".into()];
        info.attribute_names.clear();
        info.settings.remove("attribute");
        info
    }

    fn input(&self, image: &DecodedImage) -> Result<NetworkInput> {
        Ok(self.loaded.detector.input(image)?)
    }

    fn regions(&self, input: NetworkInput) -> Result<Regions> {
        let map = self.loaded.detector.last_map(&input)?;
        Ok(mean_regions(&map, (self.side, self.side), &input)?)
    }
}

/// Means of `map` `[1, channels, rows, columns]`, which covers the padded input, over at most this many rectangles down
/// and across.
pub(super) fn mean_regions(map: &Tensor, most: (usize, usize), input: &NetworkInput) -> candle_core::Result<Regions> {
    let (_, channels, rows, columns) = map.dims4()?;
    let (height, width) = input.image_size;
    // A cell counts if the image reaches into it.
    let covered = |cells: usize, resized: usize, padded: usize| (cells * resized).div_ceil(padded).max(1);
    let (tall, wide) = (
        covered(rows, input.resized_size.0, input.padded_size.0),
        covered(columns, input.resized_size.1, input.padded_size.1),
    );
    let mut regions =
        Regions { image_width: width as u32, image_height: height as u32, feature_dim: channels, ..Regions::default() };
    let (down, across) = (parts(tall, most.0), parts(wide, most.1));
    // Ends in 0..1 of the image; the last cell may extend beyond it.
    let ends = |part: &Range<usize>, cells: usize, resized: usize, padded: usize| {
        let end = |cell: usize| ((cell * padded) as f32 / (cells * resized) as f32).min(1.0);
        (end(part.start), end(part.end))
    };
    for row in &down {
        let band = map.narrow(2, row.start, row.len())?;
        for column in &across {
            let cells = band.narrow(3, column.start, column.len())?;
            let mean = cells.flatten_from(2)?.mean(2)?; // [1, channels]
            regions.features.extend(mean.flatten_all()?.to_vec1::<f32>()?);
            let (y0, y1) = ends(row, rows, input.resized_size.0, input.padded_size.0);
            let (x0, x1) = ends(column, columns, input.resized_size.1, input.padded_size.1);
            regions.boxes.push([x0, y0, x1, y1]);
        }
    }
    regions.labels = vec![0; regions.boxes.len()];
    regions.scores = vec![1.0; regions.boxes.len()];
    Ok(regions)
}

/// Divides `cells` into at most `side` parts of nearly equal length; neighbours share a cell if the lengths do not
/// divide.
fn parts(cells: usize, side: usize) -> Vec<Range<usize>> {
    let count = side.min(cells);
    (0..count).map(|i| i * cells / count..((i + 1) * cells).div_ceil(count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_equal_torchs() {
        // python: nn.AdaptiveAvgPool1d(3) of 7 cells averages 0..3, 2..5, 4..7
        assert_eq!(parts(7, 3), [0..3, 2..5, 4..7]);
        assert_eq!(parts(8, 4), [0..2, 2..4, 4..6, 6..8]);
        assert_eq!(parts(2, 8), [0..1, 1..2]);
    }
}
