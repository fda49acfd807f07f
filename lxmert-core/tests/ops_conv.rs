//! Convolution, pooling and RoIAlign against their plain compositions and against finite differences.

mod common;

use candle_core::{Device, Tensor, Var};
use common::{random, relative_difference};
use lxmert_core::ops::{BufferPool, FeatureMap, RoiAlign, conv, pool, roi_align};
use proptest::prelude::*;

type Result<T> = candle_core::Result<T>;

/// Value and gradients of `sum(f(inputs) · random)`.
fn with_gradients(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<(Tensor, Vec<Tensor>)> {
    let vars = inputs.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let y = f(&tensors)?;
    let grads = (&y * random("cotangent", y.dims()))?.sum_all()?.backward()?;
    let grads = tensors.iter().map(|t| grads.get(t).cloned().map_or_else(|| t.zeros_like(), Ok));
    Ok((y.detach(), grads.collect::<Result<_>>()?))
}

/// Checks that the kernel and the composition give the same value and gradients.
fn agree(
    inputs: &[Tensor],
    fast: impl Fn(&[Tensor]) -> Result<Tensor>,
    reference: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let (y, grads) = with_gradients(inputs, fast).unwrap();
    let (expected, expected_grads) = with_gradients(inputs, reference).unwrap();
    assert!(relative_difference(&y, &expected) < 1e-5, "values differ by {}", relative_difference(&y, &expected));
    for (i, (grad, expected)) in grads.iter().zip(&expected_grads).enumerate() {
        assert!(
            relative_difference(grad, expected) < 1e-5,
            "gradient {i} differs by {}",
            relative_difference(grad, expected)
        );
    }
}

/// Checks central differences along a random direction, summed in f64; the loss is smooth in every input.
fn matches_finite_differences(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let (y, grads) = with_gradients(inputs, &f).unwrap();
    let cotangent = random("cotangent", y.dims());
    let dot = |a: &Tensor, b: &Tensor| -> f64 {
        let (a, b) =
            (a.flatten_all().unwrap().to_vec1::<f32>().unwrap(), b.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    for (i, grad) in grads.iter().enumerate() {
        let direction = random("direction", inputs[i].dims());
        let step = 1e-2;
        let moved = |by: f64| {
            let mut inputs = inputs.to_vec();
            inputs[i] = (&inputs[i] + (&direction * by).unwrap()).unwrap();
            dot(&f(&inputs).unwrap(), &cotangent)
        };
        let (numeric, analytic) = ((moved(step) - moved(-step)) / (2.0 * step), dot(grad, &direction));
        // Rounding of the f32 forward passes, divided by the step.
        assert!((numeric - analytic).abs() < 2e-3 * analytic.abs().max(1.0), "input {i}: {numeric} against {analytic}");
    }
}

fn conv_inputs(batch: usize, channels: usize, out: usize, size: (usize, usize), kernel: (usize, usize)) -> Vec<Tensor> {
    vec![
        random("x", &[batch, channels, size.0, size.1]),
        random("w", &[out, channels, kernel.0, kernel.1]),
        random("b", &[out]),
    ]
}

#[test]
fn convolutions_of_a_resnets_layers_equal_the_composition() {
    for (batch, channels, out, size, kernel, stride, padding) in [
        (2, 3, 16, (33, 40), (7, 7), 2, 3),
        (3, 16, 24, (12, 9), (3, 3), 1, 1),
        (2, 16, 8, (13, 10), (3, 3), 2, 1),
        (1, 20, 40, (9, 11), (1, 1), 1, 0),
        (2, 20, 10, (9, 12), (1, 1), 2, 0),
    ] {
        let inputs = conv_inputs(batch, channels, out, size, kernel);
        agree(
            &inputs,
            |t| conv::conv2d(&t[0], &t[1], Some(&t[2]), stride, padding),
            |t| conv::conv2d_reference(&t[0], &t[1], Some(&t[2]), stride, padding),
        );
        agree(
            &inputs[..2],
            |t| conv::conv2d(&t[0], &t[1], None, stride, padding),
            |t| conv::conv2d_reference(&t[0], &t[1], None, stride, padding),
        );
    }
}

#[test]
fn an_image_of_several_tiles_equals_the_composition() {
    // 64 channels · 9 · 100 columns: four output rows fill a tile.
    agree(
        &conv_inputs(1, 64, 8, (30, 100), (3, 3)),
        |t| conv::conv2d(&t[0], &t[1], Some(&t[2]), 1, 1),
        |t| conv::conv2d_reference(&t[0], &t[1], Some(&t[2]), 1, 1),
    );
}

#[test]
fn convolution_matches_finite_differences() {
    for (kernel, stride, padding) in [((3, 3), 1, 1), ((3, 3), 2, 1), ((1, 1), 1, 0), ((1, 1), 2, 0), ((5, 2), 3, 2)] {
        matches_finite_differences(&conv_inputs(2, 4, 5, (7, 6), kernel), |t| {
            conv::conv2d(&t[0], &t[1], Some(&t[2]), stride, padding)
        });
    }
}

#[test]
fn strided_views_are_convolved_correctly() {
    let x = random("x", &[2, 9, 11, 4]).permute((0, 3, 1, 2)).unwrap();
    let w = random("w", &[4, 6, 3, 3]).transpose(0, 1).unwrap();
    let y = conv::conv2d(&x, &w, None, 1, 1).unwrap();
    let expected = conv::conv2d_reference(&x.contiguous().unwrap(), &w.contiguous().unwrap(), None, 1, 1).unwrap();
    assert!(relative_difference(&y, &expected) < 1e-5);
}

#[test]
fn rejects_inputs_that_do_not_fit() {
    let (x, w) = (random("x", &[1, 4, 5, 5]), random("w", &[2, 4, 3, 3]));
    assert!(conv::conv2d(&x, &random("w", &[2, 3, 3, 3]), None, 1, 1).is_err(), "channels");
    assert!(conv::conv2d(&x, &random("w", &[2, 4, 7, 7]), None, 1, 0).is_err(), "kernel");
    assert!(conv::conv2d(&x, &w, Some(&random("b", &[3])), 1, 1).is_err(), "bias");
    assert!(conv::conv2d(&x, &w, None, 0, 1).is_err(), "stride");
    assert!(pool::max_pool2d(&x, 3, 2, 2).is_err(), "padding");
    assert!(pool::max_pool2d(&x, 6, 2, 0).is_err(), "kernel");
    let rois = Tensor::new(&[[1.0f32, 0.0, 0.0, 3.0, 3.0]], &Device::Cpu).unwrap();
    assert!(roi_align::roi_align(&x, &rois, roi_options(0.5, 2)).is_err(), "image index");
}

#[test]
fn pooling_equals_the_composition_and_finite_differences() {
    for (kernel, stride, padding) in [(3, 2, 1), (1, 2, 0), (2, 2, 0), (3, 1, 1), (2, 3, 1)] {
        let x = [random("x", &[2, 3, 9, 7])];
        agree(
            &x,
            |t| pool::max_pool2d(&t[0], kernel, stride, padding),
            |t| pool::max_pool2d_reference(&t[0], kernel, stride, padding),
        );
        // Values 0.05 apart in random order: a step of 0.01 changes no maximum.
        let mut order =
            random("order", &[2 * 3 * 9 * 7]).to_vec1::<f32>().unwrap().into_iter().enumerate().collect::<Vec<_>>();
        order.sort_by(|a, b| a.1.total_cmp(&b.1));
        let spaced: Vec<f32> = order.iter().map(|(i, _)| *i as f32 * 0.05).collect();
        let spaced = Tensor::from_vec(spaced, (2, 3, 9, 7), &Device::Cpu).unwrap();
        matches_finite_differences(&[spaced], |t| pool::max_pool2d(&t[0], kernel, stride, padding));
    }
}

#[test]
fn pooling_keeps_nan_in_the_kernel_and_in_the_composition() {
    let x =
        Tensor::new(&[f32::NAN, 1.0, 2.0, 3.0, f32::NAN, 0.0], &Device::Cpu).unwrap().reshape((1, 1, 2, 3)).unwrap();
    for pooled in [pool::max_pool2d(&x, 2, 1, 0), pool::max_pool2d_reference(&x, 2, 1, 0)] {
        let values: Vec<f32> = pooled.unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert!(values.iter().all(|value| value.is_nan()), "{values:?}");
    }
}

#[test]
fn in_a_tie_the_first_value_gets_the_gradient() {
    let zeros = [Tensor::zeros((1, 1, 4, 4), candle_core::DType::F32, &Device::Cpu).unwrap()];
    agree(&zeros, |t| pool::max_pool2d(&t[0], 3, 2, 1), |t| pool::max_pool2d_reference(&t[0], 3, 2, 1));
}

fn roi_options(spatial_scale: f32, sampling_ratio: usize) -> RoiAlign {
    RoiAlign { spatial_scale, output_size: 3, sampling_ratio }
}

#[test]
fn roi_align_equals_the_composition_and_finite_differences() {
    // Inside, across the border, fully outside, degenerate, larger than the image.
    let rois = [
        [0.0f32, 3.2, 1.7, 14.9, 11.3],
        [1.0, -5.0, -2.5, 6.0, 4.0],
        [0.0, 100.0, 100.0, 120.0, 130.0],
        [1.0, 7.0, 7.0, 7.0, 7.0],
        [0.0, -20.0, -20.0, 60.0, 60.0],
    ];
    let rois = Tensor::new(&rois, &Device::Cpu).unwrap();
    for ratio in [0, 1, 2] {
        let options = roi_options(0.5, ratio);
        let features = [random("features", &[2, 5, 10, 12])];
        agree(
            &features,
            |t| roi_align::roi_align(&t[0], &rois, options),
            |t| roi_align::roi_align_reference(&t[0], &rois, options),
        );
        matches_finite_differences(&features, |t| roi_align::roi_align(&t[0], &rois, options));
    }
}

#[test]
fn roi_align_of_a_ramp_gives_the_bin_centres() {
    // Bilinear interpolation of f(y, x) = 10 y + x is exact, and the samples of a bin average to its centre.
    let ramp: Vec<f32> = (0..64).map(|i| (10 * (i / 8) + i % 8) as f32).collect();
    let ramp = Tensor::from_vec(ramp, (1, 1, 8, 8), &Device::Cpu).unwrap();
    let rois = Tensor::new(&[[2.0f32, 4.0, 8.0, 10.0]], &Device::Cpu).unwrap();
    let y = roi_align::roi_align(&ramp, &rois, roi_options(0.5, 2)).unwrap();
    // The region is x 1..4, y 2..5 in feature pixels, three bins of 1 along each side.
    let expected: Vec<f32> = (0..9).map(|bin| 10.0 * (2.5 + (bin / 3) as f32) + 1.5 + (bin % 3) as f32).collect();
    let expected = Tensor::from_vec(expected, (1, 1, 3, 3), &Device::Cpu).unwrap();
    assert!(relative_difference(&y, &expected) < 1e-6);
}

#[test]
fn empty_inputs_give_empty_outputs() {
    let empty = Tensor::zeros((0, 4, 5, 5), candle_core::DType::F32, &Device::Cpu).unwrap();
    assert_eq!(conv::conv2d(&empty, &random("w", &[2, 4, 3, 3]), None, 2, 1).unwrap().dims(), [0, 2, 3, 3]);
    assert_eq!(pool::max_pool2d(&empty, 3, 2, 1).unwrap().dims(), [0, 4, 3, 3]);
    let no_rois = Tensor::zeros((0, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
    let pooled = roi_align::roi_align(&random("f", &[1, 4, 5, 5]), &no_rois, roi_options(1.0, 2)).unwrap();
    assert_eq!(pooled.dims(), [0, 4, 3, 3]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn convolution_of_any_size_equals_the_composition(
        batch in 1usize..4, channels in 1usize..20, out in 1usize..20, height in 1usize..9, width in 1usize..9,
        kernel_height in 1usize..5, kernel_width in 1usize..5, stride in 1usize..4, padding in 0usize..3,
    ) {
        prop_assume!(kernel_height <= height + 2 * padding && kernel_width <= width + 2 * padding);
        agree(
            &conv_inputs(batch, channels, out, (height, width), (kernel_height, kernel_width)),
            |t| conv::conv2d(&t[0], &t[1], Some(&t[2]), stride, padding),
            |t| conv::conv2d_reference(&t[0], &t[1], Some(&t[2]), stride, padding),
        );
    }

    #[test]
    fn pooling_of_any_size_equals_the_composition(
        batch in 0usize..3, channels in 0usize..5, height in 1usize..12, width in 1usize..12, kernel in 1usize..5,
        stride in 1usize..4, padding in 0usize..3,
    ) {
        let padding = padding.min(kernel / 2);
        prop_assume!(kernel <= height + 2 * padding && kernel <= width + 2 * padding);
        let x = random("x", &[batch, channels, height, width]);
        agree(
            std::slice::from_ref(&x),
            |t| pool::max_pool2d(&t[0], kernel, stride, padding),
            |t| pool::max_pool2d_reference(&t[0], kernel, stride, padding),
        );
        let map = FeatureMap::from_tensor(&x, &BufferPool::new()).unwrap();
        let y = map.max_pool2d(kernel, stride, padding).unwrap().into_tensor().unwrap();
        let expected = pool::max_pool2d_reference(&x, kernel, stride, padding).unwrap();
        prop_assert_eq!(relative_difference(&y, &expected), 0.0);
    }

    #[test]
    fn roi_align_of_any_size_equals_the_composition(
        batch in 1usize..3, channels in 0usize..19, height in 1usize..9, width in 1usize..9,
        corners in proptest::collection::vec((-9f32..25.0, -9f32..25.0, -9f32..25.0, -9f32..25.0), 0..5),
        output_size in 0usize..4, sampling_ratio in 0usize..3,
    ) {
        let rois: Vec<f32> =
            corners.iter().enumerate().flat_map(|(i, c)| [(i % batch) as f32, c.0, c.1, c.2, c.3]).collect();
        let rois = Tensor::from_vec(rois, (corners.len(), 5), &Device::Cpu).unwrap();
        let options = RoiAlign { spatial_scale: 0.5, output_size, sampling_ratio };
        agree(
            &[random("features", &[batch, channels, height, width])],
            |t| roi_align::roi_align(&t[0], &rois, options),
            |t| roi_align::roi_align_reference(&t[0], &rois, options),
        );
    }
}
