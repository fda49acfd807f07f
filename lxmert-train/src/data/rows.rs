//! Reads JSON files that are one long list entry by entry: the benchmarks' files have up to 700 MB, and memory holds only
//! what the caller keeps of each entry.

use crate::{Error, Result};
use lxmert_core::files::open_text;
use serde::Deserializer as _;
use serde::de::{DeserializeOwned, SeqAccess, Visitor};
use std::io::Read;
use std::marker::PhantomData;
use std::path::Path;

/// Calls `take` with each entry and its row, counted from 1.
///
/// # Errors
/// When the file cannot be read or is no list, and at the first entry that is not a `T` or that `take` refuses. Errors of
/// entries name the row; `take` gives a reason alone.
pub fn for_each_entry<T: DeserializeOwned>(
    path: &Path,
    take: impl FnMut(usize, T) -> std::result::Result<(), String>,
) -> Result<()> {
    let mut row = 0;
    let mut reader = serde_json::Deserializer::from_reader(open_text(path)?);
    let read =
        reader.deserialize_seq(Entries { row: &mut row, take, entry: PhantomData::<T> }).and_then(|()| reader.end());
    read.map_err(|error| match (error.is_io(), row) {
        (true, _) => Error::io(path)(error.into()),
        (false, 0) if error.is_eof() => Error::file(path, "the file is empty; write or fetch it again"),
        (false, row) if error.is_eof() => Error::row(path, row, "the file is cut off here; write or fetch it again"),
        (false, 0) => Error::file(path, format!("expected a JSON list: {error}")),
        (false, row) => Error::row(path, row, error.to_string()),
    })
}

/// The first character of a file that is no white space: tells a JSON list from an object.
///
/// # Errors
/// When the file cannot be read.
pub fn first_character(path: &Path) -> Result<Option<char>> {
    for byte in open_text(path)?.bytes() {
        let byte = byte.map_err(Error::io(path))?;
        if !byte.is_ascii_whitespace() {
            return Ok(Some(char::from(byte)));
        }
    }
    Ok(None)
}

struct Entries<'a, T, F> {
    row: &'a mut usize,
    take: F,
    entry: PhantomData<T>,
}

impl<'de, T: DeserializeOwned, F: FnMut(usize, T) -> std::result::Result<(), String>> Visitor<'de>
    for Entries<'_, T, F>
{
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> std::result::Result<(), A::Error> {
        loop {
            *self.row += 1;
            match list.next_element::<T>()? {
                Some(entry) => (self.take)(*self.row, entry).map_err(serde::de::Error::custom)?,
                None => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(usize, u32)>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let mut found = Vec::new();
        for_each_entry(file.path(), |row, value: u32| {
            found.push((row, value));
            if value == 13 { Err("13 brings bad luck".into()) } else { Ok(()) }
        })?;
        Ok(found)
    }

    #[test]
    fn entries_come_with_their_row_and_errors_name_it() {
        assert_eq!(read(" [7, 8]\n").unwrap(), [(1, 7), (2, 8)]);
        assert_eq!(read("[]").unwrap(), []);
        assert_eq!(read("\u{feff}[7]").unwrap(), [(1, 7)]);
        let error = |text| read(text).unwrap_err().to_string();
        assert!(error("[1, 2, \"x\"]").contains("row 3"), "{}", error("[1, 2, \"x\"]"));
        assert!(error("[1, 13]").contains("row 2: 13 brings bad luck"), "{}", error("[1, 13]"));
        assert!(error("[1, 2").contains("row 3: the file is cut off"), "{}", error("[1, 2"));
        assert!(error(" \n").contains("the file is empty"), "{}", error(" \n"));
        assert!(error("{}").contains("expected a JSON list"), "{}", error("{}"));
        assert!(read("[1] 2").is_err());
    }
}
