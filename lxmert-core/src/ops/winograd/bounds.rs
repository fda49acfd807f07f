//! The transforms with checked bounds, against the matrices of the paper.

use super::super::checked::{Checked, Lent, strays};
use super::*;
use crate::procedural;
use proptest::prelude::*;

/// `Bᵀ` and `Aᵀ` of Lavin & Gray 2016, §4.3.
const B: [[f64; IN]; IN] = [
    [4.0, 0.0, -5.0, 0.0, 1.0, 0.0],
    [0.0, -4.0, -4.0, 1.0, 1.0, 0.0],
    [0.0, 4.0, -4.0, -1.0, 1.0, 0.0],
    [0.0, -2.0, -1.0, 2.0, 1.0, 0.0],
    [0.0, 2.0, -1.0, -2.0, 1.0, 0.0],
    [0.0, 4.0, 0.0, -5.0, 0.0, 1.0],
];
const A: [[f64; IN]; OUT] = [
    [1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
    [0.0, 1.0, -1.0, 2.0, -2.0, 0.0],
    [0.0, 1.0, 1.0, 4.0, 4.0, 0.0],
    [0.0, 1.0, -1.0, 8.0, -8.0, 1.0],
];

/// Place (i, j) of `m d mᵀ`.
fn sandwich<const N: usize>(m: &[[f64; IN]; N], i: usize, j: usize, d: impl Fn(usize) -> f32) -> f64 {
    (0..PLACES).map(|place| m[i][place / IN] * f64::from(d(place)) * m[j][place % IN]).sum()
}

unsafe fn checked_input<const N: usize>(from: &[*const f32; PLACES], channels: usize, out: *mut f32, stride: usize) {
    // SAFETY: every address is checked.
    unsafe { super::input::<Checked<N>>(from, channels, out, stride) }
}

unsafe fn checked_output<const N: usize>(products: *const f32, stride: usize, patch: *mut f32, count: usize) {
    // SAFETY: every address is checked.
    unsafe { super::output::<Checked<N>>(products, stride, patch, count) }
}

fn transforms() -> [Transforms; 3] {
    [
        Transforms { lanes: 4, input: checked_input::<4>, output: checked_output::<4> },
        Transforms { lanes: 8, input: checked_input::<8>, output: checked_output::<8> },
        Transforms { lanes: 16, input: checked_input::<16>, output: checked_output::<16> },
    ]
}

/// A tile's pixels, some of them in the padding as at an image's corner, all others one after another.
fn sources<'a>(pixels: &'a [f32], zeros: &'a [f32], padded: usize) -> [&'a [f32]; PLACES] {
    std::array::from_fn(|i| if i < padded { zeros } else { &pixels[i * zeros.len()..][..zeros.len()] })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn transforms_stay_within_their_slices(blocks in 0usize..4, gap in 0usize..20, padded in 0usize..PLACES) {
        for transforms in transforms() {
            let channels = blocks * transforms.lanes;
            let stride = channels + gap;
            let pixels = procedural::values("pixels", PLACES * channels, -1.0, 1.0, 5);
            let zeros = vec![0.0; channels];
            let sources = sources(&pixels, &zeros, padded);
            let mut places = vec![f32::NAN; (PLACES - 1) * stride + channels];
            let lent = Lent::new(&[&pixels, &zeros], &[&places]);
            transforms.input(&sources, &mut places, stride);
            drop(lent);
            let mut patch = vec![f32::NAN; OUT * OUT * channels];
            let lent = Lent::new(&[&places], &[&patch]);
            transforms.output(&places, stride, &mut patch, channels);
            drop(lent);
            for channel in 0..channels {
                for place in 0..PLACES {
                    let expected = sandwich(&B, place / IN, place % IN, |place| sources[place][channel]);
                    prop_assert!((f64::from(places[place * stride + channel]) - expected).abs() < 2e-5);
                }
                for pixel in 0..OUT * OUT {
                    let expected = sandwich(&A, pixel / OUT, pixel % OUT, |place| places[place * stride + channel]);
                    let error = (f64::from(patch[pixel * channels + channel]) - expected).abs();
                    // Sums of up to 18² values of up to 100.
                    prop_assert!(error < 1e-6 * 18.0 * 18.0 * 100.0, "{}", error);
                }
            }
            prop_assert!(places.chunks(stride.max(1)).all(|place| place[channels.min(place.len())..].iter().all(|v| v.is_nan())));
        }
    }
}

#[test]
fn a_slice_that_is_one_value_short_is_noticed() {
    for transforms in transforms() {
        let channels = 2 * transforms.lanes;
        let stride = channels + 1;
        let (pixels, zeros) = (vec![1.0; PLACES * channels], vec![0.0; channels]);
        let sources = sources(&pixels, &zeros, 3);
        let mut places = vec![0.0; (PLACES - 1) * stride + channels];
        let mut patch = vec![0.0; OUT * OUT * channels];
        let all = [pixels.len(), zeros.len(), places.len(), patch.len()];
        for which in 0..all.len() {
            let mut lens = all;
            lens[which] -= 1;
            let lent = Lent::new(&[&pixels[..lens[0]], &zeros[..lens[1]]], &[&places[..lens[2]], &patch[..lens[3]]]);
            let strayed = strays(|| {
                transforms.input(&sources, &mut places, stride);
                transforms.output(&places, stride, &mut patch, channels);
            });
            drop(lent);
            assert!(strayed, "operand {which}");
        }
    }
}
