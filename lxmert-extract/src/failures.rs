//! `failures.csv`: the images of the last run that could not be extracted, and why.

use lxmert_core::files::atomic_write;
use lxmert_core::{Error, Result};
use std::io::Write;
use std::path::{Path, PathBuf};

/// An image that could not be extracted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// The file of a store's failures.
pub fn path_in(store: &Path) -> PathBuf {
    store.join("failures.csv")
}

/// The failures that a store's folder lists; none without the file.
///
/// # Errors
/// When the file is not such a list.
pub fn read(store: &Path) -> Result<Vec<Failure>> {
    let path = path_in(store);
    let bad = |error: csv::Error| Error::format(&path, error.to_string());
    if !path.exists() {
        return Ok(Vec::new());
    }
    let mut table = csv::Reader::from_path(&path).map_err(bad)?;
    let records = table.deserialize::<(String, String)>();
    records.map(|record| record.map(|(name, reason)| Failure { name, reason }).map_err(bad)).collect()
}

/// Writes `failures.csv` (columns `name`, `reason`) into a store's folder. Without failures it removes an older one.
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
    let mut table = csv::Writer::from_writer(Vec::new());
    let records = failures.iter().map(|failure| [failure.name.as_str(), &failure.reason]);
    let written = std::iter::once(["name", "reason"]).chain(records).try_for_each(|record| table.write_record(record));
    written.map_err(|error| Error::format(&path, error.to_string()))?;
    let bytes = table.into_inner().map_err(|error| Error::format(&path, error.to_string()))?;
    atomic_write(&path, |file| file.write_all(&bytes))
}
