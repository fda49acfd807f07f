//! PyTorch's own files: the zip archive that `torch.save` writes since 1.6, and the older legacy stream; also plain
//! pickles of NumPy arrays, as in detectron2's model zoo.
//!
//! The first two contain a pickle, in which each tensor states its shape and strides and names a storage, and beside it
//! the storages' raw elements.
//!
//! - **zip**: stored (uncompressed) entries under one folder: `data.pkl`, one `data/<key>` per storage,
//!   and `byteorder` (`little`; absent in the first versions).
//! - **legacy**: five pickles in a row: torch's magic number, the protocol version 1001, a dict that describes the
//!   machine (`little_endian` among others), the object, and the list of the storages' keys; then for each key the
//!   number of elements in eight bytes and the elements.
//! - **NumPy's**: one pickle, of protocol 2 or later, in which every array states its element type, its shape and its
//!   bytes.
//!
//! A storage may serve several tensors, each with its own offset and strides. The reader refuses any class that tensors
//! do not need ([`Error::PickleClass`]), big-endian files, element types that candle lacks, and tensors that together
//! would take several times the file's size (strides of zero can turn four bytes into terabytes).

mod archive;
mod classes;
mod python_text;
mod value;
mod vm;

use crate::{Error, Result};
use archive::Entry;
use candle_core::Tensor;
use classes::{ArraySpec, ElementType, Storage, TensorSpec};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use vm::{Bytes, Fault, Heap, Id, Node, Unpickled};

/// Keys under which training scripts store the state dict, beside epoch and optimizer.
const WRAPPERS: [&str; 3] = ["state_dict", "model_state_dict", "model"];

/// `LONG1`, ten bytes, 0x1950a86a20f9469cfc6c: the start of the legacy stream, after the protocol.
const MAGIC: [u8; 12] = [0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Whether this is a legacy stream.
pub(super) fn is_legacy(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0x80) && bytes[..bytes.len().min(32)].windows(MAGIC.len()).any(|w| w == MAGIC)
}

/// The tensors of a zip `.pth`.
pub(super) fn read_zip(path: &Path, bytes: &[u8], keep: &dyn Fn(&str) -> bool) -> Result<BTreeMap<String, Tensor>> {
    let entries = archive::entries(bytes).map_err(|e| {
        Error::format(path, format!("unreadable zip archive: {e}; the download may be truncated, fetch it again"))
    })?;
    let Some(folder) = entries.keys().filter_map(|name| name.strip_suffix("data.pkl")).min_by_key(|name| name.len())
    else {
        let names: Vec<&str> = entries.keys().take(3).map(String::as_str).collect();
        let holds = if names.is_empty() { "nothing".into() } else { names.join(", ") };
        return Err(Error::format(
            path,
            format!("a zip archive, but not from torch.save: no data.pkl in it ({holds})"),
        ));
    };
    let entry = |name: &str| -> Result<Option<&[u8]>> {
        match entries.get(&format!("{folder}{name}")) {
            None => Ok(None),
            Some(Entry::Stored(range)) => Ok(bytes.get(range.clone())),
            Some(Entry::Compressed) => Err(Error::format(
                path,
                format!("'{folder}{name}' in it is compressed, which torch.save never does; save it again with torch"),
            )),
        }
    };
    if entries.contains_key(&format!("{folder}constants.pkl")) {
        return Err(Error::format(
            path,
            "this is a TorchScript program, not a state dict; save model.state_dict() instead",
        ));
    }
    if entry("byteorder")?.is_some_and(|order| order == b"big") {
        return Err(Error::format(path, BIG_ENDIAN));
    }
    let pickle = entry("data.pkl")?.ok_or_else(|| Error::format(path, "its data.pkl lies outside the file"))?;
    let object = unpickle(path, pickle, 0)?;
    let storage = |storage: &Storage| {
        entry(&format!("data/{}", storage.key))?
            .ok_or_else(|| Error::format(path, format!("storage {} is missing: the file is truncated", storage.key)))
    };
    tensors(path, bytes, &object, keep, &storage)
}

const BIG_ENDIAN: &str = "written on a big-endian machine; save it again on a little-endian one";

/// The tensors of a legacy `.pth`.
pub(super) fn read_legacy(path: &Path, bytes: &[u8], keep: &dyn Fn(&str) -> bool) -> Result<BTreeMap<String, Tensor>> {
    let mut at = 0;
    let mut next = || -> Result<Unpickled> {
        let unpickled = unpickle(path, &bytes[at..], at)?;
        at += unpickled.length;
        Ok(unpickled)
    };
    let _magic = next()?; // `is_legacy` saw it
    let protocol = next()?;
    if protocol.heap.int(protocol.root) != Some(1001) {
        return Err(Error::format(path, "a legacy torch file of an unknown protocol version"));
    }
    let machine = next()?;
    if let Node::Dict(facts) = machine.heap.get(machine.root) {
        for &(key, value) in facts {
            if machine.heap.text(key) == Some("little_endian") && machine.heap.int(value) == Some(0) {
                return Err(Error::format(path, BIG_ENDIAN));
            }
        }
    }
    let object = next()?;
    let keys = next()?;
    let keys = keys
        .heap
        .sequence(keys.root)
        .and_then(|items| items.iter().map(|&key| keys.heap.text(key).map(Rc::<str>::from)).collect::<Option<Vec<_>>>())
        .ok_or_else(|| Error::format(path, "its list of storages is not a list of names"))?;

    let stated: HashMap<&str, &Storage> = object.heap.storages().map(|storage| (&*storage.key, storage)).collect();
    let mut found: HashMap<Rc<str>, Range<usize>> = HashMap::new();
    for key in keys {
        let Some(storage) = stated.get(&*key) else {
            return Err(Error::format(path, format!("storage {key} belongs to no tensor")));
        };
        let cut = || Error::format(path, format!("truncated in storage {key}; fetch it again"));
        let count = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()).ok_or_else(cut)?;
        if usize::try_from(u64::from_le_bytes(*count)) != Ok(storage.elements) {
            return Err(Error::format(
                path,
                format!("storage {key} is not as long as its tensors say; the file is damaged"),
            ));
        }
        let start = at + 8;
        let end = storage
            .elements
            .checked_mul(storage.element.size())
            .and_then(|size| start.checked_add(size))
            .filter(|&end| end <= bytes.len())
            .ok_or_else(cut)?;
        found.insert(key, start..end);
        at = end;
    }
    let storage = |storage: &Storage| {
        let range = found.get(&storage.key).cloned();
        range
            .map(|range| &bytes[range])
            .ok_or_else(|| Error::format(path, format!("storage {} is missing: the file is truncated", storage.key)))
    };
    tensors(path, bytes, &object, keep, &storage)
}

/// The arrays of a pickle that torch did not write.
pub(super) fn read_pickle(path: &Path, bytes: &[u8], keep: &dyn Fn(&str) -> bool) -> Result<BTreeMap<String, Tensor>> {
    let object = unpickle(path, bytes, 0)?;
    let storage = |storage: &Storage| -> Result<&[u8]> {
        Err(Error::format(path, format!("torch storage {} lies outside this pickle", storage.key)))
    };
    tensors(path, bytes, &object, keep, &storage)
}

/// The plain values of a pickle: see [`read_pickle`](super::read_pickle).
pub(super) fn read_plain(path: &Path, bytes: &[u8]) -> Result<serde_json::Value> {
    let pickle = unpickle(path, bytes, 0)?;
    value::to_json(bytes, &pickle).map_err(|reason| Error::format(path, format!("a pickle, but {reason}")))
}

fn unpickle(path: &Path, stream: &[u8], base: usize) -> Result<Unpickled> {
    vm::unpickle(stream).map_err(|fault| match fault {
        Fault::Class { class, offset } => Error::PickleClass { path: path.into(), class, offset: base + offset },
        Fault::Damaged { reason, offset } => Error::Pickle { path: path.into(), offset: base + offset, reason },
    })
}

/// Copies the named tensors of a pickled object out of their storages.
fn tensors<'a>(
    path: &Path,
    file: &'a [u8],
    object: &Unpickled,
    keep: &dyn Fn(&str) -> bool,
    storage: &dyn Fn(&Storage) -> Result<&'a [u8]>,
) -> Result<BTreeMap<String, Tensor>> {
    let named = named_tensors(&object.heap, object.root);
    if named.is_empty() {
        return Err(Error::format(
            path,
            format!("holds no named tensors, but {}", inventory(&object.heap, object.root)),
        ));
    }
    let mut budget = file.len().saturating_mul(4).saturating_add(64 << 20);
    let mut made: HashMap<&TensorSpec, Tensor> = HashMap::new(); // tied weights stay one tensor
    let mut tensors = BTreeMap::new();
    for (name, value) in named.into_iter().filter(|(name, _)| keep(name)) {
        let tensor = match value {
            Value::Tensor(spec) => match made.get(spec) {
                Some(tensor) => tensor.clone(),
                None => {
                    let tensor = materialise(path, &name, spec, storage(&spec.storage)?, &mut budget)?;
                    made.insert(spec, tensor.clone());
                    tensor
                }
            },
            Value::Array(array) => {
                let bytes = match &array.bytes {
                    Bytes::At(range) => file.get(range.clone()).unwrap_or_default(),
                    Bytes::Own(bytes) => bytes,
                };
                let too_large =
                    || Error::format(path, format!("array '{name}' of shape {:?} is too large", array.shape));
                materialise(path, &name, &array.tensor().ok_or_else(too_large)?, bytes, &mut budget)?
            }
        };
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

/// A value that becomes a tensor.
enum Value<'a> {
    Tensor(&'a TensorSpec),
    Array(&'a ArraySpec),
}

/// The names and tensors of a state dict, of one under a usual key, or of a bare tensor or list.
fn named_tensors(heap: &Heap, root: Id) -> Vec<(String, Value<'_>)> {
    let tensor = |id: Id| match heap.get(id) {
        Node::Tensor(spec) => Some(Value::Tensor(spec)),
        Node::Array(Some(array)) => Some(Value::Array(array)),
        _ => None,
    };
    match heap.get(root) {
        Node::Tensor(_) | Node::Array(_) => {
            tensor(root).map(|value| ("tensor".to_string(), value)).into_iter().collect()
        }
        Node::List(items) | Node::Tuple(items) => {
            items.iter().enumerate().filter_map(|(i, &item)| Some((i.to_string(), tensor(item)?))).collect()
        }
        Node::Dict(entries) => {
            let mut entries = entries;
            for _ in 0..WRAPPERS.len() {
                let wrapped = WRAPPERS.iter().find_map(|&wrapper| {
                    entries.iter().rev().find_map(|&(key, value)| match heap.get(value) {
                        Node::Dict(inner) if heap.text(key) == Some(wrapper) => Some(inner),
                        _ => None,
                    })
                });
                match wrapped {
                    Some(inner) => entries = inner,
                    None => break,
                }
            }
            let name = |key: Id| heap.text(key).map(str::to_string).or_else(|| heap.int(key).map(|n| n.to_string()));
            entries.iter().filter_map(|&(key, value)| Some((name(key)?, tensor(value)?))).collect()
        }
        _ => Vec::new(),
    }
}

/// What a pickle without tensors holds instead, for the error message.
fn inventory(heap: &Heap, root: Id) -> String {
    match heap.get(root) {
        Node::Dict(entries) => {
            let keys: Vec<&str> = entries.iter().filter_map(|&(key, _)| heap.text(key)).take(8).collect();
            format!(
                "a dict with the keys {}; the state dict should lie at the top or under {}",
                keys.join(", "),
                WRAPPERS.join(", ")
            )
        }
        Node::List(items) | Node::Tuple(items) => format!("a list of {} other values", items.len()),
        _ => "a single other value".to_string(),
    }
}

/// Copies one tensor out of its storage, after checking every number that the pickle states.
fn materialise(path: &Path, name: &str, spec: &TensorSpec, storage: &[u8], budget: &mut usize) -> Result<Tensor> {
    let element = match spec.element {
        ElementType::Known(element) => element,
        ElementType::Untyped => return Err(Error::format(path, format!("tensor '{name}' states no element type"))),
        ElementType::Unsupported(_, kind) => {
            return Err(Error::format(
                path,
                format!("tensor '{name}' has elements of type {kind}, which is not supported"),
            ));
        }
    };
    let size = element.size();
    let outside = || {
        let (shape, stride, offset) = (&spec.shape, &spec.stride, spec.offset);
        Error::format(
            path,
            format!(
                "tensor '{name}' of shape {shape:?}, strides {stride:?}, offset {offset} lies outside its storage; the file is damaged"
            ),
        )
    };
    // Dimensions of zero count as one, so that no later product of the others can overflow.
    let bytes = spec.shape.iter().try_fold(size, |product, &n| product.checked_mul(n.max(1))).ok_or_else(outside)?;
    if spec.shape.contains(&0) {
        return Ok(element.tensor(&[], &spec.shape)?);
    }
    let whole = spec.storage.elements.checked_mul(spec.storage.element.size()).ok_or_else(outside)?;
    let start = spec.storage.view_offset.checked_mul(spec.storage.element.size()).ok_or_else(outside)?;
    let view = storage.get(start..whole).ok_or_else(outside)?;
    let last = spec
        .shape
        .iter()
        .zip(&spec.stride)
        .try_fold(spec.offset, |last, (&n, &stride)| last.checked_add((n - 1).checked_mul(stride)?));
    let end = last.and_then(|last| last.checked_add(1)?.checked_mul(size)).ok_or_else(outside)?;
    let first = spec.offset * size; // at most `end`, which was checked
    let view = view.get(first..end).ok_or_else(outside)?;
    *budget = budget.checked_sub(bytes).ok_or_else(|| {
        Error::format(
            path,
            "its tensors together are several times the file's size (expanded views?); save contiguous copies",
        )
    })?;
    if is_contiguous(&spec.shape, &spec.stride) {
        return Ok(element.tensor(view, &spec.shape)?);
    }
    Ok(element.tensor(&gather(view, size, &spec.shape, &spec.stride, bytes), &spec.shape)?)
}

fn is_contiguous(shape: &[usize], stride: &[usize]) -> bool {
    let mut step = 1;
    shape.iter().zip(stride).rev().all(|(&n, &stride)| {
        let fits = n == 1 || stride == step;
        step *= n;
        fits
    })
}

/// The elements of a strided view in row-major order. Every index lies in `view`, because the caller checked the last
/// one.
fn gather(view: &[u8], size: usize, shape: &[usize], stride: &[usize], bytes: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes);
    let mut index = vec![0; shape.len()];
    let mut at = 0;
    loop {
        out.extend_from_slice(&view[at * size..(at + 1) * size]);
        let mut axis = shape.len();
        loop {
            if axis == 0 {
                return out;
            }
            axis -= 1;
            index[axis] += 1;
            at += stride[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= stride[axis] * shape[axis];
            index[axis] = 0;
        }
    }
}
