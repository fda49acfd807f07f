//! A sentence with an image whose regions were all removed: the end of the perturbation test's curves.

mod common;

use candle_core::Device;
use common::checkpoint;
use lxmert_core::checkpoint::{read_tensors, save_safetensors};
use lxmert_core::features::Regions;
use lxmert_viz::explain::scorer::{Scorer, keep_regions};
use std::collections::BTreeMap;

const IDS: [u32; 5] = [101, 2417, 4418, 1012, 102];

fn regions(count: usize) -> Regions {
    let names: Vec<f32> = (0..count * common::FEATURE_DIM).map(|i| (i % 7) as f32 / 7.0).collect();
    Regions {
        image_width: 64,
        image_height: 64,
        feature_dim: common::FEATURE_DIM,
        features: names,
        boxes: (0..count).map(|i| [0.0, 0.0, 1.0 / (i + 1) as f32, 0.5]).collect(),
        labels: vec![0; count],
        scores: vec![1.0; count],
        attributes: None,
    }
}

fn logits(scorer: &Scorer, some: &[&Regions]) -> Vec<f32> {
    scorer.logits(&some.iter().map(|regions| (*regions, IDS.as_slice())).collect::<Vec<_>>()).unwrap()
}

/// Words read regions through the values of the cross-attention. If these are zero, regions have no effect; otherwise
/// an image matters.
#[test]
fn without_regions_words_get_zeros_from_the_image() {
    let folder = tempfile::tempdir().unwrap();
    checkpoint(folder.path());
    let scorer = Scorer::open(folder.path(), &Device::Cpu).unwrap();
    let (some, none) = (regions(3), keep_regions(&regions(3), &[]));
    let bare = logits(&scorer, &[&none, &none]);
    assert!(bare[0] == bare[1] && bare[0].is_finite(), "{bare:?}");
    assert!((bare[0] - logits(&scorer, &[&some])[0]).abs() > 1e-3, "an image matters");
    assert!(scorer.logits(&[(&some, &IDS), (&none, &IDS)]).is_err(), "they must not share a batch");

    let weights = folder.path().join("model.safetensors");
    let blind = read_tensors(&weights).unwrap().into_iter().map(|(name, tensor)| {
        let value = name.contains(".visual_attention.att.value.");
        (name, if value { tensor.zeros_like().unwrap() } else { tensor })
    });
    save_safetensors(&weights, &blind.collect::<Vec<_>>(), &BTreeMap::new()).unwrap();
    let blind = Scorer::open(folder.path(), &Device::Cpu).unwrap();
    let (bare, seen) = (logits(&blind, &[&none])[0], logits(&blind, &[&some, &regions(5)]));
    assert!(seen.iter().all(|logit| (logit - bare).abs() < 1e-5), "{bare} {seen:?}");
}
