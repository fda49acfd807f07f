//! Measuring: logits in bf16 equal those of f32 up to rounding, for pairs and for retrieval; and a wrong path is named.

mod common;

use candle_core::{DType, Device};
use candle_nn::{VarBuilder, VarMap};
use indicatif::ProgressBar;
use lxmert_core::config::LxmertConfig;
use lxmert_core::model::{MatchingModel, init};
use lxmert_core::ops::Precision;
use lxmert_core::text::WordPiece;
use lxmert_train::data::paths::DataPaths;
use lxmert_train::data::splits::Split;
use lxmert_train::data::{Dataset, LoadOptions};
use lxmert_train::evaluate::{self, Evaluation};
use lxmert_train::recalls::{participants, score_all};

/// Norm of the difference divided by the norm of `want`, as for the model's own outputs in bf16.
fn relative(got: &[f32], want: &[f32]) -> f32 {
    let difference: f32 = got.iter().zip(want).map(|(got, want)| (got - want).powi(2)).sum();
    (difference / want.iter().map(|want| want.powi(2)).sum::<f32>()).sqrt()
}

#[test]
fn bf16_logits_differ_from_f32_by_rounding_only() {
    let folder = tempfile::tempdir().unwrap();
    common::write_data(folder.path(), 40);
    let paths = DataPaths {
        name: "test".into(),
        captions: folder.path().join("results.csv"),
        splits: None,
        hard_negatives: None,
        features: folder.path().join("features").into(),
    };
    let options = LoadOptions {
        max_length: 20,
        regions: None,
        seed: 0,
        allow_missing_images: false,
        needed: Split::ALL.to_vec(),
    };
    let dataset = Dataset::load(&paths, &WordPiece::bundled().unwrap(), &options).unwrap();
    let config = LxmertConfig { visual_feat_dim: 12, ..LxmertConfig::preset("tiny").unwrap() };
    let varmap = VarMap::new();
    let model = MatchingModel::new(&config, VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu)).unwrap();
    init::seed_weights(&varmap, 3, 0.1).unwrap();
    let (pairs, bar) = (dataset.pairs(Split::Train).fixed(), ProgressBar::hidden());
    let (images, captions) = participants(&dataset, Split::Train, 6);
    let [exact, rounded] = [Precision::F32, Precision::Bf16].map(|precision| {
        let how = Evaluation { batch_size: 8, precision, device: &Device::Cpu };
        [
            evaluate::logits(&model, &dataset, &pairs, how, &bar).unwrap(),
            score_all(&model, &dataset, &images, &captions, how, &bar).unwrap(),
        ]
    });
    for (what, (got, want)) in ["pairs", "retrieval"].iter().zip(rounded.iter().zip(&exact)) {
        let error = relative(got, want);
        println!("{what}: {} logits, {error:.1e}", want.len());
        // A bf16 number is off by at most 2^-9 = 2e-3 of itself; over successive layers this adds up to a few times as
        // much.
        assert!((1e-4..2e-2).contains(&error), "{what}: {error:.1e}");
    }
}

/// Where the data is missing too, the path that was typed is the one to mend.
#[test]
fn a_wrong_checkpoint_path_is_reported_before_missing_data() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("runs")).unwrap();
    let mut command = assert_cmd::Command::cargo_bin("lxmert-train").unwrap();
    command.current_dir(folder.path()).args(["evaluate", "runs/scene"]);
    let output = command.assert().code(1).get_output().stderr.clone();
    let text = String::from_utf8(output).unwrap();
    assert!(text.contains("runs/scene: no such file or folder"), "{text}");
}
