//! What can go wrong in this crate, one variant per way to fail.

use std::path::{Path, PathBuf};

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// One variant per way to fail.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// Something in the core failed: a checkpoint, a feature store, a tensor operation.
    #[error(transparent)]
    Core(#[from] lxmert_core::Error),
    /// Captions, splits or a run's records.
    #[error(transparent)]
    Train(#[from] lxmert_train::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A photo or a detector.
    #[error(transparent)]
    Extract(#[from] lxmert_extract::Error),
    /// A picture could not be drawn or encoded.
    #[error("drawing failed: {0}")]
    Drawing(String),
    /// A picture would be larger than any viewer opens.
    #[error("the picture would be {width} × {height} pixels; the limit is {limit} a side: {advice}")]
    TooLarge {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The largest side allowed.
        limit: u32,
        /// What to do.
        advice: &'static str,
    },
    /// The numbers given do not fit together.
    #[error("{0}")]
    Shape(String),
    /// An argument that cannot be used.
    #[error("{0}")]
    Argument(String),
    /// A file is not of the form it should have.
    #[error("{path}: {reason}", path = path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the row where there is one.
        reason: String,
    },
    /// Something that an earlier command makes is not there.
    #[error("{what} is missing: {path}; {advice}", path = path.display())]
    Missing {
        /// What is missing.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// The command that makes it.
        advice: String,
    },
}

impl Error {
    /// An [`Error::Io`] at `path`, for `map_err`.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, source }
    }
}
