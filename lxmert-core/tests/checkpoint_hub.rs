//! The hub's client against a server on the loopback interface: what it fetches, where it stores it, and its errors. No
//! test contacts a real host.

#[path = "checkpoint_hub/server.rs"]
mod server;

use lxmert_core::checkpoint::{ExpectedFile, Hub, HubFile, HubOptions};
use lxmert_core::{Error, Result};
use server::{FILE, Head, Published, Reply, Server};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::time::Duration;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const NEXT_COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";
const GIT_HASH: &str = "fedcba9876543210fedcba9876543210fedcba98";

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(seed: u32) -> Vec<u8> {
    (0..200_000u32).map(|i| ((i ^ seed).wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// A large file: the hub names it by its SHA-256.
fn weights() -> Published {
    let content = bytes(1);
    Published { etag: sha256(&content), content, commit: COMMIT.into(), large: true }
}

/// The same bytes as a small file: named by git's hash, which covers more than the content.
fn small() -> Published {
    Published { etag: GIT_HASH.into(), large: false, ..weights() }
}

fn file() -> HubFile {
    format!("owner/repo/{FILE}").parse().unwrap()
}

fn options(cache: &Path, endpoint: &str) -> HubOptions {
    HubOptions {
        endpoint: Some(endpoint.into()),
        token: Some("hf_test".into()),
        attempts: 3,
        retry_delay: Duration::from_millis(2),
        ..HubOptions::new(cache)
    }
}

struct Cache(tempfile::TempDir);

impl Cache {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn folder(&self) -> PathBuf {
        self.0.path().join("models--owner--repo")
    }

    fn fetch(&self, server: &Server, expected: Option<&ExpectedFile<'_>>) -> Result<PathBuf> {
        Hub::new(options(self.0.path(), &server.endpoint())).unwrap().fetch(&file(), expected, false)
    }

    fn offline(&self, expected: Option<&ExpectedFile<'_>>) -> Result<PathBuf> {
        let options = HubOptions { offline: true, ..options(self.0.path(), "http://127.0.0.1:9") };
        Hub::new(options).unwrap().fetch(&file(), expected, false)
    }

    /// The names in `blobs`, sorted.
    fn blobs(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.folder().join("blobs")) else { return Vec::new() };
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn pointer(&self, commit: &str) -> PathBuf {
        self.folder().join("snapshots").join(commit).join("folder/weights.pth")
    }

    /// Asserts that there is neither a finished blob nor a name that points to one.
    fn assert_no_file(&self) {
        assert!(self.blobs().iter().all(|name| name.ends_with(".incomplete")), "{:?}", self.blobs());
        assert!(self.pointer(COMMIT).symlink_metadata().is_err(), "there is a file in the snapshot");
        assert!(self.offline(None).is_err());
    }
}

/// Checks that the result is an error of the hub with each of `parts` in its message.
fn assert_error(result: Result<PathBuf>, parts: &[&str]) {
    let error = result.expect_err("the fetch succeeded");
    assert!(matches!(error, Error::Hub { .. }), "{error:?}");
    let message = error.to_string();
    for part in ["hf:owner/repo/folder/weights.pth"].iter().chain(parts) {
        assert!(message.contains(part), "no '{part}' in: {message}");
    }
}

#[test]
fn fetches_from_a_space() {
    let (published, cache) = (weights(), Cache::new());
    let server = Server::good(&published);
    let hub = Hub::new(options(cache.0.path(), &server.endpoint())).unwrap();
    let file: HubFile = "spaces/owner/repo/folder/weights.pth".parse().unwrap();
    assert_eq!(file.to_string(), "hf:spaces/owner/repo/folder/weights.pth");
    let path = hub.fetch(&file, None, false).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), published.content);
    assert!(path.starts_with(cache.0.path().join("spaces--owner--repo")), "{}", path.display());
    assert!(server.log().iter().any(|line| line.contains(" /spaces/owner/repo/resolve/")), "{:?}", server.log());
}

#[test]
fn stores_a_download_where_python_looks_for_it() {
    for published in [weights(), small()] {
        let (server, cache) = (Server::good(&published), Cache::new());
        let path = cache.fetch(&server, None).unwrap();
        assert_eq!(path, cache.pointer(COMMIT));
        assert_eq!(std::fs::read(&path).unwrap(), published.content);
        assert_eq!(cache.blobs(), [published.etag.as_str()]);
        assert_eq!(std::fs::read_to_string(cache.folder().join("refs/main")).unwrap(), COMMIT);
        #[cfg(unix)]
        assert_eq!(
            std::fs::read_link(&path).unwrap(),
            Path::new("../../../blobs").join(&published.etag),
            "a relative link, so that the cache can be moved"
        );
        let asked = server.log();
        let resolved = asked.iter().find(|line| line.starts_with("GET")).unwrap();
        assert_eq!(resolved, "GET /owner/repo/resolve/main/folder/weights.pth whole Bearer hf_test");
    }
}

#[test]
fn asks_for_the_revision_and_stores_its_commit() {
    let (server, cache) = (Server::good(&weights()), Cache::new());
    let hub = Hub::new(options(cache.0.path(), &server.endpoint())).unwrap();
    let path = hub.fetch(&"owner/repo/folder/weights.pth@v1".parse().unwrap(), None, false).unwrap();
    assert_eq!(path, cache.pointer(COMMIT));
    assert_eq!(std::fs::read_to_string(cache.folder().join("refs/v1")).unwrap(), COMMIT);
    assert!(server.log().iter().all(|line| line.contains("/resolve/v1/") || line.contains("/storage/")));
}

#[test]
fn a_second_call_downloads_nothing() {
    let published = weights();
    let (server, cache) = (Server::good(&published), Cache::new());
    let expected = ExpectedFile { size: published.content.len() as u64, sha256: &published.etag };
    let first = cache.fetch(&server, Some(&expected)).unwrap();
    let asked = server.log().len();
    assert_eq!(cache.fetch(&server, Some(&expected)).unwrap(), first);
    assert_eq!(server.log().len(), asked, "a file with the expected hash is used without asking");
    assert_eq!(cache.fetch(&server, None).unwrap(), first);
    assert!(server.log().len() > asked, "without an expected hash the hub is asked for a newer version");
    assert_eq!(server.content_requests(), ["whole"]);
}

#[test]
fn fetches_a_newer_version() {
    let cache = Cache::new();
    cache.fetch(&Server::good(&weights()), None).unwrap();
    let content = bytes(2);
    let newer = Published { etag: sha256(&content), content, commit: NEXT_COMMIT.into(), large: true };
    let path = cache.fetch(&Server::good(&newer), None).unwrap();
    assert_eq!((path.as_path(), std::fs::read(&path).unwrap()), (cache.pointer(NEXT_COMMIT).as_path(), newer.content));
}

#[test]
fn resumes_a_broken_download() {
    for published in [weights(), small()] {
        let faults = |n: usize| [Reply::Cut(70_000), Reply::Cut(50_000), Reply::Good][n.min(2)];
        let (server, cache) = (Server::start(&published, Head::Good, faults), Cache::new());
        let path = cache.fetch(&server, None).unwrap();
        assert_eq!(std::fs::read(path).unwrap(), published.content);
        assert_eq!(cache.blobs(), [published.etag.as_str()]);
        let asked = server.content_requests();
        assert_eq!(asked[..2], ["whole", "bytes=70000-199999"]);
    }
}

#[test]
fn starts_over_on_a_server_without_ranges() {
    let published = weights();
    let faults = |n| if n == 0 { Reply::Cut(70_000) } else { Reply::WithoutRanges };
    let (server, cache) = (Server::start(&published, Head::Good, faults), Cache::new());
    assert_eq!(std::fs::read(cache.fetch(&server, None).unwrap()).unwrap(), published.content);
}

#[test]
fn resumes_after_a_silent_connection() {
    let published = weights();
    let faults = |n| if n == 0 { Reply::Stall(70_000) } else { Reply::Good };
    let (server, cache) = (Server::start(&published, Head::Good, faults), Cache::new());
    let options = HubOptions { patience: Duration::from_millis(400), ..options(cache.0.path(), &server.endpoint()) };
    let path = Hub::new(options).unwrap().fetch(&file(), None, false).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), published.content);
}

#[test]
fn gives_up_on_a_connection_that_always_breaks_and_stores_nothing() {
    for published in [weights(), small()] {
        let (server, cache) = (Server::start(&published, Head::Good, |_| Reply::Cut(1_000)), Cache::new());
        let by_hand = format!("{}/owner/repo/resolve/main/folder/weights.pth", server.endpoint());
        assert_error(cache.fetch(&server, None), &["Try again later", &by_hand, "--weights"]);
        cache.assert_no_file();
    }
}

#[test]
fn a_later_run_resumes_the_download_of_an_earlier_one() {
    let published = weights();
    let cache = Cache::new();
    let expected = ExpectedFile { size: published.content.len() as u64, sha256: &published.etag };
    let bad = Server::start(&published, Head::Good, |_| Reply::Cut(1_000));
    assert_error(cache.fetch(&bad, Some(&expected)), &["Try again later"]);
    cache.assert_no_file();
    let good = Server::good(&published);
    assert_eq!(std::fs::read(cache.fetch(&good, Some(&expected)).unwrap()).unwrap(), published.content);
    assert_eq!(good.content_requests(), ["bytes=3000-199999"], "three attempts fetched 1,000 bytes each");
}

#[test]
fn starts_over_if_the_partial_download_is_damaged() {
    let published = weights();
    let (server, cache) = (Server::good(&published), Cache::new());
    std::fs::create_dir_all(cache.folder().join("blobs")).unwrap();
    let part = cache.folder().join("blobs").join(format!("{}.incomplete", published.etag));
    std::fs::write(part, vec![0; 1_000]).unwrap();
    assert_eq!(std::fs::read(cache.fetch(&server, None).unwrap()).unwrap(), published.content);
    assert_eq!(server.content_requests(), ["bytes=1000-199999", "whole"]);
}

#[test]
fn simultaneous_fetches_download_once() {
    let published = weights();
    let (server, cache) = (Server::good(&published), Cache::new());
    let fetch = || std::fs::read(cache.fetch(&server, None).unwrap()).unwrap() == published.content;
    for _ in 0..100 {
        std::thread::scope(|scope| {
            let fetches = [(); 4].map(|()| scope.spawn(fetch));
            assert!(fetches.into_iter().all(|fetched| fetched.join().unwrap()));
        });
        assert_eq!(server.content_requests(), ["whole"]);
        // Next, all of them find the content, and link it at once.
        std::fs::remove_dir_all(cache.folder().join("snapshots")).unwrap();
        std::fs::remove_dir_all(cache.folder().join("refs")).unwrap();
    }
}

#[test]
fn rejects_and_removes_a_file_with_another_hash_or_size() {
    let published = weights();
    let sha = sha256(&bytes(3));
    let (server, cache) = (Server::good(&published), Cache::new());
    let expected = ExpectedFile { size: published.content.len() as u64, sha256: &sha };
    let error = cache.fetch(&server, Some(&expected)).unwrap_err();
    assert!(matches!(error, Error::Hash { .. }), "{error:?}");
    let message = error.to_string();
    assert!(message.contains(&sha) && message.contains(&published.etag), "both hashes: {message}");
    cache.assert_no_file();

    let expected = ExpectedFile { size: 17, sha256: &published.etag };
    let message = cache.fetch(&server, Some(&expected)).unwrap_err().to_string();
    assert!(message.contains("200000") && message.contains("17"), "both sizes: {message}");
    cache.assert_no_file();
}

#[test]
fn rejects_bytes_that_do_not_match_the_hubs_hash() {
    let damaged = Published { content: bytes(3), ..weights() };
    let (server, cache) = (Server::good(&damaged), Cache::new());
    let error = cache.fetch(&server, None).unwrap_err();
    assert!(matches!(error, Error::Hash { .. }), "{error:?}");
    let message = error.to_string();
    assert!(message.contains(&damaged.etag) && message.contains(&sha256(&damaged.content)), "{message}");
    cache.assert_no_file();
}

#[test]
fn downloads_a_damaged_cached_file_again() {
    let published = weights();
    let (server, cache) = (Server::good(&published), Cache::new());
    let expected = ExpectedFile { size: published.content.len() as u64, sha256: &published.etag };
    let path = cache.fetch(&server, Some(&expected)).unwrap();
    std::fs::write(&path, &published.content[..1_000]).unwrap();
    assert!(
        matches!(cache.offline(Some(&expected)), Err(Error::Format { .. })),
        "offline the damage can only be reported"
    );
    assert_eq!(std::fs::read(cache.fetch(&server, Some(&expected)).unwrap()).unwrap(), published.content);
}

#[test]
fn an_http_refusal_says_what_to_do() {
    let published = weights();
    for (status, parts) in [
        (401, &["401", "so it is", "/owner/repo", "HF_TOKEN", "hf auth login"][..]),
        (403, &["403", "so it is", "terms", "HF_TOKEN"]),
        (404, &["404", "no such file", "/owner/repo/tree/main"]),
        (429, &["429", "too many requests", "try again"]),
        (500, &["500", "--weights"]),
    ] {
        let (server, cache) = (Server::start(&published, Head::Status(status), |_| Reply::Good), Cache::new());
        assert_error(cache.fetch(&server, None), parts);
        cache.assert_no_file();
        assert!(server.content_requests().is_empty());
    }
}

#[test]
fn does_not_store_an_error_page_as_the_file() {
    for status in [200, 403, 404, 503] {
        for published in [weights(), small()] {
            let server = Server::start(&published, Head::Good, move |_| Reply::Page(status));
            let cache = Cache::new();
            assert_error(cache.fetch(&server, None), &["--weights"]);
            cache.assert_no_file();
        }
    }
    let (server, cache) = (Server::start(&weights(), Head::Portal, |_| Reply::Page(200)), Cache::new());
    assert_error(cache.fetch(&server, None), &["--weights"]);
    cache.assert_no_file();
}

#[test]
fn retries_after_an_error_page() {
    let published = weights();
    let faults = |n| if n == 0 { Reply::Page(404) } else { Reply::Good };
    let (server, cache) = (Server::start(&published, Head::Good, faults), Cache::new());
    assert_eq!(std::fs::read(cache.fetch(&server, None).unwrap()).unwrap(), published.content);
}

#[test]
fn offline_uses_the_cache_or_names_the_files_address() {
    let published = weights();
    let (server, cache) = (Server::good(&published), Cache::new());
    let expected = ExpectedFile { size: published.content.len() as u64, sha256: &published.etag };
    let by_hand = "http://127.0.0.1:9/owner/repo/resolve/main/folder/weights.pth";
    assert_error(cache.offline(None), &["HF_HUB_OFFLINE", by_hand, "--weights"]);
    let path = cache.fetch(&server, None).unwrap();
    assert_eq!(cache.offline(None).unwrap(), path);
    assert_eq!(cache.offline(Some(&expected)).unwrap(), path);
}

#[test]
fn uses_the_cache_when_the_hub_cannot_be_reached() {
    let published = weights();
    let (server, cache) = (Server::good(&published), Cache::new());
    let endpoint = server.endpoint();
    let path = cache.fetch(&server, None).unwrap();
    drop(server);
    let fetch = |folder: &Path| Hub::new(options(folder, &endpoint)).unwrap().fetch(&file(), None, false);
    assert_eq!(fetch(cache.0.path()).unwrap(), path);
    let empty = Cache::new();
    assert_error(fetch(empty.0.path()), &["no connection", &endpoint, "--weights"]);
}

#[test]
fn keeps_the_older_version_when_the_newer_one_fails() {
    let content = bytes(2);
    let newer = Published { etag: sha256(&content), content, commit: NEXT_COMMIT.into(), large: true };
    for fault in [Reply::Cut(1_000), Reply::Page(503)] {
        let cache = Cache::new();
        let path = cache.fetch(&Server::good(&weights()), None).unwrap();
        assert_error(cache.fetch(&Server::start(&newer, Head::Good, move |_| fault), None), &["--weights"]);
        assert_eq!(cache.offline(None).unwrap(), path);
        assert_eq!(std::fs::read(&path).unwrap(), weights().content);
        assert!(cache.pointer(NEXT_COMMIT).symlink_metadata().is_err());
    }
}

fn optional(server: &Server, cache: &Cache, name: &str) -> Result<Option<PathBuf>> {
    let hub = Hub::new(options(cache.0.path(), &server.endpoint())).unwrap();
    hub.fetch_if_there(&HubFile { file: name.into(), ..file() }, false)
}

#[test]
fn works_with_a_mirror_that_serves_only_resolve() {
    let (server, cache) = (Server::good(&weights()), Cache::new());
    assert_eq!(optional(&server, &cache, FILE).unwrap(), Some(cache.pointer(COMMIT)));
    assert_eq!(optional(&server, &cache, "answers.json").unwrap(), None, "an optional file that is not there");
    assert!(
        server.log().iter().all(|line| line.contains("/resolve/") || line.contains("/storage/")),
        "{:?}",
        server.log()
    );
}

#[test]
fn a_missing_repository_is_an_error_even_for_an_optional_file() {
    for code in ["RepoNotFound", "RevisionNotFound"] {
        let server = Server::start(&weights(), Head::Absent(code), |_| Reply::Good);
        assert_error(optional(&server, &Cache::new(), FILE).map(Option::unwrap), &["404", "/owner/repo/tree/main"]);
    }
}

#[test]
fn follows_a_redirect_to_another_host_without_the_token() {
    for published in [weights(), small()] {
        let (server, cache) = (Server::start(&published, Head::Moved, |_| Reply::Good), Cache::new());
        assert_eq!(std::fs::read(cache.fetch(&server, None).unwrap()).unwrap(), published.content);
        let log = server.log();
        let (there, here): (Vec<_>, Vec<_>) = log.iter().partition(|line| line.contains(" /moved/"));
        assert!(there.len() >= 2 && there.iter().all(|line| line.ends_with("nobody")), "{log:?}");
        assert!(here.iter().any(|line| line.ends_with("Bearer hf_test")), "{log:?}");
    }
    let (server, cache) = (Server::start(&weights(), Head::Loop, |_| Reply::Good), Cache::new());
    assert_error(cache.fetch(&server, None), &["redirects", "--weights"]);
}

#[test]
fn rejects_an_etag_or_commit_that_is_a_path() {
    for published in [
        Published { etag: "../../../x".into(), ..weights() },
        Published { commit: "../x".into(), ..weights() },
        Published { etag: "..".into(), ..small() },
    ] {
        let (server, cache) = (Server::good(&published), Cache::new());
        assert_error(cache.fetch(&server, None), &["is not a hash"]);
        assert!(std::fs::read_dir(cache.0.path()).unwrap().next().is_none(), "a file was written");
    }
}

#[test]
fn finds_the_newest_snapshot_if_main_has_no_commit() {
    let cache = Cache::new();
    cache.fetch(&Server::good(&weights()), None).unwrap();
    std::fs::remove_file(cache.folder().join("refs/main")).unwrap();
    assert_eq!(cache.offline(None).unwrap(), cache.pointer(COMMIT));
    std::thread::sleep(Duration::from_millis(20));
    let content = bytes(2);
    let newer = Published { etag: sha256(&content), content, commit: NEXT_COMMIT.into(), large: true };
    cache.fetch(&Server::good(&newer), None).unwrap();
    std::fs::remove_file(cache.folder().join("refs/main")).unwrap();
    assert_eq!(cache.offline(None).unwrap(), cache.pointer(NEXT_COMMIT));
}

/// Every path in a folder with its modification time.
fn tree(folder: &Path) -> Vec<(PathBuf, std::time::SystemTime)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        found.push((path.clone(), metadata.modified().unwrap()));
        if metadata.is_dir() {
            found.extend(tree(&path));
        }
    }
    found.sort();
    found
}

#[cfg(unix)]
#[test]
fn a_complete_cache_needs_no_write_permission() {
    use std::os::unix::fs::PermissionsExt;
    let published = weights();
    let (server, cache) = (Server::good(&published), Cache::new());
    let expected = ExpectedFile { size: published.content.len() as u64, sha256: &published.etag };
    let path = cache.fetch(&server, Some(&expected)).unwrap();
    let before = tree(cache.0.path());
    let set_mode = |mode| {
        let folders = before.iter().map(|(path, _)| path.as_path()).filter(|path| path.is_dir() && !path.is_symlink());
        for folder in folders.chain([cache.0.path()]) {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    set_mode(0o555);
    let fetched = [cache.fetch(&server, None), cache.fetch(&server, Some(&expected)), cache.offline(None)];
    set_mode(0o755);
    for fetched in fetched {
        assert_eq!(fetched.unwrap(), path);
    }
    assert_eq!(tree(cache.0.path()), before, "root may write anywhere, so check that nothing was written");
}

#[test]
fn uses_the_cached_copy_if_a_newer_one_cannot_be_written() {
    let cache = Cache::new();
    let path = cache.fetch(&Server::good(&weights()), None).unwrap();
    let content = bytes(2);
    let newer = Server::good(&Published { etag: sha256(&content), content, commit: NEXT_COMMIT.into(), large: true });
    // A file in place of the folder stops root too.
    let block = |cache: &Cache| {
        let _ = std::fs::remove_dir_all(cache.0.path().join(".locks"));
        std::fs::write(cache.0.path().join(".locks"), "").unwrap();
    };
    block(&cache);
    assert_eq!(cache.fetch(&newer, None).unwrap(), path);
    let empty = Cache::new();
    block(&empty);
    assert_error(empty.fetch(&newer, None), &["cannot write to the cache", "HF_HUB_CACHE"]);
}
