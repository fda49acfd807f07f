//! Strided f32 matrix products on slices. Large ones go through this crate's own microkernel (`product.rs`), which
//! packs both sides; small ones through the `gemm` crate, which candle multiplies with too.
//!
//! faer's product is as fast, but in 0.24.4 `MatMut::from_row_major_slice_with_stride_mut` mistakes the row stride for the
//! column stride, and a product written through it corrupts the heap; the microkernel here also serves convolutions.
//!
//! Matrices are row-major slices with a leading dimension; a transpose is a view.
//!
//! ```
//! use lxmert_core::ops::{Matrix, MatrixMut, Threads, Write, gemm};
//! let a = [1.0, 2.0, 3.0, 4.0]; // [2, 2]
//! let mut out = [0.0; 4];
//! gemm(MatrixMut::new(&mut out, 2, 2), Write::Replace, 1.0, Matrix::new(&a, 2, 2), Matrix::new(&a, 2, 2).t(), Threads::One);
//! assert_eq!(out, [5.0, 11.0, 11.0, 25.0]);
//! ```

#![allow(unsafe_code)]

use super::bf16::Precision;
use super::epilogue::Epilogue;
use super::microkernel::Base;
use super::product;
use super::simd::vectorised;
use super::transpose::{BLOCK, transpose_block};
use gemm::Parallelism;

/// A row-major matrix in a slice, or the transpose of one.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    data: &'a [f32],
    /// Rows and columns as stored, before a transpose.
    rows: usize,
    columns: usize,
    leading: usize,
    transposed: bool,
}

impl<'a> Matrix<'a> {
    /// `rows` × `columns` values, row after row.
    ///
    /// # Panics
    /// When the slice is too short, as indexing would.
    pub fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// Rows that begin `leading` elements apart.
    ///
    /// # Panics
    /// When the slice is too short or the rows overlap.
    pub fn strided(data: &'a [f32], rows: usize, columns: usize, leading: usize) -> Self {
        check(data.len(), rows, columns, leading);
        Self { data, rows, columns, leading, transposed: false }
    }

    /// The transpose, as a view.
    #[must_use]
    pub fn t(mut self) -> Self {
        self.transposed = !self.transposed;
        self
    }

    /// Rows and columns as seen from outside.
    pub fn shape(&self) -> (usize, usize) {
        if self.transposed { (self.columns, self.rows) } else { (self.rows, self.columns) }
    }

    /// Distance in elements from one row to the next, and from one column to the next, as seen from outside.
    fn strides(&self) -> (isize, isize) {
        // A slice is at most isize::MAX bytes long, and the leading dimension at most the slice's length.
        let leading = self.leading as isize;
        if self.transposed { (1, leading) } else { (leading, 1) }
    }
}

/// Copies for [`product`](super::product).
impl<'a> Matrix<'a> {
    /// Whether columns, and not rows, are contiguous.
    pub(super) fn is_transposed(&self) -> bool {
        self.transposed
    }

    /// How far apart the contiguous lines begin.
    pub(super) fn leading(&self) -> usize {
        self.leading
    }

    /// The values from line `line` and place `place` in it on, lines as stored.
    pub(super) fn from(&self, line: usize, place: usize) -> &'a [f32] {
        &self.data[line * self.leading + place..]
    }

    /// Panel `index` of `width` columns, rows `first` and on until it is full; 0 right of the last column.
    pub(super) fn copy_panel(&self, first: usize, index: usize, width: usize, panel: &mut [f32]) {
        let start = index * width;
        let count = width.min(self.shape().1 - start);
        if count < width {
            panel.fill(0.0);
        }
        if !self.transposed {
            copy_rows(panel, width, &self.data[first * self.leading + start..], self.leading, count);
            return;
        }
        let depth = panel.len() / width;
        let (blocks, whole) = (count / BLOCK * BLOCK, depth / BLOCK * BLOCK);
        for row in (0..whole).step_by(BLOCK) {
            for column in (0..blocks).step_by(BLOCK) {
                let from = &self.data[(start + column) * self.leading + first + row..];
                transpose_block(from, self.leading, &mut panel[row * width + column..], width);
            }
        }
        // The remainder, which fills no block.
        for column in 0..count {
            let rows = if column < blocks { whole..depth } else { 0..depth };
            let from = &self.data[(start + column) * self.leading + first..][..depth];
            for row in rows {
                panel[row * width + column] = from[row];
            }
        }
    }
}

vectorised! {
    /// The first `count` values of rows that begin `leading` apart to rows of `width`.
    fn copy_rows(to: &mut [f32], width: usize, from: &[f32], leading: usize, count: usize) {
        for (row, to) in to.chunks_exact_mut(width).enumerate() {
            let from = &from[row * leading..][..count];
            match (to.as_mut_array::<32>(), from.as_array::<32>()) {
                // A full row of the widest panel: a few registers, where a call would cost more than the copy.
                (Some(to), Some(from)) => *to = *from,
                _ => to[..count].copy_from_slice(from),
            }
        }
    }
}

/// A row-major matrix to write to.
#[derive(Debug)]
pub struct MatrixMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    columns: usize,
    leading: usize,
}

impl<'a> MatrixMut<'a> {
    /// `rows` × `columns` values, row after row.
    ///
    /// # Panics
    /// When the slice is too short, as indexing would.
    pub fn new(data: &'a mut [f32], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// Rows that begin `leading` elements apart; what lies between them is left alone.
    ///
    /// # Panics
    /// When the slice is too short or the rows overlap.
    pub fn strided(data: &'a mut [f32], rows: usize, columns: usize, leading: usize) -> Self {
        check(data.len(), rows, columns, leading);
        Self { data, rows, columns, leading }
    }
}

fn check(len: usize, rows: usize, columns: usize, leading: usize) {
    assert!(leading >= columns, "rows of {columns} columns overlap when they begin {leading} apart");
    let needed = if rows == 0 || columns == 0 { 0 } else { (rows - 1) * leading + columns };
    assert!(len >= needed, "a {rows} × {columns} matrix with rows {leading} apart needs {needed} values, not {len}");
}

/// What happens to the values already in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// They are overwritten (and never read).
    Replace,
    /// The product is added to them.
    Add,
}

/// How many threads a product may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread alone: for products inside a loop that is parallel already.
    One,
    /// The current rayon pool.
    Pool,
}

/// `out = [out +] alpha · a · b`. The result is the same from run to run for a given number of threads, and for any number where
/// the product is large enough for this crate's own kernel.
///
/// # Panics
/// When the shapes do not fit each other: the callers are kernels, which have checked their tensors.
pub fn gemm(out: MatrixMut, write: Write, alpha: f32, a: Matrix, b: Matrix, threads: Threads) {
    gemm_with(out, write, alpha, a, b, Precision::F32, threads);
}

/// As [`gemm`], both sides rounded to `precision` where that is faster: not in products so small or with so few rows that
/// they are not packed.
pub(crate) fn gemm_with(
    out: MatrixMut,
    write: Write,
    alpha: f32,
    a: Matrix,
    b: Matrix,
    precision: Precision,
    threads: Threads,
) {
    let (rows, inner) = a.shape();
    let (inner_b, columns) = b.shape();
    assert!(
        inner == inner_b && (rows, columns) == (out.rows, out.columns),
        "[{rows}, {inner}] · [{inner_b}, {columns}] does not give [{}, {}]",
        out.rows,
        out.columns
    );
    if rows == 0 || columns == 0 {
        return;
    }
    if inner == 0 {
        if write == Write::Replace {
            out.data.chunks_mut(out.leading).take(rows).for_each(|row| row[..columns].fill(0.0));
        }
        return;
    }
    let base = if write == Write::Add { Base::Out } else { Base::Zero };
    product::multiply(out.data, out.leading, base, alpha, a, b, Epilogue::Nothing, precision, threads);
}

/// `out = [out +] alpha · a · b` by the `gemm` crate; the shapes fit each other.
pub(super) fn gemm_crate(out: MatrixMut, add: bool, alpha: f32, a: Matrix, b: Matrix, threads: Threads) {
    let ((rows, inner), (_, columns)) = (a.shape(), b.shape());
    assert!(inner == b.shape().0 && (rows, columns) == (out.rows, out.columns));
    let parallelism = match threads {
        Threads::Pool if rayon::current_num_threads() > 1 => Parallelism::Rayon(rayon::current_num_threads()),
        _ => Parallelism::None,
    };
    let ((a_rows, a_columns), (b_rows, b_columns)) = (a.strides(), b.strides());
    // SAFETY: `Matrix` and `MatrixMut` hold slices that reach to the last element of the last row (checked by
    // `check` when they were made), the shapes agree (asserted above), the strides are those of the slices, and
    // the output is borrowed mutably, so it overlaps neither input.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            out.data.as_mut_ptr(),
            1,
            out.leading as isize,
            add,
            a.data.as_ptr(),
            a_columns,
            a_rows,
            b.data.as_ptr(),
            b_columns,
            b_rows,
            1.0,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The product and the sums of its terms' magnitudes, to which rounding is relative.
    fn naive(a: Matrix, b: Matrix) -> Vec<(f64, f64)> {
        let at = |m: &Matrix, r: usize, c: usize| {
            f64::from(if m.transposed { m.data[c * m.leading + r] } else { m.data[r * m.leading + c] })
        };
        let ((rows, inner), (_, columns)) = (a.shape(), b.shape());
        let terms = |i: usize| (0..inner).map(move |k| at(&a, i / columns, k) * at(&b, k, i % columns));
        (0..rows * columns).map(|i| (terms(i).sum(), terms(i).map(f64::abs).sum())).collect()
    }

    #[test]
    fn products_of_all_transposes_and_strides_match_the_definition() {
        let values: Vec<f32> = crate::procedural::values("gemm", 720 * 720, -1.0, 1.0, 1);
        for (rows, inner, columns) in [
            (1, 1, 1),
            (3, 5, 7),
            (17, 33, 9),
            (64, 48, 65),
            (70, 1, 3),
            (1, 70, 70),
            (50, 700, 40),
            (211, 33, 90),
            (11, 530, 70),
            (37, 64, 200),
            (150, 160, 64),
        ] {
            for threads in [Threads::One, Threads::Pool] {
                for (ta, tb) in [(false, false), (true, false), (false, true), (true, true)] {
                    let leading = 720;
                    let view = |transposed: bool, rows, columns| {
                        if transposed {
                            Matrix::strided(&values, columns, rows, leading).t()
                        } else {
                            Matrix::strided(&values, rows, columns, leading)
                        }
                    };
                    let (a, b) = (view(ta, rows, inner), view(tb, inner, columns));
                    let expected = naive(a, b);
                    let mut out = vec![2.0; rows * (columns + 3)];
                    gemm(MatrixMut::strided(&mut out, rows, columns, columns + 3), Write::Add, 0.5, a, b, threads);
                    for (i, row) in out.chunks(columns + 3).enumerate() {
                        for (j, &value) in row.iter().enumerate() {
                            let (sum, size) = if j < columns { expected[i * columns + j] } else { (0.0, 0.0) };
                            let error = (f64::from(value) - 2.0 - 0.5 * sum).abs();
                            assert!(
                                error < (1e-6 * (1.0 + size)).min(1e-4),
                                "{rows} {inner} {columns} at {i} {j}: {error:e}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn an_empty_inner_dimension_gives_zeros() {
        let mut out = [f32::NAN; 6];
        gemm(
            MatrixMut::new(&mut out, 2, 3),
            Write::Replace,
            1.0,
            Matrix::new(&[], 2, 0),
            Matrix::new(&[], 0, 3),
            Threads::One,
        );
        assert_eq!(out, [0.0; 6]);
    }

    #[test]
    fn replace_does_not_read_what_was_there() {
        let mut out = [f32::NAN; 1];
        gemm(
            MatrixMut::new(&mut out, 1, 1),
            Write::Replace,
            1.0,
            Matrix::new(&[3.0], 1, 1),
            Matrix::new(&[2.0], 1, 1),
            Threads::One,
        );
        assert_eq!(out, [6.0]);
    }
}
