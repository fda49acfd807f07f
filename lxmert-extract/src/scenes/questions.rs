//! Questions about a scene, each with a single answer, in the format of VQA's files.
//!
//! | begins with | asks for | kind |
//! | --- | --- | --- |
//! | what color is the | the colour of the one object that fits | other |
//! | what shape is the | its shape | other |
//! | where is the | one of two sides, with another object to compare with | other |
//! | how many | objects that fit, 0 to 6 | number |
//! | is there | whether an object fits | yes/no |
//! | is the | an attribute of one object, or where it lies from another | yes/no |
//!
//! Every object that a question names is the only one that matches its description. A question with the answer "no" is
//! a true one with one attribute or the relation changed, and "no" is as frequent as "yes", so words alone do not give
//! the answer. Questions ask for a side only if the centres are clearly apart along that axis.

use super::captions::CLEARLY_PX;
use super::references::{Reference, Said};
use super::scene::{Colour, Object, Shape, Size, Texture};
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The answers to questions about scenes, by label.
pub const ANSWERS: [&str; 29] = [
    "yes", "no", "0", "1", "2", "3", "4", "5", "6", "red", "orange", "yellow", "green", "blue", "purple", "pink",
    "white", "circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart", "left", "right", "above",
    "below",
];

/// A question with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// "What color is the large star?"
    pub sentence: String,
    /// One of [`ANSWERS`].
    pub answer: &'static str,
    /// Its first words, as in the table above.
    pub question_type: &'static str,
    /// `yes/no`, `number` or `other`.
    pub answer_type: &'static str,
}

/// An entry of VQA's JSON as LXMERT distributes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuestionEntry {
    /// The scene's number times a hundred, plus the question's number in it.
    pub question_id: u64,
    /// The picture's name.
    pub img_id: String,
    /// The question.
    pub sent: String,
    /// The answer, with score 1.
    pub label: BTreeMap<String, f32>,
    /// `yes/no`, `number` or `other`.
    pub answer_type: String,
    /// The question's first words.
    pub question_type: String,
}

const SHAPE: Said = Said { shape: true, colour: false, size: false, texture: false };
const COLOUR: Said = Said { shape: false, colour: true, ..SHAPE };
const BOTH: Said = Said { shape: true, colour: true, ..SHAPE };

/// Questions about `objects`: one or two of each type if the scene allows an unambiguous one; most scenes get 6 to 8.
pub fn ask(objects: &[Object], rng: &mut ChaCha8Rng) -> Vec<Question> {
    let mut questions = Vec::new();
    questions.extend(colour(objects, rng));
    questions.extend(shape(objects, rng));
    questions.extend(how_many(objects, rng));
    questions.extend(sides(objects, true, rng));
    questions.extend(there_is(objects, rng));
    questions.extend(attribute(objects, rng));
    questions.extend(sides(objects, false, rng));
    // A second one of the types that a model learns slowest.
    questions.extend(if rng.random_bool(0.5) { colour(objects, rng) } else { how_many(objects, rng) });
    let mut kept: Vec<Question> = Vec::with_capacity(questions.len());
    for question in questions {
        if kept.iter().all(|other| other.sentence != question.sentence) {
            kept.push(question);
        }
    }
    kept
}

/// An object drawn at random, and the shortest unique reference to it that mentions `said`.
fn named(objects: &[Object], said: Said, rng: &mut ChaCha8Rng) -> Option<(usize, Reference)> {
    let mut order: Vec<usize> = (0..objects.len()).collect();
    order.shuffle(rng);
    order.into_iter().find_map(|index| Reference::unique(objects, index, said, rng).map(|found| (index, found)))
}

fn colour(objects: &[Object], rng: &mut ChaCha8Rng) -> Option<Question> {
    let (index, reference) = named(objects, SHAPE, rng)?;
    Some(Question {
        sentence: format!("What color is the {}?", reference.singular()),
        answer: objects[index].colour.word(),
        question_type: "what color is the",
        answer_type: "other",
    })
}

fn shape(objects: &[Object], rng: &mut ChaCha8Rng) -> Option<Question> {
    let (index, reference) = named(objects, COLOUR, rng)?;
    Some(Question {
        sentence: format!("What shape is the {}?", reference.singular()),
        answer: objects[index].shape.word(),
        question_type: "what shape is the",
        answer_type: "other",
    })
}

/// Draws the number first, among those that some question of this scene has, so that "1" does not dominate.
fn how_many(objects: &[Object], rng: &mut ChaCha8Rng) -> Option<Question> {
    let nothing = Reference::default();
    let mut by_count: BTreeMap<usize, Vec<Reference>> = BTreeMap::new();
    let shapes = Shape::ALL.map(|shape| Reference { shape: Some(shape), ..nothing });
    let colours = Colour::ALL.map(|colour| Reference { colour: Some(colour), ..nothing });
    let sizes = Size::ALL.map(|size| Reference { size: Some(size), ..nothing });
    let textures = Texture::ALL.map(|texture| Reference { texture: Some(texture), ..nothing });
    for reference in [nothing].iter().chain(&shapes).chain(&colours).chain(&sizes).chain(&textures) {
        by_count.entry(reference.count(objects)).or_default().push(*reference);
    }
    let counts: Vec<usize> = by_count.keys().copied().collect();
    let count = *counts.choose(rng)?;
    let reference = by_count.get(&count)?.choose(rng)?;
    Some(Question {
        sentence: format!("How many {} are there?", reference.plural()),
        answer: ["0", "1", "2", "3", "4", "5", "6"].get(count)?,
        question_type: "how many",
        answer_type: "number",
    })
}

fn there_is(objects: &[Object], rng: &mut ChaCha8Rng) -> Option<Question> {
    let object = objects.choose(rng)?;
    let more = |rng: &mut ChaCha8Rng| rng.random_bool(0.3);
    let mut reference = Reference::of(object, Said { size: more(rng), texture: more(rng), ..BOTH });
    let yes = rng.random_bool(0.5);
    if !yes {
        reference = reference.changed(objects, rng)?;
    }
    Some(yes_no(format!("Is there {}?", reference.with_article()), "is there", yes))
}

/// Whether one object has a colour, size or surface.
fn attribute(objects: &[Object], rng: &mut ChaCha8Rng) -> Option<Question> {
    let yes = rng.random_bool(0.5);
    let (index, reference) = named(objects, if rng.random_bool(0.5) { SHAPE } else { BOTH }, rng)?;
    let object = &objects[index];
    let mut words = Vec::new();
    if reference.colour.is_none() {
        words.push(if yes { object.colour } else { object.colour.draw_other(rng) }.word());
    }
    if reference.size.is_none() {
        words.push(if yes { object.size } else { object.size.draw_other(rng) }.word());
    }
    if reference.texture.is_none() {
        words.push(if yes { object.texture } else { object.texture.draw_other(rng) }.word());
    }
    let word = words.choose(rng)?;
    Some(yes_no(format!("Is the {} {word}?", reference.singular()), "is the", yes))
}

/// On which side of another an object is: as an open question, or as a yes/no question.
fn sides(objects: &[Object], open: bool, rng: &mut ChaCha8Rng) -> Option<Question> {
    let mut pairs = Vec::new();
    for i in 0..objects.len() {
        for j in (0..objects.len()).filter(|&j| j != i) {
            for axis in 0..2 {
                if (objects[i].centre_px[axis] - objects[j].centre_px[axis]).abs() >= CLEARLY_PX {
                    pairs.push((i, j, axis));
                }
            }
        }
    }
    pairs.shuffle(rng);
    let (i, j, axis, a, b) = pairs.into_iter().find_map(|(i, j, axis)| {
        let a = Reference::unique(objects, i, BOTH, rng)?;
        Some((i, j, axis, a, Reference::unique(objects, j, BOTH, rng)?))
    })?;
    let (a, b) = (a.singular(), b.singular());
    let first = objects[i].centre_px[axis] < objects[j].centre_px[axis];
    let names = [["left", "right"], ["above", "below"]][axis];
    let side = usize::from(!first);
    if open {
        let choice = ["left or right of", "above or below"][axis];
        return Some(Question {
            sentence: format!("Where is the {a}, {choice} the {b}?"),
            answer: names[side],
            question_type: "where is the",
            answer_type: "other",
        });
    }
    let yes = rng.random_bool(0.5);
    let asked = names[if yes { side } else { 1 - side }];
    let of = ["of ", ""][axis];
    Some(yes_no(format!("Is the {a} {asked} {of}the {b}?"), "is the", yes))
}

fn yes_no(sentence: String, question_type: &'static str, yes: bool) -> Question {
    Question { sentence, answer: if yes { "yes" } else { "no" }, question_type, answer_type: "yes/no" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenes::tasks::rng_of;
    use crate::scenes::{Scene, ScenesConfig};

    /// Reads a question as a person would, from its words alone, and answers it by looking at the objects.
    fn answer(sentence: &str, objects: &[Object]) -> String {
        let find = |words: &str| -> Reference {
            let mut reference = Reference::default();
            for word in words.split(' ') {
                let shape = Shape::ALL.into_iter().find(|s| {
                    let (one, many) = (s.word(), Reference { shape: Some(*s), ..Reference::default() }.plural());
                    word == one || word == many
                });
                reference.shape = reference.shape.or(shape);
                reference.colour = reference.colour.or(Colour::ALL.into_iter().find(|c| c.word() == word));
                reference.size = reference.size.or(Size::ALL.into_iter().find(|s| s.word() == word));
                reference.texture = reference.texture.or(Texture::ALL.into_iter().find(|t| t.word() == word));
            }
            reference
        };
        let only = |words: &str| -> Object {
            let fitting: Vec<&Object> = objects.iter().filter(|object| find(words).fits(object)).collect();
            assert_eq!(fitting.len(), 1, "{sentence}: '{words}' is ambiguous");
            fitting[0].clone()
        };
        let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_string();
        let text = sentence.trim_end_matches('?');
        if let Some(rest) = text.strip_prefix("What color is the ") {
            return only(rest).colour.word().into();
        }
        if let Some(rest) = text.strip_prefix("What shape is the ") {
            return only(rest).shape.word().into();
        }
        if let Some(rest) = text.strip_prefix("How many ") {
            return find(rest.trim_end_matches(" are there")).count(objects).to_string();
        }
        if let Some(rest) = text.strip_prefix("Is there ") {
            return yes_no(find(rest).count(objects) > 0);
        }
        // The words, the axis, and the sign of the first centre minus the second.
        let relations =
            [(" left of the ", 0, -1.0), (" right of the ", 0, 1.0), (" above the ", 1, -1.0), (" below the ", 1, 1.0)];
        let holds =
            |axis: usize, sign: f32, a: &Object, b: &Object| (a.centre_px[axis] - b.centre_px[axis]) * sign > 0.0;
        if let Some(rest) = text.strip_prefix("Where is the ") {
            let (a, rest) = rest.split_once(", ").unwrap();
            let (_, b) = rest.split_once(" the ").unwrap();
            let (a, b) = (only(a), only(b));
            let range = if rest.starts_with("left") { 0..2 } else { 2..4 };
            let name = relations[range].iter().find(|(_, axis, sign)| holds(*axis, *sign, &a, &b)).unwrap().0;
            return name.split_whitespace().next().unwrap().into();
        }
        let rest = text.strip_prefix("Is the ").unwrap();
        for (words, axis, sign) in relations {
            if let Some((a, b)) = rest.split_once(words) {
                return yes_no(holds(axis, sign, &only(a), &only(b)));
            }
        }
        let (a, word) = rest.rsplit_once(' ').unwrap();
        yes_no(find(word).fits(&only(a)))
    }

    #[test]
    fn every_question_has_one_answer_and_no_answer_dominates() {
        let config = ScenesConfig::default();
        let mut counts: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
        let mut total = 0;
        for index in 0..1000 {
            let scene = Scene::generate(&config, index);
            let questions = ask(&scene.objects, &mut rng_of(&config, index));
            assert!((4..=8).contains(&questions.len()), "scene {index}: {} questions", questions.len());
            total += questions.len();
            for question in questions {
                assert!(ANSWERS.contains(&question.answer));
                assert!(question.sentence.to_lowercase().starts_with(question.question_type), "{}", question.sentence);
                assert_eq!(
                    answer(&question.sentence, &scene.objects),
                    question.answer,
                    "scene {index}: {}",
                    question.sentence
                );
                *counts.entry(question.question_type).or_default().entry(question.answer).or_default() += 1;
            }
        }
        assert!(total > 6500, "{total} questions");
        assert_eq!(counts.len(), 6);
        for (kind, answers) in counts {
            // Numbers above 4 need that many objects, which few scenes have; the other answers are about equally
            // frequent.
            let (most, all) = (*answers.values().max().unwrap(), answers.values().sum::<usize>());
            let even = all as f64 / answers.len() as f64;
            let allowed = if kind == "how many" { 2.0 } else { 1.3 };
            assert!((most as f64) < allowed * even, "{kind}: {answers:?}");
        }
    }
}
