//! What is in a scene: objects with their attributes, places and boxes.

use super::ScenesConfig;
use super::captions::{self, Caption};
use lxmert_core::boxes::{self, BoxXyxy};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// An attribute: an enum whose values have an English word each.
macro_rules! attribute {
    ($(#[$doc:meta])* $name:ident: $count:literal { $($(#[$vdoc:meta])* $value:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum $name { $($(#[$vdoc])* $value),+ }

        impl $name {
            /// Every value, in label order.
            pub const ALL: [Self; $count] = [$(Self::$value),+];

            /// The word that captions use.
            pub fn word(self) -> &'static str {
                match self { $(Self::$value => $word),+ }
            }

            /// Position in `ALL`: the label of attribute heads.
            pub fn index(self) -> usize {
                self as usize
            }

            /// A value drawn uniformly.
            pub(crate) fn draw(rng: &mut impl Rng) -> Self {
                Self::ALL[rng.random_range(0..$count)]
            }

            /// A value other than `self`, drawn uniformly.
            pub(crate) fn draw_other(self, rng: &mut impl Rng) -> Self {
                Self::ALL[(self.index() + rng.random_range(1..$count)) % $count]
            }
        }
    };
}

attribute! {
    /// The outline of an object; the detector's classes.
    Shape: 8 {
        /// A disc.
        Circle = "circle",
        /// A square, turned by at most 0.2 rad.
        Square = "square",
        /// An isosceles triangle, point up.
        Triangle = "triangle",
        /// A five-pointed star.
        Star = "star",
        /// A disc with a round hole.
        Ring = "ring",
        /// An upright cross.
        Cross = "cross",
        /// A rhombus, taller than wide.
        Diamond = "diamond",
        /// A heart.
        Heart = "heart",
    }
}

attribute! {
    /// The colour of an object.
    Colour: 8 {
        /// Red.
        Red = "red",
        /// Orange.
        Orange = "orange",
        /// Yellow.
        Yellow = "yellow",
        /// Green.
        Green = "green",
        /// Blue.
        Blue = "blue",
        /// Purple.
        Purple = "purple",
        /// Pink.
        Pink = "pink",
        /// White.
        White = "white",
    }
}

attribute! {
    /// The size of an object; nothing lies between the two.
    Size: 2 {
        /// 8 to 11 px from centre to rim.
        Small = "small",
        /// 16 to 22 px from centre to rim.
        Large = "large",
    }
}

attribute! {
    /// What the object's surface looks like.
    Texture: 3 {
        /// One colour.
        Plain = "plain",
        /// Dark stripes.
        Striped = "striped",
        /// Dark dots.
        Dotted = "dotted",
    }
}

/// One object and how it is drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Object {
    /// Its outline.
    pub shape: Shape,
    /// Its colour.
    pub colour: Colour,
    /// Its size.
    pub size: Size,
    /// Its surface.
    pub texture: Texture,
    /// The tight box around its outline: x0 y0 x1 y1 in pixels.
    #[serde(rename = "box")]
    pub box_xyxy_px: BoxXyxy,
    /// Its centre in pixels.
    pub centre_px: [f32; 2],
    /// From the centre to the rim, in pixels.
    pub radius_px: f32,
    /// Turn in radians.
    pub rotation: f32,
}

/// A picture's content, from which pixels, boxes and captions follow.
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Its objects, drawn in this order; no two agree in all four attributes.
    pub objects: Vec<Object>,
    /// Seed of the background and of small variations of colour.
    pub pixel_seed: u64,
    /// Five captions with a hard negative each.
    pub captions: Vec<Caption>,
}

/// How much of the smaller of two boxes the other may cover.
const MAX_COVERED: f32 = 0.08;

impl Scene {
    /// Scene `index` of the data set; `config` is taken to be valid (see [`ScenesConfig::validate`]).
    pub fn generate(config: &ScenesConfig, index: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        rng.set_stream(index as u64);
        loop {
            let objects = draw_objects(config, &mut rng);
            let mut scene = Self {
                width: config.width,
                height: config.height,
                objects,
                pixel_seed: rng.next_u64(),
                captions: Vec::new(),
            };
            // A crowd that leaves no clear relation or no false variant is drawn again.
            if let Some(captions) = captions::describe(&scene, &mut rng) {
                scene.captions = captions;
                return scene;
            }
        }
    }
}

fn draw_objects(config: &ScenesConfig, rng: &mut ChaCha8Rng) -> Vec<Object> {
    loop {
        let count = rng.random_range(config.min_objects..=config.max_objects);
        let mut objects: Vec<Object> = Vec::with_capacity(count);
        // Where a place cannot be found the whole layout starts again, so that crowded scenes are
        // not rarer than their share by much.
        for _ in 0..60 * count {
            let object = draw_object(config, rng);
            if objects.iter().all(|other| apart(other, &object) && differ(other, &object)) {
                objects.push(object);
                if objects.len() == count {
                    return objects;
                }
            }
        }
    }
}

fn draw_object(config: &ScenesConfig, rng: &mut ChaCha8Rng) -> Object {
    let (shape, colour) = (Shape::draw(rng), Colour::draw(rng));
    let (size, texture) = (Size::draw(rng), Texture::draw(rng));
    let radius_px = match size {
        Size::Small => rng.random_range(8.0..11.0f32),
        Size::Large => rng.random_range(16.0..22.0f32),
    };
    let rotation = rng.random_range(-0.2..0.2f32);
    let margin = radius_px + 2.0;
    let centre_px = [
        rng.random_range(margin..config.width as f32 - margin),
        rng.random_range(margin..config.height as f32 - margin),
    ];
    let outline = super::draw::Outline::new(shape, centre_px, radius_px, rotation);
    Object { shape, colour, size, texture, box_xyxy_px: outline.bounds_px(), centre_px, radius_px, rotation }
}

fn apart(a: &Object, b: &Object) -> bool {
    let (p, q) = (&a.box_xyxy_px, &b.box_xyxy_px);
    let shared = boxes::area(&[p[0].max(q[0]), p[1].max(q[1]), p[2].min(q[2]), p[3].min(q[3])]);
    shared <= MAX_COVERED * boxes::area(p).min(boxes::area(q))
}

fn differ(a: &Object, b: &Object) -> bool {
    (a.shape, a.colour, a.size, a.texture) != (b.shape, b.colour, b.size, b.texture)
}
