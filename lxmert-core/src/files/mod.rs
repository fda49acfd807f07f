//! File access in one place: atomic writes, append-only logs, hashes, and text in any encoding.
//!
//! | function | what |
//! | --- | --- |
//! | [`atomic_write`] | writes a file so that it holds its old content or all of the new |
//! | [`FolderDraft`] | the same for a folder |
//! | [`AppendLog`] | a file that only grows and can be cut back to its last valid record |
//! | [`sha256`], [`hex`] | hashes as lower-case hexadecimal |
//! | [`read_text`], [`read_json`], [`open_text`] | text in UTF-8, UTF-16 or Latin-1, with or without a byte-order mark |

mod append_log;
mod atomic;
mod folder_draft;
mod map;
mod text;

pub use append_log::AppendLog;
pub(crate) use atomic::UNFINISHED;
pub use atomic::{atomic_write, remove_leftovers};
pub use folder_draft::FolderDraft;
pub(crate) use map::{Bytes, map_file};
pub use text::{Fields, open_text, read_json, read_text};

use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::Path;

/// The SHA-256 of a file, lower-case hexadecimal.
///
/// # Errors
/// Returns an error if the file cannot be read.
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

/// This process, for another one to name: "process 71 on node3 (lxmert-extract --part 2/8)".
pub fn writer_here() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let host = host.or_else(|| std::env::var("HOSTNAME").or_else(|_| std::env::var("COMPUTERNAME")).ok());
    let host = host.map_or_else(String::new, |host| format!(" on {}", host.trim()));
    let mut words = std::env::args();
    let program = words.next().unwrap_or_default();
    let program = Path::new(&program).file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let command = std::iter::once(program).chain(words).collect::<Vec<_>>().join(" ");
    format!("process {}{host} ({})", std::process::id(), command.replace('\n', " "))
}

/// Bytes as lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
