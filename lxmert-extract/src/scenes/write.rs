//! The data set's files.
//!
//! | file | what |
//! | --- | --- |
//! | `images/NNNNN.png` | the pictures |
//! | `results.csv` | captions as Flickr30k has them: `image_name\| comment_number\| comment` |
//! | `hard_negatives.csv` | the false variant of each caption: `image_name\|comment_number\|comment` |
//! | `splits.json` | `{"train": [names], "val": [names], "test": [names]}`, 80/10/10 by scene |
//! | `scenes.json` | the configuration, and per scene: size, objects with boxes, captions with their claims |
//! | `questions_*.json`, `entailment_*.jsonl`, `referring.json` and others | the tasks' files: see [`super::tasks`] |
//!
//! The folder appears whole or not at all: it is written beside its destination and renamed.

use super::draw::draw;
use super::records::{Annotations, FORMAT, SceneRecord, image_name, split};
use super::scene::Scene;
use super::{ScenesConfig, tasks};
use image::ImageEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use lxmert_core::cli::check_interrupt;
use lxmert_core::files::{FolderDraft, atomic_write, read_json};
use lxmert_core::{Error, Result};
use rayon::prelude::*;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The folder of the pictures.
const IMAGES: &str = "images";
/// The files beside it, without those of the tasks.
const FILES: [&str; 4] = ["results.csv", "hard_negatives.csv", "splits.json", "scenes.json"];

/// What was generated, for printing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Number of scenes.
    pub scenes: usize,
    /// Number of captions, and of hard negatives.
    pub captions: usize,
    /// Number of objects.
    pub objects: usize,
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { scenes, captions, objects } = self;
        write!(f, "{scenes} scenes, {objects} objects, {captions} captions with a hard negative each")
    }
}

/// Writes the data set to the folder `dir`.
///
/// # Errors
/// Returns an error if the configuration is invalid; if the folder already exists (unless `overwrite`), cannot be
/// written, or holds anything but a data set of scenes; or on Ctrl-C.
pub fn generate(dir: &Path, config: &ScenesConfig, overwrite: bool, progress: bool) -> Result<Summary> {
    config.validate()?;
    may_replace(dir, overwrite)?;
    let draft = FolderDraft::start(dir)?;
    let records = write_images(&draft.path().join(IMAGES), config, progress)?;
    let summary = Summary {
        scenes: records.len(),
        captions: records.iter().map(|record| record.captions.len()).sum(),
        objects: records.iter().map(|record| record.objects.len()).sum(),
    };
    write_captions(draft.path(), &records)?;
    write_json(&draft.path().join("splits.json"), &split(config.count, config.seed))?;
    let annotations = Annotations { format: FORMAT.into(), config: config.clone(), scenes: records };
    write_json(&draft.path().join("scenes.json"), &annotations)?;
    tasks::write(draft.path(), &annotations)?;
    // Once more: drawing took a while.
    draft.finish(may_replace(dir, overwrite)?)?;
    Ok(summary)
}

/// Whether to replace an existing `dir`.
fn may_replace(dir: &Path, overwrite: bool) -> Result<bool> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        entries => entries.map_err(Error::io(dir))?,
    };
    if entries.count() == 0 {
        return Ok(true);
    }
    if !overwrite {
        return Err(Error::Argument(format!("{} exists; --overwrite replaces it", dir.display())));
    }
    if !dir.join("scenes.json").is_file() {
        let reason = format!("{} holds something other than scenes, so it is not replaced", dir.display());
        return Err(Error::Argument(reason));
    }
    if let Some(foreign) = foreign(dir)? {
        return Err(Error::Argument(format!(
            "{}: '{}' is not a file of the scenes, and --overwrite deletes the folder; move it elsewhere first",
            dir.display(),
            foreign.display()
        )));
    }
    Ok(true)
}

/// Something in the folder that [`generate`] did not write.
fn foreign(dir: &Path) -> Result<Option<PathBuf>> {
    let is_picture = |name: &str| name.strip_suffix(".png").is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()));
    for entry in walkdir::WalkDir::new(dir).min_depth(1) {
        let entry = entry.map_err(|error| Error::format(dir, error.to_string()))?;
        let name = entry.file_name().to_string_lossy();
        let own = match entry.depth() {
            1 if entry.file_type().is_dir() => name == IMAGES,
            1 => FILES.contains(&&*name) || tasks::is_file(&name),
            _ => entry.file_type().is_file() && is_picture(&name),
        };
        if !own {
            return Ok(Some(entry.path().strip_prefix(dir).unwrap_or(entry.path()).to_path_buf()));
        }
    }
    Ok(None)
}

/// Reads `scenes.json` of a data set.
///
/// # Errors
/// Returns an error if the file is missing, is not JSON of this form, or a caption names an object that the scene
/// lacks.
pub fn read_annotations(dir: &Path) -> Result<Annotations> {
    let path = dir.join("scenes.json");
    let annotations: Annotations = read_json(&path)?;
    if annotations.format != FORMAT {
        return Err(Error::format(&path, format!("format \"{}\"; this program reads {FORMAT}", annotations.format)));
    }
    for scene in &annotations.scenes {
        for caption in &scene.captions {
            if let Some(index) = caption.objects.iter().find(|&&index| index >= scene.objects.len()) {
                let count = scene.objects.len();
                return Err(Error::format(
                    &path,
                    format!("{}: a caption names object {index} of {count}", scene.image),
                ));
            }
        }
    }
    Ok(annotations)
}

fn write_images(folder: &Path, config: &ScenesConfig, progress: bool) -> Result<Vec<SceneRecord>> {
    fs::create_dir(folder).map_err(Error::io(folder))?;
    let template = "drawing scenes [{wide_bar}] {pos}/{len} ({eta} left)";
    let bar = lxmert_core::progress::bar(Some(config.count as u64), template, progress);
    let records = (0..config.count)
        .into_par_iter()
        .map(|index| {
            check_interrupt()?;
            let scene = Scene::generate(config, index);
            let path = folder.join(image_name(index));
            let mut png = Vec::new();
            PngEncoder::new_with_quality(&mut png, CompressionType::Fast, FilterType::Adaptive)
                .write_image(&draw(&scene), scene.width, scene.height, image::ExtendedColorType::Rgb8)
                .map_err(|error| Error::format(&path, error.to_string()))?;
            fs::write(&path, png).map_err(Error::io(&path))?;
            bar.inc(1);
            Ok(SceneRecord::new(index, &scene))
        })
        .collect::<Result<Vec<_>>>();
    bar.finish_and_clear();
    records
}

fn write_captions(folder: &Path, records: &[SceneRecord]) -> Result<()> {
    // Flickr30k's file has a space after each bar; the negatives' file has none.
    let mut captions = String::from("image_name| comment_number| comment\n");
    let mut negatives = String::from("image_name|comment_number|comment\n");
    for record in records {
        for (number, caption) in record.captions.iter().enumerate() {
            captions += &format!("{}| {number}| {}\n", record.image, caption.text);
            negatives += &format!("{}|{number}|{}\n", record.image, caption.negative.text);
        }
    }
    atomic_write(folder.join("results.csv"), |file| file.write_all(captions.as_bytes()))?;
    atomic_write(folder.join("hard_negatives.csv"), |file| file.write_all(negatives.as_bytes()))
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let json = serde_json::to_vec(value).map_err(Error::json(path))?;
    atomic_write(path, |file| file.write_all(&json))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> ScenesConfig {
        ScenesConfig { count: 30, ..ScenesConfig::default() }
    }

    #[test]
    fn the_data_set_is_complete_and_reads_back() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("scenes");
        let summary = generate(&dir, &small(), false, false).unwrap();
        assert_eq!((summary.scenes, summary.captions), (30, 150));
        let annotations = read_annotations(&dir).unwrap();
        for (index, record) in annotations.scenes.iter().enumerate() {
            assert_eq!(*record, SceneRecord::new(index, &Scene::generate(&small(), index)));
            let picture = image::open(dir.join("images").join(&record.image)).unwrap();
            assert_eq!((picture.width(), picture.height()), (record.width, record.height));
        }
        let captions = fs::read_to_string(dir.join("results.csv")).unwrap();
        assert_eq!(captions.lines().next(), Some("image_name| comment_number| comment"));
        assert_eq!(
            captions.lines().nth(6),
            Some(&*format!("00001.png| 0| {}", annotations.scenes[1].captions[0].text))
        );
        assert_eq!(captions.lines().count(), 151);
        let negatives = fs::read_to_string(dir.join("hard_negatives.csv")).unwrap();
        let last = &annotations.scenes[29].captions[4].negative.text;
        assert_eq!(negatives.lines().nth(150), Some(&*format!("00029.png|4|{last}")));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "a temporary file was left beside the data set");
    }

    #[test]
    fn generating_again_gives_the_same_files() {
        let root = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| root.path().join(name));
        generate(&a, &small(), false, false).unwrap();
        generate(&b, &small(), false, false).unwrap();
        for file in [
            "results.csv",
            "hard_negatives.csv",
            "splits.json",
            "scenes.json",
            "entailment_train.jsonl",
            "referring.json",
            "images/00007.png",
        ] {
            assert_eq!(fs::read(a.join(file)).unwrap(), fs::read(b.join(file)).unwrap(), "{file}");
        }
    }

    #[test]
    fn overwrite_replaces_only_data_sets_of_scenes() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("scenes");
        let config = ScenesConfig { count: 1, ..small() };
        generate(&dir, &config, false, false).unwrap();
        assert!(generate(&dir, &config, false, false).unwrap_err().to_string().contains("--overwrite"));
        generate(&dir, &config, true, false).unwrap();
        let photos = root.path().join("photos");
        fs::create_dir(&photos).unwrap();
        fs::write(photos.join("mine.jpg"), b"mine").unwrap();
        assert!(generate(&photos, &config, true, false).is_err());
        assert!(photos.join("mine.jpg").is_file());
    }

    #[test]
    fn overwrite_deletes_no_file_of_the_user() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("scenes");
        // Fewer pictures than before: the old ones are replaced all the same.
        generate(&dir, &ScenesConfig { count: 3, ..small() }, false, false).unwrap();
        for mine in ["notes.txt", "images/mine.png", "images/7/mine", "features/index.json"] {
            let path = dir.join(mine);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, b"mine").unwrap();
            let error = generate(&dir, &ScenesConfig { count: 1, ..small() }, true, false).unwrap_err().to_string();
            // A file is named, or the folder that holds nothing but it.
            let named = match mine.rsplit_once('/') {
                Some((folder, _)) if folder != "images" => folder,
                _ => mine,
            };
            assert!(error.contains(&format!("'{named}' is not a file of the scenes")), "{error}");
            assert!(error.contains("move it elsewhere"), "{error}");
            assert!(path.is_file() && dir.join("images/00002.png").is_file());
            match mine.rsplit_once('/').filter(|(folder, _)| *folder != "images") {
                Some((folder, _)) => fs::remove_dir_all(dir.join(folder)).unwrap(),
                None => fs::remove_file(path).unwrap(),
            }
        }
        generate(&dir, &ScenesConfig { count: 1, ..small() }, true, false).unwrap();
        assert_eq!(fs::read_dir(dir.join("images")).unwrap().count(), 1);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "something was left beside the data set");
    }

    #[test]
    fn splits_cover_every_scene_once() {
        let splits = split(2000, 0);
        assert_eq!((splits.train.len(), splits.val.len(), splits.test.len()), (1600, 200, 200));
        let mut all = [splits.train, splits.val, splits.test].concat();
        all.sort();
        assert_eq!(all, (0..2000).map(image_name).collect::<Vec<_>>());
        assert_ne!(split(2000, 1).test, split(2000, 0).test);
    }

    #[test]
    fn configurations_that_cannot_be_drawn_are_refused() {
        let dir = Path::new("unused");
        for config in [
            ScenesConfig { count: 0, ..small() },
            ScenesConfig { width: 20, ..small() },
            ScenesConfig { min_objects: 1, ..small() },
            ScenesConfig { max_objects: 40, ..small() },
        ] {
            assert!(matches!(generate(dir, &config, false, false), Err(Error::Argument(_))), "{config:?}");
        }
    }

    #[test]
    fn annotations_with_invalid_indices_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("scenes");
        generate(&dir, &ScenesConfig { count: 1, ..small() }, false, false).unwrap();
        let mut annotations = read_annotations(&dir).unwrap();
        annotations.scenes[0].captions[0].objects = vec![99];
        write_json(&dir.join("scenes.json"), &annotations).unwrap();
        assert!(read_annotations(&dir).unwrap_err().to_string().contains("object 99"));
        fs::write(dir.join("scenes.json"), "{").unwrap();
        assert!(matches!(read_annotations(&dir), Err(Error::Json { .. })));
    }
}
