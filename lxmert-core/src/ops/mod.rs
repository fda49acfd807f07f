//! Numeric kernels: fast CPU code with gradients, and beside each the plain composition of
//! Candle's own operations that says what it means.
//!
//! A call takes the fast way when its tensors are f32 on the CPU, and the composition otherwise (CUDA, Metal, other
//! element types). `LXMERT_KERNELS=reference` in the environment selects the composition everywhere: a result that
//! changes with it beyond rounding is a fault in a kernel. `LXMERT_KERNELS=avx2` and `LXMERT_KERNELS=plain` run the kernels
//! as a machine with those instructions alone would.
//!
//! - [`matmul`]: strided matrix products on slices, which the other kernels are built from;
//! - [`linear`], [`layer_norm`], [`gelu`], [`dropout`], [`attention_probabilities`]: the transformer's parts;
//! - [`embedding`]: rows of a table;
//! - [`backward`]: all gradients, with less copying than candle's;
//! - [`sublayers`]: whole sub-layers of it, each one operation, over rows without their padding ([`Ragged`]);
//! - [`PrepackedWeights`]: their weights, packed once for many passes;
//! - [`batch_norm`](mod@batch_norm): batch normalisation in training;
//! - [`conv`]: convolution with its gradients;
//! - [`pool`]: max pooling;
//! - [`roi_align()`]: torchvision's RoIAlign; [`roi_pool()`]: its RoI max pooling, for inference;
//! - [`PrepackedConv2d`], [`PrepackedLinear`] and [`roi_align_levels`] on [`FeatureMap`]s: the inference path of a detector, channels
//!   last, in f32 or with products of bf16 ([`Precision`]).

mod attention;
pub mod batch_norm;
mod bf16;
#[cfg(test)]
mod checked;
pub mod conv;
pub mod cuda;
mod dropout;
mod embedding;
mod epilogue;
mod feature_map;
mod gelu;
mod geometry;
mod gradients;
mod heads;
mod layer_norm;
mod linear;
mod math;
pub mod matmul;
mod matrix;
mod microkernel;
pub mod pool;
mod precision;
mod prepacked_conv;
mod prepacked_linear;
mod prepacked_weights;
mod product;
mod ragged;
pub mod roi_align;
mod roi_pool;
mod scratch;
pub(crate) mod simd;
mod skinny;
pub mod sublayers;
mod transpose;
mod winograd;

pub use attention::{attention_probabilities, attention_weigh};
pub use batch_norm::batch_norm;
pub use conv::conv2d;
pub use dropout::{DropoutRng, dropout, dropout_rows};
pub use embedding::embedding;
pub use feature_map::{BufferPool, FeatureMap, Residual};
pub use gelu::{activate, gelu};
pub use gradients::backward;
pub use layer_norm::layer_norm;
pub use linear::{linear, linear_with};
pub use matmul::gemm;
pub use matrix::{Matrix, MatrixMut, Threads, Write};
pub use pool::max_pool2d;
pub use precision::Precision;
pub use prepacked_conv::PrepackedConv2d;
pub use prepacked_linear::PrepackedLinear;
pub use prepacked_weights::PrepackedWeights;
pub use ragged::Ragged;
pub use roi_align::{LevelRegion, RoiAlign, roi_align, roi_align_levels};
pub use roi_pool::{RoiPool, roi_pool};

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
pub(crate) fn use_fast(tensors: &[&Tensor]) -> bool {
    !use_reference() && tensors.iter().all(|tensor| tensor.device().is_cpu() && tensor.dtype() == DType::F32)
}

/// The elements of a contiguous f32 CPU tensor, for the kernels, which make their arguments contiguous beforehand.
pub(crate) fn contiguous_f32<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => Err(candle_core::Error::RequiresContiguous { op: "lxmert kernel" }.bt()),
    }
}

/// Calls `f` with the elements of an f32 CPU tensor, made contiguous if it is not.
pub(crate) fn with_f32<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> candle_core::Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(contiguous_f32(storage, layout)?)),
        _ => candle_core::bail!("a CPU kernel was given a tensor on {:?}", tensor.device()),
    }
}

/// A contiguous f32 CPU tensor held for reading, where [`with_f32`] would nest too deep.
pub(crate) struct Held<'a, S> {
    storage: S,
    layout: &'a Layout,
}

/// Holds a contiguous tensor for reading.
pub(crate) fn hold(tensor: &Tensor) -> Held<'_, impl Deref<Target = Storage>> {
    let (storage, layout) = tensor.storage_and_layout();
    Held { storage, layout }
}

impl<S: Deref<Target = Storage>> Held<'_, S> {
    /// The elements, row-major.
    pub(crate) fn values(&self) -> candle_core::Result<&[f32]> {
        match &*self.storage {
            Storage::Cpu(storage) => contiguous_f32(storage, self.layout),
            _ => candle_core::bail!("a CPU kernel was given a tensor elsewhere"),
        }
    }
}

/// A new CPU tensor.
pub(crate) fn cpu_tensor(values: Vec<f32>, shape: impl Into<Shape>) -> candle_core::Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)
}
