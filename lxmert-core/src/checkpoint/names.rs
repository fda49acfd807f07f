//! Renames the keys of a checkpoint, because the same networks were saved under several sets of names.

use crate::{Error, Result};
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::path::Path;

/// Renames LXMERT's keys to the hub's (`lxmert.encoder.layer.0…`), from any of
/// - the hub's own, which stay as they are;
/// - the original snapshots (airsplay/lxmert, `bert.encoder.layer.0…`);
/// - its fine-tuned snapshots (`lxrt_encoder.model.bert.…`, `logit_fc.…`);
/// - a trunk saved alone, without a prefix (`encoder.layer.0…`: transformers' `LxmertModel`, `BertModel`);
/// - any of these with the prefix `module.` of data parallelism, or with BERT's first names for a layer norm's weight
///   and bias, `gamma` and `beta`.
///
/// `cls.predictions.decoder` repeats the word embeddings, to which it is tied. Only some files contain it, so it is
/// dropped. `path` is for messages.
///
/// # Errors
/// [`Error::Format`] if two keys get the same name, or a decoder differs from the word embeddings.
pub fn lxmert(path: impl AsRef<Path>, tensors: BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    let path = path.as_ref();
    let bare = tensors.keys().any(|key| key.trim_start_matches("module.").starts_with("encoder.layer."));
    let mut tensors = rename(path, tensors, |key| {
        let name = lxmert_name(key);
        let trunk = ["embeddings.", "encoder.", "pooler."].iter().any(|part| name.starts_with(part));
        if bare && trunk { format!("lxmert.{name}") } else { name }
    })?;
    for (copy, original) in [
        ("cls.predictions.decoder.weight", "lxmert.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ] {
        if let (Some(tied), Some(kept)) = (tensors.get(copy), tensors.get(original)) {
            if !same(tied, kept)? {
                return Err(Error::format(
                    path,
                    format!("'{copy}' differs from '{original}', to which LXMERT ties it"),
                ));
            }
            tensors.remove(copy);
        }
    }
    Ok(tensors)
}

/// Renames the keys of torchvision's Faster R-CNN to those of its current modules; the published file of 2019 has older
/// ones (`fpn.inner_blocks.0.weight`, `fpn.layer_blocks.0.weight`, `rpn.head.conv.weight`).
///
/// # Errors
/// [`Error::Format`] if two keys get the same name.
pub fn detector(path: impl AsRef<Path>, tensors: BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    rename(path.as_ref(), tensors, detector_name)
}

/// The hub's name for one of LXMERT's keys; see [`lxmert`].
#[must_use]
pub fn lxmert_name(key: &str) -> String {
    let mut rest = key.strip_prefix("module.").unwrap_or(key);
    if let Some(task) = rest.strip_prefix("lxrt_encoder.model.") {
        rest = task.strip_prefix("module.").unwrap_or(task);
    }
    let mut name = match rest.strip_prefix("bert.") {
        Some(trunk) => format!("lxmert.{trunk}"),
        None if rest.starts_with("logit_fc.") => format!("answer_head.{rest}"),
        None => rest.to_string(),
    };
    for (old, new) in [(".gamma", ".weight"), (".beta", ".bias")] {
        if let Some(stem) = name.strip_suffix(old) {
            name = format!("{stem}{new}");
        }
    }
    name
}

/// torchvision's current name for one of the detector's keys; see [`detector`].
#[must_use]
pub fn detector_name(key: &str) -> String {
    let key = key.strip_prefix("module.").unwrap_or(key);
    let Some((stem, parameter)) = key.rsplit_once('.') else { return key.to_string() };
    let level = |block: &str| {
        stem.strip_prefix(block).is_some_and(|level| !level.is_empty() && level.bytes().all(|b| b.is_ascii_digit()))
    };
    if level("backbone.fpn.inner_blocks.") || level("backbone.fpn.layer_blocks.") {
        format!("{stem}.0.{parameter}")
    } else if stem == "rpn.head.conv" {
        format!("{stem}.0.0.{parameter}")
    } else {
        key.to_string()
    }
}

fn rename(
    path: &Path,
    tensors: BTreeMap<String, Tensor>,
    name: impl Fn(&str) -> String,
) -> Result<BTreeMap<String, Tensor>> {
    let mut renamed: BTreeMap<String, (String, Tensor)> = BTreeMap::new();
    for (key, tensor) in tensors {
        let new = name(&key);
        if let Some((first, _)) = renamed.get(&new) {
            return Err(Error::format(path, format!("'{first}' and '{key}' are both names of '{new}'")));
        }
        renamed.insert(new, (key, tensor));
    }
    Ok(renamed.into_iter().map(|(name, (_, tensor))| (name, tensor)).collect())
}

fn same(a: &Tensor, b: &Tensor) -> Result<bool> {
    if a.id() == b.id() {
        return Ok(true);
    }
    if a.dims() != b.dims() || a.dtype() != b.dtype() {
        return Ok(false);
    }
    Ok(a.ne(b)?.flatten_all()?.max(0)?.to_scalar::<u8>()? == 0)
}
