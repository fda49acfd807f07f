//! The CUDA kernels. Their source, `kernels/`, is compiled twice: by nvcc under the feature `cuda`, and by the host's C++ compiler
//! in `tests/cuda_kernels.rs` (here and in lxmert-extract), which holds each against the CPU's operation without a GPU. [`launches`] says with what each is
//! launched, on either; `device`, `fused` and [`regions`], under the feature, launch them on tensors, the first two with gradients.
//!
//! What only a GPU can show has not been shown: none of this has run on one. `scripts/gpu/` is for whoever has one at hand.

#[cfg(feature = "cuda")]
mod device;
#[cfg_attr(not(feature = "cuda"), path = "absent.rs")]
pub(crate) mod fused;
pub mod launches;
#[cfg(feature = "cuda")]
pub(crate) mod optimiser;
#[cfg_attr(not(feature = "cuda"), path = "absent_regions.rs")]
pub mod regions;

#[cfg(feature = "cuda")]
pub use device::open;

/// Without the feature `cuda`, candle's own error.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cuda"))]
pub fn open(ordinal: usize) -> candle_core::Result<candle_core::Device> {
    candle_core::Device::new_cuda(ordinal)
}
