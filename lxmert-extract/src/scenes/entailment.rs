//! Sentences that a scene entails, contradicts or leaves open, in the format of SNLI-VE's files.
//!
//! Every sentence describes objects with phrases such as "the red star". If each phrase matches exactly one object of a
//! scene, the scene entails or contradicts the sentence. If a phrase matches no object, the scene leaves the sentence
//! open (neutral): that object may be outside the picture. Each sentence comes with three scenes, one per label, so the
//! sentence alone says nothing about the label, and the labels are equally frequent.

use super::captions::{self, Relation};
use super::references::{Reference, Said};
use super::scene::Object;
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Sentences per scene, each with three scenes.
pub const PER_SCENE: usize = 4;

/// How a scene relates to a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Label {
    /// The sentence is false of the scene.
    Contradiction,
    /// The scene does not decide.
    Neutral,
    /// The sentence is true of the scene.
    Entailment,
}

/// A line of SNLI-VE's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntailmentEntry {
    /// The picture's name without its extension, as SNLI-VE has it.
    #[serde(rename = "Flickr30K_ID")]
    pub image: String,
    /// The scene's number, the sentence's number, and the label's first letter.
    #[serde(rename = "pairID")]
    pub pair_id: String,
    /// The hypothesis.
    pub sentence2: String,
    /// The label.
    pub gold_label: Label,
}

/// The claim of a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hypothesis {
    /// The object has an attribute: the second reference, which names only that.
    Is(Reference, Reference),
    /// The first object has this relation to the second.
    Lies(Reference, Relation, Reference),
}

const SHAPE: Said = Said { shape: true, colour: false, size: false, texture: false };
const COLOUR: Said = Said { shape: false, colour: true, ..SHAPE };
const SIZE: Said = Said { shape: false, size: true, ..SHAPE };
const TEXTURE: Said = Said { shape: false, texture: true, ..SHAPE };
const SHAPE_AND_COLOUR: Said = Said { colour: true, ..SHAPE };

impl Hypothesis {
    /// "The red star is small."
    pub fn sentence(&self) -> String {
        match self {
            Self::Is(subject, attribute) => {
                let word = [
                    attribute.shape.map(|_| attribute.with_article()),
                    attribute.colour.map(|colour| colour.word().to_string()),
                    attribute.size.map(|size| size.word().to_string()),
                    attribute.texture.map(|texture| texture.word().to_string()),
                ];
                format!(
                    "The {} is {}.",
                    subject.singular(),
                    word.into_iter().flatten().collect::<Vec<_>>().join(" and ")
                )
            }
            Self::Lies(a, relation, b) => {
                let relation = match relation {
                    Relation::LeftOf | Relation::RightOf => captions::relation_words(*relation)[1],
                    Relation::Above | Relation::Below => captions::relation_words(*relation)[0],
                };
                format!("The {} is {relation} the {}.", a.singular(), b.singular())
            }
        }
    }

    /// The label for a scene of these objects. `None` if a phrase matches several objects, or the picture does not show
    /// clearly on which side one object is.
    pub fn label(&self, objects: &[Object]) -> Option<Label> {
        let (Self::Is(first, _) | Self::Lies(first, ..)) = self;
        let second = if let Self::Lies(_, _, second) = self { second } else { first };
        if [first, second].iter().any(|reference| reference.count(objects) == 0) {
            return Some(Label::Neutral);
        }
        let only = |reference: &Reference| {
            let mut fitting = objects.iter().filter(|object| reference.fits(object));
            fitting.next().filter(|_| fitting.next().is_none())
        };
        let (a, b) = (only(first)?, only(second)?);
        match self {
            Self::Is(_, attribute) if attribute.fits(a) => Some(Label::Entailment),
            Self::Is(..) => Some(Label::Contradiction),
            Self::Lies(_, relation, _) if relation.clearly_holds(a, b) => Some(Label::Entailment),
            Self::Lies(_, relation, _) if relation.opposite().clearly_holds(a, b) => Some(Label::Contradiction),
            Self::Lies(..) => None,
        }
    }

    /// A sentence about one or two objects of a scene; the scene entails it if the phrases match no other object.
    fn draw(objects: &[Object], rng: &mut ChaCha8Rng) -> Option<Self> {
        let (a, b) = (objects.choose(rng)?, objects.choose(rng)?);
        // Few scenes have an object with a given shape and colour, and fewer have two, so relations name one attribute.
        if rng.random_bool(0.3) {
            let mut named = |object: &Object| Reference::of(object, *[SHAPE, COLOUR].choose(rng).unwrap_or(&SHAPE));
            let (first, second) = (named(a), named(b));
            let clear: Vec<Relation> =
                Relation::ALL.into_iter().filter(|relation| relation.clearly_holds(a, b)).collect();
            return Some(Self::Lies(first, *clear.choose(rng)?, second));
        }
        let (subject, attribute) = *[
            (SHAPE, COLOUR),
            (SHAPE, SIZE),
            (SHAPE, TEXTURE),
            (COLOUR, SHAPE),
            (SHAPE_AND_COLOUR, SIZE),
            (SHAPE_AND_COLOUR, TEXTURE),
        ]
        .choose(rng)?;
        Some(Self::Is(Reference::of(a, subject), Reference::of(a, attribute)))
    }
}

/// A sentence that scene `index` entails (`scenes`: the objects of each), and the scenes that contradict it, leave it
/// open and entail it, in the order of [`Label`]. `None` if several attempts find none.
pub(crate) fn state(scenes: &[&[Object]], index: usize, rng: &mut ChaCha8Rng) -> Option<(Hypothesis, [usize; 3])> {
    for _ in 0..200 {
        let drawn = Hypothesis::draw(scenes[index], rng);
        let entailed = |hypothesis: &Hypothesis| hypothesis.label(scenes[index]) == Some(Label::Entailment);
        let Some(hypothesis) = drawn.filter(entailed) else { continue };
        let mut another = |label: Label| {
            let mut tries = (0..200).map(|_| rng.random_range(0..scenes.len()));
            tries.find(|&other| hypothesis.label(scenes[other]) == Some(label))
        };
        if let (Some(against), Some(open)) = (another(Label::Contradiction), another(Label::Neutral)) {
            return Some((hypothesis, [against, open, index]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenes::scene::{Colour, Shape, Size, Texture};
    use crate::scenes::tasks::rng_of;
    use crate::scenes::{Scene, ScenesConfig};
    use std::collections::BTreeMap;

    /// Reads a sentence as a person would, from its words alone.
    fn read(sentence: &str, objects: &[Object]) -> Label {
        let reference = |words: &str| {
            let has = |word: &str| words.split(' ').any(|other| other == word);
            Reference {
                shape: Shape::ALL.into_iter().find(|shape| has(shape.word())),
                colour: Colour::ALL.into_iter().find(|colour| has(colour.word())),
                size: Size::ALL.into_iter().find(|size| has(size.word())),
                texture: Texture::ALL.into_iter().find(|texture| has(texture.word())),
            }
        };
        let fitting = |words: &str| -> Vec<&Object> {
            let reference = reference(words);
            objects.iter().filter(|object| reference.fits(object)).collect()
        };
        let words = sentence.strip_prefix("The ").unwrap().trim_end_matches('.');
        let relations = [
            (" is to the left of the ", 0, -1.0),
            (" is to the right of the ", 0, 1.0),
            (" is above the ", 1, -1.0),
            (" is below the ", 1, 1.0),
        ];
        for (between, axis, sign) in relations {
            if let Some((a, b)) = words.split_once(between) {
                return match (fitting(a).as_slice(), fitting(b).as_slice()) {
                    ([], _) | (_, []) => Label::Neutral,
                    ([a], [b]) if (a.centre_px[axis] - b.centre_px[axis]) * sign > 0.0 => Label::Entailment,
                    ([_], [_]) => Label::Contradiction,
                    _ => panic!("{sentence}: ambiguous"),
                };
            }
        }
        let (subject, attribute) = words.split_once(" is ").unwrap();
        match fitting(subject).as_slice() {
            [] => Label::Neutral,
            [only] if reference(attribute).fits(only) => Label::Entailment,
            [_] => Label::Contradiction,
            _ => panic!("{sentence}: ambiguous"),
        }
    }

    #[test]
    fn each_sentence_is_entailed_contradicted_and_left_open_by_one_scene_each() {
        let config = ScenesConfig::default();
        let scenes: Vec<Scene> = (0..200).map(|index| Scene::generate(&config, index)).collect();
        let objects: Vec<&[Object]> = scenes.iter().map(|scene| scene.objects.as_slice()).collect();
        let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
        let mut found = 0;
        for index in 0..200 {
            let mut rng = rng_of(&config, index);
            for _ in 0..PER_SCENE {
                let Some((hypothesis, places)) = state(&objects, index, &mut rng) else { continue };
                found += 1;
                let sentence = hypothesis.sentence();
                for (place, label) in places.into_iter().zip([Label::Contradiction, Label::Neutral, Label::Entailment])
                {
                    assert_eq!(read(&sentence, objects[place]), label, "{sentence} of scene {place}");
                }
                assert_eq!(places[2], index);
                *kinds.entry(if matches!(hypothesis, Hypothesis::Is(..)) { "is" } else { "lies" }).or_default() += 1;
            }
        }
        assert_eq!(found, 200 * PER_SCENE, "every scene has its sentences");
        assert!(kinds["is"] > 300 && kinds["lies"] > 60, "{kinds:?}");
    }

    #[test]
    fn sentences_state_what_they_check() {
        let star = Reference { shape: Some(Shape::Star), ..Reference::default() };
        let red = Reference { colour: Some(Colour::Red), ..Reference::default() };
        let red_star = Reference { colour: Some(Colour::Red), ..star };
        let small = Reference { size: Some(Size::Small), ..Reference::default() };
        for (hypothesis, sentence) in [
            (Hypothesis::Is(red_star, small), "The red star is small."),
            (Hypothesis::Is(red, star), "The red object is a star."),
            (Hypothesis::Lies(star, Relation::LeftOf, red), "The star is to the left of the red object."),
            (Hypothesis::Lies(red, Relation::Below, star), "The red object is below the star."),
        ] {
            assert_eq!(hypothesis.sentence(), sentence);
        }
        let mut objects = Scene::generate(&ScenesConfig::default(), 0).objects;
        objects.truncate(2);
        (objects[0].shape, objects[0].colour, objects[0].size) = (Shape::Star, Colour::Red, Size::Small);
        (objects[1].shape, objects[1].colour, objects[1].size) = (Shape::Ring, Colour::Blue, Size::Large);
        (objects[0].centre_px, objects[1].centre_px) = ([20.0, 50.0], [90.0, 51.0]);
        let ring = Reference { shape: Some(Shape::Ring), ..Reference::default() };
        let heart = Reference { shape: Some(Shape::Heart), ..Reference::default() };
        let anything = Reference::default();
        for (hypothesis, label) in [
            (Hypothesis::Is(star, small), Some(Label::Entailment)),
            (Hypothesis::Is(ring, small), Some(Label::Contradiction)),
            (Hypothesis::Is(heart, small), Some(Label::Neutral)),
            (Hypothesis::Is(anything, small), None),
            (Hypothesis::Lies(star, Relation::LeftOf, ring), Some(Label::Entailment)),
            (Hypothesis::Lies(ring, Relation::LeftOf, star), Some(Label::Contradiction)),
            (Hypothesis::Lies(ring, Relation::LeftOf, heart), Some(Label::Neutral)),
            (Hypothesis::Lies(star, Relation::Above, ring), None), // by one pixel
        ] {
            assert_eq!(hypothesis.label(&objects), label, "{}", hypothesis.sentence());
        }
    }
}
