//! The student project's variant against its own PyTorch code on formula weights, within 1e-4.

mod common;

use candle_core::{DType, Tensor};
use common::kernels::difference;
use common::{manifest, outputs, weights};
use lxmert_core::config::{CrossLayer, LxmertConfig};
use lxmert_core::model::{Capture, LxmertInputs, MatchingModel, Pass};

fn config(x_layers: usize) -> LxmertConfig {
    LxmertConfig { cross_layer: CrossLayer::Student, x_layers, ..LxmertConfig::preset("small").unwrap() }
}

/// Keeps the rows of real words: torch zeroes padding rows or not depending on its fast path, and nothing downstream
/// reads them.
fn words_only(x: &Tensor, mask: &Tensor) -> Tensor {
    x.broadcast_mul(&mask.unsqueeze(2).unwrap()).unwrap()
}

#[test]
fn the_variant_matches_the_students_own_code() {
    let manifest = manifest("student/model.json");
    let want = outputs("student/model.safetensors");
    let mask = want["mask"].to_dtype(DType::F32).unwrap();
    let inputs = LxmertInputs {
        input_ids: want["ids"].to_dtype(DType::U32).unwrap(),
        attention_mask: Some(mask.clone()),
        visual_feats: lxmert_core::procedural::tensor("input.features", &[3, 36, 1024], 0.0, 2.0, 0).unwrap(),
        visual_boxes: want["boxes"].clone(),
        visual_attention_mask: None,
    };
    for (x_layers, capture) in [(1, Capture::None), (2, Capture::None), (2, Capture::Maps)] {
        let model = MatchingModel::new(&config(x_layers), weights(&manifest, None)).unwrap();
        let got = model.forward(&inputs, &Pass::capture(capture)).unwrap();
        let last = x_layers - 1;
        for (what, got, want) in [
            ("text", &words_only(&got.trunk.language, &mask), &words_only(&want[&format!("cross.{last}.text")], &mask)),
            ("image", &got.trunk.vision, &want[&format!("cross.{last}.image")]),
        ] {
            let d = difference(got, want);
            println!("cross {last} {what}: {d:.1e}");
            assert!(d <= 1e-4, "cross {last} {what}: {d:.1e}");
        }
        if x_layers == 2 {
            let d = difference(&got.logits, &want["logits"].squeeze(1).unwrap());
            assert!(d <= 1e-4, "logits: {d:.1e}");
        }
    }
}

#[test]
fn expects_the_students_key_names() {
    let mut want: Vec<(String, Vec<usize>)> =
        manifest("student/model.json").tensors.into_iter().map(|e| (e.name, e.shape)).collect();
    want.sort();
    assert_eq!(MatchingModel::expected(&config(2)).unwrap(), want);
}
