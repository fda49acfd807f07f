//! Expressions that name one object of an image: RefCOCO, RefCOCO+ and RefCOCOg (Yu et al. 2016; Mao et al. 2016), in the
//! `refer` API's files.
//!
//! `refs(unc).p` (RefCOCO, RefCOCO+) or `refs(umd).p` (RefCOCOg) is a pickle: a list of dicts, one an object, `{ref_id, ann_id,
//! image_id, split, sentences: [{sent_id, raw, sent, …}], …}`. It is read as data and no code of it runs. The same list as
//! JSON, as the scenes have it, is read too; the file's first character tells which it is. `instances.json` beside it, in
//! COCO's form, holds the images' names and sizes and the objects' boxes.
//!
//! One file holds every split, so the files to train on, to choose by and to report on are mostly the same one:
//! [`Role`] says which of its splits are read.

use super::image_examples::{ImageExample, ImageExamples};
use super::json_list::{first_character, for_each_entry};
use crate::{Error, Result};
use lxmert_core::boxes::BoxXyxy;
use lxmert_core::checkpoint::read_pickle;
use lxmert_core::features::FeatureStore;
use lxmert_core::text::WordPiece;
use serde::Deserialize;
use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

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
    /// The words, as they were typed.
    pub sentence: String,
    /// The object's box in the image.
    pub box_xyxy_px: BoxXyxy,
    /// Width and height of the image that the box is in.
    pub image_size_px: [f32; 2],
}

/// What the expressions of a file are read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// To learn from: the split `train`.
    Train,
    /// To choose the best epoch by: `val`.
    Validate,
    /// To report on: every split but `train`.
    Test,
}

impl Role {
    fn takes(self, split: &str) -> bool {
        match self {
            Self::Train => split == "train",
            Self::Validate => split == "val",
            Self::Test => split != "train",
        }
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

#[derive(Deserialize)]
struct Sentence {
    sent_id: i64,
    #[serde(default)]
    raw: String,
    #[serde(default)]
    sent: String,
}

/// What is read of `instances.json`.
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

impl Expression {
    /// Reads the expressions of a file whose split `takes` says yes to, with the `instances.json` beside it: the names of
    /// their images, and the expressions.
    ///
    /// # Errors
    /// When a file is missing or damaged, names an image or a box that `instances.json` lacks.
    pub fn read_splits(path: &Path, takes: impl Fn(&str) -> bool) -> Result<(Vec<String>, Vec<Self>)> {
        let beside = path.with_file_name(INSTANCES);
        if path.is_file() && !beside.is_file() {
            let reason = format!("{INSTANCES}, which holds the objects' boxes, does not lie beside it");
            return Err(Error::file(path, reason));
        }
        let mut entries = Vec::new();
        for_each_ref(path, |row, entry| {
            if takes(&entry.split) {
                entries.push((row, entry));
            }
            Ok(())
        })?;
        let file = BufReader::with_capacity(1 << 20, File::open(&beside).map_err(Error::io(&beside))?);
        let instances: Instances = serde_json::from_reader(file).map_err(lxmert_core::Error::json(&beside))?;
        let boxes: HashMap<i64, [f32; 4]> = instances.annotations.iter().map(|a| (a.id, a.bbox)).collect();
        let places: HashMap<i64, usize> = instances.images.iter().enumerate().map(|(i, image)| (image.id, i)).collect();

        // Of the images, only those with an expression.
        let mut names = Vec::new();
        let mut number: HashMap<usize, usize> = HashMap::new();
        let mut expressions = Vec::new();
        for (row, entry) in entries {
            let lacking = |what: &str, id: i64| {
                Error::row(path, row, format!("ref {}: {INSTANCES} holds no {what} {id}", entry.ref_id))
            };
            let place = *places.get(&entry.image_id).ok_or_else(|| lacking("image", entry.image_id))?;
            let [x, y, width, height] = *boxes.get(&entry.ann_id).ok_or_else(|| lacking("annotation", entry.ann_id))?;
            let of = &instances.images[place];
            let image = *number.entry(place).or_insert_with(|| {
                names.push(of.file_name.clone());
                names.len() - 1
            });
            for sentence in entry.sentences {
                expressions.push(Self {
                    ref_id: entry.ref_id,
                    sent_id: sentence.sent_id,
                    split: entry.split.clone(),
                    image,
                    sentence: if sentence.raw.is_empty() { sentence.sent } else { sentence.raw },
                    box_xyxy_px: [x, y, x + width, y + height],
                    image_size_px: [of.width, of.height],
                });
            }
        }
        Ok((names, expressions))
    }
}

/// Calls `take` with each entry and its number, counted from 1.
fn for_each_ref(path: &Path, mut take: impl FnMut(usize, Entry) -> std::result::Result<(), String>) -> Result<()> {
    if first_character(path)? == Some('[') {
        return for_each_entry(path, take);
    }
    let serde_json::Value::Array(entries) = read_pickle(path)? else {
        return Err(Error::file(path, "is a pickle of something other than a list; expected refs(unc).p or refs(umd).p"));
    };
    for (row, entry) in (1..).zip(entries) {
        let entry = serde_json::from_value(entry).map_err(|error| Error::row(path, row, error.to_string()))?;
        take(row, entry).map_err(|reason| Error::row(path, row, reason))?;
    }
    Ok(())
}

impl ImageExample<1> for Expression {
    fn read(path: &Path) -> Result<(Vec<String>, Vec<Self>)> {
        Self::read_splits(path, |_| true)
    }

    fn images(&self) -> [usize; 1] {
        [self.image]
    }

    fn sentence(&self) -> &str {
        &self.sentence
    }
}

/// The expressions of one or more files, ready to be put before a model.
pub type ExpressionSet = ImageExamples<Expression, 1>;

/// Reads the expressions of `files` that serve `role`.
///
/// # Errors
/// When a file cannot be understood, or too many images have no features.
pub fn read_set(
    files: &[PathBuf],
    role: Role,
    store: &FeatureStore,
    text: (&WordPiece, usize),
    allow_missing_images: bool,
) -> Result<ExpressionSet> {
    let takes = |split: &str| role.takes(split);
    let read = files.iter().map(|path| Expression::read_splits(path, takes)).collect::<Result<_>>()?;
    ExpressionSet::of(read, store, text, allow_missing_images)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const INSTANCES_JSON: &str = r#"{"info": {}, "images": [
        {"id": 12, "file_name": "COCO_train2014_000000000012.jpg", "width": 640, "height": 480, "license": 1},
        {"id": 7, "file_name": "unused.jpg", "width": 1, "height": 1},
        {"id": 581857, "file_name": "COCO_train2014_000000581857.jpg", "width": 427, "height": 640}],
        "annotations": [{"id": 5000000000, "image_id": 12, "bbox": [1.5, 2, 10, 20.25], "segmentation": [[1, 2]]},
        {"id": 489209, "bbox": [0, 0, 5, 5]}, {"id": 1719310, "bbox": [3, 4, 50, 60]}], "categories": []}"#;

    /// The refs that `make_pickles.py` wrote, as `name`, beside [`INSTANCES_JSON`].
    fn folder(fixture: &str, name: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lxmert-core/tests/fixtures/pickle");
        let path = folder.path().join(name);
        std::fs::copy(fixtures.join(fixture), &path).unwrap();
        std::fs::write(folder.path().join(INSTANCES), INSTANCES_JSON).unwrap();
        (folder, path)
    }

    #[test]
    fn the_pickle_of_the_refer_api_and_the_same_list_as_json_give_the_same_expressions() {
        let (_pickled, path) = folder("refs_protocol2.p", "refs(unc).p");
        let (names, found) = Expression::read(&path).unwrap();
        assert_eq!(names, ["COCO_train2014_000000581857.jpg", "COCO_train2014_000000000012.jpg"]);
        let row = |e: &Expression| (e.ref_id, e.sent_id, e.split.clone(), e.image);
        assert_eq!(
            found.iter().map(row).collect::<Vec<_>>(),
            [(0, 0, "train".into(), 0), (0, 1, "train".into(), 0), (1, 2, "testA".into(), 0), (70000, 3, "val".into(), 1)]
        );
        assert_eq!(found[0].sentence, "The left man's \"hat\"");
        assert_eq!((found[0].box_xyxy_px, found[0].image_size_px), ([3.0, 4.0, 53.0, 64.0], [427.0, 640.0]));
        assert_eq!(found[3].box_xyxy_px, [1.5, 2.0, 11.5, 22.25]);
        for fixture in ["refs_protocol0.p", "refs_protocol4.p", "refs.json"] {
            let (_folder, path) = folder(fixture, "refs(umd).p");
            assert_eq!(Expression::read(&path).unwrap(), (names.clone(), found.clone()), "{fixture}");
        }
    }

    #[test]
    fn each_role_reads_its_splits() {
        let takes = |role: Role| ["train", "val", "testA", "testB", "test"].map(|split| role.takes(split));
        assert_eq!(takes(Role::Train), [true, false, false, false, false]);
        assert_eq!(takes(Role::Validate), [false, true, false, false, false]);
        assert_eq!(takes(Role::Test), [false, true, true, true, true]);
        let (_folder, path) = folder("refs_protocol2.p", "refs(unc).p");
        let (names, found) = Expression::read_splits(&path, |split| Role::Validate.takes(split)).unwrap();
        assert_eq!((names, found.len()), (vec!["COCO_train2014_000000000012.jpg".to_string()], 1));
    }

    #[test]
    fn errors_name_the_ref_and_what_is_missing() {
        let (folder, path) = folder("refs.json", "refs.json");
        let error = || Expression::read(&path).unwrap_err().to_string();
        let instances = folder.path().join(INSTANCES);
        std::fs::write(&instances, INSTANCES_JSON.replace("489209", "1")).unwrap();
        assert!(error().contains("row 2: ref 1: instances.json holds no annotation 489209"), "{}", error());
        std::fs::write(&instances, INSTANCES_JSON.replace("581857,", "1,")).unwrap();
        assert!(error().contains("row 1: ref 0: instances.json holds no image 581857"), "{}", error());
        std::fs::write(&instances, "{").unwrap();
        assert!(error().contains("instances.json"), "{}", error());
        std::fs::remove_file(&instances).unwrap();
        assert!(error().contains("does not lie beside it"), "{}", error());
        std::fs::write(&instances, INSTANCES_JSON).unwrap();
        std::fs::write(&path, json!([{"ref_id": 1}]).to_string()).unwrap();
        assert!(error().contains("row 1: missing field"), "{}", error());
        std::fs::write(&path, b"\x80\x02}q\x01.").unwrap();
        assert!(error().contains("other than a list"), "{}", error());
    }
}
