//! Expressions that name one object of an image: RefCOCO, RefCOCO+ and RefCOCOg (Yu et al. 2016; Mao et al. 2016), in
//! the `refer` API's files.
//!
//! `refs(unc).p` (RefCOCO, RefCOCO+) or `refs(umd).p` (RefCOCOg) is a pickle: a list of dicts, one per object,
//! `{ref_id, ann_id, image_id, split, sentences: [{sent_id, raw, sent, …}], …}`. It is read as data; no code in it
//! runs. The same list as JSON, which the scenes use, is read too; the file's first character tells them apart.
//! `instances.json` beside it, in COCO's form, holds the images' names and sizes and the objects' boxes.
//!
//! One file holds every split, so it may serve for training, validation and test. Training and validation read `train`
//! and `val`; test reads every split but `train`: `val`, `testA`, `testB`, `test`.

use super::image_examples::{Collector, ImageExample};
use super::rows::{Row, first_character, for_each_row, parse};
use super::splits::Split;
use crate::{Error, Result};
use lxmert_core::boxes::BoxXyxy;
use lxmert_core::checkpoint::read_pickle;
use lxmert_core::files::open_text;
use serde::Deserialize;
use std::collections::HashMap;
use std::path::Path;

/// The file of boxes, beside the file of expressions.
pub const INSTANCES: &str = "instances.json";

/// One expression.
#[derive(Debug, Clone, PartialEq)]
pub struct Expression {
    /// The object's number in the file.
    pub ref_id: i64,
    /// The expression's number in the file.
    pub sent_id: i64,
    /// `train`, `val`, `testA`, `testB` or `test`.
    pub split: String,
    /// The image, as an index into the file's names.
    pub image: usize,
    /// The words as typed.
    pub sentence: String,
    /// The object's box in the image.
    pub box_xyxy_px: BoxXyxy,
    /// Width and height of the image.
    pub image_size_px: [f32; 2],
}

/// Whether to read a split of the file for `role`.
fn serves(split: &str, role: Split) -> bool {
    match role {
        Split::Train => split == "train",
        Split::Val => split == "val",
        Split::Test => split != "train",
    }
}

#[derive(Deserialize)]
struct Entry {
    ref_id: i64,
    ann_id: i64,
    image_id: i64,
    split: String,
    sentences: Vec<Sentence>,
}

impl Row for Entry {
    const FORM: &'static str =
        r#"{"ref_id": 1, "ann_id": 2, "image_id": 3, "split": "val", "sentences": [{"sent_id": 4, "raw": "…"}]}"#;
}

#[derive(Deserialize)]
struct Sentence {
    sent_id: i64,
    #[serde(default)]
    raw: String,
    #[serde(default)]
    sent: String,
}

/// The parts of `instances.json` that are read.
#[derive(Deserialize)]
struct Instances {
    images: Vec<Image>,
    annotations: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Image {
    id: i64,
    file_name: String,
    width: f32,
    height: f32,
}

#[derive(Deserialize)]
struct Annotation {
    id: i64,
    /// Left, top, width and height in pixels.
    bbox: [f32; 4],
}

impl ImageExample<1> for Expression {
    const NOUN: &'static str = "expression";

    /// Reads a file of expressions and the `instances.json` beside it.
    ///
    /// # Errors
    /// Returns an error if a file is missing or damaged, an image or a box is not in `instances.json`, or there is no
    /// expression for `role`.
    fn read(path: &Path, role: Split) -> Result<(Vec<String>, Vec<Self>)> {
        let beside = path.with_file_name(INSTANCES);
        if path.is_file() && !beside.is_file() {
            let reason = format!("{INSTANCES}, which holds the objects' boxes, is not beside it");
            return Err(Error::file(path, reason));
        }
        let instances = serde_json::from_reader(open_text(&beside)?);
        let instances: Instances = instances.map_err(lxmert_core::Error::json(&beside))?;
        let boxes: HashMap<i64, [f32; 4]> = instances.annotations.iter().map(|a| (a.id, a.bbox)).collect();
        let images: HashMap<i64, &Image> = instances.images.iter().map(|image| (image.id, image)).collect();
        let mut found = Collector::default();
        for_each_ref(path, |entry| {
            if !serves(&entry.split, role) {
                return Ok(());
            }
            let ref_id = entry.ref_id;
            let lacking = |what: &str, id: i64| format!("ref {ref_id}: {INSTANCES} holds no {what} {id}");
            let of = images.get(&entry.image_id).ok_or_else(|| lacking("image", entry.image_id))?;
            let [x, y, width, height] = *boxes.get(&entry.ann_id).ok_or_else(|| lacking("annotation", entry.ann_id))?;
            for Sentence { sent_id, raw, sent } in entry.sentences {
                found.push(sent_id, [&of.file_name], |[image]| Self {
                    ref_id,
                    sent_id,
                    split: entry.split.clone(),
                    image,
                    sentence: if raw.is_empty() { sent } else { raw },
                    box_xyxy_px: [x, y, x + width, y + height],
                    image_size_px: [of.width, of.height],
                })?;
            }
            Ok(())
        })?;
        found.finish(path)
    }

    fn images(&self) -> [usize; 1] {
        [self.image]
    }

    fn sentence(&self) -> &str {
        &self.sentence
    }

    fn labelled(&self) -> bool {
        true
    }
}

/// Calls `take` with each entry of a pickle or a JSON list.
fn for_each_ref(path: &Path, mut take: impl FnMut(Entry) -> std::result::Result<(), String>) -> Result<()> {
    if first_character(path)? == Some('[') {
        return for_each_row(path, |_, _, entry| take(entry));
    }
    let serde_json::Value::Array(entries) = read_pickle(path)? else {
        return Err(Error::file(
            path,
            "the pickle holds something other than a list; expected refs(unc).p or refs(umd).p",
        ));
    };
    for (row, entry) in (1..).zip(entries) {
        parse(entry).and_then(&mut take).map_err(|reason| Error::row(path, row, reason))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::PathBuf;

    const INSTANCES_JSON: &str = r#"{"info": {}, "images": [
        {"id": 12, "file_name": "COCO_train2014_000000000012.jpg", "width": 640, "height": 480, "license": 1},
        {"id": 7, "file_name": "unused.jpg", "width": 1, "height": 1},
        {"id": 581857, "file_name": "COCO_train2014_000000581857.jpg", "width": 427, "height": 640}],
        "annotations": [{"id": 5000000000, "image_id": 12, "bbox": [1.5, 2, 10, 20.25], "segmentation": [[1, 2]]},
        {"id": 489209, "bbox": [0, 0, 5, 5]}, {"id": 1719310, "bbox": [3, 4, 50, 60]}], "categories": []}"#;

    /// Writes the refs that `make_pickles.py` wrote, as `name`, beside [`INSTANCES_JSON`].
    fn folder(fixture: &str, name: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lxmert-core/tests/fixtures/pickle");
        let path = folder.path().join(name);
        std::fs::copy(fixtures.join(fixture), &path).unwrap();
        std::fs::write(folder.path().join(INSTANCES), INSTANCES_JSON).unwrap();
        (folder, path)
    }

    #[test]
    fn pickles_and_json_give_the_same_expressions() {
        let read = |path: &Path| Split::ALL.map(|role| Expression::read(path, role).unwrap());
        let (_folder, path) = folder("refs_protocol2.p", "refs(unc).p");
        let all = read(&path);
        let [(train_names, train), (val_names, val), (test_names, test)] = &all;
        assert_eq!(train_names, &["COCO_train2014_000000581857.jpg"]);
        assert_eq!(val_names, &["COCO_train2014_000000000012.jpg"]);
        // Test reads every split except train.
        assert_eq!(test_names, &["COCO_train2014_000000581857.jpg", "COCO_train2014_000000000012.jpg"]);
        let rows = |found: &[Expression]| -> Vec<(i64, i64, String, usize)> {
            found.iter().map(|e| (e.ref_id, e.sent_id, e.split.clone(), e.image)).collect()
        };
        assert_eq!(rows(train), [(0, 0, "train".into(), 0), (0, 1, "train".into(), 0)]);
        assert_eq!(rows(val), [(70000, 3, "val".into(), 0)]);
        assert_eq!(rows(test), [(1, 2, "testA".into(), 0), (70000, 3, "val".into(), 1)]);
        assert_eq!(train[0].sentence, "The left man's \"hat\"");
        assert_eq!((train[0].box_xyxy_px, train[0].image_size_px), ([3.0, 4.0, 53.0, 64.0], [427.0, 640.0]));
        assert_eq!(val[0].box_xyxy_px, [1.5, 2.0, 11.5, 22.25]);
        for fixture in ["refs_protocol0.p", "refs_protocol4.p", "refs.json"] {
            let (folder, path) = folder(fixture, "refs(umd).p");
            std::fs::write(folder.path().join(INSTANCES), format!("\u{feff}{INSTANCES_JSON}")).unwrap();
            assert_eq!(read(&path), all, "{fixture}");
        }
    }

    #[test]
    fn errors_name_the_ref_and_what_is_missing() {
        let (folder, path) = folder("refs.json", "refs.json");
        let error = |role| Expression::read(&path, role).unwrap_err().to_string();
        let instances = folder.path().join(INSTANCES);
        std::fs::write(&instances, INSTANCES_JSON.replace("489209", "1")).unwrap();
        let found = error(Split::Test);
        assert!(found.contains("row 2: ref 1: instances.json holds no annotation 489209"), "{found}");
        std::fs::write(&instances, INSTANCES_JSON.replace("581857,", "1,")).unwrap();
        let found = error(Split::Train);
        assert!(found.contains("row 1: ref 0: instances.json holds no image 581857"), "{found}");
        std::fs::write(&instances, "{").unwrap();
        assert!(error(Split::Train).contains("instances.json: this JSON is truncated"), "{}", error(Split::Train));
        std::fs::remove_file(&instances).unwrap();
        assert!(error(Split::Train).contains("is not beside it"), "{}", error(Split::Train));
        std::fs::write(&instances, INSTANCES_JSON).unwrap();
        std::fs::write(&path, json!([{"ref_id": 1}]).to_string()).unwrap();
        assert!(error(Split::Train).contains("row 1: it lacks ann_id"), "{}", error(Split::Train));
        std::fs::write(&path, "[]").unwrap();
        assert!(error(Split::Train).contains("holds no expression"), "{}", error(Split::Train));
        std::fs::write(&path, b"\x80\x02}q\x01.").unwrap();
        assert!(error(Split::Train).contains("other than a list"), "{}", error(Split::Train));
    }
}
