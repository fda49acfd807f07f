//! The images to extract: a folder, a list, or the images that a caption file names.

use crate::{Error, Result};
use lxmert_core::captions::{CaptionFolder, Captions, image_folder_of};
use lxmert_core::files::read_text;
use lxmert_core::image_names::{IMAGE_ENDINGS, ImageFolder, OTHER_IMAGE_ENDINGS, ending, is_image_name};
use lxmert_core::nearby;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// An image to extract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageEntry {
    /// Its name in the store: the path below the folder, with `/`.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// Why it cannot be extracted, if that is known before opening it. Such an entry fails in every run, whatever the
    /// store holds.
    pub fault: Option<String>,
}

impl ImageEntry {
    fn new(name: String, path: PathBuf) -> Self {
        Self { name, path, fault: None }
    }
}

/// The images that `path` refers to, in order.
///
/// * An image: itself.
/// * A folder: every image in it and its subfolders, sorted by name; names that start with a dot are skipped.
/// * A caption file (see [`lxmert_core::captions`]): the images that it names, found in `images_folder` or, if that is
///   `None`, beside the file or in a folder below or beside it.
/// * Any other file: a list of paths, one per line, relative to `images_folder` or the list's own folder.
///
/// A subfolder that cannot be read, a dangling link, and an image with another image's name become entries with a
/// fault.
///
/// # Errors
/// [`Error::Input`] if the path does not exist, cannot be read, or contains no image.
pub fn find_images(path: &Path, images_folder: Option<&Path>) -> Result<Vec<ImageEntry>> {
    let mut entries = if path.is_dir() {
        in_folder(path)?
    } else if path.is_file() && is_image_name(&path.to_string_lossy()) {
        let name = path.file_name().map_or_else(|| path.to_string_lossy(), |name| name.to_string_lossy());
        vec![ImageEntry::new(name.into_owned(), path.to_path_buf())]
    } else {
        let text = read_text(path)?;
        if !Captions::are_in(&text) && text.lines().any(|line| is_image_name(line.trim())) {
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
            listed(lines, images_folder.unwrap_or(path.parent().unwrap_or(Path::new("."))))
        } else {
            captioned(path, images_folder)?
        }
    };
    if entries.is_empty() {
        let endings = IMAGE_ENDINGS.join(", ");
        return Err(Error::input(path, format!("no images here (looked for {endings})")));
    }
    refuse_same_names(&mut entries);
    Ok(entries)
}

/// The images of a folder of captioned photos, such as Flickr30k's; see [`CaptionFolder::find`].
///
/// # Errors
/// [`Error::Input`] if the folder contains no caption file, or none of its images, or the caption file cannot be read.
pub fn find_captioned(folder: &Path) -> Result<Vec<ImageEntry>> {
    let found = CaptionFolder::find(folder).ok_or_else(|| {
        let reason = nearby::missing(folder);
        Error::input(folder, reason.unwrap_or_else(|| format!("no caption file here ({})", CaptionFolder::names())))
    })?;
    find_images(&found.captions, None)
}

/// The images that a caption file names.
fn captioned(path: &Path, images_folder: Option<&Path>) -> Result<Vec<ImageEntry>> {
    let names = Captions::read(path)?.images;
    let beside = path.parent().unwrap_or(Path::new(""));
    let folder = images_folder.map(Path::to_path_buf).or_else(|| image_folder_of(beside, &names)).ok_or_else(|| {
        let example = names.first().map_or("its images", String::as_str);
        Error::input(
            path,
            format!("'{example}' is neither beside it nor in a folder below or beside it; pass the folder as --images"),
        )
    })?;
    Ok(listed(names.iter().map(String::as_str), &folder))
}

/// Every image in a folder and its subfolders.
fn in_folder(folder: &Path) -> Result<Vec<ImageEntry>> {
    std::fs::read_dir(folder).map_err(lxmert_core::Error::io(folder))?;
    let hidden = |entry: &walkdir::DirEntry| entry.depth() > 0 && entry.file_name().to_string_lossy().starts_with('.');
    let (mut entries, mut others) = (Vec::new(), BTreeMap::new());
    for entry in walkdir::WalkDir::new(folder).follow_links(true).into_iter().filter_entry(|entry| !hidden(entry)) {
        match entry {
            Ok(entry) if entry.file_type().is_file() => {
                let name = slashed(entry.path().strip_prefix(folder).unwrap_or(entry.path()));
                if is_image_name(&name) {
                    entries.push(ImageEntry::new(name, entry.into_path()));
                } else if let Some(ending) = ending(&name).filter(|e| OTHER_IMAGE_ENDINGS.contains(&e.as_str())) {
                    *others.entry(ending).or_insert(0) += 1;
                }
            }
            Ok(_) => {}
            Err(error) => {
                let path = error.path().unwrap_or(folder).to_path_buf();
                if error.loop_ancestor().is_some() || path.is_symlink() || !path.is_file() {
                    let mut name = slashed(path.strip_prefix(folder).unwrap_or(&path));
                    let fault = match (error.loop_ancestor(), error.io_error().map(std::io::Error::kind)) {
                        (Some(above), _) => format!("a link back to {}", above.display()),
                        (None, Some(std::io::ErrorKind::NotFound)) => "a dangling link".into(),
                        _ => error.io_error().map_or_else(|| error.to_string(), ToString::to_string),
                    };
                    if path.is_dir() {
                        name.push('/');
                    }
                    entries.push(ImageEntry { name, path, fault: Some(fault) });
                }
            }
        }
    }
    entries.sort_by(|a, b| (&a.name, &a.path).cmp(&(&b.name, &b.path)));
    if !others.is_empty() {
        let counts: Vec<String> = others.iter().map(|(ending, count)| format!("{count} .{ending}")).collect();
        log::warn!(
            "{}: skipped {}, which cannot be read here; convert them to JPEG or PNG",
            folder.display(),
            counts.join(", ")
        );
    }
    Ok(entries)
}

fn slashed(path: &Path) -> String {
    path.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

/// The images in a list, without repetition.
fn listed<'a>(names: impl Iterator<Item = &'a str>, folder: &Path) -> Vec<ImageEntry> {
    let mut images = ImageFolder::new(folder);
    let mut seen = std::collections::HashSet::new();
    names
        .map(|line| {
            let written = folder.join(line);
            let name = match written.strip_prefix(folder) {
                Ok(below) if !below.as_os_str().is_empty() => slashed(below),
                _ => line.to_string(),
            };
            ImageEntry::new(name, images.locate(line))
        })
        .filter(|entry| seen.insert(entry.name.clone()))
        .collect()
}

/// Marks each image whose name in the store equals that of an earlier one as a fault; names that are not Unicode can
/// become equal.
fn refuse_same_names(entries: &mut [ImageEntry]) {
    let mut first: HashMap<String, PathBuf> = HashMap::new();
    for entry in entries.iter_mut().filter(|entry| entry.fault.is_none()) {
        match first.get(&entry.name) {
            Some(other) => entry.fault = Some(format!("its name in the store equals that of {}", other.display())),
            None => {
                first.insert(entry.name.clone(), entry.path.clone());
            }
        }
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
    fn folders_are_searched_recursively_sorted_and_without_hidden_files() {
        let folder = tempfile::tempdir().unwrap();
        let images = ["b/2.JPG", "a.png", "b/1.webp", "c.jfif", "d.jpe"];
        for name in images.into_iter().chain([".hidden.png", ".git/x.png", "notes.txt", "._a.png", "x.tif"]) {
            touch(folder.path(), name);
        }
        let found = find_images(folder.path(), None).unwrap();
        assert_eq!(names(&found), ["a.png", "b/1.webp", "b/2.JPG", "c.jfif", "d.jpe"]);
        assert!(found.iter().all(|entry| entry.path.is_file() && entry.fault.is_none()));
    }

    #[cfg(unix)]
    #[test]
    fn dangling_links_and_loops_are_individual_faults() {
        let folder = tempfile::tempdir().unwrap();
        touch(folder.path(), "a/b.png");
        std::os::unix::fs::symlink(folder.path(), folder.path().join("a/loop")).unwrap();
        std::os::unix::fs::symlink("nowhere.png", folder.path().join("z.png")).unwrap();
        std::os::unix::fs::symlink("a/b.png", folder.path().join("good.png")).unwrap();
        let found = find_images(folder.path(), None).unwrap();
        assert_eq!(names(&found), ["a/b.png", "a/loop/", "good.png", "z.png"]);
        let faults: Vec<_> = found.iter().filter_map(|entry| entry.fault.as_deref()).collect();
        assert!(faults[0].starts_with("a link back to ") && faults[1] == "a dangling link", "{faults:?}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn names_that_become_equal_in_the_store_are_rejected_after_the_first() {
        use std::os::unix::ffi::OsStrExt;
        let folder = tempfile::tempdir().unwrap();
        for name in [&b"\xfe.png"[..], b"\xff.png"] {
            std::fs::write(folder.path().join(std::ffi::OsStr::from_bytes(name)), b"x").unwrap();
        }
        let found = find_images(folder.path(), None).unwrap();
        let faults: Vec<bool> = found.iter().map(|entry| entry.fault.is_some()).collect();
        assert_eq!((names(&found), faults), (vec!["\u{fffd}.png"; 2], vec![false, true]));
    }

    #[test]
    fn every_caption_file_gives_its_images_once_in_order() {
        let folder = tempfile::tempdir().unwrap();
        touch(folder.path(), "Images/b.JPG");
        touch(folder.path(), "Images/a.jpg");
        for (file, text) in [
            ("results.csv", "image_name| comment_number| comment\nb.jpg| 0| x\nb.jpg| 1| y, z\na.jpg| 4   A dog .\n"),
            ("commas.csv", "image_name,comment_number,comment\nb.jpg,0,x\na.jpg,0,y\n"),
            ("captions.txt", "image,caption\nb.jpg,\"one\ntwo\"\nb.jpg,three\na.jpg,four\n"),
            ("tokens.txt", "b.jpg#0\tone\nb.jpg#1\ttwo\na.jpg#0\tthree\n"),
            (
                "dataset.json",
                r#"{"images":[{"filename":"b.jpg","sentences":[{"raw":"x"}]},{"filename":"a.jpg","sentences":[{"raw":"x"}]}]}"#,
            ),
            (
                "captions_val2014.json",
                r#"{"images":[{"id":1,"file_name":"a.jpg"},{"id":2,"file_name":"b.jpg"}],"annotations":[{"image_id":2,"caption":"x"},{"image_id":1,"caption":"y"}]}"#,
            ),
        ] {
            let path = folder.path().join(file);
            std::fs::write(&path, text).unwrap();
            let found = find_images(&path, None).unwrap();
            assert_eq!(names(&found), ["b.jpg", "a.jpg"], "{file}");
            assert!(found[0].path.ends_with("Images/b.JPG"), "{:?}", found[0].path);
        }
    }

    #[test]
    fn finds_kaggles_nested_folder() {
        let folder = tempfile::tempdir().unwrap();
        touch(folder.path(), "flickr30k_images/flickr30k_images/a.jpg");
        let captions = folder.path().join("flickr30k_images/results.csv");
        std::fs::write(captions, "image_name| comment_number| comment\na.jpg| 0| x\n").unwrap();
        let found = find_captioned(folder.path()).unwrap();
        assert!(names(&found) == ["a.jpg"] && found[0].path.is_file());
        let error = find_captioned(&folder.path().join("flickr30k_images/flickr30k_images")).unwrap_err().to_string();
        assert!(error.contains("no caption file here (results.csv"), "{error}");
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
    fn rejects_inputs_without_images_with_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        assert!(find_images(folder.path(), None).unwrap_err().to_string().contains("no images"));
        let missing = folder.path().join("none");
        assert!(find_images(&missing, None).unwrap_err().to_string().contains("none"));
        let file = folder.path().join("file");
        for (text, reason) in [
            ("image_name| comment_number| comment\nq.jpg| 0| x\n", "--images"),
            ("id,number\n1,2\n", "the first line is 'id,number'"),
            ("{\"a\": 1}", "expected"),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = find_images(&file, None).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
