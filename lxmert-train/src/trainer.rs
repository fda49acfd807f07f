//! The training loop: epochs of batches, validation after each, and a test of the best checkpoint.
//!
//! Read [`run`] for the life of a run and `Trainer::epoch` for a step. Whatever happens between two optimiser steps
//! (Ctrl-C, a kill, a power cut), the run resumes from its last saved state and ends with the weights it would have
//! had.

use crate::average::Average;
use crate::data::batches;
use crate::job::{Job, RunSettings, Start};
use crate::log::card::{Facts, model_card};
use crate::log::jsonl::{EpochRecord, Record, TestRecord};
use crate::log::{RunLog, progress};
use crate::origin::Origin;
use crate::ranks::{GradientSum, World, world};
use crate::recipe::Recipe;
use crate::resume::{self, Position};
use crate::run_folder::{CheckpointParts, Lock, Report, RunFolder, Seconds, save_checkpoint, write_json, write_text};
use crate::sums::Sums;
use crate::tasks::{Step, Task, Tested};
use crate::trainable;
use crate::{Error, Result};
use candle_core::{Tensor, Var};
use candle_nn::VarMap;
use indicatif::ProgressBar;
use lxmert_core::checkpoint::{Misshapen, Place};
use lxmert_core::cli;
use lxmert_core::model::init;
use lxmert_core::ops;
use lxmert_core::optim::{AdamW, Schedule, clip};
use lxmert_core::text::WordPiece;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// Optimiser steps between step records.
const LOG_EVERY: u64 = 20;

/// How [`run`] ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The run has just finished.
    Finished(Report),
    /// A run with the same settings had already finished; nothing was done.
    AlreadyFinished(Report),
}

/// Trains task `T`, or resumes its training, and tests the best checkpoint. Nothing in the folder is deleted until the
/// data and the initial checkpoint have been read and found to fit.
///
/// # Errors
/// Returns an error if the data or settings are unusable, the folder holds another run, another process trains there,
/// the loss diverges, or Ctrl-C was pressed (the state is saved).
pub fn run<T: Task>(job: &Job) -> Result<Outcome> {
    let world = world();
    let check = || {
        job.recipe.check()?;
        job.data.check_features()?;
        job.settings()
    };
    cli::warn_of_slow(job.recipe.precision, &job.device);
    let settings = world.agree(check())?;
    world.same("the settings or the data", &format!("{settings:?}"))?;
    let folder = RunFolder::new(&job.output);
    // Rank 0 alone looks into the folder and writes there, and says to all what it holds.
    let mut _lock = None;
    let found = world.from_first(|| {
        std::fs::create_dir_all(folder.root()).map_err(Error::io(folder.root()))?;
        _lock = Some(Lock::take(&folder, &job.command)?);
        folder.remove_leftovers();
        Ok(vec![found(job, &folder, &settings)? as u8])
    })?;
    if found == [Found::Finished as u8] {
        return Ok(Outcome::AlreadyFinished(world.agree(Report::read(&folder.report()))?));
    }
    let mut trainer = Trainer::<T>::new(job, folder, &settings, found == [Found::Unfinished as u8])?;
    trainer.train().map_err(|error| out_of_memory(error, job.recipe.batch_size, job.recipe.accumulate))?;
    trainer.test().map(Outcome::Finished)
}

/// What there is to go on with.
#[derive(Clone, Copy)]
enum Found {
    Nothing,
    Unfinished,
    Finished,
}

/// Looks for a run of these settings in the folder.
fn found(job: &Job, folder: &RunFolder, settings: &RunSettings) -> Result<Found> {
    if job.start == Start::Overwrite {
        refuse_init_inside(job)?;
        return Ok(Found::Nothing);
    }
    if let Some(old) = RunSettings::read(folder)? {
        let differences = old.differences(settings);
        if !differences.is_empty() {
            return Err(Error::OtherSettings { folder: job.output.clone(), differences: differences.join("\n") });
        }
        if folder.report().is_file() {
            return Ok(Found::Finished);
        }
    }
    match (folder.state().is_file(), job.start) {
        (true, _) => Ok(Found::Unfinished),
        (false, Start::Resume) => {
            Err(Error::file(&job.output, "no unfinished run here to resume; start one without --resume"))
        }
        (false, _) => Ok(Found::Nothing),
    }
}

/// Rejects an initial checkpoint that `--overwrite` is about to delete.
fn refuse_init_inside(job: &Job) -> Result<()> {
    let Some(init) = job.recipe.init.as_deref().filter(|init| !init.starts_with("hf:")) else { return Ok(()) };
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let weights = Place::find(init)?.weights;
    if real(&weights).starts_with(real(&job.output)) {
        return Err(Error::Argument(format!(
            "--init {init}: --overwrite would delete this checkpoint, which is in {}; use another --output, or move the \
             checkpoint first",
            job.output.display()
        )));
    }
    Ok(())
}

/// What learns, from the start or from a saved state.
struct Learner<T> {
    text: WordPiece,
    task: T,
    optimiser: AdamW,
    average: Option<Average>,
    position: Position,
}

struct Trainer<'a, T> {
    job: &'a Job,
    folder: RunFolder,
    text: WordPiece,
    task: T,
    optimiser: AdamW,
    /// The weights' average, if it is what is measured and saved.
    average: Option<Average>,
    schedule: Schedule,
    position: Position,
    /// The run's name.
    name: String,
    world: World,
    /// Rank 0 writes it.
    log: Option<RunLog>,
    saved: Instant,
    saved_step: u64,
    /// Until when the time is in the position.
    counted: Instant,
}

/// The projection of a region's features: `[hidden, width of the features]`.
const REGION_WEIGHTS: &str = "lxmert.encoder.visn_fc.visn_fc.weight";

/// A device's error when its memory is full, with the batch size to try.
fn out_of_memory(error: Error, batch_size: usize, accumulate: usize) -> Error {
    if !error.to_string().contains("CUDA_ERROR_OUT_OF_MEMORY") {
        return error;
    }
    let advice = match batch_size / 2 {
        0 => "use a smaller --preset or another device".into(),
        half => format!(
            "try --batch-size {half} --accumulate {}, which takes steps of about as many examples",
            2 * accumulate
        ),
    };
    Error::Argument(format!("the device has too little memory for --batch-size {batch_size}: {advice}"))
}

/// The error for a checkpoint that does not fit, with advice: other features if it needs another width, and
/// `--allow-missing` for weights that it lacks.
fn cannot_start(error: Error) -> Error {
    let Error::Core(lxmert_core::Error::Checkpoint { missing, misshapen, .. }) = &error else { return error };
    let of_another_width =
        |weight: &&Misshapen| weight.name == REGION_WEIGHTS && weight.found.last() != weight.expected.last();
    let regions = misshapen.iter().find(of_another_width);
    let what_to_do = match (regions, missing.first()) {
        (Some(weight), _) => format!(
            "it needs regions of {} numbers, but the store has {}: use the features of the detector it was trained on",
            weight.found.last().unwrap_or(&0),
            weight.expected.last().unwrap_or(&0)
        ),
        (None, Some(first)) => format!("to start missing weights fresh, pass --allow-missing '{first}'"),
        (None, None) if !misshapen.is_empty() => "it has other classes or another size".into(),
        (None, None) => "it belongs to another network".into(),
    };
    Error::Argument(format!("--init {error}; {what_to_do}"))
}

impl<'a, T: Task> Trainer<'a, T> {
    fn new(job: &'a Job, folder: RunFolder, settings: &RunSettings, resumes: bool) -> Result<Self> {
        let (world, recipe) = (world(), &job.recipe);
        // No rank goes on before all have read their data and weights, and rank 0 deletes nothing before.
        let Learner { text, task, optimiser, average, position } = world.agree(Self::read(job, &folder, resumes))?;
        let name = name(job, &folder);
        let open = || -> Result<RunLog> {
            if job.start == Start::Overwrite {
                folder.clear()?;
            }
            let settings = RunSettings { name: name.clone(), ..settings.clone() };
            write_json(&folder.settings(), &settings)?;
            RunLog::open(&folder, (position.metrics_bytes, position.events_bytes), &settings)
        };
        let log = if world.is_first() { Some(open()?) } else { None };
        let steps_per_epoch = task.batches_per_epoch().div_ceil(recipe.accumulate) as u64;
        let total_steps = recipe.steps.unwrap_or(recipe.epochs * steps_per_epoch);
        let warmup_steps = (recipe.warmup * total_steps as f64).round() as u64;
        let parameters: usize = optimiser.parameters().map(|(_, var)| var.elem_count()).sum();
        log::info!("{}, {}: {}", job.data.name(), T::NAME, task.introduction().join("; "));
        let is_frozen = |name: &str| trainable::is_frozen(recipe, name);
        let frozen: usize = optimiser.parameters().filter(|p| is_frozen(p.0)).map(|(_, var)| var.elem_count()).sum();
        let frozen = if frozen > 0 { format!(", {:.1} of them frozen", frozen as f64 / 1e6) } else { String::new() };
        log::info!(
            "{:.1} million parameters{frozen}; {total_steps} steps of {}",
            parameters as f64 / 1e6,
            recipe.batch_size * recipe.accumulate,
        );
        if let Some(shares) = shares(world, recipe) {
            log::info!("{shares}");
        }
        if resumes {
            log::info!("resuming from step {} of {total_steps}", position.step);
        }
        let idle_start = recipe.optimiser.idle_start();
        Ok(Self {
            schedule: Schedule { warmup_steps, total_steps, idle_start, decay: recipe.schedule },
            log,
            world,
            saved: Instant::now(),
            saved_step: position.step,
            counted: Instant::now(),
            name,
            average,
            job,
            folder,
            text,
            task,
            optimiser,
            position,
        })
    }

    /// The data and the model, at the saved state or at the start.
    fn read(job: &Job, folder: &RunFolder, resumes: bool) -> Result<Learner<T>> {
        let recipe = &job.recipe;
        let last = Some(folder.last()).filter(|last| resumes && last.join("model.safetensors").is_file());
        let origin = Origin::open(recipe, last.as_deref())?;
        let variables = VarMap::new();
        let task = T::new(job, &origin, &variables)?;
        init::seed_weights(&variables, recipe.seed, recipe.initializer_range)?;
        let variables: BTreeMap<String, Var> = match variables.data().lock() {
            Ok(variables) => variables.iter().map(|(name, var)| (name.clone(), var.clone())).collect(),
            Err(_) => return Err(Error::Argument("the variables' lock is poisoned".into())),
        };
        trainable::check(recipe, &variables.keys().map(String::as_str).collect::<Vec<_>>())?;
        let Origin { text, checkpoint, .. } = origin;
        if let Some(checkpoint) = checkpoint.filter(|_| !resumes) {
            for (name, tensor) in task.starting_weights(&checkpoint).map_err(cannot_start)? {
                if let Some(var) = variables.get(&name) {
                    var.set(&tensor.to_device(&job.device)?)?;
                }
            }
        }
        let mut optimiser = AdamW::new(recipe.adamw(), variables)?;
        optimiser.scale_rates(|name| trainable::rate(recipe, name));
        let mut average = recipe.ema.map(|decay| Average::new(decay, recipe, &optimiser)).transpose()?;
        let position = match resumes {
            true => resume::load(&folder.state(), &mut optimiser, average.as_mut())?,
            false => Position::default(),
        };
        Ok(Learner { text, task, optimiser, average, position })
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

    /// Trains the rest of the current epoch, from the current position.
    fn epoch(&mut self, bar: &ProgressBar) -> Result<()> {
        let recipe = &self.job.recipe;
        let epoch = self.position.epoch;
        let plan = self.task.epoch(epoch);
        let batch_count = plan.len();
        let sizes: Vec<usize> = plan.iter().map(Vec::len).collect();
        let rounds = rounds(plan, recipe.accumulate, self.world, self.position.batch);

        // The reading thread borrows the task while the loop changes the rest of the trainer.
        let Self { job, task, optimiser, average, schedule, position, log, folder, world, .. } = self;
        let (saved, saved_step, counted) = (&mut self.saved, &mut self.saved_step, &mut self.counted);
        let (task, world) = (&*task, *world);
        let shapes = optimiser.parameters().map(|(_, var)| var.shape().clone()).collect();
        let mut gradients = GradientSum::new(world, shapes, &job.device);
        let mut pending = Sums::default();
        let mut at = position.batch;
        let read = |examples: Vec<T::Example>| match examples.is_empty() {
            true => Ok(None),
            false => task.read(examples).map(Some),
        };
        batches::for_each_result(rounds.into_iter(), read, |batch: Result<Option<T::Batch>>| {
            let group = at / recipe.accumulate * recipe.accumulate;
            let group_end = (group + recipe.accumulate).min(batch_count);
            let divisor = sizes[group..group_end].iter().sum();
            let compute = |batch: T::Batch| -> Result<(Sums, Vec<Option<Tensor>>)> {
                let number = epoch * batch_count as u64 + (at + world.rank()) as u64;
                let step = Step::new(number, divisor, recipe, &job.device);
                let result = task.loss(batch, &step)?;
                Ok((Sums::of_batch(&result), optimiser.gradients(&ops::backward(&result.loss)?)))
            };
            let computed = batch.and_then(|batch| batch.map(compute).transpose());
            let stop = lxmert_core::cli::interrupted() || job.stop_after.is_some_and(|n| position.step + 1 >= n);
            let (own, own_gradients) = match computed {
                Ok(Some((sums, gradients))) => {
                    (Ok(Round { sums: Some(sums), stop, ..Round::of(&gradients) }), gradients)
                }
                Ok(None) => (Ok(Round { stop, ..Round::default() }), Vec::new()),
                Err(error) => (Err(error), Vec::new()),
            };
            let round = Round::gather(world, own)?;
            let present: Vec<Vec<bool>> = round.iter().map(|round| round.present.clone()).collect();
            gradients.add(own_gradients, &present)?;
            round.iter().filter_map(|round| round.sums.as_ref()).for_each(|sums| pending.add_batches(sums));
            at = (at + world.size()).min(group_end);
            if at < group_end {
                return Ok(true);
            }

            let mut gradients = gradients.take()?;
            if recipe.freeze_padding_rows {
                freeze_padding_rows(optimiser, &mut gradients)?;
            }
            let norm = clip::global_norm(gradients.iter().flatten())?;
            let learning_rate = recipe.learning_rate * schedule.factor(position.step);
            if !pending.loss.is_finite() || !norm.is_finite() {
                return Err(Error::Diverged { step: position.step + 1, loss: pending.mean_loss(), learning_rate });
            }
            let limit = (recipe.clip > 0.0).then_some(recipe.clip);
            optimiser.step(&gradients, learning_rate, clip::clip_factor(norm, limit))?;

            if let Some(average) = average.as_mut() {
                average.update(optimiser, position.step)?;
            }

            position.step += 1;
            position.batch = at;
            for sums in [&mut position.epoch_sums, &mut position.log_sums] {
                sums.add_step(&pending, norm);
            }
            if let Some(log) = log.as_mut() {
                log.count(pending.examples);
            }
            pending = Sums::default();
            bar.set_message(format!("loss {:.3}", position.log_sums.mean_loss()));
            bar.inc(1);
            if position.step.is_multiple_of(LOG_EVERY) {
                let sums = std::mem::take(&mut position.log_sums);
                if let Some(log) = log.as_mut() {
                    log.step(position.step, epoch as f64 + at as f64 / batch_count as f64, learning_rate, &sums)?;
                }
            }
            // All ranks stop at the same step, whichever was asked to.
            let stop = round.iter().any(|round| round.stop);
            if stop || position.step - *saved_step >= job.save_every_steps || saved.elapsed() >= job.save_every {
                position.seconds.training += lap(counted);
                let save = save_state(folder, position, (optimiser, average.as_ref()), log.as_ref());
                (*saved, *saved_step) = (Instant::now(), position.step);
                // None ends before the state is on the disk: the launcher would end rank 0 then.
                if stop { world.agree(save)? } else { save? }
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
        self.position.seconds.training += lap(&mut self.counted);
        self.swap_average()?;
        let validation = match self.task.validate() {
            // Ctrl-C during validation: keep the epoch's last step.
            Err(e) if e.is_interrupt() => {
                self.swap_average()?;
                self.world.agree(self.save_state())?;
                return Err(e);
            }
            other => other?,
        };
        self.position.seconds.validation += lap(&mut self.counted);
        self.position.epoch += 1;
        self.position.batch = 0;
        let epoch = self.position.epoch;
        let sums = std::mem::take(&mut self.position.epoch_sums);
        let best = self.position.take_measure(validation.watched(&recipe.metric)?);
        let record = EpochRecord {
            epoch,
            step: self.position.step,
            train_loss: sums.mean_loss(),
            train_accuracy: sums.accuracy(),
            validation,
            best,
            seconds: start.elapsed().as_secs_f64(),
        };
        bar.suspend(|| log::info!("{}", record.line()));
        self.same_weights(epoch)?;

        let without_better = epoch - self.position.best.map_or(epoch, |best| best.epoch);
        let patience_ended = recipe.patience.is_some_and(|patience| without_better >= patience);
        if patience_ended {
            log::info!("no improvement for {without_better} epochs; stopping early");
        }
        self.position.trained = patience_ended || self.position.step >= self.schedule.total_steps;
        if let Some(log) = self.log.as_mut() {
            log.epoch(&record)?;
            let parts = self.task.checkpoint();
            let card = self.card(&parts, &record, None);
            if best {
                self.write_checkpoint(&self.folder.best(), &parts, &card)?;
            }
            if recipe.keep_every.is_some_and(|every| epoch.is_multiple_of(every)) {
                self.write_checkpoint(&self.folder.epoch(epoch), &parts, &card)?;
            }
            self.write_checkpoint(&self.folder.last(), &parts, &card)?;
        }
        self.swap_average()?;
        if let Some(log) = self.log.as_ref() {
            log.draw_curves(&self.folder)?;
        }
        self.save_state()?;
        (self.saved, self.saved_step) = (Instant::now(), self.position.step);
        // No rank tests a checkpoint before it is written.
        self.world.agree(Ok(()))
    }

    /// Checks that all ranks have the same weights.
    fn same_weights(&self, epoch: u64) -> Result<()> {
        if self.world.is_alone() {
            return Ok(());
        }
        let mut hash = Sha256::new();
        for (_, var) in self.optimiser.parameters() {
            for value in var.flatten_all()?.to_vec1::<f32>()? {
                hash.update(value.to_le_bytes());
            }
        }
        self.world.same(&format!("the weights after epoch {epoch}"), &lxmert_core::files::hex(&hash.finalize()))
    }

    /// Tests the best checkpoint and writes the report, which finishes the run.
    fn test(&mut self) -> Result<Report> {
        let bar = progress::bar(0, "examples", self.job.show_progress);
        bar.set_prefix("test");
        self.position.seconds.training += lap(&mut self.counted);
        let Tested { measures, retrieval_seconds: retrieval } =
            self.task.test(&self.folder.best(), &self.folder.predictions(), &bar)?;
        bar.finish_and_clear();
        let test = lap(&mut self.counted) - retrieval;
        let record =
            TestRecord { epoch: self.position.best.map_or(0, |best| best.epoch), test: measures.check_finite()? };
        let report = Report {
            name: self.name.clone(),
            data: self.job.data.name().into(),
            task: T::NAME.into(),
            steps: self.position.step,
            epochs: self.position.epoch,
            parameters: self.optimiser.parameters().map(|(_, var)| var.elem_count()).sum(),
            seed: self.job.recipe.seed,
            seconds: Seconds { test, retrieval, ..self.position.seconds },
            test: record,
        };
        let Some(log) = self.log.as_mut() else {
            self.world.agree(Ok(()))?;
            return Ok(report);
        };
        log.test(self.position.step, &report.test)?;
        let epoch_record = log.records(&self.folder)?.into_iter().find_map(|record| match record {
            Record::Epoch(e) if e.epoch == report.test.epoch => Some(e),
            _ => None,
        });
        if let Some(epoch_record) = epoch_record {
            let card = self.card(&self.task.checkpoint(), &epoch_record, Some(&report));
            write_text(&self.folder.best().join("README.md"), &card)?;
        }
        write_json(&self.folder.report(), &report)?;
        // The report marks the run as finished; the state is no longer needed.
        let state = self.folder.state();
        std::fs::remove_file(&state).map_err(Error::io(&state))?;
        self.world.agree(Ok(()))?;
        Ok(report)
    }

    /// Exchanges the weights with their average, if there is one; again, back.
    fn swap_average(&mut self) -> Result<()> {
        self.average.as_mut().map_or(Ok(()), |average| average.swap(&self.optimiser))
    }

    fn save_state(&mut self) -> Result<()> {
        self.position.seconds.training += lap(&mut self.counted);
        let learner = (&self.optimiser, self.average.as_ref());
        save_state(&self.folder, &mut self.position, learner, self.log.as_ref())
    }

    fn write_checkpoint(&self, folder: &Path, parts: &CheckpointParts, card: &str) -> Result<()> {
        let weights: Vec<(String, Tensor)> =
            self.optimiser.parameters().map(|(name, var)| (name.to_string(), var.as_tensor().clone())).collect();
        save_checkpoint(folder, parts, &self.text, &weights, card)
    }

    fn card(&self, parts: &CheckpointParts, epoch: &EpochRecord, report: Option<&Report>) -> String {
        let description = self.task.description();
        model_card(&Facts { job: self.job, description, parts, epoch, report })
    }
}

/// How a step's batches are shared out, for the log; nothing for one rank.
fn shares(world: World, recipe: &Recipe) -> Option<String> {
    let (ranks, accumulate, batch) = (world.size(), recipe.accumulate, recipe.batch_size);
    if world.is_alone() {
        return None;
    }
    let step = format!("{ranks} ranks: a step of {} examples is", batch * accumulate);
    if !accumulate.is_multiple_of(ranks) {
        let advice = format!("so some wait; make --accumulate a multiple of {ranks}");
        return Some(format!(
            "{step} {accumulate} batches of {batch}, which {ranks} ranks cannot share evenly, {advice}"
        ));
    }
    let times = if accumulate == ranks { String::new() } else { format!(", {} times", accumulate / ranks) };
    Some(format!("{step} {ranks} ranks × {batch}{times}"))
}

/// This rank's batches from number `done` on, round by round: of a step's batches a round holds as many as there are ranks,
/// and a rank without one an empty batch.
fn rounds<E>(mut plan: Vec<Vec<E>>, accumulate: usize, world: World, done: usize) -> Vec<Vec<E>> {
    let count = plan.len();
    let mut rounds = Vec::new();
    for group in (done / accumulate * accumulate..count).step_by(accumulate) {
        let end = (group + accumulate).min(count);
        for first in (group..end).step_by(world.size()).filter(|first| *first >= done) {
            let own = first + world.rank();
            rounds.push(if own < end { std::mem::take(&mut plan[own]) } else { Vec::new() });
        }
    }
    rounds
}

/// What ranks tell each other of a round of batches besides the gradients.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Round {
    /// The batch's numbers; none where a rank had no batch.
    sums: Option<Sums>,
    /// Which parameters have a gradient; empty where a rank had no batch.
    present: Vec<bool>,
    /// Whether this rank was asked to stop.
    stop: bool,
}

impl Round {
    fn of(gradients: &[Option<Tensor>]) -> Self {
        Self { present: gradients.iter().map(Option::is_some).collect(), ..Self::default() }
    }

    /// All ranks' rounds, by rank.
    fn gather(world: World, own: Result<Self>) -> Result<Vec<Self>> {
        if world.is_alone() {
            return own.map(|own| vec![own]);
        }
        let json = |round: Self| serde_json::to_vec(&round).map_err(Error::json("another rank"));
        let all = world.gather(own.and_then(json))?;
        all.iter().map(|bytes| serde_json::from_slice(bytes).map_err(Error::json("another rank"))).collect()
    }
}

/// Zeroes the gradient of row 0 of the position and segment tables, as torch's `padding_idx=0` does in the original.
/// Row 0 of the word table belongs to padding: no real word uses it.
fn freeze_padding_rows(optimiser: &AdamW, gradients: &mut [Option<Tensor>]) -> Result<()> {
    for ((name, _), gradient) in optimiser.parameters().zip(gradients) {
        let table = name.ends_with(".position_embeddings.weight") || name.ends_with(".token_type_embeddings.weight");
        if let Some(gradient) = gradient.as_mut().filter(|_| table) {
            let first = gradient.narrow(0, 0, 1)?.zeros_like()?;
            *gradient = gradient.slice_scatter(&first, 0, 0)?;
        }
    }
    Ok(())
}

/// Writes the state, on rank 0, which has the log.
fn save_state(
    folder: &RunFolder,
    position: &mut Position,
    (optimiser, average): (&AdamW, Option<&Average>),
    log: Option<&RunLog>,
) -> Result<()> {
    let Some(log) = log else { return Ok(()) };
    (position.metrics_bytes, position.events_bytes) = log.positions()?;
    resume::save(&folder.state(), position, optimiser, average)
}

/// The seconds since `since`, which becomes now.
fn lap(since: &mut Instant) -> f64 {
    std::mem::replace(since, Instant::now()).elapsed().as_secs_f64()
}

/// The run's name: as asked for, as it is already, or as its folder is called.
fn name(job: &Job, folder: &RunFolder) -> String {
    let stays = |settings: &RunSettings| job.start != Start::Overwrite && !settings.name.is_empty();
    let old = || RunSettings::read(folder).ok().flatten().filter(stays).map(|settings| settings.name);
    let of_folder = || std::path::absolute(folder.root()).ok()?.file_name().map(|name| name.to_string_lossy().into());
    job.name.clone().or_else(old).or_else(of_folder).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use lxmert_core::optim::AdamWConfig;

    #[test]
    fn names_the_batch_size_to_try_when_the_device_is_out_of_memory() {
        let full = || candle_core::Error::Msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")".into());
        let said = |batch, accumulate| out_of_memory(full().into(), batch, accumulate).to_string();
        assert!(said(256, 1).contains("--batch-size 256: try --batch-size 128 --accumulate 2"), "{}", said(256, 1));
        assert!(said(1, 4).contains("smaller --preset"));
        let other = out_of_memory(candle_core::Error::Msg("no".into()).into(), 8, 1);
        assert!(matches!(other, Error::Candle(_)));
    }

    #[test]
    fn advises_on_a_checkpoint_that_does_not_fit() {
        let said = |missing: &[&str], found: &[usize]| {
            let regions = Misshapen { name: REGION_WEIGHTS.into(), expected: vec![128, 256], found: found.to_vec() };
            let misshapen = if found == [128, 256] { Vec::new() } else { vec![regions] };
            let missing = missing.iter().map(ToString::to_string).collect();
            let (path, unexpected) = ("x".into(), vec!["surprise".into()]);
            cannot_start(lxmert_core::Error::Checkpoint { path, missing, unexpected, misshapen }.into()).to_string()
        };
        assert!(said(&[], &[128, 2048]).contains("it needs regions of 2048 numbers, but the store has 256"));
        assert!(said(&[], &[768, 256]).ends_with("it has other classes or another size"));
        assert!(said(&["a", "b"], &[128, 256]).ends_with("--allow-missing 'a'"));
        assert!(said(&[], &[128, 256]).ends_with("it belongs to another network"));
    }

    #[test]
    fn freezes_row_0_of_the_position_and_segment_tables_only() {
        let table = |name: &str| format!("lxmert.embeddings.{name}.weight");
        let names = ["position_embeddings", "token_type_embeddings", "word_embeddings"].map(table);
        let var = || Var::ones((3, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let optimiser =
            AdamW::new(AdamWConfig::default(), names.iter().map(|name| (name.clone(), var())).collect()).unwrap();
        let ones = || Some(var().as_tensor().clone());
        let mut gradients = vec![ones(), None, ones()];
        freeze_padding_rows(&optimiser, &mut gradients).unwrap();
        let rows = |i: usize| gradients[i].as_ref().map(|g| g.to_vec2::<f32>().unwrap());
        assert_eq!(rows(0).unwrap(), [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]);
        assert!(rows(1).is_none());
        assert_eq!(rows(2).unwrap(), [[1.0, 1.0]; 3]);
    }
}
