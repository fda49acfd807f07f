//! Bottom-up attention's TSV (Anderson et al. 2018), as LXMERT reads it.
//!
//! One image a line, no header, ten columns between tabs: `img_id`, `img_h`, `img_w`, `objects_id`,
//! `objects_conf`, `attrs_id`, `attrs_conf`, `num_boxes`, `boxes`, `features`. The arrays are base64 of
//! little-endian `i64` (ids) and `f32` (the others); boxes are x0 y0 x1 y1 in pixels of the image.

use crate::{Error, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lxmert_core::boxes::normalise;
use lxmert_core::cli;
use lxmert_core::features::{Attributes, Regions, StoreDtype, StoreInfo, StoreSummary, StoreWriter};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// What the store says of the labels, which the TSV does not name.
#[derive(Debug, Clone)]
pub struct TsvOptions {
    /// How features are stored.
    pub dtype: StoreDtype,
    /// Names of the object ids; empty for numbers.
    pub object_names: Vec<String>,
    /// Names of the attribute ids; empty for numbers.
    pub attribute_names: Vec<String>,
}

impl TsvOptions {
    /// Options with the names that two files list, one a line, of synonyms the first.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn new(dtype: StoreDtype, objects: Option<&Path>, attributes: Option<&Path>) -> Result<Self> {
        let names = |path: Option<&Path>| -> Result<Vec<String>> {
            let Some(path) = path else { return Ok(Vec::new()) };
            let text = std::fs::read_to_string(path).map_err(lxmert_core::Error::io(path))?;
            Ok(text.lines().map(|line| line.split(',').next().unwrap_or(line).trim().to_string()).collect())
        };
        Ok(Self { dtype, object_names: names(objects)?, attribute_names: names(attributes)? })
    }
}

/// Copies every image of the TSV that the store does not have. The first line says how many regions
/// an image has and how long a feature is.
///
/// # Errors
/// [`Error::Row`] at the first line that is not what the format says, and when the store cannot be
/// written. What was copied until then is kept, and running again goes on from there.
pub fn import_tsv(path: &Path, output: &Path, options: &TsvOptions) -> Result<StoreSummary> {
    let lines = || File::open(path).map(BufReader::new).map_err(lxmert_core::Error::io(path));
    let fault = |row: usize, reason: String| Error::Row { path: path.to_path_buf(), row, reason };
    let mut first = String::new();
    lines()?.read_line(&mut first).map_err(lxmert_core::Error::io(path))?;
    let sample = parse_line(first.trim_end_matches(['\n', '\r'])).map_err(|reason| fault(1, reason))?.1;
    let or_numbers = |names: &[String], count: usize| match names {
        [] => (0..count).map(|i| i.to_string()).collect(),
        names => names.to_vec(),
    };
    let info = StoreInfo {
        detector: "bottom-up-attention".into(),
        settings: [("imported from".to_string(), "TSV".to_string())].into(),
        regions: sample.num_regions(),
        feature_dim: sample.feature_dim,
        dtype: options.dtype,
        label_names: or_numbers(&options.object_names, 1600),
        attribute_names: or_numbers(&options.attribute_names, 400),
    };
    let mut store = StoreWriter::open(output, info)?;
    for (i, line) in lines()?.lines().enumerate() {
        let line = line.map_err(lxmert_core::Error::io(path))?;
        if cli::interrupted() {
            store.finish()?;
            return Err(lxmert_core::Error::Interrupted.into());
        }
        if line.is_empty() || line.split('\t').next().is_some_and(|name| store.contains(name)) {
            continue;
        }
        let (name, regions) = parse_line(&line).map_err(|reason| fault(i + 1, reason))?;
        store.push(&name, &regions).map_err(|error| match error {
            lxmert_core::Error::Argument(reason) => fault(i + 1, reason),
            other => other.into(),
        })?;
    }
    Ok(store.finish()?)
}

fn parse_line(line: &str) -> std::result::Result<(String, Regions), String> {
    let columns: Vec<&str> = line.split('\t').collect();
    let &[name, height, width, objects, object_scores, attributes, attribute_scores, count, boxes, features] =
        columns.as_slice()
    else {
        return Err(format!("{} columns, not the 10 of bottom-up attention's TSV", columns.len()));
    };
    let number = |what: &str, text: &str| text.parse::<u32>().map_err(|_| format!("{what} is '{text}'"));
    let (image_width, image_height) = (number("img_w", width)?, number("img_h", height)?);
    let n = number("num_boxes", count)? as usize;
    let bytes = |what: &str, text: &str| STANDARD.decode(text).map_err(|error| format!("{what}: {error}"));
    let floats = |what: &str, text: &str, length: usize| {
        let bytes = bytes(what, text)?;
        if bytes.len() != length * 4 {
            return Err(format!("{what} has {} bytes for {n} boxes", bytes.len()));
        }
        Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect::<Vec<f32>>())
    };
    let ids = |what: &str, text: &str| {
        let bytes = bytes(what, text)?;
        if bytes.len() != n * 8 {
            return Err(format!("{what} has {} bytes for {n} boxes", bytes.len()));
        }
        let id = |b: &[u8]| u64::from_le_bytes(b.try_into().unwrap_or([255; 8]));
        bytes
            .chunks_exact(8)
            .map(|b| u32::try_from(id(b)).map_err(|_| format!("{what} holds {}", id(b) as i64)))
            .collect::<std::result::Result<Vec<u32>, String>>()
    };
    let values = bytes("features", features)?.len() / 4;
    if n == 0 || values == 0 || values % n != 0 {
        return Err(format!("{values} feature values for {n} boxes"));
    }
    let pixels = floats("boxes", boxes, n * 4)?;
    let (w, h) = (image_width as f32, image_height as f32);
    let regions = Regions {
        image_width,
        image_height,
        feature_dim: values / n,
        features: floats("features", features, values)?,
        boxes: pixels.chunks_exact(4).map(|b| normalise(&[b[0], b[1], b[2], b[3]], w, h)).collect(),
        labels: ids("objects_id", objects)?,
        scores: floats("objects_conf", object_scores, n)?,
        attributes: Some(Attributes {
            labels: ids("attrs_id", attributes)?,
            scores: floats("attrs_conf", attribute_scores, n)?,
        }),
    };
    Ok((name.to_string(), regions))
}
