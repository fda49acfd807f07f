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
use crate::ranks::{GradientSum, World, world};
use crate::readings::{Readings, Unread};
use crate::resume::{self, Position};
use crate::rounds::{Round, rounds, shares};
use crate::run_folder::{CheckpointParts, Lock, Report, RunFolder, Seconds, save_checkpoint, write_json, write_text};
use crate::start::{Found, Learner, found, name};
use crate::sums::Seen;
use crate::tasks::{Step, Task, Tested};
use crate::trainable;
use crate::{Error, Result};
use candle_core::Tensor;
use indicatif::ProgressBar;
use lxmert_core::cli;
use lxmert_core::ops;
use lxmert_core::optim::{AdamW, Schedule};
use lxmert_core::text::WordPiece;
use sha2::{Digest, Sha256};
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
        cli::prepare_precision(job.recipe.precision, &job.device)?;
        job.settings()
    };
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
        let report = world.agree(Report::read(&folder.report()))?;
        // It may have been killed before it did so itself.
        world.from_first(|| folder.remove_state().map(|()| vec![]))?;
        return Ok(Outcome::AlreadyFinished(report));
    }
    let mut trainer = Trainer::<T>::new(job, folder, &settings, found == [Found::Unfinished as u8])?;
    trainer.train().map_err(|error| out_of_memory(error, job.recipe.batch_size, job.recipe.accumulate))?;
    trainer.test().map(Outcome::Finished)
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

impl<'a, T: Task> Trainer<'a, T> {
    fn new(job: &'a Job, folder: RunFolder, settings: &RunSettings, resumes: bool) -> Result<Self> {
        let (world, recipe) = (world(), &job.recipe);
        // No rank goes on before all have read their data and weights, and rank 0 deletes nothing before.
        let Learner { text, task, optimiser, average, position } =
            world.agree(Learner::<T>::open(job, &folder, resumes))?;
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
        let mut readings = Readings::default();
        // On the CPU every number is there at once, and ranks compare theirs after every step.
        let read_at_once = job.device.is_cpu() || !world.is_alone();
        let mut at = position.batch;
        let read = |examples: Vec<T::Example>| match examples.is_empty() {
            true => Ok(None),
            false => task.read(examples).map(Some),
        };
        batches::for_each_result(rounds.into_iter(), read, |batch: Result<Option<T::Batch>>| {
            let group = at / recipe.accumulate * recipe.accumulate;
            let group_end = (group + recipe.accumulate).min(batch_count);
            let divisor = sizes[group..group_end].iter().sum();
            let compute = |batch: T::Batch| -> Result<(Unread<Seen>, Vec<Option<Tensor>>)> {
                let number = epoch * batch_count as u64 + (at + world.rank()) as u64;
                let step = Step::new(number, divisor, recipe, &job.device);
                let result = task.loss(batch, &step)?;
                Ok((result.unread, optimiser.gradients(&ops::backward(&result.loss)?)))
            };
            let computed = batch.and_then(|batch| batch.map(compute).transpose());
            let stop = lxmert_core::cli::interrupted() || job.stop_after.is_some_and(|n| position.step + 1 >= n);
            let (own, own_gradients, unread) = match computed {
                Ok(Some((unread, gradients))) => (Ok(Round { stop, ..Round::of(&gradients) }), gradients, Some(unread)),
                Ok(None) => (Ok(Round { stop, ..Round::default() }), Vec::new(), None),
                Err(error) => (Err(error), Vec::new(), None),
            };
            let round = Round::gather(world, own)?;
            readings.add(unread);
            let present: Vec<Vec<bool>> = round.iter().map(|round| round.present.clone()).collect();
            gradients.add(own_gradients, &present)?;
            at = (at + world.size()).min(group_end);
            if at < group_end {
                return Ok(true);
            }

            let mut gradients = gradients.take()?;
            if recipe.freeze_padding_rows {
                freeze_padding_rows(optimiser, &mut gradients)?;
            }
            let learning_rate = recipe.learning_rate * schedule.factor(position.step);
            let limit = (recipe.clip > 0.0).then_some(recipe.clip);
            let norm = optimiser.clipped_step(&gradients, learning_rate, limit)?;
            readings.end_step(position.step + 1, learning_rate, norm);
            // All ranks stop at the same step, whichever was asked to.
            let stop = round.iter().any(|round| round.stop);
            let ends = position.step + 1 >= schedule.total_steps || at >= batch_count;
            let logs = (position.step + 1).is_multiple_of(LOG_EVERY);
            let saves =
                stop || position.step + 1 - *saved_step >= job.save_every_steps || saved.elapsed() >= job.save_every;
            if read_at_once || ends || logs || saves {
                for (sums, norm) in readings.read(world)? {
                    for all in [&mut position.epoch_sums, &mut position.log_sums] {
                        all.add_step(&sums, norm);
                    }
                    if let Some(log) = log.as_mut() {
                        log.count(sums.examples);
                    }
                }
                bar.set_message(format!("loss {:.3}", position.log_sums.mean_loss()));
            }

            if let Some(average) = average.as_mut() {
                average.update(optimiser, position.step)?;
            }

            position.step += 1;
            position.batch = at;
            bar.inc(1);
            if logs {
                let sums = std::mem::take(&mut position.log_sums);
                if let Some(log) = log.as_mut() {
                    log.step(position.step, epoch as f64 + at as f64 / batch_count as f64, learning_rate, &sums)?;
                }
            }
            if saves {
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
        // The report marks the run as finished.
        self.folder.remove_state()?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
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
