//! The errors of this crate.

use std::path::{Path, PathBuf};

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// One variant per way to fail. Each says where and, if known, what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A JSON file does not parse or lacks a field.
    #[error("{path}: {what}", path = path.display(), what = describe_json(source))]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's message, with line and column.
        source: serde_json::Error,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A file does not have the format that its place or name implies.
    #[error("{path}: {reason}", path = path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A row, line or entry of a file cannot be parsed.
    #[error("{path}, row {row}: {reason}", path = path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// The row, counted from 1: a line, or an entry of a JSON list.
        row: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// An argument or configuration value is unusable.
    #[error("{0}")]
    Argument(String),
    /// The feature store to continue was made with other settings.
    #[error("{path} was made with other settings: {differences}; write to another folder, or delete this one", path = path.display())]
    StoreDiffers {
        /// The store's folder.
        path: PathBuf,
        /// Every difference, with both values.
        differences: String,
    },
    /// A checkpoint's tensors are not those that the network needs.
    #[error("{path}: {what}", path = path.display(), what = crate::checkpoint::fit::describe(missing, unexpected, misshapen))]
    Checkpoint {
        /// The checkpoint.
        path: PathBuf,
        /// Names that the network needs but the file lacks.
        missing: Vec<String>,
        /// Names in the file that the network does not have.
        unexpected: Vec<String>,
        /// Names with different shapes in the two.
        misshapen: Vec<crate::checkpoint::Misshapen>,
    },
    /// A pickle names a class or function that tensors do not need. Nothing was run.
    #[error(
        "{path}: byte {offset} of its pickle asks for {class}, which is not a tensor, dict, list or number; nothing was run. \
         If you trust the file, load it in Python and save only its state dict"
    , path = path.display())]
    PickleClass {
        /// The file.
        path: PathBuf,
        /// `module.name`, or the operation that the pickle requests on an object.
        class: String,
        /// Offset of the operation in the pickle stream, in bytes.
        offset: usize,
    },
    /// A pickle is damaged, or holds something that cannot become a tensor here.
    #[error("{path}: byte {offset} of its pickle: {reason}", path = path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// Offset in the pickle stream, in bytes.
        offset: usize,
        /// What is wrong.
        reason: String,
    },
    /// A file could not be downloaded from the hub.
    #[error("{file}: {reason}")]
    Hub {
        /// The source as the user wrote it, `hf:owner/repo/file[@revision]`.
        file: String,
        /// What the hub answered, and what to do.
        reason: String,
    },
    /// A file differs from the published one.
    #[error("{path}: its sha256 is {found}, the published file's is {expected}; the file is damaged or a different one", path = path.display())]
    Hash {
        /// The file.
        path: PathBuf,
        /// The published hash, lower-case hexadecimal.
        expected: String,
        /// The hash of the file on disk.
        found: String,
    },
    /// The user stopped the job with Ctrl-C; finished work is kept.
    #[error("stopped; run the same command again to continue")]
    Interrupted,
}

/// The text of an [`Error::Json`].
fn describe_json(source: &serde_json::Error) -> String {
    match (source.is_eof(), source.line(), source.column()) {
        (true, 1, 0) => "the file is empty; write or fetch it again".into(),
        (true, ..) => format!("this JSON is truncated ({source}); write or fetch it again"),
        _ => format!("not the JSON expected here: {source}"),
    }
}

impl Error {
    /// An [`Error::Io`] at `path`, for `map_err`.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { source: crate::nearby::explain(&path, source), path }
    }

    /// An [`Error::Json`] at `path`, for `map_err`.
    pub fn json(path: impl AsRef<Path>) -> impl FnOnce(serde_json::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Json { path, source }
    }

    /// Replaces an [`Error::Checkpoint`] by an [`Error::Format`] with `reason` if the checkpoint lacks only the head
    /// whose weights start with `head`.
    #[must_use]
    pub fn for_lacking_head(self, head: &str, reason: &str) -> Self {
        match self {
            Self::Checkpoint { path, missing, misshapen, .. }
                if misshapen.is_empty() && !missing.is_empty() && missing.iter().all(|name| name.starts_with(head)) =>
            {
                Self::format(path, reason)
            }
            other => other,
        }
    }

    /// An [`Error::Format`] at `path`.
    pub fn format(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Format { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }

    /// An [`Error::Row`] at `path`.
    pub fn row(path: impl AsRef<Path>, row: usize, reason: impl Into<String>) -> Self {
        Self::Row { path: path.as_ref().to_path_buf(), row, reason: reason.into() }
    }
}
