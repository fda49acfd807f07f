//! What a checkpoint answers on given inputs, to hold it against another program.
//!
//! `cargo run -p lxmert-core --example 03_outputs_of_a_checkpoint -- PLACE INPUTS OUTPUTS [FOLDER]`
//! PLACE: a checkpoint folder, a weights file with `config.json` beside it, or `hf:owner/repo`. INPUTS: safetensors
//! with `input_ids` (int64), `attention_mask`, `visual_feats` and `visual_pos`. OUTPUTS: safetensors of what the trunk and
//! every head give. FOLDER: where the checkpoint is saved again, in the layout that transformers opens.
//! `scripts/transformers_roundtrip.py` runs it on checkpoints of every format.

use anyhow::Context;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use lxmert_core::checkpoint::{FitOptions, Place, atomic_write, fit, names, read_tensors, save_safetensors};
use lxmert_core::config::LxmertConfig;
use lxmert_core::model::{AnswerModel, Forward, LxmertInputs, LxmertModel, PretrainingHeads, init};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [place, inputs, outputs, save @ ..] = arguments.as_slice() else {
        anyhow::bail!("give PLACE INPUTS OUTPUTS [FOLDER]; see the head of this example's source");
    };

    // %% The checkpoint: any format, any age of its names; all of it must fit
    let place = Place::find(place)?;
    let config = LxmertConfig::from_file(place.folder.join("config.json"))?;
    let tensors = names::lxmert(&place.weights, read_tensors(&place.weights)?)?;
    let pretraining = tensors.keys().any(|name| name.starts_with("cls."));
    let build = |vb: VarBuilder| {
        let trunk = LxmertModel::new(&config, vb.pp("lxmert"))?;
        let heads = PretrainingHeads::new(&config, trunk.word_embeddings(), vb)?;
        Ok::<_, candle_core::Error>((trunk, heads))
    };
    let (expected, architecture) = if pretraining {
        (init::expected(|vb| build(vb).map(drop))?, "LxmertForPreTraining")
    } else {
        (AnswerModel::expected(&config)?, "LxmertForQuestionAnswering")
    };
    let weights = fit(&place.weights, &expected, tensors, &FitOptions::default())?;
    println!("{}: {} tensors, {architecture}", place.weights.display(), weights.len());

    // %% The inputs, and one pass
    let given = read_tensors(inputs)?;
    let input = |name: &str| given.get(name).with_context(|| format!("{}: no '{name}'", inputs.display()));
    let inputs = LxmertInputs {
        input_ids: input("input_ids")?.to_dtype(DType::U32)?,
        attention_mask: Some(input("attention_mask")?.to_dtype(DType::F32)?),
        visual_feats: input("visual_feats")?.clone(),
        visual_boxes: input("visual_pos")?.clone(),
        visual_attention_mask: None,
    };
    let vb = VarBuilder::from_tensors(weights.clone().into_iter().collect(), DType::F32, &Device::Cpu);
    let mut given: Vec<(&str, Tensor)> = Vec::new();
    let trunk = if pretraining {
        let (trunk, heads) = build(vb)?;
        let output = trunk.forward(&inputs, &Forward::eval())?;
        let logits = heads.forward(&output)?;
        given.extend([
            ("words", logits.words),
            ("matching", logits.matching),
            ("objects", logits.objects),
            ("attributes", logits.attributes),
            ("features", logits.features),
            ("answers", logits.answers),
        ]);
        output
    } else {
        let output = AnswerModel::new(&config, vb)?.forward(&inputs, &Forward::eval())?;
        given.push(("answers", output.logits));
        output.trunk
    };
    given.extend([("language", trunk.language), ("vision", trunk.vision), ("pooled", trunk.pooled)]);
    let given: Vec<(String, Tensor)> = given.into_iter().map(|(name, tensor)| (name.to_string(), tensor)).collect();
    for (name, tensor) in &given {
        println!("  {name} {:?}", tensor.dims());
    }
    save_safetensors(outputs, &given, &BTreeMap::new())?;

    // %% And back: a folder that transformers opens
    if let Some(folder) = save.first() {
        std::fs::create_dir_all(folder)?;
        let config = config.to_json(architecture);
        atomic_write(folder.join("config.json"), |file| file.write_all(config.as_bytes()))?;
        let weights: Vec<(String, Tensor)> = weights.into_iter().collect();
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        save_safetensors(folder.join("model.safetensors"), &weights, &metadata)?;
        println!("saved as {}", folder.display());
    }
    Ok(())
}
