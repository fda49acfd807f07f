//! The contents of a scene: objects with their attributes, positions and boxes.

use super::captions::Caption;
use lxmert_core::boxes::BoxXyxy;
use rand::Rng;
use serde::{Deserialize, Serialize};

/// Defines an attribute: an enum with an English word for each value.
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

            /// Position in `ALL`, which is its label in attribute heads.
            pub fn index(self) -> usize {
                self as usize
            }

            /// Draws a value uniformly.
            pub(crate) fn draw(rng: &mut impl Rng) -> Self {
                Self::ALL[rng.random_range(0..$count)]
            }

            /// Draws a value other than `self` uniformly.
            pub(crate) fn draw_other(self, rng: &mut impl Rng) -> Self {
                Self::ALL[(self.index() + rng.random_range(1..$count)) % $count]
            }
        }
    };
}

attribute! {
    /// The outline of an object, which is its class for the detector.
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
    /// The size of an object; there is a gap between the two.
    Size: 2 {
        /// 8 to 11 px from centre to rim.
        Small = "small",
        /// 16 to 22 px from centre to rim.
        Large = "large",
    }
}

attribute! {
    /// The surface of an object.
    Texture: 3 {
        /// One colour.
        Plain = "plain",
        /// Dark stripes.
        Striped = "striped",
        /// Dark dots.
        Dotted = "dotted",
    }
}

/// One object and how to draw it.
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
    /// Distance from the centre to the rim, in pixels.
    pub radius_px: f32,
    /// Rotation in radians.
    pub rotation: f32,
}

/// A picture's content, which determines pixels, boxes and captions.
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Its objects, in drawing order; no two agree in all four attributes.
    pub objects: Vec<Object>,
    /// Seed of the background and of small colour variations.
    pub pixel_seed: u64,
    /// Five captions, each with a hard negative.
    pub captions: Vec<Caption>,
}
