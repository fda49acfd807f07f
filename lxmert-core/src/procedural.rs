//! Weights from a formula, so that a full-size network can be compared with the reference runs without a large file.
//!
//! Element `i` (row-major) of a tensor called `name` is
//!
//! ```text
//! key   = fnv1a64(utf8(name)) xor seed
//! z     = splitmix64(key + i * 0x9E3779B97F4A7C15)        (modulo 2^64)
//! u     = (z >> 40) / 2^24                                (in [0, 1), exact in f32)
//! value = f32(low + (high - low) * u)                     (computed in f64, rounded once)
//! ```
//!
//! The reference scripts compute the same bits in Python.

use candle_core::{Device, Tensor};

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

fn fnv1a64(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3))
}

/// The finaliser of splitmix64: a bijection on 64-bit words with random-looking output.
pub fn splitmix64(mut x: u64) -> u64 {
    x ^= x >> 30;
    x = x.wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x ^= x >> 27;
    x = x.wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// `count` values in `[low, high)` for the tensor called `name`.
pub fn values(name: &str, count: usize, low: f64, high: f64, seed: u64) -> Vec<f32> {
    let key = fnv1a64(name) ^ seed;
    (0..count as u64)
        .map(|i| {
            let z = splitmix64(key.wrapping_add(i.wrapping_mul(GOLDEN)));
            let u = (z >> 40) as f64 / f64::from(1u32 << 24);
            (low + (high - low) * u) as f32
        })
        .collect()
}

/// The tensor that the formula gives for `name` and this shape; f32 on the CPU.
///
/// # Errors
/// Returns an error if the shape cannot be allocated.
pub fn tensor(name: &str, shape: &[usize], low: f64, high: f64, seed: u64) -> candle_core::Result<Tensor> {
    let count = shape.iter().product();
    Tensor::from_vec(values(name, count, low, high, seed), shape, &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formula_gives_the_bits_of_the_reference_script() {
        // python: procedural.tensor("input.features", (4,), 0.0, 2.0, 0)
        let got: Vec<u32> = values("input.features", 4, 0.0, 2.0, 0).iter().map(|v| v.to_bits()).collect();
        assert_eq!(got, EXPECTED_BITS);
    }

    const EXPECTED_BITS: [u32; 4] = [0x3fec_3fb4, 0x3f57_5f3c, 0x3f71_4d18, 0x3d28_d520];
}
