//! bf16 products in the encoders: how far they are from f32, forward and backward, and that they equal products of
//! rounded operands.

mod common;

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use common::kernels::variable;
use common::{manifest, outputs, weights};
use lxmert_core::config::{CrossLayer, LxmertConfig};
use lxmert_core::model::{Capture, LxmertInputs, LxmertModel, MatchingModel, Pass, init};
use lxmert_core::ops::{self, DropoutRng, Precision};
use lxmert_core::procedural;

/// Norm of the difference divided by the norm.
fn relative(got: &Tensor, want: &Tensor) -> f32 {
    let square = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
    (square(&(got - want).unwrap()) / square(want)).sqrt()
}

#[test]
fn a_base_sized_pass_stays_within_two_hundredths_of_the_reference() {
    let manifest = manifest("lxmert/base.json");
    let want = outputs("lxmert/base.safetensors");
    let config: LxmertConfig = serde_json::from_value(manifest.config.clone()).unwrap();
    let boxes = &want["boxes"];
    let shape = [boxes.dims()[0], boxes.dims()[1], config.visual_feat_dim];
    let inputs = LxmertInputs {
        input_ids: want["ids"].to_dtype(DType::U32).unwrap(),
        attention_mask: Some(want["mask"].to_dtype(DType::F32).unwrap()),
        visual_feats: procedural::tensor("input.features", &shape, 0.0, 2.0, 0).unwrap(),
        visual_boxes: boxes.clone(),
        visual_attention_mask: None,
    };
    let model = LxmertModel::new(&config, weights(&manifest, None).pp("lxmert")).unwrap();
    // The fused sub-layers, and the composition.
    for capture in [Capture::None, Capture::Maps] {
        let run = Pass::capture(capture).with_precision(Precision::Bf16);
        let output = model.forward(&inputs, &run).unwrap();
        for (name, got) in [("vision_output", &output.vision), ("pooled_output", &output.pooled)] {
            let error = relative(got, &want[name]);
            println!("{name}: {error:.1e}");
            assert!((1e-4..2e-2).contains(&error), "{name}: {error:.1e}");
        }
    }
}

#[test]
fn a_linear_layer_equals_one_of_rounded_operands() {
    let (rows, inner, out) = (70, 96, 64);
    let (x, w, b) = (variable("x", &[rows, inner]), variable("w", &[out, inner]), variable("b", &[out]));
    let weigh = procedural::tensor("weigh", &[rows, out], -1.0, 1.0, 2).unwrap();
    let rounded = |t: &Tensor| t.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
    let y = ops::linear_with(&x, &w, &b, Precision::Bf16).unwrap();
    let (x_rounded, w_rounded, grad) = (rounded(&x), rounded(&w), rounded(&weigh));
    let expected = x_rounded.matmul(&w_rounded.t().unwrap()).unwrap().broadcast_add(&b).unwrap();
    assert!(relative(&y, &expected) < 1e-6);
    let gradients = (y * &weigh).unwrap().sum_all().unwrap().backward().unwrap();
    for (var, expected) in [
        (&x, grad.matmul(&w_rounded).unwrap()),
        (&w, grad.t().unwrap().matmul(&x_rounded).unwrap()),
        (&b, weigh.sum(0).unwrap()),
    ] {
        let error = relative(gradients.get(var).unwrap(), &expected);
        assert!(error < 1e-6, "{:?}: {error:.1e}", var.dims());
    }
}

#[test]
fn gradients_of_the_fused_sub_layers_are_close_to_f32() {
    for cross_layer in [CrossLayer::Lxmert, CrossLayer::Student] {
        let config = LxmertConfig {
            vocab_size: 60,
            hidden_size: 64,
            num_attention_heads: 4,
            intermediate_size: 128,
            visual_feat_dim: 48,
            l_layers: 2,
            r_layers: 1,
            x_layers: 2,
            cross_layer,
            ..LxmertConfig::default()
        };
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
        let model = MatchingModel::new(&config, vb).unwrap();
        init::seed_weights(&varmap, 3, 0.1).unwrap();
        let (pairs, words, regions) = (12, 9, 10);
        let ids: Vec<u32> = (0..(pairs * words) as u32).map(|i| (i * 7 + 1) % 60).collect();
        let inputs = LxmertInputs {
            input_ids: Tensor::from_vec(ids, (pairs, words), &Device::Cpu).unwrap(),
            attention_mask: None,
            visual_feats: procedural::tensor("feats", &[pairs, regions, 48], -1.0, 1.0, 1).unwrap(),
            visual_boxes: procedural::tensor("boxes", &[pairs, regions, 4], 0.0, 1.0, 1).unwrap(),
            visual_attention_mask: None,
        };
        let run = |precision| {
            let rng = DropoutRng::new(1, 2);
            let output = model.forward(&inputs, &Pass::train(&rng).with_precision(precision)).unwrap();
            let weigh = |t: &Tensor| (t * procedural::tensor("w", t.dims(), -1.0, 1.0, 2).unwrap()).unwrap();
            let states = weigh(&output.trunk.language).sum_all().unwrap();
            let loss = (weigh(&output.trunk.vision).sum_all().unwrap() + states).unwrap();
            (loss + weigh(&output.logits).sum_all().unwrap()).unwrap().backward().unwrap()
        };
        let (rounded, exact) = (run(Precision::Bf16), run(Precision::F32));
        let mut differing = 0;
        for (name, var) in varmap.data().lock().unwrap().iter() {
            let (got, want) = (rounded.get(var).unwrap(), exact.get(var).unwrap());
            let size = want.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            // A key's bias has no gradient except rounding.
            if size > 1e-2 {
                let error = relative(got, want);
                differing += usize::from(error > 1e-4);
                assert!(error < 5e-2, "{cross_layer:?} {name}: {error:.1e}");
            }
        }
        assert!(differing > 10, "only {differing} gradients are rounded");
    }
}
