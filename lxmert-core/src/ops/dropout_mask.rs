//! Dropout masks as a function of (seed, step, call): nothing is stored, and a run that resumes at a step draws the same
//! masks as the uninterrupted run.

use crate::procedural::splitmix64;
use std::sync::atomic::{AtomicU64, Ordering};

/// Draws one key per dropout call of one training step.
#[derive(Debug)]
pub struct DropoutRng {
    base: u64,
    calls: AtomicU64,
}

impl DropoutRng {
    /// The masks of training step `step` under `seed`.
    pub fn new(seed: u64, step: u64) -> Self {
        let base = splitmix64(seed ^ 0xD1B5_4A32_D192_ED03).wrapping_add(splitmix64(step.wrapping_add(1)));
        Self { base, calls: AtomicU64::new(0) }
    }

    /// The key of the next call.
    pub fn next_key(&self) -> u32 {
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        (splitmix64(self.base.wrapping_add(call.wrapping_mul(0x9E37_79B9_7F4A_7C15))) >> 32) as u32
    }
}

/// The probability and key of one dropout call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mask {
    threshold: u32,
    /// 1 / (1 − p), the factor for kept values.
    pub(crate) scale: f32,
    key: u32,
}

impl Mask {
    pub(crate) fn new(probability: f32, key: u32) -> Self {
        Self { threshold: (f64::from(probability) * 2f64.powi(32)) as u32, scale: 1.0 / (1.0 - probability), key }
    }

    /// Threshold of the hash, scale and key, for the device's kernels.
    pub(crate) fn parts(self) -> (u32, f32, u32) {
        (self.threshold, self.scale, self.key)
    }

    /// `scale` for a kept element, 0 for a dropped one.
    #[inline(always)]
    pub(crate) fn factor(&self, index: u32) -> f32 {
        let mut x = index.wrapping_mul(0x9E37_79B9) ^ self.key;
        x ^= x >> 16;
        x = x.wrapping_mul(0x7FEB_352D);
        x ^= x >> 15;
        x = x.wrapping_mul(0x846C_A68B);
        x ^= x >> 16;
        if x >= self.threshold { self.scale } else { 0.0 }
    }
}
