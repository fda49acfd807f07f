//! Random scenes: objects are drawn and placed so that none hides another.

use super::ScenesConfig;
use super::captions;
use super::draw::Outline;
use super::scene::{Colour, Object, Scene, Shape, Size, Texture};
use lxmert_core::boxes;
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How much of the smaller of two boxes may be covered.
const MAX_COVERED: f32 = 0.08;

impl Scene {
    /// Scene `index` of the data set; `config` must be valid (see [`ScenesConfig::validate`]).
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
            // Draw again if a scene has no clear relation or no false variant.
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
        // If an object cannot be placed, restart the whole layout, so that crowded scenes stay almost as frequent as
        // intended.
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
    let outline = Outline::new(shape, centre_px, radius_px, rotation);
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
