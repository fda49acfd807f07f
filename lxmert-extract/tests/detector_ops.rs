//! The detector's own operations against their plain compositions and finite differences, with any number of threads.

#[path = "../../lxmert-core/tests/common/kernels.rs"]
mod kernels;

use candle_core::{Device, Tensor, Var};
use kernels::{
    agrees_with_f64, bits, check_gradients, independent, passes_with, random, relative_difference, run_in, variable,
};
use lxmert_core::ops::{BufferPool, FeatureMap};
use lxmert_extract::detector::ops::{batch_norm, conv, max_pool};
use lxmert_extract::detector::roi_align::{self, LevelRegion, RoiAlign};
use proptest::prelude::*;

type Result<T> = candle_core::Result<T>;

/// Value and gradients of `sum(f(inputs) · cotangent)`; `cotangent` makes one of a shape.
fn with_gradients(
    inputs: &[Tensor],
    cotangent: impl Fn(&[usize]) -> Tensor,
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<(Tensor, Vec<Tensor>)> {
    let vars = inputs.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let y = f(&tensors)?;
    let grads = (&y * cotangent(y.dims()))?.sum_all()?.backward()?;
    let grads = tensors.iter().map(|t| grads.get(t).cloned().map_or_else(|| t.zeros_like(), Ok));
    Ok((y.detach(), grads.collect::<Result<_>>()?))
}

/// Checks that the kernel and the composition give the same value and gradients.
fn agree(
    inputs: &[Tensor],
    fast: impl Fn(&[Tensor]) -> Result<Tensor>,
    reference: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    // In 1..3: a bias's gradient is their sum, which does not cancel.
    let cotangent = |shape: &[usize]| (random("cotangent", shape) + 2.0).unwrap();
    let (y, grads) = with_gradients(inputs, cotangent, fast).unwrap();
    let (expected, expected_grads) = with_gradients(inputs, cotangent, reference).unwrap();
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
    let (y, grads) = with_gradients(inputs, |shape| random("cotangent", shape), &f).unwrap();
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
        (2, 6, 10, (4, 5), (4, 5), 1, 0),
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
    for (kernel, stride, padding) in
        [((3, 3), 1, 1), ((3, 3), 2, 1), ((1, 1), 1, 0), ((1, 1), 2, 0), ((5, 2), 3, 2), ((7, 6), 1, 0)]
    {
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
    assert!(max_pool::max_pool2d(&x, 3, 2, 2).is_err(), "padding");
    assert!(max_pool::max_pool2d(&x, 6, 2, 0).is_err(), "kernel");
    let rois = Tensor::new(&[[1.0f32, 0.0, 0.0, 3.0, 3.0]], &Device::Cpu).unwrap();
    assert!(roi_align::roi_align(&x, &rois, roi_options(0.5, 2)).is_err(), "image index");
}

#[test]
fn pooling_equals_the_composition_and_finite_differences() {
    for (kernel, stride, padding) in [(3, 2, 1), (1, 2, 0), (2, 2, 0), (3, 1, 1), (2, 3, 1)] {
        let x = [random("x", &[2, 3, 9, 7])];
        agree(
            &x,
            |t| max_pool::max_pool2d(&t[0], kernel, stride, padding),
            |t| max_pool::max_pool2d_reference(&t[0], kernel, stride, padding),
        );
        // Values 0.05 apart in random order: a step of 0.01 changes no maximum.
        let mut order =
            random("order", &[2 * 3 * 9 * 7]).to_vec1::<f32>().unwrap().into_iter().enumerate().collect::<Vec<_>>();
        order.sort_by(|a, b| a.1.total_cmp(&b.1));
        let spaced: Vec<f32> = order.iter().map(|(i, _)| *i as f32 * 0.05).collect();
        let spaced = Tensor::from_vec(spaced, (2, 3, 9, 7), &Device::Cpu).unwrap();
        matches_finite_differences(&[spaced], |t| max_pool::max_pool2d(&t[0], kernel, stride, padding));
    }
}

#[test]
fn pooling_keeps_nan_in_the_kernel_and_in_the_composition() {
    let x =
        Tensor::new(&[f32::NAN, 1.0, 2.0, 3.0, f32::NAN, 0.0], &Device::Cpu).unwrap().reshape((1, 1, 2, 3)).unwrap();
    for pooled in [max_pool::max_pool2d(&x, 2, 1, 0), max_pool::max_pool2d_reference(&x, 2, 1, 0)] {
        let values: Vec<f32> = pooled.unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert!(values.iter().all(|value| value.is_nan()), "{values:?}");
    }
}

#[test]
fn in_a_tie_the_first_value_gets_the_gradient() {
    let zeros = [Tensor::zeros((1, 1, 4, 4), candle_core::DType::F32, &Device::Cpu).unwrap()];
    agree(&zeros, |t| max_pool::max_pool2d(&t[0], 3, 2, 1), |t| max_pool::max_pool2d_reference(&t[0], 3, 2, 1));
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
    assert_eq!(max_pool::max_pool2d(&empty, 3, 2, 1).unwrap().dims(), [0, 4, 3, 3]);
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
            |t| max_pool::max_pool2d(&t[0], kernel, stride, padding),
            |t| max_pool::max_pool2d_reference(&t[0], kernel, stride, padding),
        );
        let map = FeatureMap::from_tensor(&x, &BufferPool::new()).unwrap();
        let y = max_pool::max_pool_map(&map, kernel, stride, padding).unwrap().into_tensor().unwrap();
        let expected = max_pool::max_pool2d_reference(&x, kernel, stride, padding).unwrap();
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

#[test]
fn batch_norm_matches_finite_differences() {
    let (x, w, b) = (variable("x", &[2, 3, 3, 2]), variable("w", &[3]), variable("b", &[3]));
    check_gradients(&[&x, &w, &b], || Ok(batch_norm(&x, &w, &b, 1e-2, false)?.y));
    // The ReLU passes all of a channel or nothing: it has no derivative at 0.
    let b = Var::from_tensor(&Tensor::new(&[5f32, -5.0, 5.0], &Device::Cpu).unwrap()).unwrap();
    check_gradients(&[&x, &w, &b], || Ok(batch_norm(&x, &w, &b, 1e-2, true)?.y));
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
    fn batch_norm_equals_the_composition(
        batch in 1usize..4, channels in 1usize..19, height in 1usize..6, width in 1usize..6, relu: bool,
    ) {
        // The ReLU passes all of a channel or nothing: near 0, rounding would decide the gradient.
        let bias: Vec<f32> = (0..channels).map(|channel| if channel % 2 == 0 { 20.0 } else { -20.0 }).collect();
        let bias = Tensor::from_vec(bias, channels, &Device::Cpu).unwrap();
        let inputs = [random("x", &[batch, channels, height, width]), random("w", &[channels]), bias];
        agrees_with_f64(&inputs, 5e-5, |t| Ok(batch_norm(&t[0], &t[1], &t[2], 0.1, relu)?.y));
    }

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
            let map = roi_align::roi_align_levels(&borrowed, &regions, &pool).unwrap();
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
    let map = roi_align::roi_align_levels(&[(&level, options)], &[region], &BufferPool::new()).unwrap();
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
            let map = roi_align::roi_align_levels(&[(&level, options)], &[region], &BufferPool::new()).unwrap();
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
        roi_align::roi_align_levels(levels, &[region], &BufferPool::new()).map(|map| map.shape())
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

#[test]
fn values_and_gradients_have_the_same_bits_in_any_number_of_threads() {
    let maps = random("maps", &[5, 7, 13, 11]);
    let (scale, shift) = (random("scale", &[7]), random("shift", &[7]));
    independent("batch norm", &[maps.clone(), scale, shift], |v| Ok(batch_norm(&v[0], &v[1], &v[2], 1e-5, true)?.y));
    independent("max pool", std::slice::from_ref(&maps), |v| max_pool::max_pool2d(&v[0], 3, 2, 1));
    let rois: Vec<f32> =
        (0..20).flat_map(|i| [(i % 5) as f32, i as f32 / 3.0, 1.0, 9.0, 5.0 + i as f32 / 4.0]).collect();
    let rois = Tensor::from_vec(rois, (20, 5), &Device::Cpu).unwrap();
    let options = RoiAlign { spatial_scale: 0.9, output_size: 3, sampling_ratio: 0 };
    independent("roi align", &[maps], |v| roi_align::roi_align(&v[0], &rois, options));
}

#[test]
fn a_convolutions_sums_over_the_batch_differ_only_by_rounding() {
    let inputs = [random("x", &[7, 16, 20, 19]), random("w", &[33, 16, 3, 3]), random("b", &[33])];
    let f = |v: &[Var]| conv::conv2d(&v[0], &v[1], Some(&v[2]), 1, 1);
    let one = run_in(1, &inputs, f);
    for threads in [2, 3] {
        let more = run_in(threads, &inputs, f);
        assert_eq!(bits(&one[0]), bits(&more[0]), "values");
        assert_eq!(bits(&one[1]), bits(&more[1]), "gradient with respect to the input");
        for which in [2, 3] {
            let far = (&one[which] - &more[which]).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
            let size = one[which].abs().unwrap().flatten_all().unwrap().max(0).unwrap();
            let (far, size) = (far.to_scalar::<f32>().unwrap(), size.to_scalar::<f32>().unwrap());
            assert!(far < 2e-6 * size, "gradient {which}: {far:e} of {size}");
        }
        let again = run_in(threads, &inputs, f);
        assert!(more.iter().zip(&again).all(|(a, b)| bits(a) == bits(b)), "differs between runs");
    }
}

#[test]
fn kernels_of_other_cpus_pass() {
    for kernels in ["avx2", "plain"] {
        passes_with(kernels, &["kernels_of_other_cpus"]);
    }
}
