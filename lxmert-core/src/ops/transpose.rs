//! Transposes square blocks in registers, to pack weights whose rows become a panel's columns.

#![allow(unsafe_code)]

#[cfg(any(test, target_arch = "x86_64"))]
use super::simd::Vector;
#[cfg(target_arch = "x86_64")]
use super::simd::{Level, level};

/// Rows and columns of a block.
pub(crate) const BLOCK: usize = 16;

/// Writes the transpose of the block at `from`, with rows `from_stride` apart, to rows of `to` that are `to_stride`
/// apart.
pub(crate) fn transpose_block(from: &[f32], from_stride: usize, to: &mut [f32], to_stride: usize) {
    assert!(from.len() >= (BLOCK - 1) * from_stride + BLOCK && to.len() >= (BLOCK - 1) * to_stride + BLOCK);
    #[cfg(target_arch = "x86_64")]
    if level() == Level::Avx512 {
        // SAFETY: `level` has found the instructions, and by the assertion both blocks are within their slices.
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
    // SAFETY: passed on to the caller.
    let rows: [__m512; BLOCK] = unsafe { load(from, from_stride) };
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
        // SAFETY: passed on to the caller.
        unsafe { store_every_fourth(columns, j, to, to_stride) };
    }
}

/// # Safety
/// `from` holds 16 rows of 16 values, a register's, at its stride.
#[inline(always)]
#[cfg(any(test, target_arch = "x86_64"))]
unsafe fn load<V: Vector>(from: *const f32, stride: usize) -> [V; BLOCK] {
    // SAFETY: row i < 16 of those that the caller guarantees.
    std::array::from_fn(|i| unsafe { V::load(from.wrapping_add(i * stride)) })
}

/// Writes rows `first`, `first + 4`, …
///
/// # Safety
/// `to` holds 16 rows of 16 values at its stride, and `first < 4`.
#[inline(always)]
#[cfg(any(test, target_arch = "x86_64"))]
unsafe fn store_every_fourth<V: Vector>(rows: [V; 4], first: usize, to: *mut f32, stride: usize) {
    for (quarter, row) in rows.into_iter().enumerate() {
        // SAFETY: row 4 · quarter + first < 16 of those that the caller guarantees.
        unsafe { row.store(to.wrapping_add((4 * quarter + first) * stride)) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::checked::{Checked, assert_every_value_is_needed};
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

    /// Without the transpose in between, so that every row comes back unchanged.
    #[test]
    fn rows_are_read_and_written_within_their_slices() {
        let copy = |from: &[f32], to: &mut [f32], stride: usize, to_stride: usize| {
            // SAFETY: every address is checked.
            let rows: [Checked<BLOCK>; BLOCK] = unsafe { load(from.as_ptr(), stride) };
            for j in 0..4 {
                let rows = std::array::from_fn(|quarter| rows[4 * quarter + j]);
                // SAFETY: as above.
                unsafe { store_every_fourth(rows, j, to.as_mut_ptr(), to_stride) };
            }
        };
        for (stride, to_stride) in [(BLOCK, BLOCK), (BLOCK + 1, BLOCK + 3), (100, 32)] {
            let from = crate::procedural::values("block", (BLOCK - 1) * stride + BLOCK, -1.0, 1.0, 1);
            let mut to = vec![0.0; (BLOCK - 1) * to_stride + BLOCK];
            let operands = [&from, &to].map(|operand| operand.as_ptr_range());
            assert_every_value_is_needed(&operands, 1, || copy(&from, &mut to, stride, to_stride));
            for (row, copied) in from.chunks(stride).zip(to.chunks(to_stride)) {
                assert_eq!(row[..BLOCK], copied[..BLOCK]);
            }
        }
    }
}
