//! Which vector instructions this machine has, and functions compiled once for each.

#![allow(unsafe_code)]

use std::sync::OnceLock;

/// The widest vector instructions found at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// What the target always has (SSE2 on x86-64, NEON on aarch64).
    Plain,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, with AVX2 and FMA.
    Avx512,
}

/// The level of this machine, found once.
pub(crate) fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(detect)
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
    Level::Plain
}

/// Defines a function whose body, plain safe Rust, is compiled for every [`Level`]; a call runs the widest that the
/// machine has. No multiplication is contracted with an addition, so the results are the same to the bit on all.
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
                    $crate::ops::simd::Level::Plain => {}
                }
            }
            body($($arg),*);
        }
    };
}
pub(crate) use vectorised;
