//! Large products with weights that were packed before, by one level of Strassen's algorithm (Strassen 1969, "Gaussian
//! elimination is not optimal"): with both sides and the output cut into two by two blocks, seven products of sums of
//! blocks give what eight products of blocks do.
//!
//! The blocks are small: half of [`UNIT`] rows of the left side, a panel of the right side, and a part of the inner dimension. So
//! the left side's sums stay in the second-level cache, the output's four blocks in the first, and the right side's sums
//! are made when it is packed: at seven quarters of its size.
//!
//! Rounding errors are relative to the largest values of the rows of a unit, and not to each row's own. Where rows are of one
//! size, as normalised activations are, they are some two times those of the plain product.

use super::bf16::Precision;
use super::block_sums::{self, PRODUCTS, Quarters, Side, Sums};
use super::finish::Finish;
use super::kernel::{Kernel, Left, Targets, balanced};
use super::matmul::{Matrix, Threads};
use super::product::Base;
use super::scratch::with_scratch;
use rayon::prelude::*;

/// Rows of the left side whose upper half is added to the lower; fixed, so that no value depends on the thread count.
const UNIT: usize = 48;
/// Rows of a task at most: their sums stay in the second-level cache.
const MOST_ROWS: usize = 96;
/// Inner dimension of a block at most; half of it is summed in one register.
const INNER: usize = 768;
/// Pairs of panels that all tasks pass over before the next: in the third-level cache.
const PAIRS: usize = 12;

/// A right side's sums, packed for a kernel.
#[derive(Debug)]
pub(super) struct PackedSums {
    kernel: Kernel,
    /// Of each block of the inner dimension and each pair of panels seven panels.
    values: Vec<f32>,
    inner: usize,
    columns: usize,
}

impl PackedSums {
    /// Whether a product with it can be done, and takes less time than the plain one.
    pub fn apply(b: &Matrix) -> bool {
        let (inner, columns) = b.shape();
        let pairs = columns.is_multiple_of(2 * Kernel::new(Precision::F32).columns);
        inner >= 192 && inner.is_multiple_of(2 * inner.div_ceil(INNER)) && columns >= 128 && pairs
    }

    /// Of `b`, where they [`apply`](Self::apply).
    pub fn new(b: Matrix) -> Self {
        let ((inner, columns), kernel) = (b.shape(), Kernel::new(Precision::F32));
        let (depth, pairs) = (inner / inner.div_ceil(INNER), columns / (2 * kernel.columns));
        let size = PRODUCTS * panel_len(&kernel, depth);
        let mut values = vec![0.0; inner / depth * pairs * size];
        values.par_chunks_exact_mut(size).enumerate().for_each(|(index, sums)| {
            pack(&kernel, &b, index / pairs * depth, depth, index % pairs, sums);
        });
        Self { kernel, values, inner, columns }
    }
}

/// Length of one of the seven sums of a pair of panels. A little longer than its values, so that no two of them lie a multiple of a
/// page apart and fall into the same sets of the cache.
fn panel_len(kernel: &Kernel, depth: usize) -> usize {
    depth / 2 * kernel.columns + 64
}

/// The sums of pair `pair` of panels, `depth` rows of `b` from `first` on.
fn pack(kernel: &Kernel, b: &Matrix, first: usize, depth: usize, pair: usize, sums: &mut [f32]) {
    let (len, half) = (depth / 2 * kernel.columns, depth / 2);
    with_scratch([4 * len], |[blocks]| {
        let parts = [(first, 0), (first, 1), (first + half, 0), (first + half, 1)];
        for ((from, panel), block) in parts.into_iter().zip(blocks.chunks_exact_mut(len)) {
            b.copy_panel(from, 2 * pair + panel, kernel.columns, block);
        }
        // Two lines of two blocks.
        let quarters = Quarters { values: blocks, leading: 2 * len, lines: 1, len };
        block_sums::write(Side::Right, Sums { values: sums, apart: panel_len(kernel, depth), leading: 0 }, quarters);
    });
}

/// As [`product::multiply`](super::product::multiply) in f32 of a left side that is not transposed.
pub(super) fn multiply(
    out: &mut [f32],
    leading: usize,
    base: Base,
    a: Matrix,
    b: &PackedSums,
    finish: Finish,
    threads: Threads,
) {
    let (rows, inner) = a.shape();
    let (kernel, columns) = (b.kernel, b.columns);
    debug_assert!(!a.is_transposed() && inner == b.inner);
    let out = &mut out[..(rows - 1) * leading + columns];
    let parallel = threads == Threads::Pool && rayon::current_num_threads() > 1;
    let per_task = if parallel { balanced(rows, UNIT, MOST_ROWS) } else { MOST_ROWS };
    let mut finishes = finish.split(per_task, leading, rows.div_ceil(per_task));
    let (depth, pairs) = (inner / inner.div_ceil(INNER), columns / (2 * kernel.columns));
    let size = PRODUCTS * panel_len(&kernel, depth);
    for (index, panels) in b.values.chunks_exact(pairs * size).enumerate() {
        let first = index * depth;
        let base = if first == 0 { base } else { Base::Out };
        for (index, panels) in panels.chunks(PAIRS * size).enumerate() {
            let (first_pair, last) = (index * PAIRS, first + depth == inner);
            let block = Block { kernel, panels, first, depth, first_pair, columns, leading, base, last };
            let task = |(index, (out, finish)): (usize, (&mut [f32], &mut Finish))| {
                block.run(a, index * per_task, out, finish);
            };
            match parallel {
                true => out.par_chunks_mut(per_task * leading).zip(&mut finishes).enumerate().for_each(task),
                false => out.chunks_mut(per_task * leading).zip(&mut finishes).enumerate().for_each(task),
            }
        }
    }
}

/// A block of the inner dimension with the sums of some pairs of panels.
struct Block<'a> {
    kernel: Kernel,
    panels: &'a [f32],
    first: usize,
    depth: usize,
    first_pair: usize,
    columns: usize,
    leading: usize,
    base: Base<'a>,
    /// Whether the sums are complete after it.
    last: bool,
}

impl Block<'_> {
    /// Rows `first_row` and on, as many as `out` has.
    fn run(&self, a: Matrix, first_row: usize, out: &mut [f32], finish: &mut Finish) {
        let (kernel, half) = (&self.kernel, self.depth / 2);
        let count = (out.len() - self.columns) / self.leading + 1;
        // Rows a large power of two apart would fall into the same sets of the cache.
        let stride = half.next_multiple_of(16) + 16;
        let size = PRODUCTS * UNIT / 2 * stride;
        with_scratch([count.div_ceil(UNIT) * size], |[sums]| {
            for (unit, sums) in sums.chunks_exact_mut(size).enumerate() {
                let rows = UNIT.min(count - unit * UNIT);
                self.gather(&a, first_row + unit * UNIT, rows, sums, stride);
            }
            let width = 2 * kernel.columns;
            for (pair, panels) in self.panels.chunks_exact(PRODUCTS * panel_len(kernel, self.depth)).enumerate() {
                let start = (self.first_pair + pair) * width;
                for (sums, out) in sums.chunks_exact(size).zip(out.chunks_mut(UNIT * self.leading)) {
                    self.unit(sums, stride, panels, start, out);
                }
                if self.last {
                    finish.apply(out, self.leading, start, width);
                }
            }
        });
    }

    /// Rows of the upper half of a unit of `rows` rows: the lower one may be shorter.
    fn upper(&self, rows: usize) -> usize {
        self.kernel.round_rows(rows.div_ceil(2))
    }

    /// The left sums of a unit, each of its upper rows, `stride` apart.
    fn gather(&self, a: &Matrix, first_row: usize, rows: usize, sums: &mut [f32], stride: usize) {
        let (half, upper) = (self.depth / 2, self.upper(rows));
        let mut write = |values: &[f32], leading: usize| {
            let quarters = Quarters { values, leading, lines: upper, len: half };
            block_sums::write(Side::Left, Sums { values: sums, apart: upper * stride, leading: stride }, quarters);
        };
        if rows == 2 * upper {
            return write(a.from(first_row, self.first), a.leading());
        }
        with_scratch([2 * upper * self.depth], |[padded]| {
            let (values, zeros) = padded.split_at_mut(rows * self.depth);
            for (row, to) in values.chunks_exact_mut(self.depth).enumerate() {
                to.copy_from_slice(&a.from(first_row + row, self.first)[..self.depth]);
            }
            zeros.fill(0.0);
            write(padded, self.depth);
        });
    }

    /// Adds the products of a unit and a pair of panels to the columns of `out` from `start` on.
    fn unit(&self, sums: &[f32], stride: usize, panels: &[f32], start: usize, out: &mut [f32]) {
        let width = 2 * self.kernel.columns;
        let rows = (out.len() - self.columns) / self.leading + 1;
        let upper = self.upper(rows);
        if 2 * upper == rows {
            self.begin(&mut out[start..], self.leading, rows, start);
            return self.products(sums, stride, panels, upper, &mut out[start..], self.leading);
        }
        with_scratch([2 * upper * width], |[block]| {
            for (out, to) in out.chunks(self.leading).zip(block.chunks_exact_mut(width)) {
                to.copy_from_slice(&out[start..start + width]);
            }
            self.begin(block, width, rows, start);
            self.products(sums, stride, panels, upper, block, width);
            for (out, from) in out.chunks_mut(self.leading).zip(block.chunks_exact(width)) {
                out[start..start + width].copy_from_slice(from);
            }
        });
    }

    /// Writes what the products are added to.
    fn begin(&self, out: &mut [f32], leading: usize, rows: usize, start: usize) {
        let width = 2 * self.kernel.columns;
        for out in out.chunks_mut(leading).take(rows) {
            match self.base {
                Base::Out => return,
                Base::Zero => out[..width].fill(0.0),
                Base::Bias(bias) => out[..width].copy_from_slice(&bias[start..start + width]),
            }
        }
    }

    fn products(&self, sums: &[f32], stride: usize, panels: &[f32], upper: usize, out: &mut [f32], leading: usize) {
        let panels = panels.chunks_exact(panel_len(&self.kernel, self.depth));
        let operands = sums.chunks_exact(upper * stride).zip(panels);
        for ((values, panel), targets) in operands.zip(targets(upper * leading, self.kernel.columns)) {
            let left = Left { values, row: stride, inner: 1 };
            self.kernel.add_to(upper, self.depth / 2, left, panel, out, leading, targets);
        }
    }
}

/// Where each product goes, in an output whose lower half begins at `lower` and whose right half begins at `right`; the order is
/// that of [`block_sums`]' operands.
fn targets(lower: usize, right: usize) -> [Targets; PRODUCTS] {
    let [c11, c12, c21, c22] = [0, right, lower, lower + right];
    [
        Targets { first: c11, second: Some((c22, 1.0)) },
        Targets { first: c21, second: Some((c22, -1.0)) },
        Targets { first: c12, second: Some((c22, 1.0)) },
        Targets { first: c11, second: Some((c21, 1.0)) },
        Targets { first: c12, second: Some((c11, -1.0)) },
        Targets { first: c22, second: None },
        Targets { first: c11, second: None },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::product;
    use crate::ops::{Activation, kernel::Kernel};
    use crate::procedural::values;

    struct Case {
        rows: usize,
        inner: usize,
        columns: usize,
        a: Vec<f32>,
        b: Vec<f32>,
        bias: Vec<f32>,
    }

    impl Case {
        fn new(rows: usize, inner: usize, columns: usize) -> Self {
            let random = |name, count, seed| values(name, count, -1.0, 1.0, seed);
            let (a, b) = (random("a", rows * inner, 1), random("b", inner * columns, 2));
            Self { rows, inner, columns, a, b, bias: random("bias", columns, 3) }
        }

        /// With what lies transposed, as weights do.
        fn right(&self) -> Matrix<'_> {
            Matrix::new(&self.b, self.columns, self.inner).t()
        }

        fn leading(&self) -> usize {
            self.columns + 5
        }

        fn run(&self, base: Base, finish: Finish, threads: Threads) -> Vec<f32> {
            let mut out = vec![2.0; self.rows * self.leading()];
            let a = Matrix::new(&self.a, self.rows, self.inner);
            multiply(&mut out, self.leading(), base, a, &PackedSums::new(self.right()), finish, threads);
            out
        }

        /// In f64.
        fn expected(&self, row: usize, column: usize) -> f64 {
            let (a, b) = (&self.a[row * self.inner..][..self.inner], &self.b[column * self.inner..][..self.inner]);
            a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
        }

        fn errors(&self, out: &[f32]) -> Vec<f64> {
            let places = (0..self.rows).flat_map(|row| (0..self.columns).map(move |column| (row, column)));
            places.map(|(i, j)| f64::from(out[i * self.leading() + j]) - self.expected(i, j)).collect()
        }
    }

    #[test]
    fn products_of_odd_sizes_match_the_definition() {
        for (rows, inner, columns) in
            [(1, 192, 128), (47, 200, 192), (73, 768, 128), (96, 194, 128), (121, 1542, 192), (331, 256, 128)]
        {
            let case = Case::new(rows, inner, columns);
            assert!(PackedSums::apply(&case.right()));
            for threads in [Threads::One, Threads::Pool] {
                let bound = 1e-6 * (1.0 + inner as f64 / 4.0);
                for base in [Base::Zero, Base::Out, Base::Bias(&case.bias)] {
                    let finish = Finish::Activate { activation: Activation::Relu, dropout: None, derivative: None };
                    let (sums, rectified) = (case.run(base, Finish::Nothing, threads), case.run(base, finish, threads));
                    for (i, (row, positive)) in
                        sums.chunks(case.leading()).zip(rectified.chunks(case.leading())).enumerate()
                    {
                        assert_eq!(row[columns..], [2.0; 5], "what lies between the rows is left alone");
                        for j in 0..columns {
                            let first = match base {
                                Base::Zero => 0.0,
                                Base::Out => 2.0,
                                Base::Bias(bias) => f64::from(bias[j]),
                            };
                            let error = (f64::from(row[j]) - first - case.expected(i, j)).abs();
                            assert!(error < bound, "{rows} {inner} {columns}, {base:?} at {i} {j}: {error:e}");
                            assert_eq!(positive[j], row[j].max(0.0));
                        }
                    }
                }
            }
        }
    }

    /// What the module says of its rounding.
    #[test]
    fn errors_are_some_two_times_those_of_the_plain_product() {
        let case = Case::new(192, 768, 128);
        let size = |errors: Vec<f64>| (errors.iter().map(|e| e * e).sum::<f64>() / errors.len() as f64).sqrt();
        let ours = size(case.errors(&case.run(Base::Zero, Finish::Nothing, Threads::Pool)));
        let mut out = vec![0.0; case.rows * case.leading()];
        let (a, leading) = (Matrix::new(&case.a, case.rows, case.inner), case.leading());
        let (base, finish) = (Base::Zero, Finish::Nothing);
        product::multiply(&mut out, leading, base, 1.0, a, case.right(), finish, Precision::F32, Threads::Pool);
        let plain = size(case.errors(&out));
        println!("{ours:.2e} against {plain:.2e}");
        assert!(ours < 3.0 * plain, "{ours:e} {plain:e}");
    }

    #[test]
    fn no_value_depends_on_the_number_of_threads() {
        let case = Case::new(331, 768, 192);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            pool.install(|| case.run(Base::Bias(&case.bias), Finish::Nothing, Threads::Pool))
        };
        let one = case.run(Base::Bias(&case.bias), Finish::Nothing, Threads::One);
        for threads in [1, 2, 3, 16] {
            assert_eq!(run(threads), one, "{threads} threads");
        }
    }

    #[test]
    fn shapes_that_cannot_be_halved_are_left_to_the_plain_product() {
        let width = Kernel::new(Precision::F32).columns;
        for (inner, columns) in [(191, 128), (256, 100), (256, 64), (1538, 128), (256, 128 + width)] {
            let values = vec![0.0; inner * columns];
            assert!(!PackedSums::apply(&Matrix::new(&values, inner, columns)), "{inner} {columns}");
        }
    }
}
