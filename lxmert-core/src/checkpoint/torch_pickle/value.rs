//! Pickles of plain values (lists, dicts, text, numbers) as JSON: annotation files that Python scripts saved.

use super::python_text;
use super::vm::{Bytes, Heap, Id, Node, Unpickled};
use serde_json::{Map, Value};

/// Maximum nesting of lists and dicts.
const DEEPEST: usize = 64;

/// Converts the value pickled in `stream` to JSON. Tuples become lists; bytes and integer keys become text; NaN and
/// infinities become null.
///
/// # Errors
/// Returns an error if it holds something that JSON cannot represent, or refers to itself so often that the JSON would
/// be far longer than the pickle.
pub fn to_json(stream: &[u8], pickle: &Unpickled) -> Result<Value, String> {
    // Values that the pickle states once and uses often (field names, words) are copied, so the JSON may be longer.
    let mut conversion =
        Conversion { stream, heap: &pickle.heap, left: pickle.length.saturating_mul(32).saturating_add(1 << 16) };
    conversion.value(pickle.root, 0)
}

struct Conversion<'a> {
    stream: &'a [u8],
    heap: &'a Heap,
    /// Roughly how many more bytes of JSON may be produced.
    left: usize,
}

impl Conversion<'_> {
    fn spend(&mut self, bytes: usize) -> Result<(), String> {
        self.left = self.left.checked_sub(bytes).ok_or("its values repeat one another too often")?;
        Ok(())
    }

    fn list(&mut self, items: &[Id], depth: usize) -> Result<Value, String> {
        items.iter().map(|&item| self.value(item, depth + 1)).collect()
    }

    fn value(&mut self, id: Id, depth: usize) -> Result<Value, String> {
        if depth > DEEPEST {
            return Err(format!("its lists and dicts are nested more than {DEEPEST} deep"));
        }
        self.spend(1)?;
        let heap = self.heap;
        Ok(match heap.get(id) {
            Node::None => Value::Null,
            Node::Bool(value) => Value::Bool(*value),
            Node::Int(value) => Value::from(*value),
            Node::Float(value) => Value::from(*value),
            Node::Text(text) => {
                self.spend(text.len())?;
                Value::from(text.as_str())
            }
            Node::Bytes(bytes) => {
                let bytes = match bytes {
                    Bytes::At(range) => self.stream.get(range.clone()).unwrap_or_default(),
                    Bytes::Own(bytes) => bytes,
                };
                self.spend(bytes.len())?;
                Value::from(python_text::of_bytes(bytes))
            }
            Node::List(items) | Node::Tuple(items) => self.list(items, depth)?,
            Node::Dict(entries) => {
                let mut map = Map::with_capacity(entries.len());
                for &(key, value) in entries {
                    let name = match heap.get(key) {
                        Node::Text(text) => text.clone(),
                        Node::Int(number) => number.to_string(),
                        _ => return Err("a dict has a key that is neither text nor an integer".into()),
                    };
                    self.spend(name.len())?;
                    map.insert(name, self.value(value, depth + 1)?);
                }
                Value::Object(map)
            }
            Node::Long => return Err("it holds an integer of more than 64 bits".into()),
            _ => return Err("it holds something other than lists, dicts, text and numbers".into()),
        })
    }
}
