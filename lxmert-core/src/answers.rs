//! Answer tables: which output of an answer head stands for which answer.
//!
//! The original code (airsplay/lxmert) stores a table in one of three forms; all are read here:
//!
//! | file | form |
//! | --- | --- |
//! | `all_ans.json` | `[{"ans": "zucchini", "dsets": ["vqa", …]}, …]` |
//! | `trainval_label2ans.json` | `["zucchini", …]` |
//! | `trainval_ans2label.json` | `{"zucchini": 3128, …}` |
//!
//! `data/answers/` ships LXMERT's three tables as plain lists: 9500 answers of pre-training, 3129 of VQA v2, 1842 of
//! GQA.

use crate::files::read_json;
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Distinct answers, by label.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AnswerTable {
    answers: Vec<String>,
    labels: HashMap<String, u32>,
}

/// The annotators' answers: labels with scores above 0, sorted by label.
pub type SoftLabel = Vec<(u32, f32)>;

#[derive(Deserialize)]
#[serde(untagged)]
enum TableFile {
    Plain(Vec<String>),
    WithSets(Vec<Entry>),
    ByAnswer(BTreeMap<String, usize>),
}

#[derive(Deserialize)]
struct Entry {
    ans: String,
}

impl AnswerTable {
    /// Reads a table in any of the forms above.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or has none of the forms, or the table is empty, repeats an answer
    /// or skips a label.
    pub fn read(path: &Path) -> Result<Self> {
        let value: Value = read_json(path)?;
        let file: TableFile = serde_json::from_value(value).map_err(|_| {
            Error::format(
                path,
                "not an answer table: expected a JSON list of answers, {\"answer\": label, …} or [{\"ans\": answer}, …]",
            )
        })?;
        let answers = match file {
            TableFile::Plain(answers) => answers,
            TableFile::WithSets(entries) => entries.into_iter().map(|entry| entry.ans).collect(),
            TableFile::ByAnswer(labels) => by_label(labels).map_err(|reason| Error::format(path, reason))?,
        };
        Self::new(answers).map_err(|reason| Error::format(path, reason))
    }

    /// A table of these answers, the first with label 0. The error is only the reason: there is no answer, or one is
    /// repeated.
    pub fn new(answers: Vec<String>) -> std::result::Result<Self, String> {
        if answers.is_empty() {
            return Err("no answer in the table".into());
        }
        let mut labels = HashMap::with_capacity(answers.len());
        for (label, answer) in answers.iter().enumerate() {
            if let Some(first) = labels.insert(answer.clone(), label as u32) {
                return Err(format!("answer '{answer}' has both label {first} and label {label}"));
            }
        }
        Ok(Self { answers, labels })
    }

    /// How many answers there are.
    pub fn len(&self) -> usize {
        self.answers.len()
    }

    /// Whether there are no answers.
    pub fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    /// Every answer, by label.
    pub fn answers(&self) -> &[String] {
        &self.answers
    }

    /// The answer with this label.
    pub fn answer(&self, label: u32) -> Option<&str> {
        self.answers.get(label as usize).map(String::as_str)
    }

    /// The label of an answer, exactly as written.
    pub fn label(&self, answer: &str) -> Option<u32> {
        self.labels.get(answer).copied()
    }

    /// For each answer of this (fine-tuning) table, its row in the pre-training table, matched by normalised answer
    /// (the original's `load_lxmert_qa`). Rows without a match start at zero.
    pub fn match_rows(&self, pretraining: &Self) -> Vec<Option<usize>> {
        self.answers.iter().map(|answer| pretraining.label(&normalise(answer)).map(|row| row as usize)).collect()
    }

    /// Turns scores by answer into scores by label. Answers are looked up as written or, as pre-training does,
    /// `normalised`; unknown answers are dropped. If two spellings give one label, it gets the higher score.
    pub fn soft_label<'a>(&self, scores: impl IntoIterator<Item = (&'a str, f32)>, normalised: bool) -> SoftLabel {
        let mut found: BTreeMap<u32, f32> = BTreeMap::new();
        for (answer, score) in scores {
            let label = if normalised { self.label(&normalise(answer)) } else { self.label(answer) };
            if let Some(label) = label.filter(|_| score > 0.0) {
                let best = found.entry(label).or_default();
                *best = best.max(score);
            }
        }
        found.into_iter().collect()
    }
}

fn by_label(labels: BTreeMap<String, usize>) -> std::result::Result<Vec<String>, String> {
    let count = labels.len();
    let mut answers = vec![None; count];
    for (answer, label) in labels {
        match answers.get_mut(label) {
            Some(place @ None) => *place = Some(answer),
            Some(Some(other)) => return Err(format!("answers '{other}' and '{answer}' have the same label {label}")),
            None => return Err(format!("answer '{answer}' has label {label}, but there are {count} answers")),
        }
    }
    // There are as many labels as places, each below `count` and none twice, so no place is empty.
    Ok(answers.into_iter().flatten().collect())
}

/// An answer as the pre-training table writes it (`AnswerTable.convert_ans` of airsplay/lxmert): lower case, without
/// the final full stop and the first article, numbers up to ten as digits, "gray" for "grey".
pub fn normalise(answer: &str) -> String {
    let lower = answer.to_lowercase();
    let mut text = lower.strip_suffix('.').map_or(lower.as_str(), str::trim);
    for article in ["a ", "an ", "the "] {
        text = text.strip_prefix(article).map_or(text, str::trim);
    }
    if text == "grey" { "gray" } else { digits(text).unwrap_or(text) }.to_string()
}

/// The digits of a spelt-out number from one to ten.
pub fn digits(word: &str) -> Option<&'static str> {
    Some(match word {
        "one" => "1",
        "two" => "2",
        "three" => "3",
        "four" => "4",
        "five" => "5",
        "six" => "6",
        "seven" => "7",
        "eight" => "8",
        "nine" => "9",
        "ten" => "10",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shipped(name: &str) -> AnswerTable {
        AnswerTable::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/answers").join(name)).unwrap()
    }

    fn read(text: &str) -> Result<AnswerTable> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        AnswerTable::read(file.path())
    }

    /// The counts that the original code gives for the original tables.
    #[test]
    fn matches_as_many_pretraining_answers_as_the_original() {
        let pretraining = shipped("pretraining.json");
        assert_eq!(pretraining.len(), 9500);
        assert_eq!((pretraining.answer(0), pretraining.answer(9499)), (Some("\"stop\""), Some("zucchini")));
        for (name, answers, matching) in [("vqa.json", 3129, 3124), ("gqa.json", 1842, 1736)] {
            let task = shipped(name);
            let rows = task.match_rows(&pretraining);
            assert_eq!((rows.len(), rows.iter().flatten().count()), (answers, matching), "{name}");
            for (answer, row) in task.answers().iter().zip(rows) {
                assert_eq!(
                    row.map(|row| pretraining.answers()[row].clone()).unwrap_or(normalise(answer)),
                    normalise(answer)
                );
            }
        }
    }

    #[test]
    fn normalises_answers_as_the_original_does() {
        for (answer, normal) in [
            ("A Man.", "man"),
            ("the  woman", "woman"),
            ("an a", "a"),
            ("Ten", "10"),
            ("grey", "gray"),
            ("grey cat", "grey cat"),
            ("St. ", "st. "),
            (".", ""),
            ("", ""),
            ("a the one", "1"),
        ] {
            assert_eq!(normalise(answer), normal, "{answer}");
        }
    }

    #[test]
    fn reads_the_three_forms_to_the_same_table() {
        let table = read(r#"["no", "yes"]"#).unwrap();
        assert_eq!(read(r#"{"yes": 1, "no": 0}"#).unwrap(), table);
        assert_eq!(read(r#"[{"ans": "no", "dsets": ["vqa"]}, {"ans": "yes", "dsets": []}]"#).unwrap(), table);
        for (text, reason) in [
            (r#"["yes", "yes"]"#, "'yes' has both label 0 and label 1"),
            (r#"{"yes": 2, "no": 0}"#, "label 2"),
            (r#"{"yes": 0, "no": 0}"#, "same label 0"),
            ("[]", "no answer"),
            ("3", "expected a JSON list"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn soft_labels_drop_unknown_answers_and_merge_spellings() {
        let table = AnswerTable::new(vec!["2".into(), "cat".into()]).unwrap();
        let scores = [("the cat", 0.3), ("two", 0.6), ("2", 1.0), ("dog", 1.0), ("a cat.", 0.0)];
        assert_eq!(table.soft_label(scores, true), [(0, 1.0), (1, 0.3)]);
        assert_eq!(table.soft_label(scores, false), [(0, 1.0)]);
    }
}
