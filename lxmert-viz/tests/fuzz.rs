//! Mutated files for every reader of bytes from elsewhere: none may panic, take memory beyond a bound that grows with the
//! file, or take long.
//!
//! `cargo test` replays the corpus (seeds, and `tests/corpus/TARGET` with the files that once fell) and mutates it for a
//! fraction of a second. By hand, a million files of each target or some of them:
//!
//! ```sh
//! LXMERT_FUZZ_EXECUTIONS=1000000 nice cargo test -p lxmert-viz --test fuzz -- --nocapture
//! LXMERT_FUZZ_SECONDS=600 LXMERT_FUZZ_SEED=7 LXMERT_FUZZ_TARGETS=torch,captions nice cargo test -p lxmert-viz --test fuzz
//! ```
//!
//! Readers of lxmert-extract, lxmert-train and lxmert-viz run twice as fast with `--config profile.dev.package.NAME.opt-level=3` for each.
//!
//! A file that falls is kept in `target/tmp`; once mended, it goes to `tests/corpus`.

#[path = "fuzz/harness.rs"]
mod harness;
#[path = "fuzz/targets.rs"]
mod targets;

#[global_allocator]
static COUNTED: harness::Counted = harness::Counted;

#[test]
fn mutated_files_make_no_reader_panic_or_take_much_memory_or_time() {
    // In memory where the system has such a place, so that the disk sets no pace.
    let shared = std::path::Path::new("/dev/shm");
    let folder = match tempfile::tempdir_in(shared) {
        Ok(folder) => folder,
        Err(_) => tempfile::tempdir().unwrap(),
    };
    let budget = harness::Budget::from_env();
    harness::watch();
    let mut failures = Vec::new();
    for make in targets::TARGETS {
        let target = make(folder.path());
        if budget.wants(target.name) {
            failures.extend(target.fuzz(&budget));
        }
    }
    drop(std::panic::take_hook());
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}
