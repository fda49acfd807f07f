//! Decode → detect → write, each on its own threads, for any number of images in bounded memory.
//!
//! Decoding threads read images ahead of the network and prepare its inputs. The network processes them in order, one
//! at a time, and a writing thread appends their regions to the store. Short queues connect them, so a faster stage
//! waits for a slower one. Each decoding thread has its own queue and takes every D-th image, so the order does not
//! depend on which thread is faster, and a slow image delays at most D × 2 others. The queues hold network inputs,
//! whose size the detector limits, not images.

use crate::detector::transform::NetworkInput;
use crate::failures::{self, Failure};
use crate::images;
use crate::inputs::ImageEntry;
use crate::regions::RegionSource;
use crate::{Error, Result};
use indicatif::ProgressBar;
use lxmert_core::cli;
use lxmert_core::features::{Regions, StoreSummary, StoreWriter};
use lxmert_core::progress;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Settings of the pipeline.
#[derive(Debug, Clone)]
pub struct PipelineOptions {
    /// Decoding threads, at least 1.
    pub decoders: usize,
    /// Whether to draw a progress bar.
    pub progress: bool,
}

/// The result of an extraction.
#[derive(Debug, Clone)]
pub struct ExtractSummary {
    /// Images requested.
    pub asked: usize,
    /// Images of these that were already in the store.
    pub already: usize,
    /// Images of these added now.
    pub extracted: usize,
    /// Images of these that failed, and why; also in `failures.csv`.
    pub failures: Vec<Failure>,
    /// Whether Ctrl-C ended it early.
    pub interrupted: bool,
    /// How long it took.
    pub time: Duration,
    /// The store's current state.
    pub store: StoreSummary,
}

impl ExtractSummary {
    /// A one-line summary; `done` is "extracted" or "imported".
    pub fn describe(&self, done: &str) -> String {
        let seconds = self.time.as_secs_f64();
        format!(
            "{}: {} of {} images {done} in {seconds:.1} s ({:.1} images/s), {} already there, {} failed; {} images, {} in total",
            self.store.folder.display(),
            self.extracted,
            self.asked,
            self.extracted as f64 / seconds.max(1e-9),
            self.already,
            self.failures.len(),
            self.store.images,
            indicatif::HumanBytes(self.store.bytes),
        )
    }
}

/// Inputs that wait in each decoding thread's queue.
const QUEUE: usize = 2;
/// How many images in a row the detector may fail on before it is itself considered the cause.
const MOST_REFUSED: usize = 20;

type Decoded = std::result::Result<NetworkInput, String>;

/// Extracts those of `images` that the store does not have, and finishes the store. Images that fail are listed and
/// skipped; the next run tries them again.
///
/// # Errors
/// Returns an error if the store cannot be written, or the detector fails on image after image. Images extracted before
/// the error are kept.
pub fn extract(
    images: &[ImageEntry],
    source: &dyn RegionSource,
    store: StoreWriter,
    options: &PipelineOptions,
) -> Result<ExtractSummary> {
    let started = Instant::now();
    let folder = store.folder().to_path_buf();
    let work: Vec<&ImageEntry> =
        images.iter().filter(|image| image.fault.is_some() || !store.contains(&image.name)).collect();
    let already = images.len() - work.len();
    let bar = progress_bar(work.len(), options.progress);
    let decoders = options.decoders.clamp(1, work.len().max(1));

    let (outcome, mut failures) = std::thread::scope(|scope| {
        let mut queues = Vec::with_capacity(decoders);
        for first in 0..decoders {
            let (sender, receiver) = sync_channel(QUEUE);
            queues.push(receiver);
            let mine = work.iter().skip(first).step_by(decoders);
            scope.spawn(move || decode_all(mine.copied(), source, &sender));
        }
        let (regions, incoming) = sync_channel(2 * QUEUE);
        let writer = scope.spawn(move || write_all(store, &incoming));
        let detected = detect_all(&work, queues, source, &regions, &bar);
        drop(regions);
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match (detected, written) {
            // A detector stops early if the writer is gone; the writer's error is the cause.
            (_, Err(error)) => (Err(error), Vec::new()),
            (Err(error), Ok(_)) => (Err(error), Vec::new()),
            (Ok((mut failures, interrupted)), Ok((store, extracted, mut refused))) => {
                failures.append(&mut refused);
                (Ok((store, extracted, interrupted)), failures)
            }
        }
    });
    bar.finish_and_clear();
    let (store, extracted, interrupted) = outcome?;
    failures.sort_by(|a, b| a.name.cmp(&b.name));
    failures::write(&folder, &failures)?;
    let time = started.elapsed();
    Ok(ExtractSummary { asked: images.len(), already, extracted, failures, interrupted, time, store })
}

fn decode_all<'a>(
    images: impl Iterator<Item = &'a ImageEntry>,
    source: &dyn RegionSource,
    queue: &SyncSender<Decoded>,
) {
    for image in images {
        let input = match &image.fault {
            Some(fault) => Err(Error::image(&image.path, fault)),
            None => images::decode_file(&image.path).and_then(|decoded| source.input(&decoded)),
        };
        let decoded = input.map_err(|error| match error {
            Error::Image { reason, .. } => reason,
            other => other.to_string(),
        });
        // The other end is gone if the job stops early.
        if queue.send(decoded).is_err() {
            return;
        }
    }
}

/// Runs the network over the images in order. Returns the failures and whether Ctrl-C ended it.
fn detect_all(
    work: &[&ImageEntry],
    queues: Vec<Receiver<Decoded>>,
    source: &dyn RegionSource,
    regions: &SyncSender<(String, Regions)>,
    bar: &ProgressBar,
) -> Result<(Vec<Failure>, bool)> {
    let mut failures = Vec::new();
    let mut refused = 0;
    for (i, image) in work.iter().enumerate() {
        if cli::interrupted() {
            return Ok((failures, true));
        }
        let decoded = queues[i % queues.len()].recv().unwrap_or_else(|_| Err("its decoding thread ended".into()));
        let is_decoded = decoded.is_ok();
        let found = decoded.and_then(|input| source.regions(input).map_err(|error| error.to_string()));
        let found = found.and_then(finite);
        match found {
            Ok(found) => {
                refused = 0;
                if regions.send((image.name.clone(), found)).is_err() {
                    break;
                }
            }
            Err(reason) => {
                bar.suspend(|| log::warn!("{}: {reason}", image.name));
                refused += usize::from(is_decoded);
                if refused >= MOST_REFUSED {
                    return Err(Error::Detector { count: refused, name: image.name.clone(), reason });
                }
                failures.push(Failure { name: image.name.clone(), reason });
            }
        }
        bar.inc(1);
    }
    Ok((failures, false))
}

/// Regions whose features are numbers.
fn finite(found: Regions) -> std::result::Result<Regions, String> {
    match found.features.iter().all(|value| value.is_finite()) {
        true => Ok(found),
        false => Err("the network's features are NaN or infinite; its weights may be damaged".into()),
    }
}

type Written = (StoreSummary, usize, Vec<Failure>);

/// Appends incoming regions to the store, and finishes it.
fn write_all(mut store: StoreWriter, incoming: &Receiver<(String, Regions)>) -> Result<Written> {
    let mut extracted = 0;
    let mut refused = Vec::new();
    for (name, regions) in incoming {
        match store.push(&name, &regions) {
            Ok(()) => extracted += 1,
            // NaN regions, or a name that cannot be stored: only this image fails.
            Err(lxmert_core::Error::Argument(reason)) => {
                log::warn!("{reason}");
                refused.push(Failure { name, reason });
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok((store.finish()?, extracted, refused))
}

pub(crate) fn progress_bar(length: usize, shown: bool) -> ProgressBar {
    let template = "{elapsed_precise} [{wide_bar}] {human_pos}/{human_len} images, {per_sec}, {eta} left";
    let bar = progress::bar(Some(length as u64), template, shown);
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}
