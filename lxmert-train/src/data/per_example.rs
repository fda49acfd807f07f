//! What a model says of each example, a line each, for one's own analysis.
//!
//! A file whose name ends in `.csv` is a table with a header; in it lists and objects are JSON. Any other file is JSON lines.
//! The lines are in the data's order. Every line has `image` (of statements `images`), `sentence`, `label` and `right` (empty
//! where the data has no label); the other fields are the task's.

use crate::{Error, Result};
use lxmert_core::files::atomic_write;
use serde_json::{Map, Value};
use std::io::Write as _;
use std::path::Path;

/// One example's fields, in their order.
pub type Record = Map<String, Value>;

/// A record of these fields.
pub fn record<'a>(fields: impl IntoIterator<Item = (&'a str, Value)>) -> Record {
    fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

/// The softmax of a row of logits.
pub fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - largest).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.into_iter().map(|value| value / sum).collect()
}

/// Returns an error if a file cannot be written to `path`, before hours are spent on its content.
///
/// # Errors
/// When its folder does not exist, or it is a folder.
pub fn check(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(Error::file(path, format!("there is no folder {}; make it first", folder.display())));
    }
    if path.is_dir() {
        return Err(Error::file(path, "this is a folder; name a file"));
    }
    Ok(())
}

/// Writes the records; see the module for the form.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, records: &[Record]) -> Result<()> {
    let csv = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("csv"));
    Ok(atomic_write(path, |file| match csv {
        false => records.iter().try_for_each(|record| {
            serde_json::to_writer(&mut *file, record)?;
            file.write_all(b"\n")
        }),
        true => {
            let mut table = csv::Writer::from_writer(file);
            if let Some(first) = records.first() {
                table.write_record(first.keys())?;
            }
            for record in records {
                table.write_record(record.values().map(cell))?;
            }
            table.flush()
        }
    })?)
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn writes_lines_of_json_or_a_table() {
        let folder = tempfile::tempdir().unwrap();
        let records = [
            record([("image", json!("a, b.jpg")), ("right", json!(true)), ("probabilities", json!({"x": 0.5}))]),
            record([("image", json!("c.jpg")), ("right", Value::Null), ("probabilities", json!([]))]),
        ];
        let read = |name: &str| {
            write(&folder.path().join(name), &records).unwrap();
            std::fs::read_to_string(folder.path().join(name)).unwrap()
        };
        assert_eq!(
            read("x.jsonl"),
            "{\"image\":\"a, b.jpg\",\"right\":true,\"probabilities\":{\"x\":0.5}}\n{\"image\":\"c.jpg\",\"right\":null,\"probabilities\":[]}\n"
        );
        assert_eq!(read("x.csv"), "image,right,probabilities\n\"a, b.jpg\",true,\"{\"\"x\"\":0.5}\"\nc.jpg,,[]\n");
        assert!(check(&folder.path().join("none/x.csv")).unwrap_err().to_string().contains("make it first"));
        assert!(check(folder.path()).is_err() && check(&folder.path().join("x.csv")).is_ok());
    }

    #[test]
    fn softmax_adds_up_to_one_for_large_logits_too() {
        let got = softmax(&[1000.0, 1000.0, -1000.0]);
        assert_eq!(got, [0.5, 0.5, 0.0]);
    }
}
