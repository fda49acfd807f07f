//! Which images to extract: a folder, a list, or what a caption file names.

use crate::{Error, Result};
use lxmert_core::nearby::explain;
use serde::Deserialize;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// File endings that a folder is searched for, in any case.
pub const IMAGE_ENDINGS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "bmp", "gif"];

/// An image to extract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageEntry {
    /// Its name in the store: the path below the folder, with `/`.
    pub name: String,
    /// The file.
    pub path: PathBuf,
}

/// The images that `path` stands for, in order, each once.
///
/// * An image: itself.
/// * A folder: every image in it and below, sorted by name; what starts with a dot is left out.
/// * A caption file (see [`caption_names`]): the images it names, found in `images_folder` or, when
///   that is `None`, beside the file or in a folder beside it.
/// * Any other file: a list of paths, one a line, below `images_folder` or the list's own folder.
///
/// # Errors
/// [`Error::Input`] when the path does not exist, cannot be read, or leads to no image.
pub fn find_images(path: &Path, images_folder: Option<&Path>) -> Result<Vec<ImageEntry>> {
    let entries = if path.is_dir() {
        in_folder(path)?
    } else if path.is_file() && is_image(path) {
        let name = path.file_name().map_or_else(|| path.to_string_lossy(), |name| name.to_string_lossy());
        vec![ImageEntry { name: name.into_owned(), path: path.to_path_buf() }]
    } else {
        let text = read_text(path)?;
        let beside = path.parent().unwrap_or(Path::new("."));
        match caption_names(path, &text)? {
            Some(names) => {
                let folder = match images_folder {
                    Some(folder) => folder.to_path_buf(),
                    None => folder_beside(path, beside, &names)?,
                };
                listed(names, &folder)
            }
            None => {
                let names = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect();
                listed(names, images_folder.unwrap_or(beside))
            }
        }
    };
    if entries.is_empty() {
        let endings = IMAGE_ENDINGS.join(", ");
        return Err(Error::input(path, format!("no images here (looked for {endings})")));
    }
    Ok(entries)
}

fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|error| Error::input(path, explain(path, error).to_string()))?;
    // Published caption files hold a few bytes that are not UTF-8, in captions, not in names.
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.strip_prefix('\u{feff}').unwrap_or(&text).to_string())
}

fn in_folder(folder: &Path) -> Result<Vec<ImageEntry>> {
    let hidden = |entry: &walkdir::DirEntry| entry.depth() > 0 && entry.file_name().to_string_lossy().starts_with('.');
    let mut entries = Vec::new();
    for entry in walkdir::WalkDir::new(folder).follow_links(true).into_iter().filter_entry(|entry| !hidden(entry)) {
        let entry = entry.map_err(|error| Error::input(folder, error.to_string()))?;
        if entry.file_type().is_file() && is_image(entry.path()) {
            let below = entry.path().strip_prefix(folder).unwrap_or(entry.path());
            entries.push(ImageEntry { name: slashed(below), path: entry.into_path() });
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

fn is_image(path: &Path) -> bool {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
    ending.is_some_and(|ending| IMAGE_ENDINGS.contains(&ending.as_str()))
}

fn slashed(path: &Path) -> String {
    path.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

fn listed(names: Vec<String>, folder: &Path) -> Vec<ImageEntry> {
    let mut seen = HashSet::new();
    names
        .into_iter()
        .map(|line| {
            let path = folder.join(&line);
            let name = match path.strip_prefix(folder) {
                Ok(below) if !below.as_os_str().is_empty() => slashed(below),
                _ => line,
            };
            ImageEntry { name, path }
        })
        .filter(|entry| seen.insert(entry.name.clone()))
        .collect()
}

/// The folder that holds the images of a caption file: its own, or one beside it.
fn folder_beside(path: &Path, beside: &Path, names: &[String]) -> Result<PathBuf> {
    let mut folders = vec![beside.to_path_buf()];
    let mut siblings: Vec<PathBuf> = std::fs::read_dir(beside)
        .map_err(|error| Error::input(beside, error.to_string()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_dir())
        .collect();
    siblings.sort();
    folders.append(&mut siblings);
    // A few images may be missing; the folder is the one that has some of the first.
    let first = &names[..names.len().min(20)];
    folders.into_iter().find(|folder| first.iter().any(|name| folder.join(name).is_file())).ok_or_else(|| {
        let example = first.first().map_or("its images", String::as_str);
        Error::input(path, format!("'{example}' is not beside it nor in a folder beside it; say where with --images"))
    })
}

/// The image names in a caption file, in order, each once; `None` when the file is none.
///
/// Understood are Flickr30k's `results.csv` (`image_name| comment_number| comment`), Flickr8k's
/// `captions.txt` (`image,caption`) and `Flickr8k.token.txt` (`name#0<tab>caption`), and Karpathy's
/// JSON (`{"images": [{"filename": …, "filepath": …}]}`).
///
/// # Errors
/// [`Error::Input`] when a JSON file is not Karpathy's.
pub fn caption_names(path: &Path, text: &str) -> Result<Option<Vec<String>>> {
    let mut seen = HashSet::new();
    let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
    let is_token_line = |line: &str| {
        let name = line.split('\t').next().filter(|name| name.len() < line.len());
        name.and_then(|name| name.rsplit_once('#')).is_some_and(|(_, number)| number.parse::<u32>().is_ok())
    };
    let names: Vec<String> = if first.starts_with('{') {
        let karpathy: Karpathy = serde_json::from_str(text)
            .map_err(|error| Error::input(path, format!("not the JSON of a caption file: {error}")))?;
        karpathy.images.into_iter().map(KarpathyImage::name).collect()
    } else if first.contains('|') {
        let header = first.starts_with("image_name");
        column(text, header, |line| line.split('|').next())
    } else if first.to_ascii_lowercase().replace(' ', "") == "image,caption" {
        column(text, true, |line| line.split(',').next())
    } else if is_token_line(first) {
        column(text, false, |line| line.split('\t').next().and_then(|name| name.rsplit_once('#')).map(|(name, _)| name))
    } else {
        return Ok(None);
    };
    Ok(Some(names.into_iter().filter(|name| seen.insert(name.clone())).collect()))
}

fn column<'a>(text: &'a str, header: bool, name: impl Fn(&'a str) -> Option<&'a str>) -> Vec<String> {
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .skip(usize::from(header))
        .filter_map(name)
        .map(|name| name.trim().to_string())
        .filter(|name| !name.is_empty())
        .collect()
}

#[derive(Deserialize)]
struct Karpathy {
    images: Vec<KarpathyImage>,
}

#[derive(Deserialize)]
struct KarpathyImage {
    filename: String,
    /// The folder of an image in COCO's edition.
    #[serde(default)]
    filepath: String,
}

impl KarpathyImage {
    fn name(self) -> String {
        if self.filepath.is_empty() { self.filename } else { format!("{}/{}", self.filepath, self.filename) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(folder: &Path, name: &str) {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, b"x").unwrap();
    }

    fn names(entries: &[ImageEntry]) -> Vec<&str> {
        entries.iter().map(|entry| entry.name.as_str()).collect()
    }

    #[test]
    fn a_folder_is_searched_below_sorted_and_without_what_is_hidden() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b/2.JPG", "a.png", "b/1.webp", ".hidden.png", ".git/x.png", "notes.txt", "._a.png"] {
            touch(folder.path(), name);
        }
        let found = find_images(folder.path(), None).unwrap();
        assert_eq!(names(&found), ["a.png", "b/1.webp", "b/2.JPG"]);
        assert!(found.iter().all(|entry| entry.path.is_file()));
    }

    #[test]
    fn every_caption_file_gives_its_images_once_in_order() {
        let folder = tempfile::tempdir().unwrap();
        touch(folder.path(), "Images/b.jpg");
        touch(folder.path(), "Images/a.jpg");
        for (file, text) in [
            ("results.csv", "image_name| comment_number| comment\nb.jpg| 0| x\nb.jpg| 1| y, z\na.jpg| 4   A dog .\n"),
            ("captions.txt", "image,caption\nb.jpg,one, two\nb.jpg,three\na.jpg,four\n"),
            ("tokens.txt", "b.jpg#0\tone\nb.jpg#1\ttwo\na.jpg#0\tthree\n"),
            ("dataset.json", r#"{"images":[{"filename":"b.jpg","split":"val"},{"filename":"a.jpg"}]}"#),
        ] {
            let path = folder.path().join(file);
            std::fs::write(&path, text).unwrap();
            let found = find_images(&path, None).unwrap();
            assert_eq!(names(&found), ["b.jpg", "a.jpg"], "{file}");
            assert!(found[0].path.ends_with("Images/b.jpg"));
        }
    }

    #[test]
    fn a_list_is_relative_to_itself_or_to_the_given_folder() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("list.txt");
        std::fs::write(&list, "x/a.png\n\nb.png\r\nx/a.png\n").unwrap();
        let found = find_images(&list, None).unwrap();
        assert_eq!(names(&found), ["x/a.png", "b.png"]);
        assert_eq!(found[0].path, folder.path().join("x/a.png"));
        let found = find_images(&list, Some(Path::new("/elsewhere"))).unwrap();
        assert_eq!(found[1].path, Path::new("/elsewhere/b.png"));
    }

    #[test]
    fn what_leads_to_no_image_says_so() {
        let folder = tempfile::tempdir().unwrap();
        assert!(find_images(folder.path(), None).unwrap_err().to_string().contains("no images"));
        let missing = folder.path().join("none");
        assert!(find_images(&missing, None).unwrap_err().to_string().contains("none"));
        let captions = folder.path().join("results.csv");
        std::fs::write(&captions, "image_name| comment_number| comment\nq.jpg| 0| x\n").unwrap();
        assert!(find_images(&captions, None).unwrap_err().to_string().contains("--images"));
        let json = folder.path().join("x.json");
        std::fs::write(&json, "{\"a\": 1}").unwrap();
        assert!(find_images(&json, None).is_err());
    }
}
