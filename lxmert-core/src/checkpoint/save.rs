//! Writing files whole or not at all, and safetensors in a fixed byte order.

use super::elements::{for_bytes, safetensors_name};
use crate::{Error, Result};
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Writes a file whole: `write` fills a temporary file beside `path`, which is synced to the disk and renamed over it. If the
/// process ends at any moment, `path` holds the old content or the new.
///
/// # Errors
/// [`Error::Io`] at `path`, from `write` or from the file system (its folder must exist).
pub fn atomic_write<T>(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<T>,
) -> Result<T> {
    let path = path.as_ref();
    atomic_write_io(path, write).map_err(Error::io(path))
}

fn atomic_write_io<T>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<T>,
) -> std::io::Result<T> {
    let name = path.file_name().ok_or_else(|| std::io::Error::other("this path names no file"))?;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(name);
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(".tmp");
    #[cfg(unix)]
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o666); // less the umask, as for any new file
    #[cfg(unix)]
    builder.permissions(permissions);
    let (file, temporary) = builder.tempfile_in(folder)?.into_parts();

    let mut writer = BufWriter::with_capacity(1 << 20, file);
    let value = write(&mut writer)?;
    let file = writer.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    file.sync_all()?;
    drop(file);
    temporary.persist(path).map_err(|e| e.error)?;
    // The rename itself is on the disk once the folder is.
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    Ok(value)
}

/// Writes tensors (from any device) and text metadata as a safetensors file, whole or not at all. The
/// same tensors and metadata give the same bytes, which the format's own writer does not promise: metadata is sorted by key,
/// tensors by element size, the larger first so that each lies aligned, then by name.
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

    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), serde_json::json!(metadata));
    }
    let mut end = 0usize;
    for (name, tensor) in &order {
        let Some(dtype) = safetensors_name(tensor.dtype()) else {
            return Err(Error::Argument(format!("'{name}' is {:?}, which safetensors cannot hold", tensor.dtype())));
        };
        let start = end;
        end += tensor.elem_count() * tensor.dtype().size_in_bytes();
        let entry = serde_json::json!({"dtype": dtype, "shape": tensor.dims(), "data_offsets": [start, end]});
        if header.insert((*name).into(), entry).is_some() {
            return Err(Error::Argument(format!("two tensors are called '{name}'")));
        }
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut failure = None;
    atomic_write(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
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
