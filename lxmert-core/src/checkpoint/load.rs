//! Loads a network's weights from a file of any origin: ours, the hub's, the original's snapshots, or BERT's.

use super::{FitOptions, fit, fit::glob, names, read_tensors};
use crate::{Error, Result};
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::path::Path;

/// Heads of the published models and snapshots. A network without such a head skips its weights.
const HEADS: [&str; 6] = [
    "cls.predictions.*",
    "cls.seq_relationship.*",
    "obj_predict_head.*",
    "answer_head.*",
    "referring_head.*",
    "*.position_ids",
];

/// What LXMERT takes from BERT: the embeddings, the language layers, the pooler and the masked-word head. BERT's
/// next-sentence head has the matching head's name and shape, but its index 0 means yes, so it is skipped.
const BERT: [&str; 4] = ["lxmert.embeddings.*", "lxmert.encoder.layer.*", "lxmert.pooler.*", "cls.predictions.*"];

/// Reads the weights named in `expected` from the file at `path`, in f32 on the CPU; see [`take_weights`].
///
/// # Errors
/// Returns an error if the file cannot be read; otherwise as [`take_weights`].
pub fn load_weights(
    path: impl AsRef<Path>,
    expected: &[(String, Vec<usize>)],
    allow_missing: &[String],
) -> Result<BTreeMap<String, Tensor>> {
    let path = path.as_ref();
    take_weights(path, names::lxmert(path, read_tensors(path)?)?, expected, allow_missing)
}

/// Takes the weights named in `expected` out of `tensors`, in f32 on the CPU. `tensors` must have the hub's names
/// ([`names::lxmert`]). Names that match `allow_missing` (`answer_head.*`; `*` is any characters) may be absent. Heads
/// that the network does not have are skipped. Both are logged. `path` is for messages.
///
/// BERT's weights initialise a language encoder: its embeddings, as many of its layers as are expected, its pooler and
/// its masked-word head. All other weights start fresh, as in the original, which builds its network by BERT's
/// `from_pretrained` (airsplay/lxmert, `lxmert_pretrain.py`).
///
/// # Errors
/// [`Error::Checkpoint`] with every missing, unexpected and misshapen name; [`Error::Format`] if a weight is not
/// finite.
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
        log::info!("{}: BERT's weights initialise the language encoder; all other weights start fresh", path.display());
        tensors.retain(|name, _| wanted.iter().any(|(wanted, _)| wanted == name));
        // Some BERTs lack these: `BertModel`, or a BERT trained without a pooler.
        allow_missing.extend(["lxmert.pooler.*", "cls.predictions.*"].map(String::from));
        allow_missing.extend(expected.iter().map(|(name, _)| name).filter(|name| !takes(name)).cloned());
    }
    let needed = |name: &str| expected.iter().any(|(expected, _)| expected == name);
    for head in HEADS {
        let count = tensors.keys().filter(|name| glob(head, name) && !needed(name)).count();
        if count > 0 {
            log::info!("{}: skipped {count} tensors {head}, which the model does not need", path.display());
        }
    }
    let options = FitOptions { allow_missing, ignore: HEADS.map(String::from).to_vec() };
    let fitting = fit(path, expected, tensors, &options)?;
    let fresh: Vec<&str> =
        expected.iter().map(|(name, _)| name.as_str()).filter(|n| !fitting.contains_key(*n)).collect();
    if let Some(first) = fresh.first() {
        log::info!("{}: {} tensors start fresh, first {first}", path.display(), fresh.len());
    }
    Ok(fitting)
}

/// Whether these are BERT's weights. LXMERT's first snapshots use the same prefix `bert.`, but also have an encoder of
/// regions.
pub(crate) fn is_bert(tensors: &BTreeMap<String, Tensor>) -> bool {
    let has = |part: &str| tensors.keys().any(|name| name.starts_with(part));
    has("lxmert.encoder.layer.") && !has("lxmert.encoder.x_layers.") && !has("lxmert.encoder.visn_fc.")
}
