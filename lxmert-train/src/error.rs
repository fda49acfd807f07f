//! The errors of this crate.

use std::path::{Path, PathBuf};

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// One variant per way to fail. Each says where and, if known, what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The core crate failed: files, checkpoints, the feature store, the model.
    #[error(transparent)]
    Core(#[from] lxmert_core::Error),
    /// A photo or a detector failed.
    #[error(transparent)]
    Extract(#[from] lxmert_extract::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// Captions name images that the feature store lacks.
    #[error("{store}: {missing} of {total} captioned images have no features (first: {examples}); run `cargo run -p lxmert-extract` on the same images, or allow it with --allow-missing-images", store = store.display())]
    MissingFeatures {
        /// The feature store.
        store: PathBuf,
        /// Images without features.
        missing: usize,
        /// Images that captions name.
        total: usize,
        /// The first few names.
        examples: String,
    },
    /// An argument or a setting is unusable.
    #[error("{0}")]
    Argument(String),
    /// A run folder holds a run made with other settings.
    #[error("{folder}: this run was made with other settings:\n{differences}\nuse the run's settings, another --output (with --init {folder}/last to train on from its weights), or --overwrite to start again", folder = folder.display())]
    OtherSettings {
        /// The run folder.
        folder: PathBuf,
        /// One line per setting that differs.
        differences: String,
    },
    /// The loss is no longer a number.
    #[error(
        "step {step}: the loss is {loss}; lower --learning-rate (now {learning_rate}) or raise --warmup, and check the features for infinities"
    )]
    Diverged {
        /// The optimiser step, counted from 1.
        step: u64,
        /// The loss.
        loss: f64,
        /// The learning rate of the step.
        learning_rate: f64,
    },
    /// Another process of this job failed.
    #[error("rank {rank}: {reason}")]
    OtherRank {
        /// Which.
        rank: usize,
        /// What it says.
        reason: String,
    },
    /// The processes of this job should hold the same, and do not.
    #[error(
        "{what} differ between rank 0 and ranks {ranks}: see that all run the same build on the same data and files; the last saved state is from before"
    )]
    RanksDiffer {
        /// What.
        what: String,
        /// The ranks that differ from rank 0.
        ranks: String,
    },
    /// A picture could not be drawn.
    #[error("{path}: drawing failed: {reason}", path = path.display())]
    Drawing {
        /// The picture.
        path: PathBuf,
        /// The drawing library's message.
        reason: String,
    },
}

impl Error {
    /// An I/O error at `path`, for `map_err`.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let of_core = lxmert_core::Error::io(path);
        move |source| Self::Core(of_core(source))
    }

    /// A JSON error at `path`, for `map_err`.
    pub fn json(path: impl AsRef<Path>) -> impl FnOnce(serde_json::Error) -> Self {
        let of_core = lxmert_core::Error::json(path);
        move |source| Self::Core(of_core(source))
    }

    /// A row of a file cannot be parsed.
    pub fn row(path: impl AsRef<Path>, row: usize, reason: impl Into<String>) -> Self {
        Self::Core(lxmert_core::Error::row(path, row, reason))
    }

    /// A whole file is not what its name or place implies.
    pub fn file(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Core(lxmert_core::Error::format(path, reason))
    }

    /// Whether the job stopped because of Ctrl-C.
    pub fn is_interrupt(&self) -> bool {
        matches!(self, Self::Core(lxmert_core::Error::Interrupted))
    }
}
