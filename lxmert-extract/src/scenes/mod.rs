//! The built-in data set: scenes that a seeded generator draws, with boxes and captions that are true by construction.
//!
//! A scene has 2 to 6 objects, each with a shape, a colour, a size and a texture, on a cluttered background. Five
//! captions name objects and their relations; each caption has a hard negative, the same sentence with one attribute or
//! the relation changed so that it is false.
//! Scene `i` of seed `s` does not depend on the count, so a longer data set extends a shorter one.
//!
//! * [`layout`]: object positions · [`draw`]: pixels · [`captions`]: sentences and their truth
//! * [`references`]: objects in words · [`questions`]: with answers · [`statements`]: about two scenes
//! * [`entailment`]: sentences entailed, contradicted or left open · [`referring`]: expressions that name one object
//! * [`write`](mod@write): writes the files and reads them back · [`tasks`]: the files of the tasks

pub mod captions;
pub mod cli;
pub mod draw;
pub mod entailment;
pub mod layout;
pub mod questions;
pub mod records;
pub mod references;
pub mod referring;
pub mod scene;
pub mod statements;
pub mod tasks;
pub mod write;

pub use captions::{Caption, CaptionKind, Negative, Swap};
pub use records::{Annotations, SceneRecord};
pub use scene::{Colour, Object, Scene, Shape, Size, Texture};
pub use write::{Summary, generate, read_annotations};

use serde::{Deserialize, Serialize};

/// What to generate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScenesConfig {
    /// Number of scenes.
    pub count: usize,
    /// Seed of layouts, captions, pixels and the split.
    pub seed: u64,
    /// Width of every picture in pixels, at least [`ScenesConfig::MIN_SIDE`].
    pub width: u32,
    /// Height of every picture in pixels, at least [`ScenesConfig::MIN_SIDE`].
    pub height: u32,
    /// Fewest objects in a scene, at least 2 so that a relation can be stated.
    pub min_objects: usize,
    /// Most objects in a scene, at most [`ScenesConfig::MAX_OBJECTS`].
    pub max_objects: usize,
}

impl ScenesConfig {
    /// The smallest side that has room for six objects of both sizes.
    pub const MIN_SIDE: u32 = 96;
    /// The largest side; objects do not grow with the picture.
    pub const MAX_SIDE: u32 = 4096;
    /// The most objects that fit into [`ScenesConfig::MIN_SIDE`] with little overlap.
    pub const MAX_OBJECTS: usize = 6;
    /// Maximum number of scenes in one data set; file names have room for it.
    pub const MAX_COUNT: usize = 100_000;

    /// Checks every field.
    ///
    /// # Errors
    /// Names the first invalid field, with its value and its range.
    pub fn validate(&self) -> lxmert_core::Result<()> {
        let bad = |message: String| Err(lxmert_core::Error::Argument(message));
        if self.count == 0 || self.count > Self::MAX_COUNT {
            return bad(format!("{} scenes: between 1 and {} can be generated", self.count, Self::MAX_COUNT));
        }
        for (name, side) in [("width", self.width), ("height", self.height)] {
            if !(Self::MIN_SIDE..=Self::MAX_SIDE).contains(&side) {
                return bad(format!(
                    "{name} {side}: a scene's side is between {} and {} px",
                    Self::MIN_SIDE,
                    Self::MAX_SIDE
                ));
            }
        }
        if self.min_objects < 2 || self.min_objects > self.max_objects || self.max_objects > Self::MAX_OBJECTS {
            return bad(format!(
                "{} to {} objects: a scene holds 2 to {}",
                self.min_objects,
                self.max_objects,
                Self::MAX_OBJECTS
            ));
        }
        Ok(())
    }
}

impl Default for ScenesConfig {
    fn default() -> Self {
        Self { count: 2000, seed: 0, width: 128, height: 128, min_objects: 2, max_objects: 6 }
    }
}
