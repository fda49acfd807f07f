//! Strided f32 matrix products on slices. Large ones use the microkernel: the right side is packed into panels, one
//! block of the inner dimension at a time; the left side is read in place where possible, task by task; each task is a
//! run of output rows. Small ones use the `gemm` crate, which candle uses too.
//!
//! faer's product is as fast, but in 0.24.4 `MatMut::from_row_major_slice_with_stride_mut` confuses the row stride with
//! the column stride, and a product written through it corrupts the heap; the microkernel here also serves
//! convolutions.

use super::bf16;
use super::epilogue::Epilogue;
use super::matrix::{Matrix, MatrixMut, Threads, Write, gemm_crate};
use super::microkernel::{Base, Kernel, Left, balanced};
use super::precision::Precision;
use super::scratch::{Aligned, with_scratch};
use super::transpose::{BLOCK, transpose_block};

/// Inner dimension of a block, in words: a task's rows of it stay in the second-level cache.
const INNER: usize = 768;
/// Up to this number of rows a product with prepacked weights is skinny: its tasks are panels and not rows.
const SKINNY_ROWS: usize = 72;
/// Columns to which an epilogue is applied at a time: enough to pay for starting on each row, few enough for the rows of a task
/// to stay in the second-level cache. A multiple of every kernel's.
pub(super) const FINISHED_TOGETHER: usize = 128;
/// Maximum rows of a task.
pub(super) const MOST_ROWS: usize = 144;

/// `out = [out +] a · b`. For a given number of threads, every run gives the same result; for products large enough for
/// this crate's own kernel, any number of threads does.
///
/// # Panics
/// When the shapes do not fit each other: the callers are kernels, which have checked their tensors.
///
/// ```
/// use lxmert_core::ops::{Matrix, MatrixMut, Threads, Write, gemm};
/// let a = [1.0, 2.0, 3.0, 4.0]; // [2, 2]
/// let mut out = [0.0; 4];
/// gemm(MatrixMut::new(&mut out, 2, 2), Write::Replace, Matrix::new(&a, 2, 2), Matrix::new(&a, 2, 2).t(), Threads::One);
/// assert_eq!(out, [5.0, 11.0, 11.0, 25.0]);
/// ```
pub fn gemm(out: MatrixMut, write: Write, a: Matrix, b: Matrix, threads: Threads) {
    let ((rows, inner), (inner_b, columns)) = (a.shape(), b.shape());
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
    let out = Output { values: out.data, leading: out.leading, base, epilogue: Epilogue::Nothing };
    multiply(out, a, b, Precision::F32, threads);
}

/// The output of a product: `epilogue(base + a · b)`, in rows of `values` that are `leading` apart.
pub(crate) struct Output<'a> {
    pub values: &'a mut [f32],
    pub leading: usize,
    pub base: Base<'a>,
    pub epilogue: Epilogue<'a>,
}

impl Output<'_> {
    /// The output without the values after its last row.
    fn trimmed(self, rows: usize, columns: usize) -> Self {
        Self { values: &mut self.values[..(rows - 1) * self.leading + columns], ..self }
    }
}

/// Whether packing pays off: every packed value must be used often enough.
pub(super) fn applies(a: &Matrix, b: &Matrix) -> bool {
    let ((rows, inner), (_, columns)) = (a.shape(), b.shape());
    rows >= 8 && columns >= 32 && inner >= 32
}

/// A product's right side.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Right<'a> {
    /// Rounded to this precision on the way into its panels.
    Matrix(Matrix<'a>, Precision),
    Prepacked(&'a Prepacked),
}

/// A right side that was prepacked for a kernel.
#[derive(Debug)]
pub(crate) struct Prepacked {
    kernel: Kernel,
    /// The panels of each block of the inner dimension.
    values: Aligned,
    inner: usize,
    columns: usize,
}

impl Prepacked {
    pub fn new(matrix: Matrix, kernel: Kernel) -> Self {
        let (inner, columns) = matrix.shape();
        let mut values = Aligned::zeros(columns.div_ceil(kernel.columns) * kernel.columns * kernel.words(inner));
        let mut rest = &mut *values;
        for (first, depth) in blocks(&kernel, inner) {
            let (block, after) = rest.split_at_mut(columns.div_ceil(kernel.columns) * panel_len(&kernel, depth));
            pack(&kernel, &matrix, first, depth, block, true);
            rest = after;
        }
        Self { kernel, values, inner, columns }
    }

    /// The kernel that it was prepacked for.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Inner dimension and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.inner, self.columns)
    }
}

/// Inner dimension of the blocks: as equal as possible, without splitting a pair.
fn step(kernel: &Kernel, inner: usize) -> usize {
    let words = kernel.words(inner);
    words.div_ceil(words.div_ceil(INNER)) * if kernel.precision() == Precision::Bf16 { 2 } else { 1 }
}

/// Start and length of each block.
fn blocks(kernel: &Kernel, inner: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
    let step = step(kernel, inner);
    (0..inner).step_by(step).map(move |first| (first, step.min(inner - first)))
}

fn panel_len(kernel: &Kernel, depth: usize) -> usize {
    kernel.words(depth) * kernel.columns
}

/// The panels of a block of the inner dimension.
fn pack(kernel: &Kernel, b: &Matrix, first: usize, depth: usize, packed: &mut [f32], parallel: bool) {
    let threads = if parallel { Threads::Pool } else { Threads::One };
    threads.for_chunks(packed, panel_len(kernel, depth), |index, panel| {
        kernel.pack(b, first..first + depth, index, panel);
    });
}

/// The product of non-empty matrices with matching shapes, both rounded to `precision`. A small product is
/// limited by memory, so it uses the values unrounded.
pub(crate) fn multiply(out: Output, a: Matrix, b: Matrix, precision: Precision, threads: Threads) {
    let out = out.trimmed(a.shape().0, b.shape().1);
    if applies(&a, &b) {
        multiply_right(out, a, Right::Matrix(b, precision), threads);
    } else {
        small(out, a, b, threads);
    }
}

/// A product for which packing would not pay off, by the `gemm` crate.
fn small(out: Output, a: Matrix, b: Matrix, threads: Threads) {
    let Output { values, leading, base, mut epilogue } = out;
    let ((rows, _), (_, columns)) = (a.shape(), b.shape());
    if let Base::Bias(bias) = base {
        values.chunks_mut(leading).for_each(|row| row[..columns].copy_from_slice(&bias[..columns]));
    }
    gemm_crate(MatrixMut::strided(values, rows, columns, leading), !matches!(base, Base::Zero), a, b, threads);
    epilogue.apply(values, leading, 0, columns);
}

/// Like [`multiply`] with prepacked weights. It gives the same bits as [`multiply_right`], but in skinny products each
/// task takes panels, so that each value of the weights is read once.
pub(crate) fn multiply_prepacked(out: Output, a: Matrix, b: &Prepacked, threads: Threads) {
    let (rows, inner) = a.shape();
    if rows > SKINNY_ROWS || a.is_transposed() {
        return multiply_right(out, a, Right::Prepacked(b), threads);
    }
    let out = out.trimmed(rows, b.columns);
    let kernel = &b.kernel;
    let (padded, panels) = (kernel.round_rows(rows), b.columns.div_ceil(kernel.columns));
    // As in a task's block below.
    let stride = kernel.words(inner).next_multiple_of(16) + 16;
    with_scratch([padded * stride, panels * padded * kernel.columns], |[gathered, products]| {
        for (row, to) in gathered.chunks_exact_mut(stride).take(rows).enumerate() {
            let from = &a.from(row, 0)[..inner];
            match kernel.precision() {
                Precision::F32 | Precision::Tf32 => to[..inner].copy_from_slice(from),
                Precision::Bf16 => bf16::pairs(from, to),
            }
        }
        let written = &*out.values;
        threads.for_chunks(products, padded * kernel.columns, |panel, products| {
            let columns = panel * kernel.columns..b.columns.min((panel + 1) * kernel.columns);
            for (row, to) in products.chunks_exact_mut(kernel.columns).enumerate() {
                match out.base {
                    Base::Bias(bias) => to[..columns.len()].copy_from_slice(&bias[columns.clone()]),
                    Base::Out if row < rows => {
                        to[..columns.len()].copy_from_slice(&written[row * out.leading..][columns.clone()])
                    }
                    _ => to.fill(0.0),
                }
            }
            let mut rest = &*b.values;
            for (first, depth) in blocks(kernel, inner) {
                let len = panel_len(kernel, depth);
                let (weights, after) = rest.split_at(panels * len);
                let left = Left { values: &gathered[kernel.words(first)..], row: stride, inner: 1 };
                let weights = &weights[panel * len..][..len];
                kernel.multiply(padded, kernel.words(depth), left, weights, Base::Out, products, kernel.columns);
                rest = after;
            }
        });
        let products = Products { values: products, rows: padded, width: kernel.columns };
        complete(Output { base: Base::Zero, ..out }, products, threads);
    });
}

/// Skinny products: blocks of `width` columns one after another, each with `rows` rows (the last may be padding).
#[derive(Clone, Copy)]
struct Products<'a> {
    values: &'a [f32],
    rows: usize,
    width: usize,
}

/// `out = epilogue(base + products)`; `out` ends with its last row.
fn complete(out: Output, products: Products, threads: Threads) {
    let Output { values, leading, base, epilogue } = out;
    let rows = values.len().div_ceil(leading);
    let columns = values.len() - (rows - 1) * leading;
    let per_task = rows.div_ceil(if threads == Threads::Pool { rayon::current_num_threads() } else { 1 });
    let mut epilogues = epilogue.split(per_task, leading, rows.div_ceil(per_task));
    threads.for_chunks_with(values, per_task * leading, &mut epilogues, |index, out, epilogue| {
        for (row, out) in out.chunks_mut(leading).enumerate() {
            add_base(&mut out[..columns], index * per_task + row, products, base);
        }
        epilogue.apply(out, leading, 0, columns);
    });
}

/// Row `row` of the products with the base.
fn add_base(out: &mut [f32], row: usize, products: Products, base: Base) {
    let Products { values, rows, width } = products;
    for (index, out) in out.chunks_mut(width).enumerate() {
        let values = &values[(index * rows + row) * width..][..out.len()];
        match base {
            Base::Zero => out.copy_from_slice(values),
            Base::Out => out.iter_mut().zip(values).for_each(|(out, value)| *out += value),
            Base::Bias(bias) => {
                let sums = values.iter().zip(&bias[index * width..]).map(|(value, bias)| value + bias);
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum);
            }
        }
    }
}

/// Like [`multiply`], always with the microkernel.
pub(crate) fn multiply_right(out: Output, a: Matrix, b: Right, threads: Threads) {
    let (rows, inner) = a.shape();
    let (kernel, columns) = match b {
        Right::Matrix(b, precision) => (Kernel::new(precision), b.shape().1),
        Right::Prepacked(b) => (b.kernel, b.columns),
    };
    let Output { values, leading, base, epilogue } = out.trimmed(rows, columns);
    let step = step(&kernel, inner);
    let panels = columns.div_ceil(kernel.columns);
    let parallel = threads == Threads::Pool && rayon::current_num_threads() > 1;
    let per_task = match parallel {
        true => balanced(rows, kernel.large_rows(), MOST_ROWS),
        false => MOST_ROWS.next_multiple_of(kernel.large_rows()),
    };
    let mut epilogues = epilogue.split(per_task, leading, rows.div_ceil(per_task));
    match b {
        Right::Matrix(b, _) => with_scratch([panels * panel_len(&kernel, step)], |[packed]| {
            for (first, depth) in blocks(&kernel, inner) {
                let packed = &mut packed[..panels * panel_len(&kernel, depth)];
                pack(&kernel, &b, first, depth, packed, parallel);
                let block = Block { kernel: &kernel, packed, first, depth, columns, leading, base };
                threads.for_chunks_with(values, per_task * leading, &mut epilogues, |index, values, epilogue| {
                    block.run(a, index * per_task, values, epilogue);
                });
            }
        }),
        // All blocks of a task one after another: its output stays in the cache.
        Right::Prepacked(b) => {
            threads.for_chunks_with(values, per_task * leading, &mut epilogues, |index, values, epilogue| {
                let mut rest = &*b.values;
                for (first, depth) in blocks(&kernel, inner) {
                    let (packed, after) = rest.split_at(panels * panel_len(&kernel, depth));
                    let block = Block { kernel: &kernel, packed, first, depth, columns, leading, base };
                    block.run(a, index * per_task, values, epilogue);
                    rest = after;
                }
            });
        }
    }
}

/// A block of the inner dimension with its packed panels.
struct Block<'a> {
    kernel: &'a Kernel,
    packed: &'a [f32],
    first: usize,
    depth: usize,
    columns: usize,
    leading: usize,
    /// What the whole product is added to.
    base: Base<'a>,
}

impl Block<'_> {
    /// Computes the rows from `first_row` on, as many as `out` has.
    fn run(&self, a: Matrix, first_row: usize, out: &mut [f32], epilogue: &mut Epilogue) {
        let kernel = self.kernel;
        let last = self.first + self.depth == a.shape().1;
        let count = (out.len() - self.columns) / self.leading + 1;
        let rows = kernel.round_rows(count);
        // Rows a large power of two apart fall into the same cache sets.
        let plain = kernel.precision() == Precision::F32;
        let in_place = plain && !a.is_transposed() && rows == count && !a.leading().is_multiple_of(512);
        if in_place {
            let left = Left { values: a.from(first_row, self.first), row: a.leading(), inner: 1 };
            return self.panels(left, last, count, out, epilogue);
        }
        let words = kernel.words(self.depth);
        let stride = words.next_multiple_of(BLOCK) + BLOCK;
        if a.is_transposed() {
            let padded = rows.next_multiple_of(BLOCK);
            return with_scratch([padded * stride, BLOCK * padded], |[gathered, lines]| {
                for word in (0..words).step_by(BLOCK) {
                    for (line, to) in (word..words.min(word + BLOCK)).zip(lines.chunks_exact_mut(padded)) {
                        if plain {
                            to[..count].copy_from_slice(&a.from(self.first + line, first_row)[..count]);
                        } else {
                            let pair = self.first + 2 * line..self.first + self.depth;
                            bf16::interleave_lines(&a, pair, first_row..first_row + count, to);
                        }
                    }
                    for row in (0..padded).step_by(BLOCK) {
                        transpose_block(&lines[row..], padded, &mut gathered[row * stride + word..], stride);
                    }
                }
                self.panels(Left { values: gathered, row: stride, inner: 1 }, last, count, out, epilogue);
            });
        }
        with_scratch([rows * stride], |[gathered]| {
            for (row, to) in gathered.chunks_exact_mut(stride).take(count).enumerate() {
                let from = &a.from(first_row + row, self.first)[..self.depth];
                match kernel.precision() {
                    Precision::F32 | Precision::Tf32 => to[..self.depth].copy_from_slice(from),
                    Precision::Bf16 => bf16::pairs(from, to),
                }
            }
            self.panels(Left { values: gathered, row: stride, inner: 1 }, last, count, out, epilogue);
        });
    }

    fn panels(&self, a: Left, last: bool, count: usize, out: &mut [f32], epilogue: &mut Epilogue) {
        let (kernel, panel) = (self.kernel, self.kernel.columns);
        let (rows, words) = (kernel.round_rows(count), kernel.words(self.depth));
        let base = if self.first == 0 { self.base } else { Base::Out };
        for (index, weights) in self.packed.chunks_exact(words * panel).enumerate() {
            let start = index * panel;
            let width = panel.min(self.columns - start);
            if rows == count && width == panel {
                let base = match base {
                    Base::Bias(bias) => Base::Bias(&bias[start..]),
                    base => base,
                };
                kernel.multiply(rows, words, a, weights, base, &mut out[start..], self.leading);
            } else {
                // The base goes in first as above, so that no value depends on which rows share its task: long sums are
                // rounded part by part.
                with_scratch([rows * panel], |[products]| {
                    for (out, products) in out.chunks(self.leading).zip(products.chunks_exact_mut(panel)) {
                        match base {
                            Base::Zero => {}
                            Base::Out => products[..width].copy_from_slice(&out[start..start + width]),
                            Base::Bias(bias) => products[..width].copy_from_slice(&bias[start..start + width]),
                        }
                    }
                    let base = if matches!(base, Base::Zero) { Base::Zero } else { Base::Out };
                    kernel.multiply(rows, words, a, weights, base, products, panel);
                    for (out, products) in out.chunks_mut(self.leading).zip(products.chunks_exact(panel)) {
                        out[start..start + width].copy_from_slice(&products[..width]);
                    }
                });
            }
            let end = start + width;
            if last && (end == self.columns || end.is_multiple_of(FINISHED_TOGETHER)) {
                let start = (end - 1) / FINISHED_TOGETHER * FINISHED_TOGETHER;
                epilogue.apply(out, self.leading, start, end - start);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::activation::FusedActivation;

    #[test]
    fn prepacked_weights_give_the_same_products_for_any_number_of_rows() {
        let (inner, columns, leading) = (1031, 71, 75);
        let a = crate::procedural::values("a", 100 * inner, -1.0, 1.0, 1);
        let b = crate::procedural::values("b", inner * columns, -1.0, 1.0, 2);
        let bias = crate::procedural::values("bias", columns, -1.0, 1.0, 3);
        let b = Matrix::new(&b, inner, columns);
        for precision in [Precision::F32, Precision::Bf16] {
            let packed = Prepacked::new(b, Kernel::new(precision));
            for (rows, threads) in [1, 5, 72, 73, 100].into_iter().flat_map(|r| [(r, Threads::One), (r, Threads::Pool)])
            {
                let a = Matrix::new(&a, rows, inner);
                for base in [Base::Zero, Base::Out, Base::Bias(&bias)] {
                    let (mut got, mut want) = (vec![2.0; rows * leading], vec![2.0; rows * leading]);
                    let out = |values| {
                        let activation = FusedActivation::Relu;
                        let epilogue = Epilogue::Activate { activation, dropout: None, derivative: None };
                        Output { values, leading, base, epilogue }
                    };
                    multiply_prepacked(out(&mut got), a, &packed, threads);
                    multiply_right(out(&mut want), a, Right::Matrix(b, precision), threads);
                    assert_eq!(got, want, "{precision:?} {rows} rows, {base:?}");
                }
            }
        }
    }
}
