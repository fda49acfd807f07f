//! Several processes under `mpirun`: as many as there are, the weights and measures are those of one; and however one of them
//! fails, all end, and the saved state is good.
//!
//! `cargo test -p lxmert-train --features mpi --test ranks`, with an MPI's `mpirun`.
#![cfg(feature = "mpi")]

mod common;

use assert_cmd::cargo::cargo_bin;
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// In what time a job must end once one of its ranks has failed.
const END: Duration = Duration::from_secs(10);

/// A folder with the data of so many images in it, and the data's own.
fn data(images: usize) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    common::write_data(&data, images);
    (folder, data)
}

/// `mpirun` of so many ranks, more than there may be cores.
fn mpirun(ranks: usize) -> Command {
    let mut command = Command::new("mpirun");
    command.args(["--oversubscribe", "--bind-to", "none", "-n", &ranks.to_string()]);
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command
}

/// Batches of 4, four to a step, the last of an epoch with fewer batches and examples; 12 steps.
fn arguments(data: &Path, output: &Path, more: &[&str]) -> Vec<String> {
    let text = format!(
        "--data {} --output {} --preset tiny --dropout 0.1 --batch-size 4 --accumulate 4 --steps 12 --lr 1e-3 \
         --recall-images 4 --threads 1 --quiet",
        data.display(),
        output.display()
    );
    let mut words: Vec<String> = text.split_whitespace().map(String::from).collect();
    // A flag is given once: what `more` says goes before what is usual.
    for flag in more.iter().filter(|word| word.starts_with("--")) {
        if let Some(at) = words.iter().position(|word| word == flag) {
            words.drain(at..at + 2);
        }
    }
    words.extend(more.iter().map(ToString::to_string));
    words
}

/// A training by so many ranks.
fn train(ranks: usize, data: &Path, output: &Path, more: &[&str]) -> Command {
    let mut command = if ranks == 1 { Command::new(cargo_bin("lxmert-train")) } else { mpirun(ranks) };
    if ranks > 1 {
        command.arg(cargo_bin("lxmert-train"));
    }
    command.args(arguments(data, output, more)).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(mut command: Command) -> Output {
    command.output().expect("mpirun of an MPI is needed")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

fn succeed(command: Command) {
    let output = run(command);
    assert!(output.status.success(), "{}: {}", output.status, said(&output));
}

/// What a run leaves, but for what a clock says: hashes of its checkpoints, and every measure and loss.
fn result(run: &Path) -> Vec<String> {
    let sha256 = |path: PathBuf| {
        let hash = Sha256::digest(std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())));
        hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let mut found: Vec<String> = ["best", "last"].map(|name| sha256(run.join(name).join("model.safetensors"))).to_vec();
    for line in std::fs::read_to_string(run.join("metrics.jsonl")).unwrap().lines() {
        let mut record: serde_json::Value = serde_json::from_str(line).unwrap();
        for timed in ["seconds", "examples_per_second"] {
            record.as_object_mut().unwrap().remove(timed);
        }
        found.push(record.to_string());
    }
    found
}

#[test]
fn weights_and_measures_are_equal_for_any_number_of_ranks() {
    // 29 images with their captions: the last step of an epoch has fewer batches, the last batch fewer examples.
    let (folder, data) = data(29);
    // Weights without a gradient, and the average of the others.
    let averaged = "--task retrieval --batch-size 2 --ema 0.9 --freeze lxmert.embeddings.* --lr-scale *.bias=0.5";
    let averaged: Vec<&str> = averaged.split_whitespace().collect();
    let kinds: [(&str, &[usize], &[&str]); 3] = [
        // Words are masked in matched pairs alone: some batches have none, and the word head then no gradient.
        ("matching", &[2, 3, 4], &["--masked-words", "1", "--alignment", "1"]),
        ("pretraining", &[3], &["--task", "pretraining", "--precision", "bf16"]),
        ("retrieval", &[2], &averaged),
    ];
    for (name, all_ranks, more) in kinds {
        let at = |ranks: usize| folder.path().join(format!("{name}-{ranks}"));
        succeed(train(1, &data, &at(1), more));
        let one = result(&at(1));
        assert!(one.len() > 3, "{one:?}");
        for &ranks in all_ranks {
            succeed(train(ranks, &data, &at(ranks), more));
            assert_eq!(result(&at(ranks)), one, "{name}, {ranks} ranks");
        }
    }
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let (folder, data) = data(24);
    let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
    succeed(train(1, &data, &whole, &[]));
    for (ranks, stop) in [(3, "2"), (1, "5"), (2, "7")] {
        let output = run(train(ranks, &data, &broken, &["--stop-after", stop]));
        assert_eq!(output.status.code(), Some(130), "{}", said(&output));
        let state = lxmert_train::resume::position(&broken.join("state.safetensors")).unwrap();
        assert_eq!(state.step.to_string(), stop);
    }
    succeed(train(3, &data, &broken, &["--resume"]));
    assert_eq!(result(&broken), result(&whole));
    // The measures of a checkpoint alone, too.
    let evaluate = |ranks: usize| {
        let mut command = if ranks == 1 { Command::new(cargo_bin("lxmert-train")) } else { mpirun(ranks) };
        if ranks > 1 {
            command.arg(cargo_bin("lxmert-train"));
        }
        command.arg("evaluate").arg(&whole).arg("--data").arg(&data).args(["--json", "--quiet", "--threads", "1"]);
        let output = run(command);
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(evaluate(2), evaluate(1));
}

#[test]
fn a_step_is_cut_into_a_batch_for_each_rank() {
    let (folder, data) = data(24);
    let run_folder = folder.path().join("run");
    let train = |ranks: usize, more: &[&str]| {
        let mut command = mpirun(ranks);
        command.arg(cargo_bin("lxmert-train")).args(["--preset", "tiny", "--threads", "1", "--recall-images", "0"]);
        command.arg("--data").arg(&data).arg("--output").arg(&run_folder).args(more);
        run(command)
    };
    let first = train(2, &["--batch-size", "8", "--stop-after", "1"]);
    assert!(said(&first).contains("2 ranks: a step of 8 examples is 2 ranks × 4"), "{}", said(&first));
    // Three ranks go on with the run as it was cut.
    let more = train(3, &["--batch-size", "8", "--stop-after", "2"]);
    assert_eq!(more.status.code(), Some(130), "{}", said(&more));
    assert!(said(&more).contains("make --accumulate a multiple of 3"), "{}", said(&more));
    let odd = train(3, &["--batch-size", "8", "--overwrite"]);
    assert!(said(&odd).contains("3 ranks cannot share a step of 8 examples evenly"), "{}", said(&odd));
    assert_eq!(odd.status.code(), Some(1));
}

/// A job that is to fail.
struct Long {
    child: Child,
    run: PathBuf,
}

impl Long {
    fn start(mut command: Command, run: PathBuf) -> Self {
        Self { child: command.spawn().expect("mpirun of an MPI is needed"), run }
    }

    fn step(&self) -> u64 {
        lxmert_train::resume::position(&self.run.join("state.safetensors")).map_or(0, |position| position.step)
    }

    /// Waits until some steps are saved.
    fn wait_for_state(&mut self) {
        let started = Instant::now();
        while self.step() < 2 {
            assert!(started.elapsed() < Duration::from_secs(120), "no state was saved");
            assert!(self.child.try_wait().unwrap().is_none(), "the job has ended");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The job's end, which must come soon.
    fn end(mut self) -> Output {
        let started = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            if started.elapsed() > END {
                let _ = self.child.kill();
                panic!("the job goes on {END:?} after one of its ranks has failed");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.child.wait_with_output().unwrap()
    }

    /// The processes of the ranks.
    fn ranks(&self) -> Vec<String> {
        let children =
            Command::new("ps").args(["-o", "pid=", "--ppid", &self.child.id().to_string()]).output().unwrap();
        String::from_utf8(children.stdout).unwrap().split_whitespace().map(String::from).collect()
    }
}

fn signal(name: &str, process: &str) {
    assert!(Command::new("kill").args([name, process]).status().unwrap().success());
}

/// What is saved of a run goes on to the weights of an unbroken one.
fn assert_resumes(data: &Path, run_folder: &Path, whole: &Path, more: &[&str]) {
    succeed(train(1, data, run_folder, more));
    assert_eq!(result(run_folder), result(whole));
}

#[test]
fn the_job_ends_when_a_rank_is_killed_or_asked_to_stop() {
    let (folder, data) = data(96);
    let (more, saving) = (["--steps", "24"], ["--steps", "24", "--save-every", "1"]);
    let whole = folder.path().join("whole");
    succeed(train(1, &data, &whole, &more));
    // Ctrl-C reaches mpirun; a scheduler's SIGTERM one rank alone; a kill -9 as well.
    for (name, of_rank) in [("-INT", None), ("-TERM", Some(1)), ("-KILL", Some(0)), ("-KILL", Some(1))] {
        let run_folder = folder.path().join(format!("{name}{of_rank:?}"));
        let mut long = Long::start(train(2, &data, &run_folder, &saving), run_folder.clone());
        long.wait_for_state();
        let ranks = long.ranks();
        match of_rank {
            None => signal(name, &long.child.id().to_string()),
            Some(rank) => signal(name, &ranks[rank]),
        }
        let output = long.end();
        assert!(!output.status.success(), "{name}: {}", said(&output));
        // `mpirun` may end before the ranks that it has killed.
        let started = Instant::now();
        while ranks.iter().any(|rank| Path::new("/proc").join(rank).exists()) {
            assert!(started.elapsed() < END, "{name}: a rank is left");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_resumes(&data, &run_folder, &whole, &more);
    }
}

#[test]
fn the_job_ends_when_one_rank_reads_damaged_data_or_cannot_write() {
    let (folder, data) = data(24);
    let (more, saving) = (["--steps", "4"], ["--steps", "4", "--save-every", "1"]);
    let whole = folder.path().join("whole");
    succeed(train(1, &data, &whole, &more));

    // Rank 0 may write no file of more than 20 MB (40 in some shells), as if the disk was full when it saves its state of 47.
    let run_folder = folder.path().join("full");
    let full = "trap '' XFSZ; test $OMPI_COMM_WORLD_RANK != 0 || ulimit -f 40000; exec \"$@\"";
    let mut command = mpirun(2);
    command.args(["sh", "-c", full, "sh"]).arg(cargo_bin("lxmert-train")).args(arguments(&data, &run_folder, &saving));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let (status, said) = Long::start(command, run_folder.clone()).end_after("state.safetensors");
    assert!(!status.success() && said.contains("rank 0: "), "{said}");
    assert_resumes(&data, &run_folder, &whole, &more);

    // An image of the shard says that it has more regions than there are; the rank whose batch has it says so.
    let run_folder = folder.path().join("damaged");
    let shard = data.join("features/shard-00000.safetensors");
    let good = std::fs::read(&shard).unwrap();
    let header = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let about: serde_json::Value = serde_json::from_slice(&good[8..8 + header]).unwrap();
    let counts = 8 + header + about["num_regions"]["data_offsets"][0].as_u64().unwrap() as usize;
    let mut bad = good.clone();
    bad[counts..counts + 4].copy_from_slice(&9999u32.to_le_bytes());
    std::fs::write(&shard, bad).unwrap();
    let job = Long::start(train(2, &data, &run_folder, &saving), run_folder.clone());
    let (status, said) = job.end_after("image 0 has 9999 regions");
    assert!(status.code() == Some(1) && said.contains("rank "), "{said}");
    std::fs::write(&shard, good).unwrap();
    assert_resumes(&data, &run_folder, &whole, &more);
}

impl Long {
    /// The job's end, which must come soon after one of its ranks has said so, and what all have said.
    fn end_after(mut self, fault: &str) -> (ExitStatus, String) {
        let (send, lines) = mpsc::channel();
        let stderr = BufReader::new(self.child.stderr.take().unwrap());
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        let mut said = String::new();
        while !said.contains(fault) {
            match lines.recv_timeout(Duration::from_secs(60)) {
                Ok(line) => said.extend([line.as_str(), "\n"]),
                Err(error) => {
                    let _ = self.child.kill();
                    panic!("'{fault}' was not said ({error}): {said}");
                }
            }
        }
        let status = self.end().status;
        lines.iter().for_each(|line| said.extend([line.as_str(), "\n"]));
        (status, said)
    }
}

/// As on two machines whose caches of the hub hold other files under one name.
#[test]
fn the_job_ends_when_the_weights_of_its_ranks_differ() {
    let (folder, data) = data(24);
    for (rank, seed) in [("0", "1"), ("1", "2")] {
        let place = folder.path().join(rank);
        std::fs::create_dir(&place).unwrap();
        succeed(train(1, &data, &place.join("start"), &["--steps", "1", "--seed", seed]));
    }
    let run_folder = folder.path().join("run");
    let mut command = mpirun(3);
    let there = format!("test $OMPI_COMM_WORLD_RANK = 1 && cd {0}/1 || cd {0}/0; exec \"$@\"", folder.path().display());
    command.args(["sh", "-c", &there, "sh"]).arg(cargo_bin("lxmert-train"));
    let words = arguments(&data, &run_folder, &["--init", "start/best", "--accumulate", "3"]);
    command.args(words.iter().filter(|word| !["--preset", "tiny"].contains(&word.as_str())));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let (status, said) = Long::start(command, run_folder.clone()).end_after("the weights after epoch 1");
    assert!(status.code() == Some(1) && said.contains("rank 1"), "{said}");
    // Neither is kept.
    assert!(!run_folder.join("best").exists() && !run_folder.join("report.json").exists());
}

/// Questions about the images of the data: "What color is it?".
fn questions(images: std::ops::Range<usize>) -> String {
    let colours = ["red", "green", "blue", "yellow"];
    let entry = |image: usize| {
        serde_json::json!({"question_id": image, "img_id": format!("{image:03}"), "sent": "What color is it?",
            "answer_type": "other", "label": {colours[image % 4]: 1.0}})
    };
    serde_json::Value::from_iter(images.map(entry)).to_string()
}

#[test]
fn predictions_are_equal_for_any_number_of_ranks() {
    let (folder, data) = data(45);
    let file = |name: &str| data.join(name).display().to_string();
    for (name, images) in [("train.json", 0..20), ("valid.json", 20..33), ("test.json", 33..44)] {
        std::fs::write(file(name), questions(images)).unwrap();
    }
    std::fs::write(file("answers.json"), r#"["red", "green", "blue", "yellow"]"#).unwrap();
    let program = |ranks: usize, words: &[&str]| {
        let mut command = mpirun(ranks);
        command
            .arg(cargo_bin("lxmert-train"))
            .args(words)
            .args(["--threads", "1", "--quiet"])
            .current_dir(folder.path());
        let output = run(command);
        assert!(output.status.success(), "{}", said(&output));
        output.stdout
    };
    let [train, valid, test, answers, features] =
        ["train.json", "valid.json", "test.json", "answers.json", "features"].map(file);
    let read = |path: String| std::fs::read_to_string(folder.path().join(path)).unwrap();
    let of = |ranks: usize| {
        let output = format!("run-{ranks}");
        program(
            ranks,
            &[
                "--task",
                "questions",
                "--preset",
                "tiny",
                "--batch-size",
                "3",
                "--accumulate",
                "6",
                "--steps",
                "4",
                "--train-file",
                &train,
                "--valid-file",
                &valid,
                "--test-file",
                &test,
                "--answers",
                &answers,
                "--features",
                &features,
                "--output",
                &output,
            ],
        );
        let (again, lines) = (format!("again-{ranks}"), format!("lines-{ranks}.jsonl"));
        let measured = program(
            ranks,
            &[
                "evaluate",
                "run-1",
                "--json",
                "--batch-size",
                "3",
                "--predictions",
                &again,
                "--per-example",
                &lines,
                "--features",
                &features,
                "--test-file",
                &valid,
            ],
        );
        [read(format!("{output}/predictions/vqa.json")), read(format!("{again}/vqa.json")), read(lines)]
            .into_iter()
            .chain([String::from_utf8(measured).unwrap()])
            .collect::<Vec<_>>()
    };
    let one = of(1);
    assert_eq!((one[0].matches("question_id").count(), one[2].lines().count()), (11, 13), "{one:?}");
    for ranks in [2, 3] {
        assert_eq!(of(ranks), one, "{ranks} ranks");
    }
}

/// One rank of the next test, started by it under `mpirun`.
#[test]
fn a_rank_that_panics() {
    let Ok(panics) = std::env::var("LXMERT_TEST_PANICS") else { return };
    let _connection = lxmert_train::ranks::connect().unwrap();
    let world = lxmert_train::ranks::world();
    assert_eq!(world.size(), 2);
    if world.rank().to_string() == panics {
        panic!("as a fault in the program does");
    }
    // The other waits for it.
    world.gather(Ok(Vec::new())).unwrap();
}

#[test]
fn the_job_ends_when_a_rank_panics() {
    for rank in ["0", "1"] {
        let mut command = mpirun(2);
        command.arg(std::env::current_exe().unwrap()).args(["--exact", "a_rank_that_panics", "--nocapture"]);
        command.env("LXMERT_TEST_PANICS", rank).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = Long::start(command, PathBuf::new()).end();
        assert!(!output.status.success());
        let (said, fault) = (said(&output), format!("rank {rank} of 2 panicked"));
        assert!(said.contains(&fault) && said.contains("as a fault in the program does"), "{said}");
    }
}
