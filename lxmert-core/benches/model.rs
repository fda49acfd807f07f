//! LXMERT's forward pass, and forward with backward, at the sizes that the peers' scripts time.
//!
//! `cargo bench -p lxmert-core --bench model`

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use lxmert_core::config::LxmertConfig;
use lxmert_core::model::{LxmertInputs, MatchingModel, Pass, init};
use lxmert_core::ops::DropoutRng;
use lxmert_core::procedural;
use std::time::Duration;

/// `batch` pairs of `words` WordPieces and `regions` regions, nothing padded.
fn inputs(config: &LxmertConfig, batch: usize, words: usize, regions: usize) -> LxmertInputs {
    let ids: Vec<u32> =
        procedural::values("ids", batch * words, 1000.0, 20000.0, 0).iter().map(|v| *v as u32).collect();
    let random = |name: &str, shape: &[usize], high: f64| {
        procedural::tensor(name, shape, 0.0, high, 0).expect("a tensor of this size fits in memory")
    };
    LxmertInputs {
        input_ids: Tensor::from_vec(ids, (batch, words), &Device::Cpu).expect("the shape fits the values"),
        attention_mask: None,
        visual_feats: random("features", &[batch, regions, config.visual_feat_dim], 2.0),
        visual_boxes: random("boxes", &[batch, regions, 4], 1.0),
        visual_attention_mask: None,
    }
}

fn model(config: &LxmertConfig) -> MatchingModel {
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    let model = MatchingModel::new(config, vb).expect("fresh weights have the shapes asked for");
    init::seed_weights(&varmap, 0, config.initializer_range).expect("every variable can be set");
    model
}

fn benches(c: &mut Criterion) {
    let mut group = c.benchmark_group("lxmert");
    group.sample_size(10).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(8));
    for (preset, batch, words, regions) in
        [("base", 1, 20, 36), ("base", 32, 20, 36), ("small", 64, 32, 36), ("tiny", 64, 14, 12)]
    {
        let config = LxmertConfig::preset(preset).expect("a preset");
        let (model, inputs) = (model(&config), inputs(&config, batch, words, regions));
        let id = format!("{preset}, batch {batch}, {words} words, {regions} regions");
        group.bench_function(BenchmarkId::new("forward", &id), |b| {
            b.iter(|| model.forward(&inputs, &Pass::eval()).expect("the inputs fit"));
        });
        if preset == "base" && batch > 1 {
            continue;
        }
        group.bench_function(BenchmarkId::new("forward and backward", &id), |b| {
            b.iter(|| {
                let rng = DropoutRng::new(0, 0);
                let output = model.forward(&inputs, &Pass::train(&rng)).expect("the inputs fit");
                output.logits.sum_all().and_then(|loss| loss.backward()).expect("every op has a gradient")
            });
        });
    }
    group.finish();
}

criterion_group!(model_benches, benches);
criterion_main!(model_benches);
