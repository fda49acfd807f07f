//! The cache on disk, in the Python library's layout, and the hashes of its files.
//!
//! Under `models--owner--repo/`: `blobs/` holds each content once, named by the hub's ETag (for a large file its sha256);
//! `snapshots/<commit>/` holds links to blobs under the files' names; `refs/<revision>` says which commit a branch or tag is.

use super::{ExpectedFile, HubFile};
use crate::files::sha256;
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// One repository's folder in the cache.
#[derive(Debug)]
pub(super) struct Repository(pub PathBuf);

impl Repository {
    pub fn of(file: &HubFile, cache: &Path) -> Self {
        Self(cache.join(file.cache_folder()))
    }

    /// The file's path if it is there: in the snapshot of the revision, which may be a commit, or in the newest snapshot that has
    /// it where no commit is noted for `main`.
    pub fn find(&self, file: &HubFile) -> Option<PathBuf> {
        let snapshots = self.0.join("snapshots");
        let noted = std::fs::read_to_string(self.reference(file)).ok();
        let commit = noted.as_deref().map_or(file.revision(), str::trim);
        let path = snapshots.join(commit).join(&file.file);
        if path.is_file() {
            return Some(path);
        }
        if noted.is_some() || file.revision.is_some() {
            return None;
        }
        let dated = std::fs::read_dir(snapshots).ok()?.flatten().filter_map(|snapshot| {
            let path = snapshot.path().join(&file.file);
            path.is_file().then_some((snapshot.metadata().and_then(|m| m.modified()).ok(), path))
        });
        dated.max().map(|(_, path)| path)
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.0.join("blobs").join(etag)
    }

    /// Where the commit of the file's revision is noted.
    fn reference(&self, file: &HubFile) -> PathBuf {
        self.0.join("refs").join(file.revision())
    }

    /// Gives the blob `etag` its name in the snapshot `commit` and notes the commit. What is so already is not written, so
    /// a complete cache may be read-only.
    pub fn link(&self, file: &HubFile, commit: &str, etag: &str) -> std::io::Result<PathBuf> {
        let path = self.0.join("snapshots").join(commit).join(&file.file);
        if path.canonicalize().ok() != self.blob(etag).canonicalize().ok() {
            std::fs::create_dir_all(path.parent().unwrap_or(&self.0))?;
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            // Relative, so that the cache can be moved.
            #[cfg(unix)]
            std::os::unix::fs::symlink(
                Path::new(&"../".repeat(2 + file.file.matches('/').count())).join("blobs").join(etag),
                &path,
            )?;
            #[cfg(not(unix))]
            std::fs::copy(self.blob(etag), &path)?;
        }
        let reference = self.reference(file);
        if file.revision() != commit && std::fs::read(&reference).ok().as_deref() != Some(commit.as_bytes()) {
            std::fs::create_dir_all(reference.parent().unwrap_or(&self.0))?;
            std::fs::write(reference, commit)?;
        }
        Ok(path)
    }

    /// [`ExpectedFile::check`], but a file that passed before and has the same size and time of change is not hashed again.
    pub fn check(&self, path: &Path, expected: &ExpectedFile<'_>) -> Result<()> {
        let memory = self.0.join(".verified").join(expected.sha256);
        let now = fingerprint(path);
        if now.is_some() && now == std::fs::read_to_string(&memory).ok() {
            return expected.check_size(path);
        }
        expected.check(path)?;
        if let Some(now) = now {
            // Only saves time: in a cache that cannot be written, the next call hashes the file again.
            let _ = std::fs::create_dir_all(self.0.join(".verified"));
            let _ = std::fs::write(&memory, now);
        }
        Ok(())
    }
}

/// Removes a file of the cache, and the blob that it is a link to.
pub(super) fn discard(path: &Path) -> Result<()> {
    let blob = path.canonicalize().map_err(Error::io(path))?;
    std::fs::remove_file(path).map_err(Error::io(path))?;
    match std::fs::remove_file(&blob) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&blob)(error)),
        _ => Ok(()),
    }
}

/// Name, size and time of change of the file that a path leads to, as text.
fn fingerprint(path: &Path) -> Option<String> {
    let file = path.canonicalize().ok()?;
    let metadata = file.metadata().ok()?;
    let changed = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(format!("{} {} {}", metadata.len(), changed.as_nanos(), file.file_name()?.display()))
}

impl ExpectedFile<'_> {
    /// [`Error::Format`] on another size, [`Error::Hash`] on another hash.
    pub(super) fn check(&self, path: &Path) -> Result<()> {
        self.check_size(path)?;
        let found = sha256(path)?;
        if found.eq_ignore_ascii_case(self.sha256) {
            return Ok(());
        }
        Err(Error::Hash { path: path.into(), expected: self.sha256.into(), found })
    }

    fn check_size(&self, path: &Path) -> Result<()> {
        let size = std::fs::metadata(path).map_err(Error::io(path))?.len();
        if size == self.size {
            return Ok(());
        }
        let cut = if size < self.size { "the download was cut, or it is another file" } else { "it is another file" };
        Err(Error::format(path, format!("{size} bytes long, the published file has {}: {cut}", self.size)))
    }
}
