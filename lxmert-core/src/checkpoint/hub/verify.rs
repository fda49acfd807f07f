//! Is a file the published one? And the memory of having checked.

use super::ExpectedFile;
use crate::files::sha256;
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Checks size and sha256.
///
/// # Errors
/// [`Error::Format`] on another size, [`Error::Hash`] on another hash, [`Error::Io`].
pub(super) fn check(path: &Path, expected: &ExpectedFile<'_>) -> Result<()> {
    check_size(path, expected.size)?;
    let found = sha256(path)?;
    if found.eq_ignore_ascii_case(expected.sha256) {
        Ok(())
    } else {
        Err(Error::Hash { path: path.into(), expected: expected.sha256.into(), found })
    }
}

/// [`check`], but a file of the cache that passed before and was not touched since (size and time of
/// change) is not hashed again. The memory is a small file under the repository's folder in the cache.
pub(super) fn check_remembered(path: &Path, repository: &Path, expected: &ExpectedFile<'_>) -> Result<()> {
    let memory = repository.join(".verified").join(expected.sha256);
    let now = fingerprint(path);
    if now.is_some() && now == std::fs::read_to_string(&memory).ok() {
        return check_size(path, expected.size);
    }
    check(path, expected)?;
    if let Some(now) = fingerprint(path) {
        // Only a convenience: a cache that cannot be written to is hashed again next time.
        let _ = std::fs::create_dir_all(repository.join(".verified"));
        let _ = std::fs::write(&memory, now);
    }
    Ok(())
}

fn check_size(path: &Path, expected: u64) -> Result<()> {
    let size = std::fs::metadata(path).map_err(Error::io(path))?.len();
    if size == expected {
        return Ok(());
    }
    let cut = if size < expected { "the download was cut, or it is another file" } else { "it is another file" };
    Err(Error::format(path, format!("{size} bytes long, the published file has {expected}: {cut}")))
}

/// The file that a path leads to (through the cache's links), its size and time of change, as text.
fn fingerprint(path: &Path) -> Option<String> {
    let file: PathBuf = path.canonicalize().ok()?;
    let metadata = file.metadata().ok()?;
    let changed = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(format!("{} {} {}", metadata.len(), changed.as_nanos(), file.file_name()?.display()))
}

/// The sha256 that a blob of the cache is named by: large files lie under theirs, small ones under git's.
pub(super) fn hash_in_name(blob: &Path) -> Option<String> {
    let name = blob.file_name()?.to_str()?;
    (name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit())).then(|| name.to_string())
}

/// Size and promised sha256 of the file that a path of the cache leads to, where its name is a sha256.
pub(super) fn named_by_hash(path: &Path) -> Result<Option<(u64, String)>> {
    let blob = path.canonicalize().map_err(Error::io(path))?;
    let size = blob.metadata().map_err(Error::io(&blob))?.len();
    Ok(hash_in_name(&blob).map(|sha256| (size, sha256)))
}
