//! Suggestions for a path or a name that does not exist.

use std::io;
use std::path::Path;

/// How many names an error message suggests.
const NAMES_SHOWN: usize = 3;

/// Rewords the operating system's error about `path`: which part of it is missing, with similar names in its folder, or
/// that a file stands where a folder is needed. Other errors are returned unchanged.
pub fn explain(path: &Path, error: io::Error) -> io::Error {
    let what = match error.kind() {
        io::ErrorKind::NotFound => missing(path),
        io::ErrorKind::IsADirectory => Some("a folder, where a file is needed".into()),
        io::ErrorKind::AlreadyExists if path.is_file() => Some("a file, where a folder is needed".into()),
        io::ErrorKind::NotADirectory => {
            let file = path.ancestors().find(|part| part.is_file());
            file.map(|file| format!("{} is a file, where a folder is needed", file.display()))
        }
        _ => None,
    };
    match what {
        Some(what) => io::Error::new(error.kind(), what),
        None => error,
    }
}

/// Which part of a path is missing, with similar names if there are any; `None` if the path exists.
pub fn missing(path: &Path) -> Option<String> {
    if path.exists() {
        return None;
    }
    let there = path.ancestors().skip(1).find(|folder| folder.as_os_str().is_empty() || folder.exists())?;
    let first = path.strip_prefix(there).ok()?.components().next()?.as_os_str().to_string_lossy().into_owned();
    let folder = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    let mut text = String::from("no such file or folder");
    if there.join(&first) != path {
        text.push_str(&format!(": there is no '{first}' in {}", folder.display()));
    }
    let near = names_like(folder, &first);
    if !near.is_empty() {
        text.push_str(&format!("; did you mean {}?", near.join(" or ")));
    }
    Some(text)
}

/// Names in `folder` that are a few typos away from `name`, the nearest first.
fn names_like(folder: &Path, name: &str) -> Vec<String> {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names: Vec<String> = names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let most = (name.chars().count() / 3).max(1);
    near(name, names.iter().map(String::as_str), most).into_iter().map(|name| format!("'{name}'")).collect()
}

/// The few of `names` that are at most `most` insertions, deletions and substitutions away from `name`, the nearest first.
pub fn near<'a>(name: &str, names: impl IntoIterator<Item = &'a str>, most: usize) -> Vec<&'a str> {
    let wanted = name.to_lowercase();
    let slips = names.into_iter().map(|name| (edits(&wanted, &name.to_lowercase()), name));
    let mut near: Vec<(usize, &str)> = slips.filter(|(slips, _)| *slips <= most).collect();
    near.sort_unstable();
    near.into_iter().take(NAMES_SHOWN).map(|(_, name)| name).collect()
}

/// The Levenshtein distance: insertions, deletions and substitutions that turn `a` into `b`.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_missing_part_and_suggests_similar_names() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("runs/pretrain")).unwrap();
        std::fs::create_dir(folder.path().join("runs/scenes")).unwrap();
        let said = |path: &str| {
            let path = folder.path().join(path);
            explain(&path, std::fs::metadata(&path).unwrap_err()).to_string()
        };
        assert_eq!(said("runs/pretrian"), "no such file or folder; did you mean 'pretrain'?");
        let inner = said("runs/Scene/best");
        assert!(inner.contains("there is no 'Scene' in ") && inner.ends_with("did you mean 'scenes'?"), "{inner}");
        assert_eq!(said("runs/entirely-else"), "no such file or folder");
        assert_eq!(missing(folder.path()), None);
    }

    #[test]
    fn names_the_file_or_folder_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let said = |path: &Path, error: io::Error| explain(path, error).to_string();
        let inner = file.join("inner");
        let answer = said(&inner, std::fs::read(&inner).unwrap_err());
        assert!(answer.ends_with("file is a file, where a folder is needed"), "{answer}");
        let read = std::fs::read(folder.path()).unwrap_err();
        assert_eq!(said(folder.path(), read), "a folder, where a file is needed");
        let made = std::fs::create_dir_all(&file).unwrap_err();
        assert_eq!(said(&file, made), "a file, where a folder is needed");
        // Other errors stay as they are.
        let denied = explain(folder.path(), io::Error::from(io::ErrorKind::PermissionDenied));
        assert_eq!(denied.kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn edits_are_counted() {
        for (a, b, count) in [("", "abc", 3), ("kitten", "sitting", 3), ("same", "same", 0), ("ab", "ba", 2)] {
            assert_eq!((edits(a, b), edits(b, a)), (count, count), "{a} {b}");
        }
    }
}
