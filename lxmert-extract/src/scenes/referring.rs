//! Expressions that name one object of a scene, in the format of the `refer` API's files (RefCOCO, RefCOCO+, RefCOCOg).
//! `referring.json` holds the contents of the pickle `refs(unc).p`: one entry per object, with its split and its
//! expressions. `instances.json`, in COCO's format, holds the pictures and the objects' boxes.

use super::captions::{self, Relation};
use super::records::SceneRecord;
use super::references::{Reference, Said};
use super::scene::{Object, Shape};
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde_json::{Value, json};

/// An entry of `refs(unc).p`: one object and its expressions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReferenceEntry {
    /// Number of the entry.
    pub ref_id: usize,
    /// The object's entry in `instances.json`.
    pub ann_id: usize,
    /// The picture's entry there.
    pub image_id: usize,
    /// `train`, `val` or `test`.
    pub split: String,
    /// The expressions.
    pub sentences: Vec<ExpressionEntry>,
    /// Their numbers.
    pub sent_ids: Vec<usize>,
    /// The object's shape.
    pub category_id: usize,
    /// The picture's name.
    pub file_name: String,
}

/// An expression in `refs(unc).p`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExpressionEntry {
    /// Its number in the file.
    pub sent_id: usize,
    /// The expression as typed.
    pub raw: String,
    /// The expression in lower case without punctuation.
    pub sent: String,
    /// The words of `sent`.
    pub tokens: Vec<String>,
}

/// Expressions that name only object `index`: one by its attributes and, if the scene allows it, one by its position
/// relative to another object.
pub fn expressions(objects: &[Object], index: usize, rng: &mut ChaCha8Rng) -> Vec<String> {
    let mut found: Vec<String> = by_attributes(objects, index, rng).into_iter().collect();
    found.extend(by_place(objects, index, rng));
    found
}

fn by_attributes(objects: &[Object], index: usize, rng: &mut ChaCha8Rng) -> Option<String> {
    let (shape, colour) = *[(true, false), (false, true), (true, true)].choose(rng)?;
    let said = Said { shape, colour, size: rng.random_bool(0.3), texture: rng.random_bool(0.3) };
    let reference = Reference::unique(objects, index, said, rng)?;
    Some(format!("the {}", reference.singular()))
}

/// "the star above the red ring": there may be several stars, but only this one is above the ring, and clearly so.
fn by_place(objects: &[Object], index: usize, rng: &mut ChaCha8Rng) -> Option<String> {
    let object = &objects[index];
    let mut others: Vec<usize> = (0..objects.len()).filter(|&other| other != index).collect();
    others.shuffle(rng);
    let mut relations = Relation::ALL;
    relations.shuffle(rng);
    let says = |shape, colour| Reference::of(object, Said { shape, colour, size: false, texture: false });
    for other in others {
        for relation in relations {
            // The shortest description that the relation makes unambiguous.
            for named in [says(false, false), says(true, false), says(false, true)] {
                let fits =
                    |i: usize| i != other && named.fits(&objects[i]) && relation.holds(&objects[i], &objects[other]);
                let alone = (0..objects.len()).all(|i| fits(i) == (i == index));
                if alone && named.count(objects) > 1 && relation.clearly_holds(object, &objects[other]) {
                    let said = Said { shape: true, colour: rng.random_bool(0.5), size: false, texture: false };
                    let from = Reference::unique(objects, other, said, rng)?;
                    let relation = captions::relation_words(relation)[0];
                    return Some(format!("the {} {relation} the {}", named.singular(), from.singular()));
                }
            }
        }
    }
    None
}

/// The entries of `referring.json`, from the expressions for every object of every scene; each scene comes with its
/// split.
pub(crate) fn entries(scenes: &[(&SceneRecord, &str, Vec<Vec<String>>)]) -> Vec<ReferenceEntry> {
    let (mut entries, mut ann_id, mut sent_id) = (Vec::new(), 0, 0);
    for (image_id, (scene, split, of_objects)) in scenes.iter().enumerate() {
        for (object, expressions) in scene.objects.iter().zip(of_objects) {
            let sentences: Vec<ExpressionEntry> = (sent_id..)
                .zip(expressions)
                .map(|(sent_id, sent)| ExpressionEntry {
                    sent_id,
                    raw: sent.clone(),
                    sent: sent.clone(),
                    tokens: sent.split(' ').map(str::to_string).collect(),
                })
                .collect();
            sent_id += sentences.len();
            if !sentences.is_empty() {
                entries.push(ReferenceEntry {
                    ref_id: entries.len(),
                    ann_id,
                    image_id,
                    split: (*split).to_string(),
                    sent_ids: sentences.iter().map(|sentence| sentence.sent_id).collect(),
                    sentences,
                    category_id: object.shape.index() + 1,
                    file_name: scene.image.clone(),
                });
            }
            ann_id += 1;
        }
    }
    entries
}

/// The contents of `instances.json`: pictures, boxes (x y width height in pixels), and the shapes as categories, in
/// COCO's format.
pub(crate) fn instances<'a>(scenes: impl Iterator<Item = &'a SceneRecord>) -> Value {
    let (mut images, mut annotations) = (Vec::new(), Vec::new());
    for (image_id, scene) in scenes.enumerate() {
        images.push(json!({"id": image_id, "file_name": scene.image, "width": scene.width, "height": scene.height}));
        for object in &scene.objects {
            let [x0, y0, x1, y1] = object.box_xyxy_px;
            annotations.push(json!({
                "id": annotations.len(),
                "image_id": image_id,
                "category_id": object.shape.index() + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": 0,
            }));
        }
    }
    let categories =
        Shape::ALL.map(|shape| json!({"id": shape.index() + 1, "name": shape.word(), "supercategory": "shape"}));
    json!({"images": images, "annotations": annotations, "categories": categories})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenes::scene::{Colour, Size, Texture};
    use crate::scenes::tasks::rng_of;
    use crate::scenes::{Scene, ScenesConfig};

    /// The objects that match an expression, read from its words alone.
    fn fitting(expression: &str, objects: &[Object]) -> Vec<usize> {
        let reference = |words: &str| {
            let has = |word: &str| words.split(' ').any(|other| other == word);
            Reference {
                shape: Shape::ALL.into_iter().find(|shape| has(shape.word())),
                colour: Colour::ALL.into_iter().find(|colour| has(colour.word())),
                size: Size::ALL.into_iter().find(|size| has(size.word())),
                texture: Texture::ALL.into_iter().find(|texture| has(texture.word())),
            }
        };
        let all = |words: &str| -> Vec<usize> {
            (0..objects.len()).filter(|&i| reference(words).fits(&objects[i])).collect()
        };
        let words = expression.strip_prefix("the ").unwrap();
        let relations = [
            (" left of the ", Relation::LeftOf),
            (" right of the ", Relation::RightOf),
            (" above the ", Relation::Above),
            (" below the ", Relation::Below),
        ];
        for (between, relation) in relations {
            if let Some((named, from)) = words.split_once(between) {
                let [from] = all(from)[..] else { panic!("{expression}: its reference object is ambiguous") };
                let mut named = all(named);
                named.retain(|&i| i != from && relation.holds(&objects[i], &objects[from]));
                return named;
            }
        }
        all(words)
    }

    #[test]
    fn expressions_name_one_object_by_attributes_and_by_place() {
        let config = ScenesConfig::default();
        let (mut objects, mut attributes, mut places) = (0, 0, 0);
        for index in 0..300 {
            let scene = Scene::generate(&config, index);
            let mut rng = rng_of(&config, index);
            for object in 0..scene.objects.len() {
                objects += 1;
                for expression in expressions(&scene.objects, object, &mut rng) {
                    assert_eq!(fitting(&expression, &scene.objects), [object], "scene {index}: {expression}");
                    let by_place = expression.matches("the ").count() == 2;
                    *(if by_place { &mut places } else { &mut attributes }) += 1;
                }
            }
        }
        assert!(attributes * 10 > objects * 9 && places * 5 > objects, "{attributes}, {places} of {objects} objects");
    }

    #[test]
    fn entries_and_instances_share_their_numbers() {
        let config = ScenesConfig::default();
        let records: Vec<SceneRecord> =
            (0..20).map(|index| SceneRecord::new(index, &Scene::generate(&config, index))).collect();
        let scenes: Vec<_> = records
            .iter()
            .enumerate()
            .map(|(index, scene)| {
                let mut rng = rng_of(&config, index);
                let of = (0..scene.objects.len()).map(|i| expressions(&scene.objects, i, &mut rng)).collect();
                (scene, "train", of)
            })
            .collect();
        let instances = instances(records.iter());
        for (number, entry) in entries(&scenes).iter().enumerate() {
            assert_eq!(entry.ref_id, number);
            let annotation = &instances["annotations"][entry.ann_id];
            assert_eq!((&annotation["id"], &annotation["image_id"]), (&json!(entry.ann_id), &json!(entry.image_id)));
            let image = &instances["images"][entry.image_id];
            assert_eq!(image["file_name"], entry.file_name);
            let record = records.iter().find(|record| record.image == entry.file_name).unwrap();
            for sentence in &entry.sentences {
                let [named] = fitting(&sentence.sent, &record.objects)[..] else { panic!("{}", sentence.sent) };
                let [x0, y0, x1, y1] = record.objects[named].box_xyxy_px;
                assert_eq!(annotation["bbox"], json!([x0, y0, x1 - x0, y1 - y0]), "{}", sentence.sent);
            }
        }
    }
}
