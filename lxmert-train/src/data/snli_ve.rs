//! Sentences that a photo entails, contradicts or leaves open: SNLI-VE (Xie et al. 2019).
//!
//! A file is JSON lines, `snli_ve_{train,dev,test}.jsonl`: `Flickr30K_ID` (in some releases `Flikr30kID`), the photo's
//! name with or without `.jpg`; `sentence2`, the hypothesis; `gold_label`, `-` if the annotators did not agree;
//! `pairID`. Other fields are ignored. An example without a label is predicted, but neither trained on nor measured.

use super::image_examples::{Collector, ImageExample};
use super::rows::{Row, for_each_row};
use super::splits::Split;
use crate::Result;
use serde::Deserialize;
use std::path::Path;

/// The labels, by class.
pub const LABELS: [&str; 3] = ["contradiction", "neutral", "entailment"];

/// One hypothesis about one photo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hypothesis {
    /// SNLI's id; may be empty.
    pub pair_id: String,
    /// The photo, as an index into the file's names.
    pub image: usize,
    /// The sentence.
    pub sentence: String,
    /// Its class in [`LABELS`], if it has one.
    pub label: Option<u32>,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "Flickr30K_ID", alias = "Flickr30kID")]
    flickr: Option<Id>,
    #[serde(rename = "Flikr30kID", alias = "Flikr30K_ID")]
    flikr: Option<Id>,
    #[serde(rename = "pairID", default)]
    pair_id: String,
    sentence2: String,
    #[serde(default)]
    gold_label: Option<String>,
}

impl Row for Line {
    const FORM: &'static str = r#"{"Flickr30K_ID": "2407214681", "pairID": "2407214681.jpg#0r1c", "sentence2": "…", "gold_label": "entailment"}"#;
}

/// An image id as text or as a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    Text(String),
    Number(u64),
}

/// Splits a line into the image name and the rest.
fn hypothesis(line: Line) -> std::result::Result<(String, Hypothesis), String> {
    let image = match line.flickr.or(line.flikr) {
        Some(Id::Text(name)) if !name.is_empty() => name,
        Some(Id::Number(number)) => number.to_string(),
        _ => return Err("it names no photo: Flickr30K_ID or Flikr30kID is missing".into()),
    };
    let label = match line.gold_label.as_deref() {
        None | Some("-") => None,
        Some(label) => Some(
            LABELS
                .iter()
                .position(|known| *known == label)
                .ok_or_else(|| format!("gold_label '{label}' is not one of {}, -", LABELS.join(", ")))?
                as u32,
        ),
    };
    Ok((image, Hypothesis { pair_id: line.pair_id, image: 0, sentence: line.sentence2, label }))
}

impl ImageExample<1> for Hypothesis {
    const NOUN: &'static str = "sentence";

    fn read(path: &Path, _: Split) -> Result<(Vec<String>, Vec<Self>)> {
        let mut found = Collector::default();
        for_each_row(path, |row, _, line| {
            let (name, hypothesis) = hypothesis(line)?;
            // Releases differ in whether `pairID` is unique, so the row serves as the id.
            found.push(row, [name.as_str()], |[image]| Self { image, ..hypothesis })
        })?;
        found.finish(path)
    }

    fn images(&self) -> [usize; 1] {
        [self.image]
    }

    fn sentence(&self) -> &str {
        &self.sentence
    }

    fn labelled(&self) -> bool {
        self.label.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(Vec<String>, Vec<Hypothesis>)> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Hypothesis::read(file.path(), Split::Train)
    }

    #[test]
    fn reads_both_spellings_of_the_photo_and_dash_as_no_label() {
        // Lines from the two releases, other fields shortened.
        let text = r#"{"annotator_labels": ["contradiction"], "captionID": "2407214681.jpg#0", "gold_label": "contradiction", "pairID": "2407214681.jpg#0r1c", "sentence1": "Two women.", "sentence1_parse": "(ROOT)", "sentence2": "Men are fighting.", "Flickr30K_ID": "2407214681"}
{"Flikr30kID": "2407214681.jpg", "gold_label": "neutral", "pairID": "2407214681.jpg#0r1n", "sentence2": "Two sisters hug."}

{"Flikr30kID": "3.jpg", "gold_label": "-", "pairID": "b", "sentence2": "Women hug."}
{"Flickr30K_ID": 2407214681, "gold_label": "entailment", "sentence2": "Women hug."}
{"Flickr30K_ID": "3.jpg", "Flikr30kID": "3.jpg", "sentence2": "x"}
"#;
        let (images, found) = read(text).unwrap();
        assert_eq!(images, ["2407214681", "2407214681.jpg", "3.jpg"]);
        assert_eq!(found.iter().map(|h| h.image).collect::<Vec<_>>(), [0, 1, 2, 0, 2]);
        assert_eq!(found.iter().map(|h| h.label).collect::<Vec<_>>(), [Some(0), Some(1), None, Some(2), None]);
        assert_eq!(
            (found[0].sentence.as_str(), found[0].pair_id.as_str()),
            ("Men are fighting.", "2407214681.jpg#0r1c")
        );
    }

    #[test]
    fn errors_name_the_line() {
        let error = |text: &str| read(text).unwrap_err().to_string();
        let first = r#"{"Flickr30K_ID": "1", "gold_label": "neutral", "sentence2": "x"}"#;
        assert!(
            error(&format!("{first}\n{}", first.replace("neutral", "maybe"))).contains("row 2: gold_label 'maybe'")
        );
        assert!(
            error(&format!("{first}\n{}", first.replace("Flickr30K_ID", "id"))).contains("row 2: it names no photo")
        );
        assert!(error(&first.replace("sentence2", "s")).contains("row 1: it lacks sentence2"));
        assert!(error("").contains("the file is empty"));
        assert!(error(&first.replace("\"x\"", "\" \"")).contains("row 1: sentence 1 is empty"));
        assert!(error("[1]").contains("row 1"));
    }
}
