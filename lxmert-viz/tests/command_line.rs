//! The commands on a small workspace: which files they write, what these show, and what is refused.

#[path = "../../lxmert-core/tests/at_once/mod.rs"]
mod at_once;
mod common;
#[path = "../../lxmert-core/tests/loopback/mod.rs"]
mod loopback;
#[path = "../../lxmert-core/tests/manuals/mod.rs"]
mod manuals;

use assert_cmd::Command;
use common::{Made, question_checkpoint, scenes_checkpoint, statement_checkpoint, workspace};
use lxmert_extract::scenes::{Scene, ScenesConfig, draw::draw};
use lxmert_train::data::paths::{Data, DataPaths};
use lxmert_train::job::RunSettings;
use lxmert_train::recipe::Recipe;
use predicates::prelude::*;
use predicates::str::contains;
use std::collections::BTreeMap;
use std::path::Path;

fn viz(made: &Made) -> Command {
    let mut command = Command::cargo_bin("lxmert-viz").unwrap();
    command.current_dir(made.root()).args(["--quiet", "--threads", "2"]);
    command.env("XDG_CACHE_HOME", made.root().join("cache"));
    command
}

/// Width and height of a PNG file that is whole and shows something.
fn picture(path: &Path) -> (u32, u32) {
    let picture = image::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).to_rgb8();
    let first = *picture.get_pixel(0, 0);
    let other = picture.pixels().filter(|p| **p != first).count();
    assert!(other > 2000, "{} is blank", path.display());
    picture.dimensions()
}

#[test]
fn a_bare_run_writes_every_kind_of_picture_and_measures_grounding() {
    let made = workspace();
    let output = viz(&made).args(["--pairs", "2"]).assert().success().get_output().stdout.clone();
    let text = String::from_utf8(output).unwrap();
    let first = text.lines().next().unwrap();
    assert!(first.starts_with(made.run().join("explore.html").to_str().unwrap()), "{first}");
    assert!(made.run().join("explore.html").is_file());
    assert!(text.contains("random test pairs: accuracy") && text.contains("hard test pairs: accuracy"), "{text}");
    assert!(text.contains("grounding: share of") && text.contains("relevancy (Chefer)"), "{text}");
    assert!(!text.contains("Not the data"), "{text}");
    // Every object is a region with its true box here, so some region always hits.
    assert!(text.contains("any of the regions: 100.0 %"), "{text}");
    let plots = made.run().join("plots");
    let index = std::fs::read_to_string(plots.join("index.md")).unwrap();
    let links: Vec<&str> = index.split("![](").skip(1).filter_map(|part| part.split(')').next()).collect();
    assert!(links.len() >= 20, "{index}");
    for link in &links {
        picture(&plots.join(link));
    }
    for kind in ["overlay-sentence-attention", "heatmap-language-to-vision-layer2", "heads-vision-to-language"] {
        assert_eq!(links.iter().filter(|link| link.contains(kind)).count(), 2, "{kind}");
    }
    for kind in ["predictions-random.png", "predictions-hard.png", "curves.png"] {
        assert!(links.contains(&kind), "{kind}");
    }
}

#[test]
fn single_pictures_are_written_where_output_says() {
    let made = workspace();
    let text = "A red circle above a blue square .";
    let heatmap = made.root().join("one/map.png");
    viz(&made)
        .args(["heatmap", "--layer", "1", "--head", "2", "--direction", "vision-to-language", "--text", text])
        .args(["--image", "00003.png", "--output", heatmap.to_str().unwrap()])
        .assert()
        .success()
        .stdout(contains("P(match)"));
    picture(&heatmap);
    let overlay = made.root().join("overlay.png");
    viz(&made)
        .args(["overlay", "--word", "square", "--by", "relevancy", "--text", text, "-o", overlay.to_str().unwrap()])
        .assert()
        .success();
    assert!(picture(&overlay).0 > 900, "a photo of 128 pixels is enlarged");
    let folder = made.root().join("all");
    viz(&made).args(["heatmap", "--all", "--output", folder.to_str().unwrap()]).assert().success();
    // 4 attentions × 2 cross layers + 1 language + 1 vision layer, each the mean and 2 heads.
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 30);
    viz(&made).args(["heads", "--layer", "2"]).assert().success();
    viz(&made).arg("curves").assert().success().stdout(contains("curves.png"));
    assert_eq!(picture(&made.run().join("plots/curves.png")), (1200, 840));
}

#[test]
fn figures_take_a_format_a_width_and_a_font_scale() {
    let made = workspace();
    let svg = made.root().join("fig.svg");
    viz(&made).args(["heads", "-o", svg.to_str().unwrap()]).assert().success().stdout(contains("fig.svg"));
    let text = std::fs::read_to_string(&svg).unwrap();
    let document = roxmltree::Document::parse(&text).unwrap();
    assert!(document.descendants().any(|node| node.text() == Some("layer 1 · head 2")), "{text}");
    let both = ["heatmap", "--image", "00003.png", "--format", "png,svg", "--width", "400", "-o", "both"];
    viz(&made).args(both).assert().success();
    let file = |end: &str| made.root().join(format!("both/heatmap-00003-language-to-vision.{end}"));
    assert_eq!(picture(&file("png")).0, 400);
    assert!(std::fs::read_to_string(file("svg")).unwrap().contains("width=\"400\""));
    // Larger text beside a photo of the same size.
    let width = |scale: &str| {
        let output = format!("overlay-{scale}.png");
        viz(&made).args(["overlay", "--font-scale", scale, "-o", &output]).assert().success();
        picture(&made.root().join(output)).0
    };
    let (plain, large) = (width("1"), width("1.5"));
    assert!(large > plain && large < plain * 3 / 2, "{plain} {large}");
    viz(&made).args(["heads", "-o", "fig.pdf"]).assert().code(1).stderr(contains("written as .png or .svg"));
    viz(&made).args(["perturbation", "-o", "fig.svg"]).assert().code(1).stderr(contains("pass a folder"));
}

#[test]
fn characters_without_a_glyph_are_told_once_with_their_number() {
    let made = workspace();
    let mut command = Command::cargo_bin("lxmert-viz").unwrap();
    command.current_dir(made.root()).args(["--threads", "2", "heatmap", "--all", "--text", "a red 圆 圆 and a 🦊"]);
    let output = command.assert().success().get_output().stderr.clone();
    let text = String::from_utf8(output).unwrap();
    // The words of a heatmap are word pieces, of which the vocabulary may have none.
    assert!(text.matches("not in the bundled font").count() == 1, "{text}");
}

/// Another data set than the scenes: its own captions, store and photos, and a run whose run.json names them.
fn other_run(made: &Made) -> std::path::PathBuf {
    let (scenes, other) = (made.root().join("data/scenes"), made.root().join("elsewhere"));
    std::fs::create_dir_all(other.join("images")).unwrap();
    let captions = std::fs::read_to_string(scenes.join("results.csv")).unwrap();
    let rows: Vec<&str> = captions.lines().collect();
    std::fs::write(other.join("photos.csv"), rows[..=30].join("\n")).unwrap();
    let names: std::collections::BTreeSet<&str> = rows[1..=30].iter().map(|row| &row[..9]).collect();
    for name in &names {
        std::fs::copy(scenes.join("images").join(name), other.join("images").join(name)).unwrap();
    }
    let names: Vec<&&str> = names.iter().collect();
    let splits = serde_json::json!({ "train": names[2..], "val": names[1..2], "test": names[..1] });
    std::fs::write(other.join("splits.json"), splits.to_string()).unwrap();
    let features = made.root().join("data/features/other");
    std::fs::rename(made.root().join("data/features/scenes"), &features).unwrap();
    let run = made.root().join("runs/other");
    std::fs::rename(made.run(), &run).unwrap();
    let splits = Some(other.join("splits.json"));
    let paths = DataPaths {
        name: "photos".into(),
        splits,
        hard_negatives: None,
        ..DataPaths::of_files(other.join("photos.csv"), None, features)
    };
    let (recipe, data) = (Recipe::scenes(), Data::Captions(paths));
    let settings = RunSettings { name: "run".into(), recipe, data, files: BTreeMap::new() };
    std::fs::write(run.join("run.json"), serde_json::to_string(&settings).unwrap()).unwrap();
    run
}

#[test]
fn a_run_shows_the_data_that_it_names_and_other_data_only_with_a_notice() {
    let made = workspace();
    let run = other_run(&made);
    let grid = |args: &[&str]| {
        let output = viz(&made).args(["grid", "--run", "runs/other"]).args(args).assert().success();
        String::from_utf8(output.get_output().stdout.clone()).unwrap()
    };
    let own = grid(&[]);
    assert!(own.contains("random test pairs") && !own.contains("hard test pairs"), "{own}");
    let pairs = |text: &str| text.split(" of ").nth(1).and_then(|rest| rest.split(')').next()).map(String::from);
    let height = picture(&run.join("plots/predictions-random.png")).1;

    let scenes = "data/scenes/results.csv";
    let other = grid(&["--captions", scenes, "-o", "shown"]);
    assert!(other.contains("hard test pairs"), "{other}");
    assert_ne!(pairs(&own), pairs(&other));
    let svg = ["grid", "--run", "runs/other", "--captions", scenes, "--format", "svg", "-o", "shown"];
    viz(&made).args(svg).assert().success();
    let text = std::fs::read_to_string(made.root().join("shown/predictions-random.svg")).unwrap();
    assert!(text.contains("Not the data of the run: captions data/scenes/results.csv"), "{text}");
    assert!(height > 300);

    // A checkpoint of the run is shown on the run's data too, and a run without a run.json on none.
    let heads = ["heads", "--checkpoint", "runs/other/best", "--format", "svg", "-o", "shown/heads.svg"];
    viz(&made).args(heads).assert().success();
    let text = std::fs::read_to_string(made.root().join("shown/heads.svg")).unwrap();
    assert!(!text.contains("Not the data") && !text.contains("does not say"), "{text}");
    std::fs::remove_file(run.join("run.json")).unwrap();
    let heads = ["heads", "--run", "runs/other"];
    viz(&made).args(heads).assert().code(1).stderr(contains("run.json").and(contains("--captions")));
}

#[test]
fn relevancy_draws_the_methods_for_a_match_and_for_an_answer() {
    let made = workspace();
    viz(&made).args(["relevancy", "--image", "00003.png"]).assert().success().stdout(contains("P(match)"));
    let all = picture(&made.run().join("plots/relevancy-00003.png"));
    let one = made.root().join("one.png");
    let text = "A red circle above a blue square .";
    viz(&made)
        .args(["relevancy", "--method", "grad-cam", "--text", text, "-o", one.to_str().unwrap()])
        .assert()
        .success();
    assert_ne!(picture(&one), all);
    let questions = made.root().join("runs/scenes-questions");
    question_checkpoint(&questions.join("best"));
    let ask = |extra: &[&str]| {
        viz(&made)
            .args(["relevancy", "--question", "What colour is the circle ?", "--image", "00003.png"])
            .args(extra)
            .assert()
    };
    let top = String::from_utf8(ask(&[]).success().get_output().stdout.clone()).unwrap();
    let best = top.lines().nth(1).and_then(|line| line.split_whitespace().last()).unwrap();
    picture(&questions.join(format!("plots/relevancy-00003-what-colour-is-the-circle-{best}.png")));
    assert_eq!(top.lines().count(), 5, "the question, three answers, the picture: {top}");
    ask(&["--answer", "two"]).success().stdout(contains("relevancy-00003-what-colour-is-the-circle-two.png"));
    ask(&["--answer", "blue"]).code(1).stderr(contains("no answer 'blue'; it has 3, such as red, two, yes"));
    ask(&["--checkpoint", "runs/scenes"]).code(1).stderr(contains("has no answer head"));
}

#[test]
fn relevancy_of_a_statement_draws_both_of_its_images() {
    let made = workspace();
    let run = made.root().join("runs/scenes-statements");
    let explain = |left: &str, right: &str| {
        let statement = ["relevancy", "--statement", "There are two stars .", "--image", left, "--second-image", right];
        viz(&made).args(statement).assert()
    };
    explain("00003.png", "00004.png").code(1).stderr(contains("--task statements"));
    statement_checkpoint(&run.join("best"));
    let said = |left: &str, right: &str| {
        let assert = explain(left, right).success();
        String::from_utf8(assert.get_output().stdout.clone()).unwrap()
    };
    let forth = said("00003.png", "00004.png");
    assert!(forth.starts_with("00003.png and 00004.png, “There are two stars .”: P(true) = "), "{forth}");
    let plots = run.join("plots");
    let of = |side: &str, image: &str| std::fs::read(plots.join(format!("relevancy-{image}-{side}.png"))).unwrap();
    picture(&plots.join("relevancy-00003-left.png"));
    // The same image on the right is judged by other weights of the head.
    let back = said("00004.png", "00003.png");
    assert_ne!(forth.split("P(true)").nth(1), back.split("P(true)").nth(1));
    assert_ne!(of("left", "00003"), of("right", "00003"));
    viz(&made).args(["relevancy", "--statement", "x", "--image", "00003.png"]).assert().code(2);
    viz(&made)
        .args(["relevancy", "--statement", "x", "--image", "00003.png", "--second-image", "00004.png"])
        .args(["--checkpoint", "runs/scenes"])
        .assert()
        .code(1)
        .stderr(contains("no head over two images"));
}

#[test]
fn checkpoint_takes_a_run_a_weights_file_or_a_hub_repository() {
    let made = workspace();
    let best = made.run().join("best");
    question_checkpoint(&made.root().join("questions"));
    let [matching, questions] = [&best, &made.root().join("questions")].map(|folder| loopback::serve_folder(folder));
    let named = |endpoint: &str, arguments: &[&str]| {
        let mut command = viz(&made);
        command.env("HF_ENDPOINT", endpoint).env("HF_HUB_CACHE", made.root().join("cache")).env("HF_TOKEN", "hf_test");
        command.args(arguments).args(["--image", "00003.png", "-o", "one.png"]).assert()
    };
    let said = |checkpoint: &str| {
        let assert = named(&matching, &["heatmap", "--checkpoint", checkpoint]).success();
        String::from_utf8(assert.get_output().stdout.clone()).unwrap()
    };
    let by_run = said("runs/scenes");
    assert!(by_run.contains("P(match)"), "{by_run}");
    for name in ["runs/scenes/best", "runs/scenes/best/model.safetensors", "hf:owner/repo", "hf:owner/repo@v1"] {
        assert_eq!(said(name), by_run, "{name}");
    }
    std::fs::remove_dir_all(made.root().join("cache")).unwrap();
    let question = ["relevancy", "--question", "What colour is the circle ?", "--checkpoint", "hf:owner/repo"];
    named(&questions, &question).success().stdout(contains("one.png"));
    picture(&made.root().join("one.png"));
    named(&matching, &["heatmap", "--checkpoint", "hf:owner/other"]).code(1).stderr(contains("hf:owner/other"));
}

#[test]
fn perturbation_writes_curves_areas_and_a_table() {
    let made = workspace();
    let output = viz(&made).args(["perturbation", "--examples", "3"]).assert().success().get_output().stdout.clone();
    let text = String::from_utf8(output).unwrap();
    assert!(text.contains("perturbation of 3 true captions") && text.contains("relevancy (Chefer)"), "{text}");
    let plots = made.run().join("plots");
    picture(&plots.join("perturbation.png"));
    let csv = std::fs::read_to_string(plots.join("perturbation.csv")).unwrap();
    let removed = |side: &str, method: &str| -> Vec<f64> {
        let rows = csv.lines().filter(|row| row.starts_with(&format!("{side},positive,{method},")));
        rows.map(|row| row.split(',').nth(3).unwrap().parse().unwrap()).collect()
    };
    for side in ["regions", "words"] {
        let steps = removed(side, "random");
        assert!(steps.len() >= 3 && steps[0] == 0.0 && steps[steps.len() - 1] == 1.0, "{steps:?}");
        assert!(steps.windows(2).all(|pair| pair[0] < pair[1]), "no step comes twice: {steps:?}");
        assert_eq!(steps, removed(side, "rollout"));
    }
    let json = std::fs::read_to_string(plots.join("perturbation.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let curves = json["curves"].as_array().unwrap();
    let first: Vec<f64> = curves.iter().map(|curve| curve["matched"][0].as_f64().unwrap()).collect();
    assert!(first.iter().all(|score| *score == first[0]), "nothing is removed yet: {first:?}");
    // Without its words every method leaves the same sentence.
    let bare: Vec<f64> = curves
        .iter()
        .filter(|c| c["side"] == "words")
        .map(|c| c["matched"].as_array().unwrap().last().unwrap().as_f64().unwrap())
        .collect();
    assert!(bare.len() == 12 && bare.iter().all(|score| *score == bare[0]), "{bare:?}");
    let examples = ["perturbation", "--examples", "3", "--per-example", "pairs.csv"];
    viz(&made).args(examples).assert().success().stdout(contains("pairs.csv"));
    let table = std::fs::read_to_string(made.root().join("pairs.csv")).unwrap();
    let column = |line: &str, name: &str| {
        let place = table.lines().next().unwrap().split(',').position(|own| own == name).unwrap();
        line.split(',').nth(place).unwrap().parse::<f64>().unwrap()
    };
    let own: Vec<f64> = table.lines().skip(1).map(|line| column(line, "regions_positive_rollout")).collect();
    let area = curves.iter().find(|c| c["side"] == "regions" && c["order"] == "positive" && c["method"] == "rollout");
    let area = area.unwrap()["area"].as_f64().unwrap();
    assert!(own.len() == 3 && (own.iter().sum::<f64>() / 3.0 - area).abs() < 1e-9, "{own:?}, not {area}");
    viz(&made).args(["perturbation", "--examples", "0"]).assert().code(1).stderr(contains("nothing to perturb"));
}

#[test]
fn export_writes_the_arrays_that_its_docs_name() {
    let made = workspace();
    let export = |args: &[&str]| {
        let output = viz(&made).arg("export").args(args).assert().success().get_output().stdout.clone();
        String::from_utf8(output).unwrap()
    };
    let text = export(&["--split", "test", "--false-captions", "-o", "out/all.safetensors"]);
    let path = made.root().join("out/all.safetensors");
    let arrays = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
    let lines = |name: &str| -> Vec<String> {
        let bytes = arrays[name].to_vec1::<u8>().unwrap();
        String::from_utf8(bytes).unwrap().lines().map(String::from).collect()
    };
    let shape = |name: &str| arrays[name].dims().to_vec();
    let (images, texts, tokens) = (lines("images"), lines("texts"), lines("tokens"));
    let n = images.len();
    assert!(text.contains(&format!("{n} pairs")) && n > 10 && texts.len() == n && tokens.len() == n, "{text}");
    let (w, r) = (shape("input_ids")[1], shape("labels")[1]);
    // One language, one vision and two cross layers of two heads.
    for (name, layers, rows, columns) in [
        ("language", 1, w, w),
        ("vision", 1, r, r),
        ("language-to-vision", 2, w, r),
        ("vision-to-language", 2, r, w),
        ("language-self", 2, w, w),
        ("vision-self", 2, r, r),
    ] {
        assert_eq!(shape(&format!("attention/{name}")), [n, layers, 2, rows, columns], "{name}");
    }
    for method in ["attention", "gradient-attention", "relevancy", "rollout", "grad-cam", "relevancy-against"] {
        assert_eq!(shape(&format!("relevance/{method}/words")), [n, w], "{method}");
        assert_eq!(shape(&format!("relevance/{method}/regions")), [n, r], "{method}");
        assert_eq!(shape(&format!("relevance/{method}/words-to-regions")), [n, w, r], "{method}");
    }
    assert_eq!(shape("boxes"), [n, r, 4]);
    let words = arrays["num_words"].to_vec1::<u32>().unwrap();
    let regions = arrays["num_regions"].to_vec1::<u32>().unwrap();
    let truth = arrays["truth"].to_vec1::<u8>().unwrap();
    assert_eq!(truth.iter().filter(|t| **t == 1).count(), truth.iter().filter(|t| **t == 0).count());
    for i in 0..n {
        let (words, regions) = (words[i] as usize, regions[i] as usize);
        assert_eq!(tokens[i].split(' ').count(), words);
        // Each word's attention sums to 1 over the regions that are there, and is 0 beyond.
        let map = arrays["attention/language-to-vision"].get(i).unwrap().get(1).unwrap().get(0).unwrap();
        for (row, values) in map.to_vec2::<f32>().unwrap().iter().enumerate() {
            let sum: f32 = values.iter().sum();
            let want = if row < words { 1.0 } else { 0.0 };
            assert!((sum - want).abs() < 1e-5 && values[regions..].iter().all(|v| *v == 0.0), "{i} {row}: {sum}");
        }
    }
    // One pair alone gives the same numbers, and the default file.
    let (image, caption) = (&images[n - 1], &texts[n - 1]);
    export(&["--image", image, "--text", caption, "--no-maps"]);
    let one = made.run().join("plots/export.safetensors");
    let one = candle_core::safetensors::load(one, &candle_core::Device::Cpu).unwrap();
    assert!(!one.keys().any(|name| name.starts_with("attention/")));
    let logit = |arrays: &std::collections::HashMap<String, candle_core::Tensor>, i: usize| {
        arrays["logits"].to_vec1::<f32>().unwrap()[i]
    };
    assert!((logit(&one, 0) - logit(&arrays, n - 1)).abs() < 1e-4);
    viz(&made).args(["export", "-o", "out.npz"]).assert().code(1).stderr(contains(".safetensors"));
}

#[test]
fn grounding_counts_by_type_of_phrase_on_scenes_and_on_entities() {
    let made = workspace();
    // Every object is a region with its true box here, so the best region always hits.
    let row = |text: &str, kind: &str| -> Vec<String> {
        let line = text.lines().find(|line| line.trim_start().starts_with(kind)).unwrap_or_else(|| panic!("{text}"));
        line.split_whitespace().map(String::from).collect()
    };
    let run = |args: &[&str]| {
        let output = viz(&made).arg("grounding").args(args).assert().success().get_output().stdout.clone();
        String::from_utf8(output).unwrap()
    };
    let text = run(&[]);
    let (object, pair, all) = (row(&text, "object"), row(&text, "pair"), row(&text, "all"));
    assert_eq!(object[1], pair[1], "two captions about one object, one about two: {text}");
    assert_eq!(all.last().map(String::as_str), Some("%"));
    assert_eq!(all[all.len() - 2], "100.0");
    let csv = std::fs::read_to_string(made.run().join("plots/grounding.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + 4 * 7);
    // A line a phrase: the hits add up to the table's share.
    let text = run(&["--per-example", "phrases.jsonl"]);
    let lines = std::fs::read_to_string(made.root().join("phrases.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len().to_string(), row(&text, "all")[1]);
    let hits = lines.iter().filter(|line| line["attention_pointing"] == true).count();
    let share = csv.lines().find_map(|line| line.strip_prefix(&format!("all,{},attention,", lines.len())));
    let share: f64 = share.unwrap().split(',').next().unwrap().parse().unwrap();
    assert!((hits as f64 / lines.len() as f64 - share).abs() < 1e-6, "{hits} of {}, not {share}", lines.len());
    let first = &lines[0];
    assert!(first["sentence"].as_str().unwrap().contains(first["phrase"].as_str().unwrap()), "{first}");
    assert!(first["attention_region"].as_u64().unwrap() >= 1, "{first}");
    viz(&made).args(["grounding", "--per-example", "none/x.csv"]).assert().code(1).stderr(contains("make it first"));

    let image = first_test_image(&made);
    let folder = made.root().join("entities");
    for (part, file, content) in [
        ("Sentences", format!("{image}.txt"), "[/EN#1/other A red circle] over [/EN#0/notvisual it] .\n"),
        (
            "Annotations",
            format!("{image}.xml"),
            "<annotation><size><width>128</width><height>128</height></size><object><name>1</name><bndbox>\
             <xmin>1</xmin><ymin>1</ymin><xmax>128</xmax><ymax>128</ymax></bndbox></object></annotation>",
        ),
    ] {
        std::fs::create_dir_all(folder.join(part)).unwrap();
        std::fs::write(folder.join(part).join(file), content).unwrap();
    }
    let text = run(&["--entities", folder.to_str().unwrap()]);
    assert!(text.contains("phrases left out: 0 without a box, 1 for nothing visible"), "{text}");
    assert_eq!(row(&text, "other")[1], "1");
    // The box is the whole picture, so every centre lies in it.
    assert!(row(&text, "other")[2..].join(" ").ends_with("100.0 % 100.0 %"), "{text}");
    viz(&made).args(["grounding", "--examples", "2"]).assert().success().stdout(contains("in 2 captions"));
    viz(&made).args(["grounding", "--entities", "data"]).assert().code(1).stderr(contains("annotations.zip"));
}

/// The stem of the first test image.
fn first_test_image(made: &Made) -> String {
    let splits = std::fs::read_to_string(made.root().join("data/scenes/splits.json")).unwrap();
    let splits: serde_json::Value = serde_json::from_str(&splits).unwrap();
    splits["test"][0].as_str().unwrap().trim_end_matches(".png").to_string()
}

#[test]
fn errors_name_what_is_missing_and_the_command_that_makes_it() {
    let made = workspace();
    let fails = |args: &[&str], message: &str| {
        viz(&made).args(args).assert().code(1).stderr(contains(message).and(contains("panicked").not()));
    };
    fails(&["--checkpoint", "nowhere"], "cargo run -p lxmert-train");
    fails(&["--features", "nowhere"], "cargo run -p lxmert-extract");
    fails(&["heatmap", "--image", "nobody.png"], "no image 'nobody.png'");
    fails(&["heatmap", "--layer", "3"], "no cross layer 3; there are 2");
    fails(&["heatmap", "--head", "0"], "no head 0; there are 2");
    fails(&["heads", "--layer", "9"], "no cross layer 9; there are 2");
    fails(&["overlay", "--text", "a red circle", "--word", "dog"], "it has: a, red, circle");
    fails(&["pair", "--image", "none.jpg", "--text", "a cat"], "none.jpg");
    fails(&["pair", "--image", "data/README.md", "--text", "a cat"], "README.md");
    fails(&["pair", "--image", "data/scenes/images/00000.png", "--text", "  "], "--text is empty");
    fails(&["relevancy", "--question", "how many ?"], "--task questions");
    fails(&["relevancy", "--photo", "data/scenes/images/00000.png"], "give one with --text");
    fails(&["curves", "--run", "runs/other"], "lxmert-train");
    viz(&made).args(["heatmap", "--direction", "sideways"]).assert().code(2);
    viz(&made).args(["pair", "--text", "a cat"]).assert().code(2);
}

#[test]
fn a_damaged_checkpoint_is_refused() {
    let made = workspace();
    let weights = made.run().join("best/model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    viz(&made).arg("heatmap").assert().code(1).stderr(contains("panicked").not().and(contains("error:")));
}

#[test]
fn a_photo_and_a_sentence_are_enough_in_an_empty_folder() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let drawn = tempfile::tempdir().unwrap();
    scenes_checkpoint(&drawn.path().join("model"));
    let scene = Scene::generate(&ScenesConfig::default(), 0);
    draw(&scene).save(drawn.path().join("scene.png")).unwrap();
    let viz = |arguments: &[&str]| {
        let mut command = Command::cargo_bin("lxmert-viz").unwrap();
        command.args(arguments).arg("--checkpoint").arg(drawn.path().join("model"));
        command.arg("--image").arg(drawn.path().join("scene.png")).args(["--text", "a red star"]);
        command.current_dir(root).env("XDG_CACHE_HOME", drawn.path().join("cache")).assert()
    };
    viz(&["pair"]).success().stdout(contains("36 regions by the scenes detector"));
    let plots = root.join("runs/scenes/plots");
    picture(&std::fs::read_dir(plots.join("photo-scene")).unwrap().map(|file| file.unwrap().path()).next().unwrap());
    // --image takes a file here too, and its regions are known by now.
    viz(&["relevancy", "--method", "relevancy"]).success().stderr(contains("regions from"));
    assert_eq!(std::fs::read_dir(root).unwrap().count(), 1);
}

#[test]
fn two_commands_at_once_write_the_files_of_one() {
    let made = workspace();
    let command = |arguments: &[&str]| {
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("lxmert-viz"));
        command.current_dir(made.root()).args(["--quiet", "--threads", "1"]).args(arguments);
        command.env("XDG_CACHE_HOME", made.root().join("cache"));
        command
    };
    let export = ["export", "--split", "test", "-o", "export.safetensors"];
    let explore = ["explore", "--pairs", "2", "-o", "explore.html"];
    let drawn = ["heads", "-o", "heads.png"];
    for (arguments, file) in [(&export[..], "export.safetensors"), (&explore, "explore.html"), (&drawn, "heads.png")] {
        let path = made.root().join(file);
        assert!(command(arguments).output().unwrap().status.success());
        let alone = std::fs::read(&path).unwrap();
        for _ in 0..2 {
            assert_eq!(at_once::at_once([command(arguments), command(arguments)]), [true, true]);
            assert!(std::fs::read(&path).unwrap() == alone, "{file}");
        }
    }
    let left = std::fs::read_dir(made.root()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(left.filter(|name| name.to_string_lossy().starts_with('.')).count(), 0, "unfinished files are left");
}

#[test]
fn completions_and_manual_pages_are_those_of_the_program() {
    manuals::check("lxmert-viz", "pair", "--checkpoint");
}
