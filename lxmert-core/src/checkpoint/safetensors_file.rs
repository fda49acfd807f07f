//! Reads safetensors: the format's own crate checks the header, and every tensor is copied once.

use super::elements::Element;
use crate::{Error, Result};
use candle_core::Tensor;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::Path;

/// Whether the file starts like safetensors: the header's length in eight bytes, then its JSON.
pub(super) fn looks_like(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else { return false };
    let length = u64::from_le_bytes(*length);
    // A real header is far below 100 MB, so text that happens to have a brace at byte 8 is not mistaken for one.
    (2..100_000_000).contains(&length) && rest.first() == Some(&b'{')
}

/// The tensors whose names `keep` accepts.
pub(super) fn read(path: &Path, bytes: &[u8], keep: &dyn Fn(&str) -> bool) -> Result<BTreeMap<String, Tensor>> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| {
        Error::format(path, format!("damaged or truncated safetensors file ({e}); fetch or write it again"))
    })?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.iter().filter(|(name, _)| keep(name)) {
        let element = match view.dtype() {
            Dtype::F64 => Element::F64,
            Dtype::F32 => Element::F32,
            Dtype::F16 => Element::F16,
            Dtype::BF16 => Element::Bf16,
            Dtype::I64 => Element::I64,
            Dtype::I32 => Element::I32,
            Dtype::I16 => Element::I16,
            Dtype::I8 => Element::I8,
            Dtype::U32 => Element::U32,
            Dtype::U8 => Element::U8,
            Dtype::BOOL => Element::Bool,
            other => {
                return Err(Error::format(
                    path,
                    format!("tensor '{name}' has elements of type {other:?}, which is not supported"),
                ));
            }
        };
        tensors.insert(name.to_string(), element.tensor(view.data(), view.shape())?);
    }
    Ok(tensors)
}
