//! Large products by the tile kernel: the right side is packed into panels a block of the inner dimension at a time; the
//! left side is read as it lies where it can be, task by task, each task a run of rows of the output.

use super::bf16;
use super::epilogue::Epilogue;
use super::matrix::{Matrix, MatrixMut, Threads, gemm_crate};
use super::microkernel::{Base, Kernel, Left, balanced};
use super::precision::Precision;
use super::scratch::with_scratch;
use super::skinny::{self, Products};
use rayon::prelude::*;

/// Inner dimension of a block, in words: a task's rows of it stay in the second-level cache.
const INNER: usize = 768;
/// Rows of a task at most.
const MOST_ROWS: usize = 144;

/// Whether packing pays: every packed value must be used often enough.
fn applies(a: &Matrix, b: &Matrix) -> bool {
    let ((rows, inner), (_, columns)) = (a.shape(), b.shape());
    rows >= 8 && columns >= 32 && inner >= 32
}

/// Whether weights are better packed beforehand: f32 values of few rows' products are read as they lie, small products not packed.
pub(super) fn wants_prepacked(a: &Matrix, b: &Matrix, precision: Precision) -> bool {
    applies(a, b) && (precision == Precision::Bf16 || !skinny::applies(a, b))
}

/// A product's right side.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Right<'a> {
    /// Rounded to this precision on the way to its panels.
    Matrix(Matrix<'a>, Precision),
    Prepacked(&'a Prepacked),
}

/// A right side that was packed before, for a kernel.
#[derive(Debug)]
pub(crate) struct Prepacked {
    kernel: Kernel,
    /// The panels of each block of the inner dimension.
    values: Vec<f32>,
    inner: usize,
    columns: usize,
}

impl Prepacked {
    pub fn new(matrix: Matrix, kernel: Kernel) -> Self {
        let (inner, columns) = matrix.shape();
        let mut values = vec![0.0; columns.div_ceil(kernel.columns) * kernel.columns * kernel.words(inner)];
        let mut rest = values.as_mut_slice();
        for (first, depth) in blocks(&kernel, inner) {
            let (block, after) = rest.split_at_mut(columns.div_ceil(kernel.columns) * panel_len(&kernel, depth));
            pack(&kernel, &matrix, first, depth, block, true);
            rest = after;
        }
        Self { kernel, values, inner, columns }
    }

    /// Inner dimension and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.inner, self.columns)
    }
}

/// Inner dimension of the blocks, as equal as can be, with no pair across two.
fn step(kernel: &Kernel, inner: usize) -> usize {
    let words = kernel.words(inner);
    words.div_ceil(words.div_ceil(INNER)) * if kernel.precision() == Precision::Bf16 { 2 } else { 1 }
}

/// First place and length of each block.
fn blocks(kernel: &Kernel, inner: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
    let step = step(kernel, inner);
    (0..inner).step_by(step).map(move |first| (first, step.min(inner - first)))
}

fn panel_len(kernel: &Kernel, depth: usize) -> usize {
    kernel.words(depth) * kernel.columns
}

/// The panels of a block of the inner dimension.
fn pack(kernel: &Kernel, b: &Matrix, first: usize, depth: usize, packed: &mut [f32], parallel: bool) {
    let copy = |(index, panel): (usize, &mut [f32])| match kernel.precision() {
        Precision::F32 => b.copy_panel(first, index, kernel.columns, panel),
        Precision::Bf16 => bf16::copy_panel(b, first..first + depth, index, kernel.columns, panel),
    };
    let panel_len = panel_len(kernel, depth);
    if parallel {
        packed.par_chunks_exact_mut(panel_len).enumerate().for_each(copy);
    } else {
        packed.chunks_exact_mut(panel_len).enumerate().for_each(copy);
    }
}

/// `out = epilogue(base + alpha · a · b)` of matrices that fit each other and are not empty, both rounded to `precision`. Rows of
/// `out` begin `leading` apart. A small product or one of few rows waits for memory, so it takes the values as they are; so
/// does one with an `alpha`.
#[allow(clippy::too_many_arguments)] // a product has these
pub(crate) fn multiply(
    out: &mut [f32],
    leading: usize,
    base: Base,
    alpha: f32,
    a: Matrix,
    b: Matrix,
    epilogue: Epilogue,
    precision: Precision,
    threads: Threads,
) {
    if skinny::applies(&a, &b) && alpha == 1.0 {
        let out = &mut out[..(a.shape().0 - 1) * leading + b.shape().1];
        return skinny::multiply(out, leading, base, a, b, epilogue, threads);
    }
    if !applies(&a, &b) {
        return small(out, leading, base, alpha, a, b, epilogue, threads);
    }
    let precision = if alpha == 1.0 { precision } else { Precision::F32 };
    multiply_right(out, leading, base, alpha, a, Right::Matrix(b, precision), epilogue, threads);
}

/// A product in which packing would not pay, by the `gemm` crate.
#[allow(clippy::too_many_arguments)] // as above
fn small(
    out: &mut [f32],
    leading: usize,
    base: Base,
    alpha: f32,
    a: Matrix,
    b: Matrix,
    mut epilogue: Epilogue,
    threads: Threads,
) {
    let ((rows, _), (_, columns)) = (a.shape(), b.shape());
    let out = &mut out[..(rows - 1) * leading + columns];
    if let Base::Bias(bias) = base {
        out.chunks_mut(leading).for_each(|row| row[..columns].copy_from_slice(&bias[..columns]));
    }
    gemm_crate(MatrixMut::strided(out, rows, columns, leading), !matches!(base, Base::Zero), alpha, a, b, threads);
    epilogue.apply(out, leading, 0, columns);
}

/// As [`multiply`] with weights that were packed before; to the bit as [`multiply_right`], but of few rows the tasks take panels, so
/// that each value of the weights is read once.
pub(crate) fn multiply_prepacked(
    out: &mut [f32],
    leading: usize,
    base: Base,
    a: Matrix,
    b: &Prepacked,
    epilogue: Epilogue,
    threads: Threads,
) {
    let (rows, inner) = a.shape();
    if rows > skinny::MOST_ROWS || a.is_transposed() {
        return multiply_right(out, leading, base, 1.0, a, Right::Prepacked(b), epilogue, threads);
    }
    let kernel = &b.kernel;
    let (padded, panels) = (kernel.round_rows(rows), b.columns.div_ceil(kernel.columns));
    // As in a task's block below.
    let stride = kernel.words(inner).next_multiple_of(16) + 16;
    with_scratch([padded * stride, panels * padded * kernel.columns], |[gathered, products]| {
        for (row, to) in gathered.chunks_exact_mut(stride).take(rows).enumerate() {
            let from = &a.from(row, 0)[..inner];
            match kernel.precision() {
                Precision::F32 => to[..inner].copy_from_slice(from),
                Precision::Bf16 => bf16::pairs(from, to),
            }
        }
        let written = &*out;
        let task = |(panel, products): (usize, &mut [f32])| {
            let columns = panel * kernel.columns..b.columns.min((panel + 1) * kernel.columns);
            for (row, to) in products.chunks_exact_mut(kernel.columns).enumerate() {
                match base {
                    Base::Bias(bias) => to[..columns.len()].copy_from_slice(&bias[columns.clone()]),
                    Base::Out if row < rows => {
                        to[..columns.len()].copy_from_slice(&written[row * leading..][columns.clone()])
                    }
                    _ => to.fill(0.0),
                }
            }
            let mut rest = b.values.as_slice();
            for (first, depth) in blocks(kernel, inner) {
                let len = panel_len(kernel, depth);
                let (weights, after) = rest.split_at(panels * len);
                let left = Left { values: &gathered[kernel.words(first)..], row: stride, inner: 1 };
                let weights = &weights[panel * len..][..len];
                kernel.multiply_into(padded, kernel.words(depth), left, weights, Base::Out, products, kernel.columns);
                rest = after;
            }
        };
        match threads {
            Threads::Pool => products.par_chunks_exact_mut(padded * kernel.columns).enumerate().for_each(task),
            Threads::One => products.chunks_exact_mut(padded * kernel.columns).enumerate().for_each(task),
        }
        let products = Products { values: products, rows: padded, width: kernel.columns };
        let out = &mut out[..(rows - 1) * leading + b.columns];
        skinny::complete(out, leading, Base::Zero, products, epilogue, threads);
    });
}

/// As [`multiply`], by the tile kernel alone; `alpha` must be 1 but for f32.
#[allow(clippy::too_many_arguments)] // as above
pub(crate) fn multiply_right(
    out: &mut [f32],
    leading: usize,
    base: Base,
    alpha: f32,
    a: Matrix,
    b: Right,
    epilogue: Epilogue,
    threads: Threads,
) {
    let (rows, inner) = a.shape();
    let (kernel, columns) = match b {
        Right::Matrix(b, precision) => (Kernel::new(precision), b.shape().1),
        Right::Prepacked(b) => (b.kernel, b.columns),
    };
    let out = &mut out[..(rows - 1) * leading + columns];
    let step = step(&kernel, inner);
    let panels = columns.div_ceil(kernel.columns);
    let parallel = threads == Threads::Pool && rayon::current_num_threads() > 1;
    let per_task = match parallel {
        true => balanced(rows, kernel.large_rows(), MOST_ROWS),
        false => MOST_ROWS.next_multiple_of(kernel.large_rows()),
    };
    let mut epilogues = epilogue.split(per_task, leading, rows.div_ceil(per_task));
    let mut run = |packed: &[f32], first: usize, depth: usize| {
        let block = Block {
            kernel: &kernel,
            packed,
            first,
            depth,
            columns,
            leading,
            base: if first == 0 { base } else { Base::Out },
            alpha,
            last: first + depth == inner,
        };
        let task = |(index, (out, epilogue)): (usize, (&mut [f32], &mut Epilogue))| {
            block.run(a, index * per_task, out, epilogue);
        };
        if parallel {
            out.par_chunks_mut(per_task * leading).zip(&mut epilogues).enumerate().for_each(task);
        } else {
            out.chunks_mut(per_task * leading).zip(&mut epilogues).enumerate().for_each(task);
        }
    };
    let blocks = blocks(&kernel, inner);
    match b {
        Right::Matrix(b, _) => with_scratch([panels * panel_len(&kernel, step)], |[packed]| {
            for (first, depth) in blocks {
                let packed = &mut packed[..panels * panel_len(&kernel, depth)];
                pack(&kernel, &b, first, depth, packed, parallel);
                run(packed, first, depth);
            }
        }),
        Right::Prepacked(b) => {
            let mut rest = b.values.as_slice();
            for (first, depth) in blocks {
                let (packed, after) = rest.split_at(panels * panel_len(&kernel, depth));
                run(packed, first, depth);
                rest = after;
            }
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
    base: Base<'a>,
    alpha: f32,
    /// Whether the sums are complete after it.
    last: bool,
}

impl Block<'_> {
    /// Rows `first_row` and on, as many as `out` has.
    fn run(&self, a: Matrix, first_row: usize, out: &mut [f32], epilogue: &mut Epilogue) {
        let kernel = self.kernel;
        let count = (out.len() - self.columns) / self.leading + 1;
        let rows = kernel.round_rows(count);
        // Rows a large power of two apart fall into the same sets of the cache.
        let plain = kernel.precision() == Precision::F32;
        let in_place =
            plain && !a.is_transposed() && self.alpha == 1.0 && rows == count && !a.leading().is_multiple_of(512);
        if in_place {
            let left = Left { values: a.from(first_row, self.first), row: a.leading(), inner: 1 };
            return self.panels(left, count, out, epilogue);
        }
        // A transposed left side is copied as it lies, row `k` of the inner dimension after row.
        let words = kernel.words(self.depth);
        let stride = if a.is_transposed() { rows } else { words.next_multiple_of(16) } + 16;
        let lines = if a.is_transposed() { words } else { rows };
        with_scratch([lines * stride], |[gathered]| {
            let lines = gathered.chunks_exact_mut(stride);
            match (plain, a.is_transposed()) {
                (true, true) => lines.enumerate().for_each(|(line, to)| {
                    self.copy(&a.from(self.first + line, first_row)[..count], to);
                }),
                (true, false) => lines.take(count).enumerate().for_each(|(line, to)| {
                    self.copy(&a.from(first_row + line, self.first)[..self.depth], to);
                }),
                (false, true) => lines.enumerate().for_each(|(line, to)| {
                    let lines = self.first + 2 * line..self.first + self.depth;
                    bf16::interleave_lines(&a, lines, first_row..first_row + count, to);
                }),
                (false, false) => lines.take(count).enumerate().for_each(|(line, to)| {
                    bf16::pairs(&a.from(first_row + line, self.first)[..self.depth], to);
                }),
            }
            let (row, inner) = if a.is_transposed() { (1, stride) } else { (stride, 1) };
            self.panels(Left { values: gathered, row, inner }, count, out, epilogue);
        });
    }

    fn copy(&self, from: &[f32], to: &mut [f32]) {
        let to = &mut to[..from.len()];
        to.copy_from_slice(from);
        if self.alpha != 1.0 {
            to.iter_mut().for_each(|value| *value *= self.alpha);
        }
    }

    fn panels(&self, a: Left, count: usize, out: &mut [f32], epilogue: &mut Epilogue) {
        let (kernel, panel) = (self.kernel, self.kernel.columns);
        let (rows, words) = (kernel.round_rows(count), kernel.words(self.depth));
        for (index, weights) in self.packed.chunks_exact(words * panel).enumerate() {
            let start = index * panel;
            let width = panel.min(self.columns - start);
            if rows == count && width == panel {
                let base = match self.base {
                    Base::Bias(bias) => Base::Bias(&bias[start..]),
                    base => base,
                };
                kernel.multiply_into(rows, words, a, weights, base, &mut out[start..], self.leading);
            } else {
                // The base goes in first as above, so that no value depends on which rows share its task: long sums are rounded
                // part after part.
                with_scratch([rows * panel], |[products]| {
                    for (out, products) in out.chunks(self.leading).zip(products.chunks_exact_mut(panel)) {
                        match self.base {
                            Base::Zero => {}
                            Base::Out => products[..width].copy_from_slice(&out[start..start + width]),
                            Base::Bias(bias) => products[..width].copy_from_slice(&bias[start..start + width]),
                        }
                    }
                    let base = if matches!(self.base, Base::Zero) { Base::Zero } else { Base::Out };
                    kernel.multiply_into(rows, words, a, weights, base, products, panel);
                    for (out, products) in out.chunks_mut(self.leading).zip(products.chunks_exact(panel)) {
                        out[start..start + width].copy_from_slice(&products[..width]);
                    }
                });
            }
            if self.last {
                epilogue.apply(out, self.leading, start, width);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::epilogue::FusedActivation;

    /// The product of rounded operands, in f64.
    fn expected(a: &[f32], b: &[f32], (rows, inner, columns): (usize, usize, usize)) -> Vec<f64> {
        let rounded = |x: f32| half::bf16::from_f32(x).to_f64();
        let term = |i: usize, k: usize| rounded(a[i / columns * inner + k]) * rounded(b[k * columns + i % columns]);
        (0..rows * columns).map(|i| (0..inner).map(|k| term(i, k)).sum()).collect()
    }

    fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
        (0..rows * columns).map(|i| values[i % rows * columns + i / rows]).collect()
    }

    #[test]
    fn packed_weights_give_the_same_products_for_any_number_of_rows() {
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
                    let epilogue =
                        || Epilogue::Activate { activation: FusedActivation::Relu, dropout: None, derivative: None };
                    let (mut got, mut want) = (vec![2.0; rows * leading], vec![2.0; rows * leading]);
                    multiply_prepacked(&mut got, leading, base, a, &packed, epilogue(), threads);
                    let right = Right::Matrix(b, precision);
                    multiply_right(&mut want, leading, base, 1.0, a, right, epilogue(), threads);
                    assert_eq!(got, want, "{precision:?} {rows} rows, {base:?}");
                }
            }
        }
    }

    #[test]
    fn products_in_bf16_are_those_of_rounded_operands() {
        for sizes in [(8, 32, 32), (97, 33, 71), (150, 1, 40), (30, 1031, 64), (200, 2050, 33)] {
            let (rows, inner, columns) = sizes;
            let a = crate::procedural::values("a", rows * inner, -1.0, 1.0, 1);
            let b = crate::procedural::values("b", inner * columns, -1.0, 1.0, 2);
            let bias = crate::procedural::values("bias", columns, -1.0, 1.0, 3);
            let expected = expected(&a, &b, sizes);
            let (a_columns, b_columns) = (transposed(&a, rows, inner), transposed(&b, inner, columns));
            for (a, b) in [
                (Matrix::new(&a, rows, inner), Matrix::new(&b, inner, columns)),
                (Matrix::new(&a_columns, inner, rows).t(), Matrix::new(&b, inner, columns)),
                (Matrix::new(&a, rows, inner), Matrix::new(&b_columns, columns, inner).t()),
            ] {
                // What is small or has few rows is not rounded.
                let rounded = applies(&a, &b) && !skinny::applies(&a, &b);
                for threads in [Threads::One, Threads::Pool] {
                    let mut out = vec![f32::NAN; rows * columns];
                    let base = Base::Bias(&bias);
                    multiply(&mut out, columns, base, 1.0, a, b, Epilogue::Nothing, Precision::Bf16, threads);
                    for (i, (value, sum)) in out.iter().zip(&expected).enumerate() {
                        let error = (f64::from(value - bias[i % columns]) - sum).abs();
                        let bound = if rounded { 2e-6 } else { 2f64.powi(-7) } * (inner as f64).max(8.0);
                        assert!(error < bound, "{sizes:?} at {i}: {value} {sum}");
                    }
                }
            }
        }
    }
}
