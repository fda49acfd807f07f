//! Weights from a file or from the hub, through the cache that Python's `huggingface_hub` uses.
//!
//! A source is written as a path, or as `hf:owner/repo/file[@revision]` (the file may be in subfolders); for a space,
//! as `hf:spaces/owner/repo/file[@revision]`. [`HubOptions`] takes the cache's folder, the endpoint and the token from
//! the Python library's environment variables.
//!
//! [`client`](Hub) decides what to fetch and when to use the cached copy; `cache` manages the cache, in `hf-hub`'s
//! layout, and checks hashes; `network` implements the protocol over `ureq` (for the reasons not to use hf-hub's own
//! clients, see the workspace's `Cargo.toml`). Only the last needs the crate's feature `hub`; a build without it reads
//! the cache as if offline.

#[cfg_attr(not(feature = "hub"), allow(dead_code))]
mod cache;
#[cfg_attr(not(feature = "hub"), allow(dead_code, unused_variables))]
mod client;
#[cfg(feature = "hub")]
mod network;
mod options;

pub use client::Hub;
pub use options::HubOptions;

use crate::{Error, Result};
use hf_hub::{Repo, RepoType};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where weights come from: `hf:owner/repo/file[@revision]`, or a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WeightSource {
    /// A file on this machine.
    File(PathBuf),
    /// A file on the hub.
    Hub(HubFile),
}

/// A file in a repository on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubFile {
    /// Whether the repository is a space instead of a model.
    pub space: bool,
    /// The repository's owner.
    pub owner: String,
    /// The repository's name.
    pub repo: String,
    /// The file's path in the repository, with `/` between folders.
    pub file: String,
    /// Branch, tag or commit; `None` means `main`.
    pub revision: Option<String>,
}

/// Size and hash of a published file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpectedFile<'a> {
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256 in lower-case hexadecimal.
    pub sha256: &'a str,
}

impl WeightSource {
    /// The path of the file on this machine. A hub file is downloaded into the cache first if it is not there. With
    /// `expected`, size and SHA-256 are checked. `show_progress` draws a progress bar.
    ///
    /// # Errors
    /// [`Error::Io`] if a local file does not exist; [`Error::Hub`] if the hub refuses or cannot be reached;
    /// [`Error::Hash`] or [`Error::Format`] if the file is not the expected one; [`Error::Interrupted`].
    pub fn resolve(&self, expected: Option<&ExpectedFile<'_>>, show_progress: bool) -> Result<PathBuf> {
        match self {
            Self::File(path) => {
                std::fs::metadata(path).map_err(Error::io(path))?;
                expected.map_or(Ok(()), |expected| expected.check(path))?;
                Ok(path.clone())
            }
            Self::Hub(file) => Hub::new(HubOptions::from_env())?.fetch(file, expected, show_progress),
        }
    }
}

impl HubFile {
    /// The repository at the file's revision, with hf-hub's name for it in the cache.
    fn repository(&self) -> Repo {
        let kind = if self.space { RepoType::Space } else { RepoType::Model };
        Repo::with_revision(format!("{}/{}", self.owner, self.repo), kind, self.revision().into())
    }

    /// The revision; `main` by default.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

impl FromStr for WeightSource {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.strip_prefix("hf:") {
            Some(rest) => rest.parse().map(Self::Hub),
            None if text.is_empty() => Err("the name of the weights is empty".into()),
            None if text.starts_with("http://") || text.starts_with("https://") => Err(format!(
                "'{text}' is an address; download the file and pass its path, or write a hub file as hf:owner/repo/file"
            )),
            None => Ok(Self::File(text.into())),
        }
    }
}

impl fmt::Display for WeightSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Hub(file) => file.fmt(f),
        }
    }
}

impl FromStr for HubFile {
    type Err = String;

    /// `[spaces/]owner/repo/file[@revision]`, after the `hf:`.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = |what: &str| format!("'hf:{text}' {what}; a hub file is written hf:owner/repo/file[@revision]");
        let (path, revision) = match text.rsplit_once('@') {
            Some((_, "")) => return Err(wrong("has an empty revision")),
            Some((path, revision)) => (path, Some(revision)),
            None => (text, None),
        };
        let (space, path) = match path.strip_prefix("spaces/") {
            Some(path) => (true, path),
            None => (false, path),
        };
        let mut parts = path.splitn(3, '/');
        let (Some(owner), Some(repo), Some(file)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(wrong("names no file"));
        };
        // These become folder names in the cache, so none may lead out of it.
        let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', '\0']);
        let revision_parts = revision.into_iter().flat_map(|revision| revision.split('/'));
        if ![owner, repo].into_iter().chain(file.split('/')).chain(revision_parts).all(plain) {
            return Err(wrong("has an empty part or one of '.', '..' and '\\'"));
        }
        let revision = revision.map(Into::into);
        Ok(Self { space, owner: owner.into(), repo: repo.into(), file: file.into(), revision })
    }
}

impl fmt::Display for HubFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let space = if self.space { "spaces/" } else { "" };
        write!(f, "hf:{space}{}/{}/{}", self.owner, self.repo, self.file)?;
        self.revision.iter().try_for_each(|revision| write!(f, "@{revision}"))
    }
}
