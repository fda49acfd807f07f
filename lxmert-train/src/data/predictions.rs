//! The benchmarks' prediction files, and their measures.
//!
//! | benchmark | file | measure |
//! | --- | --- | --- |
//! | VQA v2 | `[{"question_id": 1, "answer": "yes"}, …]` | soft accuracy, overall and by answer type |
//! | GQA | `[{"questionId": "1", "prediction": "yes"}, …]` | accuracy |
//! | NLVR2 | `identifier,True` a line | accuracy; consistency, the share of sentences judged right on all their pairs |

use super::questions::{Question, QuestionId};
use super::statements::Statement;
use crate::{Error, Result};
use lxmert_core::files::atomic_write;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::path::Path;

/// A mean score, and how many questions it covers.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Score {
    sum: f64,
    /// Questions.
    pub count: usize,
}

impl Score {
    /// The mean, 0..1; 0 if there are none.
    pub fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum / self.count as f64 }
    }

    fn add(&mut self, score: f64) {
        self.sum += score;
        self.count += 1;
    }
}

/// Soft accuracy as in VQA's evaluation; on GQA, where each label is one answer with score 1, it is the accuracy.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AnswerAccuracy {
    /// Over all questions whose answers are known.
    pub overall: Score,
    /// By answer type, if the file states it.
    pub by_type: BTreeMap<String, Score>,
}

/// Scores `answers`, one per question, over the questions with known answers.
pub fn answer_accuracy<'a>(
    questions: impl IntoIterator<Item = &'a Question>,
    answers: impl IntoIterator<Item = &'a str>,
) -> AnswerAccuracy {
    let mut accuracy = AnswerAccuracy::default();
    for (question, answer) in questions.into_iter().zip(answers) {
        if question.scores.is_some() {
            let score = f64::from(question.score(answer));
            accuracy.overall.add(score);
            if let Some(kind) = &question.answer_type {
                accuracy.by_type.entry(kind.clone()).or_default().add(score);
            }
        }
    }
    accuracy
}

/// Accuracy and consistency on NLVR2 (`metrics.py` of lil-lab/nlvr).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StatementAccuracy {
    /// Over statements with known truth.
    pub accuracy: Score,
    /// Over sentences: right on all pairs of images that the sentence describes.
    pub consistency: Score,
}

/// Scores `predictions`, one per statement, over the statements with known truth.
pub fn statement_accuracy<'a>(
    statements: impl IntoIterator<Item = &'a Statement>,
    predictions: impl IntoIterator<Item = bool>,
) -> StatementAccuracy {
    let mut found = StatementAccuracy::default();
    let mut all_right: HashMap<String, bool> = HashMap::new();
    for (statement, prediction) in statements.into_iter().zip(predictions) {
        let Some(label) = statement.label else { continue };
        let right = label == prediction;
        found.accuracy.add(f64::from(u8::from(right)));
        *all_right.entry(sentence_of(&statement.identifier)).or_insert(true) &= right;
    }
    for right in all_right.into_values() {
        found.consistency.add(f64::from(u8::from(right)));
    }
    found
}

/// `split-set-pair-sentence` without the pair: the part that the pairs of one sentence share. An identifier of another
/// form is returned unchanged.
fn sentence_of(identifier: &str) -> String {
    match identifier.split('-').collect::<Vec<_>>().as_slice() {
        [split, set, _pair, rest @ ..] if !rest.is_empty() => format!("{split}-{set}--{}", rest.join("-")),
        _ => identifier.to_string(),
    }
}

/// The prediction files of the evaluation servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerFile {
    /// VQA's.
    Vqa,
    /// GQA's.
    Gqa,
}

/// Writes a prediction file of answers.
///
/// # Errors
/// Returns an error if VQA's form is requested and an id is not a number, or the file cannot be written.
pub fn write_answers<'a>(
    path: &Path,
    form: AnswerFile,
    answers: impl IntoIterator<Item = (&'a QuestionId, &'a str)>,
) -> Result<()> {
    let entry = |(id, answer): (&QuestionId, &str)| match (form, id) {
        (AnswerFile::Gqa, id) => Ok(json!({"questionId": id.to_string(), "prediction": answer})),
        (AnswerFile::Vqa, QuestionId::Number(id)) => Ok(json!({"question_id": id, "answer": answer})),
        (AnswerFile::Vqa, QuestionId::Text(id)) => Err(Error::file(
            path,
            format!("question id '{id}' is not a number, which VQA's form needs; write GQA's form instead"),
        )),
    };
    let entries = answers.into_iter().map(entry).collect::<Result<Vec<_>>>()?;
    Ok(atomic_write(path, |file| {
        serde_json::to_writer(&mut *file, &entries)?;
        file.write_all(b"\n")
    })?)
}

/// Writes NLVR2's prediction file.
///
/// # Errors
/// Returns an error if the file cannot be written.
pub fn write_judgements<'a>(path: &Path, predictions: impl IntoIterator<Item = (&'a str, bool)>) -> Result<()> {
    Ok(atomic_write(path, |file| {
        for (identifier, prediction) in predictions {
            writeln!(file, "{identifier},{}", if prediction { "True" } else { "False" })?;
        }
        Ok(())
    })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(id: u64, scores: Option<&[(&str, f32)]>, answer_type: &str) -> Question {
        Question {
            id: QuestionId::Number(id),
            image: 0,
            sentence: "What?".into(),
            scores: scores.map(|scores| scores.iter().map(|(answer, score)| (answer.to_string(), *score)).collect()),
            answer_type: Some(answer_type.into()),
            question_type: None,
        }
    }

    #[test]
    fn soft_accuracy_counts_all_and_each_kind() {
        let questions = [
            question(1, Some(&[("yes", 1.0)]), "yes/no"),
            question(2, Some(&[("2", 0.9), ("3", 0.3)]), "number"),
            question(3, Some(&[]), "other"),
            question(4, None, "other"),
            question(5, Some(&[("no", 1.0)]), "yes/no"),
        ];
        let found = answer_accuracy(&questions, ["yes", "3", "red", "red", "yes"]);
        assert!((found.overall.mean() - 1.3 / 4.0).abs() < 1e-7 && found.overall.count == 4);
        let kinds: Vec<_> =
            found.by_type.iter().map(|(kind, score)| (kind.as_str(), score.mean() as f32, score.count)).collect();
        assert_eq!(kinds, [("number", 0.3, 1), ("other", 0.0, 1), ("yes/no", 0.5, 2)]);
    }

    #[test]
    fn a_sentence_is_consistent_if_every_pair_is_right() {
        let statement = |identifier: &str, label| Statement {
            identifier: identifier.into(),
            images: [0, 1],
            sentence: "x".into(),
            label,
        };
        let statements = [
            statement("dev-1-0-0", Some(true)),
            statement("dev-1-1-0", Some(false)),
            statement("dev-1-0-1", Some(true)),
            statement("dev-1-1-1", Some(true)),
            statement("dev-2-0-0", None),
        ];
        let found = statement_accuracy(&statements, [true, false, true, false, true]);
        assert_eq!((found.accuracy.mean(), found.accuracy.count), (0.75, 4));
        assert_eq!((found.consistency.mean(), found.consistency.count), (0.5, 2));
    }

    #[test]
    fn writes_the_servers_forms() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("predictions");
        let read = || std::fs::read_to_string(&path).unwrap();
        let (number, word) = (QuestionId::Number(7), QuestionId::Text("07".into()));
        write_answers(&path, AnswerFile::Vqa, [(&number, "yes")]).unwrap();
        assert_eq!(read(), "[{\"question_id\":7,\"answer\":\"yes\"}]\n");
        write_answers(&path, AnswerFile::Gqa, [(&number, "yes"), (&word, "no")]).unwrap();
        assert_eq!(
            read(),
            "[{\"questionId\":\"7\",\"prediction\":\"yes\"},{\"questionId\":\"07\",\"prediction\":\"no\"}]\n"
        );
        let error = write_answers(&path, AnswerFile::Vqa, [(&word, "no")]).unwrap_err().to_string();
        assert!(error.contains("'07' is not a number") && read().contains("questionId"), "{error}");
        write_judgements(&path, [("dev-1-0-0", true), ("dev-1-1-0", false)]).unwrap();
        assert_eq!(read(), "dev-1-0-0,True\ndev-1-1-0,False\n");
    }
}
