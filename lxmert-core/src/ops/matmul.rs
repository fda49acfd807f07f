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

use super::epilogue::Epilogue;
use super::matrix::{Matrix, MatrixMut, Threads, Write};
use super::microkernel::Base;
use super::precision::Precision;
use super::product;

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
