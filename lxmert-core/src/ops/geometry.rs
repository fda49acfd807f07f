//! The arithmetic of sliding windows: which input a window touches, and the column form (im2col) of an image.

use candle_core::{Result, bail};
use std::ops::Range;

/// One image's sliding windows: input `[channels, height, width]`, output `[_, out_height, out_width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Windows {
    pub channels: usize,
    pub height: usize,
    pub width: usize,
    pub kernel: (usize, usize),
    pub stride: usize,
    pub padding: usize,
    pub out_height: usize,
    pub out_width: usize,
}

impl Windows {
    /// # Errors
    /// A stride of 0, and a kernel that is empty or larger than the padded image.
    pub fn new(
        (channels, height, width): (usize, usize, usize),
        kernel: (usize, usize),
        stride: usize,
        padding: usize,
    ) -> Result<Self> {
        let (padded_height, padded_width) = (height + 2 * padding, width + 2 * padding);
        if stride == 0 || kernel.0 == 0 || kernel.1 == 0 || kernel.0 > padded_height || kernel.1 > padded_width {
            bail!(
                "no window of {} × {} with stride {stride} in an image of {height} × {width} padded by {padding}",
                kernel.0,
                kernel.1
            );
        }
        let out_height = (padded_height - kernel.0) / stride + 1;
        let out_width = (padded_width - kernel.1) / stride + 1;
        Ok(Self { channels, height, width, kernel, stride, padding, out_height, out_width })
    }

    /// Values in one input image.
    pub fn in_len(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// Windows in one image.
    pub fn out_len(&self) -> usize {
        self.out_height * self.out_width
    }

    /// Values in one window.
    pub fn window_len(&self) -> usize {
        self.channels * self.kernel.0 * self.kernel.1
    }

    /// Whether the windows are the image itself: 1×1, stride 1, no padding.
    pub fn is_identity(&self) -> bool {
        self.kernel == (1, 1) && self.stride == 1 && self.padding == 0
    }

    /// The input row that kernel row `i` meets in output row `out_y`, unless it lies in the padding.
    pub fn in_row(&self, out_y: usize, i: usize) -> Option<usize> {
        (out_y * self.stride + i).checked_sub(self.padding).filter(|&y| y < self.height)
    }

    /// The input column that kernel column `j` meets in output column `out_x`, unless it lies in the padding.
    pub fn in_column(&self, out_x: usize, j: usize) -> Option<usize> {
        (out_x * self.stride + j).checked_sub(self.padding).filter(|&x| x < self.width)
    }

    /// The output columns whose kernel column `j` meets the image, and the input column that the first of them meets.
    pub fn out_columns(&self, j: usize) -> (Range<usize>, usize) {
        let first = self.padding.saturating_sub(j).div_ceil(self.stride);
        // First output column past the right edge: out_x · stride + j − padding ≥ width.
        let end = (self.width + self.padding).saturating_sub(j).div_ceil(self.stride).min(self.out_width);
        let first = first.min(end);
        (first..end, (first * self.stride + j).saturating_sub(self.padding))
    }

    /// Output rows whose columns fit the cache: at most `budget` values in column form, at least one row.
    pub fn rows_per_tile(&self, budget: usize) -> usize {
        (budget / (self.window_len() * self.out_width).max(1)).clamp(1, self.out_height)
    }

    /// Writes the windows of output rows `rows` as columns: `[channels · kernel, rows · out_width]`.
    pub fn im2col(&self, image: &[f32], rows: Range<usize>, columns: &mut [f32]) {
        let row_len = rows.len() * self.out_width;
        for (tap, out) in columns.chunks_exact_mut(row_len).take(self.window_len()).enumerate() {
            let (channel, i, j) = self.tap(tap);
            let plane = &image[channel * self.height * self.width..][..self.height * self.width];
            let (inside, start) = self.out_columns(j);
            for (out_y, out) in rows.clone().zip(out.chunks_exact_mut(self.out_width)) {
                let Some(y) = self.in_row(out_y, i).filter(|_| !inside.is_empty()) else {
                    out.fill(0.0);
                    continue;
                };
                out[..inside.start].fill(0.0);
                out[inside.end..].fill(0.0);
                let (out, from) = (&mut out[inside.clone()], &plane[y * self.width + start..(y + 1) * self.width]);
                if self.stride == 1 {
                    out.copy_from_slice(&from[..inside.len()]);
                } else {
                    for (out, &value) in out.iter_mut().zip(from.iter().step_by(self.stride)) {
                        *out = value;
                    }
                }
            }
        }
    }

    /// Adds columns back to where [`im2col`](Self::im2col) took them from: its transpose, for gradients.
    pub fn col2im(&self, columns: &[f32], rows: Range<usize>, image: &mut [f32]) {
        let row_len = rows.len() * self.out_width;
        for (tap, values) in columns.chunks_exact(row_len).take(self.window_len()).enumerate() {
            let (channel, i, j) = self.tap(tap);
            let plane = &mut image[channel * self.height * self.width..][..self.height * self.width];
            let (inside, start) = self.out_columns(j);
            for (out_y, values) in rows.clone().zip(values.chunks_exact(self.out_width)) {
                let Some(y) = self.in_row(out_y, i).filter(|_| !inside.is_empty()) else { continue };
                let to = &mut plane[y * self.width + start..(y + 1) * self.width];
                let values = &values[inside.clone()];
                if self.stride == 1 {
                    for (to, value) in to.iter_mut().zip(values) {
                        *to += value;
                    }
                } else {
                    for (to, value) in to.iter_mut().step_by(self.stride).zip(values) {
                        *to += value;
                    }
                }
            }
        }
    }

    /// Channel, kernel row and kernel column of a row of the column form.
    fn tap(&self, tap: usize) -> (usize, usize, usize) {
        let area = self.kernel.0 * self.kernel.1;
        (tap / area, tap % area / self.kernel.1, tap % self.kernel.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_that_lie_wholly_in_the_padding_are_zero() {
        // A 1×1 image padded by 3: of 7 × 7 windows of 1×1, only the middle one meets it.
        let windows = Windows::new((1, 1, 1), (1, 1), 1, 3).unwrap();
        let mut columns = vec![f32::NAN; 49];
        windows.im2col(&[5.0], 0..7, &mut columns);
        assert_eq!(columns.iter().sum::<f32>(), 5.0);
        assert_eq!(columns[24], 5.0);
    }

    #[test]
    fn impossible_windows_are_refused() {
        assert!(Windows::new((1, 2, 2), (3, 3), 1, 0).is_err());
        assert!(Windows::new((1, 2, 2), (1, 1), 0, 0).is_err());
        assert!(Windows::new((1, 0, 0), (1, 1), 1, 0).is_err());
    }

    #[test]
    fn col2im_is_the_transpose_of_im2col() {
        for (kernel, stride, padding) in
            [((3, 3), 1, 1), ((3, 3), 2, 1), ((1, 1), 2, 0), ((7, 7), 2, 3), ((2, 3), 3, 2)]
        {
            let windows = Windows::new((2, 9, 10), kernel, stride, padding).unwrap();
            let len = windows.window_len() * windows.out_len();
            let image = crate::procedural::values("image", windows.in_len(), -1.0, 1.0, 1);
            let other = crate::procedural::values("columns", len, -1.0, 1.0, 2);
            let (mut columns, mut back) = (vec![f32::NAN; len], vec![0.0; windows.in_len()]);
            windows.im2col(&image, 0..windows.out_height, &mut columns);
            windows.col2im(&other, 0..windows.out_height, &mut back);
            // ⟨im2col(image), other⟩ = ⟨image, col2im(other)⟩
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
            assert!((dot(&columns, &other) - dot(&image, &back)).abs() < 1e-4);
        }
    }
}
