//! Which vector instructions this machine has, and code compiled once for each kind.
//!
//! [`vectorised!`](vectorised) compiles a plain loop for every [`Level`]. Kernels that must keep their sums in
//! registers are written over [`Vector`], a small set of operations on one register.

#![allow(unsafe_code)]

use super::precision::{pair, products};
use std::sync::OnceLock;

/// The widest vector instructions found at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(dead_code)] // each target has some of them
pub(crate) enum Level {
    /// What the compiler makes of plain numbers with the instructions that the target always has.
    Plain,
    /// NEON, which every aarch64 has, with its fused multiplication and addition.
    Neon,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, with AVX2 and FMA.
    Avx512,
}

/// The level of this machine, or the lower one in `LXMERT_KERNELS`; determined once.
pub(crate) fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| match std::env::var("LXMERT_KERNELS").as_deref() {
        Ok("plain") => Level::Plain,
        Ok("avx2") => Level::Avx2.min(detect()),
        _ => detect(),
    })
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    match avx2 {
        true if is_x86_feature_detected!("avx512f") => Level::Avx512,
        true => Level::Avx2,
        false => Level::Plain,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    if cfg!(target_arch = "aarch64") { Level::Neon } else { Level::Plain }
}

/// Defines a function with a body of plain safe Rust that is compiled for every [`Level`]; a call runs the widest
/// version that the machine supports. Multiplications and additions are never contracted, so all versions give the same
/// bits.
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, unsafe_code)] // the two calls below, each with its reason
        $vis fn $name($($arg: $ty),*) {
            #[inline(always)]
            fn body($($arg: $ty),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) {
                    body($($arg),*);
                }
                #[target_feature(enable = "avx512f,avx2,fma")]
                fn avx512($($arg: $ty),*) {
                    body($($arg),*);
                }
                match $crate::ops::simd::level() {
                    // SAFETY: `level` has found these instructions on this machine.
                    $crate::ops::simd::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::ops::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    _ => {}
                }
            }
            body($($arg),*);
        }
    };
}
pub(crate) use vectorised;

/// Defines an unsafe function that calls an `#[inline(always)]` one over [`Vector`], compiled for a machine with
/// `$features`.
macro_rules! compiled_for {
    ($features:literal: fn $name:ident$(<$(const $n:ident: $t:ty),+>)?($($arg:ident: $ty:ty),*) = $kernel:expr) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        unsafe fn $name$(<$(const $n: $t),+>)?($($arg: $ty),*) {
            use std::arch::x86_64::*;
            // SAFETY: passed on to the caller, who guarantees the instructions and the arguments.
            unsafe { $kernel($($arg),*) }
        }
    };
}
pub(crate) use compiled_for;

/// One vector register of f32, and the operations that kernels need.
///
/// # Safety
/// The methods may only run on a machine that has the instructions. Kernels are generic over `Self`, marked
/// `#[inline(always)]`, and instantiated in functions with the matching `#[target_feature]`, which are called only
/// after checking [`level`]. Pointers must be valid for `LANES` values; they need no alignment.
pub(crate) trait Vector: Copy {
    /// Values per register.
    const LANES: usize;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    /// One value in every lane.
    unsafe fn broadcast(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// `self · other + sum`, fused where the machine can.
    unsafe fn mul_add(self, other: Self, sum: Self) -> Self;
    /// `sum` plus the products of the two pairs of bf16 in each lane of `self` and `other`.
    unsafe fn mul_add_pairs(self, other: Self, sum: Self) -> Self;
    /// Stores the values rounded to bf16, one after another; `to` must be valid for `LANES / 2` words.
    unsafe fn store_pairs(self, to: *mut f32);
    /// Prefetches the cache line at `from`, wherever that is.
    #[inline(always)]
    unsafe fn prefetch(_from: *const f32) {}
}

/// Whether the machine multiplies pairs of bf16 in one instruction.
pub(crate) fn has_bf16() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        let found = level() == Level::Avx512 && is_x86_feature_detected!("avx512bf16");
        #[cfg(not(target_arch = "x86_64"))]
        let found = false;
        found
    })
}

/// Four values, for which the compiler finds instructions.
#[derive(Clone, Copy)]
pub(crate) struct Plain([f32; 4]);

/// A register by its intrinsics.
macro_rules! register {
    ($type:ident, $lanes:literal, $splat:expr, $broadcast:expr, $load:expr, $store:expr, $add:expr, $sub:expr, $mul:expr, $fma:expr, $pairs:expr, $store_pairs:expr, $prefetch:expr) => {
        // SAFETY (of every method): the caller guarantees the instructions and the pointers, as the trait requires.
        #[allow(clippy::undocumented_unsafe_blocks, unused_unsafe)] // some are safe where every machine has them
        impl Vector for $type {
            const LANES: usize = $lanes;
            #[inline(always)]
            unsafe fn splat(value: f32) -> Self {
                unsafe { ($splat)(value) }
            }
            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self {
                unsafe { ($load)(from) }
            }
            #[inline(always)]
            unsafe fn broadcast(from: *const f32) -> Self {
                unsafe { ($broadcast)(from) }
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut f32) {
                unsafe { ($store)(to, self) }
            }
            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                unsafe { ($add)(self, other) }
            }
            #[inline(always)]
            unsafe fn sub(self, other: Self) -> Self {
                unsafe { ($sub)(self, other) }
            }
            #[inline(always)]
            unsafe fn mul(self, other: Self) -> Self {
                unsafe { ($mul)(self, other) }
            }
            #[inline(always)]
            unsafe fn mul_add(self, other: Self, sum: Self) -> Self {
                unsafe { ($fma)(self, other, sum) }
            }
            #[inline(always)]
            unsafe fn mul_add_pairs(self, other: Self, sum: Self) -> Self {
                unsafe { ($pairs)(self, other, sum) }
            }
            #[inline(always)]
            unsafe fn store_pairs(self, to: *mut f32) {
                unsafe { ($store_pairs)(self, to) }
            }
            #[inline(always)]
            unsafe fn prefetch(from: *const f32) {
                unsafe { ($prefetch)(from) }
            }
        }
    };
}

/// Lane by lane.
#[inline(always)]
fn each(a: Plain, b: Plain, f: impl Fn(f32, f32) -> f32) -> Plain {
    Plain([f(a.0[0], b.0[0]), f(a.0[1], b.0[1]), f(a.0[2], b.0[2]), f(a.0[3], b.0[3])])
}

register!(
    Plain,
    4,
    |value| Plain([value; 4]),
    |from: *const f32| Plain([*from; 4]),
    |from: *const f32| Plain(from.cast::<[f32; 4]>().read()),
    |to: *mut f32, x: Plain| to.cast::<[f32; 4]>().write(x.0),
    |a, b| each(a, b, |a, b| a + b),
    |a, b| each(a, b, |a, b| a - b),
    |a, b| each(a, b, |a, b| a * b),
    // Not fused: without FMA that would be a library call.
    |a, b, sum| each(each(a, b, |a, b| a * b), sum, |product, sum| product + sum),
    |a, b, sum| each(each(a, b, products), sum, |products, sum| products + sum),
    |x: Plain, to: *mut f32| {
        let [a, b, c, d] = x.0;
        to.cast::<[f32; 2]>().write([pair(a, b), pair(c, d)]);
    },
    |_| ()
);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Vector;
    use crate::ops::precision::pair;
    use std::arch::x86_64::*;

    register!(
        __m512,
        16,
        _mm512_set1_ps,
        // `*from` would be checked for alignment in every iteration of a debug build's inner loop.
        |from| _mm512_broadcastss_ps(_mm_load_ss(from)),
        // Not `_mm512_loadu_ps`, which in a debug build checks its pointers and goes through the stack. With all lanes
        // this is a plain load.
        |from| _mm512_maskz_loadu_ps(0xFFFF, from),
        _mm512_storeu_ps,
        _mm512_add_ps,
        _mm512_sub_ps,
        _mm512_mul_ps,
        _mm512_fmadd_ps,
        // A bit cast: registers have no type of their own.
        |a, b, sum| {
            let pairs = |x| std::mem::transmute::<__m512, __m512bh>(x);
            _mm512_dpbf16_ps(sum, pairs(a), pairs(b))
        },
        |x, to: *mut f32| _mm256_storeu_si256(
            to.cast(),
            std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x))
        ),
        |from: *const f32| _mm_prefetch::<_MM_HINT_T0>(from.cast())
    );
    register!(
        __m256,
        8,
        _mm256_set1_ps,
        |from| _mm256_broadcastss_ps(_mm_load_ss(from)),
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_add_ps,
        _mm256_sub_ps,
        _mm256_mul_ps,
        _mm256_fmadd_ps,
        |a, b, sum| {
            let low = |x| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(x)));
            let high = |x| _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0xFFFF_0000u32 as i32)));
            _mm256_fmadd_ps(high(a), high(b), _mm256_fmadd_ps(low(a), low(b), sum))
        },
        |x, to: *mut f32| {
            let mut values = [0.0f32; 8];
            _mm256_storeu_ps(values.as_mut_ptr(), x);
            let [a, b, c, d, e, f, g, h] = values;
            to.cast::<[f32; 4]>().write([pair(a, b), pair(c, d), pair(e, f), pair(g, h)]);
        },
        |from: *const f32| _mm_prefetch::<_MM_HINT_T0>(from.cast())
    );
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::Vector;
    use crate::ops::precision::pair;
    use std::arch::aarch64::*;

    register!(
        float32x4_t,
        4,
        vdupq_n_f32,
        vld1q_dup_f32,
        vld1q_f32,
        vst1q_f32,
        vaddq_f32,
        vsubq_f32,
        vmulq_f32,
        |a, b, sum| vfmaq_f32(sum, a, b),
        |a, b, sum| {
            let low = |x| vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_f32(x)));
            let high = |x| vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(0xFFFF_0000)));
            vfmaq_f32(vfmaq_f32(sum, low(a), low(b)), high(a), high(b))
        },
        |x, to: *mut f32| {
            let mut values = [0.0f32; 4];
            vst1q_f32(values.as_mut_ptr(), x);
            let [a, b, c, d] = values;
            to.cast::<[f32; 2]>().write([pair(a, b), pair(c, d)]);
        },
        |_| ()
    );
}
