//! Numeric kernels: fast CPU code with gradients, and beside each the plain composition of
//! Candle's own operations that says what it means.

mod attention;
mod dropout;
mod gelu;
mod layer_norm;
mod linear;
pub(crate) mod math;
pub mod matmul;
mod slices;

pub use attention::{
    AttentionOptions, KeyMask, attention, probabilities as attention_probabilities, weigh as attention_weigh,
};
pub use dropout::{DropoutRng, dropout};
pub use gelu::gelu;
pub use layer_norm::layer_norm;
pub use linear::linear;
pub use matmul::{Matrix, MatrixMut, Threads, Write, gemm};

use std::sync::OnceLock;

/// Whether the plain compositions are to be used everywhere: `LXMERT_KERNELS=reference`, read once per process.
pub fn use_reference() -> bool {
    static REFERENCE: OnceLock<bool> = OnceLock::new();
    *REFERENCE.get_or_init(|| std::env::var("LXMERT_KERNELS").is_ok_and(|value| value == "reference"))
}
