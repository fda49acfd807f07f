//! How a training run reacts to signals from schedulers and closed terminals, and to closed or full output.
#![cfg(unix)]

mod common;
#[cfg(target_os = "linux")]
#[path = "../../lxmert-core/tests/faults/mod.rs"]
mod faults;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// A run with far more epochs than it has time for, which never saves its state on its own.
fn arguments(folder: &Path, run: &str) -> String {
    format!(
        "--data {folder} --output {folder}/{run} --preset tiny --batch-size 4 --epochs 5000 --save-every 1000000 \
         --save-minutes 1000 --recall-images 4 --threads 1",
        folder = folder.display()
    )
}

fn data() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    common::write_data(folder.path(), 24);
    folder
}

/// Starts a run through the shell with `launch`, and waits for its first record.
fn start(folder: &Path, run: &str, launch: &str) -> Child {
    let program = assert_cmd::cargo::cargo_bin("lxmert-train");
    let mut child = Command::new("sh")
        .args(["-c", &format!("{launch} {} {}", program.display(), arguments(folder, run))])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let records = folder.join(run).join("metrics.jsonl");
    while records.metadata().map_or(0, |metadata| metadata.len()) == 0 {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before its first record");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

fn send(signal: &str, child: &Child) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

fn step(folder: &Path, run: &str) -> Option<u64> {
    let position = lxmert_train::resume::position(&folder.join(run).join("state.safetensors"));
    position.ok().map(|position| position.step)
}

#[test]
fn sigterm_and_sighup_save_the_state_and_exit_130() {
    let folder = data();
    // If the tests run under nohup, child processes inherit that SIGHUP is ignored.
    let launch = if cfg!(target_os = "linux") { "exec env --default-signal=HUP" } else { "exec" };
    for signal in ["-TERM", "-HUP"] {
        let child = start(folder.path(), signal, launch);
        assert_eq!(step(folder.path(), signal), None);
        send(signal, &child);
        let Output { status, stderr, .. } = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&stderr);
        assert_eq!(status.code(), Some(130), "{signal}: {stderr}");
        assert!(step(folder.path(), signal).is_some_and(|step| step > 0), "{signal}: {stderr}");
        assert!(stderr.contains("run the same command again"), "{signal}: {stderr}");
    }
}

#[test]
fn a_run_under_nohup_survives_sighup() {
    let folder = data();
    let mut child = start(folder.path(), "nohup", "trap '' HUP; exec");
    send("-HUP", &child);
    std::thread::sleep(Duration::from_millis(500));
    assert!(child.try_wait().unwrap().is_none(), "it ended");
    send("-TERM", &child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

/// The command of a finished run, which prints the report and ends.
fn finished(folder: &Path) -> (PathBuf, Vec<String>) {
    let program = assert_cmd::cargo::cargo_bin("lxmert-train");
    let words = arguments(folder, "run").replace("--epochs 5000", "--epochs 1");
    let words: Vec<_> = words.split_whitespace().map(String::from).collect();
    assert!(Command::new(&program).args(&words).stdout(Stdio::null()).status().unwrap().success());
    (program, words)
}

#[test]
fn a_closed_pipe_is_quiet_and_a_full_disk_is_an_error() {
    let folder = data();
    let (program, words) = finished(folder.path());
    let mut child = Command::new(&program).args(&words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success() && !stderr.contains("panicked"), "{status}: {stderr}");

    #[cfg(target_os = "linux")]
    {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let Output { status, stderr, .. } = Command::new(&program).args(&words).stdout(full).output().unwrap();
        let stderr = String::from_utf8_lossy(&stderr);
        assert_eq!(status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("error: standard output: "), "{stderr}");
    }
}

/// Steps enough for a state that is saved between epochs and within them.
#[cfg(target_os = "linux")]
#[test]
fn a_run_whose_file_operations_fail_ends_with_the_same_weights() {
    let Some(faults) = faults::Faults::build() else { return };
    let data = data();
    // Small, so that a run is short; its files still take several writes each.
    let sizes = r#"{"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "x_layers": 1}"#;
    std::fs::write(data.path().join("small.json"), sizes).unwrap();
    let command = |folder: &Path, how: &str| {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin("lxmert-train"));
        command.arg("--data").arg(data.path()).arg("--output").arg(folder.join("run"));
        command.arg("--config").arg(data.path().join("small.json"));
        command.args("--epochs 2 --recall-images 2 --threads 1 --quiet".split(' ')).args(how.split(' '));
        command
    };
    let content = |path: &Path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        match name {
            "model.safetensors" | "vocab.txt" | "tokenizer.json" | "config.json" | "run.json" => {
                Some(std::fs::read(path).unwrap())
            }
            // They hold times.
            "metrics.jsonl" | "report.json" | "curves.png" | "README.md" => Some(Vec::new()),
            "run.lock" => None,
            _ if name.starts_with("events.") => None,
            _ => Some(Vec::new()),
        }
    };
    let plain = "--batch-size 8 --save-every 3";
    let bf16 = "--batch-size 8 --save-every 3 --precision bf16";
    let accumulating = "--batch-size 8 --accumulate 2 --save-every 2";
    let both = "--batch-size 8 --accumulate 2 --save-every 2 --precision bf16";
    let ways = if faults::asked().is_some() { vec![plain, bf16, accumulating] } else { vec![both] };
    for how in ways {
        faults.try_all(|_| {}, |folder| command(folder, how), content);
    }
}
