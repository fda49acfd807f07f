//! Files mapped into memory.

use crate::{Error, Result};
use std::path::Path;

/// A file's bytes, or bytes that stand for one.
#[derive(Debug)]
pub(crate) enum Bytes {
    Mapped(memmap2::Mmap),
    Owned(Vec<u8>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// Maps a file instead of reading it: only what is looked at is read, and the system may drop it again.
pub(crate) fn map_file(path: &Path) -> Result<Bytes> {
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    let metadata = file.metadata().map_err(Error::io(path))?;
    if metadata.is_dir() {
        return Err(Error::format(path, "this is a folder; name the weights file in it"));
    }
    if metadata.len() == 0 {
        return Ok(Bytes::Owned(Vec::new())); // an empty file cannot be mapped
    }
    map(&file).map(Bytes::Mapped).map_err(Error::io(path))
}

#[allow(unsafe_code)]
fn map(file: &std::fs::File) -> std::io::Result<memmap2::Mmap> {
    // SAFETY: the map is read-only, and this project replaces files by renaming and never changes them in place, so that the
    // bytes stay as they are. If another program shortens the file meanwhile, this process ends with a bus error.
    unsafe { memmap2::Mmap::map(file) }
}
