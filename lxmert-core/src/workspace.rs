//! Where files lie: one root folder with the shipped `data/` and what jobs write.
//!
//! | path | what |
//! | --- | --- |
//! | `data/` | what ships, and the user's data sets |
//! | `data/scenes/` | the generated data set: `images/`, `results.csv`, `splits.json`, `scenes.json`, … |
//! | `data/features/<name>/` | feature stores |
//! | `runs/<name>/` | checkpoints, logs and pictures of a training run |

use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// The root folder and the paths in it.
#[derive(Debug, Clone)]
pub struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// The nearest folder at or above the current one that holds `data/README.md`, otherwise the folder this program
    /// was built in.
    ///
    /// # Errors
    /// Returns an error if neither exists.
    pub fn locate() -> Result<Self> {
        let here = std::env::current_dir().map_err(Error::io("."))?;
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
        here.ancestors()
            .chain(std::iter::once(built))
            .find(|folder| folder.join("data/README.md").is_file())
            .map(Self::at)
            .ok_or_else(|| Error::Argument("no data/ folder here or above; run inside the workspace".into()))
    }

    /// A workspace with this root.
    pub fn at(root: impl AsRef<Path>) -> Self {
        Self { root: root.as_ref().to_path_buf() }
    }

    /// The root folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `data/<name>`.
    pub fn data(&self, name: &str) -> PathBuf {
        self.root.join("data").join(name)
    }

    /// The feature store `data/features/<name>`.
    pub fn features(&self, name: &str) -> PathBuf {
        self.root.join("data/features").join(name)
    }

    /// The training run `runs/<name>`.
    pub fn run(&self, name: &str) -> PathBuf {
        self.root.join("runs").join(name)
    }
}
