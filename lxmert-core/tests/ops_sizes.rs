//! The kernels at sizes around the edges of their tiles, blocks and registers, and at sizes 0 and 1: products against
//! the plain loop; the other operations with their gradients against the plain composition in f64 (the same call, since
//! kernels take only f32).

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::gradients::weigh;
use common::random;
use lxmert_core::ops::{
    self, BufferPool, DropoutRng, FeatureMap, LevelRegion, Matrix, MatrixMut, Precision, PrepackedLinear, Ragged,
    RoiAlign, Threads, Write, gemm, roi_align_levels,
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

/// The inner dimension: registers of 16, blocks of 512.
fn inner() -> impl Strategy<Value = usize> {
    prop_oneof![0usize..3, 15usize..18, 31usize..34, Just(48), 511usize..514, 1023usize..1026]
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
        gaps in (0usize..3, 0usize..3, 0usize..3), alpha in prop_oneof![Just(1f32), Just(-0.5)],
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
            alpha,
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
            let expected = f64::from(alpha) * sum + if add { 2.0 } else { 0.0 };
            let error = (f64::from(*value) - expected).abs();
            prop_assert!(error < (1e-6 * (1.0 + size)).min(1e-4), "{} at {} {}", error, i, j);
        }
    }
}

/// The largest difference from an f64 tensor; 0 if empty.
fn distance(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.dims(), want.dims());
    if want.elem_count() == 0 {
        return 0.0;
    }
    let d = (got.to_dtype(DType::F64).unwrap() - want).unwrap().abs().unwrap();
    d.flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

/// Checks that values and gradients of `f` for f32 inputs, where the kernels run, equal those for f64 inputs.
fn agree(inputs: &[Tensor], bound: f64, f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let run = |dtype| {
        let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(&t.to_dtype(dtype).unwrap()).unwrap()).collect();
        let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let y = f(&tensors).unwrap();
        let gradients = weigh(&y).unwrap().backward().unwrap();
        let gradients: Vec<Tensor> =
            tensors.iter().map(|t| gradients.get(t).cloned().unwrap_or_else(|| t.zeros_like().unwrap())).collect();
        (y, gradients)
    };
    let ((y, gradients), (want, wanted)) = (run(DType::F32), run(DType::F64));
    assert!(distance(&y, &want) < bound, "values differ by {:e}", distance(&y, &want));
    for (i, (got, want)) in gradients.iter().zip(&wanted).enumerate() {
        let size = want.abs().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap() / want.elem_count().max(1) as f64;
        let far = distance(got, want);
        assert!(far < bound * (1.0 + size), "gradient {i} differs by {far:e}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn linear_layers_equal_the_composition(batch in 0usize..3, rows in rows(), inner in inner(), out in columns()) {
        let inputs = [random("x", &[batch, rows, inner]), random("w", &[out, inner]), random("b", &[out])];
        // Sums of as many terms as the largest side; each term is a quarter on average.
        let terms = inner.max(out).max(batch * rows) as f64;
        agree(&inputs, 1e-6 * (1.0 + terms / 4.0), |t| ops::linear(&t[0], &t[1], &t[2]));
    }

    #[test]
    fn prepacked_linear_layers_equal_the_composition(
        rows in rows(), inner in inner(), out in columns(), relu: bool, bf16: bool,
    ) {
        prop_assume!(inner > 0 && out > 0);
        let (x, w, b) = (random("x", &[rows, inner]), random("w", &[out, inner]), random("b", &[out]));
        let (precision, seen) = if bf16 { (Precision::Bf16, DType::BF16) } else { (Precision::F32, DType::F32) };
        let layer = PrepackedLinear::new(&w, Some(&b), relu, precision).unwrap();
        let map = FeatureMap::from_tensor(&x.reshape((rows, inner, 1, 1)).unwrap(), &BufferPool::new()).unwrap();
        let y = layer.forward(&map).unwrap().into_tensor().unwrap().reshape((rows, out)).unwrap();
        let wide = |t: &Tensor, seen| t.to_dtype(seen).unwrap().to_dtype(DType::F64).unwrap();
        let want = ops::linear(&wide(&x, seen), &wide(&w, seen), &wide(&b, DType::F32)).unwrap();
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
        agree(&inputs, 2e-5, |t| ops::layer_norm(&t[0], &t[1], &t[2], 1e-2));
    }

    #[test]
    fn batch_norm_equals_the_composition(
        batch in 1usize..4, channels in 1usize..19, height in 1usize..6, width in 1usize..6, relu: bool,
    ) {
        // The ReLU passes all of a channel or nothing: near 0, rounding would decide the gradient.
        let bias: Vec<f32> = (0..channels).map(|channel| if channel % 2 == 0 { 20.0 } else { -20.0 }).collect();
        let bias = Tensor::from_vec(bias, channels, &Device::Cpu).unwrap();
        let inputs = [random("x", &[batch, channels, height, width]), random("w", &[channels]), bias];
        agree(&inputs, 5e-5, |t| Ok(ops::batch_norm(&t[0], &t[1], &t[2], 0.1, relu)?.y));
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

/// One region by torchvision's `roi_align_kernel.cpp`, point by point: positions in f32 as there, since a point just
/// outside counts as zero, and a bilinear sample as the sum over all pixels, each weighted by two hat functions.
/// `[output_size, output_size, channels]`.
fn pooled_by_points(level: &Tensor, region: &LevelRegion, options: RoiAlign) -> Vec<f64> {
    let channels = level.get(region.image).unwrap().to_vec3::<f32>().unwrap();
    let [x0, y0, x1, y1] = region.xyxy.map(|side| side * options.spatial_scale);
    // The hat functions' weights for each point of each bin of an axis.
    let axis = |start: f32, length: f32, size: usize| -> Vec<Vec<Vec<f64>>> {
        let bin = length.max(1.0) / options.output_size as f32;
        let count = if options.sampling_ratio > 0 { options.sampling_ratio } else { bin.ceil() as usize };
        let hats = |at: f32| -> Vec<f64> {
            let inside = (-1.0..=size as f32).contains(&at);
            let at = f64::from(at).clamp(0.0, (size - 1) as f64);
            (0..size).map(|i| if inside { (1.0 - (at - i as f64).abs()).max(0.0) } else { 0.0 }).collect()
        };
        let point = |p: usize, i: usize| hats(start + p as f32 * bin + (i as f32 + 0.5) * bin / count as f32);
        (0..options.output_size).map(|p| (0..count).map(|i| point(p, i)).collect()).collect()
    };
    let (rows, columns) = (axis(y0, y1 - y0, channels[0].len()), axis(x0, x1 - x0, channels[0][0].len()));
    let mut out = Vec::new();
    for (row, column) in rows.iter().flat_map(|row| columns.iter().map(move |column| (row, column))) {
        for channel in &channels {
            let mut sum = 0.0;
            for (y, x) in row.iter().flat_map(|y| column.iter().map(move |x| (y, x))) {
                for (weight, line) in y.iter().zip(channel) {
                    sum += weight * x.iter().zip(line).map(|(x, value)| x * f64::from(*value)).sum::<f64>();
                }
            }
            out.push(sum / (row.len() * column.len()).max(1) as f64);
        }
    }
    out
}

/// A region's start: inside the maps or outside, also at half pixels, where points meet pixels and borders.
fn corner() -> impl Strategy<Value = f32> {
    prop_oneof![-12f32..28.0, (-24i8..56).prop_map(|halves| f32::from(halves) / 2.0)]
}

/// A region's side: zero, negative, and up to larger than the maps.
fn side() -> impl Strategy<Value = f32> {
    prop_oneof![Just(0f32), -4f32..0.0, 0f32..3.0, (0u8..40).prop_map(f32::from)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pyramid_regions_equal_pointwise_samples(
        sides in proptest::collection::vec((prop_oneof![Just(1usize), 1usize..9], prop_oneof![Just(1usize), 1usize..9]), 1..4),
        batch in 1usize..3, channels in prop_oneof![1usize..4, 7usize..10, 15usize..18, 31usize..34],
        boxes in proptest::collection::vec((corner(), corner(), side(), side()), 0..6),
        output_size in 0usize..4, sampling_ratio in 0usize..3,
    ) {
        let levels: Vec<(Tensor, RoiAlign)> = sides.iter().enumerate().map(|(i, &(height, width))| {
            let options = RoiAlign { spatial_scale: 0.5f32.powi(i as i32), output_size, sampling_ratio };
            (random(&format!("level {i}"), &[batch, channels, height, width]), options)
        }).collect();
        let regions: Vec<LevelRegion> = boxes.iter().enumerate().map(|(i, &(x, y, width, height))| {
            LevelRegion { level: i % levels.len(), image: i / 2 % batch, xyxy: [x, y, x + width, y + height] }
        }).collect();
        let borrowed: Vec<_> = levels.iter().map(|(level, options)| (level, *options)).collect();
        let pool = BufferPool::new();
        // The second run reuses the first one's memory, which is not empty.
        for _ in 0..2 {
            let map = roi_align_levels(&borrowed, &regions, &pool).unwrap();
            prop_assert_eq!(map.shape(), [regions.len(), output_size, output_size, channels]);
            let want: Vec<f64> = regions.iter().flat_map(|region| {
                let (level, options) = &levels[region.level];
                pooled_by_points(level, region, *options)
            }).collect();
            prop_assert_eq!(map.values().len(), want.len());
            for (place, (value, want)) in map.values().iter().zip(&want).enumerate() {
                prop_assert!((f64::from(*value) - want).abs() < 1e-5, "{} for {} at {}", value, want, place);
            }
        }
    }
}

#[test]
fn a_region_far_larger_than_its_map_takes_no_more_points() {
    let level = random("level", &[1, 2, 1, 1]);
    let options = RoiAlign { spatial_scale: 1.0, output_size: 1, sampling_ratio: 0 };
    let region = LevelRegion { level: 0, image: 0, xyxy: [0.0, 0.0, 0.0, 21.0] };
    let want = pooled_by_points(&level, &region, options);
    let map = roi_align_levels(&[(&level, options)], &[region], &BufferPool::new()).unwrap();
    for (value, want) in map.values().iter().zip(want) {
        assert!((f64::from(*value) - want).abs() < 1e-6, "{value} for {want}");
    }
}

#[test]
fn regions_outside_the_map_are_zero() {
    let level = random("level", &[1, 3, 4, 5]);
    for sampling_ratio in [0, 2] {
        let options = RoiAlign { spatial_scale: 1.0, output_size: 2, sampling_ratio };
        for far in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30] {
            let region = LevelRegion { level: 0, image: 0, xyxy: [far, 0.0, far, 2.0] };
            let map = roi_align_levels(&[(&level, options)], &[region], &BufferPool::new()).unwrap();
            assert!(map.values().iter().all(|value| *value == 0.0), "{far}: {:?}", map.values());
        }
    }
}

#[test]
fn rejects_regions_of_unknown_levels_or_images() {
    let options = RoiAlign { spatial_scale: 1.0, output_size: 2, sampling_ratio: 2 };
    let (level, empty, other) =
        (random("level", &[2, 3, 4, 5]), random("empty", &[2, 3, 0, 5]), random("other", &[2, 4, 4, 5]));
    let pooled = |levels: &[(&Tensor, RoiAlign)], level, image| {
        let region = LevelRegion { level, image, xyxy: [0.0, 0.0, 2.0, 2.0] };
        roi_align_levels(levels, &[region], &BufferPool::new()).map(|map| map.shape())
    };
    let levels = [(&level, options), (&empty, options)];
    assert_eq!(pooled(&levels, 0, 1).unwrap(), [1, 2, 2, 3]);
    assert!(pooled(&levels, 0, 2).is_err(), "image");
    assert!(pooled(&levels, 1, 0).is_err(), "a level of no pixels");
    assert!(pooled(&levels, 2, 0).is_err(), "level");
    assert!(pooled(&[], 0, 0).is_err(), "no levels");
    assert!(pooled(&[(&level, options), (&other, options)], 0, 0).is_err(), "channels");
    assert!(pooled(&[(&level, options), (&level, RoiAlign { output_size: 3, ..options })], 0, 0).is_err(), "sizes");
}

/// Elementwise operations divide their work into tasks of 16,384 values.
#[test]
fn elementwise_operations_are_right_at_task_boundaries() {
    for count in [0, 1, 15, 16, 17, 16_383, 16_384, 16_385, 32_769] {
        let x = [random("x", &[count])];
        agree(&x, 1e-6, |t| ops::gelu(&t[0]));
        for probability in [0.0, 0.1, 0.999] {
            agree(&x, 1e-4, |t| ops::dropout(&t[0], probability, Some(&DropoutRng::new(3, 4))));
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
fn kernels_of_other_cpus_pass() {
    for kernels in ["avx2", "plain"] {
        common::passes_with(kernels, &["kernels_of_other_cpus"]);
    }
}
