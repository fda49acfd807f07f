//! Runs `lxmert-extract` as a user does, with a tiny detector of random weights.

#[path = "../../lxmert-core/tests/at_once/mod.rs"]
mod at_once;
#[cfg(target_os = "linux")]
#[path = "../../lxmert-core/tests/faults/mod.rs"]
mod faults;
#[path = "../../lxmert-core/tests/manuals/mod.rs"]
mod manuals;

use assert_cmd::Command;
use base64::Engine;
use candle_core::{DType, Device};
use candle_nn::{VarBuilder, VarMap};
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
fn a_killed_extraction_resumes_to_the_same_bytes() {
    let place = Place::new(120);
    let mut child = place.extracting();
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success(), "the extraction finished before the kill");
    place.extract("photos", "store").assert().success();
    place.extract("photos", "whole").assert().success().stdout(contains("120 of 120 images extracted"));
    assert_eq!(files(&place.at("store")), files(&place.at("whole")));
    place.extract("photos", "store").assert().success().stdout(contains("0 of 120 images extracted"));
}

#[cfg(unix)]
#[test]
fn ctrl_c_exits_130_with_a_complete_store_that_the_next_run_continues() {
    let place = Place::new(400);
    let mut child = place.extracting();
    // Two signals at once, as from a wrapper that forwards what the terminal sent to both.
    for _ in 0..2 {
        assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    }
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!place.at("store/pending.journal").exists(), "the store is not finished");
    let before = FeatureStore::open(place.at("store")).unwrap().len();
    assert!((1..400).contains(&before), "{before}");
    let again = place.extract("photos", "store").assert().success();
    again.stdout(contains(format!("{} of 400 images extracted", 400 - before)));
    let store = FeatureStore::open(place.at("store")).unwrap();
    assert_eq!((store.len(), store.is_unfinished()), (400, false));
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
fn parts_merge_into_the_store_of_a_single_run() {
    let place = Place::new(7);
    std::fs::write(place.at("photos/bad.jpg"), b"no picture").unwrap();
    place.extract("photos", "single").arg("--quiet").assert().code(1);
    let part = |part: &str| {
        let mut command = place.extract("photos", "store");
        command.args(["--part", part]);
        command
    };
    // As a Slurm array's task and as an MPI rank; the bad image is the first part's.
    let auto = |variables: &[(&str, &str)]| part("auto").envs(variables.iter().copied()).assert();
    let slurm = [("ID", "1"), ("MIN", "1"), ("MAX", "3"), ("COUNT", "3")];
    let slurm = slurm.map(|(name, value)| (format!("SLURM_ARRAY_TASK_{name}"), value));
    let slurm: Vec<(&str, &str)> = slurm.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    auto(&slurm).code(1).stdout(contains("1 of 2 images extracted")).stdout(contains("part-00001-of-00003"));
    auto(&[("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "3")]).success();
    part("auto").assert().code(1).stderr(contains("name it as K/N"));
    part("4/3").assert().code(2).stderr(contains("K from 1 to N"));
    part("1/2").assert().code(1).stderr(contains("holds part 1/3"));

    let merge = || program().arg("merge").arg(place.at("store")).assert();
    merge().code(1).stderr(contains("lacks 1 part (3/3); extract with --part 3/3"));
    program().arg("inspect").arg(place.at("store")).assert().code(1).stderr(contains("holds 2 of 3 parts"));
    part("3/3").assert().success();
    place.extract("photos", "store").assert().code(1).stderr(contains("run `lxmert-extract merge"));
    merge().code(1).stdout(contains("merged 3 parts; 7 images")).stderr(contains("1 failed: see"));
    assert_same_images(&place.at("store"), &place.at("single"));
    let failures = |store: &str| std::fs::read_to_string(place.at(store).join("failures.csv")).unwrap();
    assert_eq!(failures("store"), failures("single"));
    merge().code(1).stdout(contains("one store already"));
    // What failed is tried again, as in any store.
    std::fs::copy(place.at("photos/sub/000.png"), place.at("photos/bad.jpg")).unwrap();
    place.extract("photos", "store").assert().success().stdout(contains("1 of 8 images extracted"));
    merge().success();
}

#[cfg(unix)]
#[test]
fn a_part_has_one_process_at_a_time_and_a_killed_one_is_taken_up_by_the_next() {
    let place = Place::new(120);
    place.extract("photos", "whole").assert().success();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_lxmert-extract"))
        .args(place.arguments("photos", "store"))
        .args(["--regions", "5", "--quiet", "--part", "1/2"])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let journal = place.at("store/part-00001-of-00002/pending.journal");
    let started = Instant::now();
    while std::fs::metadata(&journal).map_or(0, |about| about.len()) == 0 {
        assert!(started.elapsed() < Duration::from_secs(120), "nothing was written");
        std::thread::sleep(Duration::from_millis(1));
    }
    // It stands still in the middle of its work, so that it is there however long the others take.
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-STOP", &id]).status().unwrap().success());
    let part = |part: &str| place.extract("photos", "store").args(["--part", part, "--quiet"]).assert();
    let holder = format!("another process is writing to this store: process {}", child.id());
    part("1/2").code(1).stderr(contains(holder).and(contains("(lxmert-extract --images")));
    part("2/2").success();
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success(), "it ended before it was killed");
    let merge = || program().arg("merge").arg(place.at("store")).assert();
    merge().code(1).stderr(contains("part 1/2 was not finished"));
    part("1/2").success();
    merge().success();
    assert_same_images(&place.at("store"), &place.at("whole"));
}

/// The first of the synonyms on a line of the vocabularies that ship.
const NAME_7: &str = "ceiling fan";
const NAME_1599: &str = "buoy";
const NAME_0: &str = "gray";
const NAME_399: &str = "leaning";

/// A row of LXMERT's form with `n` boxes.
fn tsv_line(name: &str, seed: u8, n: usize) -> String {
    let encode = |bytes: Vec<u8>| base64::engine::general_purpose::STANDARD.encode(bytes);
    let floats = |values: Vec<f32>| encode(values.iter().flat_map(|v| v.to_le_bytes()).collect());
    let ids = |values: Vec<i64>| encode(values.iter().flat_map(|v| v.to_le_bytes()).collect());
    let boxes = floats([0.0, 0.0, 50.0, 100.0, 25.0, 10.0, 100.0, 200.0].into_iter().cycle().take(4 * n).collect());
    let features = floats((0..3 * n).map(|i| f32::from(seed) + i as f32).collect());
    let ids = |first, last| ids((0..n).map(|i| if i == 0 { first } else { last }).collect());
    let (objects, attributes, scores) = (ids(7, 1599), ids(0, 399), floats(vec![0.9; n]));
    format!("{name}\t200\t100\t{objects}\t{scores}\t{attributes}\t{scores}\t{n}\t{boxes}\t{features}\n")
}

#[test]
fn imports_bottom_up_features_with_any_number_of_boxes() {
    let place = Place::new(0);
    let import = || {
        let mut command = program();
        command.args(["import", "bottom-up"]).arg(place.at("a.tsv")).arg("--output").arg(place.at("store"));
        command
    };
    std::fs::write(place.at("a.tsv"), tsv_line("one", 1, 3) + &tsv_line("two", 2, 2) + &tsv_line("five", 3, 5))
        .unwrap();
    import().assert().success().stdout(contains("3 of 3 images imported"));
    let store = FeatureStore::open(place.at("store")).unwrap();
    let counts: Vec<usize> = (0..3).map(|i| store.num_regions(i).unwrap()).collect();
    assert_eq!((counts, store.info().regions), (vec![3, 2, 5], 5));
    let regions = store.regions(1).unwrap();
    assert_eq!((regions.image_width, regions.image_height), (100, 200));
    assert_eq!(regions.boxes, [[0.0, 0.0, 0.5, 0.5], [0.25, 0.05, 1.0, 1.0]]);
    assert_eq!((regions.features[0], regions.labels[1], regions.scores[0]), (2.0, 1599, 0.9));
    assert_eq!(regions.attributes.unwrap().labels, [0, 399]);
    // Without files of names, Visual Genome's: the vocabularies' lines 8 and 1600, and 1 and 400.
    let inspect = program().arg("inspect").arg(place.at("store")).args(["--image", "two"]).assert().success();
    inspect.stdout(contains(format!(" {NAME_0} {NAME_7} ")).and(contains(format!(" {NAME_399} {NAME_1599} "))));
    // A second file, of images with fewer boxes, is added to the same store.
    std::fs::write(place.at("a.tsv"), tsv_line("six", 6, 1)).unwrap();
    import().assert().success().stdout(contains("4 images"));

    let names = |count: usize| "gray,grey\n".repeat(count - 1) + "tall";
    std::fs::write(place.at("objects"), names(1600)).unwrap();
    std::fs::write(place.at("attributes"), names(400)).unwrap();
    let mut named = import();
    named.arg("--objects").arg(place.at("objects")).arg("--attributes").arg(place.at("attributes"));
    named.assert().code(1).stderr(contains("label names"));
    std::fs::remove_dir_all(place.at("store")).unwrap();
    std::fs::write(place.at("a.tsv"), tsv_line("one", 1, 3)).unwrap();
    named.assert().success();
    let inspect = program().arg("inspect").arg(place.at("store")).args(["--image", "one"]).assert();
    inspect.success().stdout(contains(" gray gray ")).stdout(contains(" tall tall "));
}

#[test]
fn bad_rows_of_a_tsv_are_listed_and_the_others_imported() {
    let place = Place::new(0);
    let import = |file: &str, store: &str| {
        let mut command = program();
        command.args(["import", "bottom-up"]).arg(place.at(file)).arg("--output").arg(place.at(store)).assert()
    };
    let good = tsv_line("good", 1, 2);
    let cut = &tsv_line("cut", 5, 2)[..60];
    let damaged = tsv_line("damaged", 3, 2).replace("\t2\t", "\t4000000000\t");
    let text = [&good, "two\t1\t2\n", &damaged, &good, &tsv_line("last", 4, 3), cut].concat();
    std::fs::write(place.at("a.tsv"), &text).unwrap();
    let failed = [
        "two,\"row 2: 3 columns",
        "damaged,\"row 3: boxes has 32 bytes",
        "good,another record has an image of this name",
        "cut,\"row 6: ",
    ];
    for extracted in ["2 of 6", "0 of 6"] {
        import("a.tsv", "store").code(1).stdout(contains(extracted)).stdout(contains("4 failed"));
        let failures = std::fs::read_to_string(place.at("store/failures.csv")).unwrap();
        for start in failed {
            assert!(failures.contains(start) || failures.contains(&start.replace('"', "")), "{start}: {failures}");
        }
    }
    let store = FeatureStore::open(place.at("store")).unwrap();
    assert_eq!((store.names().collect::<Vec<_>>(), store.info().regions), (vec!["good", "last"], 3));
    let numbers = |value: f32| [value.to_le_bytes(); 6].concat();
    let encode = |value| base64::engine::general_purpose::STANDARD.encode(numbers(value));
    let line = tsv_line("nan", 1, 2);
    let (rest, _) = line.rsplit_once('\t').unwrap();
    std::fs::write(place.at("nan.tsv"), format!("{good}{rest}\t{}\n", encode(f32::NAN))).unwrap();
    import("nan.tsv", "nan").code(1).stdout(contains("1 of 2"));
    let failures = std::fs::read_to_string(place.at("nan/failures.csv")).unwrap();
    assert!(failures.contains("feature value NaN"), "{failures}");
    std::fs::write(place.at("none.tsv"), "a\tb\n").unwrap();
    import("none.tsv", "none").code(1).stderr(contains("none of its 1 rows can be read; the first: row 1: 2 columns"));
    assert!(!place.at("none").exists());
}

#[test]
fn bottom_up_features_are_imported_in_parts() {
    let place = Place::new(0);
    let line = |i: u8| tsv_line(&format!("image {i}"), i, usize::from(i) + 1);
    // The last row gives an image that another part has.
    std::fs::write(place.at("a.tsv"), (0..5).map(line).collect::<String>() + &line(1)).unwrap();
    let import = |output: &str, part: &[&str]| {
        let mut command = program();
        command.args(["import", "bottom-up"]).arg(place.at("a.tsv")).arg("--output").arg(place.at(output)).args(part);
        command.assert()
    };
    import("single", &[]).code(1).stdout(contains("5 of 6 images imported"));
    import("store", &["--part", "1/2"]).success().stdout(contains("3 of 3 images imported"));
    import("store", &["--part", "2/2"]).code(1).stdout(contains("2 of 3 images imported"));
    program().arg("merge").arg(place.at("store")).assert().code(1).stdout(contains("merged 2 parts; 5 images"));
    assert_same_images(&place.at("store"), &place.at("single"));
}

#[test]
fn reads_andersons_columns_and_python_3s_bytes() {
    let place = Place::new(0);
    let line = tsv_line("x", 2, 2);
    let columns: Vec<&str> = line.trim_end().split('\t').collect();
    let six = ["image_id\timage_w\timage_h\tnum_boxes\tboxes\tfeatures".to_string(), {
        [columns[0], columns[2], columns[1], columns[7], columns[8], columns[9]].join("\t")
    }];
    let is_array = |i: usize| !matches!(i, 0..=2 | 7);
    let bytes = |(i, text): (usize, &&str)| if is_array(i) { format!("b'{text}'") } else { text.to_string() };
    let bytes: Vec<String> = columns.iter().enumerate().map(bytes).collect();
    for (file, text) in [("six.tsv", six.join("\r\n")), ("bytes.tsv", bytes.join("\t"))] {
        std::fs::write(place.at(file), text).unwrap();
        let store = place.at(file).with_extension("store");
        program().args(["import", "bottom-up"]).arg(place.at(file)).arg("--output").arg(&store).assert().success();
        let store = FeatureStore::open(store).unwrap();
        let regions = store.regions(0).unwrap();
        assert_eq!((regions.image_width, regions.image_height, regions.boxes[1][2]), (100, 200, 1.0), "{file}");
        assert_eq!(regions.features, [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        if file == "six.tsv" {
            assert_eq!(
                (store.info().label_names[0].as_str(), regions.labels, regions.attributes),
                ("region", vec![0, 0], None)
            );
        }
    }
}

#[test]
fn imports_the_student_projects_files_without_padding() {
    let place = Place::new(0);
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/student_pt");
    for (name, bytes) in files(&fixtures) {
        std::fs::write(place.at("photos").join(name), bytes).unwrap();
    }
    let import = || {
        let mut command = program();
        command.args(["import", "student"]).arg(place.at("photos")).arg("--output").arg(place.at("store"));
        command
    };
    import().assert().success().stdout(contains("3 of 3 images imported"));
    let store = FeatureStore::open(place.at("store")).unwrap();
    assert_eq!(store.names().collect::<Vec<_>>(), ["1000092795.jpg", "10002456.jpg", "1000268201.jpg"]);
    assert_eq!((store.info().regions, store.info().feature_dim), (4, 6));
    let regions = |i| store.regions(i).unwrap();
    let boxes = [[0.0, 0.0, 0.5, 1.0], [0.25, 0.125, 0.75, 0.5], [0.0, 0.5, 1.0, 1.0], [0.5, 0.5, 1.0, 1.0]];
    for (i, real) in [4, 2, 3].into_iter().enumerate() {
        assert_eq!(regions(i).boxes, boxes[..real]);
    }
    let counted = |from: u32, n: u32| (from..from + n).map(|v| v as f32).collect::<Vec<_>>();
    assert_eq!(regions(0).features, counted(0, 24));
    assert_eq!(regions(1).features, counted(100, 12));
    assert_eq!(regions(2).features, counted(200, 18));
    let inspect = program().arg("inspect").arg(place.at("store")).args(["--image", "10002456.jpg"]).assert();
    inspect.success().stdout(contains("size unknown, 2 regions")).stdout(contains("0.2500  0.1250  0.7500  0.5000"));

    // A truncated file is listed and skipped, and imported once it is complete; existing images stay.
    let whole = std::fs::read(place.at("photos/1000092795.pt")).unwrap();
    std::fs::write(place.at("photos/late.pt"), &whole[..whole.len() / 2]).unwrap();
    std::fs::write(place.at("photos/1000092795.jpg.pt"), &whole).unwrap();
    import().assert().code(1).stdout(contains("0 of 5 images imported")).stdout(contains("3 already there, 2 failed"));
    let failures = std::fs::read_to_string(place.at("store/failures.csv")).unwrap();
    assert!(failures.contains("late.jpg,") && failures.contains("1000092795.jpg,another record"), "{failures}");
    std::fs::write(place.at("photos/late.pt"), &whole).unwrap();
    std::fs::remove_file(place.at("photos/1000092795.jpg.pt")).unwrap();
    import().assert().success().stdout(contains("1 of 4 images imported"));
    assert!(!place.at("store/failures.csv").exists());

    std::fs::create_dir(place.at("empty")).unwrap();
    let nothing = program().args(["import", "student"]).arg(place.at("empty")).args(["--output", "x"]).assert();
    nothing.code(1).stderr(contains("no .pt files here"));
}

#[cfg(target_os = "linux")]
#[test]
fn extraction_import_and_merge_whose_file_operations_fail_end_with_the_same_store() {
    let Some(faults) = faults::Faults::build() else { return };
    let place = Place::new(3);
    let tsv = place.at("boxes.tsv");
    std::fs::write(&tsv, (0..3).map(|i| tsv_line(&format!("{i:03}"), i, 2)).collect::<String>()).unwrap();
    let content = |path: &Path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        (name != "store.lock").then(|| std::fs::read(path).unwrap())
    };
    let program = || std::process::Command::new(env!("CARGO_BIN_EXE_lxmert-extract"));
    let extract = |folder: &Path| {
        let mut command = program();
        let output = folder.join("store");
        command.args(place.arguments("photos", output.to_str().unwrap()));
        command.args(["--regions", "5", "--quiet", "--threads", "1"]);
        command
    };
    faults.try_all(|_| {}, extract, content);
    let import = |folder: &Path| {
        let mut command = program();
        command.args(["import", "bottom-up", "--quiet"]).arg(&tsv).arg("--output").arg(folder.join("store"));
        command
    };
    faults.try_all(|_| {}, import, content);

    for part in ["1/2", "2/2"] {
        place.extract("photos", "parts").args(["--quiet", "--part", part]).assert().success();
    }
    let copy_parts = |folder: &Path| {
        for part in ["part-00001-of-00002", "part-00002-of-00002"] {
            let to = folder.join("store").join(part);
            std::fs::create_dir_all(&to).unwrap();
            for (name, bytes) in files(&place.at("parts").join(part)) {
                std::fs::write(to.join(name), bytes).unwrap();
            }
        }
    };
    let merge = |folder: &Path| {
        let mut command = program();
        command.args(["merge", "--quiet"]).arg(folder.join("store"));
        command
    };
    faults.try_all(copy_parts, merge, content);
}

#[test]
fn two_commands_at_once_on_one_store_are_right_or_refused() {
    let place = Place::new(8);
    let tsv = place.at("boxes.tsv");
    std::fs::write(&tsv, (0..8).map(|i| tsv_line(&format!("{i:03}"), i, 2)).collect::<String>()).unwrap();
    let program = || std::process::Command::new(env!("CARGO_BIN_EXE_lxmert-extract"));
    let extract = |store: &str, more: &[&str]| {
        let mut command = program();
        command.args(place.arguments("photos", store)).args(["--regions", "5", "--quiet"]).args(more);
        command
    };
    let import = |store: &str| {
        let mut command = program();
        command.args(["import", "bottom-up", "--quiet"]).arg(&tsv).arg("--output").arg(place.at(store));
        command
    };
    let merge = |store: &str| {
        let mut command = program();
        command.args(["merge", "--quiet"]).arg(place.at(store));
        command
    };
    let inspect = |store: &str| {
        let mut command = program();
        command.arg("inspect").arg(place.at(store));
        command
    };
    let done = |mut command: std::process::Command| {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    done(extract("extracted", &[]));
    done(import("imported"));
    let is_whole = |store: &str, expected: &str| assert_same_images(&place.at(store), &place.at(expected));

    for round in 0..4 {
        let name = |kind: &str| format!("{kind}-{round}");
        let store = name("extract-extract");
        let [a, b] = at_once::at_once([extract(&store, &[]), extract(&store, &[])]);
        assert!(a || b, "each refused the other");
        done(extract(&store, &[]));
        is_whole(&store, "extracted");

        let store = name("extract-import");
        let [extracted, imported] = at_once::at_once([extract(&store, &[]), import(&store)]);
        assert!(!(extracted && imported), "one store holds both");
        match imported {
            true => is_whole(&store, "imported"),
            false => {
                done(extract(&store, &[]));
                is_whole(&store, "extracted");
            }
        }

        let store = name("import-inspect");
        assert!(at_once::at_once([import(&store), inspect(&store)])[0]);
        is_whole(&store, "imported");

        let store = name("extract-merge");
        done(extract(&store, &["--part", "1/2"]));
        let [_, merged] = at_once::at_once([extract(&store, &["--part", "2/2"]), merge(&store)]);
        if !merged {
            done(extract(&store, &["--part", "2/2"]));
            done(merge(&store));
        }
        is_whole(&store, "extracted");

        let store = name("merge-merge");
        done(extract(&store, &["--part", "1/2"]));
        done(extract(&store, &["--part", "2/2"]));
        let [a, b] = at_once::at_once([merge(&store), merge(&store)]);
        assert!(a || b, "each refused the other");
        done(merge(&store));
        is_whole(&store, "extracted");
    }

    let draw = || {
        let mut command = program();
        command.args(["scenes", "--quiet", "--overwrite", "--count", "40", "--output"]).arg(place.at("scenes"));
        command
    };
    for _ in 0..3 {
        let [a, b] = at_once::at_once([draw(), draw()]);
        assert!(a || b, "each refused the other");
        assert_eq!(std::fs::read_dir(place.at("scenes/images")).unwrap().count(), 40);
    }
    let hidden = std::fs::read_dir(place.folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(hidden.filter(|name| name.to_string_lossy().starts_with('.')).count(), 0, "drafts are left");
}

#[test]
fn completions_and_manual_pages_are_those_of_the_program() {
    manuals::check("lxmert-extract", "inspect", "--image");
}
