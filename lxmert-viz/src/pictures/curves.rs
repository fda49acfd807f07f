//! A run's training curves, redrawn from its `metrics.jsonl`.

use crate::{Error, Result};
use std::path::Path;

/// Draws the curves of the run in `run` (a folder with `metrics.jsonl`, or that file) to `output`, a PNG file.
///
/// # Errors
/// [`Error::Missing`] if there is no such file or it has no record yet; [`Error::Train`] if it is damaged.
pub fn draw(run: &Path, output: &Path) -> Result<()> {
    let path = if run.is_file() { run.to_path_buf() } else { run.join("metrics.jsonl") };
    let missing = |what| Error::Missing {
        what,
        path: path.clone(),
        advice: "train with `cargo run -p lxmert-train`, or pass a run as --run".into(),
    };
    if !path.is_file() {
        return Err(missing("the run's training record"));
    }
    let records = lxmert_train::log::read_records(&path)?;
    if records.is_empty() {
        return Err(missing("any line in the run's training record"));
    }
    if let Some(folder) = output.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    }
    Ok(lxmert_train::log::curves::draw(output, &records)?)
}
