//! Writing a folder whole or not at all.

use crate::{Error, Result};
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

const PARTIAL: &str = ".partial";
/// Extension of a folder that has been replaced and is being removed.
const OLD: &str = "old.partial";

/// A folder that is filled beside its destination as `.NAME.PID.partial` and then renamed. If dropped unfinished it is
/// removed; after a kill, the next draft of the same folder removes it.
#[derive(Debug)]
pub struct FolderDraft {
    path: PathBuf,
    place: PathBuf,
    /// Held while the draft is being filled, on systems that can lock folders; marks the draft as no leftover.
    _lock: Option<File>,
}

impl FolderDraft {
    /// Creates an empty folder beside `place`, and the parents of `place`.
    ///
    /// # Errors
    /// Returns an error if `place` does not name a folder, or the place beside it is not writable.
    pub fn start(place: impl AsRef<Path>) -> Result<Self> {
        let place = place.as_ref().to_path_buf();
        let name = place.file_name().ok_or_else(|| Error::Argument(format!("{} names no folder", place.display())))?;
        let parent = match place.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(Error::io(parent))?;
        let mut prefix = OsString::from(".");
        prefix.push(name);
        prefix.push(".");
        remove_leftovers(parent, &prefix.to_string_lossy());
        prefix.push(format!("{}{PARTIAL}", std::process::id()));
        let path = parent.join(prefix);
        if path.exists() {
            fs::remove_dir_all(&path).map_err(Error::io(&path))?;
        }
        fs::create_dir(&path).map_err(Error::io(&path))?;
        let lock = File::open(&path).ok().filter(|folder| folder.try_lock().is_ok());
        Ok(Self { path, place, _lock: lock })
    }

    /// Where to write the files.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Renames the folder into place. With `replace`, an existing folder goes.
    ///
    /// # Errors
    /// Returns an error if the destination exists or the folder cannot be renamed.
    pub fn finish(self, replace: bool) -> Result<()> {
        // The old folder gets a draft's name, so that a killed process leaves no half of it in its place.
        let old = self.path.with_extension(OLD);
        if replace {
            match fs::rename(&self.place, &old) {
                // Another process that replaces the folder was faster.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                renamed => renamed.map_err(Error::io(&self.place))?,
            }
        }
        let renamed = fs::rename(&self.path, &self.place).map_err(|error| {
            if self.place.exists() {
                Error::format(&self.place, "meanwhile another process made this folder; run again to use it")
            } else {
                let _ = fs::rename(&old, &self.place);
                Error::io(&self.place)(error)
            }
        });
        let _ = fs::remove_dir_all(old);
        renamed
    }
}

impl Drop for FolderDraft {
    fn drop(&mut self) {
        // After `finish` this folder is already gone.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes drafts of the same folder that no process has locked.
fn remove_leftovers(parent: &Path, prefix: &str) {
    let is_draft = |name: &str| {
        let process = name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(OLD)?.strip_suffix('.'));
        let process = process.or_else(|| name.strip_prefix(prefix)?.strip_suffix(PARTIAL));
        process.is_some_and(|process| !process.is_empty() && process.bytes().all(|byte| byte.is_ascii_digit()))
    };
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let path = entry.path();
        if is_draft(&entry.file_name().to_string_lossy())
            && File::open(&path).is_ok_and(|folder| folder.try_lock().is_ok())
        {
            let _ = fs::remove_dir_all(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_appears_whole_and_leftovers_go() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("scenes");
        let names = [".scenes.4000000.partial", ".scenes.4000000.old.partial", ".scenes.notes.partial"];
        let [dead, old, mine] = names.map(|name| root.path().join(name));
        for folder in [&dead, &old, &mine] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("half"), b"x").unwrap();
        }
        let draft = FolderDraft::start(&place).unwrap();
        assert!(!dead.exists() && !old.exists() && mine.exists() && !place.exists());
        fs::write(draft.path().join("file"), b"whole").unwrap();
        draft.finish(false).unwrap();
        assert_eq!(fs::read(place.join("file")).unwrap(), b"whole");
        drop(FolderDraft::start(&place).unwrap());
        let late = FolderDraft::start(&place).unwrap().finish(false).unwrap_err().to_string();
        assert!(late.contains("another process made this folder"), "{late}");
        let newer = FolderDraft::start(&place).unwrap();
        fs::write(newer.path().join("other"), b"newer").unwrap();
        newer.finish(true).unwrap();
        assert_eq!(fs::read_dir(&place).unwrap().count(), 1);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn keeps_the_draft_of_a_running_process() {
        let root = tempfile::tempdir().unwrap();
        let other = root.path().join(".scenes.4000001.partial");
        fs::create_dir(&other).unwrap();
        let held = File::open(&other).unwrap();
        held.lock().unwrap();
        drop(FolderDraft::start(root.path().join("scenes")).unwrap());
        assert!(other.exists());
    }
}
