//! The inference path of convolutions against the plain composition.

mod common;

use candle_core::{Device, Tensor};
use common::kernels::{random, relative_difference};
use lxmert_core::ops::{BufferPool, FeatureMap, Precision, PrepackedConv2d, Residual, Windows};
use proptest::prelude::*;

/// The same by Candle's own convolution.
fn composed(x: &Tensor, w: &Tensor, b: Option<&Tensor>, stride: usize, padding: usize) -> Tensor {
    let y = x.conv2d(w, padding, stride, 1, 1).unwrap();
    b.map_or(y.clone(), |b| y.broadcast_add(&b.reshape((1, (), 1, 1)).unwrap()).unwrap())
}

struct Case {
    batch: usize,
    channels: usize,
    out: usize,
    size: (usize, usize),
    kernel: usize,
    stride: usize,
    padding: usize,
}

/// Relative to the largest output. Winograd's F(4×4, 3×3) loses about a digit against the direct sum's 1e-6.
const BOUND: f32 = 2e-5;

/// Relative to the largest output of a layer, which may be small. Two 8-bit operands are off by up to 2⁻⁸ together, and
/// the tile transforms magnify that about tenfold.
const BF16_BOUND: f32 = 6e-2;

fn check(case: &Case, relu: bool, residual: bool) {
    check_in(Precision::F32, BOUND, case, relu, residual);
}

fn check_in(precision: Precision, bound: f32, case: &Case, relu: bool, residual: bool) {
    let pool = BufferPool::new();
    let x = random("x", &[case.batch, case.channels, case.size.0, case.size.1]);
    let w = random("w", &[case.out, case.channels, case.kernel, case.kernel]);
    let b = random("b", &[case.out]);
    let mut expected = composed(&x, &w, Some(&b), case.stride, case.padding);
    let added = random("residual", expected.dims());
    if residual {
        expected = (expected + &added).unwrap();
    }
    if relu {
        expected = expected.relu().unwrap();
    }
    let prepacked = PrepackedConv2d::new(&w, Some(&b), case.stride, case.padding, relu, precision).unwrap();
    let map = FeatureMap::from_tensor(&x, &pool).unwrap();
    let added = FeatureMap::from_tensor(&added, &pool).unwrap();
    // Twice, so that the second run uses scratch memory that the first has filled.
    for _ in 0..2 {
        let residual = if residual { Residual::Same(&added) } else { Residual::None };
        let y = prepacked.forward(&map, residual).unwrap().into_tensor().unwrap();
        assert!(relative_difference(&y, &expected) < bound, "differs by {}", relative_difference(&y, &expected));
    }
}

#[test]
fn layers_of_a_resnet_equal_the_composition() {
    for (channels, out, size, kernel, stride, padding) in [
        // More tiles than one task takes, in both directions.
        (16, 33, (9, 301), 3, 1, 1),
        (16, 33, (301, 9), 3, 1, 1),
        (3, 64, (37, 50), 7, 2, 3),
        (64, 64, (19, 30), 3, 1, 1),
        (64, 96, (19, 30), 1, 1, 0),
        (96, 64, (20, 31), 3, 2, 1),
        (64, 128, (20, 31), 1, 2, 0),
        (256, 256, (13, 17), 3, 1, 1),
        (512, 40, (5, 6), 3, 1, 1),
        (256, 15, (13, 17), 1, 1, 0),
        // More channels than are finished together, and not a multiple of them.
        (16, 300, (9, 11), 3, 1, 1),
        (64, 300, (13, 17), 1, 1, 0),
        // A linear layer on the whole image.
        (64, 40, (7, 7), 7, 7, 0),
    ] {
        let case = Case { batch: 1, channels, out, size, kernel, stride, padding };
        check(&case, true, true);
        check(&case, false, false);
    }
    // Regions: more than one task takes, with tiles that reach over the edge on either side, on both, or on neither.
    for size in [(7, 7), (8, 7), (6, 8), (5, 5), (4, 3), (4, 4), (2, 1)] {
        check(&Case { batch: 45, channels: 16, out: 40, size, kernel: 3, stride: 1, padding: 1 }, true, true);
    }
}

#[test]
fn a_coarser_map_is_upsampled_before_it_is_added() {
    let pool = BufferPool::new();
    for ((height, width), (coarse_height, coarse_width)) in [((8, 10), (4, 5)), ((5, 7), (3, 4)), ((6, 6), (6, 6))] {
        let x = random("x", &[2, 16, height, width]);
        let coarse = random("coarse", &[2, 24, coarse_height, coarse_width]);
        for kernel in [1, 3] {
            let w = random("w", &[24, 16, kernel, kernel]);
            let prepacked = PrepackedConv2d::new(&w, None, 1, kernel / 2, false, Precision::F32).unwrap();
            let (x_map, coarse_map) =
                (FeatureMap::from_tensor(&x, &pool).unwrap(), FeatureMap::from_tensor(&coarse, &pool).unwrap());
            let y = prepacked.forward(&x_map, Residual::Upsampled(&coarse_map)).unwrap().into_tensor().unwrap();
            // torch's nearest: ⌊i · (from / to)⌋
            let pick = |from: usize, to: usize| {
                let at: Vec<u32> = (0..to).map(|i| (i as f32 * (from as f32 / to as f32)) as u32).collect();
                Tensor::from_vec(at, to, &Device::Cpu).unwrap()
            };
            let rows = coarse.index_select(&pick(coarse_height, height), 2).unwrap();
            let upsampled = rows.index_select(&pick(coarse_width, width), 3).unwrap();
            let expected = (composed(&x, &w, None, 1, kernel / 2) + upsampled).unwrap();
            assert!(relative_difference(&y, &expected) < BOUND);
        }
    }
}

/// A residual block's last convolution takes the block's input through a projection; the mean over each image's pixels is a
/// region's feature.
#[test]
fn a_projection_is_added_and_the_result_averaged() {
    let pool = BufferPool::new();
    let map = |x: &Tensor| FeatureMap::from_tensor(x, &pool).unwrap();
    let layer = |name: &str, (inputs, out, kernel, stride): (usize, usize, usize, usize), relu: bool| {
        let (w, b) = (random(name, &[out, inputs, kernel, kernel]), random(&format!("{name}.bias"), &[out]));
        let prepacked = PrepackedConv2d::new(&w, Some(&b), stride, kernel / 2, relu, Precision::F32).unwrap();
        let plain = move |x: &Tensor| composed(x, &w, Some(&b), stride, kernel / 2);
        (prepacked, plain)
    };
    // The 3 × 3 kernel uses Winograd's transforms, the stride of 2 gathers, and 300 channels are several groups.
    for (kernel, stride, (height, width)) in [(1, 1, (13, 17)), (1, 2, (13, 17)), (3, 1, (7, 7)), (1, 1, (2, 3))] {
        let y = random("y", &[3, 48, height, width]);
        let x = random("x", &[3, 32, height * stride - (stride - 1), width * stride - (stride - 1)]);
        let (last, plain) = layer("w", (48, 300, kernel, 1), true);
        let (projection, projected) = layer("projection", (32, 300, 1, stride), false);
        let (y_map, x_map) = (map(&y), map(&x));
        let expected = (plain(&y) + projected(&x)).unwrap().relu().unwrap();
        let residual = Residual::Projected(&x_map, &projection);
        let got = last.forward(&y_map, residual).unwrap().into_tensor().unwrap();
        assert!(relative_difference(&got, &expected) < BOUND, "{}", relative_difference(&got, &expected));

        let expected = expected.mean((2, 3)).unwrap();
        let got = last.forward_means(&y_map, residual, height * width).unwrap();
        let got = Tensor::from_vec(got, (3, 300), &Device::Cpu).unwrap();
        assert!(relative_difference(&got, &expected) < BOUND, "{}", relative_difference(&got, &expected));
        let (narrow, _) = layer("narrow", (32, 299, 1, stride), false);
        assert!(last.forward(&y_map, Residual::Projected(&x_map, &narrow)).is_err());
    }
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() {
    let x = random("x", &[1, 32, 45, 50]);
    for (kernel, stride) in [(3, 1), (3, 2), (1, 1)] {
        let prepacked = PrepackedConv2d::new(
            &random("w", &[40, 32, kernel, kernel]),
            None,
            stride,
            kernel / 2,
            true,
            Precision::F32,
        )
        .unwrap();
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let map = FeatureMap::from_tensor(&x, &BufferPool::new()).unwrap();
                prepacked.forward(&map, Residual::None).unwrap().values().to_vec()
            })
        };
        assert_eq!(run(1), run(3));
    }
}

#[test]
fn rejects_inputs_that_do_not_fit() {
    let pool = BufferPool::new();
    let w = random("w", &[8, 16, 3, 3]);
    let prepacked = PrepackedConv2d::new(&w, None, 1, 1, false, Precision::F32).unwrap();
    let map = |shape: &[usize]| FeatureMap::from_tensor(&random("x", shape), &pool).unwrap();
    assert!(prepacked.forward(&map(&[1, 15, 5, 5]), Residual::None).is_err(), "channels");
    assert!(prepacked.forward(&map(&[1, 16, 5, 5]), Residual::Same(&map(&[1, 8, 5, 4]))).is_err(), "residual");
    assert!(prepacked.forward(&map(&[1, 16, 5, 5]), Residual::Upsampled(&map(&[1, 7, 2, 2]))).is_err(), "residual");
    assert!(
        PrepackedConv2d::new(&w, None, 1, 0, false, Precision::F32)
            .unwrap()
            .forward(&map(&[1, 16, 2, 2]), Residual::None)
            .is_err()
    );
    assert!(Windows::new((1, 2, 2), (3, 3), 1, 0).is_err(), "kernel");
    assert!(Windows::new((1, 2, 2), (1, 1), 0, 0).is_err(), "stride");
    assert!(Windows::new((1, 0, 0), (1, 1), 1, 0).is_err(), "an image of no pixels");
    assert!(PrepackedConv2d::new(&w, Some(&random("b", &[7])), 1, 1, false, Precision::F32).is_err(), "bias");
    assert_eq!(prepacked.forward(&map(&[0, 16, 5, 5]), Residual::None).unwrap().shape(), [0, 5, 5, 8]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_size_equals_the_composition(
        batch in 1usize..3, channels in prop_oneof![1usize..20, Just(16), Just(48)], out in 1usize..70,
        height in 1usize..14, width in 1usize..14, kernel in prop_oneof![Just(1usize), Just(3), 1usize..5],
        stride in 1usize..3, padding in 0usize..3, relu: bool, residual: bool,
    ) {
        prop_assume!(kernel <= height + 2 * padding && kernel <= width + 2 * padding);
        let case = Case { batch, channels, out, size: (height, width), kernel, stride, padding };
        check(&case, relu, residual);
        check_in(Precision::Bf16, BF16_BOUND, &case, relu, residual);
    }
}

#[test]
fn kernels_of_other_cpus_pass() {
    for kernels in ["avx2", "plain"] {
        common::kernels::passes_with(kernels, &["kernels_of_other_cpus"]);
    }
}
