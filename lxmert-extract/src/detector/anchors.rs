//! Anchors: the boxes that the proposal network starts from, a few of fixed size and shape in each
//! cell of each level.

use super::config::RpnConfig;
use lxmert_core::boxes::BoxXyxy;

/// The anchors of one level. Order: shape fastest, then column, then row.
#[derive(Debug, Clone)]
pub struct AnchorGrid {
    base: Vec<BoxXyxy>,
    rows: usize,
    columns: usize,
    stride_y: usize,
    stride_x: usize,
}

impl AnchorGrid {
    /// Level `level`, whose map is `map_size` (rows, columns), of an image padded to `padded_size`
    /// (height, width).
    pub fn new(config: &RpnConfig, level: usize, map_size: (usize, usize), padded_size: (usize, usize)) -> Self {
        Self {
            base: base_anchors(&config.anchor_sizes[level], &config.aspect_ratios),
            rows: map_size.0,
            columns: map_size.1,
            stride_y: padded_size.0 / map_size.0.max(1),
            stride_x: padded_size.1 / map_size.1.max(1),
        }
    }

    /// Number of anchors.
    pub fn len(&self) -> usize {
        self.rows * self.columns * self.base.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Anchor `index` in pixels of the resized image.
    pub fn get(&self, index: usize) -> BoxXyxy {
        let (cell, shape) = (index / self.base.len(), index % self.base.len());
        let x = (cell % self.columns * self.stride_x) as f32;
        let y = (cell / self.columns * self.stride_y) as f32;
        let [x0, y0, x1, y1] = self.base[shape];
        [x + x0, y + y0, x + x1, y + y1]
    }

    /// All anchors in order.
    pub fn iter(&self) -> impl Iterator<Item = BoxXyxy> + '_ {
        (0..self.len()).map(|i| self.get(i))
    }
}

/// Anchors around the origin, ratio by ratio, with corners rounded to whole pixels (half to even),
/// as in torchvision's `anchor_utils.py`.
fn base_anchors(sizes: &[f32], aspect_ratios: &[f32]) -> Vec<BoxXyxy> {
    let mut base = Vec::with_capacity(sizes.len() * aspect_ratios.len());
    for ratio in aspect_ratios {
        let height_ratio = ratio.sqrt();
        let width_ratio = 1.0 / height_ratio;
        for size in sizes {
            let (w, h) = (width_ratio * size, height_ratio * size);
            base.push([-w / 2.0, -h / 2.0, w / 2.0, h / 2.0].map(f32::round_ties_even));
        }
    }
    base
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_anchors_are_torchvision_s() {
        // python: AnchorGenerator(((32,),), ((0.5, 1.0, 2.0),)).cell_anchors[0]
        let expected = [[-23., -11., 23., 11.], [-16., -16., 16., 16.], [-11., -23., 11., 23.]];
        assert_eq!(base_anchors(&[32.0], &[0.5, 1.0, 2.0]), expected);
    }

    #[test]
    fn shapes_run_fastest_then_columns_then_rows() {
        let grid = AnchorGrid::new(&RpnConfig::default(), 0, (2, 3), (8, 12));
        assert_eq!(grid.len(), 18);
        assert_eq!(grid.get(1), [-16., -16., 16., 16.]);
        assert_eq!(grid.get(3 + 1), [-12., -16., 20., 16.]);
        assert_eq!(grid.get(9 + 1), [-16., -12., 16., 20.]);
        assert_eq!(grid.iter().count(), 18);
    }
}
