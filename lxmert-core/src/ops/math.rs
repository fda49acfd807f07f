//! `exp` and `erf` for f32, written so that the compiler vectorises them, and sums over slices in a fixed order, so
//! that a result does not depend on a machine's vector width.

/// e^x within 2 units in the last place for x ≤ 88; 0 below −87.3 (where f32 becomes subnormal).
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // x = n ln 2 + r with |r| ≤ ln 2 / 2; e^r by its Taylor series to r^6 (next term below 2^-24);
    // ln 2 in two parts (Cody & Waite 1980), so that r is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.336_54, 88.02);
    let n = (clamped * std::f32::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, clamped));
    let mut p = 1.0 / 5040.0_f32;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p.mul_add(r, coefficient);
    }
    // 2^n by its bits: n is an integer in -126..=127 after the clamp (and a checked addition would not vectorise).
    let scale = f32::from_bits(((n as i32).wrapping_add(127) << 23) as u32);
    if x < -87.336_54 { 0.0 } else { p * scale }
}

/// The error function within 5e-7: on [-4, 4] an odd over an even rational approximation (the coefficients of Eigen's
/// `generic_fast_erf_float`); beyond, it is ±1 in f32.
#[inline(always)]
pub(super) fn erf(x: f32) -> f32 {
    const ODD: [f32; 6] = [2.770_681_4e-8, -2.101_024e-6, -5.692_506_4e-5, -7.349_906e-4, -2.954_6e-3, -1.609_603_3e-2];
    const EVEN: [f32; 4] = [-2.133_740_6e-4, -1.682_827e-3, -7.373_329_2e-3, -1.426_474e-2];
    let x = x.clamp(-4.0, 4.0);
    let s = x * x;
    let (mut odd, mut even) = (-2.726_142_3e-10_f32, -1.456_607_2e-5_f32);
    for coefficient in ODD {
        odd = odd.mul_add(s, coefficient);
    }
    for coefficient in EVEN {
        even = even.mul_add(s, coefficient);
    }
    x * odd / even
}

const LANES: usize = 16;

/// Sum of a slice, in 16 interleaved partial sums.
#[inline(always)]
pub(super) fn sum(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += v;
        }
    }
    fold(lanes) + rest.iter().sum::<f32>()
}

/// Sum of products of two slices of equal length, in 16 interleaved partial sums.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for (x, y) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] = x[i].mul_add(y[i], lanes[i]);
        }
    }
    fold(lanes) + a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum::<f32>()
}

/// `out += factor * values`.
#[inline(always)]
pub(super) fn add_scaled(out: &mut [f32], factor: f32, values: &[f32]) {
    for (o, v) in out.iter_mut().zip(values) {
        *o = factor.mul_add(*v, *o);
    }
}

#[inline(always)]
fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_the_librarys() {
        for i in -8800..=8800 {
            let x = i as f32 / 100.0;
            let want = f64::from(x).exp();
            let got = f64::from(exp(x));
            assert!((got - want).abs() <= 3e-7 * want + 1.5e-38, "exp({x}) = {got}, not {want}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn erf_is_close_to_the_librarys() {
        for i in -6000..=6000 {
            let x = i as f32 / 1000.0;
            let want = candle_core::cpu::erf::erf_f64(f64::from(x));
            let got = f64::from(erf(x));
            assert!((got - want).abs() <= 5e-7, "erf({x}) = {got}, not {want}");
        }
    }

    #[test]
    fn sums_take_every_element_once() {
        let v: Vec<f32> = (0..37).map(|i| i as f32).collect();
        assert_eq!(sum(&v), 666.0);
        assert_eq!(dot(&v, &v), 16206.0);
    }
}
