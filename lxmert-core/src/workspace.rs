//! Where files lie: one root folder with the data sets in `data/` and what jobs write. What the programs themselves need
//! (vocabularies, answer tables, the detector of scenes) is part of them.
//!
//! | path | what |
//! | --- | --- |
//! | `data/` | data sets, and the photos that ship |
//! | `data/scenes/` | the generated data set: `images/`, `results.csv`, `splits.json`, `scenes.json`, … |
//! | `data/features/<name>/` | feature stores |
//! | `runs/<name>/` | checkpoints, logs and pictures of a training run |

use std::path::{Path, PathBuf};

/// The root folder and the paths in it.
#[derive(Debug, Clone)]
pub struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// The nearest folder, from the current one upwards, that holds `data/README.md`, as this project's sources do; elsewhere the
    /// current folder.
    pub fn locate() -> Self {
        let here = std::env::current_dir().unwrap_or_default();
        Self::at(here.ancestors().find(|folder| folder.join("data/README.md").is_file()).unwrap_or(&here))
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
