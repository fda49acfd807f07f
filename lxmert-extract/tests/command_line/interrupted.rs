//! Commands that are killed, stopped, refused by the disk, or run beside each other.

use super::imports::tsv_line;
use super::*;

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
