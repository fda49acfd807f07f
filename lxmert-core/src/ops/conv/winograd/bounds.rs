//! The transforms with checked bounds, against the matrices of the paper.

use super::super::super::checked::{Checked, Lent, assert_every_value_is_needed};
use super::*;
use crate::procedural;
use proptest::prelude::*;

/// `Bᵀ` and `Aᵀ` of Lavin & Gray 2016, §4.3, for the points 0, ±a, ±b and ∞: row by row the coefficients of the polynomials
/// that vanish at all points but one, and the powers of the points.
fn matrices() -> ([[f64; IN]; IN], [[f64; IN]; OUT]) {
    let (a, b) = (f64::from(A), f64::from(B));
    let (aa, bb) = (a * a, b * b);
    let row = |p: f64, other: f64| [0.0, -p * other, -other, p, 1.0, 0.0];
    let input = [
        [aa * bb, 0.0, -aa - bb, 0.0, 1.0, 0.0],
        row(a, bb),
        row(-a, bb),
        row(b, aa),
        row(-b, aa),
        [0.0, aa * bb, 0.0, -aa - bb, 0.0, 1.0],
    ];
    let powers = |n: i32| [0f64.powi(n), a.powi(n), (-a).powi(n), b.powi(n), (-b).powi(n), f64::from(u8::from(n == 3))];
    (input, [powers(0), powers(1), powers(2), powers(3)])
}

/// Place (i, j) of `m d mᵀ`.
fn sandwich<const N: usize>(m: &[[f64; IN]; N], i: usize, j: usize, d: impl Fn(usize) -> f32) -> f64 {
    (0..PLACES).map(|place| m[i][place / IN] * f64::from(d(place)) * m[j][place % IN]).sum()
}

unsafe fn checked_input<const N: usize, const PAIRS: bool>(
    from: &Sources,
    channels: usize,
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: every address is checked.
    unsafe { super::input::<Checked<N>, PAIRS>(from, channels, out, stride) }
}

unsafe fn checked_output<const N: usize>(products: *const f32, stride: usize, patch: *mut f32, count: usize) {
    // SAFETY: every address is checked.
    unsafe { super::output::<Checked<N>>(products, stride, patch, count) }
}

fn transforms() -> [Transforms; 6] {
    let of = |precision, lanes, input, output| Transforms { precision, lanes, input, output };
    let (f32, bf16) = (Precision::F32, Precision::Bf16);
    [
        of(f32, 4, checked_input::<4, false>, checked_output::<4>),
        of(bf16, 4, checked_input::<4, true>, checked_output::<4>),
        of(f32, 8, checked_input::<8, false>, checked_output::<8>),
        of(bf16, 8, checked_input::<8, true>, checked_output::<8>),
        of(f32, 16, checked_input::<16, false>, checked_output::<16>),
        of(bf16, 16, checked_input::<16, true>, checked_output::<16>),
    ]
}

/// Value `channel` of a place's words, which are values or pairs.
fn value(transforms: &Transforms, words: &[f32], channel: usize) -> f32 {
    match transforms.precision {
        Precision::F32 | Precision::Tf32 => words[channel],
        Precision::Bf16 => f32::from_bits((words[channel / 2].to_bits() >> (16 * (channel % 2))) << 16),
    }
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
            let pairs = transforms.precision == Precision::Bf16;
            let words = if pairs { channels / 2 } else { channels };
            let stride = words + gap;
            let (b, a) = matrices();
            let pixels = procedural::values("pixels", PLACES * channels, -1.0, 1.0, 5);
            let zeros = vec![0.0; channels];
            let sources = sources(&pixels, &zeros, padded);
            let mut places = vec![f32::NAN; (PLACES - 1) * stride + words];
            let lent = Lent::new(&[&pixels, &zeros], &[&places]);
            transforms.input(&sources, &mut places, stride);
            drop(lent);
            let products = procedural::values("products", (PLACES - 1) * (channels + gap) + channels, -90.0, 90.0, 5);
            let mut patch = vec![f32::NAN; OUT * OUT * channels];
            let lent = Lent::new(&[&products], &[&patch]);
            transforms.output(&products, channels + gap, &mut patch, channels);
            drop(lent);
            for channel in 0..channels {
                for place in 0..PLACES {
                    let expected = sandwich(&b, place / IN, place % IN, |place| sources[place][channel]);
                    let got = f64::from(value(&transforms, &places[place * stride..], channel));
                    // Half a unit in the last of the eight bits.
                    let rounding = if pairs { expected.abs() / 256.0 } else { 0.0 };
                    prop_assert!((got - expected).abs() < 2e-5 + rounding, "{} {}", got, expected);
                }
                for pixel in 0..OUT * OUT {
                    let expected = sandwich(&a, pixel / OUT, pixel % OUT, |place| products[place * (channels + gap) + channel]);
                    let error = (f64::from(patch[pixel * channels + channel]) - expected).abs();
                    // Sums of up to 18² values of up to 100.
                    prop_assert!(error < 1e-6 * 18.0 * 18.0 * 100.0, "{}", error);
                }
            }
            prop_assert!(places.chunks(stride.max(1)).all(|place| place[words.min(place.len())..].iter().all(|v| v.is_nan())));
        }
    }
}

#[test]
fn a_slice_that_is_one_value_short_is_noticed() {
    for transforms in transforms() {
        let channels = 2 * transforms.lanes;
        let words = if transforms.precision == Precision::Bf16 { channels / 2 } else { channels };
        let stride = words + 1;
        let (pixels, zeros) = (vec![1.0; PLACES * channels], vec![0.0; channels]);
        let sources = sources(&pixels, &zeros, 3);
        let mut places = vec![0.0; (PLACES - 1) * stride + words];
        let products = vec![0.0; (PLACES - 1) * channels + channels];
        let mut patch = vec![0.0; OUT * OUT * channels];
        let operands = [&pixels, &zeros, &products, &places, &patch].map(|operand| operand.as_ptr_range());
        assert_every_value_is_needed(&operands, 2, || {
            transforms.input(&sources, &mut places, stride);
            transforms.output(&products, channels, &mut patch, channels);
        });
    }
}
