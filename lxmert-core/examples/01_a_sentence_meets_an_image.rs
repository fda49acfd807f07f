//! A sentence meets an image: what passes through LXMERT, stage by stage, with its shapes.
//!
//! `cargo run -p lxmert-core --example 01_a_sentence_meets_an_image`: random weights, made-up regions; look at what
//! each stage takes and returns.

use candle_core::{D, DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use lxmert_core::config::LxmertConfig;
use lxmert_core::model::{Capture, LxmertInputs, MatchingModel, Pass, init};
use lxmert_core::procedural;
use lxmert_core::text::WordPiece;

fn main() -> anyhow::Result<()> {
    let device = Device::Cpu;

    // %% A model of the student project's size, with weights from a seed
    let config = LxmertConfig::preset("small")?;
    let varmap = VarMap::new();
    let model = MatchingModel::new(&config, VarBuilder::from_varmap(&varmap, DType::F32, &device))?;
    init::seed_weights(&varmap, 0, config.initializer_range)?;
    let parameters: usize = varmap.all_vars().iter().map(|v| v.elem_count()).sum();
    println!(
        "{} wide, {}/{}/{} layers, {:.1} million parameters",
        config.hidden_size,
        config.l_layers,
        config.r_layers,
        config.x_layers,
        parameters as f64 / 1e6
    );

    // %% The sentence: WordPieces between [CLS] and [SEP]; a rare word is split into pieces
    let encoding = WordPiece::bundled()?.encode("A tabby cat snoozes beside a terracotta pot.", 20)?;
    println!("{} WordPieces: {}", encoding.ids.len(), encoding.tokens.join(" "));

    // %% The image: 36 regions, each a feature vector and a box in 0..1
    let inputs = LxmertInputs {
        input_ids: Tensor::new(encoding.ids.as_slice(), &device)?.unsqueeze(0)?,
        attention_mask: None,
        visual_feats: procedural::tensor("regions", &[1, 36, config.visual_feat_dim], 0.0, 2.0, 0)?,
        visual_boxes: procedural::tensor("boxes", &[1, 36, 4], 0.0, 1.0, 0)?,
        visual_attention_mask: None,
    };

    // %% Each stream passes its own encoder; they have not met yet
    let run = Pass::capture(Capture::Maps);
    let language = model.trunk.encode_language(&inputs.input_ids, None, &run)?;
    let vision = model.trunk.encode_vision(&inputs.visual_feats, &inputs.visual_boxes, None, &run)?;
    println!("language {:?}, vision {:?}", language.states.dims(), vision.states.dims());

    // %% The cross-modality encoder: words attend to regions and regions to words
    let output = model.match_encoded(&language, &vision, &run)?;
    let Some(maps) = &output.trunk.attentions else { anyhow::bail!("maps were asked for") };
    for (i, layer) in maps.cross.iter().enumerate() {
        let map = &layer.language_to_vision.probabilities;
        let rows = map.sum(D::Minus1)?;
        println!(
            "cross layer {}: words over regions {:?}, each row sums to {:.4}..{:.4}",
            i + 1,
            map.dims(),
            rows.min_all()?.to_scalar::<f32>()?,
            rows.max_all()?.to_scalar::<f32>()?
        );
    }

    // %% The result is one number: does the sentence describe the image? (Random weights cannot know.)
    let logit = output.logits.to_vec1::<f32>()?[0];
    println!("match logit {logit:.3}, probability {:.3}", 1.0 / (1.0 + (-logit).exp()));
    Ok(())
}
