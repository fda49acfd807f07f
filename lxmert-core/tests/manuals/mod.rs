//! What `completions SHELL` and `man DIR` of a program give.

use assert_cmd::Command;
use std::path::Path;

/// Checks a program's scripts and pages, in an empty folder. `subcommand` is one that it has, and `option` one of that.
pub fn check(program: &str, subcommand: &str, option: &str) {
    let folder = tempfile::tempdir().unwrap();
    let run = |words: &[&str]| Command::cargo_bin(program).unwrap().args(words).current_dir(folder.path()).assert();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = run(&["completions", shell]).success().get_output().stdout.clone();
        let script = String::from_utf8(script).unwrap();
        for word in [program, subcommand, option.trim_start_matches('-'), "completions"] {
            assert!(script.contains(word), "{shell}: no {word}");
        }
        if shell == "bash" && Path::new("/bin/bash").exists() {
            // Bash takes the script, and then completes the program's words by it.
            let path = folder.path().join("script");
            std::fs::write(&path, &script).unwrap();
            let ask = format!(
                "source '{}' && COMP_WORDS=({program} {subcommand} {option}) COMP_CWORD=2 && _{} {program} {option} \
                 {subcommand} && echo \"${{COMPREPLY[@]}}\"",
                path.display(),
                program.replace('-', "__")
            );
            let asked = std::process::Command::new("/bin/bash").args(["-c", &ask]).output().unwrap();
            let said = String::from_utf8_lossy(&asked.stdout).into_owned();
            assert!(said.split_whitespace().any(|word| word == option), "{said} {asked:?}");
            std::fs::remove_file(&path).unwrap();
        }
    }
    run(&["completions", "dos"]).code(2).stderr(predicates::str::contains("bash, elvish, fish, powershell, zsh"));

    run(&["man", "pages/man1"]).success();
    let pages = folder.path().join("pages/man1");
    for (page, words) in [
        (format!("{program}.1"), vec![".SH NAME", ".SH SYNOPSIS", subcommand]),
        (format!("{program}-{subcommand}.1"), vec![".SH NAME", ".SH OPTIONS", option.trim_start_matches('-')]),
    ] {
        let text = std::fs::read_to_string(pages.join(&page)).unwrap_or_else(|error| panic!("{page}: {error}"));
        let text = text.replace("\\-", "-");
        for word in words {
            assert!(text.contains(word), "{page}: no {word}");
        }
    }
    for page in std::fs::read_dir(&pages).unwrap() {
        let page = page.unwrap().file_name().into_string().unwrap();
        assert!(page.starts_with(program) && page.ends_with(".1") && !page.contains("-help"), "{page}");
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["pages"]);
}
