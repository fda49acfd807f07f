//! From candle's storages to f32 slices and back, for kernels.

use candle_core::{CpuStorage, DType, Device, Layout, Result, Shape, Storage, Tensor, bail};
use std::ops::Deref;

/// Whether the CPU kernels take this tensor: f32 on the CPU, and not switched off.
pub(crate) fn takes(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && tensor.dtype() == DType::F32 && !super::use_reference()
}

/// The f32 values of a contiguous CPU storage.
pub(crate) fn of_storage<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(values) = storage else { bail!("kernel takes f32") };
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("kernel takes contiguous tensors") };
    Ok(&values[start..end])
}

/// A tensor's storage, held for reading.
pub(crate) struct Held<'a, S> {
    storage: S,
    layout: &'a Layout,
}

/// Holds a contiguous f32 CPU tensor for reading.
pub(crate) fn hold(tensor: &Tensor) -> Held<'_, impl Deref<Target = Storage>> {
    let (storage, layout) = tensor.storage_and_layout();
    Held { storage, layout }
}

impl<S: Deref<Target = Storage>> Held<'_, S> {
    /// The values, row-major.
    pub(crate) fn values(&self) -> Result<&[f32]> {
        match &*self.storage {
            Storage::Cpu(storage) => of_storage(storage, self.layout),
            _ => bail!("kernel takes CPU tensors"),
        }
    }
}

/// A new CPU tensor.
pub(crate) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)
}
