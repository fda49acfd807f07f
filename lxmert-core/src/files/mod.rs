//! Files, one way each: written whole or not at all, appended to and cut back, hashed, and read as text.
//!
//! | function | what |
//! | --- | --- |
//! | [`atomic_write`] | a file that holds its old content or its whole new one |
//! | [`FolderDraft`] | the same for a folder of many files |
//! | [`AppendLog`] | a file that only grows, and is cut back to where its owner last stood |
//! | [`sha256`], [`hex`] | hashes as lower-case hexadecimal |
//! | [`read_text`], [`read_json`], [`open_text`] | text in UTF-8, UTF-16 or Latin-1, with or without a byte-order mark |

mod append_log;
mod atomic;
mod folder_draft;
mod text;

pub use append_log::AppendLog;
pub(crate) use atomic::UNFINISHED;
pub use atomic::{atomic_write, remove_leftovers};
pub use folder_draft::FolderDraft;
pub use text::{Fields, open_text, read_json, read_text};

use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::Path;

/// The SHA-256 of a file, lower-case hexadecimal.
///
/// # Errors
/// When the file cannot be read.
pub fn sha256(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let mut file = std::fs::File::open(path).map_err(Error::io(path))?;
    let (mut hash, mut block) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut block).map_err(Error::io(path))? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&block[..n]),
        }
    }
}

/// SHA-256 of these bytes, in hexadecimal.
pub fn sha256_of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes as lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
