//! Checkpoint weights: where they come from, what a file of them holds, and whether they fit a network.
//!
//! Reading a checkpoint takes four steps: [`Place`] finds its files (in a folder, or on the hub through the cache that
//! Python shares; [`WeightSource`] is for a single file with a known hash), [`read_tensors`] reads any format,
//! [`names`] renames old keys to the hub's, and [`fit`](fit::fit) checks them against the network.
//! [`Pretrained`](crate::pretrained::Pretrained) does all four. [`save_safetensors`] writes;
//! [`save_verifiable_safetensors`] adds a checksum, which [`verify_safetensors`] checks.
//!
//! No file is run or trusted. A `.pth` is a pickle, which can run any code in Python, so [`torch_pickle`] reads tensors
//! and plain containers and rejects everything else by name.

mod elements;
pub mod fit;
pub mod hub;
mod load;
pub mod names;
mod place;
mod safetensors_file;
pub(crate) mod save;
mod sizes;
pub mod torch_pickle;

pub use fit::{FitOptions, Misshapen, fit};
pub use hub::{ExpectedFile, Hub, HubFile, HubOptions, WeightSource};
pub(crate) use load::is_bert;
pub use load::{load_weights, take_weights};
pub use place::Place;
pub use save::{save_safetensors, save_verifiable_safetensors, verify_safetensors};
pub(crate) use sizes::sizes;

use crate::files::map_file;
use crate::{Error, Result};
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::path::Path;

/// Reads every tensor of a checkpoint by name, on the CPU, in the file's own element types if candle has them (bool
/// becomes u8, int8 becomes i16). The content decides the format, not the file's name: safetensors, torch's zip `.pth`,
/// its legacy `.pth` from before version 1.6, or a pickle of NumPy arrays. State dicts under `state_dict`, `model` or
/// `model_state_dict` are unwrapped.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read; [`Error::Format`] if it has none of these formats (the message says what
/// it looks like instead) or is damaged; [`Error::PickleClass`] if its pickle holds anything but tensors.
pub fn read_tensors(path: impl AsRef<Path>) -> Result<BTreeMap<String, Tensor>> {
    read_tensors_where(path, |_| true)
}

/// [`read_tensors`] for the names that `keep` accepts; the others are not copied.
///
/// # Errors
/// See [`read_tensors`].
pub fn read_tensors_where(path: impl AsRef<Path>, keep: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Tensor>> {
    let path = path.as_ref();
    let bytes = map_file(path)?;
    match Container::of(&bytes) {
        Container::Safetensors => safetensors_file::read(path, &bytes, &keep),
        Container::TorchZip => torch_pickle::read_zip(path, &bytes, &keep),
        Container::TorchLegacy => torch_pickle::read_legacy(path, &bytes, &keep),
        Container::Pickle => torch_pickle::read_pickle(path, &bytes, &keep),
        Container::Other(what) => Err(Error::format(
            path,
            format!(
                "{what}; weights are read from .safetensors files, torch's .pth, .pt or .bin files, and .pkl files of arrays"
            ),
        )),
    }
}

/// Reads a file that Python's `pickle` or `cPickle` wrote, any protocol, as JSON: lists, dicts, text and numbers. It is
/// read as data; no code runs.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, [`Error::Pickle`] if it is truncated or damaged, [`Error::PickleClass`] if
/// it names a class, [`Error::Format`] if it holds values that JSON cannot represent.
pub fn read_pickle(path: impl AsRef<Path>) -> Result<serde_json::Value> {
    let path = path.as_ref();
    torch_pickle::read_plain(path, &map_file(path)?)
}

/// The kind of a file, judged by its first bytes.
enum Container {
    Safetensors,
    TorchZip,
    TorchLegacy,
    Pickle,
    Other(&'static str),
}

impl Container {
    fn of(bytes: &[u8]) -> Self {
        let starts = |magic: &[u8]| bytes.starts_with(magic);
        let text: String = bytes
            .iter()
            .take(64)
            .skip_while(|b| b.is_ascii_whitespace())
            .map(|&b| b.to_ascii_lowercase() as char)
            .collect();
        if starts(b"PK\x03\x04") || starts(b"PK\x05\x06") {
            Self::TorchZip
        } else if torch_pickle::is_legacy(bytes) {
            Self::TorchLegacy
        } else if safetensors_file::looks_like(bytes) {
            Self::Safetensors
        } else if bytes.is_empty() {
            Self::Other("the file is empty; fetch it again")
        } else if text.starts_with("<!doctype") || text.starts_with("<html") {
            Self::Other("this is an HTML page, not weights; the server sent a web page; fetch the raw file")
        } else if text.starts_with("version https://git-lfs") {
            Self::Other("this is a git-lfs pointer, not the weights; run `git lfs pull`, or download the file itself")
        } else if text.starts_with("<?xml") {
            Self::Other("this is XML, not weights; the server sent an error; fetch the file again")
        } else if text.starts_with('{') || text.starts_with('[') {
            Self::Other("this is JSON, not weights")
        } else if starts(b"\x89HDF") {
            Self::Other("this is an HDF5 file (Keras)")
        } else if starts(b"\x93NUMPY") {
            Self::Other("this is a NumPy array")
        } else if starts(b"GGUF") {
            Self::Other("this is a GGUF file")
        } else if starts(b"\x1f\x8b") {
            Self::Other("this is gzip-compressed; unpack it first")
        } else if bytes.get(257..262) == Some(b"ustar") {
            Self::Other(
                "this is a tar archive; unpack it first (torch before 0.1.10 wrote such files: save it again with a newer torch)",
            )
        } else if bytes[0] == 0x80 {
            Self::Pickle
        } else {
            Self::Other("unknown format of weights; the download may be truncated or damaged")
        }
    }
}
