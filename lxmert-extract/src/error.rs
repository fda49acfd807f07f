//! The errors of this crate.

use std::path::{Path, PathBuf};

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// One variant per way to fail. Each says where and, if known, what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading, writing, storing or computing failed in the core.
    #[error(transparent)]
    Core(#[from] lxmert_core::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A file cannot be decoded as an image.
    #[error("{path}: {reason}", path = path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// The decoder's message.
        reason: String,
    },
    /// A folder, list or caption file names no images.
    #[error("{path}: {reason}", path = path.display())]
    Input {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The network failed on many images in a row, so the images are not the cause.
    #[error("the detector failed on {count} images in a row, the last one '{name}': {reason}")]
    Detector {
        /// How many.
        count: usize,
        /// The last of them.
        name: String,
        /// What went wrong.
        reason: String,
    },
}

impl Error {
    /// Whether the job stopped because of Ctrl-C.
    pub fn is_interrupt(&self) -> bool {
        matches!(self, Self::Core(lxmert_core::Error::Interrupted))
    }

    /// An [`Error::Image`] at `path`.
    pub fn image(path: impl AsRef<Path>, reason: impl ToString) -> Self {
        Self::Image { path: path.as_ref().to_path_buf(), reason: reason.to_string() }
    }

    /// An [`Error::Input`] at `path`.
    pub fn input(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Input { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }
}
