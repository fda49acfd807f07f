//! The whole model over ragged rows with fused sub-layers against its composition (the path that returns maps), with
//! padding and dropout: logits, states of real positions, and the gradient of every weight.

mod common;

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use common::kernels::difference;
use lxmert_core::config::{CrossLayer, LxmertConfig};
use lxmert_core::model::{Capture, HeadOutput, LxmertInputs, MatchingModel, Pass, init};
use lxmert_core::ops::{DropoutRng, Precision, PrepackedWeights, backward};
use lxmert_core::procedural;
use std::collections::BTreeMap;

/// Width 36 in 3 heads: not a multiple of any register.
fn config(cross_layer: CrossLayer, dropout: f32) -> LxmertConfig {
    LxmertConfig {
        vocab_size: 50,
        hidden_size: 36,
        num_attention_heads: 3,
        intermediate_size: 52,
        visual_feat_dim: 16,
        max_position_embeddings: 12,
        l_layers: 2,
        r_layers: 1,
        x_layers: 2,
        hidden_dropout_prob: dropout,
        attention_probs_dropout_prob: dropout,
        cross_layer,
        ..LxmertConfig::default()
    }
}

/// Padded sentences of these lengths and images with these numbers of regions.
fn inputs(words: &[usize], regions: &[usize]) -> LxmertInputs {
    let (batch, device) = (words.len(), &Device::Cpu);
    let padded = |lengths: &[usize]| lengths.iter().max().copied().unwrap_or(0).max(1);
    let mask = |lengths: &[usize]| {
        let length = padded(lengths);
        let values = lengths.iter().flat_map(|n| (0..length).map(move |i| if i < *n { 1f32 } else { 0.0 }));
        Tensor::from_vec(values.collect::<Vec<_>>(), (batch, length), device).unwrap()
    };
    let (length, count) = (padded(words), padded(regions));
    let ids: Vec<u32> = (0..(batch * length) as u32).map(|i| (i * 7 + 1) % 50).collect();
    LxmertInputs {
        input_ids: Tensor::from_vec(ids, (batch, length), device).unwrap(),
        attention_mask: Some(mask(words)),
        visual_feats: procedural::tensor("feats", &[batch, count, 16], -1.0, 1.0, 1).unwrap(),
        visual_boxes: procedural::tensor("boxes", &[batch, count, 4], 0.0, 1.0, 1).unwrap(),
        visual_attention_mask: Some(mask(regions)),
    }
}

fn model(config: &LxmertConfig) -> (MatchingModel, VarMap) {
    let varmap = VarMap::new();
    let model = MatchingModel::new(config, VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu)).unwrap();
    init::seed_weights(&varmap, 3, 0.2).unwrap();
    (model, varmap)
}

fn real(states: &Tensor, mask: &Option<Tensor>) -> Tensor {
    states.broadcast_mul(&mask.as_ref().unwrap().unsqueeze(2).unwrap()).unwrap()
}

/// A loss that weights every real position and logit differently.
fn loss(output: &HeadOutput, inputs: &LxmertInputs) -> Tensor {
    let weigh = |x: &Tensor| (x * procedural::tensor("w", x.dims(), -1.0, 1.0, 2).unwrap()).unwrap().sum_all().unwrap();
    let language = weigh(&real(&output.trunk.language, &inputs.attention_mask));
    let vision = weigh(&real(&output.trunk.vision, &inputs.visual_attention_mask));
    ((weigh(&output.logits) + language).unwrap() + vision).unwrap()
}

const BATCHES: [(&[usize], &[usize]); 4] =
    [(&[12, 5, 1], &[6, 6, 2]), (&[7], &[5]), (&[3, 9], &[1, 4]), (&[4, 4, 4, 4, 2], &[3, 3, 3, 3, 3])];

fn bits(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn fused_sub_layers_equal_the_composition() {
    for cross_layer in [CrossLayer::Lxmert, CrossLayer::Student] {
        for dropout in [0.0, 0.2] {
            let (model, varmap) = model(&config(cross_layer, dropout));
            for (words, regions) in BATCHES {
                let inputs = inputs(words, regions);
                let run = |capture| {
                    let rng = DropoutRng::new(1, 2);
                    let run = Pass { capture, rng: Some(&rng), ..Pass::default() };
                    model.forward(&inputs, &run).unwrap()
                };
                let (fused, composed) = (run(Capture::None), run(Capture::Maps));
                assert!(fused.trunk.attentions.is_none() && composed.trunk.attentions.is_some());
                assert!(difference(&fused.logits, &composed.logits) < 2e-5);
                for (a, b, mask) in [
                    (&fused.trunk.language, &composed.trunk.language, &inputs.attention_mask),
                    (&fused.trunk.vision, &composed.trunk.vision, &inputs.visual_attention_mask),
                ] {
                    assert!(difference(&real(a, mask), &real(b, mask)) < 2e-5);
                }
                let gradients = loss(&fused, &inputs).backward().unwrap();
                let expected = loss(&composed, &inputs).backward().unwrap();
                for (name, var) in varmap.data().lock().unwrap().iter() {
                    let (got, want) = (gradients.get(var).unwrap(), expected.get(var).unwrap());
                    let size = want.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
                    let far = difference(got, want);
                    assert!(far <= 1e-4 * (1.0 + size), "{cross_layer:?} {dropout} {words:?} {name}: {far} of {size}");
                }
            }
        }
    }
}

/// Kernels divide their work by the sizes alone, or where that changes no sum, so forward and backward give the same
/// bits.
#[test]
fn the_bits_do_not_depend_on_the_number_of_threads() {
    for cross_layer in [CrossLayer::Lxmert, CrossLayer::Student] {
        let (model, varmap) = model(&config(cross_layer, 0.2));
        // About 200 rows of words and 100 of regions: several tasks per kernel.
        let lengths = |most: usize| (0..32).map(|i| 1 + i * 7 % most).collect::<Vec<usize>>();
        let inputs = inputs(&lengths(12), &lengths(6));
        let run = |precision: Precision, threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let rng = DropoutRng::new(1, 2);
                let output = model.forward(&inputs, &Pass::train(&rng).with_precision(precision)).unwrap();
                let gradients = backward(&output.logits.sqr().unwrap().sum_all().unwrap()).unwrap();
                let variables = varmap.data().lock().unwrap();
                let by_weight: BTreeMap<String, Vec<f32>> = variables
                    .iter()
                    .filter_map(|(name, var)| Some((name.clone(), bits(gradients.get(var)?))))
                    .collect();
                (bits(&output.logits), by_weight)
            })
        };
        for precision in [Precision::F32, Precision::Bf16] {
            let (logits, by_weight) = run(precision, 1);
            assert!(by_weight.len() > 80, "{} gradients", by_weight.len());
            for threads in [2, 3] {
                let (other, others) = run(precision, threads);
                assert_eq!(logits, other, "{threads} threads");
                for (name, gradient) in &by_weight {
                    assert!(*gradient == others[name], "{cross_layer:?}, {precision:?}, {threads} threads: {name}");
                }
            }
        }
    }
}

#[test]
fn prepacked_weights_give_the_same_outputs() {
    for cross_layer in [CrossLayer::Lxmert, CrossLayer::Student] {
        let (model, _) = model(&config(cross_layer, 0.0));
        // Both precisions in one set of weights, and passes with few rows and with many.
        let prepacked = PrepackedWeights::new();
        for precision in [Precision::F32, Precision::Bf16] {
            for (words, regions) in BATCHES {
                let inputs = inputs(words, regions);
                let run = Pass::eval().with_precision(precision);
                let want = model.forward(&inputs, &run).unwrap();
                for _ in 0..2 {
                    let got = model.forward(&inputs, &run.with_prepacked(&prepacked)).unwrap();
                    assert_eq!(bits(&got.logits), bits(&want.logits), "{cross_layer:?} {precision:?} {words:?}");
                    assert_eq!(bits(&got.trunk.vision), bits(&want.trunk.vision));
                }
            }
        }
    }
}

#[test]
fn pooled_only_gives_the_same_output() {
    for cross_layer in [CrossLayer::Lxmert, CrossLayer::Student] {
        let (model, varmap) = model(&config(cross_layer, 0.0));
        for (words, regions) in BATCHES {
            let inputs = inputs(words, regions);
            let whole = model.forward(&inputs, &Pass::eval()).unwrap();
            let pooled = model.forward(&inputs, &Pass::eval().pooled_only()).unwrap();
            assert_eq!(pooled.trunk.language.dims(), [words.len(), 1, 36]);
            assert_eq!(pooled.trunk.vision.dims(), [words.len(), 0, 36]);
            assert!(difference(&whole.logits, &pooled.logits) < 2e-6);
            assert!(difference(&whole.trunk.pooled, &pooled.trunk.pooled) < 2e-6);
            let by = |output: HeadOutput| output.logits.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let (all, less) = (by(whole), by(pooled));
            for (name, var) in varmap.data().lock().unwrap().iter() {
                // Parameters that the logits do not depend on get no gradient, or zeros.
                let want = all.get(var).cloned().unwrap_or_else(|| var.zeros_like().unwrap());
                let got = less.get(var).cloned().unwrap_or_else(|| var.zeros_like().unwrap());
                assert!(difference(&got, &want) < 1e-4, "{cross_layer:?} {words:?} {name}");
            }
        }
    }
}

#[test]
fn handles_an_image_without_regions_and_an_empty_batch() {
    let (model, _) = model(&config(CrossLayer::Lxmert, 0.0));
    // In an all-masked row every score gets the same number, as if nothing were masked.
    let with_none = inputs(&[3, 4], &[2, 0]);
    let fused = model.forward(&with_none, &Pass::eval()).unwrap().logits;
    let composed = model.forward(&with_none, &Pass::capture(Capture::Maps)).unwrap().logits;
    assert!(difference(&fused, &composed) < 1e-3);
    let none = LxmertInputs {
        input_ids: Tensor::zeros((0, 3), DType::U32, &Device::Cpu).unwrap(),
        attention_mask: None,
        visual_feats: Tensor::zeros((0, 2, 16), DType::F32, &Device::Cpu).unwrap(),
        visual_boxes: Tensor::zeros((0, 2, 4), DType::F32, &Device::Cpu).unwrap(),
        visual_attention_mask: None,
    };
    assert_eq!(model.forward(&none, &Pass::eval()).unwrap().logits.dims(), [0]);
}
