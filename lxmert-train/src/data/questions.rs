//! Questions about images, with their answers: VQA v2, GQA, OK-VQA and VizWiz.
//!
//! | file | form |
//! | --- | --- |
//! | LXMERT's VQA JSON (`train.json`, `minival.json`, …) | list of `{"question_id": 1, "img_id", "sent", "label": {"yes": 1.0}, "answer_type", "question_type"}` |
//! | LXMERT's GQA JSON (`testdev.json`, …) | list of `{"question_id": "201", "img_id", "sent", "label": {"cat": 1.0}}` |
//! | GQA's own `*_balanced_questions.json` | `{"201": {"imageId", "question", "answer", "types": {"structural"}}, …}` |
//! | VQA's own `v2_OpenEnded_mscoco_*_questions.json`, and OK-VQA's | `{"questions": [{"question_id", "image_id", "question"}], …}`; the answers come from `v2_mscoco_*_annotations.json` beside it, if it exists |
//! | VizWiz's `train.json`, `val.json`, `test.json` | list of `{"image": "VizWiz_train_00000000.jpg", "question", "answers": [{"answer"}], "answer_type"}` |
//!
//! Ids may be numbers or text. A question without answers (in a test split) is predicted but not trained on.

use super::image_examples::{Collector, ImageExample};
use super::rows::{Object, Row, first_key, for_each_row, parse};
use super::splits::Split;
use super::vqa_answers::soft_scores;
use crate::{Error, Result};
use lxmert_core::files::open_text;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// The id of a question or an image; a number in VQA, text in GQA.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum QuestionId {
    /// As in VQA.
    Number(u64),
    /// As in GQA.
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

/// One question.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// Its id in the benchmark.
    pub id: QuestionId,
    /// The image, as an index into the file's images.
    pub image: usize,
    /// The question.
    pub sentence: String,
    /// Score by answer, 0..1; `None` if the answers are unknown.
    pub scores: Option<Vec<(String, f32)>>,
    /// Answer type, if the file states it: VQA's `yes/no`, `number` and `other`, GQA's `verify`, `query` and so on.
    pub answer_type: Option<String>,
    /// How the question begins ("what color is the"), if the file states it.
    pub question_type: Option<String>,
}

impl Question {
    /// The score of an answer; 0 unless an annotator gave it.
    pub fn score(&self, answer: &str) -> f32 {
        let scores = self.scores.iter().flatten();
        scores.filter(|(given, _)| given == answer).map(|(_, score)| *score).next().unwrap_or(0.0)
    }
}

/// A question in a list: LXMERT's, or VizWiz's own, where the id is the photo's name.
#[derive(Deserialize)]
struct Listed {
    #[serde(default)]
    question_id: Option<QuestionId>,
    #[serde(alias = "image", alias = "image_id")]
    img_id: QuestionId,
    #[serde(alias = "question")]
    sent: String,
    #[serde(default)]
    label: Option<BTreeMap<String, f32>>,
    #[serde(default)]
    answers: Option<Vec<OneAnswer>>,
    #[serde(default)]
    answer_type: Option<String>,
    #[serde(default)]
    question_type: Option<String>,
}

impl Row for Listed {
    const FORM: &'static str = r#"{"question_id": 1, "img_id": "…", "sent": "What is it?", "label": {"cat": 1.0}}"#;
}

/// A question in GQA's own file, where the id is the key.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Gqa {
    image_id: QuestionId,
    question: String,
    #[serde(default)]
    answer: Option<String>,
    #[serde(default)]
    types: Option<GqaTypes>,
}

#[derive(Deserialize)]
struct GqaTypes {
    structural: Option<String>,
}

impl Row for Gqa {
    const FORM: &'static str = r#"{"201": {"imageId": "1", "question": "What is it?", "answer": "cat"}}"#;
    const IN_OBJECT: Object = Object::HasRows;
}

/// A question in VQA's own file.
#[derive(Deserialize)]
struct Vqa {
    question_id: u64,
    image_id: u64,
    question: String,
}

impl Row for Vqa {
    const FORM: &'static str = r#"{"question_id": 1, "image_id": 2, "question": "What is it?"}"#;
}

/// The answers to a question in VQA's own file.
#[derive(Deserialize)]
struct Annotation {
    question_id: u64,
    answers: Vec<OneAnswer>,
    #[serde(default)]
    answer_type: Option<String>,
    #[serde(default)]
    question_type: Option<String>,
}

impl Row for Annotation {
    const FORM: &'static str = r#"{"question_id": 1, "answers": [{"answer": "cat"}, …]}"#;
}

#[derive(Deserialize)]
struct OneAnswer {
    answer: String,
}

/// The annotators' answers, as scores.
fn scores_of(answers: &[OneAnswer]) -> Vec<(String, f32)> {
    soft_scores(answers.iter().map(|answer| answer.answer.as_str()))
}

impl ImageExample<1> for Question {
    const NOUN: &'static str = "question";

    /// Reads a file in any of the forms above.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, has none of the forms, holds no question, or has an invalid row: an
    /// empty question, a repeated id, a score outside 0 to 1. The error names the row.
    fn read(path: &Path, _: Split) -> Result<(Vec<String>, Vec<Self>)> {
        let mut found = Collector::default();
        // VQA's own file is one object for the whole file; GQA's has one question per key.
        match first_key(path)?.as_deref() {
            Some("info" | "task_type" | "data_type" | "license" | "data_subtype" | "questions") => {
                read_official(path, &mut found)?;
            }
            Some(_) => for_each_row(path, |_, key, row: Gqa| {
                let scores = row.answer.map(|answer| vec![(answer, 1.0)]);
                let (id, sentence) = (QuestionId::Text(key.unwrap_or_default()), row.question);
                let answer_type = row.types.and_then(|types| types.structural);
                let question = Self { id, image: 0, sentence, scores, answer_type, question_type: None };
                push(&mut found, &row.image_id.to_string(), question)
            })?,
            None => for_each_row(path, |_, _, row: Listed| {
                let scores = match (row.label, row.answers) {
                    (Some(label), _) => Some(label.into_iter().collect()),
                    (None, answers) => answers.map(|answers| scores_of(&answers)),
                };
                let Listed { question_id, img_id, sent: sentence, answer_type, question_type, .. } = row;
                let id = question_id.unwrap_or_else(|| img_id.clone());
                push(
                    &mut found,
                    &img_id.to_string(),
                    Self { id, image: 0, sentence, scores, answer_type, question_type },
                )
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

/// Adds a question about the image called `image`.
fn push(found: &mut Collector<Question, 1>, image: &str, question: Question) -> std::result::Result<(), String> {
    if let Some((answer, score)) = question.scores.iter().flatten().find(|(_, score)| !(0.0..=1.0).contains(score)) {
        return Err(format!("question {}: the score of '{answer}' is {score}, not between 0 and 1", question.id));
    }
    found.push(question.id.clone(), [image], |[image]| Question { image, ..question })
}

/// Reads VQA's own questions, with the annotations beside them.
fn read_official(path: &Path, found: &mut Collector<Question, 1>) -> Result<()> {
    let (file, questions) = read_list::<Vqa>(path, "questions")?;
    let annotations_path = annotations_beside(path);
    let mut annotations: HashMap<u64, Annotation> = HashMap::new();
    if let Some(path) = &annotations_path {
        let (_, list) = read_list::<Annotation>(path, "annotations")?;
        annotations.extend(list.into_iter().map(|annotation| (annotation.question_id, annotation)));
    }
    // Images are numbered within COCO's own parts; test-dev2015 belongs to test2015.
    let part = file.get("data_subtype").and_then(Value::as_str);
    let part = part.ok_or_else(|| Error::file(path, "data_subtype, which names COCO's part, is missing"))?;
    let part = part.replace("-dev", "");
    for (row, question) in (1..).zip(questions) {
        let error = |reason: String| Error::row(path, row, reason);
        let id = question.question_id;
        let annotation = annotations.remove(&id);
        if let (None, Some(path)) = (&annotation, &annotations_path) {
            return Err(error(format!("question {id} has no annotation in {}", path.display())));
        }
        let image = format!("COCO_{part}_{:012}", question.image_id);
        let (scores, answer_type, question_type) = match annotation {
            Some(a) => (Some(scores_of(&a.answers)), a.answer_type, a.question_type),
            None => (None, None, None),
        };
        let (id, sentence) = (QuestionId::Number(id), question.question);
        push(found, &image, Question { id, image: 0, sentence, scores, answer_type, question_type }).map_err(error)?;
    }
    Ok(())
}

/// A file that is one object: the rows of its list `name`, and the rest of it.
fn read_list<T: Row>(path: &Path, name: &str) -> Result<(Value, Vec<T>)> {
    let mut file: Value = serde_json::from_reader(open_text(path)?).map_err(Error::json(path))?;
    let Some(Value::Array(rows)) = file.get_mut(name).map(Value::take) else {
        return Err(Error::file(path, format!("the list \"{name}\" is missing; expected rows such as {}", T::FORM)));
    };
    let read = |(row, value)| parse(value).map_err(|reason| Error::row(path, row, reason));
    let rows = (1..).zip(rows).map(read).collect::<Result<_>>()?;
    Ok((file, rows))
}

/// `v2_mscoco_train2014_annotations.json` for `v2_OpenEnded_mscoco_train2014_questions.json`, if it exists.
pub fn annotations_beside(path: &Path) -> Option<PathBuf> {
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
        assert_eq!(
            (first.id.clone(), first.answer_type.clone()),
            (QuestionId::Number(458752000), Some("other".into()))
        );
        assert_eq!((first.score("net"), first.score("mesh"), first.score("wire")), (1.0, 0.3, 0.0));
        assert_eq!(q[1].scores, Some(vec![]));
        assert_eq!((q[2].id.clone(), q[2].image), (QuestionId::Text("201640614".into()), 1));
        assert_eq!((q[3].labelled(), q.iter().filter(|question| question.labelled()).count()), (false, 3));
    }

    #[test]
    fn reads_gqas_and_vizwizs_own_files_and_numeric_ids() {
        let (images, q) = read(
            r#"{"201": {"imageId": "n1", "question": "Is it red?", "answer": "yes", "isBalanced": true, "types": {"structural": "verify"}},
                "202": {"imageId": 2, "question": "Is it blue?"}}"#,
        )
        .unwrap();
        assert_eq!(images, ["n1", "2"]);
        assert_eq!((q[0].id.clone(), q[0].score("yes")), (QuestionId::Text("201".into()), 1.0));
        assert_eq!((q[0].answer_type.as_deref(), q[1].labelled()), (Some("verify"), false));

        let answers = [["unanswerable"; 7].as_slice(), &["lamp"; 2], &["a lamp"]].concat();
        let answers: Vec<String> =
            answers.iter().map(|answer| format!(r#"{{"answer": "{answer}", "answer_confidence": "no"}}"#)).collect();
        let vizwiz = format!(
            r#"[{{"image": "VizWiz_val_00000001.jpg", "question": "What is it?", "answers": [{}],
                  "answer_type": "unanswerable", "answerable": 0}},
                {{"image": "VizWiz_test_00000002.jpg", "question": "What?"}}]"#,
            answers.join(",")
        );
        let (images, q) = read(&vizwiz).unwrap();
        assert_eq!(images, ["VizWiz_val_00000001.jpg", "VizWiz_test_00000002.jpg"]);
        assert_eq!(q[0].answer_type.as_deref(), Some("unanswerable"));
        assert!(q[0].score("unanswerable") == 1.0 && (q[0].score("lamp") - 0.9).abs() < 1e-6, "{:?}", q[0].scores);
        assert!(!q[1].labelled());

        let (images, q) =
            read(r#"[{"question_id": 1, "img_id": 1, "sent": "Is it red?", "label": {"yes": 1.0}}]"#).unwrap();
        assert_eq!((images, q.len()), (vec!["1".to_string()], 1));
    }

    #[test]
    fn official_files_give_official_scores_and_none_for_a_test_split() {
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
        assert_eq!((question.score("down"), question.answer_type.clone()), (1.0, Some("other".into())));
        assert!((question.score("at table") - 0.3).abs() < 1e-6);
        std::fs::write(&annotations, annotation(1)).unwrap();
        let error = Question::read(&questions, Split::Val).unwrap_err().to_string();
        assert!(error.contains("row 1: question 262148000 has no annotation"), "{error}");
    }

    #[test]
    fn errors_name_the_invalid_row() {
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
            (
                r#"{"question_id": 2, "img_id": "a"}"#,
                "row 2: it lacks sent; its fields are question_id, img_id; expected {",
            ),
            (r#"{"question_id": 2, "img_id": "a", "sent": 3}"#, "row 2: it has integer `3` instead of a string"),
        ] {
            assert!(with(second).contains(reason), "{}", with(second));
        }
        assert!(read("[]").unwrap_err().to_string().contains("no question"));
        assert!(read("").is_err());
    }
}
