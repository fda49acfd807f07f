//! Every parameter learns, with the fast kernels and with dropout; candle's own fused layer norm and softmax would
//! silently cut the gradient.

mod common;

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use lxmert_core::config::{CrossLayer, LxmertConfig};
use lxmert_core::model::{Capture, LxmertInputs, LxmertModel, MatchingModel, Pass, PretrainingHeads, init};
use lxmert_core::ops::DropoutRng;
use lxmert_core::procedural;

fn config(cross_layer: CrossLayer) -> LxmertConfig {
    LxmertConfig {
        vocab_size: 50,
        hidden_size: 32,
        num_attention_heads: 4,
        intermediate_size: 64,
        visual_feat_dim: 16,
        max_position_embeddings: 12,
        num_qa_labels: 9,
        num_object_labels: 7,
        num_attr_labels: 5,
        l_layers: 2,
        r_layers: 1,
        x_layers: 2,
        cross_layer,
        ..LxmertConfig::default()
    }
}

fn inputs() -> LxmertInputs {
    let ids: Vec<u32> = (0..24).map(|i| (i * 7 + 1) % 50).collect();
    let mask: Vec<f32> = (0..24).map(|i| if i < 20 { 1.0 } else { 0.0 }).collect();
    LxmertInputs {
        input_ids: Tensor::from_vec(ids, (2, 12), &Device::Cpu).unwrap(),
        attention_mask: Some(Tensor::from_vec(mask, (2, 12), &Device::Cpu).unwrap()),
        visual_feats: procedural::tensor("feats", &[2, 6, 16], -1.0, 1.0, 1).unwrap(),
        visual_boxes: procedural::tensor("boxes", &[2, 6, 4], 0.0, 1.0, 1).unwrap(),
        visual_attention_mask: Some(Tensor::ones((2, 6), DType::F32, &Device::Cpu).unwrap()),
    }
}

/// Names of parameters with no gradient or a zero gradient.
fn idle(varmap: &VarMap, loss: &Tensor) -> Vec<String> {
    let gradients = loss.backward().unwrap();
    let variables = varmap.data().lock().unwrap();
    let mut idle: Vec<String> = variables
        .iter()
        .filter(|(_, v)| {
            gradients.get(v).is_none_or(|g| g.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap() == 0.0)
        })
        .map(|(name, _)| name.clone())
        .collect();
    idle.sort();
    idle
}

/// A sum in which every element has a different weight.
fn weigh(x: &Tensor) -> Tensor {
    (x * procedural::tensor("weights", x.dims(), -1.0, 1.0, 2).unwrap()).unwrap().sum_all().unwrap()
}

#[test]
fn matching_trains_every_parameter_but_the_last_image_branch() {
    for (cross_layer, exempt) in [
        (
            CrossLayer::Lxmert,
            ["x_layers.1.visn_self_att", "x_layers.1.visn_inter", "x_layers.1.visn_output"].as_slice(),
        ),
        (
            CrossLayer::Student,
            ["cross_layers.1.attn_image_text", "cross_layers.1.ffn_image", "cross_layers.1.ln_image"].as_slice(),
        ),
    ] {
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
        let model = MatchingModel::new(&config(cross_layer), vb).unwrap();
        init::seed_weights(&varmap, 3, 0.2).unwrap();
        for rng in [None, Some(DropoutRng::new(1, 1))] {
            let run = Pass { rng: rng.as_ref(), ..Pass::default() };
            let loss = weigh(&model.forward(&inputs(), &run).unwrap().logits);
            let idle = idle(&varmap, &loss);
            // Key biases cancel in the softmax: their true gradient is zero, up to rounding.
            let unexpected: Vec<&String> =
                idle.iter().filter(|n| !exempt.iter().any(|e| n.contains(e)) && !n.ends_with("key.bias")).collect();
            assert!(unexpected.is_empty(), "{cross_layer:?}: no gradient for {unexpected:?}");
            // The matching loss depends only on [CLS], so the last layer's image branch cannot learn from it.
            assert!(idle.iter().any(|n| n.contains(exempt[0])), "{idle:?}");
        }
    }
}

#[test]
fn the_pretraining_heads_together_train_every_parameter() {
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    let config = config(CrossLayer::Lxmert);
    let model = LxmertModel::new(&config, vb.pp("lxmert")).unwrap();
    let heads = PretrainingHeads::new(&config, model.word_embeddings(), vb).unwrap();
    init::seed_weights(&varmap, 3, 0.2).unwrap();
    let rng = DropoutRng::new(1, 1);
    let logits = heads.forward(&model.forward(&inputs(), &Pass::train(&rng)).unwrap()).unwrap();
    let regions = logits.regions;
    let classes = [regions.objects.unwrap(), regions.attributes.unwrap(), regions.features];
    let all = [vec![logits.words, logits.matching, logits.answers.unwrap()], classes.to_vec()].concat();
    let loss = all.iter().map(weigh).reduce(|a, b| (a + b).unwrap()).unwrap();
    let idle: Vec<String> = idle(&varmap, &loss).into_iter().filter(|n| !n.ends_with("key.bias")).collect();
    assert!(idle.is_empty(), "{idle:?}");
}

#[test]
fn probes_receive_the_gradient_of_every_map() {
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    let model = MatchingModel::new(&config(CrossLayer::Lxmert), vb).unwrap();
    init::seed_weights(&varmap, 3, 0.2).unwrap();
    let output = model.forward(&inputs(), &Pass::capture(Capture::Probes)).unwrap();
    let gradients = output.logits.sum_all().unwrap().backward().unwrap();
    let maps = output.trunk.attentions.unwrap();
    let probed = maps.language.iter().chain(&maps.vision).chain(maps.cross.iter().map(|c| &c.language_to_vision));
    for map in probed {
        let gradient = gradients.get(map.probe.as_ref().unwrap()).unwrap();
        assert_eq!(gradient.dims(), map.probabilities.dims());
        assert!(gradient.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap() > 0.0);
    }
    let sums = maps.cross[1].language_to_vision.probabilities.sum(3).unwrap().flatten_all().unwrap();
    assert!(sums.to_vec1::<f32>().unwrap().iter().all(|s| (s - 1.0).abs() < 1e-5));
}

#[test]
fn padding_changes_nothing() {
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    for cross_layer in [CrossLayer::Lxmert, CrossLayer::Student] {
        let model = MatchingModel::new(&config(cross_layer), vb.pp(format!("{cross_layer:?}"))).unwrap();
        init::seed_weights(&varmap, 3, 0.2).unwrap();
        let full = inputs();
        let short = LxmertInputs {
            input_ids: full.input_ids.narrow(1, 0, 8).unwrap().narrow(0, 1, 1).unwrap(),
            attention_mask: None,
            visual_feats: full.visual_feats.narrow(1, 0, 4).unwrap().narrow(0, 1, 1).unwrap(),
            visual_boxes: full.visual_boxes.narrow(1, 0, 4).unwrap().narrow(0, 1, 1).unwrap(),
            visual_attention_mask: None,
        };
        let regions: Vec<f32> = (0..12).map(|i| if i % 6 < 4 { 1.0 } else { 0.0 }).collect();
        let padded = LxmertInputs {
            visual_attention_mask: Some(Tensor::from_vec(regions, (2, 6), &Device::Cpu).unwrap()),
            ..full
        };
        let logit = |inputs: &LxmertInputs| {
            *model.forward(inputs, &Pass::eval()).unwrap().logits.to_vec1::<f32>().unwrap().last().unwrap()
        };
        assert!((logit(&short) - logit(&padded)).abs() < 1e-5);
    }
}
