//! Writing safetensors in a fixed byte order.

use super::elements::{for_bytes, safetensors_type};
use crate::files::{atomic_write, map_file};
use crate::{Error, Result};
use candle_core::Tensor;
use crc32fast::Hasher;
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
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
    write(path.as_ref(), tensors, metadata, None)
}

/// The metadata's key of a file's own checksum: the CRC-32 of the whole file with [`BLANK`] in its place. It is against damage,
/// not against malice, and costs less than writing the file.
const CHECKSUM: &str = "crc32";
const BLANK: [u8; 8] = [b'0'; 8];

/// [`save_safetensors`] with a checksum of the whole file in its metadata, for [`verify_safetensors`].
///
/// # Errors
/// See [`save_safetensors`].
pub fn save_verifiable_safetensors(
    path: impl AsRef<Path>,
    tensors: &[(String, Tensor)],
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let mut metadata = metadata.clone();
    metadata.insert(CHECKSUM.into(), String::from_utf8_lossy(&BLANK).into_owned());
    write(path.as_ref(), tensors, &metadata, Some(Hasher::new()))
}

/// Checks every byte of a file that [`save_verifiable_safetensors`] wrote; returns its metadata.
///
/// # Errors
/// [`Error::Format`] if the file is not what was written; [`Error::Io`].
pub fn verify_safetensors(path: impl AsRef<Path>) -> Result<BTreeMap<String, String>> {
    let path = path.as_ref();
    let bytes = map_file(path)?;
    let damaged = |what: &str| Error::format(path, format!("the file is damaged: {what}"));
    let length = bytes.first_chunk().and_then(|length| usize::try_from(u64::from_le_bytes(*length)).ok());
    let start = length.and_then(|length| bytes.get(..length.checked_add(8)?));
    let start = start.ok_or_else(|| damaged("its header is truncated"))?;
    let at = checksum_at(start).ok_or_else(|| damaged("its header has no checksum"))?;
    let mut hash = Hasher::new();
    [&bytes[..at.start], &BLANK, &bytes[at.end..]].iter().for_each(|part| hash.update(part));
    if digits(hash).as_bytes() != &bytes[at] {
        return Err(damaged("its checksum is not the one in its header"));
    }
    let header: serde_json::Value = serde_json::from_slice(&start[8..]).map_err(Error::json(path))?;
    serde_json::from_value(header["__metadata__"].clone()).map_err(Error::json(path))
}

/// Where a file's start has the checksum's characters. In the JSON of the header, keys and values that contain
/// quotation marks have backslashes before them, so the first match is the key.
fn checksum_at(start: &[u8]) -> Option<Range<usize>> {
    let key = format!("\"{CHECKSUM}\":\"");
    let at = start.windows(key.len()).position(|window| window == key.as_bytes())? + key.len();
    (start.len() >= at + BLANK.len()).then_some(at..at + BLANK.len())
}

fn digits(hash: Hasher) -> String {
    format!("{:08x}", hash.finalize())
}

fn write(
    path: &Path,
    tensors: &[(String, Tensor)],
    metadata: &BTreeMap<String, String>,
    mut hash: Option<Hasher>,
) -> Result<()> {
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
        let mut put = |bytes: &[u8]| {
            hash.iter_mut().for_each(|hash| hash.update(bytes));
            file.write_all(bytes)
        };
        put(&header)?;
        for (_, tensor) in &order {
            match for_bytes(tensor, &mut put) {
                Ok(written) => written?,
                Err(error) => {
                    failure = Some(error);
                    return Err(std::io::Error::other("a tensor could not be read back"));
                }
            }
        }
        if let (Some(hash), Some(at)) = (hash, checksum_at(&header)) {
            file.seek(SeekFrom::Start(at.start as u64))?;
            file.write_all(digits(hash).as_bytes())?;
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
