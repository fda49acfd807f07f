//! Makes each file operation of a command fail in turn: killed before it, refused for want of room, broken. Kills it at
//! random moments as well.
//!
//! `LXMERT_FAULTS=all` tries every operation in every way, `LXMERT_FAULTS=50` at most 50 of each kind; otherwise few,
//! evenly spread, so that a test takes seconds. `LXMERT_KILLS=200` is the number of random moments.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

/// Operations that are tried of each kind unless all are, and random moments.
const SOME: u64 = 4;

/// How many operations of each kind are to be tried, where the environment says it.
pub fn asked() -> Option<u64> {
    let asked = std::env::var("LXMERT_FAULTS").ok()?;
    Some(if asked == "all" { u64::MAX } else { asked.parse().expect("LXMERT_FAULTS is all or a number") })
}

/// Fractions of a run's time, evenly spread in every part of the sequence, from a start that differs each time.
fn moments() -> impl Iterator<Item = f64> {
    let count = std::env::var("LXMERT_KILLS").map_or(SOME, |count| count.parse().expect("LXMERT_KILLS is a number"));
    let start = f64::from(SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos()) / 1e9;
    (0..count).map(move |number| (start + number as f64 * 0.618_033_988_75).fract())
}

/// The library that counts and breaks file operations.
pub struct Faults {
    folder: tempfile::TempDir,
}

impl Faults {
    /// Compiles the library; none, with a line that says so, where there is no C compiler.
    pub fn build() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let source = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../lxmert-core/tests/faults/faults.c"));
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .arg(folder.path().join("faults.so"))
            .arg(source)
            .arg("-ldl")
            .status();
        match compiled {
            Ok(status) => assert!(status.success(), "faults.c does not compile"),
            Err(_) => {
                eprintln!("left out: there is no C compiler here");
                return None;
            }
        }
        Some(Self { folder })
    }

    /// Runs a command whose operations below `root` count.
    fn run(&self, mut command: Command, root: &Path, kind: &str, at: u64) -> Output {
        command.env("LD_PRELOAD", self.folder.path().join("faults.so"));
        command.env("FAULTS_BELOW", root).env("FAULTS_KIND", kind).env("FAULTS_AT", at.to_string());
        command.env("FAULTS_COUNT", self.count()).output().unwrap()
    }

    /// Runs a command and kills it after `delay`.
    fn run_for(mut command: Command, delay: Duration) -> Output {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(delay);
        child.kill().unwrap();
        child.wait_with_output().unwrap()
    }

    fn count(&self) -> PathBuf {
        self.folder.path().join("count")
    }

    /// Breaks the operations of `command`, a function of the folder it works in, one by one. After each the command is run
    /// again, undisturbed, and must end with the files of a run that nothing disturbed. `prepare` fills a new folder;
    /// `content` is what must be equal of a file; nothing of one that holds times, none for one that may be there or not.
    pub fn try_all(
        &self,
        prepare: impl Fn(&Path),
        command: impl Fn(&Path) -> Command,
        content: impl Fn(&Path) -> Option<Vec<u8>>,
    ) {
        let folder = || {
            let folder = tempfile::tempdir().unwrap();
            let root = folder.path().canonicalize().unwrap();
            prepare(&root);
            (folder, root)
        };
        let (_whole, root) = folder();
        let started = Instant::now();
        let output = self.run(command(&root), &root, "none", 0);
        let whole = started.elapsed();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let operations: u64 = std::fs::read_to_string(self.count()).unwrap().parse().unwrap();
        let expected = files(&root, &content);
        assert!(operations > 10 && !expected.is_empty(), "{operations} operations");

        let step = operations.div_ceil(asked().unwrap_or(SOME));
        let mut tried = BTreeMap::new();
        let mut check = |kind: &'static str, root: &Path, output: Output, place: String| {
            let Output { status, stderr, .. } = output;
            let stderr = String::from_utf8_lossy(&stderr);
            let what = format!("{kind} {place}: {status}: {stderr}");
            match kind {
                "kill" => assert!(status.signal() == Some(9) || status.success(), "{what}"),
                // What fails while it tidies up may be passed over.
                _ => assert!(status.success() || (status.code() == Some(1) && stderr.contains("error: ")), "{what}"),
            }
            assert!(!stderr.contains("panicked"), "{what}");
            let again = command(root).output().unwrap();
            let stderr = String::from_utf8_lossy(&again.stderr);
            assert!(again.status.success(), "after {what}\nthe next run failed: {stderr}");
            let found = files(root, &content);
            let different: Vec<_> = expected.iter().filter(|(path, bytes)| found.get(*path) != Some(bytes)).collect();
            let different: Vec<_> = different.iter().map(|(path, _)| path).collect();
            assert!(different.is_empty(), "after {what}\nthese files differ: {different:?}");
            let left: Vec<_> = found.keys().filter(|path| !expected.contains_key(*path)).collect();
            assert!(left.is_empty(), "after {what}\nthese files are left: {left:?}");
            *tried.entry(kind).or_insert(0) += 1;
        };
        for (kind, first) in [("kill", 1), ("full", step.div_ceil(3).max(1)), ("broken", (2 * step).div_ceil(3).max(1))]
        {
            for at in (first..=operations).step_by(step as usize) {
                let (_folder, root) = folder();
                let output = self.run(command(&root), &root, kind, at);
                check(kind, &root, output, format!("at operation {at} of {operations}"));
            }
        }
        for fraction in moments() {
            let (_folder, root) = folder();
            let output = Self::run_for(command(&root), whole.mul_f64(fraction));
            check("kill", &root, output, format!("after {:.1} % of its time", 100.0 * fraction));
        }
        println!("{operations} file operations; tried {tried:?}; nothing lost, doubled or left behind");
    }
}

/// Every file below a folder by its path, with what must be equal of it.
fn files(root: &Path, content: &impl Fn(&Path) -> Option<Vec<u8>>) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    if let Some(content) = content(&path) {
                        found.insert(path.strip_prefix(root).unwrap().to_path_buf(), content);
                    }
                }
            }
        }
    }
    found
}
