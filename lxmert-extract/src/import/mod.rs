//! Imports region features that other programs made into a store.

pub mod pt;
pub mod tsv;

use crate::Result;
use crate::failures::{self, Failure};
use crate::pipeline::{ExtractSummary, progress_bar};
use lxmert_core::cli;
use lxmert_core::features::{Regions, StoreInfo, StoreWriter};
use std::collections::HashSet;
use std::path::Path;
use std::time::Instant;

/// Copies `records` (an image's name and the source of its regions), `asked` in number, into the store at `output`,
/// except those that it already has. `seen`: the names in the records before these. Records that cannot be read, or
/// that repeat an image's name, are listed in `failures.csv`, skipped, and tried again by the next run.
fn copy<R>(
    output: &Path,
    info: StoreInfo,
    (asked, mut seen, records): (usize, HashSet<String>, impl IntoIterator<Item = Result<(String, R)>>),
    read: impl Fn(R) -> std::result::Result<Regions, String>,
    show_progress: bool,
) -> Result<ExtractSummary> {
    let started = Instant::now();
    let mut store = StoreWriter::open(output, info)?;
    let bar = progress_bar(asked, show_progress);
    let (mut already, mut extracted, mut interrupted) = (0, 0, false);
    let mut failures = Vec::new();
    for record in records {
        let (name, record) = record?;
        if cli::interrupted() {
            interrupted = true;
            break;
        }
        bar.inc(1);
        let regions = if !seen.insert(name.clone()) {
            Err("another record has an image of this name".into())
        } else if store.contains(&name) {
            already += 1;
            continue;
        } else {
            read(record)
        };
        let pushed = match regions {
            Ok(regions) => match store.push(&name, &regions) {
                Err(lxmert_core::Error::Argument(reason)) => Err(reason),
                other => Ok(other?),
            },
            Err(reason) => Err(reason),
        };
        match pushed {
            Ok(()) => extracted += 1,
            Err(reason) => {
                bar.suspend(|| log::warn!("{name}: {reason}"));
                failures.push(Failure { name, reason });
            }
        }
    }
    bar.finish_and_clear();
    let store = store.finish()?;
    failures::write(output, &failures)?;
    Ok(ExtractSummary { asked, already, extracted, failures, interrupted, time: started.elapsed(), store })
}
