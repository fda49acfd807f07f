//! Where the files of a data set are.

use super::questions::annotations_beside;
use super::refcoco::INSTANCES;
use crate::{Error, Result};
use lxmert_core::captions::CaptionFolder;
use lxmert_core::features::StoreFolders;
use lxmert_core::nearby;
use lxmert_core::workspace::Workspace;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The files that a run reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Data {
    /// Captioned images.
    Captions(DataPaths),
    /// Files of examples: pre-training sentences, questions, statements.
    Examples(ExamplePaths),
}

impl Data {
    /// The name of the data set.
    pub fn name(&self) -> &str {
        match self {
            Self::Captions(paths) => &paths.name,
            Self::Examples(paths) => &paths.name,
        }
    }

    /// The feature store's folders.
    pub fn features(&self) -> &StoreFolders {
        match self {
            Self::Captions(paths) => &paths.features,
            Self::Examples(paths) => &paths.features,
        }
    }

    /// The captions.
    ///
    /// # Errors
    /// Returns an error if the data is files of examples.
    pub fn captions(&self) -> Result<&DataPaths> {
        match self {
            Self::Captions(paths) => Ok(paths),
            Self::Examples(_) => {
                Err(Error::Argument("this task reads captioned images: pass --data, --captions or --flickr30k".into()))
            }
        }
    }

    /// The files of examples.
    ///
    /// # Errors
    /// Returns an error if the data is captions.
    pub fn examples(&self) -> Result<&ExamplePaths> {
        match self {
            Self::Examples(paths) => Ok(paths),
            Self::Captions(_) => Err(Error::Argument(
                "this task reads JSON files: pass --train-file, --valid-file and --test-file".into(),
            )),
        }
    }

    /// Every file that defines the data, including the store's index and files read from beside the files of examples.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = match self {
            Self::Captions(paths) => {
                let optional = [&paths.splits, &paths.hard_negatives];
                std::iter::once(paths.captions.clone()).chain(optional.into_iter().flatten().cloned()).collect()
            }
            Self::Examples(paths) => {
                let lists = [&paths.train, &paths.valid, &paths.test];
                let lists = lists.into_iter().flatten();
                let beside = lists.clone().flat_map(|path| {
                    let instances = Some(path.with_file_name(INSTANCES)).filter(|path| path.is_file());
                    instances.into_iter().chain(annotations_beside(path))
                });
                beside.chain(lists.chain(&paths.answers).cloned()).collect::<Vec<_>>()
            }
        };
        files.extend(self.features().paths().iter().map(|folder| folder.join("index.json")));
        files
    }

    /// Checks that there is a feature store.
    ///
    /// # Errors
    /// Returns an error with the command that makes one if there is none.
    pub fn check_features(&self) -> Result<()> {
        match self {
            // The benchmarks' features have been published.
            Self::Examples(paths) if !paths.name.starts_with("scenes") => {
                let import = format!("lxmert-extract import bottom-up TSV --output {}", paths.features);
                check_store(&paths.features, &import)
            }
            _ => check_features(self.name(), self.features()),
        }
    }
}

/// Files of examples, and the store with their images' regions.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ExamplePaths {
    /// The name of the data set.
    pub name: String,
    /// The feature store's folders.
    pub features: StoreFolders,
    /// Files to train on.
    pub train: Vec<PathBuf>,
    /// Files for choosing the best epoch.
    pub valid: Vec<PathBuf>,
    /// Files to measure or predict at the end; if a benchmark hides its test labels, the `valid` files again.
    pub test: Vec<PathBuf>,
    /// The answer table.
    pub answers: Option<PathBuf>,
}

impl ExamplePaths {
    /// The scenes' files for a task, with `answers.json`: `<stem>_train.json`, `<stem>_val.json` and
    /// `<stem>_test.json`, or the same as `.jsonl`, or one `<stem>.json` with every split.
    ///
    /// # Errors
    /// Returns an error if they do not exist yet.
    pub fn scenes(workspace: &Workspace, stem: &str) -> Result<Self> {
        let folder = workspace.data("scenes");
        let file = |split: &str| {
            let names = [format!("{stem}_{split}.json"), format!("{stem}_{split}.jsonl"), format!("{stem}.json")];
            names.map(|name| folder.join(name)).into_iter().find(|path| path.is_file()).ok_or_else(|| {
                Error::file(
                    folder.join(format!("{stem}_{split}.json")),
                    "not found; first run `cargo run -p lxmert-extract`, which draws the scenes and writes the tasks' files",
                )
            })
        };
        Ok(Self {
            name: format!("scenes-{stem}"),
            features: workspace.features("scenes").into(),
            train: vec![file("train")?],
            valid: vec![file("val")?],
            test: vec![file("test")?],
            answers: Some(folder.join("answers.json")),
        })
    }

    /// The same with absolute paths, so that a run's settings have the same meaning in any folder.
    #[must_use]
    pub fn absolute(mut self) -> Self {
        let lists = [&mut self.train, &mut self.valid, &mut self.test];
        for path in lists.into_iter().flatten().chain(&mut self.answers) {
            *path = std::path::absolute(&*path).unwrap_or_else(|_| path.clone());
        }
        Self { features: self.features.absolute(), ..self }
    }
}

/// Captioned images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataPaths {
    /// The name of the data set in messages and in the model card.
    pub name: String,
    /// The caption file.
    pub captions: PathBuf,
    /// The split file, if the caption file does not define the split.
    pub splits: Option<PathBuf>,
    /// False, minimally changed captions.
    pub hard_negatives: Option<PathBuf>,
    /// The feature store's folders.
    pub features: StoreFolders,
}

impl DataPaths {
    /// The generated scenes.
    ///
    /// # Errors
    /// Returns an error if they do not exist yet.
    pub fn scenes(workspace: &Workspace) -> Result<Self> {
        let folder = workspace.data("scenes");
        if !folder.join("results.csv").is_file() {
            return Err(Error::file(
                &folder,
                "there are no scenes yet; first run `cargo run -p lxmert-extract`, which draws them and extracts their features",
            ));
        }
        Ok(Self { name: "scenes".into(), ..Self::in_folder(&folder, Some(&workspace.features("scenes").into()))? })
    }

    /// Flickr30k in `folder`, in any layout that [`CaptionFolder::find`] knows.
    ///
    /// # Errors
    /// Returns an error if there is no caption file.
    pub fn flickr30k(folder: &Path, workspace: &Workspace) -> Result<Self> {
        Ok(Self { name: "flickr30k".into(), ..Self::in_folder(folder, Some(&workspace.features("flickr30k").into()))? })
    }

    /// The caption file in a folder or up to two levels below, with its splits and hard negatives if there are any.
    /// Without `features` the store is `features/` in the folder.
    ///
    /// # Errors
    /// Returns an error if there is no caption file.
    pub fn in_folder(folder: &Path, features: Option<&StoreFolders>) -> Result<Self> {
        let found = CaptionFolder::find(folder).ok_or_else(|| {
            let reason = nearby::missing(folder).unwrap_or_else(|| {
                format!("no caption file here ({}); pass it as --captions FILE", CaptionFolder::names())
            });
            Error::file(folder, reason)
        })?;
        let name = folder.file_name().map_or_else(|| "data".into(), |n| n.to_string_lossy().into_owned());
        let features = features.map_or_else(|| folder.join("features").into(), Clone::clone);
        Ok(Self::of(found, name, features))
    }

    /// Explicit files. Without `splits`, uses a `splits.json` or Karpathy's JSON beside the captions; also uses
    /// `hard_negatives.csv` beside the captions.
    pub fn of_files(captions: PathBuf, splits: Option<PathBuf>, features: impl Into<StoreFolders>) -> Self {
        let name = captions.file_stem().map_or_else(|| "data".into(), |n| n.to_string_lossy().into_owned());
        let found = CaptionFolder::beside(captions);
        Self::of(CaptionFolder { splits: splits.or(found.splits), ..found }, name, features.into())
    }

    fn of(
        CaptionFolder { captions, splits, hard_negatives }: CaptionFolder,
        name: String,
        features: StoreFolders,
    ) -> Self {
        Self { name, captions, splits, hard_negatives, features }
    }

    /// Checks that there is a feature store.
    ///
    /// # Errors
    /// Returns an error with the command that makes one if there is none.
    pub fn check_features(&self) -> Result<()> {
        check_features(&self.name, &self.features)
    }

    /// The same with absolute paths, so that a run's settings have the same meaning in any folder.
    #[must_use]
    pub fn absolute(mut self) -> Self {
        let optional = [&mut self.splits, &mut self.hard_negatives];
        for path in [&mut self.captions].into_iter().chain(optional.into_iter().flatten()) {
            *path = std::path::absolute(&*path).unwrap_or_else(|_| path.clone());
        }
        Self { features: self.features.absolute(), ..self }
    }
}

fn check_features(name: &str, features: &StoreFolders) -> Result<()> {
    let command = match name {
        _ if name.starts_with("scenes") => "cargo run -p lxmert-extract".to_string(),
        "flickr30k" => "cargo run -p lxmert-extract -- --flickr30k DIR".to_string(),
        _ => format!("cargo run -p lxmert-extract -- --images IMAGES --output {features}"),
    };
    check_store(features, &command)
}

/// Checks that each folder is a store; `command` makes one.
fn check_store(features: &StoreFolders, command: &str) -> Result<()> {
    features.paths().iter().try_for_each(|folder| check_folder(folder, command))
}

fn check_folder(features: &Path, command: &str) -> Result<()> {
    if features.join("index.json").is_file() {
        return Ok(());
    }
    if let Some(reason) = lxmert_core::features::unmerged(features) {
        return Err(Error::file(features, reason));
    }
    let missing = nearby::missing(features).map_or_else(String::new, |what| format!(" ({what})"));
    Err(Error::file(features, format!("no feature store here{missing}; first run `{command}`")))
}
