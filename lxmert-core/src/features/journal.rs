//! `pending.journal`: images that were pushed but are not in a shard yet.
//!
//! A record is the body's length (`u64`), its SHA-256 and the body. The body is the length of the name (`u32`), the
//! name, and the image's record ([`Layout::encode`](super::shard::Layout::encode)). All integers are little-endian. The
//! first record with a wrong hash or length is the one that a killed writer was appending; it and everything after it
//! are dropped.

use crate::files::{AppendLog, read_text, writer_here};
use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs::TryLockError;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

const FILE: &str = "pending.journal";
/// Who has the journal locked, or had when it was killed.
const HOLDER: &str = "pending.writer";
const HEAD: usize = 8 + 32;
/// Longest name in bytes; limits how much memory a damaged length can request.
pub(super) const MAX_NAME: usize = 1 << 16;

pub(super) struct Journal {
    log: AppendLog,
    row_bytes: usize,
    records: Vec<Record>,
}

struct Record {
    name: String,
    /// Where the image's record starts in the file.
    row: u64,
}

/// Another process has the journal locked.
fn at_work(folder: &Path) -> Error {
    let holder = read_text(folder.join(HOLDER)).unwrap_or_default();
    let holder = holder.lines().next().map_or_else(String::new, |holder| format!(": {holder}"));
    Error::format(folder, format!("another process is writing to this store{holder}; wait for it or stop it"))
}

impl Journal {
    /// Opens and locks the folder's journal and finds its whole records.
    pub fn open(folder: &Path, row_bytes: usize) -> Result<Self> {
        let mut log = AppendLog::open(folder.join(FILE))?;
        match log.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {
                log::warn!("{}: this file system has no locks; run one extraction at a time", folder.display());
            }
            Err(TryLockError::Error(error)) => return Err(Error::io(log.path())(error)),
            Err(TryLockError::WouldBlock) => {
                return Err(at_work(folder));
            }
        }
        // A writer that was finishing may have removed the file between opening and locking.
        if !log.path().exists() {
            return Err(Error::format(folder, "another process was just finishing this store; run again"));
        }
        let holder = folder.join(HOLDER);
        std::fs::write(&holder, writer_here() + "\n").map_err(Error::io(&holder))?;
        let mut journal = Self { log, row_bytes, records: Vec::new() };
        let whole = journal.scan().map_err(Error::io(journal.log.path()))?;
        let torn = journal.log.end() - whole;
        if torn > 0 {
            let path = journal.log.path().display();
            log::warn!("{path}: dropped {torn} bytes of an image that was being written when the last run ended");
            journal.log.cut(whole)?;
        }
        Ok(journal)
    }

    /// Finds the whole records; returns where they end.
    fn scan(&mut self) -> std::io::Result<u64> {
        let (length, mut end) = (self.log.end(), 0);
        let mut reader = std::io::BufReader::with_capacity(1 << 20, self.log.file());
        reader.seek(SeekFrom::Start(0))?;
        let (mut head, mut body) = ([0; HEAD], Vec::new());
        while end + (HEAD as u64) < length {
            reader.read_exact(&mut head)?;
            let (size, sum) = head.split_at(8);
            let size = u64::from_le_bytes(size.try_into().unwrap_or_default());
            let least = (4 + self.row_bytes) as u64;
            if size < least || size > least + MAX_NAME as u64 || end + HEAD as u64 + size > length {
                break;
            }
            body.resize(size as usize, 0);
            reader.read_exact(&mut body)?;
            let name_length = body.len() - self.row_bytes - 4;
            let name = std::str::from_utf8(&body[4..4 + name_length]);
            let said = u32::from_le_bytes([body[0], body[1], body[2], body[3]]) as usize;
            let (Ok(name), true) = (name, said == name_length && Sha256::digest(&body)[..] == *sum) else { break };
            self.records.push(Record { name: name.to_string(), row: end + (HEAD + 4 + name_length) as u64 });
            end += HEAD as u64 + size;
        }
        Ok(end)
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.records.iter().map(|record| record.name.as_str())
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Forgets the records whose names `keep` rejects; their bytes go when the journal is emptied.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.records.retain(|record| keep(&record.name));
    }

    pub fn append(&mut self, name: &str, row: &[u8]) -> Result<()> {
        let mut record = Vec::with_capacity(HEAD + 4 + name.len() + row.len());
        record.extend(((4 + name.len() + row.len()) as u64).to_le_bytes());
        record.extend([0; 32]);
        record.extend((name.len() as u32).to_le_bytes());
        record.extend(name.as_bytes());
        record.extend(row);
        let sum = Sha256::digest(&record[HEAD..]);
        record[8..HEAD].copy_from_slice(&sum);
        let row = self.log.end() + (HEAD + 4 + name.len()) as u64;
        self.log.append(&record)?;
        self.records.push(Record { name: name.to_string(), row });
        Ok(())
    }

    /// Appends a range of one image's record to `bytes`.
    pub fn part(&mut self, image: usize, range: Range<usize>, bytes: &mut Vec<u8>) -> std::io::Result<()> {
        let from = bytes.len();
        bytes.resize(from + range.len(), 0);
        let mut file = self.log.file();
        file.seek(SeekFrom::Start(self.records[image].row + range.start as u64))?;
        file.read_exact(&mut bytes[from..])
    }

    pub fn clear(&mut self) -> Result<()> {
        self.records.clear();
        self.log.cut(0)
    }

    /// Removes the empty journal once the store is complete.
    pub fn remove(self) -> Result<()> {
        let holder = self.log.path().with_file_name(HOLDER);
        std::fs::remove_file(&holder).map_err(Error::io(&holder))?;
        self.log.remove()
    }

    /// Removes a journal without images that no writer has locked: what could not be removed once the store was complete.
    pub fn remove_empty(folder: &Path) {
        let path = folder.join(FILE);
        let Ok(journal) = std::fs::File::open(&path) else { return };
        // The lock is held until the name is gone.
        if journal.try_lock().is_ok() && journal.metadata().is_ok_and(|about| about.len() == 0) {
            let _ = std::fs::remove_file(folder.join(HOLDER));
            let _ = std::fs::remove_file(path);
        }
    }

    /// Refuses a folder in which a writer is at work. The journal stays as it is.
    ///
    /// # Errors
    /// When a writer is at work, with its process; when the journal cannot be opened.
    pub fn refuse_at_work(folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        let journal = std::fs::File::open(&path).map_err(Error::io(&path))?;
        match journal.try_lock() {
            Err(TryLockError::WouldBlock) => Err(at_work(folder)),
            _ => Ok(()),
        }
    }

    /// Whether a folder holds a journal: a writer is at work there or was killed.
    pub fn exists_in(folder: &Path) -> bool {
        folder.join(FILE).exists()
    }

    pub fn is_journal(file_name: &str) -> bool {
        file_name == FILE || file_name == HOLDER
    }
}
