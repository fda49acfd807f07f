//! The column form of an image: one column per window, one row per position in it.

use lxmert_core::ops::Windows;
use std::ops::Range;

/// Channel, kernel row and kernel column of a row of the column form.
fn tap(windows: &Windows, row: usize) -> (usize, usize, usize) {
    let (_, width) = windows.kernel;
    let area = windows.kernel.0 * width;
    (row / area, row % area / width, row % width)
}

/// The output columns whose kernel column `j` meets the image, and the input column that the first of them meets.
fn out_columns(windows: &Windows, j: usize) -> (Range<usize>, usize) {
    let Windows { width, stride, padding, out_width, .. } = *windows;
    let first = padding.saturating_sub(j).div_ceil(stride);
    // First output column past the right edge: out_x · stride + j − padding ≥ width.
    let end = (width + padding).saturating_sub(j).div_ceil(stride).min(out_width);
    let first = first.min(end);
    (first..end, (first * stride + j).saturating_sub(padding))
}

/// Writes the windows of output rows `rows` as columns: `[channels · kernel, rows · out_width]`.
pub fn im2col(windows: &Windows, image: &[f32], rows: Range<usize>, columns: &mut [f32]) {
    let row_len = rows.len() * windows.out_width;
    for (row, out) in columns.chunks_exact_mut(row_len).take(windows.window_len()).enumerate() {
        let (channel, i, j) = tap(windows, row);
        let plane = &image[channel * windows.height * windows.width..][..windows.height * windows.width];
        let (inside, start) = out_columns(windows, j);
        for (out_y, out) in rows.clone().zip(out.chunks_exact_mut(windows.out_width)) {
            let Some(y) = windows.in_row(out_y, i).filter(|_| !inside.is_empty()) else {
                out.fill(0.0);
                continue;
            };
            out[..inside.start].fill(0.0);
            out[inside.end..].fill(0.0);
            let from = &plane[y * windows.width + start..(y + 1) * windows.width];
            let out = &mut out[inside.clone()];
            if windows.stride == 1 {
                out.copy_from_slice(&from[..inside.len()]);
            } else {
                out.iter_mut().zip(from.iter().step_by(windows.stride)).for_each(|(out, &value)| *out = value);
            }
        }
    }
}

/// Adds columns back to the positions from which [`im2col`] took them: its transpose, for gradients.
pub fn col2im(windows: &Windows, columns: &[f32], rows: Range<usize>, image: &mut [f32]) {
    let row_len = rows.len() * windows.out_width;
    for (row, values) in columns.chunks_exact(row_len).take(windows.window_len()).enumerate() {
        let (channel, i, j) = tap(windows, row);
        let plane = &mut image[channel * windows.height * windows.width..][..windows.height * windows.width];
        let (inside, start) = out_columns(windows, j);
        for (out_y, values) in rows.clone().zip(values.chunks_exact(windows.out_width)) {
            let Some(y) = windows.in_row(out_y, i).filter(|_| !inside.is_empty()) else { continue };
            let to = &mut plane[y * windows.width + start..(y + 1) * windows.width];
            let values = &values[inside.clone()];
            if windows.stride == 1 {
                to.iter_mut().zip(values).for_each(|(to, value)| *to += value);
            } else {
                to.iter_mut().step_by(windows.stride).zip(values).for_each(|(to, value)| *to += value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lxmert_core::procedural;

    #[test]
    fn windows_inside_the_padding_are_zero() {
        // A 1×1 image padded by 3: of 7 × 7 windows of 1×1, only the middle one meets it.
        let windows = Windows::new((1, 1, 1), (1, 1), 1, 3).unwrap();
        let mut columns = vec![f32::NAN; 49];
        im2col(&windows, &[5.0], 0..7, &mut columns);
        assert_eq!(columns.iter().sum::<f32>(), 5.0);
        assert_eq!(columns[24], 5.0);
    }

    #[test]
    fn col2im_is_the_transpose_of_im2col() {
        for (kernel, stride, padding) in
            [((3, 3), 1, 1), ((3, 3), 2, 1), ((1, 1), 2, 0), ((7, 7), 2, 3), ((2, 3), 3, 2)]
        {
            let windows = Windows::new((2, 9, 10), kernel, stride, padding).unwrap();
            let len = windows.window_len() * windows.out_len();
            let image = procedural::values("image", windows.in_len(), -1.0, 1.0, 1);
            let other = procedural::values("columns", len, -1.0, 1.0, 2);
            let (mut columns, mut back) = (vec![f32::NAN; len], vec![0.0; windows.in_len()]);
            im2col(&windows, &image, 0..windows.out_height, &mut columns);
            col2im(&windows, &other, 0..windows.out_height, &mut back);
            // ⟨im2col(image), other⟩ = ⟨image, col2im(other)⟩
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
            assert!((dot(&columns, &other) - dot(&image, &back)).abs() < 1e-4);
        }
    }
}
