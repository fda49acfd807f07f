//! A network's weights out of a file of any origin: ours, the hub's, the original's snapshots, or BERT's.

use super::{FitOptions, fit, fit::glob, names, read_tensors};
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// Heads of the published models and snapshots, which a network may have no place for.
const HEADS: [&str; 5] =
    ["cls.predictions.*", "cls.seq_relationship.*", "obj_predict_head.*", "answer_head.*", "*.position_ids"];

/// What BERT knows of LXMERT: the embeddings, the language layers, the pooler and the masked-word head.
/// Its next-sentence head shares the matching head's name and shape, but says yes by index 0.
const BERT: [&str; 4] = ["lxmert.embeddings.*", "lxmert.encoder.layer.*", "lxmert.pooler.*", "cls.predictions.*"];

/// The weights named in `expected` out of the file at `path`, in f32 on the CPU; names that
/// `allow_missing` covers (`answer_head.*`; `*` is any characters) may be absent, which is logged. Heads
/// that the file holds and the network has no place for are left aside, which is logged too.
///
/// BERT's weights start a language encoder: word, position and segment embeddings, as many of its layers as
/// are expected, its pooler and masked-word head. All else starts fresh, as in the original, which builds its
/// network by BERT's `from_pretrained` (airsplay/lxmert, `lxmert_pretrain.py`), except that BERT's
/// next-sentence head is not taken for the matching head: its indices have the opposite meaning.
///
/// # Errors
/// When the file cannot be read; [`Error::Checkpoint`] with every missing, unexpected and misshapen name.
pub fn load_weights(
    path: impl AsRef<Path>,
    expected: &[(String, Vec<usize>)],
    allow_missing: &[String],
) -> Result<BTreeMap<String, Tensor>> {
    let path = path.as_ref();
    take_weights(path, names::lxmert(path, read_tensors(path)?)?, expected, allow_missing)
}

/// [`load_weights`] out of tensors that were read already and bear today's names. `path` is for messages.
///
/// # Errors
/// As [`load_weights`].
pub fn take_weights(
    path: impl AsRef<Path>,
    mut tensors: BTreeMap<String, Tensor>,
    expected: &[(String, Vec<usize>)],
    allow_missing: &[String],
) -> Result<BTreeMap<String, Tensor>> {
    let path = path.as_ref();
    let mut allow_missing = allow_missing.to_vec();
    if is_bert(&tensors) {
        let takes = |name: &str| BERT.iter().any(|pattern| glob(pattern, name));
        let wanted: Vec<_> = expected.iter().filter(|(name, _)| takes(name)).collect();
        if !wanted.iter().any(|(name, _)| name.starts_with("lxmert.")) {
            return Err(Error::format(path, "this is BERT, and the network has no language encoder of BERT's form"));
        }
        log::info!("{}: BERT's weights start the language encoder, all else is fresh", path.display());
        tensors.retain(|name, _| wanted.iter().any(|(wanted, _)| wanted == name));
        // A BERT without these (`BertModel`, one trained without a pooler) still is one.
        allow_missing.extend(["lxmert.pooler.*", "cls.predictions.*"].map(String::from));
        allow_missing.extend(expected.iter().map(|(name, _)| name).filter(|name| !takes(name)).cloned());
    }
    let needed = |name: &str| expected.iter().any(|(expected, _)| expected == name);
    for head in HEADS {
        let count = tensors.keys().filter(|name| glob(head, name) && !needed(name)).count();
        if count > 0 {
            log::info!("{}: {count} tensors {head} are not needed here and left aside", path.display());
        }
    }
    let options = FitOptions { allow_missing, ignore: HEADS.map(String::from).to_vec() };
    let fitting = fit(path, expected, tensors, &options)?;
    let fresh: Vec<&str> =
        expected.iter().map(|(name, _)| name.as_str()).filter(|n| !fitting.contains_key(*n)).collect();
    if let Some(first) = fresh.first() {
        log::info!("{}: {} tensors start fresh ({first} first)", path.display(), fresh.len());
    }
    fitting.into_iter().map(|(name, tensor)| Ok((name, tensor.to_dtype(DType::F32)?))).collect()
}

/// Whether these are BERT's weights: LXMERT's first snapshots have the same `bert.` before their names, but
/// also an encoder of regions.
fn is_bert(tensors: &BTreeMap<String, Tensor>) -> bool {
    let has = |part: &str| tensors.keys().any(|name| name.starts_with(part));
    has("lxmert.encoder.layer.") && !has("lxmert.encoder.x_layers.") && !has("lxmert.encoder.visn_fc.")
}
