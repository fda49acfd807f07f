//! Statements about two scenes, in the format of NLVR2's files.
//!
//! Every sentence comes with two pairs of pictures that share one picture, and is true of one pair and false of the
//! other. Neither the sentence nor the shared picture alone tells which, and true and false are equally frequent.

use super::references::{Reference, Said};
use super::scene::Object;
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Sentences per scene, each with two pairs.
pub const PER_SCENE: usize = 2;

/// What a statement claims about the left and the right picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PairClaim {
    /// The picture on one side contains the object.
    Contains(Side, Reference),
    /// Both pictures contain it.
    Both(Reference),
    /// One of the two contains it, the other does not.
    ExactlyOne(Reference),
    /// One side contains more of them than the other.
    More(Side, Reference),
    /// Both together contain this many.
    Total(Reference, usize),
    /// Both contain the same number of them.
    SameNumber(Reference),
}

/// A position in a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The first picture.
    Left,
    /// The second picture.
    Right,
}

impl Side {
    fn draw(rng: &mut ChaCha8Rng) -> Self {
        if rng.random_bool(0.5) { Self::Left } else { Self::Right }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Right => "right",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Left => Self::Right,
            Self::Right => Self::Left,
        }
    }
}

/// An entry of NLVR2's JSON as LXMERT distributes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatementEntry {
    /// `scenes_` and the identifier.
    pub uid: String,
    /// `split-scene-pair-sentence`.
    pub identifier: String,
    /// The left picture's name.
    pub img0: String,
    /// The right picture's name.
    pub img1: String,
    /// The statement.
    pub sent: String,
    /// 1 if it is true.
    pub label: u8,
}

impl PairClaim {
    /// Whether it is true of a pair.
    pub fn holds(&self, left: &[Object], right: &[Object]) -> bool {
        let counts = |reference: &Reference| (reference.count(left), reference.count(right));
        match self {
            Self::Contains(Side::Left, reference) => counts(reference).0 > 0,
            Self::Contains(Side::Right, reference) => counts(reference).1 > 0,
            Self::Both(reference) => counts(reference).0 > 0 && counts(reference).1 > 0,
            Self::ExactlyOne(reference) => (counts(reference).0 > 0) != (counts(reference).1 > 0),
            Self::More(Side::Left, reference) => counts(reference).0 > counts(reference).1,
            Self::More(Side::Right, reference) => counts(reference).0 < counts(reference).1,
            Self::Total(reference, total) => counts(reference).0 + counts(reference).1 == *total,
            Self::SameNumber(reference) => counts(reference).0 == counts(reference).1,
        }
    }

    /// "The left image has more circles than the right image."
    pub fn sentence(&self) -> String {
        match self {
            Self::Contains(side, reference) => {
                format!("The {} image contains {}.", side.word(), reference.with_article())
            }
            Self::Both(reference) => format!("Both images contain {}.", reference.with_article()),
            Self::ExactlyOne(reference) => {
                format!("Exactly one of the two images contains {}.", reference.with_article())
            }
            Self::More(side, reference) => {
                let (side, other) = (side.word(), side.other().word());
                format!("The {side} image has more {} than the {other} image.", reference.plural())
            }
            Self::Total(reference, 1) => format!("There is exactly one {} in total.", reference.singular()),
            Self::Total(reference, total) => {
                let number = ["no", "one", "two", "three", "four", "five", "six"].get(*total);
                let number = number.map_or_else(|| total.to_string(), ToString::to_string);
                format!("There are exactly {number} {} in total.", reference.plural())
            }
            Self::SameNumber(reference) => {
                format!("Both images have the same number of {}.", reference.plural())
            }
        }
    }

    /// A claim about `left` and `right`, true or false.
    fn draw(left: &[Object], right: &[Object], rng: &mut ChaCha8Rng) -> Option<Self> {
        let object = [left, right].choose(rng)?.choose(rng)?;
        let says = |shape, colour, texture| Reference::of(object, Said { shape, colour, size: false, texture });
        let one = [says(true, false, false), says(false, true, false), says(false, false, true)];
        let reference = *one.choose(rng)?;
        Some(match rng.random_range(0..6) {
            0 => Self::Contains(Side::draw(rng), says(true, true, false)),
            1 => Self::Both(reference),
            2 => Self::ExactlyOne(if rng.random_bool(0.5) { says(true, true, false) } else { reference }),
            3 => Self::More(Side::draw(rng), reference),
            4 => Self::Total(reference, reference.count(left) + reference.count(right)),
            _ => Self::SameNumber(reference),
        })
    }
}

/// A sentence with two pairs of pictures, as indices into `scenes`; it is true of the first.
pub(crate) struct TwoPairs {
    pub claim: PairClaim,
    pub holds_of: [usize; 2],
    pub fails_of: [usize; 2],
}

/// A statement about scene `index` and others (`scenes`: the objects of each, at least two). `None` if several attempts
/// find no pair that makes it false.
pub(crate) fn state(scenes: &[&[Object]], index: usize, rng: &mut ChaCha8Rng) -> Option<TwoPairs> {
    let another = |not: &[usize], rng: &mut ChaCha8Rng| {
        (0..64).map(|_| rng.random_range(0..scenes.len())).find(|index| !not.contains(index))
    };
    for _ in 0..200 {
        let partner = another(&[index], rng)?;
        let place = usize::from(rng.random_bool(0.5)); // where scene `index` is
        let pair = if place == 0 { [index, partner] } else { [partner, index] };
        let holds = |claim: &PairClaim, pair: [usize; 2]| claim.holds(scenes[pair[0]], scenes[pair[1]]);
        let claim = PairClaim::draw(scenes[pair[0]], scenes[pair[1]], rng)?;
        if !holds(&claim, pair) {
            continue;
        }
        for _ in 0..20 {
            let mut other = pair;
            other[1 - place] = another(&pair, rng)?;
            if !holds(&claim, other) {
                return Some(TwoPairs { claim, holds_of: pair, fails_of: other });
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenes::scene::{Colour, Shape, Texture};
    use crate::scenes::tasks::rng_of;
    use crate::scenes::{Scene, ScenesConfig};
    use std::collections::BTreeMap;

    #[test]
    fn each_sentence_is_true_of_one_pair_and_false_of_an_overlapping_one() {
        let config = ScenesConfig::default();
        let scenes: Vec<Scene> = (0..200).map(|index| Scene::generate(&config, index)).collect();
        let objects: Vec<&[Object]> = scenes.iter().map(|scene| scene.objects.as_slice()).collect();
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for index in 0..200 {
            let mut rng = rng_of(&config, index);
            for _ in 0..PER_SCENE {
                let found = state(&objects, index, &mut rng).unwrap();
                let holds = |[left, right]: [usize; 2]| found.claim.holds(objects[left], objects[right]);
                assert!(holds(found.holds_of) && !holds(found.fails_of), "{}", found.claim.sentence());
                let shared: Vec<usize> = (0..2).filter(|&side| found.holds_of[side] == found.fails_of[side]).collect();
                assert!(shared.len() == 1 && found.holds_of[shared[0]] == index);
                assert!(found.holds_of[0] != found.holds_of[1] && found.fails_of[0] != found.fails_of[1]);
                let kind = format!("{:?}", found.claim).split('(').next().unwrap().to_string();
                *kinds.entry(kind).or_default() += 1;
            }
        }
        assert!(kinds.len() == 6 && kinds.values().all(|&count| count > 20), "{kinds:?}");
    }

    #[test]
    fn sentences_state_what_they_check() {
        let red = Reference { colour: Some(Colour::Red), ..Reference::default() };
        let cross = Reference { shape: Some(Shape::Cross), texture: Some(Texture::Dotted), ..Reference::default() };
        for (claim, sentence) in [
            (PairClaim::Contains(Side::Right, red), "The right image contains a red object."),
            (PairClaim::Both(cross), "Both images contain a dotted cross."),
            (PairClaim::More(Side::Left, cross), "The left image has more dotted crosses than the right image."),
            (PairClaim::Total(red, 1), "There is exactly one red object in total."),
            (PairClaim::Total(red, 3), "There are exactly three red objects in total."),
            (PairClaim::SameNumber(red), "Both images have the same number of red objects."),
        ] {
            assert_eq!(claim.sentence(), sentence);
        }
        let scene = Scene::generate(&ScenesConfig::default(), 0);
        let one = [scene.objects[0].clone()];
        let this = Reference::of(&one[0], Said { shape: true, colour: true, size: false, texture: false });
        for (claim, both, left_only) in [
            (PairClaim::Contains(Side::Left, this), true, true),
            (PairClaim::Contains(Side::Right, this), true, false),
            (PairClaim::Both(this), true, false),
            (PairClaim::ExactlyOne(this), false, true),
            (PairClaim::More(Side::Left, this), false, true),
            (PairClaim::More(Side::Right, this), false, false),
            (PairClaim::Total(this, 2), true, false),
            (PairClaim::SameNumber(this), true, false),
        ] {
            assert_eq!((claim.holds(&one, &one), claim.holds(&one, &[])), (both, left_only), "{claim:?}");
        }
    }
}
