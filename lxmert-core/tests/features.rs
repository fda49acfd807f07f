//! The feature store: what is written can be read back, and a killed writer loses nothing.

use lxmert_core::Error;
use lxmert_core::features::{Attributes, FeatureStore, Regions, StoreDtype, StoreInfo, StoreWriter};
use proptest::prelude::*;
use std::path::Path;

fn info(regions: usize, feature_dim: usize, dtype: StoreDtype, attributes: bool) -> StoreInfo {
    StoreInfo {
        detector: "fake".into(),
        settings: [("select".to_string(), "detections".to_string())].into(),
        regions,
        feature_dim,
        dtype,
        label_names: (0..5).map(|i| format!("label {i}")).collect(),
        attribute_names: if attributes { vec!["red".into(), "blue".into()] } else { Vec::new() },
    }
}

/// Regions with numbers that all three dtypes represent exactly.
fn regions(seed: u32, n: usize, dim: usize, attributes: bool) -> Regions {
    let number = |i: usize| ((seed as usize * 31 + i * 7) % 200) as f32 / 2.0;
    Regions {
        image_width: 640 + seed,
        image_height: 480,
        feature_dim: dim,
        features: (0..n * dim).map(number).collect(),
        boxes: (0..n).map(|i| [0.0, 0.25, 0.5 + (i % 4) as f32 / 8.0, 1.0]).collect(),
        labels: (0..n).map(|i| (i as u32 + seed) % 5).collect(),
        scores: (0..n).map(|i| 1.0 / (i + 1) as f32).collect(),
        attributes: attributes.then(|| Attributes {
            labels: (0..n).map(|i| i as u32 % 2).collect(),
            scores: (0..n).map(|i| 0.5 / (i + 1) as f32).collect(),
        }),
    }
}

fn message<T>(result: lxmert_core::Result<T>) -> String {
    result.err().map_or_else(|| panic!("no error"), |error| error.to_string())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn pushed_regions_are_read_back(
        counts in proptest::collection::vec(0usize..5, 0..12),
        dim in 1usize..40,
        which in 0usize..3,
        attributes: bool,
        shard_bytes in 1usize..6000,
        reopen_after in 0usize..12,
    ) {
        let dtype = [StoreDtype::F32, StoreDtype::F16, StoreDtype::Bf16][which];
        let folder = tempfile::tempdir().unwrap();
        let open = || StoreWriter::open_with(folder.path(), info(4, dim, dtype, attributes), shard_bytes).unwrap();
        let mut writer = open();
        for (i, &n) in counts.iter().enumerate() {
            if i == reopen_after {
                drop(writer); // like a kill: no finish
                writer = open();
                prop_assert_eq!(writer.len(), i);
            }
            writer.push(&format!("dir/ü {i}.png"), &regions(i as u32, n, dim, attributes)).unwrap();
        }
        let summary = writer.finish().unwrap();
        prop_assert_eq!(summary.images, counts.len());
        let store = FeatureStore::open(folder.path()).unwrap();
        prop_assert!(!store.is_unfinished());
        prop_assert_eq!(store.len(), counts.len());
        let (mut features, mut boxes, mut mask) = (vec![9.0], vec![9.0], vec![9.0]);
        for (i, &n) in counts.iter().enumerate() {
            let name = format!("dir/ü {i}.png");
            prop_assert_eq!(&store.names()[i], &name);
            prop_assert_eq!(store.index_of(&name), Some(i));
            let expected = regions(i as u32, n, dim, attributes);
            prop_assert_eq!(&store.regions(i).unwrap(), &expected);
            for (region, feature) in expected.features.chunks(dim).enumerate() {
                prop_assert_eq!(&store.region_feature(i, region).unwrap(), feature);
            }
            prop_assert!(store.region_feature(i, n).is_err());
            store.read_batch(&[i, i], &mut features, &mut boxes, &mut mask).unwrap();
            for half in 0..2 {
                let padded = |values: &[f32], size: usize| [values, &vec![0.0; size - values.len()]].concat();
                prop_assert_eq!(&features[half * 4 * dim..][..4 * dim], padded(&expected.features, 4 * dim));
                prop_assert_eq!(&boxes[half * 16..][..16], padded(&expected.boxes.concat(), 16));
                prop_assert_eq!(&mask[half * 4..][..4], padded(&vec![1.0; n], 4));
            }
            prop_assert_eq!((features.len(), boxes.len(), mask.len()), (2 * 4 * dim, 32, 8));
        }
        prop_assert_eq!(store.index_of("none"), None);
        prop_assert!(store.regions(counts.len()).is_err());
    }
}

/// Rows are read 16 KiB at a time.
#[test]
fn reads_a_row_of_several_blocks() {
    for dtype in [StoreDtype::F32, StoreDtype::F16, StoreDtype::Bf16] {
        let folder = tempfile::tempdir().unwrap();
        let (n, dim) = (4, 5000);
        let mut writer = StoreWriter::open(folder.path(), info(n, dim, dtype, false)).unwrap();
        let mut expected = Vec::new();
        for image in 0..2u32 {
            let regions = regions(image, n, dim, false);
            writer.push(&format!("{image}"), &regions).unwrap();
            expected.extend(regions.features);
        }
        writer.finish().unwrap();
        let store = FeatureStore::open(folder.path()).unwrap();
        let (mut features, mut boxes, mut mask) = (Vec::new(), Vec::new(), Vec::new());
        store.read_batch(&[0, 1], &mut features, &mut boxes, &mut mask).unwrap();
        assert!(features == expected, "{dtype:?}");
        assert!(store.region_feature(1, 2).unwrap() == expected[(n + 2) * dim..(n + 3) * dim], "{dtype:?}");
    }
}

/// Three images per shard: one image takes 236 bytes.
fn push_all(folder: &Path, images: std::ops::Range<u32>) -> StoreWriter {
    let mut writer = StoreWriter::open_with(folder, info(4, 8, StoreDtype::F32, false), 720).unwrap();
    for i in images {
        writer.push(&format!("{i}.png"), &regions(i, 3, 8, false)).unwrap();
    }
    writer
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_truncated_journal_loses_only_its_last_image_and_continues_to_the_same_bytes() {
    let whole = tempfile::tempdir().unwrap();
    push_all(whole.path(), 0..5).finish().unwrap();
    let torn = tempfile::tempdir().unwrap();
    // Three images per shard, so two are in the journal.
    drop(push_all(torn.path(), 0..5));
    let before = files(torn.path());
    let journal = torn.path().join("pending.journal");
    let bytes = std::fs::read(&journal).unwrap();
    for cut in (0..bytes.len()).step_by(37) {
        for (name, content) in &before {
            std::fs::write(torn.path().join(name), content).unwrap();
        }
        std::fs::write(&journal, &bytes[..cut]).unwrap();
        let writer = push_all(torn.path(), 0..0);
        let kept = 3 + cut / (bytes.len() / 2);
        assert_eq!(writer.len(), kept, "cut at {cut}");
        drop(writer);
        push_all(torn.path(), kept as u32..5).finish().unwrap();
        assert_eq!(files(torn.path()), files(whole.path()), "cut at {cut}");
        std::fs::remove_file(torn.path().join("shard-00001.safetensors")).unwrap();
    }
}

#[test]
fn adopts_a_shard_that_the_index_does_not_list_yet() {
    let folder = tempfile::tempdir().unwrap();
    drop(push_all(folder.path(), 0..2));
    let journal = std::fs::read(folder.path().join("pending.journal")).unwrap();
    let index = std::fs::read(folder.path().join("index.json")).unwrap();
    drop(push_all(folder.path(), 2..3));
    assert!(folder.path().join("shard-00000.safetensors").exists());
    // The shard exists; index and journal are still as before, and there is a half-written file.
    std::fs::write(folder.path().join("index.json"), index).unwrap();
    std::fs::write(folder.path().join("pending.journal"), journal).unwrap();
    std::fs::write(folder.path().join("shard-00001.safetensors.unfinished"), b"half").unwrap();
    let writer = push_all(folder.path(), 3..4);
    assert_eq!(writer.len(), 4);
    assert_eq!(writer.finish().unwrap().images, 4);
    let names: Vec<String> = files(folder.path()).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["index.json", "shard-00000.safetensors", "shard-00001.safetensors"]);
}

#[test]
fn rejects_other_settings_and_names_both() {
    let folder = tempfile::tempdir().unwrap();
    push_all(folder.path(), 0..1).finish().unwrap();
    let mut other = info(4, 8, StoreDtype::F16, false);
    other.settings.insert("select".into(), "student".into());
    other.label_names[1] = "cat".into();
    let Err(error @ Error::StoreDiffers { .. }) = StoreWriter::open(folder.path(), other) else { panic!("accepted") };
    let text = error.to_string();
    for part in ["dtype: f32 there, f16 now", "select: detections there, student now", "'label 1' there, 'cat' now"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn rejects_a_folder_that_is_not_a_store_and_a_second_writer() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("photo.jpg"), b"x").unwrap();
    let refused = message(StoreWriter::open(folder.path(), info(4, 8, StoreDtype::F32, false)).map(|_| ()));
    assert!(refused.contains("photo.jpg"), "{refused}");
    assert_eq!(files(folder.path()).len(), 1);
    assert!(message(FeatureStore::open(folder.path())).contains("not a feature store"));

    let folder = tempfile::tempdir().unwrap();
    let first = push_all(folder.path(), 0..1);
    let refused = message(StoreWriter::open(folder.path(), info(4, 8, StoreDtype::F32, false)).map(|_| ()));
    assert!(refused.contains("another process"), "{refused}");
    drop(first);
}

#[test]
fn numbers_in_an_index_are_checked_against_the_shards() {
    let folder = tempfile::tempdir().unwrap();
    push_all(folder.path(), 0..3).finish().unwrap();
    let index = folder.path().join("index.json");
    let text = std::fs::read_to_string(&index).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let huge = [1 << 20, 1 << 31, 1 << 62, u64::MAX];
    for number in huge {
        for field in ["regions", "feature_dim", "images"] {
            let mut changed = json.clone();
            changed[field] = number.into();
            std::fs::write(&index, changed.to_string()).unwrap();
            let error = message(FeatureStore::open(folder.path()));
            assert!(error.contains("index.json") || error.contains("shard-00000"), "{field} {number}: {error}");
        }
        let mut changed = json.clone();
        changed["shards"] = serde_json::json!([{"file": "a", "images": number}, {"file": "b", "images": number}]);
        changed["images"] = 2.into();
        std::fs::write(&index, changed.to_string()).unwrap();
        let error = message(FeatureStore::open(folder.path()));
        assert!(error.contains("index.json") && error.contains("images"), "{number}: {error}");
    }
}

#[test]
fn errors_name_the_damaged_file() {
    let folder = tempfile::tempdir().unwrap();
    push_all(folder.path(), 0..4).finish().unwrap();
    let shard = folder.path().join("shard-00001.safetensors");
    let bytes = std::fs::read(&shard).unwrap();
    for cut in [0, 5, 100, bytes.len() - 1] {
        std::fs::write(&shard, &bytes[..cut]).unwrap();
        assert!(message(FeatureStore::open(folder.path())).contains("shard-00001.safetensors"), "cut at {cut}");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    std::fs::write(&shard, longer).unwrap();
    assert!(FeatureStore::open(folder.path()).is_err());
    // The message's advice works: delete the shard, extract again.
    std::fs::remove_file(&shard).unwrap();
    assert!(message(FeatureStore::open(folder.path())).contains("shard-00001"));
    let mut writer = push_all(folder.path(), 0..0);
    assert!(!writer.contains("3.png"));
    writer.push("3.png", &regions(3, 3, 8, false)).unwrap();
    writer.finish().unwrap();
    assert_eq!(FeatureStore::open(folder.path()).unwrap().regions(3).unwrap(), regions(3, 3, 8, false));
    std::fs::write(folder.path().join("index.json"), b"{\"format\": \"other\"}").unwrap();
    assert!(message(FeatureStore::open(folder.path())).contains("\"other\""));
}

#[test]
fn rejects_regions_that_contradict_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = push_all(folder.path(), 0..1);
    let mut refused = |change: fn(&mut Regions)| {
        let mut bad = regions(1, 3, 8, false);
        change(&mut bad);
        message(writer.push("bad.png", &bad))
    };
    assert!(refused(|r| r.features[3] = f32::NAN).contains("NaN"));
    assert!(refused(|r| r.boxes[0] = [0.0, 0.0, 1.5, 1.0]).contains("1.5"));
    assert!(refused(|r| r.labels[2] = 5).contains("only 5 label names"));
    assert!(refused(|r| r.scores.truncate(2)).contains("2 label scores"));
    assert!(refused(|r| *r = regions(1, 5, 8, false)).contains("5 regions"));
    assert!(refused(|r| r.attributes = Some(Attributes::default())).contains("attributes"));
    assert!(message(writer.push("0.png", &regions(0, 3, 8, false))).contains("already"));
    assert!(writer.push("a\nb.png", &regions(0, 3, 8, false)).is_err());
    assert_eq!(writer.len(), 1);
}
