//! Reads safetensors: the format's own crate checks the header, and every tensor is copied once.

use super::elements::Element;
use crate::{Error, Result};
use candle_core::Tensor;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// Whether the file starts like safetensors: the header's length in eight bytes, then its JSON.
pub(super) fn looks_like(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else { return false };
    let length = u64::from_le_bytes(*length);
    // A real header is far below 100 MB, so text that happens to have a brace at byte 8 is not mistaken for one.
    (2..100_000_000).contains(&length) && rest.first() == Some(&b'{')
}

/// What a file of `size` bytes starts with: the header's length and the header. `file` is then at the tensors' bytes.
pub(crate) fn read_start(file: &mut impl Read, size: u64) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    // Check the length against the file before allocating that much memory.
    let header = u64::from_le_bytes(length);
    if header > size.saturating_sub(8) {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let mut start = length.to_vec();
    start.resize(8 + header as usize, 0);
    file.read_exact(&mut start[8..])?;
    Ok(start)
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
