//! Bottom-up attention's TSV (Anderson et al. 2018), in its own form and in LXMERT's.
//!
//! One image per line, columns separated by tabs, with or without a header. LXMERT's form has ten columns: `img_id`,
//! `img_h`, `img_w`, `objects_id`, `objects_conf`, `attrs_id`, `attrs_conf`, `num_boxes`, `boxes`, `features`.
//! Anderson's has six: `image_id`, `image_w`, `image_h`, `num_boxes`, `boxes`, `features`; its regions get the label
//! `region` and score 1.
//! The arrays are base64 of little-endian `i64` (ids) and `f32` (the others), also with Python 3's `b'…'` around them.
//! Boxes are x0 y0 x1 y1 in pixels of the image. Images may have any number of boxes.

use super::copy;
use crate::detector::visual_genome;
use crate::pipeline::ExtractSummary;
use crate::{Error, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lxmert_core::boxes::normalise;
use lxmert_core::features::{Attributes, FeatureStore, Part, Regions, StoreDtype, StoreInfo};
use lxmert_core::files::{open_text, read_text};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// Maximum line length in bytes: 100 regions of 2048 numbers take 1.1 million.
const LONGEST_LINE: u64 = 1 << 26;

/// Store settings that the TSV does not contain.
#[derive(Debug, Clone)]
pub struct TsvOptions {
    /// How to store features.
    pub dtype: StoreDtype,
    /// Names of the object ids.
    pub object_names: Vec<String>,
    /// Names of the attribute ids.
    pub attribute_names: Vec<String>,
    /// The block of the rows that is imported; none for all.
    pub part: Option<Part>,
}

impl TsvOptions {
    /// Options with names from two files, one per line; of synonyms, the first. Without a file: the 1600 objects and 400
    /// attributes of Visual Genome, on which bottom-up attention was trained.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read.
    pub fn new(dtype: StoreDtype, objects: Option<&Path>, attributes: Option<&Path>) -> Result<Self> {
        let names = |path: Option<&Path>, default: &str| -> Result<Vec<String>> {
            let text = path.map_or_else(|| Ok(default.to_string()), read_text)?;
            Ok(visual_genome::names(&text).collect())
        };
        let (object_names, attribute_names) =
            (names(objects, visual_genome::OBJECTS)?, names(attributes, visual_genome::ATTRIBUTES)?);
        Ok(Self { dtype, object_names, attribute_names, part: None })
    }
}

/// Copies every image of the TSV that the store does not have yet. A store can take images from several files; it has
/// room for as many regions as its largest image, so each part of an import reads the whole file first. Rows that do
/// not follow the format are listed in `failures.csv`, skipped, and tried again by the next run.
///
/// # Errors
/// [`Error::Input`] if no row can be read, or the store cannot be written. Images copied before the error are kept.
pub fn import_tsv(path: &Path, output: &Path, options: &TsvOptions, show_progress: bool) -> Result<ExtractSummary> {
    let found = survey(path)?;
    let has_labels = found.sample.attributes.is_some();
    let output = match options.part {
        Some(part) => part.begin(output, &found.names.iter().map(String::as_str).collect::<Vec<_>>())?,
        None => output.to_path_buf(),
    };
    let there = FeatureStore::open(&output).map_or(0, |store| store.info().regions);
    let info = StoreInfo {
        detector: "bottom-up-attention".into(),
        settings: [("imported from".to_string(), "TSV".to_string())].into(),
        regions: found.most_boxes.max(there),
        feature_dim: found.sample.feature_dim,
        dtype: options.dtype,
        label_names: if has_labels { options.object_names.clone() } else { vec!["region".into()] },
        attribute_names: if has_labels { options.attribute_names.clone() } else { Vec::new() },
    };
    let block = options.part.map_or(0..found.names.len(), |part| part.block(found.names.len()));
    let records = Rows::open(path)?.take(block.end).skip(block.start).map(|row| {
        let row = row?;
        Ok((row.name(), row))
    });
    let before = found.names[..block.start].iter().cloned().collect();
    let read = |row: Row| row.regions().map_err(|reason| format!("row {}: {reason}", row.number));
    copy(&output, info, (block.len(), before, records), read, show_progress)
}

/// Findings of a first pass over the file.
struct Survey {
    /// The rows' images.
    names: Vec<String>,
    most_boxes: usize,
    /// The first readable row.
    sample: Regions,
}

/// Reads every row's number of boxes; decodes only the first good row.
fn survey(path: &Path) -> Result<Survey> {
    let (mut names, mut most_boxes) = (Vec::new(), 0);
    let (mut sample, mut first_fault) = (None, None);
    for row in Rows::open(path)? {
        let row = row?;
        names.push(row.name());
        if sample.is_none() {
            match row.regions() {
                Ok(regions) => sample = Some(regions),
                Err(reason) => {
                    first_fault.get_or_insert_with(|| format!("row {}: {reason}", row.number));
                }
            }
        }
        // A damaged number must not enlarge the store's rows.
        let boxes = row.line.as_ref().ok().and_then(|line| Columns::of(line).ok()?.whole_boxes());
        most_boxes = most_boxes.max(boxes.unwrap_or(0));
    }
    let Some(sample) = sample else {
        let first = first_fault.unwrap_or_else(|| "the file is empty".into());
        let rows = names.len();
        return Err(Error::input(path, format!("none of its {rows} rows can be read; the first: {first}")));
    };
    Ok(Survey { names, most_boxes: most_boxes.max(sample.num_regions()), sample })
}

/// A line of the file.
struct Row {
    /// Counted from 1.
    number: usize,
    line: std::result::Result<String, String>,
}

impl Row {
    /// The image's name, or which row it is where it has none.
    fn name(&self) -> String {
        match self.line.as_deref().unwrap_or_default().split('\t').next().unwrap_or_default() {
            "" => format!("row {}", self.number),
            name => name.to_string(),
        }
    }

    fn regions(&self) -> std::result::Result<Regions, String> {
        Columns::of(self.line.as_ref().map_err(Clone::clone)?)?.regions()
    }
}

/// The lines of a file, except the header and empty ones.
struct Rows<'a> {
    path: &'a Path,
    reader: BufReader<File>,
    number: usize,
}

impl<'a> Rows<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        Ok(Self { path, reader: open_text(path)?, number: 0 })
    }

    /// The next line without its end; a line longer than [`LONGEST_LINE`] is skipped.
    fn next_line(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        if self.reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        if line.len() as u64 == LONGEST_LINE && !line.ends_with(b"\n") {
            self.reader.skip_until(b'\n')?;
        }
        while line.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
            line.pop();
        }
        Ok(Some(line))
    }
}

impl Iterator for Rows<'_> {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.number += 1;
            let line = match self.next_line() {
                Ok(line) => line?,
                Err(error) => return Some(Err(lxmert_core::Error::io(self.path)(error).into())),
            };
            let is_header = self.number == 1 && (line.starts_with(b"img_id\t") || line.starts_with(b"image_id\t"));
            if line.is_empty() || is_header {
                continue;
            }
            let line = if line.len() as u64 >= LONGEST_LINE {
                Err(format!("longer than {LONGEST_LINE} bytes"))
            } else {
                String::from_utf8(line).map_err(|_| "not text".into())
            };
            return Some(Ok(Row { number: self.number, line }));
        }
    }
}

/// The columns of a row, as text.
struct Columns<'a> {
    width: &'a str,
    height: &'a str,
    /// Ids and scores of objects and attributes; only in LXMERT's form.
    labels: Option<[&'a str; 4]>,
    count: &'a str,
    boxes: &'a str,
    features: &'a str,
}

impl<'a> Columns<'a> {
    fn of(line: &'a str) -> std::result::Result<Self, String> {
        let bytes = |text: &'a str| {
            let inner = |quote| text.strip_prefix('b')?.strip_prefix(quote)?.strip_suffix(quote);
            inner('\'').or_else(|| inner('"')).unwrap_or(text)
        };
        let columns: Vec<&str> = line.split('\t').map(bytes).collect();
        match *columns.as_slice() {
            [_, height, width, objects, object_scores, attributes, attribute_scores, count, boxes, features] => {
                let labels = Some([objects, object_scores, attributes, attribute_scores]);
                Ok(Self { width, height, labels, count, boxes, features })
            }
            [_, width, height, count, boxes, features] => {
                Ok(Self { width, height, labels: None, count, boxes, features })
            }
            _ => Err(format!("{} columns, not the 10 or 6 of bottom-up attention's TSV", columns.len())),
        }
    }

    /// The number of boxes, if the column of boxes agrees.
    fn whole_boxes(&self) -> Option<usize> {
        let count: usize = self.count.parse().ok()?;
        (self.boxes.len() == count.checked_mul(16)?.div_ceil(3).checked_mul(4)?).then_some(count)
    }

    fn regions(&self) -> std::result::Result<Regions, String> {
        let number = |what: &str, text: &str| text.parse::<u32>().map_err(|_| format!("{what} is '{text}'"));
        let (image_width, image_height) = (number("the width", self.width)?, number("the height", self.height)?);
        let n = number("num_boxes", self.count)? as usize;
        let bytes = |what: &str, text: &str| STANDARD.decode(text).map_err(|error| format!("{what}: {error}"));
        let floats = |what: &str, text: &str, width: usize| {
            let bytes = bytes(what, text)?;
            if Some(bytes.len()) != n.checked_mul(width * 4) {
                return Err(format!("{what} has {} bytes for {n} boxes", bytes.len()));
            }
            Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect::<Vec<f32>>())
        };
        let ids = |what: &str, text: &str| {
            let bytes = bytes(what, text)?;
            if Some(bytes.len()) != n.checked_mul(8) {
                return Err(format!("{what} has {} bytes for {n} boxes", bytes.len()));
            }
            let id = |b: &[u8]| u64::from_le_bytes(b.try_into().unwrap_or([255; 8]));
            bytes
                .chunks_exact(8)
                .map(|b| u32::try_from(id(b)).map_err(|_| format!("{what} holds {}", id(b) as i64)))
                .collect::<std::result::Result<Vec<u32>, String>>()
        };
        let pixels = floats("boxes", self.boxes, 4)?;
        let values = bytes("features", self.features)?.len() / 4;
        if n == 0 || values == 0 || values % n != 0 {
            return Err(format!("{values} feature values for {n} boxes"));
        }
        let (labels, scores, attributes) = match self.labels {
            None => (vec![0; n], vec![1.0; n], None),
            Some([objects, object_scores, attributes, attribute_scores]) => {
                let labels = ids("attrs_id", attributes)?;
                let attributes = Attributes { labels, scores: floats("attrs_conf", attribute_scores, 1)? };
                (ids("objects_id", objects)?, floats("objects_conf", object_scores, 1)?, Some(attributes))
            }
        };
        let (w, h) = (image_width as f32, image_height as f32);
        Ok(Regions {
            image_width,
            image_height,
            feature_dim: values / n,
            features: floats("features", self.features, values / n)?,
            boxes: pixels.chunks_exact(4).map(|b| normalise(&[b[0], b[1], b[2], b[3]], w, h)).collect(),
            labels,
            scores,
            attributes,
        })
    }
}
