//! Checks whether a checkpoint's tensors fit a network. There is no silent `strict=False`: missing, unexpected and
//! misshapen tensors are errors that list their names, except for names that the caller allows. So are weights that
//! are not numbers.

use crate::{Error, Result};
use candle_core::{CpuStorage, DType, Storage, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// The names by which a checkpoint may differ from the network. In a pattern `*` stands for any characters, dots
/// included, and `?` for one character.
#[derive(Debug, Clone, Default)]
pub struct FitOptions {
    /// Names that may be missing (`answer_head.*` for a model that gets a new head).
    pub allow_missing: Vec<String>,
    /// Names that may be in the file although the network does not have them (`*.num_batches_tracked`).
    pub ignore: Vec<String>,
}

/// A tensor with another shape than the network needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misshapen {
    /// The tensor's name.
    pub name: String,
    /// The shape that the network needs.
    pub expected: Vec<usize>,
    /// The shape in the file.
    pub found: Vec<usize>,
}

/// Takes the tensors named in `expected` out of `tensors`, in f32 on the CPU, and checks their shapes and numbers. Names
/// that match `allow_missing` may be absent from the result; `tensors` may contain no names other than the expected and
/// the ignored ones. `path` is for the error message.
///
/// # Errors
/// [`Error::Checkpoint`] with every missing, unexpected and misshapen name; [`Error::Format`] if a number is NaN or
/// infinite.
pub fn fit(
    path: impl AsRef<Path>,
    expected: &[(String, Vec<usize>)],
    mut tensors: BTreeMap<String, Tensor>,
    options: &FitOptions,
) -> Result<BTreeMap<String, Tensor>> {
    let covered = |patterns: &[String], name: &str| patterns.iter().any(|pattern| glob(pattern, name));
    let mut fitting = BTreeMap::new();
    let (mut missing, mut misshapen) = (Vec::new(), Vec::new());
    for (name, shape) in expected {
        match tensors.remove(name) {
            Some(tensor) if tensor.dims() == shape => {
                fitting.insert(name.clone(), tensor);
            }
            Some(tensor) => {
                misshapen.push(Misshapen { name: name.clone(), expected: shape.clone(), found: tensor.dims().to_vec() })
            }
            None if covered(&options.allow_missing, name) || fitting.contains_key(name) => {}
            None => missing.push(name.clone()),
        }
    }
    let unexpected: Vec<String> = tensors.into_keys().filter(|name| !covered(&options.ignore, name)).collect();
    let path = path.as_ref();
    if missing.is_empty() && unexpected.is_empty() && misshapen.is_empty() {
        return fitting.into_iter().map(|(name, tensor)| Ok((name.clone(), finite(path, &name, tensor)?))).collect();
    }
    Err(Error::Checkpoint { path: path.to_path_buf(), missing, unexpected, misshapen })
}

/// Converts a CPU tensor to f32; returns an error if an element is infinite or NaN.
fn finite(path: &Path, name: &str, tensor: Tensor) -> Result<Tensor> {
    let tensor = tensor.to_dtype(DType::F32)?.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let broken = match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => {
            values[start..end].iter().filter(|value| !value.is_finite()).count()
        }
        _ => 0,
    };
    drop(storage);
    if broken > 0 {
        let total = tensor.elem_count();
        let reason = format!(
            "{broken} of the {total} numbers of '{name}' are NaN or infinite; the training that wrote it diverged, or the file is damaged"
        );
        return Err(Error::format(path, reason));
    }
    Ok(tensor)
}

/// Whether all of `name` matches `pattern`, in which `*` is any characters and `?` one character.
#[must_use]
pub fn glob(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    let mut star = None; // the last `*` so far: its index in the pattern, and where its match ends in the name
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == '?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    n = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

/// How many names of a kind an error message lists.
const NAMES_SHOWN: usize = 8;

/// The text of an [`Error::Checkpoint`].
pub(crate) fn describe(missing: &[String], unexpected: &[String], misshapen: &[Misshapen]) -> String {
    let list = |names: Vec<String>| {
        let rest = names.len().saturating_sub(NAMES_SHOWN);
        let shown = names[..names.len() - rest].join(", ");
        if rest == 0 { shown } else { format!("{shown} and {rest} more") }
    };
    let mut parts = Vec::new();
    if !missing.is_empty() {
        parts.push(format!("{} missing ({})", missing.len(), list(missing.to_vec())));
    }
    if !unexpected.is_empty() {
        parts.push(format!("{} unexpected ({})", unexpected.len(), list(unexpected.to_vec())));
    }
    if !misshapen.is_empty() {
        let each = misshapen.iter().map(|m| format!("{} is {:?}, needs {:?}", m.name, m.found, m.expected)).collect();
        parts.push(format!("{} with another shape ({})", misshapen.len(), list(each)));
    }
    format!("its tensors do not fit this network: {}", parts.join("; "))
}
