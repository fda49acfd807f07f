//! The feature store: what is written can be read back, and a killed writer loses nothing.

mod files;

use files::files;
use lxmert_core::Error;
use lxmert_core::features::{
    Attributes, FeatureStore, Merge, Part, Regions, StoreDtype, StoreFolders, StoreInfo, StoreWriter,
};
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
            prop_assert_eq!(store.name(i), name.as_str());
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
    assert_eq!(names, ["index.json", "names.safetensors", "shard-00000.safetensors", "shard-00001.safetensors"]);
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
    // A process is named with its number and its command.
    assert!(refused.contains(&format!("another process is writing to this store: process {}", std::process::id())));
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

/// Images `0.png` … of which part K of N is written, and the folder that it is in.
fn write_part(store: &Path, part: &str, images: u32) -> std::path::PathBuf {
    let part: Part = part.parse().unwrap();
    let names: Vec<String> = (0..images).map(|i| format!("{i}.png")).collect();
    let folder = part.begin(store, &names.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    let block = part.block(images as usize);
    push_all(&folder, block.start as u32..block.end as u32).finish().unwrap();
    folder
}

fn start_merge(store: &Path) -> lxmert_core::Result<Option<Merge>> {
    Merge::start(store, |_| Ok(Vec::new()))
}

#[test]
fn merged_parts_equal_the_store_of_a_single_run_also_after_an_interrupted_merge() {
    let single = tempfile::tempdir().unwrap();
    push_all(single.path(), 0..11).finish().unwrap();
    let single = FeatureStore::open(single.path()).unwrap();
    for of in [1, 3, 12] {
        let folder = tempfile::tempdir().unwrap();
        // In another order than theirs, as they end.
        let parts: Vec<_> = (1..=of).rev().map(|k| write_part(folder.path(), &format!("{k}/{of}"), 11)).collect();
        let unmerged = message(FeatureStore::open(folder.path()));
        assert!(unmerged.contains("parts of a store; run `lxmert-extract merge "), "{unmerged}");
        let refused = message(StoreWriter::open(folder.path(), info(4, 8, StoreDtype::F32, false)).map(|_| ()));
        assert!(refused.contains("lxmert-extract merge"), "{refused}");

        // Shards are renamed and not copied.
        #[cfg(unix)]
        let file = |path: &Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
        #[cfg(unix)]
        let of_first_part =
            parts.last().map(|part| part.join("shard-00000.safetensors")).filter(|shard| shard.exists());
        #[cfg(unix)]
        let of_first_part = of_first_part.map(|shard| file(&shard));
        // The merge stops in its middle, as by a full disk or a kill.
        let merge = start_merge(folder.path()).unwrap().unwrap();
        let shard = parts[0].join("shard-00000.safetensors");
        let away = folder.path().join("away");
        if of == 3 {
            std::fs::rename(&shard, &away).unwrap();
            assert!(message(merge.finish()).contains("shard-00000"));
            for refused in [
                message(FeatureStore::open(folder.path())),
                message(StoreWriter::open(folder.path(), info(4, 8, StoreDtype::F32, false)).map(|_| ())),
                message("1/3".parse::<Part>().unwrap().begin(folder.path(), &["0.png"])),
            ] {
                assert!(refused.contains("interrupted; run `lxmert-extract merge"), "{refused}");
            }
            std::fs::rename(&away, &shard).unwrap();
            start_merge(folder.path()).unwrap().unwrap().finish().unwrap();
        } else {
            merge.finish().unwrap();
        }
        #[cfg(unix)]
        assert!(of_first_part.is_none_or(|shard| shard == file(&folder.path().join("shard-00000.safetensors"))));
        let merged = FeatureStore::open(folder.path()).unwrap();
        assert!(merged.names().eq(single.names()) && merged.info() == single.info());
        assert!((0..11).all(|i| merged.regions(i).unwrap() == single.regions(i).unwrap()));
        let left: Vec<String> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with("shard-"))
            .collect();
        assert_eq!(sorted(left), ["index.json", "names.safetensors"]);
        assert!(start_merge(folder.path()).unwrap().is_none());
        // It is a store as any: it takes more images, and no more parts.
        let more = message("1/3".parse::<Part>().unwrap().begin(folder.path(), &["0.png"]));
        assert!(more.contains("leave --part out"), "{more}");
        assert_eq!(push_all(folder.path(), 11..12).finish().unwrap().images, 12);
    }
}

#[test]
fn merge_names_what_is_missing_or_does_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    let (store, refused) = (folder.path(), |said: &str| {
        let error = message(start_merge(folder.path()).map(|_| ()));
        assert!(error.contains(said), "{error}");
        assert!(!folder.path().join("pending.journal").exists());
    });
    refused("holds no parts; extract them with --part K/N");
    write_part(store, "1/3", 9);
    refused("lacks 2 parts (2/3, 3/3); extract with --part 2/3");
    let unmerged = message(FeatureStore::open(store));
    assert!(unmerged.contains("holds 1 of 3 parts of a store; extract the others, then run"), "{unmerged}");
    assert!(message("1/4".parse::<Part>().unwrap().begin(store, &["0.png"])).contains("holds part 1/3"));
    assert!(message("1/3".parse::<Part>().unwrap().begin(store, &["0.png"])).contains("9 then, 1 now"));

    let third = write_part(store, "3/3", 9);
    let names: Vec<String> = (0..9).map(|i| format!("{i}.png")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let second = "2/3".parse::<Part>().unwrap().begin(store, &names).unwrap();
    refused("part 2/3 was not begun; run the extraction with --part 2/3 again");
    let writer = push_all(&second, 3..5);
    refused(&format!("another process is writing to this store: process {}", std::process::id()));
    drop(writer);
    refused("part 2/3 was not finished; run the extraction with --part 2/3 again");
    push_all(&second, 0..0).finish().unwrap();
    refused("part 2/3 lacks 1 image ('5.png')");
    // One that could not be extracted is not missed.
    let failed = |part: &Path| Ok(if part == second { vec!["5.png".to_string()] } else { Vec::new() });
    assert!(Merge::start(store, failed).unwrap().is_some());
    push_all(&second, 5..6).finish().unwrap();
    assert!(start_merge(store).unwrap().is_some());

    push_all(&third, 0..1).finish().unwrap();
    refused("'0.png' is in part 3/3 and in an earlier one");
    std::fs::remove_dir_all(&third).unwrap();
    write_part(store, "3/3", 9);
    let index = third.join("index.json");
    let text = std::fs::read_to_string(&index).unwrap();
    std::fs::write(&index, text.replace("\"detections\"", "\"student\"")).unwrap();
    refused("part 3/3 (now) was made otherwise than part 1/3 (there): select: detections there, student now");
    std::fs::write(&index, text).unwrap();
    let list = third.join("part.json");
    let text = std::fs::read_to_string(&list).unwrap();
    std::fs::write(&list, text.replace("\"images\":9", "\"images\":10")).unwrap();
    refused("part 3/3 is of other images than part 1/3 (10 and 9 in all)");
    std::fs::write(&list, text).unwrap();
    start_merge(store).unwrap().unwrap().finish().unwrap();
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort_unstable();
    names
}

/// Where each tensor of a safetensors file lies in it.
fn tensors(bytes: &[u8]) -> impl Fn(&str) -> std::ops::Range<usize> {
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    move |name| {
        let at = |i: usize| 8 + header + json[name]["data_offsets"][i].as_u64().unwrap() as usize;
        at(0)..at(1)
    }
}

#[test]
fn the_table_of_names_is_made_anew_where_it_is_absent_and_shards_are_opened_when_they_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("names.safetensors");
    push_all(folder.path(), 0..7).finish().unwrap();
    let written = std::fs::read(&table).unwrap();
    let check = || {
        let store = FeatureStore::open(folder.path()).unwrap();
        assert!(store.names().eq((0..7).map(|i| format!("{i}.png"))));
        assert!((0..7).all(|i| store.index_of(&format!("{i}.png")) == Some(i) && store.name(i) == format!("{i}.png")));
        assert_eq!((store.find("x/3.jpg"), store.index_of("x/3.jpg"), store.name(7)), (Some(3), None, ""));
        assert_eq!(store.regions(6).unwrap(), regions(6, 3, 8, false));
    };
    check();
    std::fs::remove_file(&table).unwrap();
    check();
    // A writer that changes nothing writes it again, to the same bytes; one that adds a shard removes it until the store is whole.
    push_all(folder.path(), 0..0).finish().unwrap();
    assert_eq!(std::fs::read(&table).unwrap(), written);
    let writer = push_all(folder.path(), 7..9);
    assert!(table.exists());
    drop(writer);
    drop(push_all(folder.path(), 9..10));
    assert!(!table.exists());
    assert_eq!(FeatureStore::open(folder.path()).unwrap().len(), 10);
    push_all(folder.path(), 0..0).finish().unwrap();
    assert!(table.exists());

    // A header damaged without a change of the file's size is found when the shard is first read.
    let shard = folder.path().join("shard-00001.safetensors");
    let good = std::fs::read(&shard).unwrap();
    let mut bad = good.clone();
    bad[20] = 0;
    std::fs::write(&shard, bad).unwrap();
    let store = FeatureStore::open(folder.path()).unwrap();
    assert!(store.regions(0).is_ok() && message(store.regions(3)).contains("shard-00001.safetensors"));
    std::fs::write(&shard, good).unwrap();
    assert!(store.regions(3).is_ok());

    // As many images in as many bytes, of other names.
    let other = tempfile::tempdir().unwrap();
    let mut writer = StoreWriter::open_with(other.path(), info(4, 8, StoreDtype::F32, false), 720).unwrap();
    (0..10).for_each(|i| writer.push(&format!("{}.jpg", 9 - i), &regions(i, 3, 8, false)).unwrap());
    writer.finish().unwrap();
    std::fs::copy(other.path().join("names.safetensors"), &table).unwrap();
    let refused = message(FeatureStore::open(folder.path()).unwrap().regions(0));
    assert!(refused.contains("names.safetensors") && refused.contains("delete it"), "{refused}");
}

#[test]
fn nothing_in_the_table_of_names_is_trusted() {
    let folder = tempfile::tempdir().unwrap();
    push_all(folder.path(), 0..7).finish().unwrap();
    let table = folder.path().join("names.safetensors");
    let good = std::fs::read(&table).unwrap();
    let at = tensors(&good);
    let use_all = || {
        let Ok(store) = FeatureStore::open(folder.path()) else { return };
        assert_eq!(store.names().count(), 7);
        for i in 0..7 {
            let name = format!("{i}.png");
            assert!(store.index_of(&name).is_none_or(|found| store.name(found) == name));
            assert!(store.find("").is_none_or(|found| found < 7));
            assert!(store.regions(i).is_ok() || message(store.regions(i)).contains("delete it"));
        }
        let both = [folder.path().to_path_buf(), folder.path().to_path_buf()].into_iter().collect::<StoreFolders>();
        let _ = FeatureStore::open(both);
    };
    for (tensor, width) in [("ends", 8), ("order", 4), ("shard_bytes", 8), ("names", 1)] {
        for start in at(tensor).step_by(width) {
            for number in [0, 1, 7, 1 << 31, u64::from(u32::MAX), 1 << 62, u64::MAX] {
                let mut bad = good.clone();
                bad[start..start + width].copy_from_slice(&number.to_le_bytes()[..width]);
                std::fs::write(&table, bad).unwrap();
                use_all();
            }
        }
    }
    for cut in (0..good.len()).step_by(7) {
        std::fs::write(&table, &good[..cut]).unwrap();
        assert!(message(FeatureStore::open(folder.path())).contains("names.safetensors"), "cut at {cut}");
    }
    for byte in 0..at("shard_bytes").start {
        let mut bad = good.clone();
        bad[byte] ^= 1;
        std::fs::write(&table, bad).unwrap();
        use_all();
    }
}

#[test]
fn a_store_of_many_shards_has_few_open_files() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = StoreWriter::open_with(folder.path(), info(1, 1, StoreDtype::F32, false), 1).unwrap();
    for i in 0..300 {
        writer.push(&format!("{i}.png"), &regions(i, 1, 1, false)).unwrap();
    }
    assert_eq!(writer.finish().unwrap().shards, 300);
    let store = FeatureStore::open(folder.path()).unwrap();
    for i in (0..300).chain((0..300).rev()) {
        assert_eq!(store.regions(i).unwrap(), regions(i as u32, 1, 1, false));
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        let links = open.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
        let open = links.filter(|file| file.starts_with(folder.path())).count();
        assert!((1..=129).contains(&open), "{open} files are open");
    }
}

#[test]
fn folders_are_read_as_one_store() {
    let [a, b, c] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    push_all(a.path(), 0..4).finish().unwrap();
    // More regions an image, and another dtype.
    let mut writer = StoreWriter::open(b.path(), info(6, 8, StoreDtype::Bf16, false)).unwrap();
    (4..6).for_each(|i| writer.push(&format!("{i}.png"), &regions(i, 6, 8, false)).unwrap());
    writer.finish().unwrap();
    let open = |folders: &[&tempfile::TempDir]| {
        FeatureStore::open(folders.iter().map(|folder| folder.path().to_path_buf()).collect::<StoreFolders>())
    };
    let both = open(&[&a, &b]).unwrap();
    assert_eq!((both.len(), both.info().regions, both.index_of("5.png")), (6, 6, Some(5)));
    assert!((0..6).all(|i| both.regions(i).unwrap() == regions(i as u32, if i < 4 { 3 } else { 6 }, 8, false)));
    let (mut features, mut boxes, mut mask) = (Vec::new(), Vec::new(), Vec::new());
    both.read_batch(&[5, 0], &mut features, &mut boxes, &mut mask).unwrap();
    assert_eq!(
        (features.len(), &mask[..]),
        (2 * 6 * 8, &[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0][..])
    );

    push_all(c.path(), 3..4).finish().unwrap();
    let twice = message(open(&[&a, &b, &c]));
    let (first, last) = (a.path().display(), c.path().display());
    assert!(twice.contains(&format!("the image '3.png' is in {first} and in {last}")), "{twice}");
    // A file name without its folder is found where only one image of all folders can be meant.
    let mut writer = StoreWriter::open(c.path(), info(4, 8, StoreDtype::F32, false)).unwrap();
    writer.push("x/0.jpg", &regions(0, 3, 8, false)).unwrap();
    writer.finish().unwrap();
    let all = open(&[&b, &c]).unwrap();
    assert_eq!((all.find("0"), all.find("3"), all.find("4"), all.name(3)), (Some(3), Some(2), Some(0), "x/0.jpg"));
    let ambiguous = tempfile::tempdir().unwrap();
    let mut writer = StoreWriter::open(ambiguous.path(), info(4, 8, StoreDtype::F32, false)).unwrap();
    writer.push("y/0.jpg", &regions(0, 3, 8, false)).unwrap();
    writer.finish().unwrap();
    let all = open(&[&c, &ambiguous]).unwrap();
    assert_eq!((all.find("0"), all.find("z/0.jpg"), all.find("y/0.jpg")), (None, None, Some(2)));

    let other = tempfile::tempdir().unwrap();
    StoreWriter::open(other.path(), info(4, 9, StoreDtype::F32, false)).unwrap().finish().unwrap();
    let refused = message(open(&[&a, &other]));
    assert!(refused.contains("feature_dim: 8 there, 9 now"), "{refused}");
    // One folder is a text in JSON, as before there could be several.
    let json = |folders: &StoreFolders| serde_json::to_string(folders).unwrap();
    let (one, two) = (StoreFolders::from("a"), ["a", "b"].map(std::path::PathBuf::from).into_iter().collect());
    assert_eq!((json(&one), json(&two)), ("\"a\"".into(), "[\"a\",\"b\"]".into()));
    assert_eq!(
        [&one, &two].map(|f| serde_json::from_str::<StoreFolders>(&json(f)).unwrap()),
        [one.clone(), two.clone()]
    );
}
