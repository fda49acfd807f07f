//! Where a checkpoint is: folders, files, and repositories on the hub (a server of its protocol on the loopback
//! interface; nothing here contacts a real host).

mod loopback;

use loopback::serve_texts as serve;
use lxmert_core::Error;
use lxmert_core::checkpoint::{Hub, HubOptions, Place};
use std::path::Path;
use std::time::Duration;

fn hub(cache: &Path, endpoint: &str) -> Hub {
    let options = HubOptions {
        endpoint: Some(endpoint.into()),
        token: Some("hf_test".into()),
        attempts: 2,
        retry_delay: Duration::from_millis(2),
        ..HubOptions::new(cache)
    };
    Hub::new(options).unwrap()
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

#[test]
fn fetches_a_repositorys_weights_with_the_files_beside_them() {
    let cache = tempfile::tempdir().unwrap();
    let both = serve(&[
        ("config.json", "{}"),
        ("vocab.txt", "[PAD]"),
        ("model.safetensors", "safe"),
        ("pytorch_model.bin", "a pickle"),
    ]);
    let place = Place::on_hub("hf:owner/repo", &hub(cache.path(), &both), false).unwrap();
    assert_eq!(std::fs::read_to_string(&place.weights).unwrap(), "safe");
    assert_eq!(std::fs::read_to_string(place.folder.join("config.json")).unwrap(), "{}");
    assert!(place.folder.join("vocab.txt").is_file() && !place.folder.join("answers.json").exists());
    assert!(!place.folder.join("pytorch_model.bin").exists(), "not fetched if there is safetensors");

    // The hub is gone, but the fetched files are in Python's own cache.
    let gone = hub(cache.path(), "http://127.0.0.1:9");
    assert_eq!(Place::on_hub("hf:owner/repo", &gone, false).unwrap(), place);

    let other = tempfile::tempdir().unwrap();
    let message =
        Place::on_hub("hf:owner/repo", &hub(other.path(), "http://127.0.0.1:9"), false).unwrap_err().to_string();
    assert!(message.contains("no connection") && message.contains("owner/repo"), "{message}");
}

#[test]
fn fetches_the_bin_file_if_the_revision_has_no_safetensors() {
    let cache = tempfile::tempdir().unwrap();
    let old = serve(&[("pytorch_model.bin", "a pickle"), ("Epoch20_LXRT.pth", "a snapshot")]);
    let place = Place::on_hub("hf:owner/repo@v1", &hub(cache.path(), &old), false).unwrap();
    assert_eq!((name(&place.weights), place.folder.join("config.json").exists()), ("pytorch_model.bin", false));
    assert!(cache.path().join("models--owner--repo/refs/v1").is_file());

    let named = Place::on_hub("hf:owner/repo/Epoch20_LXRT.pth@v1", &hub(cache.path(), &old), false).unwrap();
    assert_eq!(std::fs::read_to_string(&named.weights).unwrap(), "a snapshot");

    let none = serve(&[("README.md", "nothing here")]);
    let other = tempfile::tempdir().unwrap();
    let error = Place::on_hub("hf:owner/repo", &hub(other.path(), &none), false).unwrap_err();
    assert!(matches!(error, Error::Hub { .. }), "{error:?}");
    assert!(error.to_string().contains("404"), "{error}");
    for wrong in ["hf:owner", "hf:owner@v1", "hf:owner/repo@", "hf:../repo", "hf:owner/..@v1"] {
        let error = Place::on_hub(wrong, &hub(other.path(), &none), false).unwrap_err();
        assert!(matches!(error, Error::Argument(_)), "{wrong}: {error:?}");
    }
}

#[test]
fn finds_the_weights_of_a_folder_a_run_and_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let error = Place::find(folder.path()).unwrap_err().to_string();
    assert!(error.contains("model.safetensors") && error.contains("pytorch_model.bin"), "{error}");
    let snapshot = folder.path().join("Epoch20_LXRT.pth");
    std::fs::write(&snapshot, "").unwrap();
    let error = Place::find(folder.path()).unwrap_err().to_string();
    assert!(error.contains("name the weights file itself, such as") && error.ends_with("Epoch20_LXRT.pth"), "{error}");
    std::fs::write(folder.path().join("pytorch_model.bin"), "").unwrap();
    assert_eq!(name(&Place::find(folder.path()).unwrap().weights), "pytorch_model.bin");
    std::fs::write(folder.path().join("model.safetensors"), "").unwrap();
    let place = Place::find(folder.path()).unwrap();
    assert_eq!((name(&place.weights), place.folder.as_path()), ("model.safetensors", folder.path()));

    let place = Place::find(&snapshot).unwrap();
    assert_eq!((&place.weights, place.folder.as_path()), (&snapshot, folder.path()));
    // The folder of a training run stands for its best checkpoint.
    let runs = tempfile::tempdir().unwrap();
    let best = runs.path().join("pretrain/best");
    std::fs::create_dir_all(&best).unwrap();
    std::fs::write(best.join("model.safetensors"), "").unwrap();
    assert_eq!(Place::find(runs.path().join("pretrain")).unwrap().folder, best);
}

#[test]
fn a_missing_place_is_an_error_that_lists_the_forms_and_similar_names() {
    let runs = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(runs.path().join("pretrain")).unwrap();
    let error = Place::find(runs.path().join("pretrian/best")).unwrap_err().to_string();
    assert!(error.contains("there is no 'pretrian' in ") && error.contains("did you mean 'pretrain'?"), "{error}");
    assert!(error.contains("a weights file, or hf:owner/repo[@revision]") && !error.contains("on the hub"), "{error}");
    let error = Place::find("unc-nlp/lxmert-base-uncased").unwrap_err().to_string();
    assert!(error.contains("(on the hub: hf:unc-nlp/lxmert-base-uncased)"), "{error}");
}
