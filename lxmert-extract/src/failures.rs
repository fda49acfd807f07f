//! `failures.csv`: the images of the last run that could not be extracted, and why.

use lxmert_core::{Error, Result};
use std::path::{Path, PathBuf};

/// An image that could not be extracted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Where a store's failures are written.
pub fn path_in(store: &Path) -> PathBuf {
    store.join("failures.csv")
}

/// Writes `failures.csv` (columns `name`, `reason`) into a store's folder, whole or not at all;
/// without failures an older one is removed.
///
/// # Errors
/// When the folder cannot be written to.
pub fn write(store: &Path, failures: &[Failure]) -> Result<()> {
    let path = path_in(store);
    if failures.is_empty() {
        return match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&path)(error)),
            _ => Ok(()),
        };
    }
    let beside = store.join("failures.csv.unfinished");
    let write = || -> std::io::Result<()> {
        let mut table = csv::Writer::from_path(&beside)?;
        table.write_record(["name", "reason"])?;
        for failure in failures {
            table.write_record([&failure.name, &failure.reason])?;
        }
        table.into_inner().map_err(|error| std::io::Error::other(error.to_string()))?.sync_all()?;
        std::fs::rename(&beside, &path)
    };
    write().map_err(Error::io(&path))
}
