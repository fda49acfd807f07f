//! The command, from a caption file and a feature store to a checkpoint: a killed and resumed run equals an
//! uninterrupted one; a run folder is deleted only if a new run can start, and has one training at a time; a checkpoint
//! is measured separately.

#[path = "../../lxmert-core/tests/at_once/mod.rs"]
mod at_once;
mod common;

use assert_cmd::Command;
use candle_core::{Device, Tensor};
use lxmert_core::checkpoint::{read_tensors, save_safetensors};
use lxmert_core::features::{FeatureStore, StoreWriter};
use predicates::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A temporary folder with a data set of this many images, and the path of the data set.
fn data(images: usize) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    common::write_data(&data, images);
    (folder, data)
}

fn command(data: &Path, output: &Path) -> Command {
    let mut command = Command::cargo_bin("lxmert-train").unwrap();
    command.args(arguments(data, output));
    command
}

/// A tiny model with dropout and accumulation, to cover everything that a resumed run must get right.
fn arguments(data: &Path, output: &Path) -> Vec<String> {
    let text = format!(
        "--data {} --output {} --preset tiny --dropout 0.1 --batch-size 4 --accumulate 2 --epochs 2 --lr 1e-3 \
         --recall-images 4 --threads 2 --quiet",
        data.display(),
        output.display()
    );
    text.split_whitespace().map(String::from).collect()
}

fn sha256(path: PathBuf) -> String {
    Sha256::digest(std::fs::read(path).unwrap()).iter().map(|b| format!("{b:02x}")).collect()
}

fn weights(run: &Path) -> [String; 2] {
    ["best", "last"].map(|name| sha256(run.join(name).join("model.safetensors")))
}

/// Training records without timings.
fn losses(run: &Path) -> Vec<(u64, f64)> {
    lxmert_train::log::read_records(&run.join("metrics.jsonl"))
        .unwrap()
        .into_iter()
        .map(|record| match record {
            lxmert_train::log::Record::Epoch(e) => (e.step, e.train_loss + e.validation.get("random", "loss").unwrap()),
            lxmert_train::log::Record::Step(s) => (s.step, s.loss),
            lxmert_train::log::Record::Test(t) => (0, t.test.get("random", "loss").unwrap()),
        })
        .collect()
}

#[test]
fn a_stopped_and_killed_run_ends_with_the_weights_of_an_uninterrupted_one() {
    let (folder, data) = data(24);
    let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
    // Quiet: the measures and nothing else.
    let quiet = command(&data, &whole).assert().success().stderr("");
    let printed = String::from_utf8_lossy(&quiet.get_output().stdout).into_owned();
    assert!(printed.contains("| test") && !printed.contains("checkpoint"), "{printed}");

    // Stopped in the middle of the first epoch, as by Ctrl-C: exit code 130.
    command(&data, &broken).args(["--stop-after", "2"]).assert().code(130);
    assert!(!broken.join("report.json").exists());
    // Killed in the second epoch, some time after its first state.
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("lxmert-train"))
        .args(arguments(&data, &broken))
        .args(["--resume", "--save-every", "1"])
        .spawn()
        .unwrap();
    let position = || lxmert_train::resume::position(&broken.join("state.safetensors")).map_or(0, |p| p.step);
    while position() < 7 && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // Garbage after the last saved record, as left by a kill in the middle of a line.
    if broken.join("state.safetensors").exists() {
        use std::io::Write;
        let mut file = std::fs::OpenOptions::new().append(true).open(broken.join("metrics.jsonl")).unwrap();
        file.write_all(b"{\"kind\":\"st").unwrap();
        command(&data, &broken).arg("--resume").assert().success();
    }
    assert_eq!(weights(&whole), weights(&broken));
    assert_eq!(losses(&whole), losses(&broken));
    assert!(!broken.join("state.safetensors").exists());

    // A finished run is left alone; other settings are rejected by name; --overwrite starts again.
    let before = weights(&whole);
    // As if it had been killed after the report and before the state's end.
    std::fs::write(whole.join("state.safetensors"), b"left").unwrap();
    command(&data, &whole).assert().success().stdout(predicate::str::contains("already finished"));
    assert!(!whole.join("state.safetensors").exists());
    command(&data, &whole)
        .args(["--weight-decay", "0.5"])
        .assert()
        .code(1)
        .stderr(predicate::str::contains("weight-decay: the run has 0.01, the command says 0.5"));
    command(&data, &whole).args(["--weight-decay", "0.5", "--overwrite"]).assert().success();
    assert_ne!(before, weights(&whole));

    // The checkpoint, and the files beside it.
    for file in ["config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json", "README.md"] {
        assert!(whole.join("best").join(file).is_file(), "{file}");
    }
    let card = std::fs::read_to_string(whole.join("best/README.md")).unwrap();
    assert!(card.contains("lxmert-train --data") && card.contains("image_to_text"), "{card}");
    assert!(card.contains("lxmert-viz pair --checkpoint .") && card.contains("cls.seq_relationship"), "{card}");
    let table = whole.join("examples.csv");
    let mut evaluate = Command::cargo_bin("lxmert-train").unwrap();
    let output = (evaluate.arg("evaluate").arg(&whole).args(["--json", "--quiet", "--per-example"]).arg(&table))
        .assert()
        .success();
    let measured: serde_json::Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    let report: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(whole.join("report.json")).unwrap()).unwrap();
    assert_eq!(measured["measures"], report["test"]);
    assert_eq!((&measured["precision"], &measured["split"]), (&"f32".into(), &"test".into()));
    let lines = std::fs::read_to_string(&table).unwrap();
    assert!(lines.starts_with("image,sentence,pair,label,probability,right\n"), "{lines}");
    let random: Vec<&str> = lines.lines().filter(|line| !line.contains(",hard,")).skip(1).collect();
    let right = random.iter().filter(|line| line.ends_with(",true")).count() as f64;
    let accuracy = report["test"]["random"]["accuracy"].as_f64().unwrap();
    assert!((right / random.len() as f64 - accuracy).abs() < 1e-9, "{right} of {}, not {accuracy}", random.len());

    // In bf16 it has the same measures from other logits; other precisions are rejected.
    let in_precision = |precision| {
        let mut evaluate = Command::cargo_bin("lxmert-train").unwrap();
        evaluate.arg("evaluate").arg(&whole).arg("--data").arg(&data).args([
            "--json",
            "--quiet",
            "--precision",
            precision,
        ]);
        evaluate.assert()
    };
    let output = in_precision("bf16").success();
    let rounded: serde_json::Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    assert_eq!(rounded["precision"], "bf16");
    let loss = |measured: &serde_json::Value| measured.pointer("/measures/random/loss").unwrap().as_f64().unwrap();
    let difference = (loss(&rounded) - loss(&measured)).abs();
    assert!(difference > 0.0 && difference < 1e-2, "loss {} and {}", loss(&rounded), loss(&measured));
    in_precision("f16").code(2).stderr(predicate::str::contains("f16"));
}

/// Every option that changes how weights move or what is saved, at once.
#[test]
fn frozen_scaled_and_averaged_weights_resume_and_epochs_are_kept() {
    let (folder, data) = data(24);
    let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
    let options = "--freeze lxmert.embeddings.* --lr-scale lxmert.encoder.*=0.5 --lr-scale *.bias=0 --schedule cosine --ema 0.9 \
                   --keep-every 2 --weight-decay 0.5";
    let train =
        |output: &Path, flags: &[&str]| command(&data, output).args(options.split_whitespace()).args(flags).assert();
    train(&whole, &["--name", "frozen"]).success();
    // Stopped in the first epoch and in the second, whose state holds an average that the weights were exchanged with.
    train(&broken, &["--stop-after", "2"]).code(130);
    train(&broken, &["--stop-after", "7"]).code(130);
    train(&broken, &[]).success();
    assert_eq!(weights(&whole), weights(&broken));
    assert_eq!(losses(&whole), losses(&broken));

    // What is frozen or has a rate of 0 is as it was drawn; the rest is not.
    let start = folder.path().join("start");
    train(&start, &["--stop-after", "1"]).code(130);
    let values =
        |path: PathBuf, name: &str| read_tensors(path).unwrap()[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (first, last) = (start.join("state.safetensors"), whole.join("last/model.safetensors"));
    for (name, moves) in [
        ("lxmert.embeddings.word_embeddings.weight", false),
        ("lxmert.embeddings.LayerNorm.bias", false),
        ("lxmert.pooler.dense.bias", false),
        ("lxmert.pooler.dense.weight", true),
    ] {
        let moved = values(first.clone(), &format!("model.{name}")) != values(last.clone(), name);
        assert_eq!(moved, moves, "{name}");
    }
    assert!(whole.join("epoch-2/model.safetensors").is_file() && !whole.join("epoch-1").exists());
    // The state has both the weights and their average.
    let state = read_tensors(first).unwrap();
    assert!(state.contains_key("average.lxmert.pooler.dense.weight"));
    assert!(!state.contains_key("average.lxmert.embeddings.word_embeddings.weight"));

    let report: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(whole.join("report.json")).unwrap()).unwrap();
    assert_eq!((&report["name"], &report["seed"]), (&"frozen".into(), &0.into()));
    for part in ["training", "validation", "test", "retrieval"] {
        assert!(report["seconds"][part].as_f64().unwrap() > 0.0, "{part}: {report}");
    }
    let card = std::fs::read_to_string(whole.join("best/README.md")).unwrap();
    assert!(card.contains("cosine decay") && card.contains("`lxmert.embeddings.*` frozen"), "{card}");
    let events = std::fs::read(whole.join("tensorboard").join(lxmert_train::log::tensorboard::EVENT_FILE)).unwrap();
    let has = |text: &[u8]| events.windows(text.len()).filter(|window| *window == text).count();
    assert_eq!((has(b"_hparams_/session_start_info"), has(b"_hparams_/session_end_info")), (1, 1));

    let mut compare = Command::cargo_bin("lxmert-train").unwrap();
    let compared = compare.arg("compare").args([&whole, &broken]).assert().success();
    let table = String::from_utf8_lossy(&compared.get_output().stdout).into_owned();
    assert!(table.contains("frozen (") && !table.contains("broken ("), "{table}");

    train(&start, &["--overwrite", "--freeze", "lxmert.embedings.*"])
        .code(1)
        .stderr(predicate::str::contains("did you mean 'lxmert.embeddings.*'?"));
    let bad = |flags: &[&str]| command(&data, &start).args(flags).arg("--overwrite").assert();
    bad(&["--schedule", "step"]).code(2).stderr(predicate::str::contains("expected linear, cosine or constant"));
    bad(&["--ema", "1"]).code(1).stderr(predicate::str::contains("--ema 1: must be at least 0 and below 1"));
}

/// Three photos are one to train on, one to validate and one to test.
#[test]
fn a_tiny_test_split_is_counted_and_not_ranked() {
    let (folder, data) = data(3);
    let run = folder.path().join("run");
    let mut arguments = arguments(&data, &run);
    arguments.retain(|argument| argument != "--quiet");
    let trained = Command::cargo_bin("lxmert-train")
        .unwrap()
        .args(&arguments)
        .args(["--metric", "random/loss"])
        .assert()
        .success();
    let (said, printed) = (trained.get_output().stderr.clone(), trained.get_output().stdout.clone());
    let (said, printed) = (String::from_utf8_lossy(&said), String::from_utf8_lossy(&printed));
    assert!(said.contains("test, random pairs: ") && said.contains("says little"), "{said}");
    let prepared = std::fs::read_to_string(run.join("best/preprocessor_config.json")).unwrap();
    assert!(prepared.contains("\"regions\": 2") && prepared.contains("\"min_regions\": 1"), "{prepared}");
    assert!(said.contains("no retrieval") && !printed.contains("recall@1"), "{said}{printed}");
    assert!(printed.contains(" s training, ") && printed.contains("seed 0"), "{printed}");
}

/// COCO and Visual Genome are extracted apart.
#[test]
fn reads_several_stores_as_one_and_refuses_an_image_in_two() {
    let (folder, data) = data(24);
    let whole = FeatureStore::open(data.join("features")).unwrap();
    let halves = ["first", "second"].map(|name| folder.path().join(name));
    for (half, images) in halves.iter().zip([0..12, 12..24]) {
        let mut writer = StoreWriter::open(half, whole.info().clone()).unwrap();
        images.for_each(|i| writer.push(whole.name(i), &whole.regions(i).unwrap()).unwrap());
        writer.finish().unwrap();
    }
    let run = |name: &str, stores: &[&PathBuf]| {
        let output = folder.path().join(name);
        let mut command = command(&data, &output);
        command.args(stores.iter().flat_map(|store| ["--features".as_ref(), store.as_os_str()]));
        (output, command.args(["--stop-after", "4"]).assert())
    };
    let state = |output: &Path| read_tensors(output.join("state.safetensors")).unwrap();
    let (one, assert) = run("one", &[]);
    assert.code(130);
    let (two, assert) = run("two", &[&halves[0], &halves[1]]);
    assert.code(130);
    let (one, two) = (state(&one), state(&two));
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(one.iter().all(|(name, tensor)| values(tensor) == values(&two[name])));
    let (_, assert) = run("twice", &[&halves[0], &data.join("features")]);
    assert
        .code(1)
        .stderr(predicate::str::contains("the image '000.png' is in ").and(predicate::str::contains("first")));
    let (_, assert) = run("missing", &[&halves[0], &folder.path().join("none")]);
    assert.code(1).stderr(predicate::str::contains("none: no feature store here"));
}

/// Pre-training on captions alone (no answers, no attributes) and retrieval.
#[test]
fn pre_training_and_retrieval_resume() {
    let (folder, data) = data(24);
    for task in ["pretraining", "retrieval"] {
        let (whole, broken) = (folder.path().join(task), folder.path().join(format!("{task}-broken")));
        command(&data, &whole).args(["--task", task]).assert().success();
        let card = std::fs::read_to_string(whole.join("best/README.md")).unwrap();
        // The data has neither attributes nor answers.
        assert_eq!(card.contains("Learns words, matching, objects, features;"), task == "pretraining", "{card}");
        command(&data, &broken).args(["--task", task, "--stop-after", "3"]).assert().code(130);
        command(&data, &broken).args(["--task", task, "--resume"]).assert().success();
        assert_eq!(weights(&whole), weights(&broken));
        let report = std::fs::read_to_string(whole.join("report.json")).unwrap();
        assert!(report.contains(if task == "retrieval" { "recall@1" } else { "\"objects\"" }), "{report}");
    }
    // The pre-trained checkpoint starts matching, and its own report is gone, so the two cannot be confused.
    let matching = folder.path().join("matching");
    let init = folder.path().join("pretraining/best");
    command(&data, &matching).args(["--init".as_ref(), init.as_os_str()]).assert().success();
    command(&data, &matching)
        .args(["--recipe", "paper-pretrain", "--task", "matching"])
        .assert()
        .code(1)
        .stderr(predicate::str::contains("--recipe trains pretraining, not the matching of --task"));
}

#[test]
fn an_init_that_does_not_fit_says_what_may_start_fresh() {
    let (folder, data) = data(12);
    let (run, place) = (folder.path().join("run"), folder.path().join("pooler.safetensors"));
    let tensor = |shape: &[usize]| Tensor::full(0.5f32, shape, &Device::Cpu).unwrap();
    let save = |weights: &[(&str, &[usize])]| {
        let weights: Vec<_> = weights.iter().map(|(name, shape)| ((*name).to_string(), tensor(shape))).collect();
        save_safetensors(&place, &weights, &BTreeMap::new()).unwrap();
    };
    // The original's names, and a head of another task.
    let pooler: [(&str, &[usize]); 3] = [
        ("module.bert.pooler.dense.weight", &[128, 128]),
        ("module.bert.pooler.dense.bias", &[128]),
        ("module.answer_head.logit_fc.3.bias", &[7]),
    ];
    save(&pooler);
    let start = |patterns: &[&str]| {
        let mut command = command(&data, &run);
        command.arg("--init").arg(&place).args(["--stop-after", "1"]);
        command.args(patterns.iter().flat_map(|pattern| ["--allow-missing", pattern]));
        command.assert()
    };
    let advice = "--allow-missing 'lxmert.embeddings.LayerNorm.bias'";
    start(&[]).code(1).stderr(predicate::str::contains(" missing (lxmert.").and(predicate::str::contains(advice)));
    start(&["lxmert.encoder.*"]).code(1).stderr(predicate::str::contains(advice));
    start(&["lxmert.encoder.*", "lxmert.embeddings.*"]).code(130);

    save(&[pooler[0], pooler[1], ("bert.unknown.weight", &[1])]);
    std::fs::remove_dir_all(&run).unwrap();
    start(&["lxmert.encoder.*", "lxmert.embeddings.*"])
        .code(1)
        .stderr(predicate::str::contains("1 unexpected (lxmert.unknown.weight)"));
    command(&data, &run).args(["--allow-missing", "*"]).assert().code(2);
}

#[test]
fn errors_name_missing_files_and_say_what_to_do() {
    let (folder, data) = data(12);
    let run = folder.path().join("run");
    command(&data, &run).arg("--resume").assert().code(1).stderr(predicate::str::contains("no unfinished run"));

    let mut captions = std::fs::read_to_string(data.join("results.csv")).unwrap();
    captions.push_str("gone.png| 0| A caption whose image has no features .\n");
    std::fs::write(data.join("results.csv"), captions).unwrap();
    command(&data, &run).assert().code(1).stderr(
        predicate::str::contains("1 of 13 captioned images have no features (first: gone.png)")
            .and(predicate::str::contains("lxmert-extract")),
    );

    std::fs::rename(data.join("features"), data.join("elsewhere")).unwrap();
    command(&data, &run).assert().code(1).stderr(predicate::str::contains("cargo run -p lxmert-extract"));
    command(&data, &run).args(["--epochs", "nine"]).assert().code(2);
}

/// `--resume --output DIR` uses the run's own settings; other options must agree with them.
#[test]
fn resume_rejects_options_that_differ_from_the_run() {
    let (folder, data) = data(12);
    let run = folder.path().join("run");
    command(&data, &run).args(["--seed", "7", "--stop-after", "1"]).assert().code(130);
    let resume = |flags: &[&str]| {
        let mut command = Command::cargo_bin("lxmert-train").unwrap();
        command.args(["--resume", "--stop-after", "2", "--quiet", "--threads", "2", "--output"]).arg(&run).args(flags);
        command.assert()
    };
    for (flags, said) in [
        (["--task", "retrieval"], "--task: the run in"),
        (["--recipe", "paper-vqa"], "trains matching, not questions; leave --recipe out"),
        (["--recipe", "photos"], "batch-size: the run has 4, the command says 32"),
        (["--seed", "8"], "seed: the run has 7, the command says 8"),
        (["--epochs", "9"], "epochs: the run has 2, the command says 9"),
        (["--features", "elsewhere"], "no feature store here"),
        (["--splits", "other.json"], "other.json"),
        (["--data", "nowhere"], "nowhere"),
    ] {
        resume(&flags).code(1).stderr(predicate::str::contains(said));
    }
    resume(&["--epochs", "9"]).stderr(predicate::str::contains("--init").and(predicate::str::contains("run/last")));
    resume(&["--task", "matching", "--seed", "7", "--epochs", "2"]).code(130);
    assert_eq!(lxmert_train::resume::position(&run.join("state.safetensors")).unwrap().step, 2);
}

/// The contents of a folder, file by file.
fn contents(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.append(&mut contents(&path));
        } else if !path.ends_with("run.lock") {
            found.insert(path.clone(), sha256(path));
        }
    }
    found
}

#[test]
fn overwrite_deletes_nothing_before_data_and_init_are_checked() {
    let (folder, data) = data(12);
    let (run, other) = (folder.path().join("run"), folder.path().join("other"));
    command(&data, &run).assert().success();
    let before = contents(&run);
    assert!(before.contains_key(&run.join("report.json")) && before.contains_key(&run.join("best/model.safetensors")));

    // An initial checkpoint inside the folder to be deleted, in every spelling.
    let inside = [run.clone(), run.join("best"), run.join("last/model.safetensors"), other.join("../run/best")];
    std::fs::create_dir(&other).unwrap();
    for init in inside {
        let mut overwrite = command(&data, &run);
        overwrite.arg("--overwrite").arg("--init").arg(init);
        overwrite.assert().code(1).stderr(predicate::str::contains("--overwrite would delete this checkpoint"));
    }
    // A checkpoint that is missing or does not fit; data that cannot be read.
    for (flag, value, said) in [
        ("--init", "nowhere", "nowhere"),
        ("--init", "pooler.safetensors", "missing"),
        ("--splits", "splits.json", "splits.json"),
    ] {
        let weights = [("bert.pooler.dense.bias".to_string(), Tensor::full(0.5f32, 128, &Device::Cpu).unwrap())];
        save_safetensors(folder.path().join("pooler.safetensors"), &weights, &BTreeMap::new()).unwrap();
        std::fs::write(folder.path().join("splits.json"), "{\"train\": 3}").unwrap();
        let mut overwrite = command(&data, &run);
        overwrite.current_dir(folder.path()).args(["--overwrite", flag, value]);
        overwrite.assert().code(1).stderr(predicate::str::contains(said));
    }
    assert_eq!(contents(&run), before);

    // From outside the folder it can start.
    std::fs::rename(run.join("best"), other.join("best")).unwrap();
    let mut overwrite = command(&data, &run);
    overwrite.args(["--overwrite", "--stop-after", "1", "--init"]).arg(other.join("best"));
    overwrite.assert().code(130);
    assert!(!run.join("report.json").exists());
}

#[test]
fn a_second_training_in_a_folder_is_rejected_and_a_killed_one_is_cleaned_up() {
    let (folder, data) = data(24);
    let run = folder.path().join("run");
    let mut arguments = arguments(&data, &run);
    let epochs = arguments.iter().position(|argument| argument == "--epochs").unwrap() + 1;
    arguments[epochs] = "500".into();
    let train = |flags: &[&str]| {
        let mut command = Command::cargo_bin("lxmert-train").unwrap();
        command.args(&arguments).args(flags).assert()
    };
    let mut first =
        std::process::Command::new(assert_cmd::cargo::cargo_bin("lxmert-train")).args(&arguments).spawn().unwrap();
    while !run.join("metrics.jsonl").exists() && first.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let holder = format!("process {} (lxmert-train --data ", first.id());
    for flags in [[].as_slice(), &["--resume"], &["--overwrite"]] {
        train(flags)
            .code(1)
            .stderr(predicate::str::contains(&holder).and(predicate::str::contains("is training here")));
    }
    first.kill().unwrap();
    first.wait().unwrap();
    // Leftovers of a kill in the middle of a write.
    let leftovers =
        [run.join(".state.safetensors.Ab3dE9.unfinished"), run.join("last/.model.safetensors.Ab3dE9.unfinished")];
    std::fs::create_dir_all(run.join("last")).unwrap();
    leftovers.iter().for_each(|path| std::fs::write(path, "half").unwrap());
    // The dead process's lock does not block the folder.
    train(&["--stop-after", "1"]).code(130);
    assert!(leftovers.iter().all(|path| !path.exists()));
}

#[test]
fn features_and_weights_that_are_no_numbers_are_errors() {
    let (folder, data) = data(24);
    let run = folder.path().join("run");
    command(&data, &run).assert().success();
    let evaluate = || {
        let mut evaluate = Command::cargo_bin("lxmert-train").unwrap();
        evaluate.arg("evaluate").arg(&run).arg("--data").arg(&data).args(["--quiet", "--recall-images", "4"]).assert()
    };
    evaluate().success();

    // The features are a shard's first tensor.
    let shard = data.join("features/shard-00000.safetensors");
    let whole = std::fs::read(&shard).unwrap();
    let start = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let said = || predicate::str::contains("shard-00000").and(predicate::str::contains("are NaN or infinite"));
    for value in [f32::NAN, f32::NEG_INFINITY] {
        let mut broken = whole.clone();
        for number in broken[start..start + 24 * 2 * 12 * 4].chunks_exact_mut(4) {
            number.copy_from_slice(&value.to_le_bytes());
        }
        std::fs::write(&shard, broken).unwrap();
        evaluate().code(1).stderr(said());
        command(&data, &folder.path().join("other")).assert().code(1).stderr(said());
    }
    std::fs::write(&shard, whole).unwrap();

    let weights = run.join("best/model.safetensors");
    let good = read_tensors(&weights).unwrap();
    for (value, said) in [(f64::NAN, "are NaN or infinite"), (1e38, "the model's outputs are NaN")] {
        let full = good.iter().map(|(name, tensor)| (name.clone(), ((tensor * 0.0).unwrap() + value).unwrap()));
        save_safetensors(&weights, &full.collect::<Vec<_>>(), &BTreeMap::new()).unwrap();
        evaluate().code(1).stderr(predicate::str::contains(said));
    }
    let nan = vec![("cls.seq_relationship.bias".to_string(), Tensor::full(f32::NAN, 2, &Device::Cpu).unwrap())];
    let start = folder.path().join("nan.safetensors");
    let others =
        good.iter().filter(|(name, _)| *name != &nan[0].0).map(|(name, tensor)| (name.clone(), tensor.clone()));
    save_safetensors(&start, &others.chain(nan.clone()).collect::<Vec<_>>(), &BTreeMap::new()).unwrap();
    let mut init = command(&data, &folder.path().join("third"));
    init.arg("--init")
        .arg(start)
        .assert()
        .code(1)
        .stderr(predicate::str::contains("'cls.seq_relationship.bias' are NaN"));
}

#[test]
fn a_damaged_state_is_refused_and_nothing_of_the_run_is_touched() {
    let (folder, data) = data(12);
    let run = folder.path().join("run");
    command(&data, &run).args(["--stop-after", "2"]).assert().code(130);
    let state = run.join("state.safetensors");
    let mut bytes = std::fs::read(&state).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&state, &bytes).unwrap();
    let before = contents(&run);
    for flags in [[].as_slice(), &["--resume"]] {
        let said = predicate::str::contains("state.safetensors: ").and(predicate::str::contains("the file is damaged"));
        command(&data, &run).args(flags).assert().code(1).stderr(said);
    }
    assert_eq!(contents(&run), before);
    bytes[middle] ^= 1;
    std::fs::write(&state, &bytes).unwrap();
    command(&data, &run).assert().success();
}

#[test]
fn two_commands_at_once_on_one_run_are_right_or_refused() {
    let (folder, data) = data(24);
    let whole = folder.path().join("whole");
    command(&data, &whole).assert().success();
    let (expected, records) = (weights(&whole), losses(&whole));
    let program = || std::process::Command::new(assert_cmd::cargo::cargo_bin("lxmert-train"));
    let train = |run: &Path, flags: &[&str]| {
        let mut command = program();
        command.args(arguments(&data, run)).args(flags);
        command
    };
    let evaluate = |run: &Path| {
        let mut command = program();
        command.arg("evaluate").arg(run).arg("--data").arg(&data).args(["--quiet", "--recall-images", "0"]);
        command.arg("--per-example").arg(folder.path().join("examples.csv"));
        command
    };
    for (round, second) in [[].as_slice(), &["--overwrite"], &["--resume"]].into_iter().enumerate() {
        let run = folder.path().join(format!("run-{round}"));
        // With --resume there may be nothing to resume yet; then it says so.
        if second == ["--resume"] {
            command(&data, &run).args(["--stop-after", "1"]).assert().code(130);
        }
        let [a, b] = at_once::at_once([train(&run, &[]), train(&run, second)]);
        assert!(a || b, "each refused the other");
        command(&data, &run).assert().success();
        assert_eq!((weights(&run), losses(&run)), (expected.clone(), records.clone()), "{second:?}");

        if round > 0 {
            continue;
        }
        // Training again replaces the checkpoint that is being measured; it is the same.
        let [trained, _] = at_once::at_once([train(&run, &["--overwrite"]), evaluate(&run)]);
        assert!(trained);
        let [a, b] = at_once::at_once([evaluate(&run), evaluate(&run)]);
        assert!(a && b);
        let lines = std::fs::read_to_string(folder.path().join("examples.csv")).unwrap();
        assert!(lines.starts_with("image,sentence,pair,") && lines.ends_with('\n'), "{lines}");
    }
}
