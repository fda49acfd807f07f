//! A file that grows record by record and can be cut back to the last whole one.

use crate::{Error, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// An append-only file. After a kill its owner knows how much of it is valid ([`AppendLog::cut`]); anything after that,
/// such as a half-written record, is discarded.
#[derive(Debug)]
pub struct AppendLog {
    path: PathBuf,
    file: File,
    end: u64,
}

impl AppendLog {
    /// Opens or creates the file. New records follow the existing ones.
    ///
    /// # Errors
    /// Returns an error if it cannot be opened.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(&path).map_err(Error::io(&path))?;
        let end = file.metadata().map_err(Error::io(&path))?.len();
        Ok(Self { path, file, end })
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Locks the file against other processes that lock it.
    ///
    /// # Errors
    /// Returns an error if another process holds the lock or the file system has no locks.
    pub fn try_lock(&mut self) -> std::result::Result<(), TryLockError> {
        self.file.try_lock()?;
        // The previous lock holder may have appended since the file was opened.
        self.end = self.file.metadata().map_err(TryLockError::Error)?.len();
        Ok(())
    }

    /// The file, for reading. Use [`AppendLog::append`] to write.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where the next record will start: the file's length.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Truncates the file to `keep` bytes.
    ///
    /// # Errors
    /// Returns an error if the file is shorter, or cannot be written.
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

    /// Appends a record. If that fails (a full disk), none of it stays.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn append(&mut self, record: &[u8]) -> Result<()> {
        let written = self.file.seek(SeekFrom::Start(self.end)).and_then(|_| self.file.write_all(record));
        if let Err(error) = written {
            let _ = self.file.set_len(self.end);
            return Err(Error::io(&self.path)(error));
        }
        self.end += record.len() as u64;
        Ok(())
    }

    /// Waits until all records are on disk and returns their total length.
    ///
    /// # Errors
    /// Returns an error if they cannot be written to the disk.
    pub fn sync(&self) -> Result<u64> {
        self.file.sync_data().map_err(Error::io(&self.path))?;
        Ok(self.end)
    }

    /// Removes the file.
    ///
    /// # Errors
    /// Returns an error if it cannot be removed.
    pub fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(Error::io(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_cut_and_continued() {
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
