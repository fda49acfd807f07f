//! Sentences about a scene, and whether a sentence is true of a scene.
//!
//! A caption makes a claim that does not depend on its wording: one or two [`Mention`]s and perhaps a [`Relation`]
//! between them. [`is_true`] reads the claim generously (any difference of the centres counts as "left of"), while
//! `describe` states a relation only if it is plain to see. So what captions state is beyond doubt, and a hard negative
//! is false even if read generously.
//!
//! Captions name enough attributes that one is rarely true of another scene by accident: less than 1.5 % of random
//! mismatches are (a test measures it), so the labels of mismatches are clean.

use super::scene::{Colour, Object, Scene, Shape, Size, Texture};
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Captions per scene, as in Flickr30k.
pub const PER_SCENE: usize = 5;

/// How far apart two centres must be along an axis for a sentence to mention it, in pixels.
pub(super) const CLEARLY_PX: f32 = 14.0;

/// Fraction of single-object captions that name all four attributes; the others leave out size or texture.
const FULLY_NAMED: f64 = 0.8;

/// The subject of a caption.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CaptionKind {
    /// One object, the only one in the scene that matches.
    Object,
    /// Two objects.
    Pair,
    /// Two objects and their relation.
    Relation,
}

/// An object in words; attributes that are `None` are not mentioned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mention {
    /// The outline, always mentioned.
    pub shape: Shape,
    /// The colour, always mentioned.
    pub colour: Colour,
    /// The size.
    pub size: Option<Size>,
    /// The surface.
    pub texture: Option<Texture>,
}

impl Mention {
    /// Whether an object matches.
    pub fn fits(&self, object: &Object) -> bool {
        self.shape == object.shape
            && self.colour == object.colour
            && self.size.is_none_or(|size| size == object.size)
            && self.texture.is_none_or(|texture| texture == object.texture)
    }

    fn of(object: &Object, size: bool, texture: bool) -> Self {
        Self {
            shape: object.shape,
            colour: object.colour,
            size: size.then_some(object.size),
            texture: texture.then_some(object.texture),
        }
    }
}

/// Where the first object is relative to the second, by their centres.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Relation {
    /// Smaller x.
    LeftOf,
    /// Larger x.
    RightOf,
    /// Smaller y.
    Above,
    /// Larger y.
    Below,
}

impl Relation {
    /// The relation that is false where this one is true.
    pub fn opposite(self) -> Self {
        match self {
            Self::LeftOf => Self::RightOf,
            Self::RightOf => Self::LeftOf,
            Self::Above => Self::Below,
            Self::Below => Self::Above,
        }
    }

    /// Whether the relation holds between `a` and `b`, by any distance.
    pub fn holds(self, a: &Object, b: &Object) -> bool {
        let [dx, dy] = [0, 1].map(|axis| b.centre_px[axis] - a.centre_px[axis]);
        match self {
            Self::LeftOf => dx > 0.0,
            Self::RightOf => dx < 0.0,
            Self::Above => dy > 0.0,
            Self::Below => dy < 0.0,
        }
    }

    /// Whether the relation holds between `a` and `b` by a clearly visible distance.
    pub fn clearly_holds(self, a: &Object, b: &Object) -> bool {
        let axis = usize::from(matches!(self, Self::Above | Self::Below));
        self.holds(a, b) && (b.centre_px[axis] - a.centre_px[axis]).abs() >= CLEARLY_PX
    }

    /// Every relation.
    pub const ALL: [Self; 4] = [Self::LeftOf, Self::RightOf, Self::Above, Self::Below];

    /// The relation along the axis in which the centres differ most, if they differ clearly.
    pub fn between(a: &Object, b: &Object) -> Option<Self> {
        let [dx, dy] = [0, 1].map(|axis| b.centre_px[axis] - a.centre_px[axis]);
        (dx.abs().max(dy.abs()) >= CLEARLY_PX).then_some(match (dx.abs() >= dy.abs(), dx > 0.0, dy > 0.0) {
            (true, true, _) => Self::LeftOf,
            (true, false, _) => Self::RightOf,
            (false, _, true) => Self::Above,
            (false, _, false) => Self::Below,
        })
    }
}

/// What a hard negative changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Swap {
    /// Another shape.
    Shape,
    /// Another colour.
    Colour,
    /// The other size.
    Size,
    /// Another texture.
    Texture,
    /// The opposite relation.
    Relation,
}

/// What a sentence claims.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// One or two objects.
    pub mentions: Vec<Mention>,
    /// Where the first is relative to the second.
    pub relation: Option<Relation>,
}

/// A true sentence about a scene.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Caption {
    /// The sentence, as in Flickr30k's file: starts with a capital, ends with ` .`.
    pub text: String,
    /// Its subject.
    pub kind: CaptionKind,
    /// Indices of the named objects, in the order of the mentions.
    pub objects: Vec<usize>,
    /// Its claim.
    #[serde(flatten)]
    pub claim: Claim,
    /// The same sentence, minimally changed so that it is false.
    pub negative: Negative,
}

/// A false sentence about a scene.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Negative {
    /// The sentence.
    pub text: String,
    /// What was changed.
    pub swap: Swap,
    /// Its claim.
    #[serde(flatten)]
    pub claim: Claim,
}

/// Whether a claim is true of `objects`: different objects match its mentions, and the relation holds between them by
/// any distance.
pub fn is_true(claim: &Claim, objects: &[Object]) -> bool {
    let fits = |mention: &Mention| {
        let mention = *mention;
        objects.iter().enumerate().filter(move |(_, object)| mention.fits(object))
    };
    match claim.mentions.as_slice() {
        [] => true,
        [only] => fits(only).next().is_some(),
        [first, second, ..] => fits(first).any(|(i, a)| {
            fits(second).any(|(j, b)| i != j && claim.relation.is_none_or(|relation| relation.holds(a, b)))
        }),
    }
}

/// Five true captions with their hard negatives: two about single objects, one about a pair, two about relations.
/// `None` if the scene has no clear relation.
pub(crate) fn describe(scene: &Scene, rng: &mut ChaCha8Rng) -> Option<Vec<Caption>> {
    let objects = &scene.objects;
    let mut order: Vec<usize> = (0..objects.len()).collect();
    order.shuffle(rng);
    let mut related: Vec<(usize, usize, Relation)> = Vec::new();
    for (i, a) in objects.iter().enumerate() {
        for (j, b) in objects.iter().enumerate() {
            if i != j {
                related.extend(Relation::between(a, b).map(|relation| (i, j, relation)));
            }
        }
    }
    if related.len() < 2 {
        return None;
    }
    related.shuffle(rng);

    let mut captions = Vec::with_capacity(PER_SCENE);
    for &index in order.iter().take(2) {
        captions.push(caption(objects, CaptionKind::Object, &[index], None, rng)?);
    }
    order.shuffle(rng);
    captions.push(caption(objects, CaptionKind::Pair, &order[..2], None, rng)?);
    for &(i, j, relation) in &related[..2] {
        captions.push(caption(objects, CaptionKind::Relation, &[i, j], Some(relation), rng)?);
    }
    captions.shuffle(rng);
    Some(captions)
}

fn caption(
    objects: &[Object],
    kind: CaptionKind,
    named: &[usize],
    relation: Option<Relation>,
    rng: &mut ChaCha8Rng,
) -> Option<Caption> {
    let mentions = named.iter().map(|&index| mention(objects, index, kind, rng)).collect();
    let claim = Claim { mentions, relation };
    let wording = Wording::draw(kind, rng);
    let (negative, swap) = falsify(&claim, objects, rng)?;
    Some(Caption {
        text: wording.say(&claim),
        kind,
        objects: named.to_vec(),
        negative: Negative { text: wording.say(&negative), swap, claim: negative },
        claim,
    })
}

/// Names an object so that no other in the scene matches.
fn mention(objects: &[Object], index: usize, kind: CaptionKind, rng: &mut ChaCha8Rng) -> Mention {
    let (size, texture) = match kind {
        CaptionKind::Object if rng.random_bool(FULLY_NAMED) => (true, true),
        CaptionKind::Object => [(true, false), (false, true)][rng.random_range(0..2)],
        // A combination of two objects is already rare, and shorter sentences read better.
        CaptionKind::Pair | CaptionKind::Relation => (rng.random_bool(0.5), rng.random_bool(0.5)),
    };
    let short = Mention::of(&objects[index], size, texture);
    let alone = objects.iter().filter(|object| short.fits(object)).count() == 1;
    if alone { short } else { Mention::of(&objects[index], true, true) }
}

/// Changes one attribute or the relation so that the claim becomes false. `None` if several attempts all happen to be
/// true of the scene.
fn falsify(claim: &Claim, objects: &[Object], rng: &mut ChaCha8Rng) -> Option<(Claim, Swap)> {
    for _ in 0..20 {
        let mut changed = claim.clone();
        let swap = if let Some(relation) = claim.relation.filter(|_| rng.random_bool(0.5)) {
            changed.relation = Some(relation.opposite());
            Swap::Relation
        } else {
            let which = rng.random_range(0..changed.mentions.len());
            let mention = &mut changed.mentions[which];
            let mut swaps = vec![Swap::Shape, Swap::Colour];
            swaps.extend(mention.size.map(|_| Swap::Size));
            swaps.extend(mention.texture.map(|_| Swap::Texture));
            let swap = *swaps.choose(rng)?;
            match swap {
                Swap::Shape => mention.shape = mention.shape.draw_other(rng),
                Swap::Colour => mention.colour = mention.colour.draw_other(rng),
                Swap::Size => mention.size = mention.size.map(|size| size.draw_other(rng)),
                Swap::Texture => mention.texture = mention.texture.map(|texture| texture.draw_other(rng)),
                Swap::Relation => {}
            }
            swap
        };
        let says_one_thing_twice = changed.mentions.len() == 2 && changed.mentions[0] == changed.mentions[1];
        if !says_one_thing_twice && !is_true(&changed, objects) {
            return Some((changed, swap));
        }
    }
    None
}

/// How a claim is worded, so that a caption and its negative differ only in the changed word.
struct Wording {
    template: &'static str,
    relation: usize,
    nouns: [NounStyle; 2],
}

/// The order of a noun's adjectives.
#[derive(Clone, Copy)]
enum NounStyle {
    /// a small striped red circle
    TextureFirst,
    /// a small red striped circle
    ColourFirst,
    /// a small red circle with stripes
    TextureLast,
}

/// `A`/`B` are the mentions with "a", `1`/`2` with "the", `R` is the relation.
const OBJECT: [&str; 8] = [
    "A",
    "there is A",
    "A in the picture",
    "this picture shows A",
    "you can see A",
    "the image contains A",
    "one of the things here is A",
    "a scene with A",
];
const PAIR: [&str; 6] = [
    "A and B",
    "there is A and B",
    "this picture shows A and B",
    "you can see both A and B",
    "a scene with A and B",
    "the image contains A as well as B",
];
const RELATION: [&str; 6] =
    ["1 is R 2", "A is R B", "A R B", "there is A R 2", "you can see A that is R B", "in this picture 1 lies R 2"];

impl Wording {
    fn draw(kind: CaptionKind, rng: &mut ChaCha8Rng) -> Self {
        let templates: &[&str] = match kind {
            CaptionKind::Object => &OBJECT,
            CaptionKind::Pair => &PAIR,
            CaptionKind::Relation => &RELATION,
        };
        let style = |rng: &mut ChaCha8Rng| {
            [NounStyle::TextureFirst, NounStyle::ColourFirst, NounStyle::TextureLast][rng.random_range(0..3)]
        };
        Self {
            template: templates[rng.random_range(0..templates.len())],
            relation: rng.random_range(0..2),
            nouns: [style(rng), style(rng)],
        }
    }

    fn say(&self, claim: &Claim) -> String {
        let noun = |index: usize| claim.mentions.get(index).map(|mention| noun(mention, self.nouns[index]));
        let indefinite = |index: usize| noun(index).map(|noun| format!("{} {noun}", article(&noun)));
        let definite = |index: usize| noun(index).map(|noun| format!("the {noun}"));
        let words: Vec<String> = self
            .template
            .split(' ')
            .filter_map(|word| match word {
                "A" => indefinite(0),
                "B" => indefinite(1),
                "1" => definite(0),
                "2" => definite(1),
                "R" => claim.relation.map(|relation| relation_words(relation)[self.relation].to_owned()),
                _ => Some(word.to_owned()),
            })
            .collect();
        let sentence = words.join(" ");
        let (first, rest) = sentence.split_at(1); // templates are ASCII and not empty
        format!("{}{rest} .", first.to_uppercase())
    }
}

pub(super) fn relation_words(relation: Relation) -> [&'static str; 2] {
    match relation {
        Relation::LeftOf => ["left of", "to the left of"],
        Relation::RightOf => ["right of", "to the right of"],
        Relation::Above => ["above", "higher than"],
        Relation::Below => ["below", "lower than"],
    }
}

fn noun(mention: &Mention, style: NounStyle) -> String {
    let size = mention.size.map(Size::word);
    let (colour, shape) = (Some(mention.colour.word()), Some(mention.shape.word()));
    let texture = mention.texture.map(Texture::word);
    let after = match mention.texture {
        Some(Texture::Striped) => Some("with stripes"),
        Some(Texture::Dotted) => Some("with dots"),
        Some(Texture::Plain) | None => None,
    };
    let words = match (style, after) {
        (NounStyle::TextureLast, Some(_)) => [size, colour, shape, after],
        (NounStyle::ColourFirst, _) => [size, colour, texture, shape],
        _ => [size, texture, colour, shape],
    };
    words.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

pub(super) fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenes::ScenesConfig;

    fn scenes() -> Vec<Scene> {
        let config = ScenesConfig::default();
        (0..config.count).map(|index| Scene::generate(&config, index)).collect()
    }

    #[test]
    fn captions_are_true_and_their_negatives_false() {
        for (index, scene) in scenes().iter().enumerate() {
            assert_eq!(scene.captions.len(), PER_SCENE);
            for caption in &scene.captions {
                assert!(is_true(&caption.claim, &scene.objects), "scene {index}: {}", caption.text);
                assert!(!is_true(&caption.negative.claim, &scene.objects), "scene {index}: {}", caption.negative.text);
                for (mention, &object) in caption.claim.mentions.iter().zip(&caption.objects) {
                    let fitting: Vec<usize> =
                        (0..scene.objects.len()).filter(|&i| mention.fits(&scene.objects[i])).collect();
                    assert_eq!(fitting, [object], "scene {index}: {}", caption.text);
                }
            }
            assert!(scene.captions.iter().any(|caption| caption.kind == CaptionKind::Object));
        }
    }

    #[test]
    fn a_negative_differs_in_one_place() {
        for scene in scenes().iter().take(400) {
            for caption in &scene.captions {
                let (claim, negative) = (&caption.claim, &caption.negative.claim);
                let mut differences = usize::from(claim.relation != negative.relation);
                for (a, b) in claim.mentions.iter().zip(&negative.mentions) {
                    differences += usize::from(a.shape != b.shape) + usize::from(a.colour != b.colour);
                    differences += usize::from(a.size != b.size) + usize::from(a.texture != b.texture);
                }
                assert_eq!(differences, 1, "{} / {}", caption.text, caption.negative.text);
                assert_ne!(caption.text, caption.negative.text);
            }
        }
    }

    #[test]
    fn a_caption_is_rarely_true_of_another_scene() {
        let scenes = scenes();
        let (mut all, mut accidental) = (0usize, 0usize);
        for (index, scene) in scenes.iter().enumerate() {
            for caption in &scene.captions {
                for step in 1..=40 {
                    let other = &scenes[(index + 47 * step) % scenes.len()];
                    all += 1;
                    accidental += usize::from(is_true(&caption.claim, &other.objects));
                }
            }
        }
        let share = accidental as f64 / all as f64;
        println!("{accidental} of {all} random mismatches are true by accident: {:.2} %", 100.0 * share);
        assert!(share < 0.015, "{share}");
    }

    #[test]
    fn the_text_alone_does_not_reveal_a_negative() {
        // Every word is about as frequent in negatives as in captions, so a model has to look.
        let mut counts = std::collections::BTreeMap::<String, [f64; 2]>::new();
        for scene in scenes() {
            for caption in &scene.captions {
                for (side, text) in [&caption.text, &caption.negative.text].into_iter().enumerate() {
                    for word in text.split(' ') {
                        counts.entry(word.to_lowercase()).or_default()[side] += 1.0;
                    }
                }
            }
        }
        for (word, [captions, negatives]) in counts {
            let ratio = captions / negatives;
            assert!((0.85..1.18).contains(&ratio), "{word}: {captions} in captions, {negatives} in negatives");
        }
    }

    #[test]
    fn claims_are_checked_by_objects_and_relation() {
        let scene = Scene::generate(&ScenesConfig::default(), 0);
        let mut objects = scene.objects[..2].to_vec();
        (objects[0].shape, objects[0].colour, objects[0].centre_px) = (Shape::Star, Colour::Red, [20.0, 50.0]);
        (objects[1].shape, objects[1].colour, objects[1].centre_px) = (Shape::Ring, Colour::Blue, [90.0, 50.0]);
        let star = Mention { shape: Shape::Star, colour: Colour::Red, size: None, texture: None };
        let ring = Mention { shape: Shape::Ring, colour: Colour::Blue, size: None, texture: None };
        let claim = |mentions: &[Mention], relation| Claim { mentions: mentions.to_vec(), relation };
        assert!(is_true(&claim(&[star], None), &objects));
        assert!(!is_true(&claim(&[Mention { colour: Colour::Blue, ..star }], None), &objects));
        assert!(is_true(&claim(&[star, ring], None), &objects));
        assert!(!is_true(&claim(&[star, star], None), &objects), "one object is not two");
        assert!(is_true(&claim(&[star, ring], Some(Relation::LeftOf)), &objects));
        assert!(is_true(&claim(&[ring, star], Some(Relation::RightOf)), &objects));
        assert!(!is_true(&claim(&[star, ring], Some(Relation::RightOf)), &objects));
        assert!(!is_true(&claim(&[star, ring], Some(Relation::Above)), &objects));
    }

    #[test]
    fn articles_fit_the_next_word() {
        let orange = Mention { shape: Shape::Ring, colour: Colour::Orange, size: None, texture: None };
        let wording = Wording { template: "A is R B", relation: 1, nouns: [NounStyle::TextureLast; 2] };
        let dotted = Mention { size: Some(Size::Large), texture: Some(Texture::Dotted), ..orange };
        let claim = Claim { mentions: vec![orange, dotted], relation: Some(Relation::LeftOf) };
        assert_eq!(wording.say(&claim), "An orange ring is to the left of a large orange ring with dots .");
    }
}
