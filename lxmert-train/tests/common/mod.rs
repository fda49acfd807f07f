//! A small data set whose features determine the captions: enough to train on in seconds.

use lxmert_core::features::{Regions, StoreDtype, StoreInfo, StoreWriter};
use std::fmt::Write;
use std::path::Path;

const COLOURS: [&str; 4] = ["red", "green", "blue", "yellow"];
const SHAPES: [&str; 4] = ["circle", "square", "star", "cross"];

/// Writes `results.csv`, `hard_negatives.csv` and a store `features/` for `images` images with two
/// regions of 12 numbers each.
pub fn write_data(folder: &Path, images: usize) {
    let mut captions = String::from("image_name| comment_number| comment\n");
    let mut hard = captions.clone();
    let info = StoreInfo {
        detector: "test".into(),
        settings: [("regions".to_string(), "1..2".to_string())].into(),
        regions: 2,
        feature_dim: 12,
        dtype: StoreDtype::F32,
        label_names: vec!["thing".into()],
        attribute_names: Vec::new(),
    };
    let mut writer = StoreWriter::open(folder.join("features"), info).unwrap();
    for i in 0..images {
        let (colour, shape) = (i % 4, (i / 4) % 4);
        let name = format!("{i:03}.png");
        writeln!(captions, "{name}| 0| A {} {} .", COLOURS[colour], SHAPES[shape]).unwrap();
        writeln!(captions, "{name}| 1| There is one {} here , and it is {} .", SHAPES[shape], COLOURS[colour]).unwrap();
        writeln!(hard, "{name}| 0| A {} {} .", COLOURS[(colour + 1) % 4], SHAPES[shape]).unwrap();
        let mut features = vec![0.1f32; 24];
        features[colour] = 1.0;
        features[4 + shape] = 1.0;
        features[12 + 8 + i % 4] = 0.5;
        let regions = Regions {
            image_width: 64,
            image_height: 64,
            feature_dim: 12,
            features,
            boxes: vec![[0.1, 0.1, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0]],
            labels: vec![0, 0],
            scores: vec![0.9, 0.3],
            attributes: None,
        };
        writer.push(&name, &regions).unwrap();
    }
    writer.finish().unwrap();
    std::fs::write(folder.join("results.csv"), captions).unwrap();
    std::fs::write(folder.join("hard_negatives.csv"), hard).unwrap();
}
