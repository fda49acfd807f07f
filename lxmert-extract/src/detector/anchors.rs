//! Anchors: the boxes from which the proposal network starts, a few of fixed size and shape in each cell of each level.

use super::config::{AnchorStyle, RpnConfig};
use lxmert_core::boxes::BoxXyxy;

/// The anchors of one level. Shape varies fastest, then column, then row.
#[derive(Debug, Clone)]
pub struct AnchorGrid {
    base: Vec<BoxXyxy>,
    rows: usize,
    columns: usize,
    stride_y: usize,
    stride_x: usize,
}

impl AnchorGrid {
    /// The anchors of level `level` for an image padded to `padded_size` (height, width); the level's map has
    /// `map_size` (rows, columns).
    pub fn new(config: &RpnConfig, level: usize, map_size: (usize, usize), padded_size: (usize, usize)) -> Self {
        let base = match &config.cell_anchors {
            Some(anchors) => anchors.clone(),
            None => cell_anchors(config.anchor_style, &config.anchor_sizes[level], &config.aspect_ratios),
        };
        Self {
            base,
            rows: map_size.0,
            columns: map_size.1,
            stride_y: config.anchor_stride.unwrap_or(padded_size.0 / map_size.0.max(1)),
            stride_x: config.anchor_stride.unwrap_or(padded_size.1 / map_size.1.max(1)),
        }
    }

    /// The anchors of the cell at the origin.
    pub fn of_cell(&self) -> &[BoxXyxy] {
        &self.base
    }

    /// From one cell to the next, along x and y.
    pub fn strides(&self) -> [usize; 2] {
        [self.stride_x, self.stride_y]
    }

    /// Number of anchors.
    pub fn len(&self) -> usize {
        self.rows * self.columns * self.base.len()
    }

    /// Whether there are none.
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

/// The anchors of the cell at the origin.
pub fn cell_anchors(style: AnchorStyle, sizes: &[f32], aspect_ratios: &[f32]) -> Vec<BoxXyxy> {
    let centred = |w: f32, h: f32| [-w / 2.0, -h / 2.0, w / 2.0, h / 2.0];
    let by_ratio = |anchor: &dyn Fn(f32, f32) -> BoxXyxy| {
        aspect_ratios.iter().flat_map(|&ratio| sizes.iter().map(move |&size| anchor(size, ratio))).collect()
    };
    match style {
        AnchorStyle::Torchvision => by_ratio(&|size, ratio| {
            let height_ratio = ratio.sqrt();
            let width_ratio = 1.0 / height_ratio;
            centred(width_ratio * size, height_ratio * size).map(f32::round_ties_even)
        }),
        // In f64, as Python does.
        AnchorStyle::Detectron2 => sizes
            .iter()
            .flat_map(|&size| {
                aspect_ratios.iter().map(move |&ratio| {
                    let w = (f64::from(size) * f64::from(size) / f64::from(ratio)).sqrt();
                    let h = f64::from(ratio) * w;
                    [-w / 2.0, -h / 2.0, w / 2.0, h / 2.0].map(|v| v as f32)
                })
            })
            .collect(),
        AnchorStyle::Caffe => by_ratio(&|size, ratio| {
            let w = (CAFFE_BASE * CAFFE_BASE / ratio).sqrt().round_ties_even();
            let h = (w * ratio).round_ties_even();
            let scale = size / CAFFE_BASE;
            let centre = (CAFFE_BASE - 1.0) / 2.0;
            let (half_w, half_h) = ((w * scale - 1.0) / 2.0, (h * scale - 1.0) / 2.0);
            [centre - half_w, centre - half_h, centre + half_w, centre + half_h]
        }),
    }
}

/// Side of the base box of Caffe's anchors (`generate_anchors.py`).
const CAFFE_BASE: f32 = 16.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_anchors_equal_torchvisions() {
        // python: AnchorGenerator(((32,),), ((0.5, 1.0, 2.0),)).cell_anchors[0]
        let expected = [[-23., -11., 23., 11.], [-16., -16., 16., 16.], [-11., -23., 11., 23.]];
        assert_eq!(cell_anchors(AnchorStyle::Torchvision, &[32.0], &[0.5, 1.0, 2.0]), expected);
    }

    #[test]
    fn stored_anchors_and_stride_take_precedence() {
        let config =
            RpnConfig { cell_anchors: Some(vec![[0., 0., 1., 1.]]), anchor_stride: Some(16), ..RpnConfig::default() };
        // 76 columns for 1203 pixels: the ratio would be 15.
        assert_eq!(AnchorGrid::new(&config, 0, (1, 76), (16, 1203)).get(75), [1200., 0., 1201., 1.]);
    }

    #[test]
    fn shapes_vary_fastest_then_columns_then_rows() {
        let grid = AnchorGrid::new(&RpnConfig::default(), 0, (2, 3), (8, 12));
        assert_eq!(grid.len(), 18);
        assert_eq!(grid.get(1), [-16., -16., 16., 16.]);
        assert_eq!(grid.get(3 + 1), [-12., -16., 20., 16.]);
        assert_eq!(grid.get(9 + 1), [-16., -12., 16., 20.]);
        assert_eq!(grid.iter().count(), 18);
    }
}
