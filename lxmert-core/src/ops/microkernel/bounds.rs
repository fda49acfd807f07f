//! The tiles of every machine, with bounds checks.

use super::super::checked::{Checked, Lent, assert_every_value_is_needed};
use super::*;
use crate::ops::precision;
use crate::procedural;
use proptest::prelude::*;

unsafe fn checked<const LANES: usize, const ROWS: usize, const PAIRS: bool>(operands: Operands) {
    // SAFETY: every address is checked.
    unsafe { multiply::<Checked<LANES>, ROWS, PAIRS>(operands) }
}

/// The kernels that [`Kernel::of`] returns.
fn kernels() -> [Kernel; 8] {
    let kernel = |level, precision, columns, large, small| Kernel { level, precision, columns, large, small };
    let (f32, bf16) = (Precision::F32, Precision::Bf16);
    [
        kernel(Level::Plain, f32, 8, Tile::new(4, checked::<4, 4, false>), Tile::new(2, checked::<4, 2, false>)),
        kernel(Level::Plain, bf16, 8, Tile::new(4, checked::<4, 4, true>), Tile::new(2, checked::<4, 2, true>)),
        kernel(Level::Neon, f32, 8, Tile::new(12, checked::<4, 12, false>), Tile::new(4, checked::<4, 4, false>)),
        kernel(Level::Neon, bf16, 8, Tile::new(12, checked::<4, 12, true>), Tile::new(4, checked::<4, 4, true>)),
        kernel(Level::Avx2, f32, 16, Tile::new(6, checked::<8, 6, false>), Tile::new(2, checked::<8, 2, false>)),
        kernel(Level::Avx2, bf16, 16, Tile::new(6, checked::<8, 6, true>), Tile::new(2, checked::<8, 2, true>)),
        kernel(Level::Avx512, f32, 32, Tile::new(12, checked::<16, 12, false>), Tile::new(4, checked::<16, 4, false>)),
        kernel(Level::Avx512, bf16, 32, Tile::new(12, checked::<16, 12, true>), Tile::new(4, checked::<16, 4, true>)),
    ]
}

#[test]
fn the_checked_tiles_are_the_ones_in_use() {
    for kernel in kernels() {
        let real = Kernel::of(kernel.level, kernel.precision);
        let sizes = |kernel: &Kernel| (kernel.columns, kernel.large.rows, kernel.small.rows);
        let in_use = match kernel.level {
            Level::Plain => true,
            Level::Neon => cfg!(target_arch = "aarch64"),
            Level::Avx2 | Level::Avx512 => cfg!(target_arch = "x86_64"),
        };
        if in_use {
            assert_eq!(sizes(&kernel), sizes(&real));
        }
    }
}

/// Operands exactly as long as needed; `a` is stored row by row or column by column.
struct Case {
    rows: usize,
    inner: usize,
    a: Vec<f32>,
    strides: (usize, usize),
    panel: Vec<f32>,
    /// One row that is added to every row.
    row: Vec<f32>,
    out: Vec<f32>,
    out_stride: usize,
}

impl Case {
    fn new(kernel: &Kernel, rows: usize, inner: usize, gaps: (usize, usize), transposed: bool) -> Self {
        let rows = kernel.round_rows(rows);
        let strides = if transposed { (1, rows + gaps.0) } else { (inner + gaps.0, 1) };
        let out_stride = kernel.columns + gaps.1;
        let (last_row, last_inner) = (rows.saturating_sub(1), inner.saturating_sub(1));
        let values = |name, count| procedural::values(name, count, -1.0, 1.0, 3);
        // A word is a value, or a pair.
        let words = |name, count| match kernel.precision {
            Precision::F32 | Precision::Tf32 => values(name, count),
            Precision::Bf16 => values(name, count).into_iter().map(|x| precision::pair(x, 0.3 - x)).collect(),
        };
        let out_len = if rows > 0 { last_row * out_stride + kernel.columns } else { 0 };
        Self {
            rows,
            inner,
            a: words("a", last_row * strides.0 + last_inner * strides.1 + 1),
            strides,
            panel: words("panel", inner * kernel.columns),
            row: values("row", kernel.columns),
            out: values("out", out_len),
            out_stride,
        }
    }

    fn run(&self, kernel: &Kernel, base: Base, out: &mut [f32]) {
        let a = Left { values: &self.a, row: self.strides.0, inner: self.strides.1 };
        kernel.multiply(self.rows, self.inner, a, &self.panel, base, out, self.out_stride);
    }
}

/// Short lengths, and lengths around where a sum is split.
fn inner() -> impl Strategy<Value = usize> {
    prop_oneof![0usize..3, 3usize..40, CHAIN - 1..CHAIN + 2, 2 * CHAIN - 1..2 * CHAIN + 2]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tiles_stay_within_their_slices(
        rows in 0usize..32, inner in inner(), gaps in (0usize..4, 0usize..4), transposed: bool,
        base in 0usize..3,
    ) {
        for kernel in kernels() {
            let case = Case::new(&kernel, rows, inner, gaps, transposed);
            let mut out = case.out.clone();
            let lent = Lent::new(&[&case.a, &case.panel, &case.row, &ZEROS], &[&out]);
            let base = [Base::Zero, Base::Out, Base::Bias(&case.row)][base];
            case.run(&kernel, base, &mut out);
            drop(lent);
            for (place, value) in out.iter().enumerate() {
                let (i, j) = (place / case.out_stride, place % case.out_stride);
                if j >= kernel.columns {
                    prop_assert_eq!(*value, case.out[place], "the gap between rows was overwritten");
                    continue;
                }
                let terms = (0..inner).map(|k| {
                    let (a, b) = (case.a[i * case.strides.0 + k * case.strides.1], case.panel[k * kernel.columns + j]);
                    match kernel.precision {
                        Precision::F32 | Precision::Tf32 => f64::from(a) * f64::from(b),
                        Precision::Bf16 => f64::from(precision::products(a, b)),
                    }
                });
                let first = match base {
                    Base::Zero => 0.0,
                    Base::Out => case.out[place],
                    Base::Bias(row) => row[j],
                };
                let (sum, size) = terms.fold((f64::from(first), 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                let (expected, bound) = (sum, 1e-6 * (10.0 + size / 4.0));
                prop_assert!((f64::from(*value) - expected).abs() < bound, "{} {}: {} {}", i, j, value, expected);
            }
        }
    }
}

#[test]
fn detects_a_slice_that_is_one_value_short() {
    for kernel in kernels() {
        for rows in [kernel.small.rows, kernel.large.rows] {
            let case = Case::new(&kernel, rows, 5, (2, 1), false);
            let mut out = case.out.clone();
            let operands = [&case.a, &case.panel, &case.row, &out].map(|operand| operand.as_ptr_range());
            assert_every_value_is_needed(&operands, 1, || case.run(&kernel, Base::Bias(&case.row), &mut out));
        }
    }
}

/// The safe function asserts everything that the tile relies on.
#[test]
fn a_short_slice_never_reaches_the_tile() {
    for kernel in kernels() {
        for (a, panel, row, out) in [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)] {
            let mut case = Case::new(&kernel, kernel.large.rows + kernel.small.rows, 7, (0, 0), false);
            for (values, by) in [(&mut case.a, a), (&mut case.panel, panel), (&mut case.row, row)] {
                values.truncate(values.len() - by);
            }
            let mut output = case.out.clone();
            output.truncate(output.len() - out);
            let lent = Lent::new(&[&case.a, &case.panel, &case.row], &[&output]);
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                case.run(&kernel, Base::Bias(&case.row), &mut output);
            }));
            drop(lent);
            let message = *result.expect_err("a short slice was taken").downcast::<&str>().expect("an assertion");
            assert!(message.starts_with("assertion failed"), "{message}");
        }
    }
}
