//! What tasks over files of examples share. Such a task defines what a model predicts for an example ([`ExampleTask`]);
//! the splits, the batches, training and measuring are the same for all ([`OverExamples`]).

use super::{Exam, Reads, Step, Task, Tested, warn_of_few};
use crate::data::batches::{self, Batch};
use crate::data::image_examples::{ImageExample, ImageExamples};
use crate::data::per_example::{self, Record};
use crate::data::splits::Split;
use crate::evaluate::{Evaluation, share_out};
use crate::job::Job;
use crate::log::card::Description;
use crate::measures::Measures;
use crate::origin::Origin;
use crate::ranks::{Numbers, world};
use crate::readings::{BatchLoss, read};
use crate::recipe::{NamedRecipe, Recipe, Suits};
use crate::run_folder::{CheckpointParts, open_checkpoint};
use crate::trainable;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use indicatif::ProgressBar;
use lxmert_core::config::LxmertConfig;
use lxmert_core::features::FeatureStore;
use lxmert_core::model::{LxmertInputs, Pass};
use lxmert_core::ops::PrepackedWeights;
use lxmert_core::pretrained::Pretrained;
use lxmert_core::text::WordPiece;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A task over files of examples about `IMAGES` images each.
pub trait ExampleTask<const IMAGES: usize>: Sync + Sized {
    /// Its name for `--task`.
    const NAME: &'static str;
    /// A one-line description for the help.
    const ABOUT: &'static str;
    /// The prefix of the scenes' own files.
    const STEM: &'static str;
    /// Its recipes for `--recipe`.
    const RECIPES: &'static [NamedRecipe];
    /// The class in transformers that opens its checkpoints.
    const ARCHITECTURE: &'static str;

    /// An example of its files.
    type Example: ImageExample<IMAGES> + Sync;
    /// The model.
    type Model: Sync;
    /// A model's prediction for an example.
    type Judgement: Clone + Default + Numbers;

    /// See [`Task::recipe`].
    fn recipe(suits: Suits) -> Recipe;

    /// Settings of a training run.
    ///
    /// # Errors
    /// Returns an error if the job's data lacks something.
    fn of_job(job: &Job) -> Result<Self>;

    /// Settings of a checkpoint.
    ///
    /// # Errors
    /// Returns an error if the checkpoint has no head for this task.
    fn of_checkpoint(checkpoint: &Pretrained) -> Result<Self>;

    /// The answers of its answer head, if it has one.
    fn answers(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether this labelled example is usable for training.
    fn learns_from(&self, _: &Self::Example) -> bool {
        true
    }

    /// Builds the model; see [`Task::new`].
    ///
    /// # Errors
    /// Returns an error if a weight is missing or misshapen.
    fn model(config: &LxmertConfig, vb: VarBuilder) -> candle_core::Result<Self::Model>;

    /// Opens the model of a checkpoint.
    ///
    /// # Errors
    /// Returns an error if the checkpoint has no head for this task.
    fn open(checkpoint: &Pretrained, device: &Device) -> Result<Self::Model>;

    /// See [`Task::starting_weights`].
    ///
    /// # Errors
    /// Returns an error with every mismatched name if the checkpoint does not fit.
    fn starting_weights(
        &self,
        checkpoint: &Pretrained,
        config: &LxmertConfig,
        allow_missing: &[String],
    ) -> Result<BTreeMap<String, Tensor>>;

    /// The model's logits, `[examples, …]`; `inputs` has one row per image.
    ///
    /// # Errors
    /// Returns an error if the inputs do not fit the model.
    fn logits(model: &Self::Model, inputs: &LxmertInputs, pass: &Pass) -> candle_core::Result<Tensor>;

    /// The loss of each example to report, `[examples]`.
    ///
    /// # Errors
    /// Returns an error if the logits have another shape.
    fn losses(&self, logits: &Tensor, examples: &[&Self::Example], inputs: &Batch) -> Result<Tensor>;

    /// The loss of each example to minimise in training, `[examples]`.
    ///
    /// # Errors
    /// See [`ExampleTask::losses`].
    fn training_losses(&self, logits: &Tensor, examples: &[&Self::Example], inputs: &Batch) -> Result<Tensor> {
        self.losses(logits, examples, inputs)
    }

    /// What the judgements need of the logits, `[examples, …]`: the class with the largest one.
    ///
    /// # Errors
    /// Returns an error if the logits have another shape.
    fn verdicts(logits: &Tensor) -> candle_core::Result<Tensor> {
        logits.argmax(1)
    }

    /// The prediction for each example, by its verdict. Of `inputs` the features may be gone.
    fn judge(&self, verdicts: &[f32], examples: &[&Self::Example], inputs: &Batch) -> Vec<Self::Judgement>;

    /// Whether a prediction is right.
    fn is_right(&self, example: &Self::Example, judgement: &Self::Judgement) -> bool;

    /// Measures over a split, from the prediction and loss of each example.
    fn measures(&self, examples: &[Self::Example], judged: &[(Self::Judgement, f32)]) -> Measures;

    /// The fields of a line of `--per-example` besides image, sentence, and whether it is right. `logits` are the example's own.
    fn record(
        &self,
        example: &Self::Example,
        judgement: &Self::Judgement,
        logits: &[f32],
    ) -> Vec<(&'static str, Value)>;

    /// Writes the benchmark server's prediction file into `folder`, which exists. There is at least one example.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    fn write_predictions(
        &self,
        folder: &Path,
        examples: &[Self::Example],
        judged: &[(Self::Judgement, f32)],
    ) -> Result<()>;

    /// Notes for the user about the training examples, one per line.
    ///
    /// # Errors
    /// The reason, if nothing can be learnt from them.
    fn notes(&self, _: &[&Self::Example]) -> std::result::Result<Vec<String>, String> {
        Ok(Vec::new())
    }

    /// The text of the model card; `data` is the splits' table.
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
        let paths = exam.data.examples()?;
        let set = ImageExamples::read(exam.split, paths.of(exam.split)?, &store, text, exam.allow_missing_images)?;
        let regions = checkpoint.preprocessing.regions.min(store.info().regions);
        let files = (exam.predictions, exam.per_example);
        let (measures, right) = measure(&task, &model, &set, (&store, regions), exam.how, files, exam.bar)?;
        warn_of_few(&exam.split.to_string(), right);
        Ok(measures)
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
        // The hub's configuration only has a field for an answer head; other heads are not in it.
        let config = LxmertConfig { num_qa_labels: task.answers().len(), ..config };
        let model = T::model(&config, trainable::builder(&recipe, variables, &job.device))?;
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

    fn loss(&self, batch: ExampleBatch, step: &Step) -> Result<BatchLoss<'_>> {
        let mut inputs = batch.inputs;
        let logits = T::logits(&self.model, &inputs.inputs(step.device)?, &step.forward())?;
        inputs.features = Vec::new(); // most of a batch, which the judgements would hold
        let examples = chosen(&self.data.train, &batch.examples);
        let losses = self.task.training_losses(&logits, &examples, &inputs)?;
        step.loss(&losses.sum_all()?, examples.len(), &T::verdicts(&logits)?, move |verdicts| {
            let judged = self.task.judge(verdicts, &examples, &inputs);
            examples.iter().zip(&judged).filter(|(example, judged)| self.task.is_right(example, judged)).count()
        })
    }

    fn validate(&self) -> Result<Measures> {
        Ok(self.measure(&self.model, &self.data.validation, None, &ProgressBar::hidden())?.0)
    }

    fn test(&self, folder: &Path, predictions: &Path, bar: &ProgressBar) -> Result<Tested> {
        let best = T::open(&Pretrained::open(folder)?, &self.device)?;
        let (measures, right) = self.measure(&best, &self.data.test, Some(predictions), bar)?;
        warn_of_few(&Split::Test.to_string(), right);
        Ok(measures.into())
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
    ) -> Result<(Measures, (usize, usize))> {
        let how = Evaluation::of_run(&self.recipe, &self.device);
        measure(&self.task, model, set, (&self.data.store, self.data.regions), how, (predictions, None), bar)
    }
}

/// Measures over a split, and how many of the labelled examples are right; writes predictions into the folder `predictions` and a line for
/// each example to the file `per_example`.
fn measure<T: ExampleTask<IMAGES>, const IMAGES: usize>(
    task: &T,
    model: &T::Model,
    set: &ImageExamples<T::Example, IMAGES>,
    (store, regions): (&FeatureStore, usize),
    how: Evaluation,
    (predictions, per_example): (Option<&Path>, Option<&Path>),
    bar: &ProgressBar,
) -> Result<(Measures, (usize, usize))> {
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
            let numbers_read = read(&[&task.losses(&logits, &examples, &inputs)?, &T::verdicts(&logits)?])?;
            let (losses, verdicts) = numbers_read.split_at(numbers.len());
            let judged = task.judge(verdicts, &examples, &inputs);
            // Of each example: the judgement, the logits and how many they are if they are wanted, and the loss.
            let mut rows = if per_example.is_some() { logits.to_vec2::<f32>()? } else { Vec::new() }.into_iter();
            let mut found = Vec::new();
            for (said, &loss) in judged.into_iter().zip(losses) {
                let logits = rows.next().unwrap_or_default();
                found.extend(said.numbers());
                found.extend(logits.iter().map(|&logit| f64::from(logit)));
                found.extend([logits.len() as f64, f64::from(loss)]);
            }
            bar.inc(numbers.len() as u64);
            Ok(found)
        },
    )?;
    let mut records = vec![Record::new(); if per_example.is_some() { set.len() } else { 0 }];
    let mut judged = vec![(T::Judgement::default(), 0f32); set.len()];
    for (numbers, found) in order.iter().zip(&found) {
        for (&number, found) in numbers.iter().zip(found.chunks_exact(found.len() / numbers.len().max(1))) {
            let [found @ .., classes, loss] = found else { continue };
            let (said, logits) = found.split_at(found.len() - *classes as usize);
            judged[number] = (T::Judgement::of_numbers(said), *loss as f32);
            if let Some(record) = records.get_mut(number) {
                let logits: Vec<f32> = logits.iter().map(|&logit| logit as f32).collect();
                *record = whole_record(task, set, number, store, &judged[number].0, &logits);
            }
        }
    }
    if let Some(path) = per_example.filter(|_| world().is_first()) {
        per_example::write(path, &records)?;
    }
    if let Some(folder) = predictions.filter(|_| !set.is_empty() && world().is_first()) {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        task.write_predictions(folder, set.examples(), &judged)?;
    }
    let labelled = || set.examples().iter().zip(&judged).filter(|(example, _)| example.labelled());
    let right = labelled().filter(|(example, (said, _))| task.is_right(example, said)).count();
    Ok((task.measures(set.examples(), &judged), (right, labelled().count())))
}

/// The line of `--per-example` for example `number`.
fn whole_record<T: ExampleTask<IMAGES>, const IMAGES: usize>(
    task: &T,
    set: &ImageExamples<T::Example, IMAGES>,
    number: usize,
    store: &FeatureStore,
    said: &T::Judgement,
    logits: &[f32],
) -> Record {
    let example = &set.examples()[number];
    let images = set.store_index(number).map(|image| store.name(image));
    let image = if IMAGES == 1 { ("image", json!(images[0])) } else { ("images", json!(images.as_slice())) };
    let right = example.labelled().then(|| task.is_right(example, said));
    let shared = [image, ("sentence", json!(example.sentence())), ("right", json!(right))];
    per_example::record(shared.into_iter().chain(task.record(example, said, logits)))
}

/// The examples with these numbers.
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
    /// Examples for choosing the best epoch.
    validation: ImageExamples<E, IMAGES>,
    /// Examples to measure or predict at the end.
    test: ImageExamples<E, IMAGES>,
    /// Numbers of the training examples that are used.
    learnt: Vec<usize>,
}

/// A batch of training examples.
pub struct ExampleBatch {
    /// Their numbers.
    pub examples: Vec<usize>,
    /// Their images and sentences; one row per image.
    pub inputs: Batch,
}

impl<E: ImageExample<IMAGES>, const IMAGES: usize> ExampleSplits<E, IMAGES> {
    /// Reads the job's files. Training uses the labelled examples that `learn` accepts.
    ///
    /// # Errors
    /// Returns an error if a file cannot be parsed, too many images lack features, or no example is left for training
    /// or validation.
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

    /// Lines about the number of examples, for the start of a run.
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
            lines.push(format!("{cut} {noun}s are longer than --max-length {max_length} and were truncated"));
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
