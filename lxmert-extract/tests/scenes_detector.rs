//! The shipped detector, on scenes that it was not trained on.

use candle_core::Device;
use lxmert_core::boxes::{iou, normalise};
use lxmert_extract::detector::DetectorConfig;
use lxmert_extract::detector::training::scenes::{TRAINING_SCENES_SEED, build, detector_config, evaluate};
use lxmert_extract::regions::Selection;
use lxmert_extract::regions::detections::select;
use lxmert_extract::scenes::{Colour, Scene, ScenesConfig, draw::draw};
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

#[test]
fn regions_have_their_colour_as_attribute() -> anyhow::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/scenes-detector");
    let config = DetectorConfig::from_json_file(folder.join("config.json"))?;
    assert_eq!(config.attributes[0].classes, Colour::ALL.map(Colour::word));
    let weights = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu)?;
    let detector = build(&config, &weights.into_iter().collect(), &Device::Cpu)?;
    let (mut objects, mut right) = (0, 0);
    for index in 0..20 {
        let scene = Scene::generate(&ScenesConfig { seed: 977, ..ScenesConfig::default() }, index);
        let (width, height) = (scene.width, scene.height);
        let analysis = detector.analyse(detector.input(&draw(&scene).into())?)?;
        let regions = select(&detector, &analysis, 12, Selection::Detections)?;
        let attributes = regions.attributes.expect("the detector has attribute heads");
        assert_eq!((attributes.labels.len(), attributes.scores.len()), (12, 12));
        assert!(attributes.scores.iter().all(|score| (1.0 / 8.0..=1.0).contains(score)));
        for object in &scene.objects {
            let truth = normalise(&object.box_xyxy_px, width as f32, height as f32);
            // Regions are sorted, best first.
            if let Some(region) = (0..12).find(|&region| iou(&regions.boxes[region], &truth) >= 0.5) {
                objects += 1;
                right += usize::from(attributes.labels[region] as usize == object.colour.index());
            }
        }
    }
    assert!(objects > 60 && right * 100 >= objects * 98, "{right} of {objects}");
    Ok(())
}
