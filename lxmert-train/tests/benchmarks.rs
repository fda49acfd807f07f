//! Questions, statements, entailment and referring expressions, from files and a feature store to predictions: a model
//! learns what the features show, and its checkpoint answers questions and initialises another task.

mod common;
#[path = "../../lxmert-core/tests/loopback/mod.rs"]
mod loopback;
#[path = "../../lxmert-core/tests/manuals/mod.rs"]
mod manuals;

use assert_cmd::Command;
use candle_core::{Device, Tensor};
use lxmert_core::answering::Answerer;
use lxmert_core::checkpoint::{read_tensors, save_safetensors};
use lxmert_core::config::LxmertConfig;
use lxmert_core::features::FeatureStore;
use lxmert_core::model::{AnswerModel, LxmertInputs, LxmertModel, PairModel, Pass};
use lxmert_core::pretrained::Pretrained;
use lxmert_core::procedural;
use lxmert_extract::finder::{Finder, FinderArgs};
use lxmert_extract::images::decode_file;
use lxmert_extract::scenes::{Scene, ScenesConfig, draw::draw};
use lxmert_train::data::paths::{Data, ExamplePaths};
use lxmert_train::job::{Job, Start};
use lxmert_train::recipe::Recipe;
use lxmert_train::tasks::registry;
use lxmert_train::trainer::Outcome;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

const COLOURS: [&str; 4] = ["red", "green", "blue", "yellow"];
const SHAPES: [&str; 4] = ["circle", "square", "star", "cross"];

fn write(path: &Path, value: &Value) -> Vec<PathBuf> {
    std::fs::write(path, value.to_string()).unwrap();
    vec![path.to_path_buf()]
}

/// Two questions about each of the images of [`common::write_data`], with answers if `labelled`.
fn questions(images: std::ops::Range<usize>, labelled: bool) -> Value {
    let entry = |id: usize, image: usize, sent: &str, answer: &str| {
        let mut entry =
            json!({"question_id": id, "img_id": format!("{image:03}"), "sent": sent, "answer_type": "other"});
        if labelled {
            entry["label"] = json!({ answer: 1.0 });
        }
        entry
    };
    let of = |image: usize| {
        [
            entry(2 * image, image, "What color is it?", COLOURS[image % 4]),
            entry(2 * image + 1, image, "What shape is it?", SHAPES[image / 4 % 4]),
        ]
    };
    images.flat_map(of).collect()
}

fn job(folder: &Path, task: &str, data: ExamplePaths, output: &str) -> Job {
    let recipe = Recipe {
        task: task.into(),
        config: Some("tiny".into()),
        batch_size: 16,
        epochs: 6,
        metric: "all/accuracy".into(),
        ..Recipe::scenes()
    };
    Job {
        recipe,
        data: Data::Examples(ExamplePaths { name: "test".into(), features: folder.join("features").into(), ..data }),
        output: folder.join(output),
        name: None,
        device: Device::Cpu,
        start: Start::Auto,
        allow_missing_images: false,
        save_every_steps: 1000,
        save_every: Duration::from_secs(600),
        stop_after: None,
        show_progress: false,
        command: "a test".into(),
    }
}

fn run(job: &Job) -> lxmert_train::run_folder::Report {
    match registry::train(job).unwrap() {
        Outcome::Finished(report) => report,
        Outcome::AlreadyFinished(_) => panic!("the run was there before"),
    }
}

/// What `ask --json` prints about image 090 of the store.
fn asked_json(root: &Path) {
    let mut command = Command::cargo_bin("lxmert-train").unwrap();
    command.args(["ask", "--json", "--image", "090", "--question", "What color is it?", "--checkpoint"]);
    command.arg(root.join("run")).arg("--regions-from").arg(root.join("features"));
    let asked: Value = serde_json::from_slice(&command.assert().success().get_output().stdout).unwrap();
    assert_eq!(asked.pointer("/0/answers/0/answer"), Some(&json!("blue")), "{asked}");
    // The colour stands in the features of both regions.
    let fall = asked.pointer("/0/rests_on/0/logit_falls_by").and_then(Value::as_f64);
    assert!(fall.is_some_and(|fall| fall > 0.1), "{asked}");
}

/// The checkpoint of `root/run` named as a repository of the hub: asked, measured and started from. `printed`: what it
/// answers when it is asked from its folder.
fn from_the_hub(root: &Path, printed: &str) {
    let endpoint = loopback::serve_folder(&root.join("run/best"));
    let command = |arguments: &[&str]| {
        let mut command = Command::cargo_bin("lxmert-train").unwrap();
        command.env("HF_ENDPOINT", &endpoint).env("HF_HUB_CACHE", root.join("cache")).env("HF_TOKEN", "hf_test");
        command.args(arguments).arg("--features").arg(root.join("features")).arg("--quiet").current_dir(root);
        command.assert()
    };
    let question = ["--image", "090", "--question", "What color is it?", "--top", "2"];
    let asked = command(&[["ask", "--checkpoint", "hf:owner/repo@v1"].as_slice(), &question].concat()).success();
    assert_eq!(String::from_utf8_lossy(&asked.get_output().stdout), printed);
    let measured = ["evaluate", "hf:owner/repo", "--task", "questions", "--test-file", "valid.json", "--json"];
    command(&measured).success().stdout(predicates::str::contains("\"accuracy\""));
    let files = ["--train-file", "train.json", "--valid-file", "valid.json", "--answers", "answers.json"];
    let start = ["--task", "questions", "--init", "hf:owner/repo", "--stop-after", "1"];
    command(&[start.as_slice(), &files, &["--output", "again"]].concat()).code(130);
    let wrong = ["ask", "--checkpoint", "hf:owner/other", "--image", "090", "--question", "What color is it?"];
    command(&wrong).code(1).stderr(predicates::str::contains("hf:owner/other"));
}

#[test]
fn learns_questions_and_answers_them_from_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    common::write_data(root, 96);
    let answers = root.join("answers.json");
    std::fs::write(&answers, json!([COLOURS, SHAPES].concat()).to_string()).unwrap();
    let data = ExamplePaths {
        train: write(&root.join("train.json"), &questions(0..64, true)),
        valid: write(&root.join("valid.json"), &questions(64..80, true)),
        test: write(&root.join("test.json"), &questions(80..96, false)),
        answers: Some(answers),
        ..ExamplePaths::default()
    };
    let job = job(root, "questions", data, "run");
    let report = run(&job);
    assert_eq!((report.test.test.get("all", "questions"), report.test.test.get("all", "accuracy")), (Some(32.0), None));

    let predictions = std::fs::read_to_string(root.join("run/predictions/vqa.json")).unwrap();
    let predictions: Vec<Value> = serde_json::from_str(&predictions).unwrap();
    let right = predictions.iter().zip(80..).filter(|(entry, _)| {
        let id = entry["question_id"].as_u64().unwrap() as usize;
        let (image, what) = (id / 2, id % 2);
        entry["answer"] == [COLOURS[image % 4], SHAPES[image / 4 % 4]][what]
    });
    let right = right.count();
    assert!(predictions.len() == 32 && right >= 29, "{right} of 32 test questions are answered right");

    let checkpoint = Answerer::new(Pretrained::open(root.join("run")).unwrap(), &Device::Cpu).unwrap();
    let store = FeatureStore::open(root.join("features")).unwrap();
    let regions = store.regions(90).unwrap(); // blue, and 90 / 4 % 4 = 2: a star
    let best = checkpoint.ask(&regions, "What color is it?", 3, &Device::Cpu).unwrap();
    assert!(best.len() == 3 && best[0].answer == "blue" && best[0].probability > 0.5, "{best:?}");
    assert!(best[0].probability >= best[1].probability && best[1].probability >= best[2].probability);

    let asked = |image: &str| {
        let mut command = Command::cargo_bin("lxmert-train").unwrap();
        command.arg("ask").arg("--checkpoint").arg(root.join("run")).arg("--features").arg(root.join("features"));
        command.args(["--question", "What color is it?", "--top", "2", "--image", image]).assert()
    };
    let printed = String::from_utf8(asked("090").success().get_output().stdout.clone()).unwrap();
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!((lines[0], lines[1]), ("090: 2 regions (test)", "What color is it?"));
    assert!(
        lines.len() == 5 && lines[2].starts_with("  blue") && lines[4].starts_with("  rests on thing (−"),
        "{printed}"
    );
    asked_json(root);
    asked("900").code(1).stderr(predicates::str::contains("no image '900'"));
    from_the_hub(root, &printed);

    // Measured separately on other questions, the checkpoint writes predictions in the same format.
    let mut evaluate = Command::cargo_bin("lxmert-train").unwrap();
    evaluate.arg("evaluate").arg(root.join("run")).args(["--task", "questions", "--json", "--features"]);
    evaluate.arg(root.join("features")).arg("--test-file").arg(root.join("valid.json")).args(["--precision", "bf16"]);
    let printed = evaluate.arg("--predictions").arg(root.join("again")).assert().success().get_output().stdout.clone();
    let printed: Value = serde_json::from_slice(&printed).unwrap();
    assert!(
        printed.pointer("/measures/all/accuracy").is_some_and(|accuracy| accuracy.as_f64() > Some(0.8)),
        "{printed}"
    );
    assert!(root.join("again/vqa.json").is_file());

    // The run knows its task, its data and its best epoch; every example has a line.
    let evaluate = |more: &[&str]| {
        let mut evaluate = Command::cargo_bin("lxmert-train").unwrap();
        let out = evaluate.current_dir(root).args(["evaluate", "run", "--json"]).args(more).assert().success();
        serde_json::from_slice::<Value>(&out.get_output().stdout).unwrap()
    };
    let config: Value =
        serde_json::from_str(&std::fs::read_to_string(root.join("run/best/config.json")).unwrap()).unwrap();
    let answers: Vec<String> =
        serde_json::from_str(&std::fs::read_to_string(root.join("answers.json")).unwrap()).unwrap();
    assert_eq!(config["id2label"]["1"], json!(answers[1]));
    assert_eq!(config["label2id"][&answers[1]], json!(1));
    let printed = evaluate(&["--split", "val", "--per-example", "examples.jsonl"]);
    let report: Value = serde_json::from_str(&std::fs::read_to_string(root.join("run/report.json")).unwrap()).unwrap();
    assert_eq!((&printed["task"], &printed["epoch"]), (&json!("questions"), &report["epoch"]));
    assert_eq!(evaluate(&[])["measures"], report["test"]);
    let lines = std::fs::read_to_string(root.join("examples.jsonl")).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let right = lines.iter().filter(|line| line["right"] == json!(true)).count();
    let accuracy = printed["measures"]["all"]["accuracy"].as_f64().unwrap();
    assert!((right as f64 / lines.len() as f64 - accuracy).abs() < 1e-9 && lines.len() > 10, "{right} {accuracy}");
    assert_eq!(lines[0]["answers"][0]["answer"], lines[0]["answer"]);
    assert_eq!(evaluate(&["--split", "train"])["split"], json!("train"));

    let mut wide = regions;
    wide.feature_dim = 2048;
    let error = checkpoint.ask(&wide, "What color is it?", 3, &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("2048") && error.contains("12") && error.contains("'test'"), "{error}");

    // The head of a run with fewer answers, in another order, starts from this one's rows by the answers' words.
    let fewer = root.join("fewer.json");
    std::fs::write(&fewer, json!(["a star", "green", "red"]).to_string()).unwrap();
    let Data::Examples(paths) = job.data.clone() else { unreachable!() };
    let mut next = Job { data: Data::Examples(ExamplePaths { answers: Some(fewer), ..paths }), ..job.clone() };
    next.output = root.join("next");
    next.recipe = Recipe {
        init: Some(root.join("run/best").display().to_string()),
        learning_rate: 1e-9,
        epochs: 1,
        ..job.recipe
    };
    run(&next);
    let started = Answerer::new(Pretrained::open(&next.output).unwrap(), &Device::Cpu).unwrap();
    let image = 97 % 96; // green
    let best = started.ask(&store.regions(image).unwrap(), "What color is it?", 1, &Device::Cpu).unwrap();
    assert_eq!(best[0].answer, "green");
}

#[test]
fn learns_statements_about_two_images() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    common::write_data(root, 64);
    let statements = |range: std::ops::Range<usize>| -> Value {
        let entry = |i: usize| {
            let (left, right) = (i % 64, (i * 7 + i / 64) % 64);
            let holds = (i / 4).is_multiple_of(2); // whatever the left image's colour, which is i % 4
            let colour = COLOURS[(left + if holds { 0 } else { 1 + i / 8 % 3 }) % 4];
            json!({"identifier": format!("train-{i}-0-0"), "uid": format!("{i}"), "img0": format!("{left:03}.png"),
                   "img1": format!("{right:03}.png"), "sent": format!("The left image shows a {colour} thing."),
                   "label": u8::from(holds)})
        };
        range.map(entry).collect()
    };
    let data = ExamplePaths {
        train: write(&root.join("train.json"), &statements(0..256)),
        valid: write(&root.join("valid.json"), &statements(400..460)),
        test: write(&root.join("test.json"), &statements(500..560)),
        ..ExamplePaths::default()
    };
    let report = run(&job(root, "statements", data, "run"));
    let measured = |measure| report.test.test.get("all", measure).unwrap();
    assert!(measured("accuracy") > 0.85, "{:?}", report.test.test);
    assert!(measured("consistency") <= 1.0 && measured("statements") == 60.0);
    let predictions = std::fs::read_to_string(root.join("run/predictions/nlvr2.csv")).unwrap();
    assert_eq!(predictions.lines().count(), 60);
    assert!(predictions.lines().all(|line| line.ends_with(",True") || line.ends_with(",False")));

    let mut evaluate = Command::cargo_bin("lxmert-train").unwrap();
    evaluate
        .arg("evaluate")
        .arg(root.join("run"))
        .args(["--task", "statements", "--features"])
        .arg(root.join("features"));
    evaluate.arg("--test-file").arg(root.join("test.json")).arg("--predictions").arg(root.join("again"));
    let mut rounded = Command::from_std(std::process::Command::new(evaluate.get_program()));
    rounded.args(evaluate.get_args()).args(["--precision", "bf16"]);
    evaluate.assert().success().stdout(predicates::str::contains("consistency"));
    assert_eq!(std::fs::read_to_string(root.join("again/nlvr2.csv")).unwrap(), predictions);
    rounded.assert().success().stdout(predicates::str::contains("in bf16"));
}

/// The original's NLVR2 snapshots: `lxrt_encoder.model.bert.*`, and `logit_fc.*` over the width of two pooled outputs.
#[test]
fn an_nlvr2_snapshot_starts_statements_with_its_head_and_can_be_measured() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    common::write_data(root, 12);
    let config = LxmertConfig { visual_feat_dim: 12, ..LxmertConfig::preset("tiny").unwrap() };
    let weights: Vec<(String, Tensor)> = PairModel::expected(&config)
        .unwrap()
        .into_iter()
        .map(|(name, shape)| {
            let tensor = procedural::tensor(&name, &shape, -0.05, 0.05, 0).unwrap();
            (name, tensor)
        })
        .collect();
    let original = |name: &str| {
        let name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        match name.strip_prefix("answer_head.") {
            Some(head) => head.to_string(),
            None => name.replacen("lxmert.", "lxrt_encoder.model.bert.", 1),
        }
    };
    let snapshot: Vec<(String, Tensor)> = weights.iter().map(|(name, w)| (original(name), w.clone())).collect();
    assert!(snapshot.iter().any(|(name, w)| name == "logit_fc.0.weight" && w.dims() == [256, 256]));
    let place = root.join("BEST.pth");
    save_safetensors(&place, &snapshot, &BTreeMap::new()).unwrap();

    let statement = |i: usize| {
        json!({"identifier": format!("a-{i}-0-0"), "uid": format!("{i}"), "img0": format!("{:03}.png", i % 12),
               "img1": format!("{:03}.png", (i + 5) % 12), "sent": "One is red.", "label": i % 2})
    };
    let files = write(&root.join("all.json"), &(0..12).map(statement).collect());
    let data = ExamplePaths { train: files.clone(), valid: files.clone(), test: files, ..ExamplePaths::default() };
    let mut job = job(root, "statements", data, "run");
    // At a rate of 0 the saved weights are the initial ones.
    job.recipe = Recipe { init: Some(place.display().to_string()), learning_rate: 0.0, epochs: 1, ..job.recipe };
    let report = run(&job);
    let saved = read_tensors(root.join("run/best/model.safetensors")).unwrap();
    assert_eq!(saved.len(), weights.len());
    for (name, wanted) in &weights {
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(&saved[name]), values(wanted), "{name}");
    }
    // With a config.json beside it the snapshot can be measured directly.
    std::fs::write(root.join("config.json"), config.to_json("LxmertModel", &[])).unwrap();
    let mut evaluate = Command::cargo_bin("lxmert-train").unwrap();
    evaluate.arg("evaluate").arg(&place).args(["--task", "statements", "--json", "--features"]);
    let measured = evaluate.arg(root.join("features")).arg("--test-file").arg(root.join("all.json")).assert().success();
    let measured: Value = serde_json::from_slice(&measured.get_output().stdout).unwrap();
    let loss = report.test.test.get("all", "loss").unwrap();
    assert!((measured["measures"]["all"]["loss"].as_f64().unwrap() - loss).abs() < 1e-6, "{measured} {loss}");
    let mut ask = Command::cargo_bin("lxmert-train").unwrap();
    ask.args(["ask", "--image", "000", "--question", "Is it red?", "--features"]).arg(root.join("features"));
    ask.arg("--checkpoint")
        .arg(&place)
        .assert()
        .code(1)
        .stderr(predicates::str::contains("statements about two images"));
}

/// Runs `evaluate` on `root/run` and a file; its predictions go into `root/again`.
fn evaluate(root: &Path, task: &str, file: &str) -> Value {
    let mut evaluate = Command::cargo_bin("lxmert-train").unwrap();
    evaluate.arg("evaluate").arg(root.join("run")).args(["--task", task, "--json", "--features"]);
    evaluate.arg(root.join("features")).arg("--test-file").arg(root.join(file));
    let printed = evaluate.arg("--predictions").arg(root.join("again")).assert().success().get_output().stdout.clone();
    serde_json::from_slice(&printed).unwrap()
}

#[test]
fn learns_visual_entailment() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    common::write_data(root, 96);
    // Both spellings of the photo's field; for every fourth photo the second line has no agreed label.
    let lines = |name: &str, images: std::ops::Range<usize>| {
        let line = |photo: &str, image: usize, sentence: &str, label: &str| {
            let id = format!("{image}{}", label.chars().next().unwrap());
            json!({photo: format!("{image:03}.png"), "pairID": id, "sentence2": sentence, "gold_label": label})
                .to_string()
        };
        let of = |image: usize| {
            let label = if image % 4 < 2 { "entailment" } else { "contradiction" }; // COLOURS by the image's number
            let open = if image % 4 == 3 { "-" } else { "neutral" };
            [
                line("Flickr30K_ID", image, "It is red or green.", label),
                line("Flikr30kID", image, "Nobody knows what it weighs.", open),
            ]
        };
        std::fs::write(root.join(name), images.flat_map(of).collect::<Vec<_>>().join("\n")).unwrap();
        vec![root.join(name)]
    };
    let data = ExamplePaths {
        train: lines("train.jsonl", 0..64),
        valid: lines("valid.jsonl", 64..80),
        test: lines("test.jsonl", 80..96),
        ..ExamplePaths::default()
    };
    let mut job = job(root, "entailment", data, "run");
    job.recipe.epochs = 10;
    let report = run(&job);
    let measured = |set: &str, measure: &str| report.test.test.get(set, measure).unwrap();
    assert!(measured("all", "accuracy") > 0.85, "{:?}", report.test.test);
    assert_eq!((measured("all", "sentences"), measured("contradiction", "sentences")), (32.0, 8.0));
    assert_eq!((measured("entailment", "sentences"), measured("neutral", "sentences")), (8.0, 12.0));
    let predictions = std::fs::read_to_string(root.join("run/predictions/snli_ve.jsonl")).unwrap();
    let first: Value = serde_json::from_str(predictions.lines().next().unwrap()).unwrap();
    assert!(predictions.lines().count() == 32 && first["pairID"] == "80e", "{first}");
    let again = evaluate(root, "entailment", "test.jsonl");
    assert_eq!(again["measures"]["all"]["accuracy"].as_f64(), Some(measured("all", "accuracy")));
    assert_eq!(std::fs::read_to_string(root.join("again/snli_ve.jsonl")).unwrap(), predictions);
}

#[test]
fn learns_referring_expressions() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    common::write_data(root, 96);
    // The first region of each image is a shape, the second the whole image; the file holds every split.
    let refs = |i: usize| {
        let image = i / 2;
        let shape = format!("the {} {}", COLOURS[image % 4], SHAPES[image / 4 % 4]);
        let raw = if i % 2 == 1 { "everything".into() } else { shape };
        let split = ["train", "train", "train", "val", "testA", "testB"][image / 16];
        json!({"ref_id": i, "ann_id": i, "image_id": image, "split": split, "sentences": [{"sent_id": i, "raw": raw}]})
    };
    let image = |i| json!({"id": i, "file_name": format!("{i:03}.png"), "width": 64, "height": 64});
    let boxes = [[6.4, 6.4, 25.6, 25.6], [0.0, 0.0, 64.0, 64.0]];
    // No region is near the last image's object.
    let bbox = |i: usize| if i == 190 { [50.0, 50.0, 10.0, 10.0] } else { boxes[i % 2] };
    let annotation = |i: usize| json!({"id": i, "image_id": i / 2, "bbox": bbox(i)});
    let (images, annotations): (Value, Value) = ((0..96).map(image).collect(), (0..192).map(annotation).collect());
    write(&root.join("instances.json"), &json!({"images": images, "annotations": annotations}));
    let files = write(&root.join("refs.json"), &(0..192).map(refs).collect());
    let data = ExamplePaths { train: files.clone(), valid: files.clone(), test: files, ..ExamplePaths::default() };
    let mut job = job(root, "referring", data, "run");
    job.recipe.metric = "val/accuracy".into();
    let report = run(&job);
    let sets: Vec<&str> = report.test.test.sets().map(|(set, _)| set).collect();
    assert_eq!(sets, ["testA", "testB", "val"]);
    let measured = |set: &str, measure: &str| report.test.test.get(set, measure).unwrap();
    assert!(measured("testA", "accuracy") > 0.9 && measured("val", "accuracy") > 0.9, "{:?}", report.test.test);
    assert_eq!((measured("testA", "upper_bound"), measured("testB", "upper_bound")), (1.0, 31.0 / 32.0));
    assert_eq!((measured("testA", "chance"), measured("testA", "expressions")), (0.5, 32.0));
    let read = |place: &str| -> Vec<Value> {
        serde_json::from_str(&std::fs::read_to_string(root.join(place)).unwrap()).unwrap()
    };
    let predictions = read("run/predictions/refcoco.json");
    assert_eq!(predictions.len(), 96);
    let right = |entry: &&Value| entry["split"] == "testA" && entry["iou"].as_f64() > Some(0.5);
    assert_eq!(predictions.iter().filter(right).count() as f64 / 32.0, measured("testA", "accuracy"));
    let again = evaluate(root, "referring", "refs.json");
    assert_eq!(again["measures"]["testB"]["accuracy"].as_f64(), Some(measured("testB", "accuracy")));
    assert_eq!(read("again/refcoco.json"), predictions);

    // A run starts from the checkpoint with its head: at a rate of 0 it measures the same.
    let mut next = Job { output: root.join("next"), ..job.clone() };
    let init = Some(root.join("run/best").display().to_string());
    next.recipe = Recipe { init, learning_rate: 0.0, epochs: 1, ..job.recipe };
    assert_eq!(run(&next).test.test, report.test.test);
    // It has no head for another task.
    let mut other = Command::cargo_bin("lxmert-train").unwrap();
    other.arg("evaluate").arg(root.join("run")).args(["--task", "entailment", "--features"]);
    other.arg(root.join("features")).arg("--test-file").arg(root.join("refs.json"));
    other.assert().code(1).stderr(predicates::str::contains("has no answer head"));
}

#[test]
fn errors_say_what_a_task_cannot_read() {
    let folder = tempfile::tempdir().unwrap();
    let command = || {
        let mut command = Command::cargo_bin("lxmert-train").unwrap();
        command.current_dir(folder.path()).args(["--task", "questions"]);
        command
    };
    command().args(["--data", "here"]).assert().code(1).stderr(predicates::str::contains("--train-file"));
    command().args(["--train-file", "a.json"]).assert().code(2).stderr(predicates::str::contains("--valid-file"));
    let files = ["--train-file", "a.json", "--valid-file", "b.json", "--features", "store", "--output", "run"];
    command().args(files).assert().code(1).stderr(predicates::str::contains("no feature store here"));
    common::write_data(folder.path(), 4);
    write(&folder.path().join("a.json"), &questions(0..4, true));
    let files = ["--train-file", "a.json", "--valid-file", "a.json", "--features", "features", "--output", "run"];
    command().args(files).assert().code(1).stderr(predicates::str::contains("--answers"));
    std::fs::write(folder.path().join("answers.json"), "[\"red\"]").unwrap();
    std::fs::write(folder.path().join("b.json"), "[{\"question_id\": 1}]").unwrap();
    let files = ["--train-file", "b.json", "--valid-file", "a.json", "--features", "features", "--output", "other"];
    let wrong = command().args(files).args(["--answers", "answers.json", "--preset", "tiny"]).assert().code(1);
    wrong.stderr(predicates::str::contains("b.json, row 1: it lacks img_id"));
    std::fs::write(folder.path().join("other.json"), "\u{feff}[\"purple\"]").unwrap();
    let files = ["--train-file", "a.json", "--valid-file", "a.json", "--features", "features", "--output", "other"];
    let unknown =
        command().args(files).args(["--answers", "other.json", "--preset", "tiny", "--quiet"]).assert().code(1);
    unknown.stderr(predicates::str::contains("a.json: none of its 8 questions has an answer in the table"));
    let mut ask = Command::cargo_bin("lxmert-train").unwrap();
    ask.args(["ask", "--image", "x.png", "--question", "Who?", "--checkpoint"]).arg(folder.path());
    ask.assert().code(1).stderr(predicates::str::contains("--task questions"));
}

/// A question model of random weights whose regions are the detector of scenes' own.
fn scenes_answerer(folder: &Path) {
    let config = LxmertConfig { num_qa_labels: 3, visual_feat_dim: 256, ..LxmertConfig::preset("tiny").unwrap() };
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("config.json"), config.to_json("LxmertForQuestionAnswering", &[])).unwrap();
    std::fs::write(folder.join("answers.json"), r#"["red", "two", "yes"]"#).unwrap();
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let norm =
            name.contains("LayerNorm.weight") || name.contains("layer_norm.weight") || name.contains("fc.2.weight");
        let middle = if norm { 1.0 } else { 0.0 };
        (name.clone(), procedural::tensor(&name, &shape, middle - 0.2, middle + 0.2, 0).unwrap())
    };
    let weights: Vec<(String, Tensor)> = AnswerModel::expected(&config).unwrap().into_iter().map(tensor).collect();
    save_safetensors(folder.join("model.safetensors"), &weights, &BTreeMap::new()).unwrap();
}

#[test]
fn asks_about_photos_in_an_empty_folder_and_finds_their_regions_once() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    scenes_answerer(&root.join("model"));
    std::fs::create_dir_all(root.join("photos")).unwrap();
    for index in 0..2 {
        let scene = Scene::generate(&ScenesConfig::default(), index);
        draw(&scene).save(root.join(format!("photos/{index}.png"))).unwrap();
    }
    std::fs::write(root.join("questions.txt"), "What color is the star?\n\nHow many circles are there?\n").unwrap();
    let ask = |arguments: &[&str]| {
        let mut command = Command::cargo_bin("lxmert-train").unwrap();
        command.args(["ask", "--checkpoint", "model"]).args(arguments);
        command.current_dir(root).env("XDG_CACHE_HOME", root.join("cache")).assert()
    };
    let photos = ["--image", "photos", "--questions", "questions.txt", "--question", "Is there a ring?", "--json"];
    let first = ask(&photos).success().stderr(predicates::str::contains("photos/1.png: finding regions (scenes)"));
    let first: Value = serde_json::from_slice(&first.get_output().stdout).unwrap();
    let of = |key: &str| first.as_array().unwrap().iter().map(|asked| asked[key].clone()).collect::<Vec<_>>();
    assert_eq!(
        of("image"),
        ["photos/0.png", "photos/0.png", "photos/0.png", "photos/1.png", "photos/1.png", "photos/1.png"]
    );
    assert_eq!(of("question")[..3], ["Is there a ring?", "What color is the star?", "How many circles are there?"]);
    for asked in first.as_array().unwrap() {
        let answers = asked["answers"].as_array().unwrap();
        let value = |answer: &Value, key: &str| answer[key].as_f64().unwrap();
        assert_eq!(answers.len(), 3);
        assert!(answers.windows(2).all(|pair| value(&pair[0], "logit") >= value(&pair[1], "logit")));
        let best = &answers[0];
        assert!((value(best, "probability") - 1.0 / (1.0 + (-value(best, "logit")).exp())).abs() < 1e-5);
        let supports = asked["rests_on"].as_array().unwrap();
        assert!(
            supports.len() <= 3 && supports.iter().all(|support| value(support, "logit_falls_by") > 0.0),
            "{asked}"
        );
        // Colour and shape.
        assert!(supports.iter().all(|support| support["name"].as_str().unwrap().split(' ').count() == 2), "{asked}");
    }
    let again = ask(&photos).success().stderr(predicates::str::contains("regions from"));
    let again: Value = serde_json::from_slice(&again.get_output().stdout).unwrap();
    assert_eq!(again, first);

    // A photo that cannot be read does not keep the others from being answered.
    std::fs::write(root.join("photos/2.png"), b"no picture").unwrap();
    let with_a_bad_one = ask(&photos).code(1).stderr(predicates::str::contains("1 of 3 photos could not be read"));
    let printed: Value = serde_json::from_slice(&with_a_bad_one.get_output().stdout).unwrap();
    assert_eq!(printed, first);

    let one = ["--image", "photos/0.png", "--question", "Is there a ring?", "--picture", "out.png"];
    ask(&[one.as_slice(), &["--no-cache", "--regions", "grid:3"]].concat()).success();
    let picture = image::open(root.join("out.png")).unwrap().to_rgb8();
    assert!(picture.width() >= 640 && picture.height() > picture.width(), "{:?}", picture.dimensions());
    assert_eq!(std::fs::read_dir(root.join("cache/lxmert/regions")).unwrap().count(), 2);
    ask(&[one.as_slice(), &["--question", "And?"]].concat())
        .code(1)
        .stderr(predicates::str::contains("one photo and one"));
    ask(&["--image", "photos/0.png"]).code(2).stderr(predicates::str::contains("--question"));
}

#[test]
fn checks_what_is_published_against_what_comes_out() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    scenes_answerer(&root.join("model"));
    let endpoint = loopback::serve_folder(&root.join("model"));
    draw(&Scene::generate(&ScenesConfig::default(), 0)).save(root.join("scene.png")).unwrap();
    let check = |arguments: &[&str]| {
        let mut command = Command::cargo_bin("lxmert-train").unwrap();
        command.arg("check-published").args(arguments).current_dir(root).env("HF_ENDPOINT", &endpoint);
        command.env("HF_HUB_CACHE", root.join("hub")).env("XDG_CACHE_HOME", root.join("cache")).assert()
    };
    // The numbers that this model gives for some inputs.
    let model = Pretrained::open(root.join("model")).unwrap();
    let trunk = model.model(&Device::Cpu, |config, vb| LxmertModel::new(config, vb.pp("lxmert"))).unwrap();
    let tensor = |name: &str, shape: &[usize]| procedural::tensor(name, shape, 0.0, 1.0, 0).unwrap();
    let (ids, features, boxes) = (
        Tensor::new(&[[101u32, 345, 232, 102]], &Device::Cpu).unwrap(),
        tensor("f", &[1, 5, 256]),
        tensor("b", &[1, 5, 4]),
    );
    let inputs = LxmertInputs {
        input_ids: ids.clone(),
        attention_mask: None,
        visual_feats: features.clone(),
        visual_boxes: boxes.clone(),
        visual_attention_mask: None,
    };
    let language = trunk.forward(&inputs, &Pass::eval()).unwrap().language.get(0).unwrap();
    let nine = language.narrow(0, 0, 3).unwrap().narrow(1, 0, 3).unwrap();
    let numbers = |name: &str, nine: Tensor| {
        let all = [("ids", &ids), ("features", &features), ("boxes", &boxes), ("language_output_first_3x3", &nine)];
        let all: Vec<(String, Tensor)> = all.map(|(name, tensor)| (name.into(), tensor.clone())).into();
        save_safetensors(root.join(name), &all, &BTreeMap::new()).unwrap();
    };
    numbers("right.safetensors", nine.clone());
    numbers("wrong.safetensors", (nine + 2e-4).unwrap());
    let base = ["base", "--base", "hf:owner/repo", "--base-numbers"];
    check(&[base.as_slice(), &["right.safetensors"]].concat()).success().stdout(predicates::str::starts_with("right"));
    let wrong = check(&[base.as_slice(), &["wrong.safetensors"]].concat()).code(1);
    wrong.stdout(predicates::str::starts_with("WRONG")).stderr(predicates::str::contains("1 of 1 checks"));

    let answerer = Answerer::new(model, &Device::Cpu).unwrap();
    let finder = Finder::open(
        &FinderArgs { no_cache: true, ..FinderArgs::default() },
        answerer.config.visual_feat_dim,
        &answerer.preprocessing,
        false,
        &Device::Cpu,
    );
    let photo = decode_file(root.join("scene.png")).unwrap();
    let regions = finder.unwrap().find(&photo, "scene.png").unwrap().regions;
    let best = answerer.ask(&regions, "Is there a ring?", 1, &Device::Cpu).unwrap()[0].answer.clone();
    let other = if best == "red" { "two" } else { "red" };
    let demo = json!({"questions": [{"question": "Is there a ring?", "vqa": best, "gqa": other}]});
    std::fs::write(root.join("demo.json"), demo.to_string()).unwrap();
    let answers = ["answers", "--vqa", "hf:owner/repo", "--gqa", "hf:owner/repo", "--demo", "demo.json"];
    let asked = check(&[answers.as_slice(), &["--demo-image", "scene.png"]].concat()).code(1);
    let printed = String::from_utf8(asked.get_output().stdout.clone()).unwrap();
    let lines: Vec<&str> = printed.lines().collect();
    assert!(
        lines.len() == 2 && lines[0].starts_with("right    vqa: ") && lines[1].starts_with("WRONG    gqa: "),
        "{printed}"
    );

    // What lacks a file is said, and is no fault.
    let lacks = check(&["answers", "features", "scores"]).success();
    let printed = String::from_utf8(lacks.get_output().stdout.clone()).unwrap();
    assert_eq!(printed.lines().filter(|line| line.starts_with("not run")).count(), 13, "{printed}");
    assert!(printed.contains("expected desk") && printed.contains("give --demo-image"), "{printed}");
}

#[test]
fn completions_and_manual_pages_are_those_of_the_program() {
    manuals::check("lxmert-train", "evaluate", "--per-example");
}
