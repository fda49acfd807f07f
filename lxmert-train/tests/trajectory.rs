//! Twenty AdamW steps of image-text matching against the same steps by transformers and torch (`make_lxmert.py`'s
//! `trajectory`), with kernels and with `LXMERT_KERNELS=reference`. Each tolerance is about five times the largest
//! measured deviation, which is noted beside it.

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use lxmert_core::config::LxmertConfig;
use lxmert_core::model::{LxmertInputs, LxmertModel, Pass};
use lxmert_core::ops::{self, Precision};
use lxmert_core::optim::{AdamW, AdamWConfig, clip};
use lxmert_core::procedural;
use lxmert_train::tasks::losses::binary_cross_entropy;
use std::collections::BTreeMap;

/// `ranges` of make_lxmert.py: the range of a weight's formula.
fn range(name: &str, shape: &[usize]) -> (f64, f64) {
    if name.contains("LayerNorm") || name.contains("layer_norm") {
        return if name.ends_with("weight") { (0.8, 1.2) } else { (-0.1, 0.1) };
    }
    if name.contains("embeddings") || name.ends_with("bias") {
        return (-0.05, 0.05);
    }
    let bound = 1.2 * (3.0 / shape[shape.len() - 1] as f64).sqrt();
    (-bound, bound)
}

/// `inputs` of make_lxmert.py.
fn inputs(tag: &str, batch: usize, length: usize, regions: usize, width: usize, seed: u64) -> LxmertInputs {
    let device = &Device::Cpu;
    let uniform = procedural::values(&format!("{tag}.ids"), batch * length, 0.0, 1.0, seed);
    let mut ids: Vec<u32> = uniform.iter().map(|u| 1000 + (u * 20000.0).floor() as u32).collect();
    let mut mask = vec![1f32; batch * length];
    for b in 0..batch {
        let real = length - 3 * (b % 3);
        ids[b * length] = 101;
        ids[b * length + real - 1] = 102;
        for t in real..length {
            (ids[b * length + t], mask[b * length + t]) = (0, 0.0);
        }
    }
    let corners = procedural::values(&format!("{tag}.boxes"), batch * regions * 4, 0.0, 1.0, seed);
    let boxes: Vec<f32> =
        corners.chunks(4).flat_map(|c| [c[0].min(c[2]), c[1].min(c[3]), c[0].max(c[2]), c[1].max(c[3])]).collect();
    LxmertInputs {
        input_ids: Tensor::from_vec(ids, (batch, length), device).unwrap(),
        attention_mask: Some(Tensor::from_vec(mask, (batch, length), device).unwrap()),
        visual_feats: procedural::tensor(&format!("{tag}.features"), &[batch, regions, width], 0.0, 2.0, seed).unwrap(),
        visual_boxes: Tensor::from_vec(boxes, (batch, regions, 4), device).unwrap(),
        visual_attention_mask: None,
    }
}

/// Loss and gradient norm of each of the reference's steps, computed by our code.
fn trajectory(reference: &serde_json::Value, precision: Precision) -> Vec<(f64, f64)> {
    let number = |key: &str| reference[key].as_f64().unwrap();
    let (seed, batch) = (number("seed") as u64, number("batch") as usize);
    let (length, regions) = (number("length") as usize, number("regions") as usize);

    let config = LxmertConfig::preset("small").unwrap();
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    let model = LxmertModel::new(&config, vb.pp("lxmert")).unwrap();
    let head = candle_nn::linear(config.hidden_size, 1, vb.pp("matching_head")).unwrap();
    let variables: BTreeMap<String, Var> =
        varmap.data().lock().unwrap().iter().map(|(name, var)| (name.clone(), var.clone())).collect();
    for (name, var) in &variables {
        let (low, high) = range(name, var.dims());
        var.set(&procedural::tensor(name, var.dims(), low, high, seed).unwrap()).unwrap();
    }
    let constants = AdamWConfig { weight_decay: number("weight_decay"), decay_all: true, ..Default::default() };
    let mut optimiser = AdamW::new(constants, variables).unwrap();

    let batches: Vec<(LxmertInputs, Tensor)> = (0..4)
        .map(|k| {
            let tag = format!("batch{k}");
            let target = procedural::values(&format!("{tag}.target"), batch, 0.0, 1.0, seed);
            let target: Vec<f32> = target.iter().map(|&u| if u > 0.5 { 1.0 } else { 0.0 }).collect();
            let target = Tensor::from_vec(target, batch, &Device::Cpu).unwrap();
            (inputs(&tag, batch, length, regions, config.visual_feat_dim, seed), target)
        })
        .collect();

    let steps = reference["losses"].as_array().unwrap().len();
    let mut step = |step: usize| {
        let (inputs, target) = &batches[step % 4];
        let pooled = model.forward(inputs, &Pass::eval().with_precision(precision)).unwrap().pooled;
        let logits = candle_nn::Module::forward(&head, &pooled).unwrap().squeeze(1).unwrap();
        let loss = binary_cross_entropy(&logits, target).unwrap().mean_all().unwrap();
        let gradients = optimiser.gradients(&ops::backward(&loss).unwrap());
        let norm = clip::global_norm(gradients.iter().flatten()).unwrap();
        optimiser.step(&gradients, number("lr"), 1.0).unwrap();
        (f64::from(loss.to_scalar::<f32>().unwrap()), norm)
    };
    (0..steps).map(&mut step).collect()
}

/// Largest deviation of the losses, and of the gradient norms relative to themselves.
fn deviation(steps: &[(f64, f64)], wanted: impl IntoIterator<Item = (f64, f64)>) -> (f64, f64) {
    assert!(steps.iter().all(|(loss, norm)| loss.is_finite() && norm.is_finite()), "{steps:?}");
    steps.iter().zip(wanted).fold((0.0, 0.0), |(worst_loss, worst_norm), ((loss, norm), (want_loss, want_norm))| {
        (f64::max(worst_loss, (loss - want_loss).abs()), f64::max(worst_norm, (norm / want_norm - 1.0).abs()))
    })
}

/// The losses and gradient norms of the reference.
fn wanted(reference: &serde_json::Value) -> Vec<(f64, f64)> {
    let series = |key: &str| reference[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap());
    series("losses").zip(series("grad_norms")).collect()
}

/// What the child process prints before its numbers.
const PRINTED: &str = "steps as JSON: ";

#[test]
fn twenty_steps_follow_the_reference_with_kernels_and_without() {
    let reference: serde_json::Value = serde_json::from_str(include_str!("fixtures/trajectory.json")).unwrap();
    let steps = trajectory(&reference, Precision::F32);
    println!("{PRINTED}{}", serde_json::to_string(&steps).unwrap());
    let (loss, norm) = deviation(&steps, wanted(&reference));
    println!("largest deviation: loss {loss:.1e}, gradient norm {norm:.1e} of itself");
    assert!(loss < 1e-5, "{loss}, measured 2e-6");
    assert!(norm < 8e-5, "{norm}, measured 1.5e-5");
    if std::env::var_os("LXMERT_KERNELS").is_some() {
        return; // the child
    }
    // The same steps by the plain compositions: a process reads the variable only once.
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.env("LXMERT_KERNELS", "reference").env("CANDLE_NUM_THREADS", "1").arg("--nocapture");
    let child = child.output().unwrap();
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "with LXMERT_KERNELS=reference:\n{output}");
    let printed = output.split(PRINTED).nth(1).and_then(|rest| rest.lines().next()).unwrap();
    let composed: Vec<(f64, f64)> = serde_json::from_str(printed).unwrap();
    assert_ne!(composed, steps, "the kernels were not used");
    let (loss, norm) = deviation(&steps, composed);
    println!("kernels and compositions: loss {loss:.1e}, gradient norm {norm:.1e} of itself");
    assert!(loss < 1e-4 && norm < 1e-3, "loss {loss}, norm {norm}");
}

#[test]
fn twenty_steps_in_bf16_stay_close_to_the_reference() {
    let reference: serde_json::Value = serde_json::from_str(include_str!("fixtures/trajectory.json")).unwrap();
    let steps = trajectory(&reference, Precision::Bf16);
    let (loss, norm) = deviation(&steps, wanted(&reference));
    println!("largest deviation: loss {loss:.1e}, gradient norm {norm:.1e} of itself");
    assert!(loss > 1e-5, "nothing was rounded");
    assert!(loss < 1e-2, "{loss}, measured 3.2e-3");
    assert!(norm < 0.05, "{norm}, measured 2.3e-2");
}
