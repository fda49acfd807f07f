//! The innermost product: a tile of a few rows times a panel of packed columns, with the sums held in registers.
//!
//! The right side is packed into panels, each `inner` × `columns` values in reading order, zero-padded at the right
//! edge. The left side is read in place, row after row, one value broadcast at a time. Callers split the inner
//! dimension into blocks, so that a block's panel streams through the first-level cache while its rows stay in the
//! second.

#![allow(unsafe_code)]

use super::bf16;
use super::matrix::Matrix;
use super::precision::Precision;
use super::scratch::LINE;
use super::simd::{Level, Plain, Vector, compiled_for, has_bf16, level};
#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::float32x4_t;
use std::hint::black_box;
use std::ops::Range;

/// The product of a tile, compiled for one kind of machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel {
    level: Level,
    precision: Precision,
    /// Columns of a tile: the width of a panel.
    pub columns: usize,
    /// Rows of a large tile, which fills the registers with sums, and of a small one for the remainder.
    large: Tile,
    small: Tile,
}

#[derive(Clone, Copy, Debug)]
struct Tile {
    rows: usize,
    run: unsafe fn(Operands),
}

impl Tile {
    fn new(rows: usize, run: unsafe fn(Operands)) -> Self {
        Self { rows, run }
    }
}

/// The operands of a tile.
#[derive(Clone, Copy)]
struct Operands {
    inner: usize,
    a: *const f32,
    a_strides: (usize, usize),
    panel: *const f32,
    /// The values added to the sums: a row of two registers, and the distance to the next row's.
    start: *const f32,
    start_stride: usize,
    out: *mut f32,
    out_stride: usize,
}

/// The left side of a product: values, and the distances between rows and between inner positions, one of which is 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left<'a> {
    pub values: &'a [f32],
    pub row: usize,
    pub inner: usize,
}

/// What a product is added to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Base<'a> {
    Zero,
    /// The values in the output.
    Out,
    /// The same row for every row of the output.
    Bias(&'a [f32]),
}

/// Words along the inner dimension summed in one register. Longer sums are split into parts, which reduces the rounding
/// error.
const CHAIN: usize = 384;

/// How far ahead of its use a panel is prefetched, in words: the next panel's first words come while this one's last are used.
const AHEAD: usize = 1024;

/// Steps along the inner dimension in one turn of the loop.
const UNROLLED: usize = 4;

/// As wide as the widest panel.
static ZEROS: [f32; 32] = [0.0; 32];

impl Kernel {
    /// The kernel for this machine and operands in `precision`.
    pub fn new(precision: Precision) -> Self {
        // Without AVX-512's instruction for pairs, unpacking them with AVX2 is as fast.
        let level = if precision == Precision::Bf16 && !has_bf16() { level().min(Level::Avx2) } else { level() };
        Self::of(level, precision)
    }

    fn of(level: Level, precision: Precision) -> Self {
        let pairs = precision == Precision::Bf16;
        let (columns, large, small): (usize, Tile, Tile) = match level {
            // 24 of 32 registers hold sums.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 if pairs => (32, Tile::new(12, avx512_pairs::<12>), Tile::new(4, avx512_pairs::<4>)),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => (32, Tile::new(12, avx512::<12>), Tile::new(4, avx512::<4>)),
            // 12 of 16 registers hold sums.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 if pairs => (16, Tile::new(6, avx2::<6, true>), Tile::new(2, avx2::<2, true>)),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => (16, Tile::new(6, avx2::<6, false>), Tile::new(2, avx2::<2, false>)),
            // 24 of 32 registers hold sums.
            #[cfg(target_arch = "aarch64")]
            Level::Neon if pairs => {
                (8, Tile::new(12, multiply::<float32x4_t, 12, true>), Tile::new(4, multiply::<float32x4_t, 4, true>))
            }
            #[cfg(target_arch = "aarch64")]
            Level::Neon => {
                (8, Tile::new(12, multiply::<float32x4_t, 12, false>), Tile::new(4, multiply::<float32x4_t, 4, false>))
            }
            _ if pairs => (8, Tile::new(4, multiply::<Plain, 4, true>), Tile::new(2, multiply::<Plain, 2, true>)),
            _ => (8, Tile::new(4, multiply::<Plain, 4, false>), Tile::new(2, multiply::<Plain, 2, false>)),
        };
        Self { level, precision, columns, large, small }
    }

    /// The precision of its operands.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Words of an operand with `inner` values; pairs of bf16 share one.
    pub fn words(&self, inner: usize) -> usize {
        match self.precision {
            Precision::F32 | Precision::Tf32 => inner,
            Precision::Bf16 => inner.div_ceil(2),
        }
    }

    /// The instructions that it is compiled for.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Values per register.
    pub fn lanes(&self) -> usize {
        self.columns / 2
    }

    /// Rows of the fastest tile.
    pub fn large_rows(&self) -> usize {
        self.large.rows
    }

    /// `rows` rounded up to a number that [`multiply`](Self::multiply) accepts.
    pub fn round_rows(&self, rows: usize) -> usize {
        rows.next_multiple_of(self.small.rows)
    }

    /// `out` (`rows` × `columns`, rows `out_stride` apart) = `base` + `a` (`rows` × `inner`) · `panel` (`inner` × `columns`).
    /// `rows` must be a multiple of the small tile's.
    #[allow(clippy::too_many_arguments)] // the sizes and strides of three matrices
    pub fn multiply(
        &self,
        rows: usize,
        inner: usize,
        a: Left,
        panel: &[f32],
        base: Base,
        out: &mut [f32],
        out_stride: usize,
    ) {
        assert!(a.row == 1 || a.inner == 1);
        let mut row = 0;
        while row < rows {
            let tile = if rows - row >= self.large.rows { self.large } else { self.small };
            let (a_values, out) = (&a.values[row * a.row..], &mut out[row * out_stride..]);
            assert!(inner == 0 || a_values.len() > (tile.rows - 1) * a.row + (inner - 1) * a.inner);
            assert!(panel.len() >= inner * self.columns && out.len() >= (tile.rows - 1) * out_stride + self.columns);
            let (first, start_stride) = match base {
                Base::Zero => (ZEROS.as_ptr(), 0),
                Base::Out => (out.as_ptr(), out_stride),
                Base::Bias(values) => {
                    assert!(values.len() >= self.columns);
                    (values.as_ptr(), 0)
                }
            };
            let mut operands = Operands {
                inner: inner.min(CHAIN),
                a: a_values.as_ptr(),
                a_strides: (a.row, a.inner),
                panel: panel.as_ptr(),
                start: first,
                start_stride,
                out: out.as_mut_ptr(),
                out_stride,
            };
            // SAFETY: the lengths are checked above, and `new` has chosen functions for instructions that `level` found.
            unsafe { (tile.run)(operands) }
            let mut done = operands.inner;
            while done < inner {
                operands.a = operands.a.wrapping_add(operands.inner * a.inner);
                operands.panel = operands.panel.wrapping_add(operands.inner * self.columns);
                operands.inner = CHAIN.min(inner - done);
                (operands.start, operands.start_stride) = (operands.out.cast_const(), out_stride);
                // SAFETY: as above; the next words of both sides, of which `inner` are checked, added to the stored sums.
                unsafe { (tile.run)(operands) }
                done += operands.inner;
            }
            row += tile.rows;
        }
    }

    /// Packs panel `index` of the rows `rows` of `matrix`, in the kernel's precision; 0 to the right of the last
    /// column.
    pub fn pack(&self, matrix: &Matrix, rows: Range<usize>, index: usize, panel: &mut [f32]) {
        match self.precision {
            Precision::F32 | Precision::Tf32 => matrix.copy_panel(rows.start, index, self.columns, panel),
            Precision::Bf16 => bf16::copy_panel(matrix, rows, index, self.columns, panel),
        }
    }
}

compiled_for! {
    "avx512f,avx2,fma": fn avx512<const ROWS: usize>(operands: Operands) = multiply::<__m512, ROWS, false>
}
compiled_for! {
    "avx512f,avx512bf16,avx2,fma": fn avx512_pairs<const ROWS: usize>(operands: Operands) = multiply::<__m512, ROWS, true>
}
compiled_for! {
    "avx2,fma": fn avx2<const ROWS: usize, const PAIRS: bool>(operands: Operands) = multiply::<__m256, ROWS, PAIRS>
}

/// With `PAIRS`, a word on either side is two bf16 values.
///
/// # Safety
/// `a` holds `ROWS` rows of `inner` words at its strides, one of which is 1; `panel` holds `inner` rows of two registers;
/// `start` and `out` hold `ROWS` rows of two registers at their strides.
#[inline(always)]
unsafe fn multiply<V: Vector, const ROWS: usize, const PAIRS: bool>(operands: Operands) {
    let Operands { inner, a, a_strides, panel, start, start_stride, out, out_stride } = operands;
    // SAFETY: every access is in the ranges that the caller guarantees: row i < ROWS, k < inner. Pointers step with
    // `wrapping_add`, which unlike `add` costs no check in a debug build; they end at most one step past the end.
    unsafe {
        // The output's lines arrive while the sums grow.
        let mut row = out.cast_const();
        for _ in 0..ROWS {
            V::prefetch(row);
            V::prefetch(row.wrapping_add(V::LANES)); // nothing new where both share a line
            V::prefetch(row.wrapping_add(2 * V::LANES - 1));
            row = row.wrapping_add(out_stride);
        }
        let mut sums = [[V::splat(0.0); 2]; ROWS];
        let (mut a, mut b) = (a, panel);
        // An address that takes an instruction of its own makes multiplications wait, so every load adds a constant or one
        // index to a start. The compiler would compute the rows' starts from each other if it saw through them.
        let mut at = [a; ROWS];
        if a_strides.0 == 1 {
            for _ in 0..inner {
                for (row, at) in at.iter_mut().enumerate() {
                    *at = a.wrapping_add(row);
                }
                step::<V, ROWS, PAIRS>(&mut sums, &at, b);
                a = a.wrapping_add(a_strides.1);
                b = b.wrapping_add(2 * V::LANES);
            }
        } else {
            for (row, at) in at.iter_mut().enumerate() {
                *at = black_box(a.wrapping_add(row.wrapping_mul(a_strides.0)));
            }
            for steps in [UNROLLED, 1] {
                let turns = if steps == 1 { inner % UNROLLED } else { inner / UNROLLED };
                for _ in 0..turns {
                    for _ in 0..steps {
                        step::<V, ROWS, PAIRS>(&mut sums, &at, b);
                        at.iter_mut().for_each(|at| *at = at.wrapping_add(1));
                        b = b.wrapping_add(2 * V::LANES);
                    }
                }
            }
        }
        let (mut start, mut out) = (start, out);
        for sum in sums {
            sum[0].add(V::load(start)).store(out);
            sum[1].add(V::load(start.wrapping_add(V::LANES))).store(out.wrapping_add(V::LANES));
            start = start.wrapping_add(start_stride);
            out = out.wrapping_add(out_stride);
        }
    }
}

/// One step along the inner dimension: adds the products of the values at `at`, one for each row, and the two registers at
/// `b`.
///
/// # Safety
/// As for [`multiply`].
#[inline(always)]
unsafe fn step<V: Vector, const ROWS: usize, const PAIRS: bool>(
    sums: &mut [[V; 2]; ROWS],
    at: &[*const f32; ROWS],
    b: *const f32,
) {
    // SAFETY: the caller's.
    unsafe {
        let (left, right) = (V::load(b), V::load(b.wrapping_add(V::LANES)));
        V::prefetch(b.wrapping_add(AHEAD));
        if V::LANES == LINE {
            V::prefetch(b.wrapping_add(AHEAD + LINE));
        }
        for (sum, at) in sums.iter_mut().zip(at) {
            let value = V::broadcast(*at);
            *sum = match PAIRS {
                false => [value.mul_add(left, sum[0]), value.mul_add(right, sum[1])],
                true => [value.mul_add_pairs(left, sum[0]), value.mul_add_pairs(right, sum[1])],
            };
        }
    }
}

/// How many of `count` rows a task takes: whole blocks of `block`, at most `most` (but at least one block), so that the
/// last thread finishes soonest.
pub(crate) fn balanced(count: usize, block: usize, most: usize) -> usize {
    let (blocks, threads) = (count.div_ceil(block).max(1), rayon::current_num_threads());
    let most = (most / block).max(1);
    let time = |per_task: usize| blocks.div_ceil(per_task).div_ceil(threads) * per_task;
    // Of equal ones the larger, because it reuses the weights more.
    (most.div_ceil(2)..=most).rev().min_by_key(|&per_task| time(per_task)).unwrap_or(1) * block
}

#[cfg(test)]
mod bounds;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_of_this_machine_multiplies() {
        let neon = if cfg!(target_arch = "aarch64") { Level::Neon } else { Level::Plain };
        let levels = [Level::Plain, neon, Level::Avx2, Level::Avx512].into_iter().filter(|l| *l <= level());
        for kernel in levels.clone().map(|l| Kernel::of(l, Precision::F32)) {
            check(&kernel);
        }
        for kernel in levels.filter(|l| *l < Level::Avx512 || has_bf16()).map(|l| Kernel::of(l, Precision::Bf16)) {
            check(&kernel);
        }
    }

    fn check(kernel: &Kernel) {
        let (rows, columns) = (kernel.large.rows + 2 * kernel.small.rows, kernel.columns);
        for inner in [1, 7, 64] {
            let words = kernel.words(inner);
            let stride = words + 3;
            let bf16 = kernel.precision() == Precision::Bf16;
            let rounded = |x: f32| if bf16 { half::bf16::from_f32(x).to_f32() } else { x };
            let values = crate::procedural::values("a", rows * inner, -1.0, 1.0, 1);
            let b = crate::procedural::values("b", inner * (columns + 5), -1.0, 1.0, 2);
            let mut a = vec![0.0; rows * stride];
            for (from, to) in values.chunks(inner).zip(a.chunks_mut(stride)) {
                match bf16 {
                    true => bf16::pairs(from, to),
                    false => to[..inner].copy_from_slice(from),
                }
            }
            let at = |k: usize, j: usize| b[k * (columns + 5) + j];
            for panel in 0..2 {
                let (mut packed, mut out) = (vec![0.0; words * columns], vec![f32::NAN; rows * columns]);
                kernel.pack(&Matrix::new(&b, inner, columns + 5), 0..inner, panel, &mut packed);
                let a = Left { values: &a, row: stride, inner: 1 };
                kernel.multiply(rows, words, a, &packed, Base::Zero, &mut out, columns);
                for (place, value) in out.iter().enumerate() {
                    let (row, column) = (place / columns, panel * columns + place % columns);
                    let expected: f32 = match column < columns + 5 {
                        true => (0..inner).map(|k| rounded(values[row * inner + k]) * rounded(at(k, column))).sum(),
                        false => 0.0,
                    };
                    assert!((value - expected).abs() < 1e-5, "{kernel:?} {row} {column}: {value} {expected}");
                }
            }
        }
    }
}
