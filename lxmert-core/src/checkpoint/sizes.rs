//! What the shapes of a checkpoint's weights say about its configuration.

use crate::files::Fields;
use candle_core::Tensor;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

type Tensors = BTreeMap<String, Tensor>;

/// A key of `config.json`, the tensors that show its value (LXMERT's, then the student project's), and the dimension to
/// read.
const SIZES: [(&str, [&str; 2], usize); 9] = [
    ("vocab_size", ["lxmert.embeddings.word_embeddings.weight", "embeddings.word_embeddings.weight"], 0),
    ("hidden_size", ["lxmert.embeddings.word_embeddings.weight", "embeddings.word_embeddings.weight"], 1),
    (
        "max_position_embeddings",
        ["lxmert.embeddings.position_embeddings.weight", "embeddings.position_embeddings.weight"],
        0,
    ),
    (
        "type_vocab_size",
        ["lxmert.embeddings.token_type_embeddings.weight", "embeddings.token_type_embeddings.weight"],
        0,
    ),
    (
        "intermediate_size",
        ["lxmert.encoder.layer.0.intermediate.dense.weight", "lang_encoder.layers.0.linear1.weight"],
        0,
    ),
    ("visual_feat_dim", ["lxmert.encoder.visn_fc.visn_fc.weight", "embeddings.visual_proj.weight"], 1),
    ("num_qa_labels", ["answer_head.logit_fc.3.bias"; 2], 0),
    ("num_object_labels", ["obj_predict_head.decoder_dict.obj.bias"; 2], 0),
    ("num_attr_labels", ["obj_predict_head.decoder_dict.attr.bias"; 2], 0),
];

/// A key of `config.json`, and the prefix before the layer numbers that it counts.
const LAYERS: [(&str, [&str; 2]); 3] = [
    ("l_layers", ["lxmert.encoder.layer.", "lang_encoder.layers."]),
    ("r_layers", ["lxmert.encoder.r_layers.", "obj_encoder.layers."]),
    ("x_layers", ["lxmert.encoder.x_layers.", "cross_layers."]),
];

/// The keys of `config.json` whose values show in the shapes of these weights; `None` if there are no word embeddings,
/// so that the weights are neither LXMERT's nor BERT's.
pub(crate) fn sizes(tensors: &Tensors) -> Option<Fields> {
    let student = match SIZES[0].1.map(|name| tensors.contains_key(name)) {
        [true, _] => 0,
        [false, true] => 1,
        [false, false] => return None,
    };
    let mut found = Fields::new();
    found.insert("cross_layer".into(), json!(["lxmert", "student"][student]));
    for (key, names, dimension) in SIZES {
        if let Some(size) = tensors.get(names[student]).and_then(|tensor| tensor.dims().get(dimension)) {
            found.insert(key.into(), json!(size));
        }
    }
    for (key, prefixes) in LAYERS {
        let number = |name: &str| name.strip_prefix(prefixes[student])?.split('.').next()?.parse::<usize>().ok();
        let layers: BTreeSet<usize> = tensors.keys().filter_map(|name| number(name)).collect();
        found.insert(key.into(), json!(layers.len()));
    }
    Some(found)
}
