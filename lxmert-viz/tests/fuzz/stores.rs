//! Feature stores, and the files of other programs that become one.

use super::{PICKLE, fixtures, remove, target, text};
use crate::harness::Target;
use base64::Engine;
use lxmert_core::features::Attributes;
use lxmert_core::features::FeatureStore;
use lxmert_core::features::Regions;
use lxmert_core::features::StoreDtype;
use lxmert_core::features::StoreInfo;
use lxmert_core::features::StoreWriter;
use lxmert_extract::import::pt::import_pt;
use lxmert_extract::import::tsv::TsvOptions;
use lxmert_extract::import::tsv::import_tsv;
use std::path::Path;

pub fn student(root: &Path) -> Target {
    let seeds = fixtures("lxmert-extract/tests/fixtures/student_pt", &[".pt"]);
    target(root, "student", "1.pt", seeds, PICKLE, |path| {
        let (files, output) = (path.parent().unwrap(), path.with_extension("store"));
        let imported = import_pt(files, &output, StoreDtype::F32, false).map_err(text);
        let read = imported.map(drop).and_then(|()| read_store(&output));
        remove(&output);
        read
    })
}

/// A store of three images, with attributes.
pub fn store(folder: &Path) -> StoreInfo {
    let info = StoreInfo {
        detector: "test".into(),
        settings: [("select".to_string(), "detections".to_string())].into(),
        regions: 3,
        feature_dim: 4,
        dtype: StoreDtype::F16,
        label_names: vec!["cat".into(), "dog".into()],
        attribute_names: vec!["red".into()],
    };
    let mut writer = StoreWriter::open(folder, info.clone()).unwrap();
    for (n, name) in [(1, "1.jpg"), (2, "2.jpg"), (3, "3.jpg")] {
        let attributes = Some(Attributes { labels: vec![0; n], scores: vec![0.5; n] });
        let regions = Regions {
            image_width: 64,
            image_height: 48,
            feature_dim: 4,
            features: vec![0.25; 4 * n],
            boxes: vec![[0.0, 0.0, 0.5, 1.0]; n],
            labels: vec![1; n],
            scores: vec![0.5; n],
            attributes,
        };
        writer.push(name, &regions).unwrap();
    }
    writer.finish().unwrap();
    info
}

/// Reads all of a store.
fn read_store(folder: &Path) -> Result<(), String> {
    let store = FeatureStore::open(folder).map_err(text)?;
    assert!(store.names().filter(|name| store.index_of(name).is_some()).count() <= store.len());
    let _ = store.index_of("2.jpg");
    let all: Vec<usize> = (0..store.len()).collect();
    for &image in &all {
        let regions = store.regions(image).map_err(text)?;
        (0..regions.num_regions()).for_each(|region| drop(store.info().region_name(&regions, region)));
    }
    let (mut features, mut boxes, mut mask, mut labels, mut scores) = (vec![], vec![], vec![], vec![], vec![]);
    store.read_batch(&all, &mut features, &mut boxes, &mut mask).map_err(text)?;
    store.read_labels(&all, &mut labels, &mut scores).map_err(text)?;
    store.read_attributes(&all, &mut labels, &mut scores).map_err(text)?;
    assert!([features, boxes, mask, scores].iter().flatten().all(|number| number.is_finite()));
    Ok(())
}

/// A target for one file of a store.
fn of_store(
    root: &Path,
    name: &'static str,
    file: &str,
    words: &'static [&'static str],
    read: impl Fn(&Path) -> Result<(), String> + 'static,
) -> Target {
    let target = target(root, name, file, Vec::new(), words, move |path| read(path.parent().unwrap()));
    store(target.path.parent().unwrap());
    Target { seeds: vec![std::fs::read(&target.path).unwrap()], ..target }
}

pub fn index(root: &Path) -> Target {
    let words = &[
        "\"regions\": 1048576",
        "\"feature_dim\": 1048576",
        "\"images\": 18446744073709551615",
        "../",
        "\"f32\"",
        "bf16",
    ];
    of_store(root, "index", "index.json", words, read_store)
}

/// Words of the headers of a shard and of the table of names.
const HEADER: &[&str] = &[
    "\"dtype\":\"F16\"",
    "\"dtype\":\"U8\"",
    "\"shape\":[",
    "\"data_offsets\":[",
    "features",
    "num_regions",
    "names",
    "order",
    "ends",
    "shard_bytes",
    "\n",
    "U32",
    "U64",
    "U8",
];

pub fn shard(root: &Path) -> Target {
    of_store(root, "shard", "shard-00000.safetensors", HEADER, read_store)
}

pub fn names(root: &Path) -> Target {
    of_store(root, "names", "names.safetensors", HEADER, read_store)
}

pub fn journal(root: &Path) -> Target {
    let target = target(root, "journal", "pending.journal", Vec::new(), &[], |_| Ok(()));
    let folder = target.path.parent().unwrap().to_path_buf();
    let info = store(&folder);
    // A writer that did not finish.
    let mut writer = StoreWriter::open(&folder, info.clone()).unwrap();
    let regions = FeatureStore::open(&folder).unwrap().regions(2).unwrap();
    ["4.jpg", "5.jpg"].iter().for_each(|name| writer.push(name, &regions).unwrap());
    drop(writer);
    let seeds = vec![std::fs::read(&target.path).unwrap()];
    let open = move || StoreWriter::open(&folder, info.clone()).map(drop).map_err(text);
    Target { seeds, read: Box::new(open), ..target }
}

/// A row of bottom-up attention's TSV, in LXMERT's form or Anderson's.
fn row(name: &str, n: usize, lxmerts: bool, wrap: fn(String) -> String) -> String {
    let encode = |bytes: Vec<u8>| wrap(base64::engine::general_purpose::STANDARD.encode(bytes));
    let floats = |count: usize| encode((0..count).flat_map(|i| (i as f32).to_le_bytes()).collect());
    let ids = || encode((0..n).flat_map(|i| (i as i64).to_le_bytes()).collect());
    let boxes = floats(4 * n);
    let features = floats(3 * n);
    match lxmerts {
        true => {
            let (ids, scores) = (ids(), floats(n));
            format!("{name}\t200\t100\t{ids}\t{scores}\t{ids}\t{scores}\t{n}\t{boxes}\t{features}\n")
        }
        false => format!("{name}\t100\t200\t{n}\t{boxes}\t{features}\n"),
    }
}

pub fn tsv(root: &Path) -> Target {
    let plain = |text: String| text;
    let bytes = |text: String| format!("b'{text}'");
    let seeds = [
        row("1", 1, true, plain) + &row("2", 2, true, plain),
        "image_id\timage_w\timage_h\tnum_boxes\tboxes\tfeatures\n".to_string() + &row("1", 2, false, plain),
        row("1", 1, true, bytes),
    ];
    let seeds = seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect();
    let words = &["\t", "\n", "\r\n", "b'", "'", "=", "AAAA", "AADAfw==", "////", "\u{feff}", "img_id\timg_h\timg_w\t"];
    target(root, "tsv", "boxes.tsv", seeds, words, |path| {
        let options = TsvOptions::new(StoreDtype::F32, None, None).map_err(text)?;
        let output = path.with_extension("store");
        let imported = import_tsv(path, &output, &options, false).map_err(text);
        let read = imported.map(drop).and_then(|()| read_store(&output));
        remove(&output);
        read
    })
}
