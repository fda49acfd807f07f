//! The training loop: epochs of batches, validation after each, the best checkpoint to the test.
//!
//! Read [`run`] for the life of a run and `Trainer::epoch` for a step. Whatever happens between
//! two optimiser steps (Ctrl-C, a kill, a power cut), the run goes on from its last saved state
//! and ends with the weights it would have had.

use crate::config::{Recipe, RunSettings, data_fingerprint};
use crate::data::batches::{self, Batch};
use crate::data::pairs::{Pair, PairSource};
use crate::data::paths::DataPaths;
use crate::data::splits::Split;
use crate::data::{Dataset, LoadOptions};
use crate::log::jsonl::{EpochRecord, JsonlWriter, Record, StepRecord, TestRecord, read_records};
use crate::log::tensorboard::EventWriter;
use crate::log::{curves, progress};
use crate::metrics::Metrics;
use crate::optim::{AdamW, Schedule, clip};
use crate::resume::{self, Best, Position, Sums};
use crate::run_folder::{
    Checkpoint, Preprocessing, Report, RunFolder, matching_weights, save_checkpoint, weights_file, write_json,
};
use crate::tasks::masked_words::MaskedWords;
use crate::tasks::{alignment, matching};
use crate::{Error, Result, evaluate, retrieval};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use indicatif::ProgressBar;
use lxmert_core::config::LxmertConfig;
use lxmert_core::model::{Forward, MatchingModel, WordHead, init};
use lxmert_core::ops::DropoutRng;
use lxmert_core::text::WordPiece;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Optimiser steps between two step records.
const LOG_EVERY: u64 = 20;

/// What to do with a folder that already holds a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// Start anew in an empty folder; go on with an unfinished run of the same settings; leave a
    /// finished one alone.
    #[default]
    Auto,
    /// Go on, or fail when there is nothing to go on with.
    Resume,
    /// Delete the run and start anew.
    Overwrite,
}

/// One training run.
#[derive(Debug, Clone)]
pub struct Job {
    /// What is trained and how.
    pub recipe: Recipe,
    /// The data.
    pub data: DataPaths,
    /// The run folder.
    pub output: PathBuf,
    /// Where to compute.
    pub device: Device,
    /// What to do with a run that is already there.
    pub start: Start,
    /// Whether any number of captioned images may lack features.
    pub allow_missing_images: bool,
    /// Optimiser steps between two saved states.
    pub save_every_steps: u64,
    /// Time between two saved states.
    pub save_every: Duration,
    /// Stop, as by Ctrl-C, once this many steps are taken (for tests and for short sittings).
    pub stop_after: Option<u64>,
    /// Whether to draw progress bars.
    pub show_progress: bool,
    /// The command, for the model card.
    pub command: String,
}

/// How [`run`] ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The run has ended now.
    Finished(Report),
    /// A run of the same settings had already ended; nothing was done.
    AlreadyFinished(Report),
}

/// Trains, or goes on training, and tests the best checkpoint.
///
/// # Errors
/// When the data or settings cannot be used, the folder holds another run, the loss diverges, or
/// Ctrl-C was pressed (the state is saved).
pub fn run(job: &Job) -> Result<Outcome> {
    job.recipe.check()?;
    job.data.check_features()?;
    let folder = RunFolder::new(&job.output);
    let settings =
        RunSettings { recipe: job.recipe.clone(), data: job.data.clone(), data_sha256: data_fingerprint(&job.data)? };
    if job.start == Start::Overwrite {
        folder.clear()?;
    }
    if let Some(old) = read_settings(&folder)? {
        let differences = old.differences(&settings);
        if !differences.is_empty() {
            return Err(Error::OtherSettings { folder: job.output.clone(), differences: differences.join("\n") });
        }
        if folder.report().is_file() {
            return Ok(Outcome::AlreadyFinished(Report::read(&folder.report())?));
        }
    }
    if job.start == Start::Resume && !folder.state().is_file() {
        return Err(Error::file(&job.output, "no unfinished run here to resume; start one without --resume"));
    }
    std::fs::create_dir_all(folder.root()).map_err(Error::io(folder.root()))?;
    write_json(&folder.settings(), &settings)?;

    let mut trainer = Trainer::new(job, folder)?;
    trainer.train()?;
    Ok(Outcome::Finished(trainer.test()?))
}

/// The settings of the run in a folder, if there is one.
///
/// # Errors
/// When `run.json` cannot be understood.
pub fn read_settings(folder: &RunFolder) -> Result<Option<RunSettings>> {
    let path = folder.settings();
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    serde_json::from_str(&text).map(Some).map_err(|e| {
        Error::file(
            &path,
            format!("not the settings of a run of this version ({e}); use another --output, or --overwrite"),
        )
    })
}

struct Trainer<'a> {
    job: &'a Job,
    folder: RunFolder,
    dataset: Dataset,
    text: WordPiece,
    config: LxmertConfig,
    model: MatchingModel,
    word_head: Option<WordHead>,
    optimiser: AdamW,
    schedule: Schedule,
    train_pairs: PairSource,
    validation: Vec<Pair>,
    validation_hard: Vec<Pair>,
    position: Position,
    metrics: JsonlWriter,
    events: EventWriter,
    saved: Instant,
    saved_step: u64,
    /// Seconds of earlier sittings, and when this one began.
    sitting: (f64, Instant),
}

impl<'a> Trainer<'a> {
    fn new(job: &'a Job, folder: RunFolder) -> Result<Self> {
        let recipe = &job.recipe;
        let text = WordPiece::bundled()?;
        let options = LoadOptions {
            max_length: recipe.max_length,
            regions: recipe.regions,
            seed: recipe.seed,
            allow_missing_images: job.allow_missing_images,
        };
        let dataset = Dataset::load(&job.data, &text, &options)?;
        let config = recipe.model(dataset.feature_dim())?;
        let varmap = VarMap::new();
        let model = MatchingModel::new(&config, VarBuilder::from_varmap(&varmap, DType::F32, &job.device))?;
        let word_head = (recipe.masked_words > 0.0)
            .then(|| {
                WordHead::new(
                    &config,
                    model.word_embeddings(),
                    VarBuilder::from_varmap(&varmap, DType::F32, &job.device),
                )
            })
            .transpose()?;
        init::seed_weights(&varmap, recipe.seed, recipe.initializer_range)?;
        let variables: BTreeMap<String, candle_core::Var> = match varmap.data().lock() {
            Ok(variables) => variables.iter().map(|(name, var)| (name.clone(), var.clone())).collect(),
            Err(_) => return Err(Error::Argument("the variables' lock is poisoned".into())),
        };
        if let Some(init) = &recipe.init {
            for (name, tensor) in matching_weights(&weights_file(Path::new(init))?, &config, true)? {
                if let Some(var) = variables.get(&name) {
                    var.set(&tensor.to_device(&job.device)?)?;
                }
            }
        }
        let parameters: usize = variables.values().map(|var| var.elem_count()).sum();
        let mut optimiser = AdamW::new(recipe.optimiser(), variables)?;
        let resumes = folder.state().is_file();
        let position = if resumes { resume::load(&folder.state(), &mut optimiser)? } else { Position::default() };

        let train_pairs = dataset.pairs(Split::Train);
        let validation = dataset.pairs(Split::Val);
        let batches_per_epoch = train_pairs.len().div_ceil(recipe.batch_size);
        let steps_per_epoch = batches_per_epoch.div_ceil(recipe.accumulate) as u64;
        let total_steps = recipe.steps.unwrap_or(recipe.epochs * steps_per_epoch);
        let warmup_steps = (recipe.warmup * total_steps as f64).round() as u64;
        let count = |split| dataset.splits.images(split).count();
        log::info!(
            "{}: {} training images with {} captions, {} to validate, {} to test ({})",
            job.data.name,
            count(Split::Train),
            train_pairs.len(),
            count(Split::Val),
            count(Split::Test),
            dataset.splits.source
        );
        log::info!(
            "{} model, {:.1} million parameters; {total_steps} steps of {} pairs, {} regions of {} numbers",
            recipe.preset,
            parameters as f64 / 1e6,
            recipe.batch_size * recipe.accumulate,
            dataset.regions(),
            dataset.feature_dim()
        );
        if resumes {
            log::info!("going on from step {} of {total_steps}", position.step);
        }
        let metrics = JsonlWriter::open(&folder.metrics(), position.metrics_bytes)?;
        let events = EventWriter::open(&folder.tensorboard(), position.events_bytes)?;
        let sitting = (position.seconds, Instant::now());
        Ok(Self {
            schedule: Schedule { warmup_steps, total_steps },
            validation: validation.fixed(),
            validation_hard: validation.hard(),
            train_pairs,
            saved: Instant::now(),
            saved_step: position.step,
            job,
            folder,
            dataset,
            text,
            config,
            model,
            word_head,
            optimiser,
            position,
            metrics,
            events,
            sitting,
        })
    }

    fn train(&mut self) -> Result<()> {
        let bar = progress::bar(self.schedule.total_steps, "steps", self.job.show_progress);
        bar.set_position(self.position.step);
        bar.reset_eta();
        while !self.position.trained {
            bar.set_prefix(format!("epoch {}", self.position.epoch + 1));
            let start = Instant::now();
            self.epoch(&bar)?;
            self.end_epoch(start, &bar)?;
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// The rest of the current epoch, from wherever the position says.
    fn epoch(&mut self, bar: &ProgressBar) -> Result<()> {
        let recipe = &self.job.recipe;
        let epoch = self.position.epoch;
        let pairs = self.train_pairs.epoch(recipe.seed, epoch, recipe.hard_negatives);
        let plan = batches::plan(&self.dataset, &pairs, recipe.batch_size, recipe.seed, epoch);
        let batch_count = plan.len();
        let sizes: Vec<usize> = plan.iter().map(Vec::len).collect();
        let rest: Vec<Vec<Pair>> = plan.into_iter().skip(self.position.batch).collect();

        // The reading thread borrows the data while the loop changes the rest of the trainer.
        let Self {
            job,
            dataset,
            config,
            model,
            word_head,
            optimiser,
            schedule,
            position,
            metrics,
            events,
            folder,
            saved,
            saved_step,
            sitting,
            ..
        } = self;
        let mut sums: Option<Vec<Option<Tensor>>> = None;
        let mut pending = Sums::default();
        let mut at = position.batch;
        let mut measured = (Instant::now(), 0usize);
        batches::for_each(dataset, rest.into_iter(), |mut batch: Batch| {
            let group = at / recipe.accumulate * recipe.accumulate;
            let group_end = (group + recipe.accumulate).min(batch_count);
            let divisor = sizes[group..group_end].iter().sum();
            let number = epoch * batch_count as u64 + at as u64;
            let dropout = DropoutRng::new(recipe.seed, number);
            let words = word_head
                .is_some()
                .then(|| MaskedWords::draw(&mut batch, config.vocab_size as u32, recipe.seed, number));
            let run = if recipe.dropout > 0.0 { Forward::train(&dropout) } else { Forward::eval() };
            // Only the guesses of masked words read the streams after they have met.
            let run = Forward { pooled_only: word_head.is_none(), ..run };
            let result = matching::forward(model, &batch, divisor, &run, &job.device)?;
            // What learns beside matching, each a mean over its share of the optimiser step.
            let share = batch.len() as f64 / divisor as f64;
            let guesses = match (&*word_head, &words) {
                (Some(head), Some(words)) => words.loss(head, &result.language, &job.device)?,
                _ => None,
            };
            let aligned = if recipe.alignment > 0.0 {
                alignment::loss(&batch, &result.encoded.0, &result.encoded.1, &job.device)?
            } else {
                None
            };
            let mut loss = result.loss;
            for (beside, weight) in [(guesses, recipe.masked_words), (aligned, recipe.alignment)] {
                if let Some(beside) = beside {
                    log::trace!("step {}: beside matching {}", position.step, beside.to_scalar::<f32>()?);
                    loss = (loss + (beside * (weight * share))?)?;
                }
            }
            let gradients = optimiser.gradients(&loss.backward()?);
            sums = Some(match sums.take() {
                None => gradients,
                Some(before) => add(before, gradients)?,
            });
            pending.loss += result.sum;
            pending.right += result.right;
            pending.pairs += batch.len();
            at += 1;
            if at < group_end {
                return Ok(true);
            }

            let gradients = sums.take().unwrap_or_default();
            let norm = clip::global_norm(gradients.iter().flatten())?;
            let learning_rate = recipe.learning_rate * schedule.factor(position.step);
            let loss = pending.loss / pending.pairs as f64;
            if !loss.is_finite() || !norm.is_finite() {
                return Err(Error::Diverged { step: position.step + 1, loss, learning_rate });
            }
            optimiser.step(
                &gradients,
                learning_rate,
                clip::clip_factor(norm, (recipe.clip > 0.0).then_some(recipe.clip)),
            )?;

            position.step += 1;
            position.batch = at;
            for sums in [&mut position.epoch_sums, &mut position.log_sums] {
                sums.add(&pending, norm);
            }
            measured.1 += pending.pairs;
            pending = Sums::default();
            bar.inc(1);
            if position.step.is_multiple_of(LOG_EVERY) {
                let sums = std::mem::take(&mut position.log_sums);
                let record = StepRecord {
                    step: position.step,
                    epoch: epoch as f64 + at as f64 / batch_count as f64,
                    loss: sums.loss / sums.pairs as f64,
                    learning_rate,
                    gradient_norm: sums.norm / sums.steps as f64,
                    pairs_per_second: measured.1 as f64 / measured.0.elapsed().as_secs_f64(),
                };
                measured = (Instant::now(), 0);
                bar.set_message(format!("loss {:.3}", record.loss));
                events.scalars(
                    position.step,
                    &[
                        ("train/loss", record.loss),
                        ("train/learning_rate", learning_rate),
                        ("train/gradient_norm", record.gradient_norm),
                        ("train/pairs_per_second", record.pairs_per_second),
                    ],
                )?;
                metrics.write(&Record::Step(record))?;
            }
            let stop = lxmert_core::cli::interrupted() || job.stop_after.is_some_and(|n| position.step >= n);
            if stop || position.step - *saved_step >= job.save_every_steps || saved.elapsed() >= job.save_every {
                save_state(folder, position, optimiser, metrics, events, sitting)?;
                (*saved, *saved_step) = (Instant::now(), position.step);
            }
            if stop {
                return Err(lxmert_core::Error::Interrupted.into());
            }
            Ok(position.step < schedule.total_steps)
        })
    }

    /// Validation, checkpoints and records after an epoch.
    fn end_epoch(&mut self, start: Instant, bar: &ProgressBar) -> Result<()> {
        let recipe = &self.job.recipe;
        bar.set_message("validating");
        let quiet = ProgressBar::hidden();
        let measure = |pairs: &[Pair]| -> Result<Option<Metrics>> {
            if pairs.is_empty() {
                return Ok(None);
            }
            evaluate::metrics(&self.model, &self.dataset, pairs, eval_batch(recipe), &self.job.device, &quiet).map(Some)
        };
        let validated = measure(&self.validation).and_then(|v| Ok((v, measure(&self.validation_hard)?)));
        let (validation, hard) = match validated {
            // Ctrl-C while validating: the epoch's last step is not lost.
            Err(e) if e.is_interrupt() => {
                save_state(
                    &self.folder,
                    &mut self.position,
                    &self.optimiser,
                    &self.metrics,
                    &self.events,
                    &self.sitting,
                )?;
                return Err(e);
            }
            other => other?,
        };
        let Some(validation) = validation else { return Err(Error::Argument("the val split has no caption".into())) };

        self.position.epoch += 1;
        self.position.batch = 0;
        let epoch = self.position.epoch;
        let sums = std::mem::take(&mut self.position.epoch_sums);
        let value = recipe.metric.value(&validation, hard.as_ref())?;
        let best = self.position.best.is_none_or(|best| value > best.value);
        if best {
            self.position.best = Some(Best { epoch, value });
        }
        let record = EpochRecord {
            epoch,
            step: self.position.step,
            train_loss: sums.loss / sums.pairs.max(1) as f64,
            train_accuracy: sums.right as f64 / sums.pairs.max(1) as f64,
            validation,
            validation_hard: hard,
            best,
            seconds: start.elapsed().as_secs_f64(),
        };
        bar.suspend(|| log::info!("{}", epoch_line(&record)));
        let mut scalars =
            vec![("train/epoch_loss", record.train_loss), ("train/epoch_accuracy", record.train_accuracy)];
        scalars.extend([
            ("val/loss", validation.loss),
            ("val/accuracy", validation.accuracy),
            ("val/precision", validation.precision),
            ("val/recall", validation.recall),
            ("val/f1", validation.f1),
            ("val/auc", validation.auc),
        ]);
        if let Some(hard) = &hard {
            scalars.extend([
                ("val_hard/loss", hard.loss),
                ("val_hard/accuracy", hard.accuracy),
                ("val_hard/auc", hard.auc),
            ]);
        }
        self.events.scalars(self.position.step, &scalars)?;
        self.metrics.write(&Record::Epoch(record.clone()))?;

        let best_epoch = self.position.best.map_or(epoch, |best| best.epoch);
        let without_better = epoch - best_epoch;
        let patience_ended = recipe.patience.is_some_and(|patience| without_better >= patience);
        if patience_ended {
            log::info!("{without_better} epochs without a better one; stopping early");
        }
        self.position.trained = patience_ended || self.position.step >= self.schedule.total_steps;
        let card = self.card(&record, None);
        if best {
            self.write_checkpoint(&self.folder.best(), &card)?;
        }
        self.write_checkpoint(&self.folder.last(), &card)?;
        curves::draw(&self.folder.curves(), &read_records(&self.folder.metrics())?)?;
        save_state(&self.folder, &mut self.position, &self.optimiser, &self.metrics, &self.events, &self.sitting)?;
        (self.saved, self.saved_step) = (Instant::now(), self.position.step);
        Ok(())
    }

    /// Tests the best checkpoint and writes the report; the run is then finished.
    fn test(&mut self) -> Result<Report> {
        let recipe = &self.job.recipe;
        let device = &self.job.device;
        let best = Checkpoint::open(&self.folder.best(), device)?;
        let source = self.dataset.pairs(Split::Test);
        let (pairs, hard_pairs) = (source.fixed(), source.hard());
        let bar = progress::bar((pairs.len() + hard_pairs.len()) as u64, "pairs", self.job.show_progress);
        bar.set_prefix("test");
        let test = evaluate::metrics(&best.model, &self.dataset, &pairs, eval_batch(recipe), device, &bar)?;
        let test_hard = match hard_pairs.is_empty() {
            true => None,
            false => {
                Some(evaluate::metrics(&best.model, &self.dataset, &hard_pairs, eval_batch(recipe), device, &bar)?)
            }
        };
        bar.finish_and_clear();
        let retrieval = match recipe.recall_images {
            0 => None,
            images => {
                let bar = progress::bar(0, "pairs", self.job.show_progress);
                bar.set_prefix("recall");
                let result = retrieval::retrieval(
                    &best.model,
                    &self.dataset,
                    Split::Test,
                    images,
                    eval_batch(recipe),
                    device,
                    &bar,
                )?;
                bar.finish_and_clear();
                Some(result)
            }
        };
        let record = TestRecord { epoch: self.position.best.map_or(0, |best| best.epoch), test, test_hard, retrieval };
        let mut scalars = vec![("test/accuracy", test.accuracy), ("test/auc", test.auc), ("test/f1", test.f1)];
        if let Some(hard) = &record.test_hard {
            scalars.push(("test_hard/accuracy", hard.accuracy));
        }
        if let Some(r) = &record.retrieval {
            scalars.extend([
                ("test/image_to_text_r1", r.image_to_text.recall_at_1),
                ("test/text_to_image_r1", r.text_to_image.recall_at_1),
            ]);
        }
        self.events.scalars(self.position.step, &scalars)?;
        self.metrics.write(&Record::Test(record.clone()))?;
        let report = Report {
            data: self.job.data.name.clone(),
            steps: self.position.step,
            epochs: self.position.epoch,
            parameters: self.optimiser.parameters().map(|(_, var)| var.elem_count()).sum(),
            training_seconds: self.position.seconds,
            test: record,
        };
        let epoch_record = read_records(&self.folder.metrics())?.into_iter().find_map(|record| match record {
            Record::Epoch(e) if e.epoch == report.test.epoch => Some(e),
            _ => None,
        });
        if let Some(epoch_record) = epoch_record {
            let card = self.card(&epoch_record, Some(&report));
            crate::run_folder::write_text(&self.folder.best().join("README.md"), &card)?;
        }
        write_json(&self.folder.report(), &report)?;
        // The report says that the run has finished; the state is of no more use.
        let state = self.folder.state();
        std::fs::remove_file(&state).map_err(Error::io(&state))?;
        Ok(report)
    }

    fn write_checkpoint(&self, folder: &Path, card: &str) -> Result<()> {
        let weights: Vec<(String, Tensor)> =
            self.optimiser.parameters().map(|(name, var)| (name.to_string(), var.as_tensor().clone())).collect();
        let preprocessing = Preprocessing {
            max_length: self.job.recipe.max_length,
            regions: self.dataset.regions(),
            detector: self.dataset.store.info().detector.clone(),
        };
        save_checkpoint(folder, &self.config, &preprocessing, &self.text, &weights, card)
    }

    fn card(&self, epoch: &EpochRecord, report: Option<&Report>) -> String {
        crate::log::card::model_card(&crate::log::card::Facts {
            job: self.job,
            dataset: &self.dataset,
            config: &self.config,
            epoch,
            report,
        })
    }
}

impl Sums {
    fn add(&mut self, step: &Self, norm: f64) {
        self.loss += step.loss;
        self.right += step.right;
        self.pairs += step.pairs;
        self.norm += norm;
        self.steps += 1;
    }
}

/// Pairs per batch without gradients, which need no room for them.
pub fn eval_batch(recipe: &Recipe) -> usize {
    recipe.batch_size.max(64)
}

fn add(before: Vec<Option<Tensor>>, more: Vec<Option<Tensor>>) -> Result<Vec<Option<Tensor>>> {
    let pairs = before.into_iter().zip(more);
    pairs
        .map(|pair| {
            Ok(match pair {
                (Some(a), Some(b)) => Some((a + b)?),
                (a, b) => a.or(b),
            })
        })
        .collect()
}

fn save_state(
    folder: &RunFolder,
    position: &mut Position,
    optimiser: &AdamW,
    metrics: &JsonlWriter,
    events: &EventWriter,
    sitting: &(f64, Instant),
) -> Result<()> {
    position.metrics_bytes = metrics.position()?;
    position.events_bytes = events.position()?;
    position.seconds = sitting.0 + sitting.1.elapsed().as_secs_f64();
    resume::save(&folder.state(), position, optimiser)
}

fn epoch_line(e: &EpochRecord) -> String {
    let v = &e.validation;
    let hard = e.validation_hard.map_or_else(String::new, |h| format!(", hard accuracy {:.3}", h.accuracy));
    format!(
        "epoch {}: train loss {:.3}, accuracy {:.3} | validation loss {:.3}, accuracy {:.3}, precision {:.3}, recall {:.3}, F1 {:.3}, AUC {:.3}{hard} | {:.0} s{}",
        e.epoch,
        e.train_loss,
        e.train_accuracy,
        v.loss,
        v.accuracy,
        v.precision,
        v.recall,
        v.f1,
        v.auc,
        e.seconds,
        if e.best { ", best" } else { "" }
    )
}
