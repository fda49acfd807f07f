//! Reading a JSON file.

use crate::{Error, Result};
use serde::de::DeserializeOwned;
use std::path::Path;

/// The keys and values of a JSON object.
pub type Fields = serde_json::Map<String, serde_json::Value>;

/// Reads a JSON file; a byte-order mark before it is skipped.
///
/// # Errors
/// [`Error::Io`] when the file cannot be read, [`Error::Json`] when it is not the JSON that `T` needs.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    serde_json::from_str(text.strip_prefix('\u{feff}').unwrap_or(&text)).map_err(Error::json(path))
}
