//! Transposes of square blocks in registers, for packing weights whose rows become a panel's columns.

#![allow(unsafe_code)]

use super::simd::{Level, level};

/// Rows and columns of a block.
pub(crate) const BLOCK: usize = 16;

/// Writes the transpose of the block at `from`, whose rows begin `from_stride` apart, to rows of `to` that begin `to_stride`
/// apart.
pub(crate) fn transpose_block(from: &[f32], from_stride: usize, to: &mut [f32], to_stride: usize) {
    assert!(from.len() >= (BLOCK - 1) * from_stride + BLOCK && to.len() >= (BLOCK - 1) * to_stride + BLOCK);
    #[cfg(target_arch = "x86_64")]
    if level() == Level::Avx512 {
        // SAFETY: `level` has found the instructions, and both blocks lie within their slices by the assertion.
        return unsafe { avx512(from.as_ptr(), from_stride, to.as_mut_ptr(), to_stride) };
    }
    for i in 0..BLOCK {
        for j in 0..BLOCK {
            to[j * to_stride + i] = from[i * from_stride + j];
        }
    }
}

/// # Safety
/// `from` and `to` hold 16 rows of 16 values at their strides.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
unsafe fn avx512(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
    use std::arch::x86_64::*;
    let mut rows = [_mm512_setzero_ps(); BLOCK];
    for (i, row) in rows.iter_mut().enumerate() {
        // SAFETY: row i of the 16 that the caller vouches for.
        *row = unsafe { _mm512_maskz_loadu_ps(0xFFFF, from.wrapping_add(i * from_stride)) };
    }
    // Quarter q of register 4g + j: rows 4g to 4g + 3 of column 4q + j.
    let mut quads = [_mm512_setzero_ps(); BLOCK];
    for (four, quads) in rows.chunks_exact(4).zip(quads.chunks_exact_mut(4)) {
        let (low, high) = (_mm512_unpacklo_ps(four[0], four[1]), _mm512_unpackhi_ps(four[0], four[1]));
        let (low2, high2) = (_mm512_unpacklo_ps(four[2], four[3]), _mm512_unpackhi_ps(four[2], four[3]));
        let pairs = [low, low2, high, high2].map(|r| _mm512_castps_pd(r));
        quads[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(pairs[0], pairs[1]));
        quads[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pairs[0], pairs[1]));
        quads[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(pairs[2], pairs[3]));
        quads[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(pairs[2], pairs[3]));
    }
    for j in 0..4 {
        let (even, odd) = (
            _mm512_shuffle_f32x4::<0x88>(quads[j], quads[4 + j]),
            _mm512_shuffle_f32x4::<0xDD>(quads[j], quads[4 + j]),
        );
        let (even2, odd2) = (
            _mm512_shuffle_f32x4::<0x88>(quads[8 + j], quads[12 + j]),
            _mm512_shuffle_f32x4::<0xDD>(quads[8 + j], quads[12 + j]),
        );
        let columns = [
            _mm512_shuffle_f32x4::<0x88>(even, even2),
            _mm512_shuffle_f32x4::<0x88>(odd, odd2),
            _mm512_shuffle_f32x4::<0xDD>(even, even2),
            _mm512_shuffle_f32x4::<0xDD>(odd, odd2),
        ];
        for (quarter, column) in columns.into_iter().enumerate() {
            // SAFETY: row 4 · quarter + j < 16 of `to`.
            unsafe { _mm512_storeu_ps(to.wrapping_add((4 * quarter + j) * to_stride), column) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns() {
        let from = crate::procedural::values("block", BLOCK * 21, -1.0, 1.0, 1);
        let mut to = vec![0.0; BLOCK * 33];
        transpose_block(&from, 21, &mut to[1..], 32);
        for (i, j) in (0..BLOCK).flat_map(|i| (0..BLOCK).map(move |j| (i, j))) {
            assert_eq!(to[1 + j * 32 + i], from[i * 21 + j]);
        }
    }
}
