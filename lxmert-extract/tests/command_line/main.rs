//! Runs `lxmert-extract` as a user does, with a tiny detector of random weights.

#[path = "../../../lxmert-core/tests/at_once/mod.rs"]
mod at_once;
#[cfg(target_os = "linux")]
#[path = "../../../lxmert-core/tests/faults/mod.rs"]
mod faults;
#[path = "../../../lxmert-core/tests/files/mod.rs"]
mod files;
mod imports;
mod interrupted;
#[path = "../../../lxmert-core/tests/manuals/mod.rs"]
mod manuals;
mod parts;

use assert_cmd::Command;
use base64::Engine;
use candle_core::{DType, Device};
use candle_nn::{VarBuilder, VarMap};
use files::files;
use lxmert_core::checkpoint::{read_tensors, save_safetensors};
use lxmert_core::features::FeatureStore;
use lxmert_extract::detector::{DetectorConfig, Network, NormMode};
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const CONFIG: &str = r#"{
    "transform": {"min_size": 64, "max_size": 96},
    "backbone": {"block": "basic", "stem_width": 4, "blocks": [1, 1, 1, 1], "stage_widths": [4, 4, 4, 4], "batch_norm_eps": 1e-5},
    "fpn": {"channels": 4},
    "rpn": {"pre_nms_top_n": 50, "post_nms_top_n": 20},
    "roi_heads": {"representation_size": 8},
    "label_names": ["background", "cat", "dog"]
}"#;

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// A folder with `images` pictures and a detector.
    fn new(images: u32) -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::create_dir_all(place.at("photos/sub")).unwrap();
        for i in 0..images {
            let picture =
                image::RgbImage::from_fn(64, 48, |x, y| image::Rgb([(x * 3 + i) as u8, (y * 5) as u8, i as u8]));
            picture.save(place.at(&format!("photos/sub/{i:03}.png"))).unwrap();
        }
        std::fs::create_dir(place.at("detector")).unwrap();
        // With the mark that some editors put first.
        std::fs::write(place.at("detector/config.json"), format!("\u{feff}{CONFIG}")).unwrap();
        let config: DetectorConfig = serde_json::from_str(CONFIG).unwrap();
        let weights = VarMap::new();
        let vb = VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu);
        Network::new(&config, NormMode::Batch, vb).unwrap();
        weights.save(place.at("detector/model.safetensors")).unwrap();
        place
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn arguments(&self, images: &str, output: &str) -> Vec<String> {
        let path = |name: &str| self.at(name).display().to_string();
        ["--images", &path(images), "--output", &path(output), "--detector", &path("detector"), "--device", "cpu"]
            .map(String::from)
            .to_vec()
    }

    fn extract(&self, images: &str, output: &str) -> Command {
        let mut command = program();
        command.args(self.arguments(images, output)).args(["--regions", "5"]);
        command
    }

    /// Starts an extraction into `store` and waits until it has written something.
    fn extracting(&self) -> std::process::Child {
        let child = std::process::Command::new(env!("CARGO_BIN_EXE_lxmert-extract"))
            .args(self.arguments("photos", "store"))
            .args(["--regions", "5", "--quiet"])
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let started = Instant::now();
        let journal = self.at("store/pending.journal");
        while std::fs::metadata(&journal).map_or(0, |about| about.len()) == 0 {
            assert!(started.elapsed() < Duration::from_secs(120), "nothing was written");
            std::thread::sleep(Duration::from_millis(1));
        }
        child
    }
}

fn program() -> Command {
    Command::cargo_bin("lxmert-extract").unwrap()
}

#[test]
fn a_folder_becomes_a_store_that_inspect_shows() {
    let place = Place::new(3);
    place.extract("photos", "store").assert().success().stdout(contains("3 of 3 images extracted"));
    let store = FeatureStore::open(place.at("store")).unwrap();
    assert_eq!(store.names().collect::<Vec<_>>(), ["sub/000.png", "sub/001.png", "sub/002.png"]);
    assert_eq!(store.regions(1).unwrap().num_regions(), 5);
    let inspect = |arguments: &[&str]| program().arg("inspect").arg(place.at("store")).args(arguments).assert();
    inspect(&[]).success().stdout(contains("15 in total, up to 5 per image")).stdout(contains("8 × f32"));
    inspect(&["--image", "sub/001.png"]).success().stdout(contains("64 × 48 pixels, 5 regions"));
    let numbered = |number: &str| contains(format!("\n{number:>3}  "));
    inspect(&["--image", "sub/001.png"]).stdout(numbered("1").and(numbered("5")).and(numbered("0").not()));
    let all = inspect(&["--names"]).success().get_output().stdout.clone();
    let all = String::from_utf8(all).unwrap();
    assert_eq!(all.lines().filter(|line| line.starts_with("image\tsub/00")).count(), 3, "{all}");
    let objects: Vec<&str> = all.lines().filter_map(|line| line.strip_prefix("object\t")).collect();
    assert_eq!(objects, store.info().label_names);
    inspect(&["--names", "--image", "sub/001.png"]).code(2);
    inspect(&["--image", "001"]).code(1).stderr(contains("did you mean 'sub/001.png'"));
}

#[test]
fn bad_images_are_listed_skipped_and_retried() {
    let place = Place::new(3);
    std::fs::write(place.at("photos/bad.jpg"), b"no picture").unwrap();
    place.extract("photos", "store").assert().code(1).stdout(contains("3 of 4 images extracted"));
    let failures = std::fs::read_to_string(place.at("store/failures.csv")).unwrap();
    assert!(failures.starts_with("name,reason\nbad.jpg,"), "{failures}");
    std::fs::copy(place.at("photos/sub/000.png"), place.at("photos/bad.jpg")).unwrap();
    place.extract("photos", "store").assert().success().stdout(contains("1 of 4 images extracted"));
    assert!(!place.at("store/failures.csv").exists());
    assert_eq!(FeatureStore::open(place.at("store")).unwrap().len(), 4);
}

#[cfg(target_os = "linux")]
#[test]
fn bad_links_and_names_fail_individually_in_every_run() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new(1);
    for name in [&b"\xfe.png"[..], b"\xff.png"] {
        let photo = place.at("photos").join(std::ffi::OsStr::from_bytes(name));
        std::fs::copy(place.at("photos/sub/000.png"), photo).unwrap();
    }
    std::os::unix::fs::symlink(place.at("photos"), place.at("photos/sub/loop")).unwrap();
    std::os::unix::fs::symlink("nowhere", place.at("photos/dangling.png")).unwrap();
    for extracted in ["2 of 5 images extracted", "0 of 5 images extracted"] {
        place.extract("photos", "store").assert().code(1).stdout(contains(extracted)).stdout(contains("3 failed"));
        let failures = std::fs::read_to_string(place.at("store/failures.csv")).unwrap();
        for reason in ["dangling.png,a dangling link", "sub/loop/,a link back to", "\u{fffd}.png,its name in the store"]
        {
            assert!(failures.contains(reason), "{failures}");
        }
    }
}

#[test]
fn of_two_runs_that_draw_the_same_scenes_one_gets_a_clear_error() {
    let place = Place::new(0);
    let draw = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_lxmert-extract"));
        command.args(["scenes", "--quiet", "--count", "40", "--output"]).arg(place.at("scenes"));
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    let outputs = [draw(), draw()].map(|child| child.wait_with_output().unwrap());
    let refused: Vec<String> = (outputs.iter().filter(|output| !output.status.success()))
        .map(|output| String::from_utf8_lossy(&output.stderr).into_owned())
        .collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    // The second run started either before or after the first had finished.
    let plain = ["another process made this folder", "--overwrite replaces it"];
    assert!(plain.iter().any(|words| refused[0].contains(words)), "{refused:?}");
    assert_eq!(std::fs::read_dir(place.at("scenes/images")).unwrap().count(), 40);
}

#[test]
fn a_decoder_that_panics_fails_one_image_without_a_backtrace() {
    let place = Place::new(1);
    let damaged = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images/damaged-palette.png");
    std::fs::copy(damaged, place.at("photos/damaged.png")).unwrap();
    let run = place.extract("photos", "store").arg("--quiet").env("RUST_BACKTRACE", "1").assert().code(1);
    assert!(run.get_output().stdout.is_empty());
    let said = String::from_utf8(run.get_output().stderr.clone()).unwrap();
    assert!(said.starts_with("1 failed: see ") && said.lines().count() == 1, "{said}");
    let failures = std::fs::read_to_string(place.at("store/failures.csv")).unwrap();
    assert!(failures.contains("damaged.png,the decoder failed; the file is damaged"), "{failures}");
}

#[test]
fn a_detector_whose_numbers_are_none_fails_and_stores_nothing() {
    let place = Place::new(2);
    let weights = place.at("detector/model.safetensors");
    let good = read_tensors(&weights).unwrap();
    let save = |value: f64, which: &str| {
        let changed = good.iter().map(|(name, tensor)| {
            let tensor = if name.contains(which) { ((tensor * 0.0).unwrap() + value).unwrap() } else { tensor.clone() };
            (name.clone(), tensor)
        });
        save_safetensors(&weights, &changed.collect::<Vec<_>>(), &BTreeMap::new()).unwrap();
    };
    save(f64::NAN, "");
    place.extract("photos", "nan").assert().code(1).stderr(contains("are NaN or infinite"));
    assert!(!place.at("nan").exists());
    // Finite weights, but their products are not. The second layer's inputs are ≥ 0, so that its sums are infinite in any
    // order; the first layer's can be -∞, of which the activation makes 0.
    for (store, which, said) in
        [("all", "", "proposals are NaN or infinite"), ("head", "fc7", "features are NaN or infinite")]
    {
        save(3e38, which);
        place.extract("photos", store).assert().code(1).stdout(contains("0 of 2 images extracted"));
        let failures = std::fs::read_to_string(place.at(store).join("failures.csv")).unwrap();
        assert!(failures.contains(said), "{failures}");
    }
}

/// A workspace with one scene, for `extract` without arguments.
fn bare_workspace(place: &Place) -> Command {
    std::fs::create_dir_all(place.at("data/scenes/images")).unwrap();
    std::fs::write(place.at("data/README.md"), "").unwrap();
    std::fs::copy(place.at("photos/sub/000.png"), place.at("data/scenes/images/00000.png")).unwrap();
    let mut command = program();
    command.current_dir(place.folder.path()).args(["--device", "cpu"]);
    command
}

#[test]
fn the_bare_command_deletes_nothing() {
    let place = Place::new(1);
    let mut bare = bare_workspace(&place);
    bare.assert().success().stdout(contains("1 of 1 images extracted"));
    let store = place.at("data/features/scenes");
    std::fs::write(store.join("notes.txt"), "mine").unwrap();
    // As if another detector had made the store.
    let index = std::fs::read_to_string(store.join("index.json")).unwrap();
    std::fs::write(store.join("index.json"), index.replace("\"scenes\"", "\"other\"")).unwrap();
    let before = files(&store);
    bare.assert().code(1).stderr(contains("detector: other there, scenes now"));
    assert_eq!(files(&store), before);
}

#[test]
fn rejects_other_settings_for_the_same_folder() {
    let place = Place::new(1);
    place.extract("photos", "store").assert().success();
    let refused = place.extract("photos", "store").args(["--dtype", "f16"]).assert();
    refused.code(1).stderr(contains("dtype: f32 there, f16 now"));
}

#[test]
fn grid_and_cells_are_other_sources_of_regions() {
    let place = Place::new(2);
    let extract = |output: &str, regions: &str| {
        program().args(place.arguments("photos", output)).args(["--regions", regions]).assert()
    };
    extract("grid", "grid:2").success();
    let store = FeatureStore::open(place.at("grid")).unwrap();
    let regions = store.regions(1).unwrap();
    assert_eq!(regions.boxes[..2], [[0.0, 0.0, 0.5, 0.5], [0.5, 0.0, 1.0, 0.5]]);
    assert_eq!((regions.num_regions(), regions.feature_dim), (4, 8));
    assert!(regions.labels.iter().all(|label| [1, 2].contains(label)));
    extract("grid", "grid:3").code(1).stderr(contains("select: grid:2 there, grid:3 now"));
    extract("cells", "cells").success();
    let store = FeatureStore::open(place.at("cells")).unwrap();
    // The last map of a 64 × 85 input has 2 × 3 cells with the last stage's width.
    assert_eq!((store.regions(0).unwrap().num_regions(), store.info().feature_dim), (6, 4));
    for wrong in ["grid:0", "grid:x", "cells:99", "1001", "7x", "0x7"] {
        extract("none", wrong).code(2).stderr(contains("grid:N"));
    }
    extract("none", "7x7").code(1).stderr(contains("not that of DINOv2"));
    let mut both = program();
    both.args(place.arguments("photos", "none")).args(["--regions", "grid:2", "--select", "student"]);
    both.assert().code(1).stderr(contains("--select chooses among detections"));
}

#[test]
fn bf16_is_recorded_in_the_stores_settings() {
    let place = Place::new(2);
    place.extract("photos", "store").args(["--precision", "bf16"]).assert().success();
    let store = FeatureStore::open(place.at("store")).unwrap();
    assert_eq!(store.info().settings["precision"], "bf16");
    let in_f32 = place.extract("photos", "store").assert().failure();
    in_f32.stderr(contains("precision: bf16 there, not set now"));
    place.extract("photos", "other").args(["--precision", "f16"]).assert().code(2).stderr(contains("f32 or bf16"));
}

#[test]
fn wrong_paths_and_arguments_are_explained() {
    let place = Place::new(0);
    place.extract("photos", "store").assert().code(1).stderr(contains("no images here"));
    place.extract("nowhere", "store").assert().code(1).stderr(contains("nowhere"));
    assert!(!place.at("store").exists());
    program().args(["--regions", "0"]).assert().code(2);
    program().args(["--dtype", "f64"]).assert().code(2).stderr(contains("possible values: f32, f16, bf16"));
    program().args(["--detector", "yolo"]).assert().code(2).stderr(contains("yolo"));
    program().args(["inspect", "/nowhere"]).assert().code(1).stderr(contains("not a feature store"));
}

/// Tensors of every image of two stores are equal to the bit.
fn assert_same_images(a: &Path, b: &Path) {
    let (a, b) = (FeatureStore::open(a).unwrap(), FeatureStore::open(b).unwrap());
    assert!(a.names().eq(b.names()) && a.info() == b.info());
    for image in 0..a.len() {
        let (a, b) = (a.regions(image).unwrap(), b.regions(image).unwrap());
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!((bits(&a.features), bits(&a.boxes.concat())), (bits(&b.features), bits(&b.boxes.concat())));
        assert_eq!(a, b);
    }
}

#[test]
fn completions_and_manual_pages_are_those_of_the_program() {
    manuals::check("lxmert-extract", "inspect", "--image");
}
