//! Caption files: which sentence describes which image. Extraction, training and pictures all read them with this code.
//! It recognises the format by content, never by file name:
//!
//! | format | looks like |
//! | --- | --- |
//! | a table with a header | columns between `\|`, tabs, commas or semicolons; the header says which is which (below) |
//! | Flickr30k's `results.csv` | such a table: `image_name\| comment_number\| comment`, also without the header |
//! | Flickr8k's `captions.txt` | such a table: `image,caption`, also without the header |
//! | Flickr's token files | `1000092795.jpg#0<TAB>Two young guys …` |
//! | Karpathy's `dataset_*.json` | `{"images": [{"filename", "split", "sentences": [{"raw"}]}]}` |
//! | COCO's `captions_*.json` | `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}` |
//! | a JSON list, or one JSON object per line | `{"image": "a.jpg", "caption": "…"}`, with the key names of a table header |
//! | a JSON object of images | `{"a.jpg": ["…", "…"]}` |
//!
//! In a table and in JSON objects the image is in `file_name`, `image_name`, `image`, `path` or the like. The sentence
//! is in `caption`, `sentence`, `comment`, `text` or `raw`, or in several numbered ones (`caption_1`, `caption_2`); a
//! JSON list holds one sentence per entry. `comment_number` or `caption_number` and `split` are read too; other columns
//! (pandas' index, ids, URLs) are ignored. A quoted sentence may contain line breaks and the delimiter. A quotation
//! mark that never closes, or stands inside a sentence, is part of the text.
//! Flickr30k's own file has a row in which a delimiter is missing. Such a row is repaired and a warning says so; any
//! other row that cannot be read is an error that names it.

mod columns;
mod folder;
mod json;
mod table;

pub use folder::{CaptionFolder, image_folder_of};

use crate::files::read_text;
use crate::image_names::composed;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The part of the data that an image belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Weights are fitted on these.
    Train,
    /// Measured after each epoch to choose the best checkpoint.
    Val,
    /// Measured once, at the end.
    Test,
}

impl Split {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Train, Self::Val, Self::Test];

    /// Reads `train`, `restval` (taken as training, as is usual with Karpathy's files), `val` or `test`.
    ///
    /// # Errors
    /// Returns an error that lists the known names if it is another.
    pub fn from_name(name: &str) -> std::result::Result<Self, String> {
        match name {
            "train" | "restval" => Ok(Self::Train),
            "val" => Ok(Self::Val),
            "test" => Ok(Self::Test),
            _ => Err(format!("split '{name}' is not one of train, restval, val, test")),
        }
    }
}

impl std::fmt::Display for Split {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::Test => "test",
        })
    }
}

/// One sentence written for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caption {
    /// The image, as an index into [`Captions::images`].
    pub image: usize,
    /// Its number among the image's captions: as in the file, otherwise counted from 0.
    pub number: u32,
    /// The sentence.
    pub text: String,
    /// Its row in the file, counted from 1: a line of a table, an entry of a JSON list.
    pub row: usize,
}

/// A caption file, read whole. Images are in order of first appearance, captions in file order.
#[derive(Debug, Clone)]
pub struct Captions {
    /// The file.
    pub path: PathBuf,
    /// Image names.
    pub images: Vec<String>,
    /// The captions.
    pub captions: Vec<Caption>,
    /// The split of each image, if the file has one.
    pub splits: Option<Vec<Split>>,
    /// What was repaired, one line per repair.
    pub repairs: Vec<String>,
}

impl Captions {
    /// Reads a caption file in any of the formats above. Repairs are logged.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, is in none of the formats, holds no caption, or holds a row that
    /// cannot be understood; the error names the row.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        /// How many repairs are logged one by one.
        const SHOWN: usize = 3;
        let path = path.as_ref();
        let captions = Self::of_text(path, &read_text(path)?)?;
        for repair in captions.repairs.iter().take(SHOWN) {
            log::warn!("{}: {repair}", path.display());
        }
        if captions.repairs.len() > SHOWN {
            log::warn!("{}: {} more rows were repaired", path.display(), captions.repairs.len() - SHOWN);
        }
        Ok(captions)
    }

    /// Reads captions from `text`, the contents of `path`.
    ///
    /// # Errors
    /// See [`Captions::read`].
    pub fn of_text(path: &Path, text: &str) -> Result<Self> {
        let mut reader = Reader::new(path);
        match text.trim_start().chars().next() {
            None => return Err(Error::format(path, "the file is empty; write or fetch it again")),
            Some('{' | '[') => json::read(&mut reader, text)?,
            Some(_) => table::read(&mut reader, text)?,
        }
        reader.finish()
    }

    /// Whether `text` looks like a caption file; a list of paths does not.
    pub fn are_in(text: &str) -> bool {
        text.trim_start().starts_with(['{', '[']) || table::is_table(text)
    }
}

/// Collects the captions of a file.
struct Reader {
    captions: Captions,
    /// Images by composed (NFC) name.
    index: HashMap<String, usize>,
    /// Captions of each image so far.
    counts: Vec<u32>,
    splits: Vec<Option<Split>>,
}

impl Reader {
    fn new(path: &Path) -> Self {
        let path = path.to_path_buf();
        let captions = Captions { path, images: vec![], captions: vec![], splits: None, repairs: vec![] };
        Self { captions, index: HashMap::new(), counts: Vec::new(), splits: Vec::new() }
    }

    /// The number of an image, added if it is new.
    fn image(&mut self, name: &str) -> usize {
        let captions = &mut self.captions;
        *self.index.entry(composed(name).into_owned()).or_insert_with(|| {
            captions.images.push(name.to_string());
            self.counts.push(0);
            self.splits.push(None);
            captions.images.len() - 1
        })
    }

    /// Adds captions of an image. The error is only the reason; the caller adds the place.
    fn push(
        &mut self,
        row: usize,
        image: &str,
        number: Option<u32>,
        texts: &[String],
    ) -> std::result::Result<usize, String> {
        let name = image.trim();
        if name.is_empty() {
            return Err("the image name is empty".into());
        }
        let texts: Vec<String> = texts.iter().map(|text| one_line(text)).filter(|text| !text.is_empty()).collect();
        if texts.is_empty() {
            return Err("the caption is empty".into());
        }
        let image = self.image(name);
        for text in texts {
            let number = number.unwrap_or(self.counts[image]);
            self.counts[image] = self.counts[image].max(number.saturating_add(1));
            self.captions.captions.push(Caption { image, number, text, row });
        }
        Ok(image)
    }

    fn set_split(&mut self, image: usize, name: &str) -> std::result::Result<(), String> {
        let split = Split::from_name(name)?;
        match self.splits[image].replace(split) {
            Some(other) if other != split => {
                Err(format!("'{}' is in both {other} and {split}", self.captions.images[image]))
            }
            _ => Ok(()),
        }
    }

    fn finish(self) -> Result<Captions> {
        let Self { mut captions, splits, .. } = self;
        if captions.captions.is_empty() {
            return Err(Error::format(&captions.path, "the file holds no caption"));
        }
        if splits.iter().any(Option::is_some) {
            captions.splits = Some(splits.into_iter().map(|split| split.unwrap_or(Split::Train)).collect());
        }
        Ok(captions)
    }
}

/// A sentence without surrounding white space and line breaks.
fn one_line(text: &str) -> String {
    match text.trim() {
        text if text.contains(['\n', '\r']) => text.split_whitespace().collect::<Vec<_>>().join(" "),
        text => text.to_string(),
    }
}

/// The start of a line, for error messages.
fn short(line: &str) -> String {
    let mut text: String = line.chars().take(60).collect();
    if text.len() < line.len() {
        text.push('…');
    }
    text
}

/// Reads `hard_negatives.csv`, a caption file in which each comment is a false, minimally changed caption of the image.
/// Gives, per caption of `captions`, the false sentence that belongs to it.
///
/// # Errors
/// Returns an error if the file is not a caption file, or names an image or caption number that `captions` lacks.
pub fn read_hard_negatives(path: &Path, captions: &Captions) -> Result<Vec<Option<String>>> {
    let by_key: HashMap<(&str, u32), usize> = (captions.captions.iter().enumerate())
        .map(|(i, caption)| ((captions.images[caption.image].as_str(), caption.number), i))
        .collect();
    let negatives = Captions::read(path)?;
    let mut found = vec![None; captions.captions.len()];
    for Caption { image, number, text, row } in negatives.captions {
        let image = negatives.images[image].as_str();
        let Some(&i) = by_key.get(&(image, number)) else {
            let reason = format!("{} has no caption {number} of '{image}'", captions.path.display());
            return Err(Error::row(path, row, reason));
        };
        if captions.captions[i].text == text {
            return Err(Error::row(path, row, "the false caption is the same as the true one"));
        }
        found[i] = Some(text);
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
