//! From arguments to jobs: which task, which data, which recipe, which folder; with `--resume`, those of the run.

mod recipe;

pub use recipe::RecipeArgs;

use crate::data::paths::{Data, DataPaths, ExamplePaths};
use crate::data::per_example;
use crate::data::splits::Split;
use crate::evaluate::Evaluation;
use crate::job::{Job, RunSettings, Start};
use crate::log::progress;
use crate::measures::Measures;
use crate::ranks::world;
use crate::recipe::{NamedRecipe, Recipe, Suits};
use crate::run_folder::{Report, RunFolder};
use crate::tasks::registry::{self, Entry, TASKS};
use crate::tasks::{Exam, Reads};
use crate::{Error, Result};
use candle_core::Device;
use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use lxmert_core::checkpoint::Place;
use lxmert_core::features::StoreFolders;
use lxmert_core::ops::Precision;
use lxmert_core::workspace::Workspace;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

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
    /// Feature store that lxmert-extract wrote; given several times, the stores are read as one
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    pub features: Vec<PathBuf>,
    /// Split of the images: {"train": […], "val": […], "test": […]} or Karpathy's JSON
    /// [default: splits.json beside the captions, otherwise 80/10/10 by the seed]
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub splits: Option<PathBuf>,
    /// File of examples to measure and predict at the end; may be repeated [default: --valid-file]
    #[arg(long, value_name = "FILE", requires = "features", help_heading = "Data")]
    pub test_file: Vec<PathBuf>,
    /// Leave out all examples whose images lack features, however many
    #[arg(long, help_heading = "Data")]
    pub allow_missing_images: bool,
}

/// The arguments of a training run.
#[derive(Debug, Clone, Args)]
pub struct TrainArgs {
    /// Task to train [default: that of --recipe, otherwise the first of these]
    #[arg(long, value_parser = task_parser())]
    pub task: Option<&'static Entry>,
    /// Start from these settings instead of those that suit the data; other flags change single ones
    #[arg(long = "recipe", value_parser = recipe_parser())]
    pub named: Option<&'static NamedRecipe>,
    /// Captions, features, test files.
    #[command(flatten)]
    pub data: DataArgs,
    /// File of examples to train on; may be repeated [default: the scenes']
    #[arg(long, value_name = "FILE", requires_all = ["valid_file", "features"], help_heading = "Data")]
    pub train_file: Vec<PathBuf>,
    /// File of examples for choosing the best epoch; may be repeated
    #[arg(long, value_name = "FILE", requires = "train_file", help_heading = "Data")]
    pub valid_file: Vec<PathBuf>,
    /// Table of the answers to choose from: vqa (3129 answers), gqa (1842), pretraining (9500), or a file
    #[arg(long, value_name = "NAME|FILE", requires = "train_file", help_heading = "Data")]
    pub answers: Option<PathBuf>,
    /// Single settings of the recipe.
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// Run folder [default: the data's name under runs]
    #[arg(long, value_name = "DIR", help_heading = "Run")]
    pub output: Option<PathBuf>,
    /// Name of the run in report.json, compare and TensorBoard's HParams; without --output also its folder under runs
    /// [default: the folder's]
    #[arg(long, value_name = "NAME", value_parser = run_name, help_heading = "Run")]
    pub name: Option<String>,
    /// Resume the unfinished run in the folder with its own settings; all other options must agree with them
    #[arg(long, help_heading = "Run")]
    pub resume: bool,
    /// Delete the run in the folder and start again
    #[arg(long, conflicts_with = "resume", help_heading = "Run")]
    pub overwrite: bool,
    /// Save the state for --resume every N optimiser steps …
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Run")]
    pub save_every: u64,
    /// … and after this many minutes; also after each epoch and at Ctrl-C
    #[arg(long, value_name = "MINUTES", default_value_t = 5.0, help_heading = "Run")]
    pub save_minutes: f64,
    /// Save the state and stop after N optimiser steps
    #[arg(long, value_name = "N", help_heading = "Run")]
    pub stop_after: Option<u64>,
}

/// The arguments of `evaluate`.
#[derive(Debug, Args)]
pub struct EvaluateArgs {
    /// Checkpoint: a folder, a run folder (its best is taken), a weights file beside its config.json, or
    /// hf:owner/repo[@revision]
    checkpoint: PathBuf,
    /// What is measured [default: what the run that wrote the checkpoint trained, else the first of these]. Tasks over files of
    /// examples read --test-file. Without a flag for the data it is the run's own, else the scenes
    #[arg(long, value_parser = task_parser())]
    task: Option<&'static Entry>,
    /// The split that is measured
    #[arg(long, value_name = "train|val|test", default_value_t = Split::Test, value_parser = Split::from_name, help_heading = "Data")]
    split: Split,
    #[command(flatten)]
    data: DataArgs,
    /// Write the predictions into this folder, in the format of the benchmark's server
    #[arg(long, value_name = "DIR", help_heading = "Evaluation")]
    predictions: Option<PathBuf>,
    /// Write one line per example to FILE: image, sentence, label, probabilities, right or wrong; a table if the name ends in
    /// .csv, otherwise JSON lines
    #[arg(long, value_name = "FILE", help_heading = "Evaluation")]
    per_example: Option<PathBuf>,
    /// Examples per batch
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..), help_heading = "Evaluation")]
    batch_size: u16,
    /// Products of the encoders' layers in f32, or with operands rounded to bf16 and sums in f32: about 1.6 times as fast on a
    /// CPU with AVX512-BF16; or all products with operands rounded to tf32, on a GPU alone
    #[arg(long, default_value_t = Precision::F32, value_name = "f32|tf32|bf16", help_heading = "Evaluation")]
    pub precision: Precision,
    /// Number of test images in retrieval, each with each caption; 0 to omit it. The cost is images × captions passes
    /// through the cross-modality layers
    #[arg(long, value_name = "N", default_value_t = 1000, help_heading = "Evaluation")]
    recall_images: usize,
    /// Print JSON instead of tables
    #[arg(long, help_heading = "Evaluation")]
    pub json: bool,
}

/// What the common options tell a job.
#[derive(Debug, Clone)]
pub struct Circumstances {
    /// Where to compute.
    pub device: Device,
    /// The seed, if it was given.
    pub seed: Option<u64>,
    /// Whether to draw progress bars.
    pub show_progress: bool,
}

/// A name for a run, which may become a folder's.
fn run_name(text: &str) -> std::result::Result<String, String> {
    let bad = text.trim().is_empty() || text.starts_with('.') || text.contains(['/', '\\']);
    if bad { Err("a name has no slashes, and does not start with a dot".into()) } else { Ok(text.into()) }
}

fn task_parser() -> impl TypedValueParser<Value = &'static Entry> {
    let values = TASKS.iter().map(|task| PossibleValue::new(task.name).help(task.about));
    PossibleValuesParser::new(values).try_map(|name| registry::task(&name))
}

fn recipe_parser() -> impl TypedValueParser<Value = &'static NamedRecipe> {
    let values = registry::recipes().map(|recipe| PossibleValue::new(recipe.name).help(recipe.about));
    PossibleValuesParser::new(values).try_map(|name| registry::named_recipe(&name))
}

impl DataArgs {
    /// The stores that `--features` names, if any.
    fn stores(&self) -> Option<StoreFolders> {
        (!self.features.is_empty()).then(|| self.features.iter().cloned().collect())
    }

    /// Whether the arguments name captioned images other than the scenes.
    fn name_captions(&self) -> bool {
        self.data.as_deref().is_some_and(|data| data != "scenes") || self.captions.is_some() || self.flickr30k.is_some()
    }

    /// Whether the data that a task reads is captioned images.
    fn captions_for(&self, task: &Entry) -> bool {
        match task.reads {
            Reads::Captions => true,
            Reads::Examples(_) => false,
            Reads::Either(_) => self.name_captions(),
        }
    }

    /// The captioned images that the arguments name.
    fn captioned(&self) -> Result<DataPaths> {
        if !self.test_file.is_empty() {
            return Err(Error::Argument("--test-file: name the task that reads it by --task".into()));
        }
        let paths = if let Some(captions) = &self.captions {
            DataPaths::of_files(captions.clone(), self.splits.clone(), StoreFolders::default())
        } else if let Some(folder) = &self.flickr30k {
            DataPaths::flickr30k(folder, &Workspace::locate())?
        } else {
            match self.data.as_deref() {
                None | Some("scenes") => DataPaths::scenes(&Workspace::locate())?,
                Some(folder) => DataPaths::in_folder(Path::new(folder), self.stores().as_ref())?,
            }
        };
        Ok(self.override_captions(paths))
    }

    /// `paths` with the single paths that are given put in.
    fn override_captions(&self, paths: DataPaths) -> DataPaths {
        let features = self.stores().unwrap_or(paths.features);
        DataPaths { features, splits: self.splits.clone().or(paths.splits), ..paths }.absolute()
    }

    /// `paths` with the single paths that are given put in.
    fn override_examples(&self, paths: ExamplePaths) -> ExamplePaths {
        let features = self.stores().unwrap_or(paths.features);
        let test = if self.test_file.is_empty() { paths.test } else { self.test_file.clone() };
        ExamplePaths { features, test, ..paths }.absolute()
    }

    /// The scenes' examples for a task, with the single paths that are given put in.
    fn scenes_examples(&self, stem: &str) -> Result<ExamplePaths> {
        Ok(self.override_examples(ExamplePaths::scenes(&Workspace::locate(), stem)?))
    }

    /// The data that a checkpoint is measured on: what is named, else what the run read that wrote the checkpoint, else the
    /// scenes.
    fn test_data(&self, task: &Entry, of_run: Option<Data>) -> Result<Data> {
        let unnamed = self.data.is_none() && !self.name_captions() && self.test_file.is_empty();
        match of_run.filter(|_| unnamed) {
            Some(Data::Captions(paths)) if self.captions_for(task) => {
                return Ok(Data::Captions(self.override_captions(paths)));
            }
            Some(Data::Examples(paths)) if !self.captions_for(task) => {
                self.refuse_captions(task)?;
                return Ok(Data::Examples(self.override_examples(paths)));
            }
            _ => {}
        }
        let stem = match task.reads.stem() {
            Some(stem) if !self.captions_for(task) => stem,
            _ => return Ok(Data::Captions(self.captioned()?)),
        };
        self.refuse_captions(task)?;
        Ok(Data::Examples(match self.stores() {
            Some(_) if !self.test_file.is_empty() => self.override_examples(ExamplePaths::default()),
            _ => self.scenes_examples(stem)?,
        }))
    }

    fn refuse_captions(&self, task: &Entry) -> Result<()> {
        let named = [
            ("--data", self.data.as_deref().is_some_and(|data| data != "scenes")),
            ("--captions", self.captions.is_some()),
            ("--flickr30k", self.flickr30k.is_some()),
            ("--splits", self.splits.is_some()),
        ];
        match named.into_iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(Error::Argument(format!(
                "{flag}: --task {} reads files of examples: name them by --train-file, --valid-file and --test-file",
                task.name
            ))),
            None => Ok(()),
        }
    }
}

/// What `evaluate` finds.
#[derive(Debug, Serialize)]
pub struct Evaluated {
    /// What was measured.
    pub task: &'static str,
    /// On which data.
    pub data: String,
    /// On which split.
    pub split: String,
    /// What the operands of products were rounded to.
    pub precision: Precision,
    /// The epoch of the checkpoint, where it is the best of a finished run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// The measures.
    pub measures: Measures,
}

impl EvaluateArgs {
    /// Measures `task` on one file of examples.
    pub fn of_examples(checkpoint: PathBuf, task: &'static Entry, features: PathBuf, test_file: PathBuf) -> Self {
        Self {
            checkpoint,
            task: Some(task),
            data: DataArgs { features: vec![features], test_file: vec![test_file], ..DataArgs::default() },
            split: Split::Test,
            predictions: None,
            per_example: None,
            batch_size: 64,
            precision: Precision::F32,
            recall_images: 0,
            json: false,
        }
    }

    /// Measures the checkpoint.
    ///
    /// # Errors
    /// Returns an error if the checkpoint or the data cannot be used, or Ctrl-C was pressed.
    pub fn measure(&self, with: &Circumstances) -> Result<Evaluated> {
        lxmert_core::cli::prepare_precision(self.precision, &with.device)?;
        // A wrong path is reported before data that may be missing too; what is on the hub is not fetched yet.
        if !self.checkpoint.to_string_lossy().starts_with("hf:") {
            Place::find(&self.checkpoint)?;
        }
        let run = RunFolder::of_checkpoint(&self.checkpoint);
        let settings = run.as_ref().map(RunSettings::read).transpose()?.flatten();
        let task = match (self.task, &settings) {
            (Some(task), _) => task,
            (None, Some(settings)) => registry::task(&settings.recipe.task)?,
            (None, None) => &TASKS[0],
        };
        let seed = with.seed.or(settings.as_ref().map(|settings| settings.recipe.seed)).unwrap_or(0);
        let data = self.data.test_data(task, settings.map(|settings| settings.data))?;
        if let Some(path) = &self.per_example {
            per_example::check(path)?;
        }
        let bar = progress::bar(0, "examples", with.show_progress);
        let measures = (task.evaluate)(&Exam {
            checkpoint: &self.checkpoint,
            data: &data,
            split: self.split,
            how: Evaluation {
                batch_size: usize::from(self.batch_size),
                precision: self.precision,
                device: &with.device,
            },
            allow_missing_images: self.data.allow_missing_images,
            seed,
            recall_images: self.recall_images,
            predictions: self.predictions.as_deref(),
            per_example: self.per_example.as_deref(),
            bar: &bar,
        })?
        .check_finite()?;
        bar.finish_and_clear();
        let is_best = |run: &RunFolder| [run.root(), &run.best()].contains(&self.checkpoint.as_path());
        let report = run.filter(is_best).and_then(|run| Report::read(&run.report()).ok());
        let (split, precision, epoch) =
            (self.split.to_string(), self.precision, report.map(|report| report.test.epoch));
        let data = data.name().to_string();
        Ok(Evaluated { task: task.name, data, split, precision, epoch, measures })
    }
}

impl TrainArgs {
    /// The job that the arguments ask for; with `--resume`, that of the run in the folder, changed by whatever is given
    /// beside it, so that the run refuses by name what differs. `command` is for the model card.
    ///
    /// # Errors
    /// Returns an error if the data is not there, arguments contradict each other, or there is no run to resume.
    pub fn job(&self, with: Circumstances, command: String) -> Result<Job> {
        let (recipe, data, output) = self.settings(with.seed)?;
        Ok(Job {
            recipe,
            data,
            output,
            name: self.name.clone(),
            device: with.device,
            start: match (self.resume, self.overwrite) {
                (true, _) => Start::Resume,
                (_, true) => Start::Overwrite,
                _ => Start::Auto,
            },
            allow_missing_images: self.data.allow_missing_images,
            save_every_steps: self.save_every,
            save_every: Duration::from_secs_f64(self.save_minutes.clamp(0.01, 1e6) * 60.0),
            stop_after: self.stop_after,
            show_progress: with.show_progress,
            command,
        })
    }

    /// What is trained on what, and where it goes.
    fn settings(&self, seed: Option<u64>) -> Result<(Recipe, Data, PathBuf)> {
        if let (Some(output), true) = (&self.output, self.resume) {
            return self.resumed(output.clone(), seed);
        }
        let (recipe, data) = self.asked(seed)?;
        let named = self.name.as_ref().map(|name| Workspace::locate().run(name));
        let output = match (self.output.clone().or(named), &data) {
            (Some(output), _) => output,
            // Files of examples have a task's name; captions serve several tasks, the first of which has the short name.
            (None, Data::Captions(paths)) if recipe.task != TASKS[0].name => {
                Workspace::locate().run(&format!("{}-{}", paths.name, recipe.task))
            }
            _ => Workspace::locate().run(data.name()),
        };
        if self.resume {
            return self.resumed(output, seed);
        }
        Ok((self.shared_out(recipe, &output)?, data, output))
    }

    /// The recipe with its step cut into a batch for each rank, where `--accumulate` does not say how it is cut. A run that is there
    /// already goes on as it was cut, whatever the number of ranks.
    fn shared_out(&self, recipe: Recipe, output: &Path) -> Result<Recipe> {
        let ranks = world().size();
        if self.recipe.accumulate.is_some() {
            return Ok(recipe);
        }
        let step = recipe.batch_size * recipe.accumulate;
        let run = if self.overwrite { None } else { RunSettings::read(&RunFolder::new(output)).ok().flatten() };
        if let Some(RunSettings { recipe: own, .. }) = run
            && own.batch_size * own.accumulate == step
        {
            return Ok(Recipe { batch_size: own.batch_size, accumulate: own.accumulate, ..recipe });
        }
        if recipe.accumulate.is_multiple_of(ranks) {
            return Ok(recipe);
        }
        if !step.is_multiple_of(ranks) {
            return Err(Error::Argument(format!(
                "--batch-size {}: {ranks} ranks cannot share a step of {step} examples evenly; make it a multiple of {ranks}, or say by \
                 --accumulate how many batches of --batch-size a step has",
                recipe.batch_size
            )));
        }
        Ok(Recipe { batch_size: step / ranks, accumulate: ranks, ..recipe })
    }

    fn asked(&self, seed: Option<u64>) -> Result<(Recipe, Data)> {
        let named = self.named.map(|named| (named.recipe)());
        let task = match (self.task, &named) {
            (Some(task), _) => task,
            (None, Some(recipe)) => registry::task(&recipe.task)?,
            (None, None) => &TASKS[0],
        };
        let (data, suited) = self.data_for(task)?;
        let recipe = match named {
            Some(recipe) if recipe.task == task.name => recipe,
            Some(recipe) => {
                let (of_recipe, asked) = (recipe.task, task.name);
                return Err(Error::Argument(format!("--recipe trains {of_recipe}, not the {asked} of --task")));
            }
            None => suited,
        };
        Ok((self.recipe.apply(Recipe { seed: seed.unwrap_or(0), ..recipe }), data))
    }

    /// The settings of the run in `output`, with what is given beside `--resume` put in.
    fn resumed(&self, output: PathBuf, seed: Option<u64>) -> Result<(Recipe, Data, PathBuf)> {
        let Some(RunSettings { recipe: own, data, .. }) = RunSettings::read(&RunFolder::new(&output))? else {
            return Err(Error::file(output, "no unfinished run here to resume; start one without --resume"));
        };
        let named = self.named.map(|named| (named.recipe)());
        let asked = self.task.map(|task| task.name).or(named.as_ref().map(|recipe| recipe.task.as_str()));
        if let Some(asked) = asked.filter(|asked| *asked != own.task) {
            let flag = if self.task.is_some() { "--task" } else { "--recipe" };
            return Err(Error::Argument(format!(
                "{flag}: the run in {} trains {}, not {asked}; leave {flag} out to resume it, or start another run with \
                 another --output",
                output.display(),
                own.task
            )));
        }
        let task = registry::task(&own.task)?;
        let seed = seed.unwrap_or(own.seed);
        let base = named.unwrap_or(own);
        let data = if self.data.data.is_some() || self.data.name_captions() || !self.train_file.is_empty() {
            self.data_for(task)?.0
        } else {
            self.data_beside_resume(data)?
        };
        Ok((self.recipe.apply(Recipe { seed, ..base }), data, output))
    }

    /// A run's data with the single paths that are given put in.
    fn data_beside_resume(&self, data: Data) -> Result<Data> {
        match data {
            Data::Captions(paths) if self.data.test_file.is_empty() => {
                Ok(Data::Captions(self.data.override_captions(paths)))
            }
            Data::Examples(paths) if self.data.splits.is_none() => {
                Ok(Data::Examples(self.data.override_examples(paths)))
            }
            Data::Captions(_) => {
                Err(Error::Argument("--test-file: the run reads captions, not files of examples".into()))
            }
            Data::Examples(_) => {
                Err(Error::Argument("--splits: the run reads files of examples, one for each split".into()))
            }
        }
    }

    /// The data that the arguments name for a task, and the recipe that suits both.
    fn data_for(&self, task: &Entry) -> Result<(Data, Recipe)> {
        let stem = match task.reads.stem() {
            Some(stem) if !self.data.captions_for(task) => stem,
            _ if !self.train_file.is_empty() => {
                let reason = format!("--task {} reads captioned images here; give one of the two", task.name);
                return Err(Error::Argument(format!("--train-file: {reason}, or name another --task")));
            }
            _ => {
                let paths = self.data.captioned()?;
                let suits = if paths.name == "scenes" { Suits::Scenes } else { Suits::Photos };
                return Ok((Data::Captions(paths), (task.recipe)(suits)));
            }
        };
        self.data.refuse_captions(task)?;
        let Some(first) = self.train_file.first() else {
            return Ok((Data::Examples(self.data.scenes_examples(stem)?), (task.recipe)(Suits::Scenes)));
        };
        let name = first.file_stem().map_or_else(|| stem.into(), |name| name.to_string_lossy().into_owned());
        let paths = ExamplePaths {
            name: format!("{stem}-{name}"),
            features: StoreFolders::default(), // given: clap requires it
            train: self.train_file.clone(),
            valid: self.valid_file.clone(),
            test: self.valid_file.clone(),
            answers: self.answers.clone(),
        };
        Ok((Data::Examples(self.data.override_examples(paths)), (task.recipe)(Suits::Benchmark)))
    }
}
