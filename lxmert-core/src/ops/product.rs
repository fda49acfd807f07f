//! Large products by the tile kernel: the right side is packed into panels a block of the inner dimension at a time; the
//! left side is read as it lies where it can be, task by task, each task a run of rows of the output.

use super::few_rows;
use super::finish::Finish;
use super::kernel::{Kernel, Left, Start, balanced};
use super::matmul::{Matrix, Threads};
use super::scratch::with_scratch;
use rayon::prelude::*;

/// Inner dimension of a block: a task's rows of it stay in the second-level cache.
const INNER: usize = 512;
/// Rows of a task at most.
const MOST_ROWS: usize = 144;

/// What a product is added to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Base<'a> {
    Zero,
    /// What the output holds.
    Out,
    /// The same row for all.
    Bias(&'a [f32]),
}

/// Whether packing pays: every packed value must be used often enough.
pub(super) fn applies(rows: usize, inner: usize, columns: usize) -> bool {
    rows >= 8 && columns >= 32 && inner >= 32
}

/// `out = finish(base + alpha · a · b)` of matrices that fit each other and are not empty. Rows of `out` begin `leading` apart.
#[allow(clippy::too_many_arguments)] // a product has these
pub(crate) fn multiply(
    out: &mut [f32],
    leading: usize,
    base: Base,
    alpha: f32,
    a: Matrix,
    b: Matrix,
    finish: Finish,
    threads: Threads,
) {
    let ((rows, inner), (_, columns)) = (a.shape(), b.shape());
    let out = &mut out[..(rows - 1) * leading + columns];
    if few_rows::applies(&a, &b) && alpha == 1.0 {
        return few_rows::multiply(out, leading, base, a, b, finish, threads);
    }
    let kernel = Kernel::new();
    // Blocks as equal as can be.
    let step = inner.div_ceil(inner.div_ceil(INNER));
    let panels = columns.div_ceil(kernel.columns);
    let parallel = threads == Threads::Pool && rayon::current_num_threads() > 1;
    let per_task = match parallel {
        true => balanced(rows, kernel.large_rows(), MOST_ROWS),
        false => MOST_ROWS.next_multiple_of(kernel.large_rows()),
    };
    let mut finishes = finish.split(per_task, leading, rows.div_ceil(per_task));
    with_scratch([panels * step * kernel.columns], |[packed]| {
        for first in (0..inner).step_by(step) {
            let depth = step.min(inner - first);
            let packed = &mut packed[..panels * depth * kernel.columns];
            let pack = |(index, panel): (usize, &mut [f32])| b.copy_panel(first, index, kernel.columns, panel);
            if parallel {
                packed.par_chunks_exact_mut(depth * kernel.columns).enumerate().for_each(pack);
            } else {
                packed.chunks_exact_mut(depth * kernel.columns).enumerate().for_each(pack);
            }
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
            let task = |(index, (out, finish)): (usize, (&mut [f32], &mut Finish))| {
                block.run(a, index * per_task, out, finish);
            };
            if parallel {
                out.par_chunks_mut(per_task * leading).zip(&mut finishes).enumerate().for_each(task);
            } else {
                out.chunks_mut(per_task * leading).zip(&mut finishes).enumerate().for_each(task);
            }
        }
    });
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
    fn run(&self, a: Matrix, first_row: usize, out: &mut [f32], finish: &mut Finish) {
        let kernel = self.kernel;
        let count = (out.len() - self.columns) / self.leading + 1;
        let rows = kernel.round_rows(count);
        // Rows a large power of two apart fall into the same sets of the cache.
        let in_place = !a.is_transposed() && self.alpha == 1.0 && rows == count && !a.leading().is_multiple_of(512);
        if in_place {
            let left = Left { values: a.from(first_row, self.first), row: a.leading(), inner: 1 };
            return self.panels(left, count, out, finish);
        }
        // A transposed left side is copied as it lies, row `k` of the inner dimension after row.
        let stride = if a.is_transposed() { rows } else { self.depth.next_multiple_of(16) } + 16;
        let lines = if a.is_transposed() { self.depth } else { rows };
        with_scratch([lines * stride], |[gathered]| {
            let (from, used) = if a.is_transposed() { (self.first, self.depth) } else { (first_row, count) };
            for (line, to) in gathered.chunks_exact_mut(stride).take(used).enumerate() {
                let values = match a.is_transposed() {
                    true => &a.from(from + line, first_row)[..count],
                    false => &a.from(from + line, self.first)[..self.depth],
                };
                to[..values.len()].copy_from_slice(values);
                if self.alpha != 1.0 {
                    to[..values.len()].iter_mut().for_each(|value| *value *= self.alpha);
                }
            }
            let (row, inner) = if a.is_transposed() { (1, stride) } else { (stride, 1) };
            self.panels(Left { values: gathered, row, inner }, count, out, finish);
        });
    }

    fn panels(&self, a: Left, count: usize, out: &mut [f32], finish: &mut Finish) {
        let (kernel, panel) = (self.kernel, self.kernel.columns);
        let rows = kernel.round_rows(count);
        for (index, weights) in self.packed.chunks_exact(self.depth * panel).enumerate() {
            let start = index * panel;
            let width = panel.min(self.columns - start);
            if rows == count && width == panel {
                let base = match self.base {
                    Base::Zero => Start::Zero,
                    Base::Out => Start::Out,
                    Base::Bias(bias) => Start::Row(&bias[start..]),
                };
                kernel.multiply_into(rows, self.depth, a, weights, base, &mut out[start..], self.leading);
            } else {
                with_scratch([rows * panel], |[products]| {
                    kernel.multiply_into(rows, self.depth, a, weights, Start::Zero, products, panel);
                    for (out, products) in out.chunks_mut(self.leading).zip(products.chunks_exact(panel)) {
                        let out = &mut out[start..start + width];
                        match self.base {
                            Base::Zero => out.copy_from_slice(&products[..width]),
                            Base::Out => out.iter_mut().zip(products).for_each(|(out, value)| *out += value),
                            Base::Bias(bias) => {
                                let sums = products.iter().zip(&bias[start..]).map(|(value, bias)| value + bias);
                                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum);
                            }
                        }
                    }
                });
            }
            if self.last {
                finish.apply(out, self.leading, start, width);
            }
        }
    }
}
