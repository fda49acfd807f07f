//! The kernels at sizes around the edges of their tiles, blocks and registers, and at sizes 0 and 1: products against
//! the plain loop; the other operations with their gradients against the plain composition in f64 (the same call, since
//! kernels take only f32). And in any number of threads: the results do not depend on it.

mod common;

use candle_core::{DType, Device, Tensor, Var};
use common::kernels::{agrees_with_f64, distance, in_threads, independent, random};
use lxmert_core::ops::{
    self, BufferPool, DropoutRng, FeatureMap, Matrix, MatrixMut, Precision, PrepackedConv2d, Ragged, Residual, Threads,
    Write, gemm,
};
use lxmert_core::procedural;
use proptest::prelude::*;

/// Rows: tiles of 12 and 4, tasks of 144, skinny products up to 72.
fn rows() -> impl Strategy<Value = usize> {
    prop_oneof![0usize..6, 7usize..14, 23usize..26, 71usize..74, 143usize..147]
}

/// Columns: panels of 32, and 96 rows of weights.
fn columns() -> impl Strategy<Value = usize> {
    prop_oneof![0usize..4, 15usize..18, 31usize..34, 63usize..66, 95usize..98, 191usize..194]
}

/// The inner dimension: registers of 16, sums of at most 384, blocks of 768 words, which are values or pairs.
fn inner() -> impl Strategy<Value = usize> {
    prop_oneof![0usize..3, 15usize..18, 31usize..34, Just(48), 383usize..386, 767usize..770, 1535usize..1538]
}

/// `lines` of `len` values, `gap` NaNs after each but the last.
fn strided(name: &str, lines: usize, len: usize, gap: usize) -> Vec<f32> {
    let values = procedural::values(name, lines * len, -1.0, 1.0, 11);
    let mut data = Vec::with_capacity(lines * (len + gap));
    for line in values.chunks_exact(len.max(1)) {
        data.extend_from_slice(line);
        data.resize(data.len() + gap, f32::NAN);
    }
    data.truncate(data.len().saturating_sub(gap));
    data
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn products_equal_the_plain_loop(
        (rows, inner, columns) in (rows(), inner(), columns()), ta: bool, tb: bool, add: bool, pool: bool,
        gaps in (0usize..3, 0usize..3, 0usize..3),
    ) {
        let lines = |rows, columns, transposed| if transposed { (columns, rows) } else { (rows, columns) };
        let ((a_lines, a_len), (b_lines, b_len)) = (lines(rows, inner, ta), lines(inner, columns, tb));
        let (a, b) = (strided("a", a_lines, a_len, gaps.0), strided("b", b_lines, b_len, gaps.1));
        let view = |data, (lines, len, gap), transposed| {
            let matrix = Matrix::strided(data, lines, len, len + gap);
            if transposed { matrix.t() } else { matrix }
        };
        let (write, before) = if add { (Write::Add, 2.0) } else { (Write::Replace, f32::NAN) };
        let leading = columns + gaps.2;
        let mut out: Vec<f32> = (0..rows * leading).map(|i| if i % leading < columns { before } else { 7.0 }).collect();
        out.truncate(out.len().saturating_sub(gaps.2));
        gemm(
            MatrixMut::strided(&mut out, rows, columns, leading),
            write,
            view(&a, (a_lines, a_len, gaps.0), ta),
            view(&b, (b_lines, b_len, gaps.1), tb),
            if pool { Threads::Pool } else { Threads::One },
        );
        let (a_stride, b_stride) = (a_len + gaps.0, b_len + gaps.1);
        let a_at = |i: usize, k: usize| f64::from(a[if ta { k * a_stride + i } else { i * a_stride + k }]);
        let b_at = |k: usize, j: usize| f64::from(b[if tb { j * b_stride + k } else { k * b_stride + j }]);
        for (place, value) in out.iter().enumerate() {
            let (i, j) = (place / leading, place % leading);
            if j >= columns {
                prop_assert_eq!(*value, 7.0, "the gap between rows was overwritten");
                continue;
            }
            let (mut sum, mut size) = (0.0, 0.0);
            for k in 0..inner {
                let term = a_at(i, k) * b_at(k, j);
                sum += term;
                size += term.abs();
            }
            let expected = sum + if add { 2.0 } else { 0.0 };
            let error = (f64::from(*value) - expected).abs();
            prop_assert!(error < (1e-6 * (1.0 + size)).min(1e-4), "{} at {} {}", error, i, j);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn linear_layers_equal_the_composition(batch in 0usize..3, rows in rows(), inner in inner(), out in columns()) {
        let inputs = [random("x", &[batch, rows, inner]), random("w", &[out, inner]), random("b", &[out])];
        // Sums of as many terms as the largest side; each term is a quarter on average.
        let terms = inner.max(out).max(batch * rows) as f64;
        agrees_with_f64(&inputs, 1e-6 * (1.0 + terms / 4.0), |t| ops::linear(&t[0], &t[1], &t[2]));
    }

    #[test]
    fn prepacked_convolutions_of_whole_images_are_linear_layers(
        rows in rows(), inner in inner(), side in 1usize..3, out in columns(), relu: bool, bf16: bool,
    ) {
        prop_assume!(inner > 0 && out > 0);
        let shape = |first| [first, inner.div_ceil(side * side), side, side];
        let (x, w, b) = (random("x", &shape(rows)), random("w", &shape(out)), random("b", &[out]));
        let (precision, seen) = if bf16 { (Precision::Bf16, DType::BF16) } else { (Precision::F32, DType::F32) };
        let layer = PrepackedConv2d::new(&w, Some(&b), side, 0, relu, precision).unwrap();
        let map = FeatureMap::from_tensor(&x, &BufferPool::new()).unwrap();
        let y = layer.forward(&map, Residual::None).unwrap().into_tensor().unwrap().reshape((rows, out)).unwrap();
        let wide = |t: &Tensor, seen| t.to_dtype(seen).unwrap().to_dtype(DType::F64).unwrap();
        let flat = |t: &Tensor| wide(t, seen).reshape((t.dims()[0], t.dims()[1] * side * side)).unwrap();
        let want = ops::linear(&flat(&x), &flat(&w), &wide(&b, DType::F32)).unwrap();
        let want = if relu { want.relu().unwrap() } else { want };
        prop_assert!(distance(&y, &want) < 1e-6 * (1.0 + inner as f64 / 4.0), "{:e}", distance(&y, &want));
    }

    /// Operands stay exact if a product is too small, or has too few rows, for rounding to be faster.
    #[test]
    fn linear_layers_in_bf16_equal_those_of_rounded_operands(rows in rows(), inner in inner(), out in columns()) {
        let inputs = [random("x", &[rows, inner]), random("w", &[out, inner]), random("b", &[out])];
        let [x, w, b] = inputs.each_ref().map(|t| Var::from_tensor(t).unwrap());
        let y = ops::linear_with(&x, &w, &b, Precision::Bf16).unwrap();
        let pull = random("pull", &[rows, out]);
        let gradients = (&y * &pull).unwrap().sum_all().unwrap().backward().unwrap();
        let bound = 1e-6 * (1.0 + inner.max(out).max(rows) as f64 / 4.0);
        let is_product = |got: &Tensor, a: &Tensor, b: &Tensor| {
            let far_from = |to: DType| {
                let [a, b] = [a, b].map(|t| t.to_dtype(to).unwrap().to_dtype(DType::F64).unwrap().contiguous().unwrap());
                distance(got, &a.matmul(&b).unwrap())
            };
            far_from(DType::BF16) < bound || far_from(DType::F32) < bound
        };
        prop_assert!(is_product(&y.broadcast_sub(&b).unwrap(), &x, &w.t().unwrap()), "values");
        prop_assert!(is_product(gradients.get(&x).unwrap(), &pull, &w), "gradient by the input");
        prop_assert!(is_product(gradients.get(&w).unwrap(), &pull.t().unwrap(), &x), "gradient by the weight");
    }

    #[test]
    fn layer_norms_equal_the_composition(rows in prop_oneof![0usize..3, 63usize..66, 127usize..130], width in columns()) {
        prop_assume!(width > 0);
        let inputs = [random("x", &[rows, width]), random("w", &[width]), random("b", &[width])];
        // A variance near zero would magnify the rounding differences.
        agrees_with_f64(&inputs, 2e-5, |t| ops::layer_norm(&t[0], &t[1], &t[2], 1e-2));
    }

    #[test]
    fn gathering_takes_the_real_rows_and_scattering_restores_them(
        lengths in proptest::collection::vec(0usize..6, 0..6), width in 0usize..4, spare in 0usize..2,
    ) {
        let (batch, length) = (lengths.len(), lengths.iter().max().map_or(0, |most| most + spare));
        let real = |row: usize| lengths[row / length] == 0 || row % length < lengths[row / length];
        let rows: Vec<usize> = (0..batch * length).filter(|row| real(*row)).collect();
        let mask = (0..batch * length).map(|row| if row % length < lengths[row / length] { 1f32 } else { 0.0 }).collect();
        let mask = Tensor::from_vec::<_, f32>(mask, (batch, length), &Device::Cpu).unwrap();
        let ragged = Ragged::of_mask(&mask).unwrap();
        prop_assert_eq!(ragged.count(), rows.len());
        let x = random("x", &[batch, length, width]);
        let flat: Vec<f32> = x.flatten_all().unwrap().to_vec1().unwrap();
        let gathered = ragged.gather(&x).unwrap();
        let expected: Vec<f32> = rows.iter().flat_map(|row| &flat[row * width..][..width]).copied().collect();
        prop_assert_eq!(gathered.dims(), [rows.len(), width]);
        prop_assert_eq!(gathered.flatten_all().unwrap().to_vec1::<f32>().unwrap(), expected);
        let scattered = ragged.scatter(&gathered).unwrap();
        prop_assert_eq!(scattered.dims(), [batch, length, width]);
        let unpacked: Vec<f32> = scattered.flatten_all().unwrap().to_vec1().unwrap();
        for (place, value) in unpacked.iter().enumerate() {
            prop_assert_eq!(*value, if real(place / width) { flat[place] } else { 0.0 });
        }
    }
}

/// Elementwise operations divide their work into tasks of 16,384 values.
#[test]
fn elementwise_operations_are_right_at_task_boundaries() {
    for count in [0, 1, 15, 16, 17, 16_383, 16_384, 16_385, 32_769] {
        let x = [random("x", &[count])];
        agrees_with_f64(&x, 1e-6, |t| ops::gelu(&t[0]));
        for probability in [0.0, 0.1, 0.999] {
            agrees_with_f64(&x, 1e-4, |t| ops::dropout(&t[0], probability, Some(&DropoutRng::new(3, 4))));
        }
        // A mask depends only on the element's number.
        let drop = |x: &Tensor| ops::dropout(x, 0.5, Some(&DropoutRng::new(3, 4))).unwrap();
        let longer = drop(&random("x", &[count + 3])).narrow(0, 0, count).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(drop(&x[0]).to_vec1::<f32>().unwrap(), longer);
        let square = drop(&x[0].reshape((1, count, 1)).unwrap()).flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(square, longer);
    }
}

#[test]
fn products_have_the_same_bits_in_any_number_of_threads() {
    // Tiles and panels, skinny products, several blocks of the inner dimension, and sizes that fill none of them.
    for (rows, inner, columns) in [(300, 64, 100), (40, 512, 400), (150, 1100, 65), (33, 37, 41)] {
        for (ta, tb) in [(false, false), (true, false), (false, true), (true, true)] {
            let (a, b) = (random("a", &[rows * inner]), random("b", &[inner * columns]));
            let (a, b) = (a.to_vec1::<f32>().unwrap(), b.to_vec1::<f32>().unwrap());
            let product = |threads: usize| {
                in_threads(threads, || {
                    let mut out = vec![0.0; rows * columns];
                    let a = if ta { Matrix::new(&a, inner, rows).t() } else { Matrix::new(&a, rows, inner) };
                    let b = if tb { Matrix::new(&b, columns, inner).t() } else { Matrix::new(&b, inner, columns) };
                    gemm(MatrixMut::new(&mut out, rows, columns), Write::Replace, a, b, Threads::Pool);
                    out
                })
            };
            let one = product(1);
            assert!([2, 3, 5].iter().all(|threads| product(*threads) == one), "{rows} {inner} {columns} {ta} {tb}");
        }
    }
}

#[test]
fn layers_and_their_gradients_have_the_same_bits_in_any_number_of_threads() {
    let (rows, width) = (700, 48);
    let x = random("x", &[rows, width]);
    let (w, b) = (random("w", &[64, width]), random("b", &[64]));
    independent("linear", &[x.clone(), w, b], |v| ops::linear(&v[0], &v[1], &v[2]));
    let (scale, shift) = (random("scale", &[width]), random("shift", &[width]));
    independent("layer norm", &[x.clone(), scale, shift], |v| ops::layer_norm(&v[0], &v[1], &v[2], 1e-12));
    independent("gelu", &[x], |v| ops::gelu(&v[0]));
}

#[test]
fn kernels_of_other_cpus_pass() {
    for kernels in ["avx2", "plain"] {
        common::kernels::passes_with(kernels, &["kernels_of_other_cpus"]);
    }
}
