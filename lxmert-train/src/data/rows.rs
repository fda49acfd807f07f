//! Reads JSON files of examples row by row: the benchmarks' files are up to 1.4 GB, and memory holds only what the
//! caller keeps of each row.

use crate::{Error, Result};
use lxmert_core::files::open_text;
use serde::de::{DeserializeOwned, Deserializer as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::fmt::{self, Formatter};
use std::io::Read;
use std::marker::PhantomData;
use std::path::Path;

/// The content of a row.
pub trait Row: DeserializeOwned {
    /// An example row for error messages: `{"question_id": 1, …}`.
    const FORM: &'static str;
    /// Where the rows are in a file that starts with `{`.
    const IN_OBJECT: Object = Object::IsRow;
}

/// What a JSON object at the start of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    /// A row; the next one follows on its own line.
    IsRow,
    /// The whole file: each of its values is a row, and the key is the row's id.
    HasRows,
}

/// Calls `take` with each row: its number from 1, its key if the file has keys, and the row. The file is a list of
/// rows, or an object as in [`Row::IN_OBJECT`].
///
/// # Errors
/// Returns an error if the file cannot be read or has another form, and at the first row that is not a `T` or that
/// `take` rejects. The error names the row; `take` returns only the reason.
pub fn for_each_row<T: Row>(
    path: &Path,
    take: impl FnMut(usize, Option<String>, T) -> std::result::Result<(), String>,
) -> Result<()> {
    let start = first_character(path)?;
    let mut rows = Rows { row: 0, take, failed: None, kind: PhantomData::<T> };
    let reader = open_text(path)?;
    let mut json = serde_json::Deserializer::from_reader(reader);
    let read = match (start, T::IN_OBJECT) {
        (Some('['), _) => json.deserialize_seq(&mut rows).and_then(|()| json.end()),
        (Some('{'), Object::HasRows) => json.deserialize_map(&mut rows).and_then(|()| json.end()),
        (Some('{'), Object::IsRow) => json.into_iter::<Value>().try_for_each(|row| {
            rows.row += 1;
            rows.take(None, row?)
        }),
        (None, _) => return Err(Error::file(path, "the file is empty; write or fetch it again")),
        _ => return Err(Error::file(path, format!("this is not JSON; expected rows such as {}", T::FORM))),
    };
    if let Some(reason) = rows.failed {
        return Err(Error::row(path, rows.row, reason));
    }
    read.map_err(|error| match rows.row {
        _ if error.is_io() => Error::io(path)(error.into()),
        row if error.is_eof() => Error::row(path, row, "the file is truncated here; write or fetch it again"),
        row if error.is_syntax() => Error::row(path, row, format!("not JSON: {error}")),
        row => Error::row(path, row, error.to_string()),
    })
}

/// The first character of a file other than white space: distinguishes a JSON list from an object.
///
/// # Errors
/// Returns an error if the file cannot be read.
pub fn first_character(path: &Path) -> Result<Option<char>> {
    for byte in open_text(path)?.bytes() {
        let byte = byte.map_err(Error::io(path))?;
        if !byte.is_ascii_whitespace() {
            return Ok(Some(char::from(byte)));
        }
    }
    Ok(None)
}

/// Parses a row.
///
/// # Errors
/// The reason: what was found, and what was expected.
pub fn parse<T: Row>(value: Value) -> std::result::Result<T, String> {
    let fields = value.as_object().map(|fields| fields.keys().cloned().collect::<Vec<_>>().join(", "));
    T::deserialize(value).map_err(|error| {
        let reason = error.to_string();
        let reason = match (reason.strip_prefix("missing field `"), &fields) {
            (_, None) => "it is not a JSON object".into(),
            (Some(field), Some(fields)) => format!("it lacks {}; its fields are {fields}", field.trim_end_matches('`')),
            (None, _) => {
                match reason.strip_prefix("invalid type: ").and_then(|reason| reason.split_once(", expected ")) {
                    Some((found, wanted)) => format!("it has {found} instead of {wanted}"),
                    None => reason,
                }
            }
        };
        format!("{reason}; expected {}", T::FORM)
    })
}

struct Rows<T, F> {
    row: usize,
    take: F,
    failed: Option<String>,
    kind: PhantomData<T>,
}

impl<T: Row, F: FnMut(usize, Option<String>, T) -> std::result::Result<(), String>> Rows<T, F> {
    fn take<E: serde::de::Error>(&mut self, key: Option<String>, value: Value) -> std::result::Result<(), E> {
        parse(value).and_then(|row| (self.take)(self.row, key, row)).map_err(|reason| {
            self.failed = Some(reason);
            E::custom("")
        })
    }
}

impl<'de, T: Row, F: FnMut(usize, Option<String>, T) -> std::result::Result<(), String>> Visitor<'de>
    for &mut Rows<T, F>
{
    type Value = ();

    fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "rows such as {}", T::FORM)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<(), A::Error> {
        loop {
            self.row += 1;
            match list.next_element()? {
                Some(value) => self.take(None, value)?,
                None => return Ok(()),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        loop {
            self.row += 1;
            match map.next_entry::<String, Value>()? {
                Some((key, value)) => self.take(Some(key), value)?,
                None => return Ok(()),
            }
        }
    }
}

/// The first key of a file that is a JSON object; truncated at an escaped character.
///
/// # Errors
/// Returns an error if the file cannot be read.
pub fn first_key(path: &Path) -> Result<Option<String>> {
    let mut start = String::new();
    open_text(path)?.take(4096).read_to_string(&mut start).map_err(Error::io(path))?;
    let key = start.trim_start().strip_prefix('{').and_then(|rest| rest.trim_start().strip_prefix('"'));
    Ok(key.and_then(|key| key.split(['"', '\\']).next()).map(String::from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Listed {
        age: u32,
    }

    impl Row for Listed {
        const FORM: &'static str = r#"{"age": 7}"#;
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Keyed {
        age: u32,
    }

    impl Row for Keyed {
        const FORM: &'static str = r#"{"age": 7}"#;
        const IN_OBJECT: Object = Object::HasRows;
    }

    fn written(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn read(text: &str) -> Result<Vec<(usize, u32)>> {
        let mut found = Vec::new();
        for_each_row(written(text).path(), |row, _, Listed { age }| {
            found.push((row, age));
            if age == 13 { Err("13 brings bad luck".into()) } else { Ok(()) }
        })?;
        Ok(found)
    }

    #[test]
    fn a_list_and_lines_and_an_object_give_the_same_rows() {
        let rows = [(1, 7), (2, 8)];
        assert_eq!(read(" [{\"age\": 7}, {\"age\": 8}]\n").unwrap(), rows);
        assert_eq!(read("\u{feff}{\"age\": 7, \"name\": {}}\n\n{\"age\": 8}\n").unwrap(), rows);
        assert_eq!(read("[]").unwrap(), []);
        let mut found = Vec::new();
        let file = written(r#"{"a": {"age": 7}, "b": {"age": 8}}"#);
        for_each_row(file.path(), |row, key, Keyed { age }| {
            found.push((row, key, age));
            Ok(())
        })
        .unwrap();
        assert_eq!(found, [(1, Some("a".into()), 7), (2, Some("b".into()), 8)]);
    }

    #[test]
    fn errors_name_the_row_what_was_found_and_what_was_expected() {
        for (text, reason) in [
            (
                r#"[{"age": 1}, {"name": "x", "size": 3}]"#,
                r#"row 2: it lacks age; its fields are name, size; expected {"age": 7}"#,
            ),
            (r#"[{"age": "1"}]"#, r#"row 1: it has string "1" instead of u32; expected {"age": 7}"#),
            ("[1]", "row 1: it is not a JSON object"),
            (r#"[{"age": 1}, {"age": 13}]"#, "row 2: 13 brings bad luck"),
            (r#"[{"age": 1}, {"a"#, "row 2: the file is truncated"),
            ("{\"age\": 1}\n{\"age\": x}", "row 2: not JSON: "),
            ("[{\"age\": 1}] 2", "not JSON: trailing"),
            (" \n", "the file is empty"),
            ("age\n1", r#"this is not JSON; expected rows such as {"age": 7}"#),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
            assert_eq!(error.matches("line").count(), usize::from(reason.contains("not JSON: ")), "{error}");
        }
    }

    #[test]
    fn the_first_key_distinguishes_kinds_of_objects() {
        for (text, key) in [("{ \"info\": {}}", Some("info")), ("{}", None), ("[1]", None)] {
            assert_eq!(first_key(written(text).path()).unwrap().as_deref(), key);
        }
    }
}
