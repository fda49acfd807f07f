//! Large products by the tile kernel: the right side is packed into panels a block of the inner dimension at a time; the
//! left side's rows are gathered task by task, each task a run of rows of the output.

use super::kernel::{Kernel, accumulate, balanced};
use super::matmul::{Matrix, Threads, Write};
use super::scratch::with_scratch;
use rayon::prelude::*;

/// Inner dimension of a block: a task's rows of it stay in the second-level cache.
const INNER: usize = 512;
/// Rows of a task at most.
const MOST_ROWS: usize = 192;

/// Whether packing pays: every packed value must be used often enough.
pub(super) fn applies(rows: usize, inner: usize, columns: usize) -> bool {
    rows >= 8 && columns >= 32 && inner >= 32
}

/// As [`gemm`](super::gemm), of matrices that fit each other and are not empty. Rows of `out` begin `leading` apart.
pub(super) fn multiply(
    out: &mut [f32],
    leading: usize,
    write: Write,
    alpha: f32,
    a: Matrix,
    b: Matrix,
    threads: Threads,
) {
    let ((rows, _), (_, columns)) = (a.shape(), b.shape());
    if rows > FEW_ROWS || !b.is_transposed() || columns < 4 * rows {
        return by_rows(out, leading, write, alpha, a, b, threads);
    }
    // Few words by a large layer: the layer's weights, transposed here, are read as they lie when the product is
    // turned around.
    with_scratch([rows * columns], |[turned]| {
        by_rows(turned, rows, Write::Replace, alpha, b.t(), a.t(), threads);
        for (row, out) in out.chunks_mut(leading).take(rows).enumerate() {
            for (out, value) in out[..columns].iter_mut().zip(turned.iter().skip(row).step_by(rows)) {
                *out = if write == Write::Add { *out + value } else { *value };
            }
        }
    });
}

/// Rows below which packing the right side costs as much as multiplying by it.
const FEW_ROWS: usize = 24;

fn by_rows(out: &mut [f32], leading: usize, write: Write, alpha: f32, a: Matrix, b: Matrix, threads: Threads) {
    let kernel = Kernel::new();
    let ((rows, inner), (_, columns)) = (a.shape(), b.shape());
    let out = &mut out[..(rows - 1) * leading + columns];
    // Blocks as equal as can be.
    let step = inner.div_ceil(inner.div_ceil(INNER));
    let panels = columns.div_ceil(kernel.columns);
    let parallel = threads == Threads::Pool && rayon::current_num_threads() > 1;
    let per_task = match parallel {
        true => balanced(rows, kernel.large_rows(), MOST_ROWS),
        false => MOST_ROWS.next_multiple_of(kernel.large_rows()),
    };
    with_scratch([panels * step * kernel.columns], |[packed]| {
        for first in (0..inner).step_by(step) {
            let depth = step.min(inner - first);
            let write = if first == 0 { write } else { Write::Add };
            let packed = &mut packed[..panels * depth * kernel.columns];
            let pack = |(index, panel): (usize, &mut [f32])| b.copy_panel(first, index, kernel.columns, panel);
            if parallel {
                packed.par_chunks_exact_mut(depth * kernel.columns).enumerate().for_each(pack);
            } else {
                packed.chunks_exact_mut(depth * kernel.columns).enumerate().for_each(pack);
            }
            let task = |(index, out): (usize, &mut [f32])| {
                let block = Block { kernel: &kernel, packed, first, depth, columns, leading, write, alpha };
                block.run(a, index * per_task, out);
            };
            if parallel {
                out.par_chunks_mut(per_task * leading).enumerate().for_each(task);
            } else {
                out.chunks_mut(per_task * leading).enumerate().for_each(task);
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
    write: Write,
    alpha: f32,
}

impl Block<'_> {
    /// Rows `first_row` and on, as many as `out` has.
    fn run(&self, a: Matrix, first_row: usize, out: &mut [f32]) {
        let (kernel, panel) = (self.kernel, self.kernel.columns);
        let count = (out.len() - self.columns) / self.leading + 1;
        let rows = kernel.round_rows(count);
        // Rows a power of two apart would fall into the same sets of the cache.
        let stride = self.depth.next_multiple_of(16) + 16;
        with_scratch([rows * stride, rows * panel], |[gathered, products]| {
            a.copy_rows(first_row, count, self.first..self.first + self.depth, gathered, stride);
            for (index, weights) in self.packed.chunks_exact(self.depth * panel).enumerate() {
                kernel.multiply(rows, self.depth, gathered, stride, weights, products);
                let start = index * panel;
                let width = panel.min(self.columns - start);
                let add = self.write == Write::Add;
                for (out, values) in out.chunks_mut(self.leading).zip(products.chunks_exact(panel)) {
                    accumulate(&mut out[start..start + width], values, self.alpha, add);
                }
            }
        });
    }
}
