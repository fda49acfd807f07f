//! Text files as found in practice: UTF-8 or UTF-16, with or without a byte-order mark, and Latin-1.

use crate::{Error, Result};
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Reads a text file. A byte-order mark is skipped; it also identifies UTF-16. Lines that are not UTF-8 are read as
/// Windows-1252, a superset of Latin-1's letters, and a warning says how many.
///
/// # Errors
/// Returns an error if the file cannot be read or is malformed UTF-16.
pub fn read_text(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let utf16 = |decode: fn([u8; 2]) -> u16| {
        let units = bytes[2..].chunks(2).map(|unit| decode([unit[0], unit.get(1).copied().unwrap_or_default()]));
        String::from_utf16(&units.collect::<Vec<_>>()).map_err(|_| Error::format(path, "damaged UTF-16 text"))
    };
    match bytes.as_slice() {
        [0xff, 0xfe, ..] => return utf16(u16::from_le_bytes),
        [0xfe, 0xff, ..] => return utf16(u16::from_be_bytes),
        _ => {}
    }
    let text = String::from_utf8(bytes).unwrap_or_else(|error| {
        let (text, rows) = mixed(error.as_bytes());
        log::warn!(
            "{}: {} lines are not UTF-8 and were read as Latin-1, the first is row {}; if letters are wrong, save \
             the file as UTF-8",
            path.display(),
            rows.len(),
            rows.first().copied().unwrap_or_default()
        );
        text
    });
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_string(),
        None => text,
    })
}

/// The keys and values of a JSON object.
pub type Fields = serde_json::Map<String, serde_json::Value>;

/// Reads a JSON file in any encoding that [`read_text`] understands.
///
/// # Errors
/// Returns an error if it cannot be read, is not JSON, or is not a `T`.
pub fn read_json<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<T> {
    let path = path.as_ref();
    serde_json::from_str(&read_text(path)?).map_err(Error::json(path))
}

/// Opens a UTF-8 file that is too long to read whole, and skips its byte-order mark.
///
/// # Errors
/// Returns an error if the file cannot be read.
pub fn open_text(path: impl AsRef<Path>) -> Result<BufReader<File>> {
    let path = path.as_ref();
    let open = || {
        let mut reader = BufReader::with_capacity(1 << 20, File::open(path)?);
        let marked = reader.fill_buf()?.starts_with(b"\xef\xbb\xbf");
        reader.consume(if marked { 3 } else { 0 });
        Ok(reader)
    };
    open().map_err(Error::io(path))
}

/// Decodes each line as UTF-8, otherwise as Windows-1252; also gives the numbers of the latter.
fn mixed(bytes: &[u8]) -> (String, Vec<usize>) {
    // The characters that Windows-1252 has where Latin-1 has control characters.
    const HIGH: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}', '‘',
        '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
    ];
    let (mut text, mut rows) = (String::with_capacity(bytes.len()), Vec::new());
    for (i, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
        match std::str::from_utf8(line) {
            Ok(line) => text.push_str(line),
            Err(_) => {
                rows.push(i + 1);
                text.extend(line.iter().map(|&byte| match byte {
                    0x80..0xa0 => HIGH[usize::from(byte) - 0x80],
                    _ => char::from(byte),
                }));
            }
        }
    }
    (text, rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn read(bytes: &[u8]) -> Result<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        read_text(file.path())
    }

    #[test]
    fn every_encoding_gives_the_same_text() {
        let utf16 = |big: bool| -> Vec<u8> {
            let bytes = |unit: u16| if big { unit.to_be_bytes() } else { unit.to_le_bytes() };
            "\u{feff}a café\n".encode_utf16().flat_map(bytes).collect()
        };
        let forms = ["a café\n".as_bytes().to_vec(), b"\xef\xbb\xbfa caf\xc3\xa9\n".to_vec(), b"a caf\xe9\n".to_vec()];
        for bytes in forms.into_iter().chain([utf16(true), utf16(false)]) {
            assert_eq!(read(&bytes).unwrap(), "a café\n", "{bytes:?}");
        }
        assert_eq!(read(b"\xe9t\xe9\n\xc3\xa9t\xc3\xa9\n\x93x\x94").unwrap(), "été\nété\n“x”");
        assert!(read(b"\xff\xfe\x00\xd8").is_err());
    }

    #[test]
    fn open_text_skips_the_byte_order_mark() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (bytes, text) in [(&b"\xef\xbb\xbf[1]"[..], "[1]"), (b"[1]", "[1]"), (b"", "")] {
            std::fs::write(file.path(), bytes).unwrap();
            let mut read = String::new();
            open_text(file.path()).unwrap().read_to_string(&mut read).unwrap();
            assert_eq!(read, text);
        }
    }
}
