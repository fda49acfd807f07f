//! Names of image files: which extensions exist, and how to match an image's name in one file with its name in another.
//!
//! Data sets disagree on names: with or without folders and extensions, `.jpg` or `.JPG`, and, on a Mac, an `é` of two
//! code points (NFD) where others write one (NFC). [`NameFinder`] looks names up in a list, [`ImageFolder`] on disk.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::ops::Range;
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
    extension(name).is_some_and(is_image_ending)
}

/// The extension of a file name, in lower case.
pub fn ending(name: &str) -> Option<String> {
    extension(name).map(str::to_ascii_lowercase)
}

fn extension(name: &str) -> Option<&str> {
    let (stem, ending) = file_name(name).rsplit_once('.')?;
    (!stem.is_empty()).then_some(ending)
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
    let slash = name.bytes().rposition(|byte| byte == b'/' || byte == b'\\');
    &name[slash.map_or(0, |slash| slash + 1)..]
}

/// The file name without an image extension.
fn stem(name: &str) -> &str {
    let name = file_name(name);
    match name.bytes().rposition(|byte| byte == b'.') {
        Some(dot) if dot > 0 && is_image_ending(&name[dot + 1..]) => &name[..dot],
        _ => name,
    }
}

fn is_image_ending(ending: &str) -> bool {
    (3..=4).contains(&ending.len()) && IMAGE_ENDINGS.iter().any(|known| known.eq_ignore_ascii_case(ending))
}

/// How two names are alike, from the loosest on. What is alike in one way is alike in those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Alike {
    /// The composed file names without an image's extension are equal.
    Stem,
    /// The composed file names are equal.
    File,
    /// The composed names are equal.
    Whole,
    /// They are spelt the same.
    Exactly,
}

/// A name as it is compared.
struct Key<'a> {
    exact: &'a str,
    whole: Cow<'a, str>,
}

impl<'a> Key<'a> {
    fn of(name: &'a str) -> Self {
        Self { exact: name, whole: composed(name) }
    }

    /// The order in which names are looked up: by stem, then by file name, then whole, each composed, then as they are spelt. Names
    /// that are alike in any way are neighbours. `as_far_as` says which of these are compared.
    fn compare(&self, other: &Self, as_far_as: Alike) -> Ordering {
        let mut order = stem(&self.whole).cmp(stem(&other.whole));
        if as_far_as >= Alike::File {
            order = order.then_with(|| file_name(&self.whole).cmp(file_name(&other.whole)));
        }
        if as_far_as >= Alike::Whole {
            order = order.then_with(|| self.whole.cmp(&other.whole));
        }
        if as_far_as >= Alike::Exactly {
            order = order.then_with(|| self.exact.cmp(other.exact));
        }
        order
    }
}

/// The order in which names are looked up.
pub(crate) fn compare(a: &str, b: &str) -> Ordering {
    Key::of(a).compare(&Key::of(b), Alike::Exactly)
}

/// Names that can be looked up: numbered, and in the order of [`compare`].
pub(crate) trait Sorted {
    /// How many there are.
    fn count(&self) -> usize;

    /// The name at a place in the order, and its number.
    fn at(&self, place: usize) -> (usize, &str);

    /// The first place from `from` on whose name does not come before `name`. Takes few steps where it is near.
    fn next_place(&self, name: &str, from: usize) -> usize {
        let key = Key::of(name);
        let before = |place: usize| Key::of(self.at(place).1).compare(&key, Alike::Exactly).is_lt();
        let (mut low, mut step) = (from, 1);
        while low + step <= self.count() && before(low + step - 1) {
            (low, step) = (low + step, 2 * step);
        }
        first_place(low..(low + step - 1).min(self.count()), before)
    }
}

/// The first of these places that is not `before`; those that are come first.
fn first_place(places: Range<usize>, before: impl Fn(usize) -> bool) -> usize {
    let Range { start: mut low, end: mut high } = places;
    while low < high {
        let middle = low.midpoint(high);
        if before(middle) { low = middle + 1 } else { high = middle }
    }
    low
}

/// The numbers of `names` in the order of [`compare`].
pub(crate) fn order_of<'a>(count: usize, name: impl Fn(usize) -> &'a str) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count as u32).collect();
    order.sort_by(|&a, &b| compare(name(a as usize), name(b as usize)));
    order
}

/// Finds a name in several lists, each with the number of its first name: the one that is spelt so, otherwise the only one that is
/// alike as a whole, by its file name, or by its file name without extension.
pub(crate) fn find<'a, S: Sorted + 'a>(
    lists: impl Iterator<Item = (usize, &'a S)> + Clone,
    name: &str,
) -> Option<usize> {
    let key = Key::of(name);
    [Alike::Exactly, Alike::Whole, Alike::File, Alike::Stem].into_iter().find_map(|how| {
        let mut found = lists.clone().flat_map(|(first, list)| {
            let order = |place: usize| Key::of(list.at(place).1).compare(&key, how);
            let place = first_place(0..list.count(), |place| order(place).is_lt());
            let alike = (place..list.count().min(place + 2)).filter(|place| order(*place).is_eq());
            alike.map(|place| first + list.at(place).0).collect::<Vec<_>>()
        });
        let number = found.next()?;
        (how == Alike::Exactly || found.next().is_none()).then_some(number)
    })
}

/// Finds image names in a list: by the whole name, otherwise by the file name if that is unique, otherwise by the file
/// name without its extension if that is unique. So `1000092795.jpg` finds `flickr30k_images/1000092795.jpg`,
/// `COCO_train2014_000000458752` finds `COCO_train2014_000000458752.jpg`, and vice versa. If the exact spelling is not
/// in the list, the composed form is looked up. [`FeatureStore::find`](crate::features::FeatureStore::find) does the same.
#[derive(Debug)]
pub struct NameFinder<'a> {
    names: &'a [String],
    order: Cow<'a, [u32]>,
}

impl<'a> NameFinder<'a> {
    /// A finder over `names`, of a caption file or a folder.
    pub fn new(names: &'a [String]) -> Self {
        Self { names, order: order_of(names.len(), |i| &names[i]).into() }
    }

    /// The index of the image that `name` refers to.
    pub fn find(&self, name: &str) -> Option<usize> {
        find(std::iter::once((0, self)), name)
    }
}

impl Sorted for NameFinder<'_> {
    fn count(&self) -> usize {
        self.order.len()
    }

    fn at(&self, place: usize) -> (usize, &str) {
        let number = self.order[place] as usize;
        (number, &self.names[number])
    }
}

/// Image files below a folder, found by names that may be spelt differently on disk.
#[derive(Debug)]
pub struct ImageFolder {
    folder: PathBuf,
    /// The files of each folder in which an exact name was not found, and the order in which they are looked up.
    listed: HashMap<PathBuf, (Vec<String>, Vec<u32>)>,
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
        let (names, order) = self.listed.entry(path.parent()?.to_path_buf()).or_insert_with_key(|folder| {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
            let names: Vec<String> = names.filter(|name| is_image_name(name)).collect();
            let order = order_of(names.len(), |i| &names[i]);
            (names, order)
        });
        let finder = NameFinder { names, order: order.as_slice().into() };
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

    proptest::proptest! {
        /// As a search of the whole list finds them.
        #[test]
        fn names_are_found_as_in_a_search_of_the_whole_list(
            names in proptest::collection::vec("(x/|y/|)(a|b|cafe\u{301}|caf\u{e9})(\\.jpg|\\.JPG|\\.png|\\.tif|)", 0..12),
            asked in "(x/|z/|)(a|cafe\u{301}|caf\u{e9})(\\.jpg|\\.png|\\.gif|)",
        ) {
            let slow = || {
                if let Some(at) = names.iter().position(|name| *name == asked) {
                    return Some(at);
                }
                let keys: [fn(&str) -> &str; 3] = [|name| name, file_name, stem];
                keys.into_iter().find_map(|key| {
                    let alike = |name: &str| key(&composed(name)) == key(&composed(&asked));
                    let mut found = (0..names.len()).filter(|i| alike(&names[*i]));
                    found.next().filter(|_| found.next().is_none())
                })
            };
            proptest::prop_assert_eq!(NameFinder::new(&names).find(&asked), slow());
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
