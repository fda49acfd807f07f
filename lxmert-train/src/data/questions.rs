//! Questions about images with their answers: VQA v2 and GQA.
//!
//! | file | form |
//! | --- | --- |
//! | LXMERT's VQA JSON (`train.json`, `minival.json`, …) | list of `{"question_id": 1, "img_id", "sent", "label": {"yes": 1.0}, "answer_type", "question_type"}` |
//! | LXMERT's GQA JSON (`testdev.json`, …) | list of `{"question_id": "201", "img_id", "sent", "label": {"cat": 1.0}}` |
//! | VQA's own `v2_OpenEnded_mscoco_*_questions.json` | `{"questions": [{"question_id", "image_id", "question"}], …}`; the answers are taken from `v2_mscoco_*_annotations.json` beside it, if that is there |
//!
//! A question without `label` (a test split) is one to answer, not to learn from.

use super::image_examples::{Collector, ImageExample};
use super::json_list::{first_character, for_each_entry};
use super::splits::Split;
use super::vqa_answers::soft_scores;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// A question's id, a number in VQA and a text in GQA.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum QuestionId {
    /// As VQA has it.
    Number(u64),
    /// As GQA has it.
    Text(String),
}

impl std::fmt::Display for QuestionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// VQA's kinds of answers, by which accuracy is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum AnswerType {
    /// "yes" or "no".
    #[serde(rename = "yes/no")]
    YesNo,
    /// A number.
    #[serde(rename = "number")]
    Number,
    /// Anything else.
    #[serde(rename = "other")]
    Other,
}

impl AnswerType {
    /// As VQA's files write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::YesNo => "yes/no",
            Self::Number => "number",
            Self::Other => "other",
        }
    }
}

/// One question.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// Its id in the benchmark.
    pub id: QuestionId,
    /// The image, as an index into the file's images.
    pub image: usize,
    /// The question.
    pub sentence: String,
    /// Score by answer, 0..1; `None` where the answers are not known.
    pub scores: Option<Vec<(String, f32)>>,
    /// Kind of the answer, where the file says it.
    pub answer_type: Option<AnswerType>,
    /// How the question begins ("what color is the"), where the file says it.
    pub question_type: Option<String>,
}

impl Question {
    /// The score of an answer: 0 unless somebody gave it.
    pub fn score(&self, answer: &str) -> f32 {
        let scores = self.scores.iter().flatten();
        scores.filter(|(given, _)| given == answer).map(|(_, score)| *score).next().unwrap_or(0.0)
    }
}

#[derive(Deserialize)]
struct Entry {
    question_id: QuestionId,
    img_id: String,
    sent: String,
    #[serde(default)]
    label: Option<BTreeMap<String, f32>>,
    #[serde(default)]
    answer_type: Option<AnswerType>,
    #[serde(default)]
    question_type: Option<String>,
}

#[derive(Deserialize)]
struct QuestionsFile {
    #[serde(default)]
    data_subtype: Option<String>,
    questions: Vec<OfficialQuestion>,
}

#[derive(Deserialize)]
struct OfficialQuestion {
    question_id: u64,
    image_id: u64,
    question: String,
}

#[derive(Deserialize)]
struct AnnotationsFile {
    annotations: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Annotation {
    question_id: u64,
    answers: Vec<OneAnswer>,
    #[serde(default)]
    answer_type: Option<AnswerType>,
    #[serde(default)]
    question_type: Option<String>,
}

#[derive(Deserialize)]
struct OneAnswer {
    answer: String,
}

impl ImageExample<1> for Question {
    const NOUN: &'static str = "question";

    /// Reads a file in any of the forms above.
    ///
    /// # Errors
    /// When the file cannot be read, has none of the forms, holds no question, or has a row that cannot be used: an empty
    /// question, an id that appears twice, a score that is no number from 0 to 1. The error names the row.
    fn read(path: &Path, _: Split) -> Result<(Vec<String>, Vec<Self>)> {
        let mut found = Collector::default();
        match first_character(path)? {
            Some('{') => read_official(path, &mut found)?,
            _ => for_each_entry(path, |_, entry: Entry| {
                let scores = entry.label.map(|label| label.into_iter().collect());
                let Entry { question_id: id, sent: sentence, answer_type, question_type, .. } = entry;
                push(&mut found, &entry.img_id, Self { id, image: 0, sentence, scores, answer_type, question_type })
            })?,
        }
        found.finish(path)
    }

    fn images(&self) -> [usize; 1] {
        [self.image]
    }

    fn sentence(&self) -> &str {
        &self.sentence
    }

    fn labelled(&self) -> bool {
        self.scores.is_some()
    }
}

/// Adds a question about the image that `image` names.
fn push(found: &mut Collector<Question, 1>, image: &str, question: Question) -> std::result::Result<(), String> {
    if let Some((answer, score)) = question.scores.iter().flatten().find(|(_, score)| !(0.0..=1.0).contains(score)) {
        return Err(format!("question {}: the score of '{answer}' is {score}, not between 0 and 1", question.id));
    }
    found.push(question.id.clone(), [image], |[image]| Question { image, ..question })
}

/// VQA's own questions, with the annotations beside them.
fn read_official(path: &Path, found: &mut Collector<Question, 1>) -> Result<()> {
    let file: QuestionsFile = read_json(path)?;
    let annotations_path = annotations_beside(path);
    let mut annotations: HashMap<u64, Annotation> = HashMap::new();
    if let Some(path) = &annotations_path {
        let file: AnnotationsFile = read_json(path)?;
        annotations.extend(file.annotations.into_iter().map(|a| (a.question_id, a)));
    }
    // Images are numbered within COCO's own parts; test-dev2015 is a part of test2015.
    let part = file.data_subtype.ok_or_else(|| Error::file(path, "lacks data_subtype, which names COCO's part"))?;
    let part = part.replace("-dev", "");
    for (i, question) in file.questions.into_iter().enumerate() {
        let row = |reason: String| Error::row(path, i + 1, reason);
        let id = question.question_id;
        let annotation = annotations.remove(&id);
        if let (None, Some(path)) = (&annotation, &annotations_path) {
            return Err(row(format!("question {id} has no annotation in {}", path.display())));
        }
        let image = format!("COCO_{part}_{:012}", question.image_id);
        let (scores, answer_type, question_type) = match annotation {
            Some(a) => {
                let answers = a.answers.iter().map(|answer| answer.answer.as_str());
                (Some(soft_scores(answers)), a.answer_type, a.question_type)
            }
            None => (None, None, None),
        };
        let (id, sentence) = (QuestionId::Number(id), question.question);
        push(found, &image, Question { id, image: 0, sentence, scores, answer_type, question_type }).map_err(row)?;
    }
    Ok(())
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    serde_json::from_reader(std::io::BufReader::with_capacity(1 << 20, file)).map_err(Error::json(path))
}

/// `v2_mscoco_train2014_annotations.json` for `v2_OpenEnded_mscoco_train2014_questions.json`, where it exists.
fn annotations_beside(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let beside = name.replace("OpenEnded_", "").replace("questions", "annotations");
    let beside = path.with_file_name(&beside);
    (beside != path && beside.is_file()).then_some(beside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(Vec<String>, Vec<Question>)> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Question::read(file.path(), Split::Val)
    }

    #[test]
    fn reads_the_vqa_and_gqa_files_of_lxmert() {
        let (images, q) = read(
            r#"[{"answer_type": "other", "img_id": "COCO_train2014_000000458752", "label": {"net": 1, "mesh": 0.3},
                 "question_id": 458752000, "question_type": "what is this", "sent": "What is this photo taken looking through?"},
                {"answer_type": "yes/no", "img_id": "COCO_train2014_000000458752", "label": {}, "question_id": 458752001,
                 "question_type": "is", "sent": "Is it day?"},
                {"question_id": "201640614", "img_id": "n161313", "sent": "Who is tall?", "label": {"boy": 1.0}},
                {"question_id": 7, "img_id": "n161313", "sent": "Who?"}]"#,
        )
        .unwrap();
        assert_eq!(images, ["COCO_train2014_000000458752", "n161313"]);
        let first = &q[0];
        assert_eq!((first.id.clone(), first.answer_type), (QuestionId::Number(458752000), Some(AnswerType::Other)));
        assert_eq!((first.score("net"), first.score("mesh"), first.score("wire")), (1.0, 0.3, 0.0));
        assert_eq!(q[1].scores, Some(vec![]));
        assert_eq!((q[2].id.clone(), q[2].image), (QuestionId::Text("201640614".into()), 1));
        assert_eq!((q[3].labelled(), q.iter().filter(|question| question.labelled()).count()), (false, 3));
    }

    #[test]
    fn official_files_give_the_official_scores_and_none_for_a_test_split() {
        let folder = tempfile::tempdir().unwrap();
        let questions = folder.path().join("v2_OpenEnded_mscoco_val2014_questions.json");
        std::fs::write(
            &questions,
            r#"{"info": {}, "data_subtype": "val2014", "questions": [{"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000}]}"#,
        )
        .unwrap();
        assert_eq!(Question::read(&questions, Split::Val).unwrap().1[0].scores, None);
        let answers: Vec<String> =
            ["down", "Down.", "down", "at table", "skateboard", "down", "table", "down", "down", "down"]
                .iter()
                .map(|answer| format!(r#"{{"answer": "{answer}", "answer_confidence": "yes", "answer_id": 1}}"#))
                .collect();
        let annotations = folder.path().join("v2_mscoco_val2014_annotations.json");
        let annotation = |id| {
            format!(
                r#"{{"annotations": [{{"question_type": "none of the above", "multiple_choice_answer": "down", "answers": [{}],
                     "image_id": 262148, "answer_type": "other", "question_id": {id}}}]}}"#,
                answers.join(",")
            )
        };
        std::fs::write(&annotations, annotation(262148000)).unwrap();
        let (images, read) = Question::read(&questions, Split::Val).unwrap();
        assert_eq!(images, ["COCO_val2014_000000262148"]);
        let question = &read[0];
        assert_eq!((question.score("down"), question.answer_type), (1.0, Some(AnswerType::Other)));
        assert!((question.score("at table") - 0.3).abs() < 1e-6);
        std::fs::write(&annotations, annotation(1)).unwrap();
        let error = Question::read(&questions, Split::Val).unwrap_err().to_string();
        assert!(error.contains("row 1: question 262148000 has no annotation"), "{error}");
    }

    #[test]
    fn names_the_row_that_cannot_be_used() {
        let with = |second: &str| {
            let first = r#"{"question_id": 1, "img_id": "a", "sent": "Who?", "label": {"boy": 1.0}}"#;
            read(&format!("[{first}, {second}]")).unwrap_err().to_string()
        };
        for (second, reason) in [
            (r#"{"question_id": 1, "img_id": "a", "sent": "What?"}"#, "row 2: question 1 appears twice"),
            (r#"{"question_id": 2, "img_id": "a", "sent": " "}"#, "row 2: question 2 is empty"),
            (r#"{"question_id": 2, "img_id": "", "sent": "x"}"#, "row 2: question 2 names no image"),
            (
                r#"{"question_id": 2, "img_id": "a", "sent": "What?", "label": {"b": 3}}"#,
                "row 2: question 2: the score of 'b' is 3",
            ),
            (r#"{"question_id": 2, "img_id": "a"}"#, "row 2: missing field `sent`"),
            (
                r#"{"question_id": 2, "img_id": "a", "sent": "x", "answer_type": "maybe"}"#,
                "row 2: unknown variant `maybe`",
            ),
        ] {
            assert!(with(second).contains(reason), "{}", with(second));
        }
        assert!(read("[]").unwrap_err().to_string().contains("no question"));
        assert!(read("").is_err());
    }
}
