//! What a run writes, and how to read a checkpoint back.
//!
//! ```text
//! runs/<name>/
//!   run.json               the settings: recipe, data, hash of the data
//!   best/  last/           checkpoints in the hub's layout, opened by transformers too:
//!                          config.json, model.safetensors, vocab.txt, tokenizer.json,
//!                          tokenizer_config.json, preprocessor_config.json, README.md (model card)
//!   epoch-N/               the checkpoints that --keep-every keeps
//!   metrics.jsonl          one JSON object per line (crate::log::jsonl)
//!   tensorboard/           an event file
//!   curves.png             losses, accuracies, gradient norm, learning rate
//!   predictions/           of the test split, in the benchmark server's format; not for matching
//!   report.json            the test results; only after the run has finished
//!   state.safetensors      the state for --resume; only until then
//!   run.lock               locked by the process that trains here, if any
//! ```

use crate::log::jsonl::TestRecord;
use crate::{Error, Result};
use candle_core::Tensor;
use lxmert_core::checkpoint::{Place, save_safetensors};
use lxmert_core::config::LxmertConfig;
use lxmert_core::files::{atomic_write, remove_leftovers};
use lxmert_core::pretrained::{Preprocessing, Pretrained};
use lxmert_core::text::WordPiece;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::TryLockError;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The prefix of the folders that `--keep-every` keeps.
const EPOCH: &str = "epoch-";

/// The files of a run.
#[derive(Debug, Clone)]
pub struct RunFolder {
    root: PathBuf,
}

impl RunFolder {
    /// The run at `root`, which need not exist yet.
    pub fn new(root: impl AsRef<Path>) -> Self {
        Self { root: root.as_ref().to_path_buf() }
    }

    /// The run that wrote a checkpoint: the folder itself, or the one that holds `best` or `last`.
    pub fn of_checkpoint(checkpoint: &Path) -> Option<Self> {
        let above =
            checkpoint.parent().map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
        let folders = [Some(checkpoint), above];
        folders.into_iter().flatten().map(Self::new).find(|run| run.settings().is_file())
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The checkpoint of the best epoch.
    pub fn best(&self) -> PathBuf {
        self.root.join("best")
    }

    /// The checkpoint of the last finished epoch.
    pub fn last(&self) -> PathBuf {
        self.root.join("last")
    }

    /// The checkpoint of an epoch, from 1, that `--keep-every` keeps.
    pub fn epoch(&self, epoch: u64) -> PathBuf {
        self.root.join(format!("{EPOCH}{epoch}"))
    }

    /// The checkpoints of epochs that are there.
    fn epochs(&self) -> impl Iterator<Item = PathBuf> {
        let number = |path: &PathBuf| {
            let name = path.file_name()?.to_str()?.strip_prefix(EPOCH)?;
            name.parse::<u64>().ok().filter(|_| path.is_dir())
        };
        let entries = std::fs::read_dir(&self.root).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(move |path| number(path).is_some())
    }

    /// The settings.
    pub fn settings(&self) -> PathBuf {
        self.root.join("run.json")
    }

    /// One JSON object per line.
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// TensorBoard's folder.
    pub fn tensorboard(&self) -> PathBuf {
        self.root.join("tensorboard")
    }

    /// The curves.
    pub fn curves(&self) -> PathBuf {
        self.root.join("curves.png")
    }

    /// The test results.
    pub fn report(&self) -> PathBuf {
        self.root.join("report.json")
    }

    /// Prediction files for a benchmark's server, for the test split.
    pub fn predictions(&self) -> PathBuf {
        self.root.join("predictions")
    }

    /// The training state.
    pub fn state(&self) -> PathBuf {
        self.root.join("state.safetensors")
    }

    /// The file that the training process has locked.
    pub fn lock(&self) -> PathBuf {
        self.root.join("run.lock")
    }

    /// Removes temporary files that a killed run has left.
    pub fn remove_leftovers(&self) {
        // The root may contain the user's files; its subfolders contain only ours.
        let own = [self.settings(), self.state(), self.curves(), self.report()];
        remove_leftovers(&self.root, |name| own.iter().any(|path| path.file_name().is_some_and(|own| own == name)));
        for folder in [self.best(), self.last(), self.predictions()].into_iter().chain(self.epochs()) {
            remove_leftovers(folder, |_| true);
        }
    }

    /// Removes the training state, which a finished run no longer needs.
    ///
    /// # Errors
    /// Returns an error if it cannot be deleted.
    pub fn remove_state(&self) -> Result<()> {
        remove(&self.state(), std::fs::remove_file(self.state()))
    }

    /// Deletes what a run has written, and nothing else in the folder.
    ///
    /// # Errors
    /// Returns an error if something cannot be deleted.
    pub fn clear(&self) -> Result<()> {
        // Delete the report first: without it nobody mistakes half a run for a finished one.
        for file in [self.report(), self.state(), self.settings(), self.metrics(), self.curves()] {
            remove(&file, std::fs::remove_file(&file))?;
        }
        let own = [self.best(), self.last(), self.tensorboard(), self.predictions()];
        for folder in own.into_iter().chain(self.epochs()) {
            remove(&folder, std::fs::remove_dir_all(&folder))?;
        }
        Ok(())
    }
}

/// The lock of a run folder: one process trains there at a time. The system releases it however the process ends, so a
/// dead process never blocks the folder.
#[derive(Debug)]
pub struct Lock {
    _file: std::fs::File,
}

impl Lock {
    /// Locks the folder, which must exist. `command` is recorded for processes that find the folder locked.
    ///
    /// # Errors
    /// Returns an error if another process holds the lock, with its number and command, or if the file cannot be
    /// written.
    pub fn take(folder: &RunFolder, command: &str) -> Result<Self> {
        let path = folder.lock();
        let open = std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.map_err(Error::io(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let holder = std::fs::read_to_string(&path).unwrap_or_default();
                let holder = holder.lines().next().map_or_else(|| "another process".into(), |line| line.to_string());
                let reason = format!("{holder} is training here; wait for it, stop it, or use another --output");
                return Err(Error::file(folder.root(), reason));
            }
            Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {
                log::warn!("{}: this file system has no locks; train one run at a time here", folder.root().display());
            }
            Err(TryLockError::Error(error)) => return Err(Error::io(&path)(error)),
        }
        let holder = format!("process {} ({command})\n", std::process::id());
        file.set_len(0).and_then(|()| file.write_all(holder.as_bytes())).map_err(Error::io(&path))?;
        Ok(Self { _file: file })
    }
}

fn remove(path: &Path, result: std::io::Result<()>) -> Result<()> {
    match result {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path)(e)),
        _ => Ok(()),
    }
}

/// Where the seconds of a run went, over all sessions.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Seconds {
    /// Steps, and saving.
    pub training: f64,
    /// The measures after each epoch.
    pub validation: f64,
    /// The measures of the best checkpoint, but for retrieval.
    pub test: f64,
    /// Ranking images and captions.
    pub retrieval: f64,
}

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { training, validation, test, retrieval } = self;
        write!(f, "{training:.0} s training, {validation:.0} s validation, {test:.0} s test")?;
        if *retrieval > 0.0 { write!(f, ", {retrieval:.0} s retrieval") } else { Ok(()) }
    }
}

/// The report of a finished run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The run's name.
    pub name: String,
    /// The data set.
    pub data: String,
    /// What was trained.
    pub task: String,
    /// Optimiser steps taken.
    pub steps: u64,
    /// Epochs run.
    pub epochs: u64,
    /// Trained parameters.
    pub parameters: usize,
    /// The seed.
    pub seed: u64,
    /// Where the time went.
    pub seconds: Seconds,
    /// Test results of the best checkpoint.
    #[serde(flatten)]
    pub test: TestRecord,
}

impl Report {
    /// Reads `report.json`.
    ///
    /// # Errors
    /// Returns an error if it does not exist or is not a report.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        serde_json::from_str(&text).map_err(Error::json(path))
    }
}

/// The parts of a checkpoint other than the weights.
#[derive(Debug, Clone)]
pub struct CheckpointParts {
    /// The model's configuration.
    pub config: LxmertConfig,
    /// The name of the class that opens it in transformers.
    pub architecture: &'static str,
    /// How to prepare data for the model.
    pub preprocessing: Preprocessing,
    /// The answers of its answer head, by class; empty if it has none.
    pub answers: Vec<String>,
}

/// Writes a JSON file, whole or not at all.
///
/// # Errors
/// Returns an error if it cannot be written.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(Error::json(path))?;
    write_text(path, &(text + "\n"))
}

/// Writes a text file, whole or not at all.
///
/// # Errors
/// Returns an error if it cannot be written.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    Ok(atomic_write(path, |file| file.write_all(text.as_bytes()))?)
}

/// Writes a checkpoint in the hub's layout. Each file is written whole or not at all, the weights last.
///
/// # Errors
/// Returns an error if a file cannot be written.
pub fn save_checkpoint(
    folder: &Path,
    parts: &CheckpointParts,
    text: &WordPiece,
    weights: &[(String, Tensor)],
    card: &str,
) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    write_text(&folder.join("config.json"), &parts.config.to_json(parts.architecture, &parts.answers))?;
    write_json(&folder.join("preprocessor_config.json"), &parts.preprocessing)?;
    if !parts.answers.is_empty() {
        write_json(&folder.join("answers.json"), &parts.answers)?;
    }
    write_text(&folder.join("vocab.txt"), &text.vocab_text())?;
    write_text(&folder.join("tokenizer.json"), &text.tokenizer_json()?)?;
    let tokenizer = serde_json::json!({
        "tokenizer_class": "LxmertTokenizer", "do_lower_case": text.lower_case(),
        "model_max_length": parts.preprocessing.max_length,
        "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]",
    });
    write_json(&folder.join("tokenizer_config.json"), &tokenizer)?;
    write_text(&folder.join("README.md"), card)?;
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    Ok(save_safetensors(folder.join("model.safetensors"), weights, &metadata)?)
}

/// [`Pretrained::open`]. If there is no checkpoint, the error names the command that trains one for `task`.
///
/// # Errors
/// See [`Pretrained::open`].
pub fn open_checkpoint(place: &Path, task: &str) -> Result<Pretrained> {
    let place = Place::find(place).map_err(|error| match error {
        lxmert_core::Error::Format { path, reason } => {
            Error::file(path, format!("{reason}; train one with `cargo run -p lxmert-train -- --task {task}`"))
        }
        other => other.into(),
    })?;
    Ok(Pretrained::at(place)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_only_temporary_files_of_its_own() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = RunFolder::new(temporary.path());
        std::fs::create_dir(folder.last()).unwrap();
        let leftovers = [
            folder.root().join(".state.safetensors.Ab3dE9.unfinished"),
            folder.last().join(".vocab.txt.AAAAAA.unfinished"),
        ];
        let others = [".notes.txt.Ab3dE9.unfinished", "state.safetensors.Ab3dE9.unfinished", "run.json", ".unfinished"];
        let others = others.map(|name| folder.root().join(name));
        for path in leftovers.iter().chain(&others) {
            std::fs::write(path, "x").unwrap();
        }
        folder.remove_leftovers();
        assert!(leftovers.iter().all(|path| !path.exists()) && others.iter().all(|path| path.exists()));
    }

    #[test]
    fn clears_the_epochs_that_were_kept_and_nothing_like_them() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = RunFolder::new(temporary.path());
        let others = ["epoch-x", "epochs", "epoch-"].map(|name| folder.root().join(name));
        for path in [folder.epoch(2), folder.epoch(10)].iter().chain(&others) {
            std::fs::create_dir(path).unwrap();
        }
        folder.clear().unwrap();
        assert!(!folder.epoch(2).exists() && !folder.epoch(10).exists());
        assert!(others.iter().all(|path| path.is_dir()));
    }

    #[test]
    fn a_second_lock_names_the_holder_and_a_released_lock_is_free() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = RunFolder::new(temporary.path());
        let first = Lock::take(&folder, "lxmert-train --epochs 3").unwrap();
        let error = Lock::take(&folder, "second").unwrap_err().to_string();
        let holder = format!("process {} (lxmert-train --epochs 3) is training here", std::process::id());
        assert!(error.contains(&holder), "{error}");
        drop(first);
        Lock::take(&folder, "third").unwrap();
    }
}
