//! Writing a file whole or not at all.

use crate::{Error, Result};
use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::io::{BufWriter, Write};
use std::path::Path;

/// Suffix of a file that is being written.
pub(crate) const UNFINISHED: &str = ".unfinished";
/// Random characters in the name of such a file.
const RANDOM: usize = 6;
/// Longest file name of the usual file systems, in bytes.
const LONGEST_NAME: usize = 255;

/// Writes a file so that `path` always holds either its old or its complete new content, however the process ends:
/// `write` fills a temporary file beside it, which is synced to disk and renamed over it.
///
/// The temporary file `.NAME.RANDOM.unfinished` is locked while it is written. A killed process leaves its file behind;
/// the next write of the same file removes any that no process has locked.
///
/// # Errors
/// [`Error::Io`] at `path`, from `write` or from the file system (its folder must exist).
pub fn atomic_write<T>(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<T>,
) -> Result<T> {
    let path = path.as_ref();
    write_beside(path, write).map_err(Error::io(path))
}

fn write_beside<T>(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<T>) -> std::io::Result<T> {
    let name = path.file_name().ok_or_else(|| std::io::Error::other("this path names no file"))?;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = shortened(name);
    remove_leftovers(folder, |left| left == name);
    let prefix = format!(".{name}.");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).rand_bytes(RANDOM).suffix(UNFINISHED);
    #[cfg(unix)]
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o666); // less the umask, as for any new file
    #[cfg(unix)]
    builder.permissions(permissions);
    let (file, temporary) = loop {
        let (file, temporary) = builder.tempfile_in(folder)?.into_parts();
        // Another process may have mistaken the file for a leftover between creation and locking. On a file system
        // without locks, leftovers are never removed.
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => continue,
            Ok(()) if !temporary.exists() => continue,
            _ => break (file, temporary),
        }
    };
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    let value = write(&mut writer)?;
    writer.flush()?;
    writer.get_ref().sync_all()?;
    // Hold the lock until the file has its name.
    temporary.persist(path).map_err(|e| e.error)?;
    drop(writer);
    // The rename is durable once the folder is synced.
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    Ok(value)
}

/// A file's name as part of its temporary file's name, shortened to leave room for the rest.
fn shortened(name: &OsStr) -> String {
    let name = name.to_string_lossy();
    name[..name.floor_char_boundary(LONGEST_NAME - RANDOM - UNFINISHED.len() - 2)].to_string()
}

/// Removes from a folder the files that killed processes left in [`atomic_write`] and for which `is_wanted` returns
/// true (it gets the name, shortened if long). Files that a process is writing stay. This is housekeeping, so errors
/// are ignored.
pub fn remove_leftovers(folder: impl AsRef<Path>, is_wanted: impl Fn(&str) -> bool) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let temporary = entry.file_name();
        let temporary = temporary.to_string_lossy();
        let parts = temporary.strip_prefix('.').and_then(|rest| rest.strip_suffix(UNFINISHED)?.rsplit_once('.'));
        let is_leftover = parts.is_some_and(|(name, random)| {
            random.len() == RANDOM && random.bytes().all(|byte| byte.is_ascii_alphanumeric()) && is_wanted(name)
        });
        let path = entry.path();
        if is_leftover && let Ok(file) = File::options().write(true).open(&path) {
            // The lock is held until the name is gone, so a writer that gets it later sees that its file has no name.
            if file.try_lock().is_ok() {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn names_of_255_bytes_are_written() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["x".repeat(255), "é".repeat(127), "x".to_string()] {
            atomic_write(folder.path().join(&name), |file| file.write_all(name.as_bytes())).unwrap();
            assert_eq!(std::fs::read_to_string(folder.path().join(&name)).unwrap(), name);
        }
        assert_eq!(names(folder.path()).len(), 3);
    }

    #[test]
    fn removes_leftovers_of_killed_writers_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let (dead, living) = (".state.AbC123.unfinished", ".state.xyz789.unfinished");
        let (other, mine) = (".state.old.AbC123.unfinished", ".state.notes.unfinished");
        for name in [dead, living, other, mine] {
            std::fs::write(folder.path().join(name), b"half").unwrap();
        }
        let held = File::options().write(true).open(folder.path().join(living)).unwrap();
        held.lock().unwrap();
        atomic_write(&path, |file| file.write_all(b"whole")).unwrap();
        assert_eq!(names(folder.path()), [mine, other, living, "state"]);
        drop(held);
        atomic_write(&path, |file| file.write_all(b"whole")).unwrap();
        assert_eq!(names(folder.path()), [mine, other, "state"]);
    }

    #[test]
    fn many_threads_write_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shared");
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..200 {
                        atomic_write(path, |file| file.write_all(&[thread; 1000])).unwrap();
                    }
                });
            }
        });
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes.len() == 1000 && bytes.iter().all(|byte| *byte == bytes[0]));
        assert_eq!(names(folder.path()), ["shared"]);
    }
}
