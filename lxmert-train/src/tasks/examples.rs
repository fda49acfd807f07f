//! What tasks over files of examples share. Such a task says what a model makes of an example ([`ExampleTask`]); the splits,
//! the batches, training and measuring are the same for all of them ([`OverExamples`]).

use super::{Exam, Reads, Step, Task};
use crate::data::batches::{self, Batch};
use crate::data::image_examples::{ImageExample, ImageExamples};
use crate::data::splits::Split;
use crate::evaluate::{Evaluation, share_out};
use crate::job::Job;
use crate::log::card::Description;
use crate::measures::Measures;
use crate::origin::Origin;
use crate::ranks::{Numbers, world};
use crate::recipe::{NamedRecipe, Recipe, Suits};
use crate::run_folder::{CheckpointParts, open_checkpoint};
use crate::sums::BatchLoss;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use indicatif::ProgressBar;
use lxmert_core::config::LxmertConfig;
use lxmert_core::features::FeatureStore;
use lxmert_core::model::{LxmertInputs, Pass};
use lxmert_core::ops::PrepackedWeights;
use lxmert_core::pretrained::Pretrained;
use lxmert_core::text::WordPiece;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A task over files of examples about `IMAGES` images each.
pub trait ExampleTask<const IMAGES: usize>: Sync + Sized {
    /// As `--task` names it.
    const NAME: &'static str;
    /// What it is, in a line of the help.
    const ABOUT: &'static str;
    /// What the scenes' own files start with.
    const STEM: &'static str;
    /// Its recipes that `--recipe` names.
    const RECIPES: &'static [NamedRecipe];
    /// transformers' class that opens its checkpoints.
    const ARCHITECTURE: &'static str;

    /// An example of its files.
    type Example: ImageExample<IMAGES> + Sync;
    /// The model.
    type Model: Sync;
    /// What a model says of an example.
    type Judgement: Clone + Default + Numbers;

    /// See [`Task::recipe`].
    fn recipe(suits: Suits) -> Recipe;

    /// What a training run asks.
    ///
    /// # Errors
    /// When the job's data lacks something.
    fn of_job(job: &Job) -> Result<Self>;

    /// What a checkpoint was trained to answer.
    ///
    /// # Errors
    /// When the checkpoint has no head for this task.
    fn of_checkpoint(checkpoint: &Pretrained) -> Result<Self>;

    /// The answers of its answer head, where it has one.
    fn answers(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether there is something to learn from this labelled example.
    fn learns_from(&self, _: &Self::Example) -> bool {
        true
    }

    /// Makes the model; see [`Task::new`].
    ///
    /// # Errors
    /// When a weight is missing or misshapen.
    fn model(config: &LxmertConfig, vb: VarBuilder) -> candle_core::Result<Self::Model>;

    /// The model of a checkpoint.
    ///
    /// # Errors
    /// When the checkpoint has no head for this task.
    fn open(checkpoint: &Pretrained, device: &Device) -> Result<Self::Model>;

    /// See [`Task::starting_weights`].
    ///
    /// # Errors
    /// When the checkpoint does not fit, with every name that does not.
    fn starting_weights(
        &self,
        checkpoint: &Pretrained,
        config: &LxmertConfig,
        allow_missing: &[String],
    ) -> Result<BTreeMap<String, Tensor>>;

    /// The model's logits, `[examples, …]`; `inputs` has a row for each image.
    ///
    /// # Errors
    /// When the inputs do not fit the model.
    fn logits(model: &Self::Model, inputs: &LxmertInputs, pass: &Pass) -> candle_core::Result<Tensor>;

    /// The loss of each example, `[examples]`, that measures report.
    ///
    /// # Errors
    /// When the logits have another shape.
    fn losses(&self, logits: &Tensor, examples: &[&Self::Example], inputs: &Batch) -> Result<Tensor>;

    /// The loss of each example, `[examples]`, that training lowers.
    ///
    /// # Errors
    /// As [`ExampleTask::losses`].
    fn training_losses(&self, logits: &Tensor, examples: &[&Self::Example], inputs: &Batch) -> Result<Tensor> {
        self.losses(logits, examples, inputs)
    }

    /// What the logits say of each example.
    ///
    /// # Errors
    /// When the logits have another shape.
    fn judge(&self, logits: &Tensor, examples: &[&Self::Example], inputs: &Batch) -> Result<Vec<Self::Judgement>>;

    /// Whether that is right.
    fn is_right(&self, example: &Self::Example, judgement: &Self::Judgement) -> bool;

    /// Measures over a split: what was said of each example, and its loss.
    fn measures(&self, examples: &[Self::Example], judged: &[(Self::Judgement, f32)]) -> Measures;

    /// Writes what the benchmark's server takes into `folder`, which exists. There is at least one example.
    ///
    /// # Errors
    /// When the file cannot be written.
    fn write_predictions(
        &self,
        folder: &Path,
        examples: &[Self::Example],
        judged: &[(Self::Judgement, f32)],
    ) -> Result<()>;

    /// What a user should know about the examples that are learnt from, a line each.
    ///
    /// # Errors
    /// The reason when nothing can be learnt from them.
    fn notes(&self, _: &[&Self::Example]) -> std::result::Result<Vec<String>, String> {
        Ok(Vec::new())
    }

    /// What the model card says; `data` is the splits' table.
    fn description(&self, data: String) -> Description;
}

/// An [`ExampleTask`] with its examples and its model.
pub struct OverExamples<T: ExampleTask<IMAGES>, const IMAGES: usize> {
    task: T,
    data: ExampleSplits<T::Example, IMAGES>,
    notes: Vec<String>,
    config: LxmertConfig,
    model: T::Model,
    recipe: Recipe,
    device: Device,
}

impl<T: ExampleTask<IMAGES>, const IMAGES: usize> Task for OverExamples<T, IMAGES> {
    const NAME: &'static str = T::NAME;
    const ABOUT: &'static str = T::ABOUT;
    const READS: Reads = Reads::Examples(T::STEM);
    const RECIPES: &'static [NamedRecipe] = T::RECIPES;

    type Example = usize;
    type Batch = ExampleBatch;

    fn recipe(suits: Suits) -> Recipe {
        T::recipe(suits)
    }

    fn evaluate(exam: &Exam) -> Result<Measures> {
        let checkpoint = open_checkpoint(exam.checkpoint, T::NAME)?;
        let (task, model) = (T::of_checkpoint(&checkpoint)?, T::open(&checkpoint, exam.how.device)?);
        let store = FeatureStore::open(exam.data.features())?;
        checkpoint.check_features(store.info().feature_dim)?;
        let text = (&checkpoint.text, checkpoint.preprocessing.max_length);
        let files = &exam.data.examples()?.test;
        let set = ImageExamples::read(Split::Test, files, &store, text, exam.allow_missing_images)?;
        let regions = checkpoint.preprocessing.regions.min(store.info().regions);
        measure(&task, &model, &set, (&store, regions), exam.how, exam.predictions, exam.bar)
    }

    fn new(job: &Job, origin: &Origin, variables: &VarMap) -> Result<Self> {
        let recipe = job.recipe.clone();
        let task = T::of_job(job)?;
        let data = ExampleSplits::load(job, &origin.text, |example| task.learns_from(example))?;
        let notes = task.notes(&chosen(&data.train, &data.learnt)).map_err(|reason| {
            let first = job.data.examples().ok().and_then(|paths| paths.train.first());
            Error::file(first.map_or(Path::new("no file"), PathBuf::as_path), reason)
        })?;
        let config = origin.lxmert_config(data.store.info().feature_dim, T::NAME)?;
        // The hub's configuration has a place for an answer head alone; others are not in it.
        let config = LxmertConfig { num_qa_labels: task.answers().len(), ..config };
        let model = T::model(&config, VarBuilder::from_varmap(variables, DType::F32, &job.device))?;
        Ok(Self { task, data, notes, config, model, recipe, device: job.device.clone() })
    }

    fn starting_weights(&self, checkpoint: &Pretrained) -> Result<BTreeMap<String, Tensor>> {
        self.task.starting_weights(checkpoint, &self.config, &self.recipe.allow_missing)
    }

    fn introduction(&self) -> Vec<String> {
        let mut lines = self.data.introduction(self.recipe.max_length);
        lines.extend(self.notes.iter().cloned());
        lines
    }

    fn batches_per_epoch(&self) -> usize {
        self.data.learnt.len().div_ceil(self.recipe.batch_size)
    }

    fn epoch(&self, epoch: u64) -> Vec<Vec<usize>> {
        let (seed, batch_size) = (self.recipe.seed, self.recipe.batch_size);
        let order = batches::shuffled(&self.data.learnt, seed, epoch);
        batches::plan(&order, |&example| self.data.train.tokens(example).len(), batch_size, seed, epoch)
    }

    fn read(&self, examples: Vec<usize>) -> Result<ExampleBatch> {
        Ok(ExampleBatch { inputs: self.data.train.batch(&self.data.store, self.data.regions, &examples)?, examples })
    }

    fn loss(&self, batch: ExampleBatch, step: &Step) -> Result<BatchLoss> {
        let logits = T::logits(&self.model, &batch.inputs.inputs(step.device)?, &step.forward())?;
        let examples = chosen(&self.data.train, &batch.examples);
        let judged = self.task.judge(&logits, &examples, &batch.inputs)?;
        let right =
            examples.iter().zip(&judged).filter(|(example, judged)| self.task.is_right(example, judged)).count();
        let losses = self.task.training_losses(&logits, &examples, &batch.inputs)?;
        step.loss(&losses.sum_all()?, examples.len(), right)
    }

    fn validate(&self) -> Result<Measures> {
        self.measure(&self.model, &self.data.validation, None, &ProgressBar::hidden())
    }

    fn test(&self, folder: &Path, predictions: &Path, bar: &ProgressBar) -> Result<Measures> {
        let best = T::open(&Pretrained::open(folder)?, &self.device)?;
        self.measure(&best, &self.data.test, Some(predictions), bar)
    }

    fn checkpoint(&self) -> CheckpointParts {
        CheckpointParts {
            config: self.config.clone(),
            architecture: T::ARCHITECTURE,
            preprocessing: self.recipe.preprocessing(&self.data.store),
            answers: self.task.answers(),
        }
    }

    fn description(&self) -> Description {
        self.task.description(self.data.table())
    }
}

impl<T: ExampleTask<IMAGES>, const IMAGES: usize> OverExamples<T, IMAGES> {
    fn measure(
        &self,
        model: &T::Model,
        set: &ImageExamples<T::Example, IMAGES>,
        predictions: Option<&Path>,
        bar: &ProgressBar,
    ) -> Result<Measures> {
        let how = Evaluation::of_run(&self.recipe, &self.device);
        measure(&self.task, model, set, (&self.data.store, self.data.regions), how, predictions, bar)
    }
}

/// Measures over a split; what the model says goes into the folder `predictions`. `place`: the store, and regions per image.
fn measure<T: ExampleTask<IMAGES>, const IMAGES: usize>(
    task: &T,
    model: &T::Model,
    set: &ImageExamples<T::Example, IMAGES>,
    (store, regions): (&FeatureStore, usize),
    how: Evaluation,
    predictions: Option<&Path>,
    bar: &ProgressBar,
) -> Result<Measures> {
    bar.set_length(set.len() as u64);
    let prepacked = PrepackedWeights::new();
    let pass = how.forward(&prepacked).pooled_only();
    let all: Vec<usize> = (0..set.len()).collect();
    let order = batches::plan_in_order(&all, |&i| set.tokens(i).len(), how.batch_size);
    let found = share_out(
        order.clone(),
        |numbers: Vec<usize>| Ok((set.batch(store, regions, &numbers)?, numbers)),
        |_, (inputs, numbers)| {
            let logits = T::logits(model, &inputs.inputs(how.device)?, &pass)?;
            let examples = chosen(set, &numbers);
            let losses = task.losses(&logits, &examples, &inputs)?.to_vec1::<f32>()?;
            let judged = task.judge(&logits, &examples, &inputs)?.into_iter().zip(losses);
            bar.inc(numbers.len() as u64);
            Ok(judged.flat_map(|(said, loss)| said.numbers().into_iter().chain([f64::from(loss)])).collect())
        },
    )?;
    let mut judged = vec![(T::Judgement::default(), 0f32); set.len()];
    for (numbers, found) in order.iter().zip(&found) {
        for (&number, found) in numbers.iter().zip(found.chunks_exact(found.len() / numbers.len().max(1))) {
            let (loss, said) = found.split_last().unwrap_or((&0.0, &[]));
            judged[number] = (T::Judgement::of_numbers(said), *loss as f32);
        }
    }
    if let Some(folder) = predictions.filter(|_| !set.is_empty() && world().is_first()) {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        task.write_predictions(folder, set.examples(), &judged)?;
    }
    Ok(task.measures(set.examples(), &judged))
}

/// The examples of these numbers.
fn chosen<'a, E, const IMAGES: usize>(set: &'a ImageExamples<E, IMAGES>, numbers: &[usize]) -> Vec<&'a E> {
    numbers.iter().map(|&number| &set.examples()[number]).collect()
}

/// The examples of a training run.
struct ExampleSplits<E, const IMAGES: usize> {
    store: FeatureStore,
    /// Regions per image.
    regions: usize,
    /// Examples to train on.
    train: ImageExamples<E, IMAGES>,
    /// Examples that choose the best epoch.
    validation: ImageExamples<E, IMAGES>,
    /// Examples that are measured, or predicted, at the end.
    test: ImageExamples<E, IMAGES>,
    /// The training examples that are learnt from.
    learnt: Vec<usize>,
}

/// A batch of training examples.
pub struct ExampleBatch {
    /// Their numbers.
    pub examples: Vec<usize>,
    /// Their images and sentences; a row for each image.
    pub inputs: Batch,
}

impl<E: ImageExample<IMAGES>, const IMAGES: usize> ExampleSplits<E, IMAGES> {
    /// Reads the job's files. Training learns from the labelled examples that `learn` says yes to.
    ///
    /// # Errors
    /// When a file cannot be understood, too many images have no features, or nothing is left to train or to validate on.
    fn load(job: &Job, text: &WordPiece, learn: impl Fn(&E) -> bool) -> Result<Self> {
        let paths = job.data.examples()?;
        let store = FeatureStore::open(&paths.features)?;
        let text = (text, job.recipe.max_length);
        let read = |split, files: &[PathBuf]| {
            ImageExamples::<E, IMAGES>::read(split, files, &store, text, job.allow_missing_images)
        };
        let train = read(Split::Train, &paths.train)?;
        let (validation, test) = (read(Split::Val, &paths.valid)?, read(Split::Test, &paths.test)?);
        let learnt: Vec<usize> =
            (0..train.len()).filter(|&i| train.examples()[i].labelled() && learn(&train.examples()[i])).collect();
        for (what, files, usable) in [
            ("train", &paths.train, !learnt.is_empty()),
            ("validate", &paths.valid, validation.examples().iter().any(E::labelled)),
        ] {
            if !usable {
                let first = files.first().map_or(Path::new("no file"), PathBuf::as_path);
                return Err(Error::file(first, format!("no {} with a label to {what} on", E::NOUN)));
            }
        }
        let regions = job.recipe.regions_of(store.info().regions);
        Ok(Self { store, regions, train, validation, test, learnt })
    }

    /// Lines on how many examples there are, for the start of a run.
    fn introduction(&self, max_length: usize) -> Vec<String> {
        let noun = E::NOUN;
        let mut lines = vec![
            format!(
                "{} training {noun}s about {} images, {} to validate, {} to test",
                self.learnt.len(),
                self.train.num_images(),
                self.validation.len(),
                self.test.len(),
            ),
            format!("{} regions of {} numbers", self.regions, self.store.info().feature_dim),
        ];
        let cut = self.train.truncated() + self.validation.truncated() + self.test.truncated();
        if cut > 0 {
            lines.push(format!("{cut} {noun}s are longer than --max-length {max_length} and were cut"));
        }
        lines
    }

    /// The splits' sizes as a Markdown table.
    fn table(&self) -> String {
        let (train, validation, test) = (self.learnt.len(), self.validation.len(), self.test.len());
        format!(
            "| split | {}s |\n| --- | ---: |\n| train | {train} |\n| validation | {validation} |\n| test | {test} |\n",
            E::NOUN
        )
    }
}
