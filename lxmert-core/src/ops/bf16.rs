//! Operands of products in bf16: a 32-bit word holds two values and takes the place of an f32 in matrices, panels and
//! scratch memory. Sums stay f32.

use super::matrix::Matrix;
use super::precision::pair;
use super::simd::vectorised;
use super::transpose::{BLOCK, transpose_block};
use std::ops::Range;

vectorised! {
    /// Stores neighbouring `values` as pairs; a last one without a neighbour is paired with 0.
    pub(crate) fn pairs(values: &[f32], to: &mut [f32]) {
        let whole = values.len() / 2;
        let (values, rest) = values.as_chunks::<2>();
        for (to, [first, second]) in to[..whole].iter_mut().zip(values) {
            *to = pair(*first, *second);
        }
        if let [last] = rest {
            to[whole] = pair(*last, 0.0);
        }
    }
}

vectorised! {
    /// Pairs the values at the same position in two rows.
    pub(crate) fn interleave(first: &[f32], second: &[f32], to: &mut [f32]) {
        for (to, (first, second)) in to.iter_mut().zip(first.iter().zip(second)) {
            *to = pair(*first, *second);
        }
    }
}

/// Pairs the first two of `lines`, in storage order, at `places`; a single line is paired with zeros.
pub(crate) fn interleave_lines(matrix: &Matrix, lines: Range<usize>, places: Range<usize>, to: &mut [f32]) {
    const ZEROS: [f32; 256] = [0.0; 256];
    let first = &matrix.from(lines.start, places.start)[..places.len()];
    if lines.len() > 1 {
        return interleave(first, &matrix.from(lines.start + 1, places.start)[..places.len()], to);
    }
    for (first, to) in first.chunks(ZEROS.len()).zip(to.chunks_mut(ZEROS.len())) {
        interleave(first, &ZEROS, to);
    }
}

/// Like [`Matrix::copy_panel`] for the rows `rows`, in pairs.
pub(crate) fn copy_panel(matrix: &Matrix, rows: Range<usize>, index: usize, width: usize, panel: &mut [f32]) {
    let start = index * width;
    let count = width.min(matrix.shape().1 - start);
    if count < width {
        panel.fill(0.0);
    }
    if !matrix.is_transposed() {
        for (word, to) in panel.chunks_exact_mut(width).enumerate() {
            interleave_lines(matrix, rows.start + 2 * word..rows.end, start..start + count, &mut to[..count]);
        }
        return;
    }
    let (blocks, whole) = (count / BLOCK * BLOCK, rows.len() / (2 * BLOCK) * BLOCK);
    let mut words = [0.0f32; BLOCK * BLOCK];
    for word in (0..whole).step_by(BLOCK) {
        for column in (0..blocks).step_by(BLOCK) {
            for (line, words) in words.chunks_exact_mut(BLOCK).enumerate() {
                pairs(&matrix.from(start + column + line, rows.start + 2 * word)[..2 * BLOCK], words);
            }
            transpose_block(&words, BLOCK, &mut panel[word * width + column..], width);
        }
    }
    // The remainder that does not fill a block.
    for column in 0..count {
        let line = &matrix.from(start + column, rows.start)[..rows.len()];
        let first = if column < blocks { whole } else { 0 };
        for (word, values) in line.chunks(2).enumerate().skip(first) {
            panel[word * width + column] = pair(values[0], values.get(1).copied().unwrap_or(0.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn values_are_rounded_to_the_nearest() {
        let mut values = crate::procedural::values("bf16", 1001, -3.0, 3.0, 1);
        values.extend([0.0, -0.0, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1.0 + 1.0 / 256.0, 1e-40]);
        values.push(f32::from_bits(0x7FFF_FFFF));
        let mut words = vec![0.0f32; values.len() / 2];
        pairs(&values, &mut words);
        let halves = words.iter().flat_map(|word| [word.to_bits() as u16, (word.to_bits() >> 16) as u16]);
        for (value, half) in values.iter().zip(halves) {
            let expected = bf16::from_f32(*value);
            let half = bf16::from_bits(half);
            assert!(half == expected || (half.is_nan() && value.is_nan()), "{value}: {half} {expected}");
        }
        let mut words = [0.0f32; 2];
        pairs(&values[..3], &mut words);
        assert_eq!(words[1].to_bits(), u32::from(bf16::from_f32(values[2]).to_bits()));
    }
}
