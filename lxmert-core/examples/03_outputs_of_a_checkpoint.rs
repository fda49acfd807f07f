//! What a checkpoint computes for given inputs, to compare this code with another's.
//!
//! `cargo run -p lxmert-core --example 03_outputs_of_a_checkpoint -- PLACE INPUTS OUTPUTS [FOLDER]`. PLACE is a
//! checkpoint folder, a weights file with a config.json beside it, or `hf:owner/repo`; INPUTS is a safetensors file of
//! `input_ids`, `attention_mask`, `visual_feats` and `visual_pos`; OUTPUTS is the file to write; FOLDER is where to
//! save the checkpoint in the hub's layout. `scripts/transformers_roundtrip.py` runs it. Without arguments it makes a
//! small model.

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use lxmert_core::checkpoint::{Place, load_weights, names, read_tensors, save_safetensors};
use lxmert_core::config::LxmertConfig;
use lxmert_core::files::atomic_write;
use lxmert_core::model::{AnswerModel, LxmertInputs, MatchingModel, PairModel, Pass, PretrainingModel, init};
use lxmert_core::procedural;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let folder = tempfile::tempdir()?;
    match arguments.as_slice() {
        [] => {
            let (weights, inputs) = example(folder.path())?;
            outputs(&weights, &inputs, &folder.path().join("outputs.safetensors"), None)
        }
        [weights, inputs, out] => outputs(weights, inputs, out, None),
        [weights, inputs, out, save] => outputs(weights, inputs, out, Some(save)),
        _ => anyhow::bail!("give PLACE INPUTS OUTPUTS [FOLDER]"),
    }
}

fn outputs(place: &Path, inputs: &Path, out: &Path, save: Option<&Path>) -> anyhow::Result<()> {
    // %% The heads in the file show which model it is
    let Place { weights, folder } = Place::find(place)?;
    let config = LxmertConfig::from_file(folder.join("config.json"))?;
    let held = names::lxmert(&weights, read_tensors(&weights)?)?;
    let has = |head: &str| held.keys().any(|name| name.starts_with(head));
    let (expected, architecture) = if has("cls.predictions.") {
        (PretrainingModel::expected(&config)?, "LxmertForPreTraining")
    } else if has("cls.seq_relationship.") {
        (MatchingModel::expected(&config)?, "LxmertForPreTraining")
    } else if over_two_images(&held, &config) {
        (PairModel::expected(&config)?, "LxmertModel")
    } else {
        (AnswerModel::expected(&config)?, "LxmertForQuestionAnswering")
    };
    let loaded: HashMap<String, Tensor> = load_weights(&weights, &expected, &[])?.into_iter().collect();
    println!("{}: {} tensors, {architecture}", weights.display(), loaded.len());
    let vb = VarBuilder::from_tensors(loaded.clone(), DType::F32, &Device::Cpu);

    // %% One pass
    let given = read_tensors(inputs)?;
    let get = |name: &str, dtype| -> anyhow::Result<Tensor> {
        let tensor = given.get(name).ok_or_else(|| anyhow::anyhow!("{}: no '{name}'", inputs.display()))?;
        Ok(tensor.to_dtype(dtype)?)
    };
    let inputs = LxmertInputs {
        input_ids: get("input_ids", DType::U32)?,
        attention_mask: Some(get("attention_mask", DType::F32)?),
        visual_feats: get("visual_feats", DType::F32)?,
        visual_boxes: get("visual_pos", DType::F32)?,
        visual_attention_mask: None,
    };
    let mut said: Vec<(&str, Tensor)> = Vec::new();
    let trunk = if has("cls.predictions.") {
        let model = PretrainingModel::new(&config, vb)?;
        let trunk = model.trunk.forward(&inputs, &Pass::eval())?;
        let logits = model.heads.forward(&trunk)?;
        said.extend([("words", logits.words), ("matching", logits.matching), ("features", logits.regions.features)]);
        let some = [
            ("objects", logits.regions.objects),
            ("attributes", logits.regions.attributes),
            ("answers", logits.answers),
        ];
        said.extend(some.into_iter().filter_map(|(name, logits)| Some((name, logits?))));
        trunk
    } else if has("cls.seq_relationship.") {
        let output = MatchingModel::new(&config, vb)?.forward(&inputs, &Pass::eval())?;
        said.push(("match", output.logits));
        output.trunk
    } else if over_two_images(&held, &config) {
        // Rows of the inputs are pairs: a statement with its left image, then with its right one.
        let output = PairModel::new(&config, vb)?.forward(&inputs, &Pass::eval())?;
        said.push(("statements", output.logits));
        output.trunk
    } else {
        let output = AnswerModel::new(&config, vb)?.forward(&inputs, &Pass::eval())?;
        said.push(("answers", output.logits));
        output.trunk
    };
    said.extend([("language", trunk.language), ("vision", trunk.vision), ("pooled", trunk.pooled)]);
    for (name, tensor) in &said {
        println!("  {name} {:?}", tensor.dims());
    }
    let said: Vec<(String, Tensor)> = said.into_iter().map(|(name, tensor)| (name.to_string(), tensor)).collect();
    save_safetensors(out, &said, &BTreeMap::new())?;

    // %% The same weights in the hub's layout
    if let Some(folder) = save {
        std::fs::create_dir_all(folder)?;
        let config = config.to_json(architecture, &[]);
        atomic_write(folder.join("config.json"), |file| file.write_all(config.as_bytes()))?;
        let weights: Vec<(String, Tensor)> = loaded.into_iter().collect();
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        save_safetensors(folder.join("model.safetensors"), &weights, &metadata)?;
    }
    Ok(())
}

/// Whether the head is NLVR2's, which takes the pooled outputs of two images.
fn over_two_images(held: &BTreeMap<String, Tensor>, config: &LxmertConfig) -> bool {
    let first = held.get("answer_head.logit_fc.0.weight");
    first.is_some_and(|layer| layer.dims().last() == Some(&(2 * config.hidden_size)))
}

/// A small model with random weights, and a sentence of four words with three regions.
fn example(folder: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    let config = LxmertConfig { vocab_size: 50, num_qa_labels: 4, num_attr_labels: 0, ..LxmertConfig::preset("tiny")? };
    let variables = VarMap::new();
    PretrainingModel::new(&config, VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu))?;
    init::seed_weights(&variables, 1, config.initializer_range)?;
    let (weights, inputs) = (folder.join("model.safetensors"), folder.join("inputs.safetensors"));
    variables.save(&weights)?;
    std::fs::write(folder.join("config.json"), config.to_json("LxmertForPreTraining", &[]))?;
    let given = [
        ("input_ids", Tensor::new(&[[1u32, 2, 3, 4]], &Device::Cpu)?),
        ("attention_mask", Tensor::ones((1, 4), DType::F32, &Device::Cpu)?),
        ("visual_feats", procedural::tensor("features", &[1, 3, config.visual_feat_dim], 0.0, 2.0, 0)?),
        ("visual_pos", procedural::tensor("boxes", &[1, 3, 4], 0.0, 1.0, 0)?),
    ];
    save_safetensors(&inputs, &given.map(|(name, tensor)| (name.to_string(), tensor)), &BTreeMap::new())?;
    Ok((weights, inputs))
}
