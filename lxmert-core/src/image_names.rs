//! Names of image files: which extensions exist, and how to match an image's name in one file with its name in another.
//!
//! Data sets disagree on names: with or without folders and extensions, `.jpg` or `.JPG`, and, on a Mac, an `é` of two
//! code points (NFD) where others write one (NFC). [`NameFinder`] looks names up in a list, [`ImageFolder`] on disk.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tokenizers::normalizers::NFC;
use tokenizers::{NormalizedString, Normalizer};

/// Extensions of the image files that can be read, in any case.
pub const IMAGE_ENDINGS: [&str; 8] = ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif"];

/// Extensions of image files that cannot be read.
pub const OTHER_IMAGE_ENDINGS: [&str; 12] =
    ["tif", "tiff", "heic", "heif", "avif", "jxl", "jp2", "svg", "psd", "dng", "cr2", "nef"];

/// Whether a name has the extension of a readable image.
pub fn is_image_name(name: &str) -> bool {
    ending(name).is_some_and(|ending| IMAGE_ENDINGS.contains(&ending.as_str()))
}

/// The extension of a file name, in lower case.
pub fn ending(name: &str) -> Option<String> {
    let (stem, ending) = file_name(name).rsplit_once('.')?;
    (!stem.is_empty()).then(|| ending.to_ascii_lowercase())
}

/// A name in Unicode's composed form (NFC).
pub fn composed(name: &str) -> Cow<'_, str> {
    if name.is_ascii() {
        return Cow::Borrowed(name);
    }
    let mut normalised = NormalizedString::from(name);
    match NFC.normalize(&mut normalised) {
        Ok(()) => Cow::Owned(normalised.get().to_string()),
        Err(_) => Cow::Borrowed(name),
    }
}

/// The part after the last slash or backslash.
fn file_name(name: &str) -> &str {
    name.rsplit(['/', '\\']).next().unwrap_or(name)
}

/// The file name without an image extension.
fn stem(name: &str) -> &str {
    let name = file_name(name);
    match name.rsplit_once('.') {
        Some((stem, _)) if is_image_name(name) => stem,
        _ => name,
    }
}

/// Finds image names in a list: by the whole name, otherwise by the file name if that is unique, otherwise by the file
/// name without its extension if that is unique. So `1000092795.jpg` finds `flickr30k_images/1000092795.jpg`,
/// `COCO_train2014_000000458752` finds `COCO_train2014_000000458752.jpg`, and vice versa. If the exact spelling is not
/// in the list, the composed form is looked up.
#[derive(Debug)]
pub struct NameFinder<'a> {
    whole: HashMap<Cow<'a, str>, usize>,
    /// Composed whole names, file names and stems, with the image's number if only one image has it.
    loose: [HashMap<Cow<'a, str>, Option<usize>>; 3],
}

/// The keys to try, in order, if the exact spelling is not in the list.
const LOOSE: [fn(&str) -> &str; 3] = [|name| name, file_name, stem];

impl<'a> NameFinder<'a> {
    /// A finder over `names`, from a feature store or a caption file.
    pub fn new(names: &'a [String]) -> Self {
        Self::of(names.iter().map(|name| Cow::Borrowed(name.as_str())))
    }

    fn of(names: impl IntoIterator<Item = Cow<'a, str>>) -> Self {
        let mut finder = Self { whole: HashMap::new(), loose: Default::default() };
        for (i, name) in names.into_iter().enumerate() {
            for (map, part) in finder.loose.iter_mut().zip(LOOSE) {
                let key = match &name {
                    Cow::Borrowed(name) => composed(part(name)),
                    Cow::Owned(name) => Cow::Owned(composed(part(name)).into_owned()),
                };
                map.entry(key).and_modify(|found| *found = None).or_insert(Some(i));
            }
            finder.whole.entry(name).or_insert(i);
        }
        finder
    }

    /// The index of the image that `name` refers to.
    pub fn find(&self, name: &str) -> Option<usize> {
        let loose = || {
            let name = composed(name);
            self.loose.iter().zip(LOOSE).find_map(|(map, part)| map.get(part(&name)).copied().flatten())
        };
        self.whole.get(name).copied().or_else(loose)
    }
}

/// Image files below a folder, found by names that may be spelt differently on disk.
#[derive(Debug)]
pub struct ImageFolder {
    folder: PathBuf,
    /// The files of each folder in which an exact name was not found.
    listed: HashMap<PathBuf, (Vec<String>, NameFinder<'static>)>,
}

impl ImageFolder {
    /// The images below `folder`.
    pub fn new(folder: impl AsRef<Path>) -> Self {
        Self { folder: folder.as_ref().to_path_buf(), listed: HashMap::new() }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// The file that `name` refers to: the one with this name, otherwise the only one in its folder whose name differs
    /// only in extension or Unicode form, otherwise the same search without the folders in the name. Returns the path
    /// as written if there is none.
    pub fn locate(&mut self, name: &str) -> PathBuf {
        let path = self.folder.join(name);
        let alone = self.folder.join(file_name(name));
        if path.is_file() {
            return path;
        }
        self.similar(&path).or_else(|| (alone != path).then(|| self.similar(&alone))?).unwrap_or(path)
    }

    /// The file in `path`'s folder that matches its name.
    fn similar(&mut self, path: &Path) -> Option<PathBuf> {
        let (names, finder) = self.listed.entry(path.parent()?.to_path_buf()).or_insert_with_key(|folder| {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
            let names: Vec<String> = names.filter(|name| is_image_name(name)).collect();
            let finder = NameFinder::of(names.iter().cloned().map(Cow::Owned));
            (names, finder)
        });
        finder.find(&path.file_name()?.to_string_lossy()).map(|i| path.with_file_name(&names[i]))
    }

    /// Whether there is a file that `name` refers to.
    pub fn contains(&mut self, name: &str) -> bool {
        self.locate(name).is_file()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_are_recognised_in_any_case() {
        assert!(is_image_name("a.JPG") && is_image_name("x/b.jfif") && is_image_name("c.v2.png"));
        assert!(!is_image_name("a.tif") && !is_image_name(".jpg") && !is_image_name("jpg"));
    }

    #[test]
    fn names_are_found_with_and_without_folder_and_extension() {
        let names = ["photos/a.jpg", "COCO_train2014_000000458752", "x/same.jpg", "y/same.jpg", "b.v2.png"];
        let names = names.map(String::from);
        let finder = NameFinder::new(&names);
        for (name, number) in [
            ("photos/a.jpg", Some(0)),
            ("a.jpg", Some(0)),
            ("a", Some(0)),
            ("other/a.PNG", Some(0)),
            ("COCO_train2014_000000458752.jpg", Some(1)),
            ("same.jpg", None),
            ("y/same.jpg", Some(3)),
            ("b.v2", Some(4)),
            ("b", None),
        ] {
            assert_eq!(finder.find(name), number, "{name}");
        }
    }

    #[test]
    fn composed_and_decomposed_names_find_each_other() {
        let (composed, decomposed) = ("caf\u{e9}.jpg", "cafe\u{301}.jpg");
        for (stored, asked) in [(composed, decomposed), (decomposed, composed), (decomposed, "x/caf\u{e9}")] {
            assert_eq!(NameFinder::new(&[stored.to_string()]).find(asked), Some(0), "{stored:?} {asked:?}");
        }
        let both = [composed, decomposed].map(String::from);
        let finder = NameFinder::new(&both);
        assert_eq!((finder.find(composed), finder.find(decomposed)), (Some(0), Some(1)));
    }

    #[test]
    fn files_are_located_in_any_extension_and_unicode_form() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.JPG", "cafe\u{301}.png", "b.jpg", "b.png"] {
            std::fs::write(folder.path().join(name), b"x").unwrap();
        }
        let mut images = ImageFolder::new(folder.path());
        for (name, file) in
            [("a.jpg", "a.JPG"), ("a", "a.JPG"), ("caf\u{e9}.png", "cafe\u{301}.png"), ("x/b.jpg", "b.jpg")]
        {
            assert_eq!(images.locate(name), folder.path().join(file), "{name}");
        }
        assert!(!images.contains("b.gif") && !images.contains("none.jpg"));
    }
}
