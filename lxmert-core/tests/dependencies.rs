//! Checks licences and names of all dependencies against `deny.toml`, without a network.

use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// The strings of `key = [ ... ]` in `deny.toml`.
fn listed(key: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root().join("deny.toml")).unwrap();
    let (_, rest) = text.split_once(&format!("\n{key} = [")).unwrap();
    let (list, _) = rest.split_once(']').unwrap();
    list.split('"').skip(1).step_by(2).map(ToString::to_string).collect()
}

/// The crates in `exceptions` of `deny.toml`, each with the extra licence that it may have.
fn exceptions() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(root().join("deny.toml")).unwrap();
    let lines = text.lines().filter(|line| line.trim_start().starts_with("{ crate = "));
    let quoted = lines.map(|line| line.split('"').skip(1).step_by(2).map(ToString::to_string).collect::<Vec<_>>());
    quoted.map(|words| (words[0].clone(), words[1].clone())).collect()
}

/// Name and licence of every package in this platform's builds and tests, without the workspace's own.
fn dependencies() -> Vec<(String, Option<String>)> {
    let rustc = Command::new("rustc").arg("-vV").output().unwrap();
    let rustc = String::from_utf8(rustc.stdout).unwrap();
    let host = rustc.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", host])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap().iter().filter(|package| !package["source"].is_null());
    packages.map(|p| (p["name"].as_str().unwrap().into(), p["license"].as_str().map(Into::into))).collect()
}

/// Splits an expression at each `word` outside parentheses.
fn split<'a>(expression: &'a str, word: &str) -> Vec<&'a str> {
    let (mut parts, mut begin, mut depth) = (Vec::new(), 0, 0);
    for (at, character) in expression.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ if depth == 0 && at >= begin && expression[at..].starts_with(word) => {
                parts.push(&expression[begin..at]);
                begin = at + word.len();
            }
            _ => {}
        }
    }
    parts.push(&expression[begin..]);
    parts.into_iter().map(str::trim).collect()
}

/// Whether the allowed licences alone satisfy a licence expression.
fn is_met(expression: &str, allowed: &[String]) -> bool {
    let (alternatives, parts) = (split(expression, " OR "), split(expression, " AND "));
    if alternatives.len() > 1 {
        alternatives.iter().any(|part| is_met(part, allowed))
    } else if parts.len() > 1 {
        parts.iter().all(|part| is_met(part, allowed))
    } else if let Some(inner) = expression.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) {
        is_met(inner, allowed)
    } else {
        allowed.iter().any(|licence| licence == expression)
    }
}

#[test]
fn licence_expressions_are_evaluated() {
    let allowed = ["MIT".to_string(), "BSD-3-Clause".into()];
    for (expression, met) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("MIT AND GPL-3.0", false),
        ("(GPL-3.0 OR MIT) AND BSD-3-Clause", true),
        ("MIT OR (GPL-3.0 AND MPL-2.0)", true),
        ("(MIT OR GPL-3.0) AND MPL-2.0", false),
    ] {
        assert_eq!(is_met(expression, &allowed), met, "{expression}");
    }
}

#[test]
fn every_dependency_has_an_allowed_licence() {
    let (allowed, exceptions, dependencies) = (listed("allow"), exceptions(), dependencies());
    assert!(dependencies.len() > 50, "{} dependencies found", dependencies.len());
    let refused: Vec<_> = dependencies
        .iter()
        // Older manifests write `/` for OR.
        .filter(|(_, licence)| !licence.as_ref().is_some_and(|l| is_met(&l.replace('/', " OR "), &allowed)))
        .filter(|(name, licence)| !exceptions.iter().any(|(n, l)| n == name && Some(l) == licence.as_ref()))
        .collect();
    assert!(refused.is_empty(), "no licence of `allow` in deny.toml: {refused:?}");
}

#[test]
fn no_dependency_is_on_the_deny_list() {
    let denied = listed("deny");
    let found: Vec<_> = dependencies().into_iter().filter(|(name, _)| denied.contains(name)).collect();
    assert!(!denied.is_empty() && found.is_empty(), "on `deny` of deny.toml: {found:?}");
}
