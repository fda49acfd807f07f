//! Folders of captioned images: where the captions are, and where the images.

use crate::image_names::ImageFolder;
use std::path::{Path, PathBuf};

/// Usual names of caption files, the likeliest first.
const CAPTION_FILES: [&str; 7] = [
    "results.csv",
    "captions.txt",
    "captions.csv",
    "results_20130124.token",
    "Flickr8k.token.txt",
    "captions.json",
    "captions.jsonl",
];
/// Names of Karpathy's files, which hold captions and a split.
const KARPATHY_FILES: [&str; 4] =
    ["dataset_flickr30k.json", "dataset_flickr8k.json", "dataset_coco.json", "dataset.json"];
/// How many levels below a folder to look for its caption file and images: Kaggle's zip nests `flickr30k_images` in
/// itself.
const DEPTH: usize = 2;
/// How many of a caption file's images to look for when searching their folder; a few may be missing.
const FIRST: usize = 20;

/// The files of a captioned data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptionFolder {
    /// The caption file.
    pub captions: PathBuf,
    /// The split file, if there is one beside the captions or in the named folder.
    pub splits: Option<PathBuf>,
    /// The file of false captions, if there is one.
    pub hard_negatives: Option<PathBuf>,
}

impl CaptionFolder {
    /// Finds the caption file in a folder or up to two levels below, and the files that belong to it.
    pub fn find(folder: &Path) -> Option<Self> {
        let places = folders_below(folder, DEPTH);
        let captions = places
            .iter()
            .find_map(|place| first_file(place, &CAPTION_FILES))
            .or_else(|| places.iter().find_map(|place| first_file(place, &KARPATHY_FILES)))?;
        let mut found = Self::beside(captions);
        if found.splits.is_none() {
            found.splits = first_file(folder, &KARPATHY_FILES).filter(|path| *path != found.captions);
        }
        Some(found)
    }

    /// The files that belong to a caption file because they lie beside it: `splits.json` or Karpathy's JSON, and
    /// `hard_negatives.csv`.
    pub fn beside(captions: PathBuf) -> Self {
        let folder = captions.parent().unwrap_or(Path::new(""));
        let splits = first_file(folder, &["splits.json"]).or_else(|| first_file(folder, &KARPATHY_FILES));
        let hard_negatives = first_file(folder, &["hard_negatives.csv"]).filter(|path| *path != captions);
        Self { splits: splits.filter(|path| *path != captions), hard_negatives, captions }
    }

    /// The names that [`CaptionFolder::find`] looks for, for error messages.
    pub fn names() -> String {
        format!("{} or dataset_*.json", CAPTION_FILES.join(", "))
    }
}

/// The folder that holds `images`, judged by the first few: `own` (the caption file's folder), one below it, or one
/// beside it. `None` if there is none.
pub fn image_folder_of<S: AsRef<str>>(own: &Path, images: impl IntoIterator<Item = S>) -> Option<PathBuf> {
    let mut places = folders_below(own, DEPTH);
    // COCO keeps captions in `annotations` and images in folders beside it.
    let parent = std::path::absolute(own).ok().and_then(|own| Some(own.parent()?.to_path_buf()));
    places.extend(parent.map(|parent| folders_below(&parent, 1)).unwrap_or_default());
    let first: Vec<S> = images.into_iter().take(FIRST).collect();
    let exact = |place: &&PathBuf| first.iter().any(|name| place.join(name.as_ref()).is_file());
    let loose = |place: &&PathBuf| {
        let mut folder = ImageFolder::new(place);
        first.iter().any(|name| folder.contains(name.as_ref()))
    };
    places.iter().find(exact).or_else(|| places.iter().find(loose)).cloned()
}

/// A folder and its subfolders, nearer ones first, each level sorted by name.
fn folders_below(folder: &Path, depth: usize) -> Vec<PathBuf> {
    let mut all = vec![folder.to_path_buf()];
    let mut level = 0..1;
    for _ in 0..depth {
        for i in level.clone() {
            let here = if all[i].as_os_str().is_empty() { Path::new(".") } else { &all[i] };
            let entries = std::fs::read_dir(here).into_iter().flatten().flatten();
            let hidden = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with('.');
            let is_folder = |entry: &std::fs::DirEntry| match entry.file_type() {
                Ok(kind) if kind.is_symlink() => entry.path().is_dir(),
                kind => kind.is_ok_and(|kind| kind.is_dir()),
            };
            let mut below: Vec<PathBuf> =
                entries.filter(|e| !hidden(e) && is_folder(e)).map(|e| all[i].join(e.file_name())).collect();
            below.sort();
            all.append(&mut below);
        }
        level = level.end..all.len();
    }
    all
}

fn first_file(folder: &Path, names: &[&str]) -> Option<PathBuf> {
    names.iter().map(|name| folder.join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::captions::Captions;

    fn write(path: PathBuf, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn captions_and_images_are_found_in_every_layout() {
        let captions = "image,caption\n0.jpg,A dog .\n";
        for (caption_file, image) in [
            ("results.csv", "0.jpg"),
            ("captions.txt", "Images/0.jpg"),
            ("results.csv", "flickr30k_images/0.jpg"),
            ("flickr30k_images/results.csv", "flickr30k_images/flickr30k_images/0.jpg"),
            ("annotations/captions.csv", "val2014/0.jpg"),
            ("captions.jsonl", "0.jpg"),
            ("results.csv", "flickr30k_images/flickr30k_images/0.JPG"),
        ] {
            let root = tempfile::tempdir().unwrap();
            write(root.path().join(caption_file), captions);
            write(root.path().join(image), "x");
            let found = CaptionFolder::find(root.path()).unwrap();
            assert_eq!(found.captions, root.path().join(caption_file));
            let images = Captions::read(&found.captions).unwrap().images;
            let folder = image_folder_of(found.captions.parent().unwrap(), &images);
            assert_eq!(folder.as_deref(), root.path().join(image).parent(), "{caption_file} {image}");
        }
        let root = tempfile::tempdir().unwrap();
        assert_eq!(CaptionFolder::find(root.path()), None);
    }

    #[test]
    fn split_and_negative_files_beside_the_captions_are_found() {
        let root = tempfile::tempdir().unwrap();
        for name in ["flickr30k_images/results.csv", "flickr30k_images/hard_negatives.csv", "dataset_flickr30k.json"] {
            write(root.path().join(name), "x");
        }
        let found = CaptionFolder::find(root.path()).unwrap();
        assert_eq!(found.splits, Some(root.path().join("dataset_flickr30k.json")));
        assert!(found.hard_negatives.is_some());
        assert_eq!(CaptionFolder::beside(root.path().join("dataset_flickr30k.json")).splits, None);
    }
}
