//! A file that grows record by record, and is cut back to the last whole one.

use crate::{Error, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A file that is appended to. After a kill its owner says how much of it counts ([`AppendLog::cut`]); what
/// comes after that, a record that was being written, goes.
#[derive(Debug)]
pub struct AppendLog {
    path: PathBuf,
    file: File,
    end: u64,
}

impl AppendLog {
    /// Opens the file, or creates it. New records follow what is there.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(&path).map_err(Error::io(&path))?;
        let end = file.metadata().map_err(Error::io(&path))?.len();
        Ok(Self { path, file, end })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Locks the file against other processes that lock it.
    ///
    /// # Errors
    /// When another holds the lock, or the file system has no locks.
    pub fn try_lock(&mut self) -> std::result::Result<(), TryLockError> {
        self.file.try_lock()?;
        // Whoever held the lock before may have appended since the file was opened.
        self.end = self.file.metadata().map_err(TryLockError::Error)?.len();
        Ok(())
    }

    /// The file, to read from it. Writing goes through [`AppendLog::append`].
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where the next record will start: the file's length.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Keeps the first `keep` bytes.
    ///
    /// # Errors
    /// When the file is shorter, or cannot be written.
    pub fn cut(&mut self, keep: u64) -> Result<()> {
        if self.end < keep {
            let reason = format!("holds {} bytes, at least {keep} were expected; it was changed since", self.end);
            return Err(Error::format(&self.path, reason));
        }
        if self.end > keep {
            self.file.set_len(keep).map_err(Error::io(&self.path))?;
            self.end = keep;
        }
        Ok(())
    }

    /// Appends a record. When that fails (a full disk), nothing of it stays.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append(&mut self, record: &[u8]) -> Result<()> {
        let written = self.file.seek(SeekFrom::Start(self.end)).and_then(|_| self.file.write_all(record));
        if let Err(error) = written {
            let _ = self.file.set_len(self.end);
            return Err(Error::io(&self.path)(error));
        }
        self.end += record.len() as u64;
        Ok(())
    }

    /// Waits until all records are on the disk; gives their length.
    ///
    /// # Errors
    /// When they cannot be written to the disk.
    pub fn sync(&self) -> Result<u64> {
        self.file.sync_data().map_err(Error::io(&self.path))?;
        Ok(self.end)
    }

    /// Removes the file.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(Error::io(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_cut_back_and_continued() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = AppendLog::open(&path).unwrap();
        log.append(b"one\n").unwrap();
        let keep = log.sync().unwrap();
        log.append(b"tw").unwrap();
        drop(log);
        let mut log = AppendLog::open(&path).unwrap();
        assert_eq!(log.end(), 6);
        log.cut(keep).unwrap();
        log.append(b"2\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one\n2\n");
        let error = log.cut(1 << 20).unwrap_err().to_string();
        assert!(error.contains("6 bytes") && error.contains("changed since"), "{error}");
        log.remove().unwrap();
        assert!(!path.exists());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error() {
        let mut log = AppendLog::open("/dev/full").unwrap();
        assert!(log.append(b"record").is_err());
        assert_eq!(log.end(), 0);
    }
}
