//! Statements about a pair of images, true or false: NLVR2 (Suhr et al. 2019).
//!
//! A file is a list of `{"uid", "identifier": "dev-850-0-0", "img0", "img1", "sent", "label": 1}`, as LXMERT
//! distributes it, or NLVR2's own with one `{"identifier": "dev-850-0-0", "sentence", "label": "True", …}` per line,
//! whose images are `dev-850-0-img0` and `dev-850-0-img1`. A statement without `label` (in a hidden test split) is
//! predicted but not trained on.

use super::image_examples::{Collector, ImageExample};
use super::rows::{Row, for_each_row};
use super::splits::Split;
use crate::Result;
use serde::Deserialize;
use std::path::Path;

/// One statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// NLVR2's id, `split-set-pair-sentence`.
    pub identifier: String,
    /// The left and the right image, as indices into the file's images.
    pub images: [usize; 2],
    /// The sentence.
    pub sentence: String,
    /// Whether it is true, if known.
    pub label: Option<bool>,
}

#[derive(Deserialize)]
struct Entry {
    identifier: String,
    #[serde(default)]
    img0: Option<String>,
    #[serde(default)]
    img1: Option<String>,
    #[serde(alias = "sentence")]
    sent: String,
    #[serde(default)]
    label: Option<Label>,
}

impl Row for Entry {
    const FORM: &'static str =
        r#"{"identifier": "dev-850-0-0", "img0": "dev-850-0-img0", "img1": "dev-850-0-img1", "sent": "…", "label": 1}"#;
}

impl Entry {
    /// The two images' names. NLVR2's own files do not state them; they follow from `split-set-pair`.
    fn images(&self) -> [String; 2] {
        let pair = self.identifier.rsplit_once('-').map_or(self.identifier.as_str(), |(pair, _)| pair);
        let name = |given: &Option<String>, side| given.clone().unwrap_or_else(|| format!("{pair}-img{side}"));
        [name(&self.img0, 0), name(&self.img1, 1)]
    }
}

/// 0, 1, true, false or NLVR2's own "True", "False".
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Label {
    Bool(bool),
    Number(i64),
    Word(String),
}

impl Label {
    fn value(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            Self::Number(0) => Some(false),
            Self::Number(1) => Some(true),
            Self::Word(word) if word.eq_ignore_ascii_case("true") => Some(true),
            Self::Word(word) if word.eq_ignore_ascii_case("false") => Some(false),
            Self::Number(_) | Self::Word(_) => None,
        }
    }
}

impl ImageExample<2> for Statement {
    const NOUN: &'static str = "statement";

    /// Reads a file of statements.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, is not such a list, is empty, or has an invalid row, which the
    /// error names.
    fn read(path: &Path, _: Split) -> Result<(Vec<String>, Vec<Self>)> {
        let mut found = Collector::default();
        for_each_row(path, |_, _, entry: Entry| {
            let [left, right] = entry.images();
            let Entry { identifier, sent: sentence, label, .. } = entry;
            let label = match label {
                None => None,
                Some(label) => Some(
                    label
                        .value()
                        .ok_or_else(|| format!("statement {identifier}: {label:?} is neither true nor false"))?,
                ),
            };
            found.push(identifier.clone(), [&left, &right], |images| Self { identifier, images, sentence, label })
        })?;
        found.finish(path)
    }

    fn images(&self) -> [usize; 2] {
        self.images
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

    fn read(text: &str) -> Result<(Vec<String>, Vec<Statement>)> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Statement::read(file.path(), Split::Val)
    }

    #[test]
    fn reads_nlvr2_files() {
        let (images, s) = read(
            r#"[{"identifier": "train-10171-0-0", "img0": "train-10171-0-img0", "img1": "train-10171-0-img1", "label": 0, "sent": "An image shows one leather pencil case.", "uid": "nlvr2_train_0"},
                {"identifier": "train-10171-1-0", "img0": "train-10171-0-img1", "img1": "b", "label": "True", "sent": "x"},
                {"identifier": "test1-1-0-0", "img0": "b", "img1": "b", "sent": "x"}]"#,
        )
        .unwrap();
        assert_eq!(images, ["train-10171-0-img0", "train-10171-0-img1", "b"]);
        assert_eq!(s.iter().map(|s| s.label).collect::<Vec<_>>(), [Some(false), Some(true), None]);
        assert_eq!(s[1].images, [1, 2]);
    }

    #[test]
    fn reads_nlvr2s_own_lines() {
        let (images, s) = read(
            r#"{"sentence": "Two.", "validation": {"1": "True"}, "label": "False", "identifier": "train-0-3-1", "left_url": "u"}
{"sentence": "Three.", "identifier": "train-0-3-2", "directory": 1}"#,
        )
        .unwrap();
        assert_eq!(images, ["train-0-3-img0", "train-0-3-img1"]);
        assert_eq!(s.iter().map(|s| (s.images, s.label)).collect::<Vec<_>>(), [([0, 1], Some(false)), ([0, 1], None)]);
    }

    #[test]
    fn errors_name_the_invalid_row() {
        let error = |text: &str| read(text).unwrap_err().to_string();
        let first = r#"{"identifier": "a", "img0": "x", "img1": "y", "sent": "s", "label": 1}"#;
        assert!(error(&format!("[{first}, {first}]")).contains("row 2: statement a appears twice"));
        let second = first.replace("\"a\"", "\"b\"").replace(": 1", ": 2");
        assert!(error(&format!("[{first}, {second}]")).contains("row 2: statement b: Number(2) is neither"));
        assert!(error(&format!("[{first}, {{}}]")).contains("row 2: it lacks identifier"));
        assert!(error("[]").contains("no statement"));
    }
}
