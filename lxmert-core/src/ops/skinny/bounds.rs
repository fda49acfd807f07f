//! The tile, with bounds checks.

use super::super::checked::{Checked, Lent, assert_every_value_is_needed};
use super::*;
use crate::procedural;
use proptest::prelude::*;

unsafe fn checked<const N: usize>(a: &Rows, w: &Weights, inner: usize, sums: &mut Sums, ahead: &[*const f32]) {
    // SAFETY: every address is checked.
    unsafe { super::tile::<Checked<N>>(a, w, inner, sums, ahead) }
}

const TILES: [Tile; 3] = [checked::<4>, checked::<8>, checked::<16>];

/// Both sides, exactly as long as needed.
fn sides(rows: usize, weights: usize, inner: usize, gap: usize) -> (Vec<f32>, Vec<f32>) {
    let values = |name, rows: usize| procedural::values(name, (rows - 1) * (inner + gap) + inner, -1.0, 1.0, 4);
    (values("a", rows), values("w", weights))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tiles_stay_within_their_slices(rows in 1usize..10, weights in 1usize..PER_TASK + 1, blocks in 0usize..4, gap in 0usize..3) {
        let inner = blocks * LANES;
        let (a, w) = sides(rows, weights, inner, gap);
        for tile in TILES {
            let mut out = vec![f32::NAN; (rows - 1) * PER_TASK + weights];
            let lent = Lent::new(&[&a, &w], &[]);
            dots(tile, &mut out, &a, inner + gap, rows, &w, inner + gap, weights, inner);
            drop(lent);
            for (row, weight) in (0..rows).flat_map(|row| (0..weights).map(move |weight| (row, weight))) {
                let (a, w) = (&a[row * (inner + gap)..], &w[weight * (inner + gap)..]);
                let expected: f64 = (0..inner).map(|k| f64::from(a[k]) * f64::from(w[k])).sum();
                let value = out[row * PER_TASK + weight];
                prop_assert!((f64::from(value) - expected).abs() < 1e-5, "{} {}: {} {}", row, weight, value, expected);
            }
        }
    }
}

#[test]
fn detects_a_slice_that_is_one_value_short() {
    let (rows, weights, inner) = (ROWS + 1, WEIGHTS + 1, 2 * LANES);
    let (a, w) = sides(rows, weights, inner, 1);
    for tile in TILES {
        let mut out = vec![0.0; rows * PER_TASK];
        let run = || dots(tile, &mut out, &a, inner + 1, rows, &w, inner + 1, weights, inner);
        assert_every_value_is_needed(&[a.as_ptr_range(), w.as_ptr_range()], 0, run);
    }
}
