//! The scenes as benchmarks: questions, statements about pairs, entailment, referring expressions, and sentences for
//! pre-training, in the formats of the real benchmarks.
//!
//! | file | what |
//! | --- | --- |
//! | `questions_{train,val,test}.json` | questions with answers, in the form of VQA's files |
//! | `statements_{train,val,test}.json` | statements about two scenes of the split, in the form of NLVR2's files |
//! | `entailment_{train,val,test}.jsonl` | sentences that a scene entails, contradicts or leaves open, in the form of SNLI-VE's files |
//! | `referring.json`, `instances.json` | expressions that name an object, with their splits, and the boxes, in the form of RefCOCO's files |
//! | `pretrain_{train,val,test}.json` | captions and questions by scene, in the form of the original's pre-training files |
//! | `answers.json` | the answer table: a list in label order |
//!
//! Everything is derived from `scenes.json`.

use super::entailment::{self, EntailmentEntry, Label};
use super::questions::{self, Question, QuestionEntry};
use super::records::{Annotations, SceneRecord, split};
use super::referring;
use super::statements::{self, StatementEntry};
use super::{Object, ScenesConfig};
use lxmert_core::files::atomic_write;
use lxmert_core::procedural::splitmix64;
use lxmert_core::{Error, Result};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::io::Write as _;
use std::path::Path;

/// The splits, as in the file names.
const SPLITS: [&str; 3] = ["train", "val", "test"];

/// Writes the files above into the folder `dir`.
///
/// # Errors
/// Returns an error if a file cannot be written.
pub(crate) fn write(dir: &Path, annotations: &Annotations) -> Result<()> {
    let config = &annotations.config;
    let asked: Vec<Vec<Question>> = (annotations.scenes.iter().enumerate())
        .map(|(index, scene)| questions::ask(&scene.objects, &mut rng_of(config, index)))
        .collect();
    let splits = split(annotations.scenes.len(), config.seed);
    for (split, names) in SPLITS.into_iter().zip([splits.train, splits.val, splits.test]) {
        let names: HashSet<String> = names.into_iter().collect();
        let scenes = annotations.scenes.iter().zip(&asked).enumerate();
        let of_split: Vec<(usize, &SceneRecord, &[Question])> = scenes
            .filter(|(_, (scene, _))| names.contains(&scene.image))
            .map(|(index, (scene, asked))| (index, scene, asked.as_slice()))
            .collect();
        let file = |kind: &str| dir.join(format!("{kind}_{split}.json"));
        let all_asked = of_split.iter().flat_map(|&(index, scene, asked)| entries(index, scene, asked));
        write_list(&file("questions"), all_asked)?;
        write_list(&file("statements"), pair_entries(config, split, &of_split))?;
        write_list(&file("pretrain"), of_split.iter().map(|&(_, scene, asked)| pretraining_entry(scene, asked)))?;
        write_lines(&dir.join(format!("entailment_{split}.jsonl")), entailment_entries(config, &of_split))?;
    }
    write_list(&dir.join("answers.json"), questions::ANSWERS)?;
    write_list(&dir.join("referring.json"), reference_entries(annotations))?;
    write_lines(&dir.join("instances.json"), [referring::instances(annotations.scenes.iter())])
}

/// Whether [`write`] writes a file of this name.
pub(crate) fn is_file(name: &str) -> bool {
    let of_split = |split: &str| {
        let lists = ["questions", "statements", "pretrain"].map(|kind| format!("{kind}_{split}.json"));
        lists.iter().any(|list| list == name) || name == format!("entailment_{split}.jsonl")
    };
    ["answers.json", "referring.json", "instances.json"].contains(&name) || SPLITS.into_iter().any(of_split)
}

/// The random numbers for the questions and statements of scene `index`; its layout uses another seed.
pub(crate) fn rng_of(config: &ScenesConfig, index: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(splitmix64(config.seed ^ 0x7175_6573_7469_6f6e));
    rng.set_stream(index as u64);
    rng
}

fn entries<'a>(
    index: usize,
    scene: &'a SceneRecord,
    asked: &'a [Question],
) -> impl Iterator<Item = QuestionEntry> + 'a {
    asked.iter().enumerate().map(move |(number, question)| QuestionEntry {
        question_id: (index * 100 + number) as u64,
        img_id: scene.image.clone(),
        sent: question.sentence.clone(),
        label: [(question.answer.to_string(), 1.0)].into(),
        answer_type: question.answer_type.into(),
        question_type: question.question_type.into(),
    })
}

fn pair_entries(
    config: &ScenesConfig,
    split: &str,
    scenes: &[(usize, &SceneRecord, &[Question])],
) -> Vec<StatementEntry> {
    let objects: Vec<&[Object]> = scenes.iter().map(|(_, scene, _)| scene.objects.as_slice()).collect();
    let mut found = Vec::new();
    for (place, (index, ..)) in scenes.iter().enumerate() {
        let mut rng = rng_of(config, *index);
        for sentence in 0..statements::PER_SCENE {
            let Some(two) = statements::state(&objects, place, &mut rng) else { continue };
            let mut pairs = [(two.holds_of, 1), (two.fails_of, 0)];
            if rng.random_bool(0.5) {
                pairs.reverse();
            }
            for (number, ([left, right], label)) in pairs.into_iter().enumerate() {
                let identifier = format!("{split}-{index}-{number}-{sentence}");
                found.push(StatementEntry {
                    uid: format!("scenes_{identifier}"),
                    identifier,
                    img0: scenes[left].1.image.clone(),
                    img1: scenes[right].1.image.clone(),
                    sent: two.claim.sentence(),
                    label,
                });
            }
        }
    }
    found
}

fn entailment_entries(config: &ScenesConfig, scenes: &[(usize, &SceneRecord, &[Question])]) -> Vec<EntailmentEntry> {
    let objects: Vec<&[Object]> = scenes.iter().map(|(_, scene, _)| scene.objects.as_slice()).collect();
    let mut found = Vec::new();
    for (place, (index, ..)) in scenes.iter().enumerate() {
        let mut rng = rng_of(config, *index);
        for sentence in 0..entailment::PER_SCENE {
            let Some((hypothesis, places)) = entailment::state(&objects, place, &mut rng) else { continue };
            let labels = [(Label::Contradiction, 'c'), (Label::Neutral, 'n'), (Label::Entailment, 'e')];
            for (place, (label, letter)) in places.into_iter().zip(labels) {
                let image = scenes[place].1.image.trim_end_matches(".png");
                found.push(EntailmentEntry {
                    image: image.into(),
                    pair_id: format!("{index:05}.png#{sentence}{letter}"),
                    sentence2: hypothesis.sentence(),
                    gold_label: label,
                });
            }
        }
    }
    found
}

fn reference_entries(annotations: &Annotations) -> Vec<referring::ReferenceEntry> {
    let config = &annotations.config;
    let splits = split(annotations.scenes.len(), config.seed);
    let mut split_of = HashMap::new();
    for (split, names) in SPLITS.into_iter().zip([splits.train, splits.val, splits.test]) {
        split_of.extend(names.into_iter().map(|name| (name, split)));
    }
    let scenes: Vec<_> = (annotations.scenes.iter().enumerate())
        .map(|(index, scene)| {
            let mut rng = rng_of(config, index);
            let of_object = |object| referring::expressions(&scene.objects, object, &mut rng);
            let expressions = (0..scene.objects.len()).map(of_object).collect();
            let split = split_of.get(&scene.image).copied().unwrap_or_default(); // every scene is in one
            (scene, split, expressions)
        })
        .collect();
    referring::entries(&scenes)
}

fn pretraining_entry(scene: &SceneRecord, asked: &[Question]) -> serde_json::Value {
    let captions: Vec<&str> = scene.captions.iter().map(|caption| caption.text.as_str()).collect();
    let questions: Vec<&str> = asked.iter().map(|question| question.sentence.as_str()).collect();
    let labels: Vec<_> = asked.iter().map(|question| json!({ question.answer: 1.0 })).collect();
    json!({
        "img_id": scene.image,
        "sentf": { "captions": captions, "questions": questions },
        "labelf": { "questions": labels },
    })
}

/// Writes a JSON list, one entry per line.
fn write_list(path: &Path, entries: impl IntoIterator<Item = impl Serialize>) -> Result<()> {
    let lines = lines(path, entries)?;
    atomic_write(path, |file| write!(file, "[\n{}\n]\n", lines.join(",\n")))
}

/// Writes JSON lines.
fn write_lines(path: &Path, entries: impl IntoIterator<Item = impl Serialize>) -> Result<()> {
    let lines = lines(path, entries)?;
    atomic_write(path, |file| writeln!(file, "{}", lines.join("\n")))
}

fn lines(path: &Path, entries: impl IntoIterator<Item = impl Serialize>) -> Result<Vec<String>> {
    let lines = entries.into_iter().map(|entry| serde_json::to_string(&entry)).collect::<serde_json::Result<Vec<_>>>();
    lines.map_err(Error::json(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenes::generate;
    use std::fs;

    #[test]
    fn every_file_stays_in_its_split_and_statements_are_balanced() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("scenes");
        let config = ScenesConfig { count: 60, ..ScenesConfig::default() };
        generate(&dir, &config, false, false).unwrap();
        let splits = split(60, config.seed);
        let json = |name: String| -> Vec<serde_json::Value> {
            serde_json::from_str(&fs::read_to_string(dir.join(name)).unwrap()).unwrap()
        };
        for (split, names) in SPLITS.into_iter().zip([splits.train, splits.val, splits.test]) {
            let inside =
                |entry: &serde_json::Value, key: &str| names.iter().any(|name| name == entry[key].as_str().unwrap());
            let questions = json(format!("questions_{split}.json"));
            assert!(questions.len() >= 5 * names.len() && questions.iter().all(|entry| inside(entry, "img_id")));
            let pretraining = json(format!("pretrain_{split}.json"));
            assert!(pretraining.len() == names.len() && pretraining.iter().all(|entry| inside(entry, "img_id")));
            let asked: usize = pretraining.iter().map(|e| e["sentf"]["questions"].as_array().unwrap().len()).sum();
            assert_eq!(asked, questions.len());
            let statements = json(format!("statements_{split}.json"));
            assert_eq!(statements.len(), 4 * names.len());
            assert!(statements.iter().all(|entry| inside(entry, "img0") && inside(entry, "img1")));
            assert_eq!(statements.iter().filter(|entry| entry["label"] == 1).count() * 2, statements.len());

            let lines = fs::read_to_string(dir.join(format!("entailment_{split}.jsonl"))).unwrap();
            let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            assert!(
                lines.iter().all(|line| names.contains(&format!("{}.png", line["Flickr30K_ID"].as_str().unwrap())))
            );
            for label in ["contradiction", "neutral", "entailment"] {
                assert_eq!(lines.iter().filter(|line| line["gold_label"] == label).count() * 3, lines.len());
            }
            let refs = json("referring.json".into());
            assert!(refs.iter().all(|entry| (entry["split"] == split) == inside(entry, "file_name")));
        }
    }
}
