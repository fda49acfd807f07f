//! Converts little-endian element bytes to candle tensors, and back.

use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use safetensors::Dtype;

/// The element types of checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U32,
    U8,
    Bool,
}

impl Element {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// A CPU tensor of `bytes`, which must hold exactly `shape`'s elements. candle has no bool and no int8; they become
    /// u8 (0 or 1) and i16.
    pub fn tensor(self, bytes: &[u8], shape: &[usize]) -> candle_core::Result<Tensor> {
        fn build<T: WithDType, const N: usize>(
            bytes: &[u8],
            shape: &[usize],
            read: impl Fn([u8; N]) -> T,
        ) -> candle_core::Result<Tensor> {
            let (elements, _) = bytes.as_chunks::<N>();
            let values: Vec<T> = elements.iter().map(|&e| read(e)).collect();
            Tensor::from_vec(values, shape, &Device::Cpu)
        }
        match self {
            Self::F64 => build(bytes, shape, f64::from_le_bytes),
            Self::F32 => build(bytes, shape, f32::from_le_bytes),
            Self::F16 => build(bytes, shape, f16::from_le_bytes),
            Self::Bf16 => build(bytes, shape, bf16::from_le_bytes),
            Self::I64 => build(bytes, shape, i64::from_le_bytes),
            Self::I32 => build(bytes, shape, i32::from_le_bytes),
            Self::I16 => build(bytes, shape, i16::from_le_bytes),
            Self::U32 => build(bytes, shape, u32::from_le_bytes),
            Self::I8 => build(bytes, shape, |[b]: [u8; 1]| i16::from(b.cast_signed())),
            Self::U8 => build(bytes, shape, |[b]: [u8; 1]| b),
            Self::Bool => build(bytes, shape, |[b]: [u8; 1]| u8::from(b != 0)),
        }
    }
}

/// The safetensors name of candle's element type, if there is one.
pub(super) fn safetensors_type(dtype: DType) -> Option<Dtype> {
    Some(match dtype {
        DType::U8 => Dtype::U8,
        DType::U32 => Dtype::U32,
        DType::I16 => Dtype::I16,
        DType::I32 => Dtype::I32,
        DType::I64 => Dtype::I64,
        DType::BF16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        _ => return None,
    })
}

/// Passes a tensor's elements to `write` as little-endian bytes, in row-major order, piece by piece.
pub(super) fn for_bytes(
    tensor: &Tensor,
    mut write: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> candle_core::Result<std::io::Result<()>> {
    fn pieces<T: WithDType, const N: usize>(
        tensor: &Tensor,
        bytes_of: impl Fn(T) -> [u8; N],
        write: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
    ) -> candle_core::Result<std::io::Result<()>> {
        let values = tensor.to_vec1::<T>()?;
        let mut buffer = Vec::with_capacity(N * 8192);
        for piece in values.chunks(8192) {
            buffer.clear();
            for &value in piece {
                buffer.extend_from_slice(&bytes_of(value));
            }
            if let Err(error) = write(&buffer) {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }
    let flat = tensor.to_device(&Device::Cpu)?.flatten_all()?;
    let write: &mut dyn FnMut(&[u8]) -> std::io::Result<()> = &mut write;
    match flat.dtype() {
        DType::U8 => pieces(&flat, u8::to_le_bytes, write),
        DType::U32 => pieces(&flat, u32::to_le_bytes, write),
        DType::I16 => pieces(&flat, i16::to_le_bytes, write),
        DType::I32 => pieces(&flat, i32::to_le_bytes, write),
        DType::I64 => pieces(&flat, i64::to_le_bytes, write),
        DType::BF16 => pieces(&flat, bf16::to_le_bytes, write),
        DType::F16 => pieces(&flat, f16::to_le_bytes, write),
        DType::F32 => pieces(&flat, f32::to_le_bytes, write),
        DType::F64 => pieces(&flat, f64::to_le_bytes, write),
        other => candle_core::bail!("element type {other:?} cannot be written to a safetensors file here"),
    }
}
