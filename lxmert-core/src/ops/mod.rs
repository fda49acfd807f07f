//! Numeric kernels: fast CPU code with gradients, and beside each the plain composition of
//! Candle's own operations that says what it means.
//!
//! A call takes the fast way when its tensors are f32 on the CPU, and the composition otherwise (CUDA, Metal, other
//! element types). `LXMERT_KERNELS=reference` in the environment selects the composition everywhere: a result that
//! changes with it beyond rounding is a fault in a kernel. `LXMERT_KERNELS=avx2` and `LXMERT_KERNELS=plain` run the kernels
//! as a machine with those instructions alone would.
//!
//! - [`gemm()`]: strided matrix products on slices, which the other kernels are built from;
//! - [`linear`], [`layer_norm`], [`gelu`], [`dropout`], [`attention_probabilities`]: the transformer's parts;
//! - [`embedding`]: rows of a table;
//! - [`backward`]: all gradients, with less copying than candle's;
//! - [`sublayers`]: whole sub-layers of it, each one operation, over rows without their padding ([`Ragged`]);
//! - [`PrepackedWeights`]: their weights, packed once for many passes;
//! - [`PrepackedConv2d`] on [`FeatureMap`]s: the inference path of a detector, channels last, in f32 or with products of bf16
//!   ([`Precision`]);
//! - [`use_fast`], [`with_f32`], [`hold`], [`contiguous_f32`], [`cpu_tensor`]: what an operation of another crate needs of tensors.

mod activation;
mod attention;
mod bf16;
#[cfg(test)]
mod checked;
mod conv;
pub mod cuda;
mod dropout;
mod dropout_mask;
mod embedding;
mod epilogue;
mod gradients;
mod layer_norm;
mod linear;
mod math;
mod matrix;
mod microkernel;
mod precision;
mod prepacked_weights;
mod product;
mod ragged;
mod scratch;
pub(crate) mod simd;
pub mod sublayers;
mod transpose;

pub use activation::{activate, gelu};
pub use attention::{attention_probabilities, attention_weigh};
pub use conv::{BufferPool, FeatureMap, PrepackedConv2d, Residual, Windows, add_weighted, keep_larger};
pub use dropout::{dropout, dropout_rows};
pub use dropout_mask::DropoutRng;
pub use embedding::embedding;
pub use gradients::backward;
pub use layer_norm::layer_norm;
pub use linear::{linear, linear_with};
pub use matrix::{Matrix, MatrixMut, Threads, Write};
pub use precision::Precision;
pub use prepacked_weights::PrepackedWeights;
pub use product::gemm;
pub use ragged::Ragged;

use candle_core::{CpuStorage, DType, Device, Layout, Shape, Storage, Tensor};
use std::ops::Deref;
use std::sync::OnceLock;

/// Whether the plain compositions are to be used everywhere: `LXMERT_KERNELS=reference`, read once per process.
pub fn use_reference() -> bool {
    static REFERENCE: OnceLock<bool> = OnceLock::new();
    *REFERENCE.get_or_init(|| std::env::var("LXMERT_KERNELS").is_ok_and(|value| value == "reference"))
}

/// Runs `f`, which computes on `device`: on the CPU on a thread of the rayon pool, as passes of the model and [`backward`] do,
/// since from any other thread every parallel loop hands its work over and sleeps until it is done; elsewhere in place, since
/// nothing runs in parallel and a device's work stays on one thread.
pub fn in_pool<R: Send>(device: &Device, f: impl FnOnce() -> R + Send) -> R {
    match rayon::current_thread_index() {
        None if device.is_cpu() => rayon::scope(|_| f()),
        _ => f(),
    }
}

/// Whether the fast kernels apply: every tensor is f32 on the CPU, and the reference was not asked for.
pub fn use_fast(tensors: &[&Tensor]) -> bool {
    !use_reference() && tensors.iter().all(|tensor| tensor.device().is_cpu() && tensor.dtype() == DType::F32)
}

/// The elements of a contiguous f32 CPU tensor, for the kernels, which make their arguments contiguous beforehand.
///
/// # Errors
/// When it is not one.
pub fn contiguous_f32<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => Err(candle_core::Error::RequiresContiguous { op: "lxmert kernel" }.bt()),
    }
}

/// Calls `f` with the elements of an f32 CPU tensor, made contiguous if it is not.
///
/// # Errors
/// When it is of another type or elsewhere.
pub fn with_f32<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> candle_core::Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(contiguous_f32(storage, layout)?)),
        _ => candle_core::bail!("a CPU kernel was given a tensor on {:?}", tensor.device()),
    }
}

/// A contiguous f32 CPU tensor held for reading, where [`with_f32`] would nest too deep.
pub struct Held<'a, S> {
    storage: S,
    layout: &'a Layout,
}

/// Holds a contiguous tensor for reading.
pub fn hold(tensor: &Tensor) -> Held<'_, impl Deref<Target = Storage>> {
    let (storage, layout) = tensor.storage_and_layout();
    Held { storage, layout }
}

impl<S: Deref<Target = Storage>> Held<'_, S> {
    /// The elements, row-major.
    ///
    /// # Errors
    /// When the tensor is not contiguous, of another type or elsewhere.
    pub fn values(&self) -> candle_core::Result<&[f32]> {
        match &*self.storage {
            Storage::Cpu(storage) => contiguous_f32(storage, self.layout),
            _ => candle_core::bail!("a CPU kernel was given a tensor elsewhere"),
        }
    }
}

/// A new CPU tensor.
///
/// # Errors
/// When the shape has another number of values.
pub fn cpu_tensor(values: Vec<f32>, shape: impl Into<Shape>) -> candle_core::Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)
}
