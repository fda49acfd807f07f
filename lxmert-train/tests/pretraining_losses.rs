//! Each pre-training loss, their sum and its gradients against transformers' `LxmertForPreTraining` with the same
//! weights, masks and labels (`scripts/pretraining_losses.py`), within 1e-4 of themselves.

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use lxmert_core::config::LxmertConfig;
use lxmert_core::model::{LxmertInputs, Pass, PretrainingModel};
use lxmert_train::recipe::RegionLosses;
use lxmert_train::task_weights::TaskWeights;
use lxmert_train::tasks::masked_words::MaskedWords;
use lxmert_train::tasks::pretraining::regions::{Classes, MaskedRegions};
use lxmert_train::tasks::pretraining::terms::{Targets, terms};
use std::collections::HashMap;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/pretraining_losses");

struct Case {
    tensors: HashMap<String, Tensor>,
    config: LxmertConfig,
    losses: serde_json::Value,
}

impl Case {
    fn read() -> Self {
        let config = LxmertConfig::from_file(format!("{FOLDER}/config.json")).unwrap();
        Self {
            tensors: candle_core::safetensors::load(format!("{FOLDER}/case.safetensors"), &Device::Cpu).unwrap(),
            config: LxmertConfig { hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0, ..config },
            losses: serde_json::from_str(&std::fs::read_to_string(format!("{FOLDER}/losses.json")).unwrap()).unwrap(),
        }
    }

    fn input(&self, name: &str) -> Tensor {
        self.tensors[&format!("inputs.{name}")].clone()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.input(name).flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
    }

    fn ints(&self, name: &str) -> Vec<i64> {
        self.input(name).flatten_all().unwrap().to_vec1().unwrap()
    }

    /// The targets, with or without masks.
    fn targets(&self, masked: bool) -> Targets {
        let words = self.ints("word_labels").into_iter().enumerate().filter(|(_, word)| masked && *word >= 0);
        let chosen: Vec<bool> = self.floats("region_mask").iter().map(|m| masked && *m > 0.0).collect();
        let own = self.floats("target_features");
        let features = chosen.iter().zip(own.chunks(self.config.visual_feat_dim)).filter(|(chosen, _)| **chosen);
        let classes = |what: &str| Classes {
            labels: self.ints(&format!("{what}_labels")).iter().map(|label| *label as u32).collect(),
            scores: self.floats(&format!("{what}_confidence")),
        };
        Targets {
            words: MaskedWords::given(words.map(|(row, word)| (row as u32, word as u32))),
            regions: MaskedRegions {
                count: chosen.len(),
                features: features.flat_map(|(_, feature)| feature.to_vec()).collect(),
                objects: classes("object"),
                attributes: classes("attribute"),
                chosen,
            },
            matched: self.ints("matched").iter().map(|matched| *matched == 1).collect(),
            answers: self.ints("answers").iter().map(|answer| u32::try_from(*answer).ok()).collect(),
        }
    }

    fn check(&self, name: &str, kind: RegionLosses, masked: bool) {
        let want = &self.losses[name];
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
        let model = PretrainingModel::new(&self.config, vb).unwrap();
        let variables: HashMap<String, Var> = varmap.data().lock().unwrap().clone();
        for (name, variable) in &variables {
            variable.set(&self.tensors[&format!("weights.{name}")]).unwrap();
        }
        let inputs = LxmertInputs {
            input_ids: self.input("input_ids").to_dtype(DType::U32).unwrap(),
            attention_mask: Some(self.input("attention_mask")),
            visual_feats: self.input("visual_feats"),
            visual_boxes: self.input("visual_pos"),
            visual_attention_mask: None,
        };
        let losses = (kind, want["normaliser"].as_f64().unwrap());
        let weights = TaskWeights::default();
        let (terms, ..) = terms(&model, &inputs, &self.targets(masked), &weights, losses, &Pass::eval()).unwrap();

        let mut total = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap();
        let mut of: HashMap<&str, f64> = HashMap::new();
        for term in &terms {
            of.insert(term.name, f64::from(term.loss.to_scalar::<f32>().unwrap()));
            total = (total + &term.loss).unwrap();
        }
        let mut largest = 0f64;
        let mut close = |what: &str, got: f64, want: &serde_json::Value| {
            let want = want.as_f64().unwrap();
            let error = (got - want).abs() / want.max(1.0);
            largest = largest.max(error);
            assert!(error <= 1e-4, "{name}, {what}: {got}, the reference {want}");
        };
        for (ours, theirs) in [
            ("words", "masked_words"),
            ("matching", "matching"),
            ("objects", "objects"),
            ("attributes", "attributes"),
            ("features", "features"),
            ("answers", "answers"),
        ] {
            close(ours, of.get(ours).copied().unwrap_or(0.0), &want[theirs]);
        }
        close("total", f64::from(total.to_scalar::<f32>().unwrap()), &want["total"]);
        let gradients = total.backward().unwrap();
        for (name, norm) in want["gradient_norms"].as_object().unwrap() {
            let gradient = gradients.get(variables[name].as_tensor()).unwrap();
            let got = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            close(name, f64::from(got), norm);
        }
        println!("{name}: largest deviation {largest:.1e}");
    }
}

#[test]
fn losses_and_gradients_match_the_reference_for_every_region_loss() {
    let case = Case::read();
    case.check("masked_regions", RegionLosses::Masked, true);
    case.check("original", RegionLosses::Original, true);
    case.check("per_masked_region", RegionLosses::PerMasked, true);
}

#[test]
fn a_batch_with_nothing_masked_learns_from_the_other_tasks() {
    Case::read().check("nothing_masked", RegionLosses::Masked, false);
}
