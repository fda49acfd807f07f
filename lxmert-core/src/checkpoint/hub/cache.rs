//! The cache on disk, in the Python library's layout (which the crate `hf-hub` implements), and the hashes of its
//! files.
//!
//! Under `models--owner--repo/`: `blobs/` holds each content once, named by the hub's ETag (for a large file its
//! SHA-256); `snapshots/<commit>/` holds links to blobs under the files' names; `refs/<revision>` stores the commit of
//! a branch or tag.

use super::{ExpectedFile, HubFile};
use crate::files::{UNFINISHED, atomic_write, sha256};
use crate::{Error, Result};
use hf_hub::{Cache, CacheRepo};
use std::io::Write;
use std::path::{Path, PathBuf};

/// One revision of a repository in the cache.
#[derive(Debug)]
pub(super) struct Repository {
    cached: CacheRepo,
    /// The repository's folder.
    folder: PathBuf,
}

impl Repository {
    pub fn of(file: &HubFile, cache: &Path) -> Self {
        let repo = file.repository();
        let folder = cache.join(repo.folder_name());
        Self { cached: Cache::new(cache.into()).repo(repo), folder }
    }

    /// The file's path if it is in the snapshot of the revision, which may be a commit; if no commit is stored for
    /// `main`, in the newest snapshot that has the file.
    pub fn find(&self, file: &HubFile) -> Option<PathBuf> {
        let noted = std::fs::read_to_string(self.reference(file)).ok();
        let commit = noted.as_deref().map_or(file.revision(), str::trim);
        let path = self.cached.pointer_path(commit).join(&file.file);
        if path.is_file() {
            return Some(path);
        }
        if noted.is_some() || file.revision.is_some() {
            return None;
        }
        let dated = std::fs::read_dir(self.folder.join("snapshots")).ok()?.flatten().filter_map(|snapshot| {
            let path = snapshot.path().join(&file.file);
            path.is_file().then_some((snapshot.metadata().and_then(|m| m.modified()).ok(), path))
        });
        dated.max().map(|(_, path)| path)
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Where the commit of the file's revision is stored.
    fn reference(&self, file: &HubFile) -> PathBuf {
        self.folder.join("refs").join(file.revision())
    }

    /// Links the blob `etag` under its name in the snapshot `commit`, and stores the commit. Nothing that already
    /// exists is written, so a complete cache may be read-only; several processes may do this at the same time.
    pub fn link(&self, file: &HubFile, commit: &str, etag: &str) -> Result<PathBuf> {
        let (path, blob) = (self.cached.pointer_path(commit).join(&file.file), self.blob(etag));
        if path.canonicalize().ok() != blob.canonicalize().ok() {
            // Relative, so that the cache can be moved.
            let target = Path::new(&"../".repeat(2 + file.file.matches('/').count())).join("blobs").join(etag);
            let folder = folder_of(&path)?;
            let link = tempfile::Builder::new().suffix(UNFINISHED).make_in(folder, |link| {
                #[cfg(unix)]
                return std::os::unix::fs::symlink(&target, link);
                #[cfg(not(unix))]
                return std::fs::copy(folder.join(&target), link).map(drop);
            });
            let link = link.map_err(Error::io(folder))?.into_temp_path();
            link.persist(&path).map_err(|e| Error::io(&path)(e.error))?;
        }
        let reference = self.reference(file);
        if file.revision() != commit && std::fs::read(&reference).ok().as_deref() != Some(commit.as_bytes()) {
            folder_of(&reference)?;
            atomic_write(&reference, |out| out.write_all(commit.as_bytes()))?;
        }
        Ok(path)
    }
}

/// The folder in which a file is to be written, made if it does not exist.
fn folder_of(path: &Path) -> Result<&Path> {
    let folder = path.parent().unwrap_or(path);
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    Ok(folder)
}

/// Removes a cached file, and the blob that it links to.
pub(super) fn discard(path: &Path) -> Result<()> {
    let blob = path.canonicalize().map_err(Error::io(path))?;
    std::fs::remove_file(path).map_err(Error::io(path))?;
    match std::fs::remove_file(&blob) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&blob)(error)),
        _ => Ok(()),
    }
}

impl ExpectedFile<'_> {
    /// [`Error::Format`] if the size differs, [`Error::Hash`] if the hash does.
    pub(super) fn check(&self, path: &Path) -> Result<()> {
        let size = std::fs::metadata(path).map_err(Error::io(path))?.len();
        if size != self.size {
            let cut = if size < self.size {
                "the download is incomplete, or it is another file"
            } else {
                "it is another file"
            };
            let reason = format!("{size} bytes long, the published file has {}: {cut}", self.size);
            return Err(Error::format(path, reason));
        }
        let found = sha256(path)?;
        if found.eq_ignore_ascii_case(self.sha256) {
            return Ok(());
        }
        Err(Error::Hash { path: path.into(), expected: self.sha256.into(), found })
    }
}
