//! Writing safetensors in a fixed byte order.

use super::elements::{for_bytes, safetensors_type};
use crate::files::atomic_write;
use crate::{Error, Result};
use candle_core::Tensor;
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// Writes tensors (from any device) and text metadata as a safetensors file, whole or not at all. The same tensors and
/// metadata give the same bytes, which the format's own writer does not guarantee: metadata is sorted by key, tensors
/// by element size (largest first, so that each is aligned), then by name.
///
/// # Errors
/// [`Error::Argument`] for a repeated name or an element type that safetensors lacks; [`Error::Io`].
pub fn save_safetensors(
    path: impl AsRef<Path>,
    tensors: &[(String, Tensor)],
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let path = path.as_ref();
    let mut order: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    order.sort_by(|(a_name, a), (b_name, b)| {
        b.dtype().size_in_bytes().cmp(&a.dtype().size_in_bytes()).then(a_name.cmp(b_name))
    });
    let entries = order.iter().map(|(name, tensor)| match safetensors_type(tensor.dtype()) {
        Some(dtype) => Ok((*name, dtype, tensor.dims().to_vec())),
        None => Err(Error::Argument(format!("'{name}' is {:?}, which safetensors cannot hold", tensor.dtype()))),
    });
    let header = header(metadata, entries.collect::<Result<Vec<_>>>()?)?;
    let mut failure = None;
    atomic_write(path, |file| {
        file.write_all(&header)?;
        for (_, tensor) in &order {
            match for_bytes(tensor, |bytes| file.write_all(bytes)) {
                Ok(written) => written?,
                Err(error) => {
                    failure = Some(error);
                    return Err(std::io::Error::other("a tensor could not be read back"));
                }
            }
        }
        Ok(())
    })
    .map_err(|error| failure.map_or(error, Error::Candle))
}

/// The start of a safetensors file: the header's length and the header, padded with spaces so that the tensors' bytes,
/// which follow in the given order, start at a multiple of 8.
pub(crate) fn header<'a>(
    metadata: &BTreeMap<String, String>,
    tensors: impl IntoIterator<Item = (&'a str, Dtype, Vec<usize>)>,
) -> Result<Vec<u8>> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), serde_json::json!(metadata));
    }
    let mut end = 0;
    for (name, dtype, shape) in tensors {
        let start = end;
        end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
        let entry = serde_json::json!({"dtype": dtype.to_string(), "shape": shape, "data_offsets": [start, end]});
        if header.insert(name.into(), entry).is_some() {
            return Err(Error::Argument(format!("two tensors are called '{name}'")));
        }
    }
    let mut json = serde_json::Value::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok([&(json.len() as u64).to_le_bytes()[..], &json].concat())
}
