//! A pickle machine that can only build values.
//!
//! A pickle is a program for a stack machine. In Python its `GLOBAL` and `REDUCE` operations look up and call any
//! function; here a name is looked up in the short table of [`classes`](super::classes), and any other name ends the
//! read. Values live in one arena and refer to each other by index, so that neither deep nesting nor a cycle, which a
//! hostile file makes with a few bytes, can exhaust the stack when values are walked or dropped. The file's length
//! bounds the memory: every operation adds at most one node, and every text is a copy of bytes in the file.

use super::classes::{ArraySpec, Call, Class, ElementType, Storage, TensorSpec};
use super::python_text;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

/// Index of a value in [`Heap::nodes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Id(u32);

/// A value that a pickle has built.
#[derive(Debug, Clone)]
pub enum Node {
    /// Python's `None`.
    None,
    Bool(bool),
    Int(i64),
    /// An integer of more than 64 bits (torch's magic number is one); nothing else here needs one.
    Long,
    Float(f64),
    Text(String),
    Bytes(Bytes),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Set,
    /// `dict` and `OrderedDict`, in the file's order.
    Dict(Vec<(Id, Id)>),
    Class(Class),
    Storage(Storage),
    Tensor(TensorSpec),
    /// `numpy.dtype`.
    Dtype(ElementType),
    /// `numpy.ndarray`, to be filled by a later operation.
    Array(Option<ArraySpec>),
    /// An object of a known class that weights do not need (`torch.device`).
    Opaque,
}

/// Python's `bytes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bytes {
    /// Their range in the stream.
    At(Range<usize>),
    /// Bytes that were encoded as text.
    Own(Rc<[u8]>),
}

/// Why a pickle cannot be read.
#[derive(Debug)]
pub enum Fault {
    /// It names a class or an action outside the table.
    Class { class: String, offset: usize },
    /// It is truncated, damaged or inconsistent.
    Damaged { reason: String, offset: usize },
}

/// All values of one pickle.
#[derive(Debug, Default)]
pub struct Heap {
    nodes: Vec<Node>,
}

impl Heap {
    /// The value at `id`.
    pub fn get(&self, id: Id) -> &Node {
        // Only `add` makes an `Id`, and nodes are never removed.
        &self.nodes[id.0 as usize]
    }

    /// Every storage that the pickle names, repetitions included.
    pub fn storages(&self) -> impl Iterator<Item = &Storage> {
        self.nodes.iter().filter_map(|node| if let Node::Storage(storage) = node { Some(storage) } else { None })
    }

    /// The text at `id`, if it is text.
    pub fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The bytes at `id`, if they are bytes (or text, as Python 2 writes bytes).
    pub fn bytes(&self, id: Id) -> Option<Bytes> {
        match self.get(id) {
            Node::Bytes(bytes) => Some(bytes.clone()),
            Node::Text(text) => Some(Bytes::Own(text.as_bytes().into())),
            _ => None,
        }
    }

    /// The integer at `id`, if it is one (or a bool, which Python counts as an integer).
    pub fn int(&self, id: Id) -> Option<i64> {
        match *self.get(id) {
            Node::Int(value) => Some(value),
            Node::Bool(value) => Some(i64::from(value)),
            _ => None,
        }
    }

    /// The elements of the tuple or list at `id`.
    pub fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Node::Tuple(items) | Node::List(items) => Some(items),
            _ => None,
        }
    }

    /// The tuple or list of non-negative integers at `id`.
    pub fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        self.sequence(id)?.iter().map(|&item| self.int(item).and_then(|n| usize::try_from(n).ok())).collect()
    }
}

/// A pickle's value, and where its last operation ended.
#[derive(Debug)]
pub struct Unpickled {
    pub heap: Heap,
    pub root: Id,
    /// Number of bytes read from the stream.
    pub length: usize,
}

/// Runs the pickle at the start of `stream`.
pub fn unpickle(stream: &[u8]) -> Result<Unpickled, Fault> {
    let mut machine =
        Machine { stream, at: 0, heap: Heap::default(), stack: Vec::new(), memo: HashMap::new(), copied: 0 };
    let root = machine.run()?;
    Ok(Unpickled { length: machine.at, heap: machine.heap, root })
}

enum Slot {
    Mark,
    Value(Id),
}

struct Machine<'a> {
    stream: &'a [u8],
    at: usize,
    heap: Heap,
    stack: Vec<Slot>,
    memo: HashMap<u32, Id>,
    /// References that calls copied from one container to another, and bytes made from text. An honest pickle states
    /// each once, so there are fewer of them than bytes in the file; a hostile one could double them with every few
    /// bytes.
    copied: usize,
}

impl<'a> Machine<'a> {
    fn damaged(&self, reason: impl Into<String>) -> Fault {
        Fault::Damaged { reason: reason.into(), offset: self.at.saturating_sub(1) }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Fault> {
        let end = self.at.checked_add(length).filter(|&end| end <= self.stream.len());
        let Some(end) = end else {
            let left = self.stream.len() - self.at;
            return Err(
                self.damaged(format!("the file is truncated: {length} bytes should follow, but only {left} do"))
            );
        };
        let bytes = &self.stream[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        Ok(self.array::<1>()?[0])
    }

    /// A little-endian length of `N` bytes.
    fn length<const N: usize>(&mut self) -> Result<usize, Fault> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(self.take(N)?);
        usize::try_from(u64::from_le_bytes(wide)).map_err(|_| self.damaged("a length exceeds any memory"))
    }

    /// The rest of the line without its newline: an argument of protocol 0.
    fn raw_line(&mut self) -> Result<&'a [u8], Fault> {
        let rest = &self.stream[self.at..];
        let Some(length) = rest.iter().position(|&b| b == b'\n') else {
            return Err(self.damaged("the file is truncated in a line of text"));
        };
        self.at += length + 1;
        Ok(&rest[..length])
    }

    fn line(&mut self) -> Result<&'a str, Fault> {
        let line = self.raw_line()?;
        std::str::from_utf8(line).map_err(|_| self.damaged("a name is not UTF-8"))
    }

    fn push(&mut self, node: Node) -> Result<(), Fault> {
        let id = self.add(node)?;
        self.stack.push(Slot::Value(id));
        Ok(())
    }

    fn add(&mut self, node: Node) -> Result<Id, Fault> {
        let id =
            u32::try_from(self.heap.nodes.len()).map_err(|_| self.damaged("it holds more than four billion values"))?;
        self.heap.nodes.push(node);
        Ok(Id(id))
    }

    fn pop(&mut self) -> Result<Id, Fault> {
        match self.stack.pop() {
            Some(Slot::Value(id)) => Ok(id),
            _ => Err(self.damaged("an operation lacks its argument")),
        }
    }

    fn top(&self) -> Result<Id, Fault> {
        match self.stack.last() {
            Some(Slot::Value(id)) => Ok(*id),
            _ => Err(self.damaged("an operation lacks its argument")),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, Fault> {
        let Some(mark) = self.stack.iter().rposition(|slot| matches!(slot, Slot::Mark)) else {
            return Err(self.damaged("an operation lacks its mark"));
        };
        let values = self.stack.drain(mark..).skip(1);
        // There are only values above the last mark.
        Ok(values.filter_map(|slot| if let Slot::Value(id) = slot { Some(id) } else { None }).collect())
    }

    fn remember(&mut self, key: u32) -> Result<(), Fault> {
        let id = self.top()?;
        self.memo.insert(key, id);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), Fault> {
        let id = *self
            .memo
            .get(&key)
            .ok_or_else(|| self.damaged(format!("it recalls value {key}, which it never stored")))?;
        self.stack.push(Slot::Value(id));
        Ok(())
    }

    fn number<T: std::str::FromStr>(&self, text: &str) -> Result<T, Fault> {
        text.trim().parse().map_err(|_| self.damaged(format!("'{text}' is not a number")))
    }

    fn text(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let text = std::str::from_utf8(bytes).map_err(|_| self.damaged("a text is not UTF-8"))?;
        self.push(Node::Text(text.to_string()))
    }

    /// Python 2's strings: text in practice, bytes if they do not decode.
    fn old_string(&mut self, length: usize) -> Result<(), Fault> {
        match std::str::from_utf8(self.take(length)?) {
            Ok(text) => self.push(Node::Text(text.to_string())),
            Err(_) => self.push(Node::Bytes(Bytes::At(self.at - length..self.at))),
        }
    }

    fn bytes(&mut self, length: usize) -> Result<(), Fault> {
        self.take(length)?;
        self.push(Node::Bytes(Bytes::At(self.at - length..self.at)))
    }

    fn long(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        if bytes.len() > 8 {
            return self.push(Node::Long);
        }
        let negative = bytes.last().is_some_and(|&b| b & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        self.push(Node::Int(i64::from_le_bytes(wide)))
    }

    fn dict_of(&self, items: &[Id]) -> Result<Vec<(Id, Id)>, Fault> {
        if !items.len().is_multiple_of(2) {
            return Err(self.damaged("a dict has a key without its value"));
        }
        Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }

    fn extend_list(&mut self, more: &[Id]) -> Result<(), Fault> {
        let list = self.top()?;
        match &mut self.heap.nodes[list.0 as usize] {
            Node::List(items) => items.extend_from_slice(more),
            _ => return Err(self.damaged("it appends to something other than a list")),
        }
        Ok(())
    }

    fn extend_dict(&mut self, more: &[Id]) -> Result<(), Fault> {
        let more = self.dict_of(more)?;
        let dict = self.top()?;
        match &mut self.heap.nodes[dict.0 as usize] {
            Node::Dict(entries) => entries.extend(more),
            _ => return Err(self.damaged("it sets an item of something other than a dict")),
        }
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str, offset: usize) -> Result<(), Fault> {
        match Class::named(module, name) {
            Some(class) => self.push(Node::Class(class)),
            None => Err(Fault::Class { class: printable(&format!("{module}.{name}")), offset }),
        }
    }

    fn reduce(&mut self, offset: usize) -> Result<(), Fault> {
        let arguments = self.pop()?;
        let callee = self.pop()?;
        let Node::Class(class) = *self.heap.get(callee) else {
            return Err(self.damaged("it calls something other than a class"));
        };
        let Node::Tuple(arguments) = self.heap.get(arguments) else {
            return Err(self.damaged("it calls a class with something other than a tuple"));
        };
        match class.call(&self.heap, arguments) {
            Ok(Call::New(node)) => {
                self.copied += match &node {
                    Node::Dict(entries) => entries.len(),
                    Node::Tuple(items) => items.len(),
                    Node::Bytes(Bytes::Own(bytes)) => bytes.len(),
                    _ => 0,
                };
                self.check_copied()?;
                self.push(node)
            }
            Ok(Call::Same(id)) => {
                self.stack.push(Slot::Value(id));
                Ok(())
            }
            Err(reason) => Err(Fault::Damaged { reason, offset }),
        }
    }

    fn check_copied(&self) -> Result<(), Fault> {
        match self.copied > self.stream.len() {
            true => Err(self.damaged("it copies more values than the file can hold")),
            false => Ok(()),
        }
    }

    /// `BUILD` sets an object's attributes. A state dict's `OrderedDict` has one, `_metadata`, which weights do not
    /// need; for NumPy's element type it is the byte order, for NumPy's array the whole content. Any other object's
    /// attributes are up to its class, so they are refused.
    fn build(&mut self, offset: usize) -> Result<(), Fault> {
        let state = self.pop()?;
        let object = self.top()?;
        let refused = |class: &str| Err(Fault::Class { class: class.into(), offset });
        match (self.heap.get(object), self.heap.get(state)) {
            (Node::Dict(_), Node::Dict(_)) => Ok(()),
            (Node::Dict(_), _) => refused("a dict with extra state"),
            (Node::Dtype(_), Node::Tuple(state)) => match state.get(1).and_then(|&order| self.heap.text(order)) {
                Some(">") => Err(self.damaged("its arrays were written on a big-endian machine")),
                _ => Ok(()),
            },
            (Node::Array(None), Node::Tuple(state)) => {
                if let Some(Node::Text(text)) = state.last().map(|&bytes| self.heap.get(bytes)) {
                    self.copied += text.len();
                    self.check_copied()?;
                }
                let array =
                    ArraySpec::of_state(&self.heap, state).map_err(|reason| Fault::Damaged { reason, offset })?;
                self.heap.nodes[object.0 as usize] = Node::Array(Some(array));
                Ok(())
            }
            _ => refused("setting attributes on an object that has none here"),
        }
    }

    fn persistent(&mut self, id: Id, offset: usize) -> Result<(), Fault> {
        match Storage::of_persistent_id(&self.heap, id) {
            Ok(storage) => self.push(Node::Storage(storage)),
            Err(reason) => Err(Fault::Damaged { reason, offset }),
        }
    }

    fn run(&mut self) -> Result<Id, Fault> {
        loop {
            let offset = self.at;
            let operation = self.byte()?;
            match operation {
                0x80 => {
                    let protocol = self.byte()?;
                    if protocol > 5 {
                        return Err(self.damaged(format!("pickle protocol {protocol} is unknown")));
                    }
                }
                0x95 => {
                    self.take(8)?; // FRAME: a hint how far to read ahead
                }
                b'.' => return self.pop(),
                b'(' => self.stack.push(Slot::Mark),
                b'0' => {
                    self.stack.pop().ok_or_else(|| self.damaged("an operation lacks its argument"))?;
                }
                b'1' => drop(self.pop_to_mark()?),
                b'2' => self.stack.push(Slot::Value(self.top()?)),

                b'N' => self.push(Node::None)?,
                0x88 => self.push(Node::Bool(true))?,
                0x89 => self.push(Node::Bool(false))?,
                b'I' => match self.line()? {
                    "00" => self.push(Node::Bool(false))?,
                    "01" => self.push(Node::Bool(true))?,
                    text => self.push(Node::Int(self.number(text)?))?,
                },
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.push(Node::Int(value.into()))?;
                }
                b'K' => {
                    let value = self.byte()?;
                    self.push(Node::Int(value.into()))?;
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.push(Node::Int(value.into()))?;
                }
                b'L' => {
                    let text = self.line()?;
                    let value = self.number(text.strip_suffix('L').unwrap_or(text))?;
                    self.push(Node::Int(value))?;
                }
                0x8a => {
                    let length = self.length::<1>()?;
                    let bytes = self.take(length)?;
                    self.long(bytes)?;
                }
                0x8b => {
                    let length = self.length::<4>()?;
                    let bytes = self.take(length)?;
                    self.long(bytes)?;
                }
                b'F' => {
                    let text = self.line()?;
                    self.push(Node::Float(self.number(text)?))?;
                }
                b'G' => {
                    let value = f64::from_be_bytes(self.array()?);
                    self.push(Node::Float(value))?;
                }

                b'S' => {
                    let line = self.line()?;
                    let bytes = python_text::unquoted(line).ok_or_else(|| self.damaged("a text is not quoted"))?;
                    self.push(match String::from_utf8(bytes) {
                        Ok(text) => Node::Text(text),
                        Err(other) => Node::Bytes(Bytes::Own(other.into_bytes().into())),
                    })?;
                }
                b'T' => {
                    let length = self.length::<4>()?;
                    self.old_string(length)?;
                }
                b'U' => {
                    let length = self.length::<1>()?;
                    self.old_string(length)?;
                }
                b'V' => {
                    let line = self.raw_line()?;
                    self.push(Node::Text(python_text::raw_unicode(line)))?;
                }
                b'X' => {
                    let length = self.length::<4>()?;
                    let bytes = self.take(length)?;
                    self.text(bytes)?;
                }
                0x8c => {
                    let length = self.length::<1>()?;
                    let bytes = self.take(length)?;
                    self.text(bytes)?;
                }
                0x8d => {
                    let length = self.length::<8>()?;
                    let bytes = self.take(length)?;
                    self.text(bytes)?;
                }
                b'B' => {
                    let length = self.length::<4>()?;
                    self.bytes(length)?;
                }
                b'C' => {
                    let length = self.length::<1>()?;
                    self.bytes(length)?;
                }
                0x8e | 0x96 => {
                    let length = self.length::<8>()?;
                    self.bytes(length)?;
                }

                b']' => self.push(Node::List(Vec::new()))?,
                b'a' => {
                    let item = self.pop()?;
                    self.extend_list(&[item])?;
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.extend_list(&items)?;
                }
                b'l' => {
                    let items = self.pop_to_mark()?;
                    self.push(Node::List(items))?;
                }
                b')' => self.push(Node::Tuple(Vec::new()))?,
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push(Node::Tuple(items))?;
                }
                0x85..=0x87 => {
                    let mut items = Vec::with_capacity(3);
                    for _ in 0..operation - 0x84 {
                        items.push(self.pop()?);
                    }
                    items.reverse();
                    self.push(Node::Tuple(items))?;
                }
                b'}' => self.push(Node::Dict(Vec::new()))?,
                b'd' => {
                    let items = self.pop_to_mark()?;
                    let entries = self.dict_of(&items)?;
                    self.push(Node::Dict(entries))?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.extend_dict(&[key, value])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.extend_dict(&items)?;
                }
                0x8f => self.push(Node::Set)?,
                0x90 => {
                    self.pop_to_mark()?;
                    if !matches!(self.heap.get(self.top()?), Node::Set) {
                        return Err(self.damaged("it adds to something other than a set"));
                    }
                }
                0x91 => {
                    self.pop_to_mark()?;
                    self.push(Node::Set)?;
                }

                b'p' => {
                    let text = self.line()?;
                    let key = self.number(text)?;
                    self.remember(key)?;
                }
                b'q' => {
                    let key = self.byte()?;
                    self.remember(key.into())?;
                }
                b'r' => {
                    let key = u32::from_le_bytes(self.array()?);
                    self.remember(key)?;
                }
                0x94 => {
                    let key = u32::try_from(self.memo.len()).map_err(|_| self.damaged("it stores too many values"))?;
                    self.remember(key)?;
                }
                b'g' => {
                    let text = self.line()?;
                    let key = self.number(text)?;
                    self.recall(key)?;
                }
                b'h' => {
                    let key = self.byte()?;
                    self.recall(key.into())?;
                }
                b'j' => {
                    let key = u32::from_le_bytes(self.array()?);
                    self.recall(key)?;
                }

                b'c' => {
                    let module = self.line()?;
                    let name = self.line()?;
                    self.global(module, name, offset)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Some(module), Some(name)) = (self.heap.text(module), self.heap.text(name)) else {
                        return Err(self.damaged("a class is named by something other than text"));
                    };
                    let (module, name) = (module.to_string(), name.to_string());
                    self.global(&module, &name, offset)?;
                }
                b'i' => {
                    let (module, name) = (self.line()?, self.line()?);
                    return Err(Fault::Class { class: printable(&format!("an object of {module}.{name}")), offset });
                }
                b'R' => self.reduce(offset)?,
                b'b' => self.build(offset)?,
                b'o' | 0x81 | 0x92 => {
                    return Err(Fault::Class {
                        class: "making an object by its class's own constructor".into(),
                        offset,
                    });
                }
                0x82..=0x84 => {
                    return Err(Fault::Class { class: "a class of Python's extension registry".into(), offset });
                }
                b'P' => {
                    let text = self.line()?.to_string();
                    return Err(self.damaged(format!("it refers to an external object '{}' by text", printable(&text))));
                }
                b'Q' => {
                    let id = self.pop()?;
                    self.persistent(id, offset)?;
                }
                0x97 | 0x98 => return Err(self.damaged("it refers to a buffer outside the file")),
                unknown => return Err(self.damaged(format!("0x{unknown:02x} is not a pickle operation"))),
            }
        }
    }
}

/// A name from a file, made safe for a terminal: control characters escaped, at most 120 characters.
fn printable(name: &str) -> String {
    name.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).take(120).collect()
}
