//! Two commands that work on the same folder at the same time: each is right, or refused with a clear message.

use std::process::{Command, Output, Stdio};

/// What a refusal says: who is in the way, what differs, or what is not complete yet.
const REFUSALS: [&str; 12] = [
    "another process is writing to this store",
    "another process was just finishing this store; run again",
    "another process made this folder",
    "was made with other settings",
    "is training here; wait for it",
    "--overwrite replaces it",
    "extract with --part",
    "run the extraction with --part",
    "run `lxmert-extract merge",
    "is a whole store already",
    "not a feature store",
    "train one with",
];

/// Starts both commands and waits for both; returns whether each succeeded. One that fails must say why.
pub fn at_once(commands: [Command; 2]) -> [bool; 2] {
    let children = commands.map(|mut command| {
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        (format!("{command:?}"), child)
    });
    children.map(|(command, child)| {
        let Output { status, stderr, .. } = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&stderr);
        let refused = status.code() == Some(1)
            && stderr.contains("error: ")
            && !stderr.contains("panicked")
            && REFUSALS.iter().any(|words| stderr.contains(words));
        assert!(status.success() || refused, "{command}\n{status}: {stderr}");
        status.success()
    })
}
