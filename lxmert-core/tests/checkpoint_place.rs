//! Where a checkpoint lies: folders, files, and repositories of the hub (a server of its protocol on the loopback
//! interface; nothing here asks a real host).

use lxmert_core::Error;
use lxmert_core::checkpoint::{Hub, HubOptions, Place};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves these files as `owner/repo` at revisions `main` and `v1`; ends with the test's process.
fn serve(files: &'static [(&'static str, &'static str)]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || answer(&stream.unwrap(), files));
        }
    });
    endpoint
}

fn answer(mut stream: &TcpStream, files: &[(&str, &str)]) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    assert!(headers.iter().all(|line| !line.to_ascii_lowercase().starts_with("range:")), "small files come whole");
    let (method, path) = request.rsplit_once(' ').unwrap().0.split_once(' ').unwrap();
    let revision = ["main", "v1"].into_iter().find(|revision| path.contains(&format!("/{revision}")));
    let name = path.strip_prefix("/owner/repo/resolve/").and_then(|rest| rest.split_once('/')).map(|(_, name)| name);
    let found = revision.and_then(|_| files.iter().position(|(file, _)| Some(*file) == name));
    let _ = match found {
        Some(i) => {
            let content = files[i].1;
            let body = if method == "HEAD" { "" } else { content };
            let length = content.len();
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nX-Repo-Commit: {COMMIT}\r\nETag: \"{i:040}\"\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            )
        }
        None if revision.is_some() && path.starts_with("/api/models/owner/repo/revision/") => {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}")
        }
        None => write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
    };
    let _ = stream.flush();
}

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
fn a_repository_gives_its_weights_with_what_lies_beside_them() {
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
    assert!(!place.folder.join("pytorch_model.bin").exists(), "not fetched where there is safetensors");

    // The hub is gone: what was fetched is used, in Python's own cache.
    let gone = hub(cache.path(), "http://127.0.0.1:9");
    assert_eq!(Place::on_hub("hf:owner/repo", &gone, false).unwrap(), place);

    let other = tempfile::tempdir().unwrap();
    let message =
        Place::on_hub("hf:owner/repo", &hub(other.path(), "http://127.0.0.1:9"), false).unwrap_err().to_string();
    assert!(message.contains("no connection") && message.contains("owner/repo"), "{message}");
}

#[test]
fn a_repository_without_safetensors_gives_its_bin_file_of_the_revision() {
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
    for wrong in ["hf:owner", "hf:owner/repo@", "hf:../repo", "hf:owner/..@v1"] {
        let error = Place::on_hub(wrong, &hub(other.path(), &none), false).unwrap_err();
        assert!(matches!(error, Error::Argument(_)), "{wrong}: {error:?}");
    }
}

#[test]
fn a_folder_names_its_weights_and_a_file_is_taken_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let error = Place::find(folder.path()).unwrap_err().to_string();
    assert!(error.contains("model.safetensors") && error.contains("pytorch_model.bin"), "{error}");
    std::fs::write(folder.path().join("pytorch_model.bin"), "").unwrap();
    assert_eq!(name(&Place::find(folder.path()).unwrap().weights), "pytorch_model.bin");
    std::fs::write(folder.path().join("model.safetensors"), "").unwrap();
    let place = Place::find(folder.path()).unwrap();
    assert_eq!((name(&place.weights), place.folder.as_path()), ("model.safetensors", folder.path()));

    let file = folder.path().join("EPOCH20_LXRT.pth");
    std::fs::write(&file, "").unwrap();
    let place = Place::find(&file).unwrap();
    assert_eq!((&place.weights, place.folder.as_path()), (&file, folder.path()));
    assert!(Place::find(folder.path().join("absent")).is_err());
}
