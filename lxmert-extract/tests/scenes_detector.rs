//! The detector that ships finds the objects of scenes that it was not trained on.

use candle_core::Device;
use lxmert_extract::detector::DetectorConfig;
use lxmert_extract::detector::training::scenes::{TRAINING_SCENES_SEED, build, detector_config, evaluate};
use lxmert_extract::scenes::{Scene, ScenesConfig};
use std::path::Path;

#[test]
fn the_shipped_detector_finds_objects_and_attributes_of_new_scenes() -> anyhow::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/scenes-detector");
    let config = DetectorConfig::from_json_file(folder.join("config.json"))?;
    assert_eq!(config, detector_config(), "config.json is what `train-detector` writes");
    let weights = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu)?;
    let detector = build(&config, &weights.into_iter().collect(), &Device::Cpu)?;

    let fresh = ScenesConfig { seed: 977, ..ScenesConfig::default() };
    assert_ne!(fresh.seed, TRAINING_SCENES_SEED);
    let scenes: Vec<Scene> = (0..60).map(|index| Scene::generate(&fresh, index)).collect();
    let evaluation = evaluate(&detector, &scenes)?;
    println!("{evaluation}");
    assert!(evaluation.ap50 >= 0.9, "{evaluation}");
    for (name, accuracy) in &evaluation.attribute_accuracy {
        assert!(*accuracy >= 0.9, "{name}: {evaluation}");
    }
    Ok(())
}
