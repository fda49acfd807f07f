//! The scenes' records: the contents of each scene, and its split.

use super::ScenesConfig;
use super::captions::Caption;
use super::scene::{Object, Scene};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// The value of `format` in `scenes.json`.
pub const FORMAT: &str = "lxmert-scenes/1";

/// The contents of `scenes.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Annotations {
    /// [`FORMAT`].
    pub format: String,
    /// The settings of the generator.
    pub config: ScenesConfig,
    /// One record per scene, in the order of the pictures' names.
    pub scenes: Vec<SceneRecord>,
}

/// What is known about one picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SceneRecord {
    /// The picture's name in `images/`.
    pub image: String,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// The objects, boxes in pixels.
    pub objects: Vec<Object>,
    /// The captions in the order of `results.csv`, each with its hard negative.
    pub captions: Vec<Caption>,
}

impl SceneRecord {
    /// The record of scene `index`.
    pub fn new(index: usize, scene: &Scene) -> Self {
        Self {
            image: image_name(index),
            width: scene.width,
            height: scene.height,
            objects: scene.objects.clone(),
            captions: scene.captions.clone(),
        }
    }
}

/// Names of the pictures, by split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScenesSplits {
    /// Pictures for training.
    pub train: Vec<String>,
    /// Pictures for choosing a checkpoint.
    pub val: Vec<String>,
    /// Pictures for reporting results.
    pub test: Vec<String>,
}

/// Name of the picture of scene `index`.
pub fn image_name(index: usize) -> String {
    format!("{index:05}.png")
}

/// Splits `count` scenes 80/10/10, shuffled by `seed`; each part is sorted by name.
pub fn split(count: usize, seed: u64) -> ScenesSplits {
    let mut order: Vec<usize> = (0..count).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(u64::MAX); // scenes use the streams from 0 up
    order.shuffle(&mut rng);
    let held_out = count / 10;
    let names = |part: &[usize]| {
        let mut part = part.to_vec();
        part.sort_unstable();
        part.into_iter().map(image_name).collect()
    };
    ScenesSplits {
        test: names(&order[..held_out]),
        val: names(&order[held_out..2 * held_out]),
        train: names(&order[2 * held_out..]),
    }
}
