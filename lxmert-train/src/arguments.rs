//! From arguments to settings: which data, which recipe, which folder; with `--resume`, a run's own.

use crate::config::{NamedRecipe, Recipe, RecipeArgs, RunSettings};
use crate::data::paths::{Data, DataPaths, ExamplePaths};
use crate::run_folder::RunFolder;
use crate::tasks::TaskKind;
use crate::trainer::read_settings;
use crate::{Error, Result};
use clap::Args;
use lxmert_core::workspace::Workspace;
use std::path::{Path, PathBuf};

/// The data of training and of evaluation.
#[derive(Debug, Clone, Default, Args)]
pub struct DataArgs {
    /// `scenes`, or a folder with a caption file
    #[arg(long, value_name = "scenes|DIR", conflicts_with_all = ["captions", "flickr30k"], help_heading = "Data")]
    pub data: Option<String>,
    /// Flickr30k as Kaggle lays it out; features in data/features/flickr30k, run in runs/flickr30k
    #[arg(long, value_name = "DIR", conflicts_with = "captions", help_heading = "Data")]
    pub flickr30k: Option<PathBuf>,
    /// Caption file: Flickr30k results.csv, Flickr8k captions.txt, a token file, or Karpathy's JSON
    #[arg(long, value_name = "FILE", requires = "features", help_heading = "Data")]
    pub captions: Option<PathBuf>,
    /// Feature store that lxmert-extract wrote
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    pub features: Option<PathBuf>,
    /// Split of the images: {"train": […], "val": […], "test": […]} or Karpathy's JSON
    /// [default: splits.json beside the captions, else 80/10/10 by the seed]
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub splits: Option<PathBuf>,
    /// JSON that is measured and predicted at the end; may be given several times [default: --valid-file]
    #[arg(long, value_name = "FILE", requires = "features", help_heading = "Data")]
    pub test_file: Vec<PathBuf>,
    /// Leave out captions, questions and statements whose images have no features, however many
    #[arg(long, help_heading = "Data")]
    pub allow_missing_images: bool,
}

/// What a training run takes.
#[derive(Debug, Clone, Args)]
pub struct TrainArgs {
    /// What is trained [default: what --recipe trains, else matching]
    #[arg(long, value_enum)]
    pub task: Option<TaskKind>,
    /// Start from these numbers instead of those that suit the data; other flags change single ones
    #[arg(long = "recipe", value_enum)]
    pub named: Option<NamedRecipe>,
    /// Captions, features, test files.
    #[command(flatten)]
    pub data: DataArgs,
    /// JSON of questions or statements to train on; may be given several times [default: the scenes']
    #[arg(long, value_name = "FILE", requires_all = ["valid_file", "features"], help_heading = "Data")]
    pub train_file: Vec<PathBuf>,
    /// JSON that the best epoch is chosen on; may be given several times
    #[arg(long, value_name = "FILE", requires = "train_file", help_heading = "Data")]
    pub valid_file: Vec<PathBuf>,
    /// Table of the answers to choose from, such as data/answers/vqa.json
    #[arg(long, value_name = "FILE", requires = "train_file", help_heading = "Data")]
    pub answers: Option<PathBuf>,
    /// Single numbers of the recipe.
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// Run folder [default: the data's name under runs]
    #[arg(long, value_name = "DIR", help_heading = "Run")]
    pub output: Option<PathBuf>,
    /// Go on with the unfinished run in the folder, with its own settings; whatever else is given must agree with them
    #[arg(long, help_heading = "Run")]
    pub resume: bool,
    /// Delete the run in the folder and start anew
    #[arg(long, conflicts_with = "resume", help_heading = "Run")]
    pub overwrite: bool,
    /// Save the state for --resume every N optimiser steps …
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Run")]
    pub save_every: u64,
    /// … and after this many minutes; also after each epoch and at Ctrl-C
    #[arg(long, value_name = "MINUTES", default_value_t = 5.0, help_heading = "Run")]
    pub save_minutes: f64,
    /// Save the state and stop once N optimiser steps are taken
    #[arg(long, value_name = "N", help_heading = "Run")]
    pub stop_after: Option<u64>,
}

/// What is trained on what, and where it goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// What is trained and how.
    pub recipe: Recipe,
    /// The data.
    pub data: Data,
    /// The run folder.
    pub output: PathBuf,
}

impl DataArgs {
    /// Whether the arguments name captioned images other than the scenes.
    fn name_captions(&self) -> bool {
        self.data.as_deref().is_some_and(|data| data != "scenes") || self.captions.is_some() || self.flickr30k.is_some()
    }

    /// The captioned images that the arguments name, and the recipe that suits them.
    ///
    /// # Errors
    /// When there is no caption file where they point, or JSON files are named beside it.
    pub fn captioned(&self) -> Result<(DataPaths, Recipe)> {
        if !self.test_file.is_empty() {
            return Err(Error::Argument("--test-file: name the task that reads it, such as --task questions".into()));
        }
        let with_overrides = |mut paths: DataPaths| {
            if let Some(features) = &self.features {
                paths.features.clone_from(features);
            }
            if self.splits.is_some() {
                paths.splits.clone_from(&self.splits);
            }
            paths.absolute()
        };
        if let Some(captions) = &self.captions {
            let features = self.features.clone().unwrap_or_default();
            let paths = DataPaths::of_files(captions.clone(), self.splits.clone(), features);
            return Ok((paths.absolute(), Recipe::photos()));
        }
        if let Some(folder) = &self.flickr30k {
            return Ok((with_overrides(DataPaths::flickr30k(folder, &Workspace::locate()?)?), Recipe::photos()));
        }
        match self.data.as_deref() {
            None | Some("scenes") => Ok((with_overrides(DataPaths::scenes(&Workspace::locate()?)?), Recipe::scenes())),
            Some(folder) => {
                let paths = DataPaths::in_folder(Path::new(folder), self.features.as_deref())?;
                Ok((with_overrides(paths), Recipe::photos()))
            }
        }
    }

    /// The JSON files of questions or statements to measure, and the store of their images [default: the scenes'].
    ///
    /// # Errors
    /// When captions are named instead, or the scenes have not been drawn yet.
    pub fn test_examples(&self, task: TaskKind) -> Result<(Vec<PathBuf>, PathBuf)> {
        self.refuse_captions(task)?;
        match &self.features {
            Some(features) if !self.test_file.is_empty() => Ok((self.test_file.clone(), features.clone())),
            _ => {
                let paths = ExamplePaths::scenes(&Workspace::locate()?, stem(task))?;
                Ok((paths.test, self.features.clone().unwrap_or(paths.features)))
            }
        }
    }

    fn refuse_captions(&self, task: TaskKind) -> Result<()> {
        let named = [
            ("--data", self.data.as_deref().is_some_and(|data| data != "scenes")),
            ("--captions", self.captions.is_some()),
            ("--flickr30k", self.flickr30k.is_some()),
            ("--splits", self.splits.is_some()),
        ];
        match named.into_iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(Error::Argument(format!(
                "{flag}: --task {task} reads JSON files: name them by --train-file, --valid-file and --test-file"
            ))),
            None => Ok(()),
        }
    }
}

impl TrainArgs {
    /// The settings that the arguments ask for; with `--resume`, those of the run in the folder, changed by whatever is
    /// given beside it, so that the run refuses what differs by name. `seed`: as given, if it was.
    ///
    /// # Errors
    /// When the data is not there, arguments contradict each other, or there is no run to resume.
    pub fn settings(&self, seed: Option<u64>) -> Result<Settings> {
        if let (Some(output), true) = (&self.output, self.resume) {
            return self.resumed(output, seed);
        }
        let (recipe, data) = self.asked(seed)?;
        let output = match (&self.output, &data, recipe.task) {
            (Some(output), ..) => output.clone(),
            (None, Data::Captions(paths), TaskKind::Retrieval | TaskKind::Pretraining) => {
                Workspace::locate()?.run(&format!("{}-{}", paths.name, recipe.task))
            }
            _ => Workspace::locate()?.run(data.name()),
        };
        if self.resume { self.resumed(&output, seed) } else { Ok(Settings { recipe, data, output }) }
    }

    fn asked(&self, seed: Option<u64>) -> Result<(Recipe, Data)> {
        let named = self.named.map(NamedRecipe::recipe);
        let task = self.task.or(named.as_ref().map(|recipe| recipe.task)).unwrap_or(TaskKind::Matching);
        let (data, suited) = self.data_for(task)?;
        let recipe = match named {
            Some(recipe) if recipe.task == task => recipe,
            Some(recipe) => {
                return Err(Error::Argument(format!("--recipe trains {}, not the {task} of --task", recipe.task)));
            }
            None => suited,
        };
        Ok((self.recipe.apply(Recipe { seed: seed.unwrap_or(0), ..recipe }), data))
    }

    /// The settings of the run in `output`, with what is given beside `--resume` put in.
    fn resumed(&self, output: &Path, seed: Option<u64>) -> Result<Settings> {
        let Some(RunSettings { recipe: own, data, .. }) = read_settings(&RunFolder::new(output))? else {
            return Err(Error::file(output, "no unfinished run here to resume; start one without --resume"));
        };
        let named = self.named.map(NamedRecipe::recipe);
        let task = self.task.or(named.as_ref().map(|recipe| recipe.task)).unwrap_or(own.task);
        if task != own.task {
            let flag = if self.task.is_some() { "--task" } else { "--recipe" };
            return Err(Error::Argument(format!(
                "{flag}: the run in {} trains {}, not {task}; leave {flag} out to go on with it, or start another run \
                 with another --output",
                output.display(),
                own.task
            )));
        }
        let seed = seed.unwrap_or(own.seed);
        let base = named.unwrap_or(own);
        let data = if self.data.data.is_some() || self.data.name_captions() || !self.train_file.is_empty() {
            self.data_for(task)?.0
        } else {
            self.data_beside_resume(data)?
        };
        Ok(Settings { recipe: self.recipe.apply(Recipe { seed, ..base }), data, output: output.to_path_buf() })
    }

    /// A run's data with the single paths that are given put in.
    fn data_beside_resume(&self, data: Data) -> Result<Data> {
        let DataArgs { features, splits, test_file, .. } = &self.data;
        Ok(match data {
            Data::Captions(paths) if test_file.is_empty() => Data::Captions(
                DataPaths {
                    features: features.clone().unwrap_or(paths.features),
                    splits: splits.clone().or(paths.splits),
                    ..paths
                }
                .absolute(),
            ),
            Data::Examples(paths) if splits.is_none() => Data::Examples(
                ExamplePaths {
                    features: features.clone().unwrap_or(paths.features),
                    test: if test_file.is_empty() { paths.test } else { test_file.clone() },
                    ..paths
                }
                .absolute(),
            ),
            Data::Captions(_) => {
                return Err(Error::Argument("--test-file: the run reads captions, not JSON files".into()));
            }
            Data::Examples(_) => return Err(Error::Argument("--splits: the run reads JSON files, one a split".into())),
        })
    }

    /// The data that the arguments name for a task, and the recipe that suits both.
    fn data_for(&self, task: TaskKind) -> Result<(Data, Recipe)> {
        let captioned = self.data.name_captions();
        match task {
            TaskKind::Matching | TaskKind::Retrieval => {
                if !self.train_file.is_empty() {
                    return Err(Error::Argument(
                        "--train-file: name the task that reads it, such as --task questions".into(),
                    ));
                }
                let (paths, recipe) = self.data.captioned()?;
                let recipe = if paths.name == "scenes" { Recipe::scenes_for(task) } else { recipe.for_task(task) };
                return Ok((Data::Captions(paths), recipe));
            }
            TaskKind::Pretraining if captioned => {
                if !self.train_file.is_empty() {
                    return Err(Error::Argument(
                        "--train-file: captioned images are named already; give one of the two".into(),
                    ));
                }
                let (paths, recipe) = self.data.captioned()?;
                return Ok((Data::Captions(paths), recipe.for_task(task)));
            }
            TaskKind::Pretraining | TaskKind::Questions | TaskKind::Statements => self.data.refuse_captions(task)?,
        }
        let DataArgs { features, test_file, .. } = &self.data;
        let Some(first) = self.train_file.first() else {
            let scenes = ExamplePaths::scenes(&Workspace::locate()?, stem(task))?;
            let paths = ExamplePaths {
                features: features.clone().unwrap_or(scenes.features),
                test: if test_file.is_empty() { scenes.test } else { test_file.clone() },
                ..scenes
            };
            return Ok((Data::Examples(paths.absolute()), Recipe::scenes_for(task)));
        };
        let name = first.file_stem().map_or_else(|| stem(task).into(), |name| name.to_string_lossy().into_owned());
        let paths = ExamplePaths {
            name: format!("{}-{name}", stem(task)),
            features: features.clone().unwrap_or_default(),
            train: self.train_file.clone(),
            valid: self.valid_file.clone(),
            test: if test_file.is_empty() { self.valid_file.clone() } else { test_file.clone() },
            answers: self.answers.clone(),
        };
        let recipe = match task {
            TaskKind::Pretraining => Recipe::paper_pretraining(),
            _ => Recipe::fine_tuning(task),
        };
        Ok((Data::Examples(paths.absolute()), recipe))
    }
}

/// What the scenes' files of a task start with, and the names of its runs.
fn stem(task: TaskKind) -> &'static str {
    match task {
        TaskKind::Pretraining => "pretrain",
        TaskKind::Questions => "questions",
        TaskKind::Statements => "statements",
        TaskKind::Matching => "matching",
        TaskKind::Retrieval => "retrieval",
    }
}
