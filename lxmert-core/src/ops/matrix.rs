//! Matrices in slices, row-major with a leading dimension; a transpose is a view.

#![allow(unsafe_code)]

use super::simd::vectorised;
use super::transpose::{BLOCK, transpose_block};
use gemm::Parallelism;
use rayon::prelude::*;

/// A row-major matrix in a slice, or the transpose of one.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    pub(super) data: &'a [f32],
    /// Rows and columns as stored, before any transpose.
    rows: usize,
    columns: usize,
    pub(super) leading: usize,
    pub(super) transposed: bool,
}

impl<'a> Matrix<'a> {
    /// `rows` × `columns` values, row after row.
    ///
    /// # Panics
    /// Panics if the slice is too short, as indexing would.
    pub fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// Rows that are `leading` elements apart.
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
    /// Whether columns are contiguous instead of rows.
    pub(super) fn is_transposed(&self) -> bool {
        self.transposed
    }

    /// Distance between the starts of contiguous lines.
    pub(super) fn leading(&self) -> usize {
        self.leading
    }

    /// The values from line `line`, position `place` on; lines as stored.
    pub(super) fn from(&self, line: usize, place: usize) -> &'a [f32] {
        &self.data[line * self.leading + place..]
    }

    /// Panel `index` of `width` columns, from row `first` until it is full; 0 to the right of the last column.
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
        // The remainder that does not fill a block.
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
    /// Copies the first `count` values of rows that are `leading` apart to rows of length `width`.
    fn copy_rows(to: &mut [f32], width: usize, from: &[f32], leading: usize, count: usize) {
        for (row, to) in to.chunks_exact_mut(width).enumerate() {
            let from = &from[row * leading..][..count];
            match (to.as_mut_array::<32>(), from.as_array::<32>()) {
                // A full row of the widest panel is a few registers; a call would cost more than the copy.
                (Some(to), Some(from)) => *to = *from,
                _ => to[..count].copy_from_slice(from),
            }
        }
    }
}

/// A row-major matrix to write to.
#[derive(Debug)]
pub struct MatrixMut<'a> {
    pub(super) data: &'a mut [f32],
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) leading: usize,
}

impl<'a> MatrixMut<'a> {
    /// `rows` × `columns` values, row after row.
    ///
    /// # Panics
    /// When the slice is too short, as indexing would.
    pub fn new(data: &'a mut [f32], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// Rows that are `leading` elements apart; the values between them stay unchanged.
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

/// How to treat the values already in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Overwrite them (they are never read).
    Replace,
    /// Add the product to them.
    Add,
}

/// How many threads a product may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// Only the calling thread: for products inside a parallel loop.
    One,
    /// The current rayon pool.
    Pool,
}

impl Threads {
    /// Calls `task` with each chunk of `len` values (the last may be shorter) and its number.
    pub(super) fn for_chunks(self, values: &mut [f32], len: usize, task: impl Fn(usize, &mut [f32]) + Sync) {
        let states = &mut vec![(); values.len().div_ceil(len)];
        self.for_chunks_with(values, len, states, |index, chunk, ()| task(index, chunk));
    }

    /// Like [`for_chunks`](Self::for_chunks), with a state for each chunk.
    pub(super) fn for_chunks_with<S: Send>(
        self,
        values: &mut [f32],
        len: usize,
        states: &mut [S],
        task: impl Fn(usize, &mut [f32], &mut S) + Sync,
    ) {
        if self == Self::Pool && rayon::current_num_threads() > 1 {
            let chunks = values.par_chunks_mut(len).zip(states).enumerate();
            chunks.for_each(|(index, (chunk, state))| task(index, chunk, state));
        } else {
            let chunks = values.chunks_mut(len).zip(states).enumerate();
            chunks.for_each(|(index, (chunk, state))| task(index, chunk, state));
        }
    }
}

/// `out = [out +] a · b` by the `gemm` crate; the shapes must match.
pub(super) fn gemm_crate(out: MatrixMut, add: bool, a: Matrix, b: Matrix, threads: Threads) {
    let ((rows, inner), (_, columns)) = (a.shape(), b.shape());
    assert!(inner == b.shape().0 && (rows, columns) == (out.rows, out.columns));
    let parallelism = match threads {
        Threads::Pool if rayon::current_num_threads() > 1 => Parallelism::Rayon(rayon::current_num_threads()),
        _ => Parallelism::None,
    };
    let ((a_rows, a_columns), (b_rows, b_columns)) = (a.strides(), b.strides());
    // SAFETY: `Matrix` and `MatrixMut` hold slices that extend to the last element of the last row (checked by `check`
    // when they were made), the shapes agree (asserted above), the strides are those of the slices, and the output is
    // borrowed mutably, so it overlaps neither input.
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
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}
