//! The errors of this crate.

use std::path::{Path, PathBuf};

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// One variant per way to fail.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something in the core failed: reading or writing a file, a checkpoint, a feature store.
    #[error(transparent)]
    Core(#[from] lxmert_core::Error),
    /// Captions, splits or a run's records failed.
    #[error(transparent)]
    Train(#[from] lxmert_train::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A photo or a detector failed.
    #[error(transparent)]
    Extract(#[from] lxmert_extract::Error),
    /// A picture could not be drawn or encoded.
    #[error("drawing failed: {0}")]
    Drawing(String),
    /// A picture would be larger than any viewer opens.
    #[error("the picture would be {width} × {height} pixels; the limit is {limit} per side: {advice}")]
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
    /// Values do not fit together.
    #[error("{0}")]
    Shape(String),
    /// An argument is unusable.
    #[error("{0}")]
    Argument(String),
    /// A file does not have the form that it should have.
    #[error("{path}: {reason}", path = path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the row if there is one.
        reason: String,
    },
    /// The output of an earlier command is missing.
    #[error("{what} is missing: {path}{like}; {advice}", path = path.display(), like = like(path))]
    Missing {
        /// What is missing.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// The command that makes it.
        advice: String,
    },
}

/// What is missing of a path, for the text of [`Error::Missing`].
fn like(path: &Path) -> String {
    lxmert_core::nearby::missing(path).map_or_else(String::new, |what| format!(": {what}"))
}

impl Error {
    /// An I/O error at `path`, for `map_err`.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let of_core = lxmert_core::Error::io(path);
        move |source| Self::Core(of_core(source))
    }
}
