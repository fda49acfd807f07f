//! Descriptions of objects by some of their attributes, for questions and statements.

use super::captions;
use super::scene::{Colour, Object, Shape, Size, Texture};
use rand::Rng;
use rand::seq::IndexedRandom;

/// A description of objects; attributes that are `None` are not mentioned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reference {
    /// The outline; "object" if `None`.
    pub shape: Option<Shape>,
    /// The colour.
    pub colour: Option<Colour>,
    /// The size.
    pub size: Option<Size>,
    /// The surface.
    pub texture: Option<Texture>,
}

/// Which attributes a reference mentions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    /// The outline.
    pub shape: bool,
    /// The colour.
    pub colour: bool,
    /// The size.
    pub size: bool,
    /// The surface.
    pub texture: bool,
}

impl Reference {
    /// A reference that mentions these attributes of `object`.
    pub fn of(object: &Object, said: Said) -> Self {
        Self {
            shape: said.shape.then_some(object.shape),
            colour: said.colour.then_some(object.colour),
            size: said.size.then_some(object.size),
            texture: said.texture.then_some(object.texture),
        }
    }

    /// Whether an object matches.
    pub fn fits(&self, object: &Object) -> bool {
        self.shape.is_none_or(|shape| shape == object.shape)
            && self.colour.is_none_or(|colour| colour == object.colour)
            && self.size.is_none_or(|size| size == object.size)
            && self.texture.is_none_or(|texture| texture == object.texture)
    }

    /// How many of `objects` match.
    pub fn count(&self, objects: &[Object]) -> usize {
        objects.iter().filter(|object| self.fits(object)).count()
    }

    /// The shortest reference that mentions `said` and matches only object `index`; size or texture are added if
    /// needed. `None` if even both do not single it out.
    pub fn unique(objects: &[Object], index: usize, said: Said, rng: &mut impl Rng) -> Option<Self> {
        let with = |size, texture| {
            Self::of(&objects[index], Said { size: said.size || size, texture: said.texture || texture, ..said })
        };
        let middle = if rng.random_bool(0.5) { [(true, false), (false, true)] } else { [(false, true), (true, false)] };
        let tries = [(false, false), middle[0], middle[1], (true, true)];
        tries.into_iter().map(|(size, texture)| with(size, texture)).find(|reference| reference.count(objects) == 1)
    }

    /// The same with one attribute changed so that no object matches. `None` if every attempt matches one.
    pub fn changed(&self, objects: &[Object], rng: &mut impl Rng) -> Option<Self> {
        for _ in 0..20 {
            let mut other = *self;
            let said = [self.shape.is_some(), self.colour.is_some(), self.size.is_some(), self.texture.is_some()];
            let which: Vec<usize> = (0..4).filter(|&i| said[i]).collect();
            match which.choose(rng)? {
                0 => other.shape = self.shape.map(|shape| shape.draw_other(rng)),
                1 => other.colour = self.colour.map(|colour| colour.draw_other(rng)),
                2 => other.size = self.size.map(|size| size.draw_other(rng)),
                _ => other.texture = self.texture.map(|texture| texture.draw_other(rng)),
            }
            if other.count(objects) == 0 {
                return Some(other);
            }
        }
        None
    }

    /// "small striped red circle", "red object".
    pub fn singular(&self) -> String {
        self.words(self.shape.map_or("object", Shape::word).to_string())
    }

    /// "small striped red circles", "red objects".
    pub fn plural(&self) -> String {
        let noun = self.shape.map_or("object", Shape::word);
        self.words(format!("{noun}{}", if noun.ends_with('s') { "es" } else { "s" }))
    }

    /// "a red circle", "an orange star".
    pub fn with_article(&self) -> String {
        let noun = self.singular();
        format!("{} {noun}", captions::article(&noun))
    }

    fn words(&self, noun: String) -> String {
        let (size, colour) = (self.size.map(Size::word), self.colour.map(Colour::word));
        let adjectives = [size, self.texture.map(Texture::word), colour];
        adjectives.into_iter().flatten().map(str::to_string).chain([noun]).collect::<Vec<_>>().join(" ")
    }
}
