//! The readers, each with its seeds.

mod data;
mod hub;
mod stores;
mod weights;

use crate::harness::Target;
use std::path::{Path, PathBuf};

/// Every target, made in a folder.
pub const TARGETS: &[fn(&Path) -> Target] = &[
    weights::pickle,
    weights::torch,
    stores::student,
    weights::safetensors,
    stores::index,
    stores::shard,
    stores::names,
    stores::journal,
    stores::tsv,
    data::captions,
    data::list,
    data::questions,
    data::vqa,
    data::refcoco,
    data::instances,
    data::entities,
    data::images,
    weights::config,
    weights::checkpoint,
    weights::vocabulary,
    weights::tokenizer,
    data::splits,
    data::answers,
    weights::run,
    hub::hub,
];

const MB: usize = 1 << 20;

fn text<E: ToString>(error: E) -> String {
    error.to_string()
}

/// Whether any of these accepts the file; otherwise all their messages.
fn any<const N: usize>(results: [Result<(), String>; N]) -> Result<(), String> {
    match results.iter().any(Result::is_ok) {
        true => Ok(()),
        false => Err(results.into_iter().filter_map(Result::err).collect::<Vec<_>>().join("; ")),
    }
}

/// Every file of a folder of fixtures whose name ends so.
fn fixtures(folder: &str, endings: &[&str]) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| endings.iter().any(|ending| path.to_string_lossy().ends_with(ending)));
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn texts(seeds: &[&str]) -> Vec<Vec<u8>> {
    seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect()
}

/// A new folder below `root`.
fn folder(root: &Path, name: &str) -> PathBuf {
    let folder = root.join(name);
    std::fs::create_dir(&folder).unwrap();
    folder
}

/// A target whose file is `file` in a new folder.
fn target(
    root: &Path,
    name: &'static str,
    file: &str,
    seeds: Vec<Vec<u8>>,
    words: &'static [&'static str],
    read: impl Fn(&Path) -> Result<(), String> + 'static,
) -> Target {
    let path = folder(root, name).join(file);
    let at = path.clone();
    Target { name, path, seeds, words, repair: None, spare: 4 * MB, per_byte: 200, read: Box::new(move || read(&at)) }
}

const JSON: &[&str] =
    &["{", "}", "[", "]", "\"", ":", ",", "null", "\\u0000", "\\ud800", "\u{feff}", "\n", "é", "1e400"];

fn remove(folder: &Path) {
    if folder.exists() {
        std::fs::remove_dir_all(folder).unwrap();
    }
}

const PICKLE: &[&str] = &[
    "\u{1}",
    "(",
    ".",
    "N",
    "]",
    "}",
    "a",
    "e",
    "s",
    "u",
    "t",
    "l",
    "d",
    "h\u{1}",
    "q\u{1}",
    "R",
    "b",
    "Q",
    "X\u{4}\0\0\0name",
    "ccollections\nOrderedDict\n",
    "ctorch\nFloatStorage\n",
    "ctorch._utils\n_rebuild_tensor_v2\n",
    "cnumpy\ndtype\n",
    "cnumpy.core.multiarray\n_reconstruct\n",
    "c_codecs\nencode\n",
    "L9999999999999999999L\n",
    "storage",
    "cpu",
    "f4",
];
