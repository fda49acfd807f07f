//! Caption files: which sentence was written for which image.
//!
//! The format is told by the content, never by the name:
//!
//! | format | looks like |
//! | --- | --- |
//! | Flickr30k, Kaggle's `results.csv` | `image_name\| comment_number\| comment`, spaces around the bars |
//! | Flickr30k / Flickr8k token files | `1000092795.jpg#0<TAB>Two young guys …` |
//! | Flickr8k, Kaggle's `captions.txt` | CSV with the header `image,caption`; quotes around captions with commas |
//! | Karpathy's `dataset_*.json` | `{"images": [{"filename", "split", "sentences": [{"raw"}]}]}` |
//! | COCO's `captions_*.json` | `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}` |
//!
//! Kaggle's Flickr30k file has one broken row, `2199200615.jpg| 4   A dog runs across the grass .`:
//! the second bar is missing. Such a row is repaired and the repair is told; every other row that
//! cannot be read is an error that names the file and the row.

use crate::data::splits::Split;
use crate::{Error, Result};
use serde::Deserialize;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The formats that [`Captions::read`] tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaptionFormat {
    /// Flickr30k's `results.csv`, separated by `|`.
    Bars,
    /// Flickr's token file: `name#number<TAB>caption`.
    Tokens,
    /// Flickr8k's `captions.txt`, a CSV of image and caption.
    Commas,
    /// Karpathy's JSON, which carries a split.
    Karpathy,
    /// COCO's own JSON.
    Coco,
}

impl std::fmt::Display for CaptionFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Bars => "Flickr30k results.csv",
            Self::Tokens => "Flickr token file",
            Self::Commas => "Flickr8k captions.txt",
            Self::Karpathy => "Karpathy JSON",
            Self::Coco => "COCO captions JSON",
        })
    }
}

/// One sentence written for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caption {
    /// The image, as an index into [`Captions::images`].
    pub image: usize,
    /// Its number among the image's captions, as the file has it.
    pub number: u32,
    /// The sentence, as written.
    pub text: String,
}

/// A caption file, read whole: images by first appearance, captions in file order.
#[derive(Debug, Clone)]
pub struct Captions {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: CaptionFormat,
    /// Image names.
    pub images: Vec<String>,
    /// The captions.
    pub captions: Vec<Caption>,
    /// The split of each image, where the file carries one (Karpathy's does; `restval` counts as
    /// training, as everyone who uses it does).
    pub splits: Option<Vec<Split>>,
    /// What was repaired, one line each.
    pub repairs: Vec<String>,
}

#[derive(Deserialize)]
struct KarpathyFile {
    images: Vec<KarpathyImage>,
}

#[derive(Deserialize)]
struct KarpathyImage {
    filename: String,
    #[serde(default)]
    split: Option<String>,
    #[serde(default)]
    sentences: Vec<KarpathySentence>,
}

#[derive(Deserialize)]
struct KarpathySentence {
    raw: String,
}

#[derive(Deserialize)]
struct CocoFile {
    images: Vec<CocoImage>,
    annotations: Vec<CocoCaption>,
}

#[derive(Deserialize)]
struct CocoImage {
    id: u64,
    file_name: String,
}

#[derive(Deserialize)]
struct CocoCaption {
    image_id: u64,
    caption: String,
}

impl Captions {
    /// Reads a caption file in any of the formats above.
    ///
    /// # Errors
    /// When the file cannot be read, is in none of the formats, holds no caption, or holds a row
    /// that cannot be understood; the error names the row.
    pub fn read(path: &Path) -> Result<Self> {
        let text = read_utf8(path)?;
        let format = sniff(path, &text)?;
        let mut captions = Self {
            path: path.to_path_buf(),
            format,
            images: Vec::new(),
            captions: Vec::new(),
            splits: None,
            repairs: Vec::new(),
        };
        let mut index = HashMap::new();
        match format {
            CaptionFormat::Bars => captions.read_bars(&text, &mut index)?,
            CaptionFormat::Tokens => captions.read_tokens(&text, &mut index)?,
            CaptionFormat::Commas => captions.read_commas(&text, &mut index)?,
            CaptionFormat::Karpathy => captions.read_karpathy(&text, &mut index)?,
            CaptionFormat::Coco => captions.read_coco(&text, &mut index)?,
        }
        if captions.captions.is_empty() {
            return Err(Error::file(path, "holds no caption"));
        }
        Ok(captions)
    }

    fn push(&mut self, index: &mut HashMap<String, usize>, image: &str, number: u32, text: &str) -> usize {
        let image = match index.get(image) {
            Some(&i) => i,
            None => {
                self.images.push(image.to_string());
                index.insert(image.to_string(), self.images.len() - 1);
                self.images.len() - 1
            }
        };
        self.captions.push(Caption { image, number, text: text.to_string() });
        image
    }

    fn read_bars(&mut self, text: &str, index: &mut HashMap<String, usize>) -> Result<()> {
        for (row, line) in numbered_lines(text) {
            if row == 1 && line.to_ascii_lowercase().contains("image_name") {
                continue;
            }
            let (fields, repaired) = bar_row(&self.path, row, line)?;
            if repaired {
                self.repairs
                    .push(format!("row {row} lacks its second '|'; read as {}| {}| {}", fields.0, fields.1, fields.2));
            }
            self.push(index, fields.0, fields.1, fields.2);
        }
        Ok(())
    }

    fn read_tokens(&mut self, text: &str, index: &mut HashMap<String, usize>) -> Result<()> {
        for (row, line) in numbered_lines(text) {
            let parts = line.split_once('\t').and_then(|(key, caption)| {
                let (image, number) = key.rsplit_once('#')?;
                Some((image.trim(), number.trim().parse::<u32>().ok()?, caption.trim()))
            });
            let Some((image, number, caption)) = parts else {
                return Err(Error::row(
                    &self.path,
                    row,
                    format!("expected 'image#number<TAB>caption', found '{}'", short(line)),
                ));
            };
            if image.is_empty() || caption.is_empty() {
                return Err(Error::row(&self.path, row, "the image name or the caption is empty"));
            }
            self.push(index, image, number, caption);
        }
        Ok(())
    }

    fn read_commas(&mut self, text: &str, index: &mut HashMap<String, usize>) -> Result<()> {
        let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
        let mut counts: HashMap<usize, u32> = HashMap::new();
        for record in reader.records() {
            let record = record.map_err(|e| {
                let row = e.position().map_or(0, |p| p.line() as usize);
                Error::row(&self.path, row, e.to_string())
            })?;
            let row = record.position().map_or(0, |p| p.line() as usize);
            if row == 1 && record.get(0).is_some_and(|f| f.trim().eq_ignore_ascii_case("image")) {
                continue;
            }
            let (Some(image), Some(first)) = (record.get(0).map(str::trim), record.get(1)) else {
                return Err(Error::row(&self.path, row, "expected 'image,caption'"));
            };
            // A caption with a bare comma was written without quotes: the rest belongs to it.
            let rest: Vec<&str> = std::iter::once(first).chain(record.iter().skip(2)).collect();
            let caption = rest.join(",");
            let caption = caption.trim();
            if image.is_empty() || caption.is_empty() {
                return Err(Error::row(&self.path, row, "the image name or the caption is empty"));
            }
            let image = self.push(index, image, 0, caption);
            let number = counts.entry(image).or_insert(0);
            if let Some(last) = self.captions.last_mut() {
                last.number = *number;
            }
            *number += 1;
        }
        Ok(())
    }

    fn read_karpathy(&mut self, text: &str, index: &mut HashMap<String, usize>) -> Result<()> {
        let file: KarpathyFile = serde_json::from_str(text).map_err(Error::json(&self.path))?;
        let mut splits = Vec::new();
        let mut has_split = false;
        for (i, image) in file.images.iter().enumerate() {
            if image.sentences.is_empty() {
                continue;
            }
            if index.contains_key(&image.filename) {
                return Err(Error::file(&self.path, format!("images[{i}]: '{}' appears twice", image.filename)));
            }
            splits.push(match image.split.as_deref() {
                None => Split::Train,
                Some(name) => {
                    has_split = true;
                    Split::from_name(name).ok_or_else(|| {
                        Error::file(
                            &self.path,
                            format!("images[{i}]: split '{name}' is not one of train, restval, val, test"),
                        )
                    })?
                }
            });
            for (number, sentence) in image.sentences.iter().enumerate() {
                let caption = sentence.raw.trim();
                if caption.is_empty() {
                    return Err(Error::file(&self.path, format!("images[{i}].sentences[{number}] is empty")));
                }
                self.push(index, &image.filename, number as u32, caption);
            }
        }
        self.splits = has_split.then_some(splits);
        Ok(())
    }

    fn read_coco(&mut self, text: &str, index: &mut HashMap<String, usize>) -> Result<()> {
        let file: CocoFile = serde_json::from_str(text).map_err(Error::json(&self.path))?;
        let names: HashMap<u64, &str> = file.images.iter().map(|image| (image.id, image.file_name.as_str())).collect();
        let mut counts: HashMap<u64, u32> = HashMap::new();
        for (i, annotation) in file.annotations.iter().enumerate() {
            let wrong = |reason: String| Error::file(&self.path, format!("annotations[{i}]: {reason}"));
            let id = annotation.image_id;
            let name = names.get(&id).ok_or_else(|| wrong(format!("no image has the id {id}")))?;
            let caption = annotation.caption.trim();
            if caption.is_empty() {
                return Err(wrong("the caption is empty".into()));
            }
            let number = counts.entry(id).or_insert(0);
            self.push(index, name, *number, caption);
            *number += 1;
        }
        Ok(())
    }
}

/// Reads `hard_negatives.csv` (Flickr30k's layout; each comment is a false, minimally changed
/// caption of the image): per caption of `captions`, the false sentence that belongs to it.
///
/// # Errors
/// When a row cannot be understood, or names an image or a caption number that `captions` lacks.
pub fn read_hard_negatives(path: &Path, captions: &Captions) -> Result<Vec<Option<String>>> {
    let text = read_utf8(path)?;
    let mut by_key = HashMap::new();
    for (i, caption) in captions.captions.iter().enumerate() {
        by_key.insert((captions.images[caption.image].as_str(), caption.number), i);
    }
    let mut found = vec![None; captions.captions.len()];
    for (row, line) in numbered_lines(&text) {
        if row == 1 && line.to_ascii_lowercase().contains("image_name") {
            continue;
        }
        let ((image, number, sentence), _) = bar_row(path, row, line)?;
        let Some(&i) = by_key.get(&(image, number)) else {
            return Err(Error::row(
                path,
                row,
                format!("{} has no caption {number} of '{image}'", captions.path.display()),
            ));
        };
        if captions.captions[i].text == sentence {
            return Err(Error::row(path, row, "the false caption is the same as the true one"));
        }
        found[i] = Some(sentence.to_string());
    }
    Ok(found)
}

/// `image| number| comment`; `true` when the second bar was missing and the row was repaired.
fn bar_row<'a>(path: &Path, row: usize, line: &'a str) -> Result<((&'a str, u32, &'a str), bool)> {
    let unreadable = || Error::row(path, row, format!("expected 'image| number| comment', found '{}'", short(line)));
    let (image, rest) = line.split_once('|').ok_or_else(unreadable)?;
    let rest = rest.trim();
    let (number, comment, repaired) = match rest.split_once('|') {
        Some((number, comment)) => (number.trim(), comment.trim(), false),
        None => {
            let (number, comment) = rest.split_once(char::is_whitespace).ok_or_else(unreadable)?;
            (number, comment.trim(), true)
        }
    };
    let number = number.parse().map_err(|_| unreadable())?;
    let image = image.trim();
    if image.is_empty() || comment.is_empty() {
        return Err(Error::row(path, row, "the image name or the comment is empty"));
    }
    Ok(((image, number, comment), repaired))
}

fn read_utf8(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let row = 1 + e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|&&b| b == b'\n').count();
        Error::row(path, row, "not UTF-8 text")
    })?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_string(),
        None => text,
    })
}

/// Lines that hold something, with their number from 1.
fn numbered_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(i, line)| (i + 1, line.trim())).filter(|(_, line)| !line.is_empty())
}

fn short(line: &str) -> String {
    let mut text: String = line.chars().take(60).collect();
    if text.len() < line.len() {
        text.push('…');
    }
    text
}

fn sniff(path: &Path, text: &str) -> Result<CaptionFormat> {
    let Some((_, first)) = numbered_lines(text).next() else {
        return Err(Error::file(path, "the file is empty; write or fetch it again"));
    };
    if first.starts_with('{') {
        // Within a caption the quotes would be escaped, so this is a key.
        let coco = text.contains("\"annotations\"");
        return Ok(if coco { CaptionFormat::Coco } else { CaptionFormat::Karpathy });
    }
    if first.split_once('\t').is_some_and(|(key, _)| key.contains('#')) {
        return Ok(CaptionFormat::Tokens);
    }
    if first.contains('|') {
        return Ok(CaptionFormat::Bars);
    }
    if first.contains(',') {
        return Ok(CaptionFormat::Commas);
    }
    Err(Error::file(
        path,
        format!(
            "not a caption file that is known here: expected Flickr30k's 'image_name| comment_number| comment', \
             'image#0<TAB>caption', Flickr8k's 'image,caption', Karpathy's or COCO's JSON, found '{}'",
            short(first)
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Captions> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Captions::read(file.path())
    }

    #[test]
    fn flickr30k_s_broken_row_is_repaired_and_told() {
        let c = read(
            "image_name| comment_number| comment\r\n2199200615.jpg| 3| A dog .\r\n2199200615.jpg| 4   A dog runs across the grass .\r\n",
        )
        .unwrap();
        assert_eq!(c.format, CaptionFormat::Bars);
        assert_eq!(c.images, ["2199200615.jpg"]);
        assert_eq!(c.captions[1], Caption { image: 0, number: 4, text: "A dog runs across the grass .".into() });
        assert_eq!(c.repairs.len(), 1);
        assert!(c.repairs[0].starts_with("row 3 "), "{:?}", c.repairs);
    }

    #[test]
    fn a_bad_row_is_named() {
        let error = read("image_name| comment_number| comment\na.jpg| 0| x\na.jpg| one| y\n").unwrap_err().to_string();
        assert!(error.contains("row 3") && error.contains("a.jpg| one| y"), "{error}");
        let error = read("image_name| comment_number| comment\na.jpg| 0|   \n").unwrap_err().to_string();
        assert!(error.contains("row 2") && error.contains("empty"), "{error}");
    }

    #[test]
    fn flickr8k_captions_keep_commas_and_quotes() {
        let c = read(
            "image,caption\na.jpg,\"A dog, running, says \"\"woof\"\" .\"\na.jpg,A cat .\nb.jpg,Two, bare commas\n",
        )
        .unwrap();
        assert_eq!(c.format, CaptionFormat::Commas);
        assert_eq!(c.captions[0].text, "A dog, running, says \"woof\" .");
        assert_eq!((c.captions[1].image, c.captions[1].number), (0, 1));
        assert_eq!((c.captions[2].text.as_str(), c.captions[2].number), ("Two, bare commas", 0));
    }

    #[test]
    fn karpathy_json_carries_its_split_and_restval_trains() {
        let c = read(
            r#"{"dataset":"x","images":[
              {"filename":"a.jpg","split":"restval","sentences":[{"raw":"one","tokens":["one"]},{"raw":"two"}]},
              {"filename":"b.jpg","split":"test","sentences":[{"raw":"three"}]}]}"#,
        )
        .unwrap();
        assert_eq!(c.splits, Some(vec![Split::Train, Split::Test]));
        assert_eq!(c.captions.len(), 3);
        let error = read(r#"{"images":[{"filename":"a","split":"dev","sentences":[{"raw":"x"}]}]}"#).unwrap_err();
        assert!(error.to_string().contains("'dev'"), "{error}");
    }

    #[test]
    fn coco_json_names_images_by_number() {
        let c = read(
            r#"{"info": {}, "images": [{"id": 9, "file_name": "COCO_val2014_000000000009.jpg", "height": 480}, {"id": 7, "file_name": "b.jpg"}],
                "annotations": [{"image_id": 7, "id": 1, "caption": "A dog.\n"}, {"image_id": 9, "id": 2, "caption": "A cat."},
                                {"image_id": 7, "id": 3, "caption": "The \"annotations\"."}]}"#,
        )
        .unwrap();
        assert_eq!(
            (c.format, c.images.clone()),
            (CaptionFormat::Coco, vec!["b.jpg".into(), "COCO_val2014_000000000009.jpg".into()])
        );
        assert_eq!(c.captions[2], Caption { image: 0, number: 1, text: "The \"annotations\".".into() });
        let error =
            read(r#"{"images": [], "annotations": [{"image_id": 7, "caption": "x"}]}"#).unwrap_err().to_string();
        assert!(error.contains("annotations[0]: no image has the id 7"), "{error}");
    }

    #[test]
    fn token_files_are_read() {
        let c = read("1000.jpg#0\tTwo guys .\n1000.jpg#1\tTwo men .\n").unwrap();
        assert_eq!(c.format, CaptionFormat::Tokens);
        assert_eq!(c.captions[1].number, 1);
    }

    #[test]
    fn other_text_is_refused_with_the_known_formats_named() {
        let error = read("hello world\n").unwrap_err().to_string();
        assert!(error.contains("image_name| comment_number| comment") && error.contains("hello world"), "{error}");
        assert!(read("").is_err());
        assert!(read("image_name| comment_number| comment\n").unwrap_err().to_string().contains("no caption"));
    }

    #[test]
    fn hard_negatives_find_their_captions() {
        let c = read("a.jpg| 0| a red dog\na.jpg| 1| a dog\n").unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "image_name| comment_number| comment\na.jpg| 0| a blue dog\n").unwrap();
        assert_eq!(read_hard_negatives(file.path(), &c).unwrap(), [Some("a blue dog".to_string()), None]);
        std::fs::write(file.path(), "a.jpg| 7| a blue dog\n").unwrap();
        assert!(read_hard_negatives(file.path(), &c).unwrap_err().to_string().contains("no caption 7"));
        std::fs::write(file.path(), "a.jpg| 1| a dog\n").unwrap();
        assert!(read_hard_negatives(file.path(), &c).is_err());
    }
}
