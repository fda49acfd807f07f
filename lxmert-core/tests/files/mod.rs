//! The files of a folder, to compare it with another.

use std::path::{Path, PathBuf};

/// Name and content of each file in `folder`, sorted.
pub fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let content =
        |path: PathBuf| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap());
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| content(entry.unwrap().path())).collect();
    files.sort();
    files
}
