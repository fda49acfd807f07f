//! The precision of products' operands, and arithmetic on a pair of bf16 in one 32-bit word.

use super::simd::has_bf16;
use candle_core::Device;
use serde::{Deserialize, Serialize};

/// The precision to which products' operands are rounded; sums, and everything that is not a product, are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 24 bits of precision: no rounding.
    #[default]
    F32,
    /// 11 bits of precision, the range of f32: of a GPU's tensor cores, for all products of the process. The CPU has none.
    Tf32,
    /// 8 bits of precision, the range of f32.
    Bf16,
}

impl Precision {
    /// Prepares the process for products of this precision on `device`.
    ///
    /// # Errors
    /// Returns an error for TF32 where there is no CUDA device.
    pub fn prepare(self, device: &Device) -> crate::Result<()> {
        if self != Self::Tf32 {
            return Ok(());
        }
        if !device.is_cuda() {
            let advice = "is for a CUDA device, and this run is on another; use f32 or bf16, or --device cuda";
            return Err(crate::Error::Argument(format!("--precision {self} {advice}")));
        }
        candle_core::cuda::set_gemm_reduced_precision_f32(true);
        Ok(())
    }

    /// Whether `device` multiplies numbers of this precision at least as fast as f32: CPUs with AVX-512's bf16
    /// instruction, and GPUs, do.
    pub fn is_fast_on(self, device: &Device) -> bool {
        self == Self::F32 || !device.is_cpu() || has_bf16()
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        })
    }
}

impl std::str::FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "f32" => Ok(Self::F32),
            "tf32" => Ok(Self::Tf32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(format!("'{text}' is not f32, tf32 or bf16")),
        }
    }
}

/// The nearest bf16, ties to even; NaN stays NaN.
#[inline(always)]
fn round(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1));
    // Rounding up could overflow a NaN's bits, so a NaN is made quiet instead.
    (if value.is_nan() { bits | 0x40_0000 } else { rounded }) >> 16
}

/// Two values as one word, the first in the lower half.
#[inline(always)]
pub(crate) fn pair(first: f32, second: f32) -> f32 {
    f32::from_bits(round(first) | (round(second) << 16))
}

/// The sum of the products of two pairs.
#[inline(always)]
pub(crate) fn products(a: f32, b: f32) -> f32 {
    let low = |x: f32| f32::from_bits(x.to_bits() << 16);
    let high = |x: f32| f32::from_bits(x.to_bits() & 0xFFFF_0000);
    low(a) * low(b) + high(a) * high(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tf32_is_refused_without_a_gpu_and_the_others_are_not() {
        for (text, works) in [("f32", true), ("bf16", true), ("tf32", false)] {
            let precision: Precision = text.parse().unwrap();
            assert_eq!(precision.to_string(), text);
            let said = precision.prepare(&Device::Cpu).map_err(|error| error.to_string());
            assert_eq!(said.is_ok(), works, "{said:?}");
            assert!(works || said.unwrap_err().starts_with("--precision tf32 is for a CUDA device"));
        }
        assert!("fp16".parse::<Precision>().unwrap_err().contains("f32, tf32 or bf16"));
    }
}
