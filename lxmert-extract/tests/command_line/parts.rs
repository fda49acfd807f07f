//! Parts of an extraction by several processes, and their merge.

use super::*;

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
