//! Statements about a pair of images, true or false: NLVR2 (Suhr et al. 2019).
//!
//! A file is a list of `{"uid", "identifier": "dev-850-0-0", "img0", "img1", "sent", "label": 1}`, as LXMERT
//! distributes it. A statement without `label` (a hidden test split) is one to judge, not to learn from.

use super::image_examples::{ImageExample, ImageExamples};
use super::json_list::for_each_entry;
use crate::{Error, Result};
use serde::Deserialize;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// One statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// NLVR2's id, `split-set-pair-sentence`.
    pub identifier: String,
    /// The left and the right image, as indices into [`Statements::images`].
    pub images: [usize; 2],
    /// The sentence.
    pub sentence: String,
    /// Whether it is true, where that is known.
    pub label: Option<bool>,
}

/// The statements of a file, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statements {
    /// The file.
    pub path: PathBuf,
    /// Image names, by first appearance.
    pub images: Vec<String>,
    /// The statements.
    pub statements: Vec<Statement>,
}

#[derive(Deserialize)]
struct Entry {
    identifier: String,
    img0: String,
    img1: String,
    sent: String,
    #[serde(default)]
    label: Option<Label>,
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

impl Statements {
    /// Reads a file of statements.
    ///
    /// # Errors
    /// When the file cannot be read, is no such list, is empty, or has a row that cannot be used; the error names it.
    pub fn read(path: &Path) -> Result<Self> {
        let mut found = Self { path: path.into(), images: Vec::new(), statements: Vec::new() };
        let mut by_name: HashMap<String, usize> = HashMap::new();
        let mut identifiers = HashSet::new();
        for_each_entry(path, |_, entry: Entry| {
            let id = &entry.identifier;
            if entry.sent.trim().is_empty() || entry.img0.is_empty() || entry.img1.is_empty() {
                return Err(format!("statement '{id}' lacks its sentence or an image"));
            }
            if !identifiers.insert(entry.identifier.clone()) {
                return Err(format!("statement '{id}' was there before"));
            }
            let label = match &entry.label {
                None => None,
                Some(label) => Some(
                    label.value().ok_or_else(|| format!("statement '{id}': {label:?} is neither true nor false"))?,
                ),
            };
            let images = [entry.img0, entry.img1].map(|name| {
                *by_name.entry(name).or_insert_with_key(|name| {
                    found.images.push(name.clone());
                    found.images.len() - 1
                })
            });
            found.statements.push(Statement { identifier: entry.identifier, images, sentence: entry.sent, label });
            Ok(())
        })?;
        if found.statements.is_empty() {
            return Err(Error::file(path, "holds no statement"));
        }
        Ok(found)
    }
}

impl ImageExample<2> for Statement {
    fn read(path: &Path) -> Result<(Vec<String>, Vec<Self>)> {
        Statements::read(path).map(|file| (file.images, file.statements))
    }

    fn images(&self) -> [usize; 2] {
        self.images
    }

    fn sentence(&self) -> &str {
        &self.sentence
    }
}

/// The statements of one or more files, ready to be put before a model; two rows a statement in a batch.
pub type StatementSet = ImageExamples<Statement, 2>;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Statements> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Statements::read(file.path())
    }

    #[test]
    fn nlvr2_files_are_read() {
        let s = read(
            r#"[{"identifier": "train-10171-0-0", "img0": "train-10171-0-img0", "img1": "train-10171-0-img1", "label": 0, "sent": "An image shows one leather pencil case.", "uid": "nlvr2_train_0"},
                {"identifier": "train-10171-1-0", "img0": "train-10171-0-img1", "img1": "b", "label": "True", "sent": "x"},
                {"identifier": "test1-1-0-0", "img0": "b", "img1": "b", "sent": "x"}]"#,
        )
        .unwrap();
        assert_eq!(s.images, ["train-10171-0-img0", "train-10171-0-img1", "b"]);
        assert_eq!(s.statements.iter().map(|s| s.label).collect::<Vec<_>>(), [Some(false), Some(true), None]);
        assert_eq!(s.statements[1].images, [1, 2]);
    }

    #[test]
    fn a_bad_row_stops_with_its_number() {
        let error = |text: &str| read(text).unwrap_err().to_string();
        let first = r#"{"identifier": "a", "img0": "x", "img1": "y", "sent": "s", "label": 1}"#;
        assert!(error(&format!("[{first}, {first}]")).contains("row 2: statement 'a' was there before"));
        let second = first.replace("\"a\"", "\"b\"").replace(": 1", ": 2");
        assert!(error(&format!("[{first}, {second}]")).contains("row 2: statement 'b'"));
        assert!(error(&format!("[{first}, {{}}]")).contains("row 2: missing field"));
        assert!(error("[]").contains("no statement"));
    }
}
