//! The hub, against a server of its protocol on the loopback interface: what is fetched, where it lies, and
//! what a user is told when it goes wrong. Nothing here asks a real host.

#[path = "checkpoint_hub/server.rs"]
mod server;

use lxmert_core::checkpoint::{ExpectedFile, Hub, HubFile, HubOptions};
use lxmert_core::{Error, Result};
use server::{Head, Published, Reply, Server};
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

/// A large file: the hub names it by its sha256.
fn weights() -> Published {
    let content = bytes(1);
    Published { etag: sha256(&content), content, commit: COMMIT.into(), large: true }
}

/// The same bytes as a small file: named by git's hash, which is not one of the content alone.
fn small() -> Published {
    Published { etag: GIT_HASH.into(), large: false, ..weights() }
}

fn file() -> HubFile {
    "owner/repo/folder/weights.pth".parse().unwrap()
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

    /// Neither a finished blob nor a name that leads to one.
    fn assert_no_file(&self) {
        assert!(self.blobs().iter().all(|name| name.ends_with(".incomplete")), "{:?}", self.blobs());
        assert!(self.pointer(COMMIT).symlink_metadata().is_err(), "a file stands in the snapshot");
        assert!(self.offline(None).is_err());
    }
}

/// The message of a failure that the hub is the reason for, checked for each of `parts`.
fn assert_told(result: Result<PathBuf>, parts: &[&str]) {
    let error = result.expect_err("no file is to be had");
    assert!(matches!(error, Error::Hub { .. }), "{error:?}");
    let message = error.to_string();
    for part in ["hf:owner/repo/folder/weights.pth"].iter().chain(parts) {
        assert!(message.contains(part), "no '{part}' in: {message}");
    }
}

#[test]
fn a_space_is_a_repository_with_a_prefix() {
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
fn a_download_lies_where_python_looks_for_it() {
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
fn a_revision_is_asked_for_and_kept_under_its_name() {
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
    assert_eq!(server.log().len(), asked, "a file that is known to be right is used without asking");
    assert_eq!(cache.fetch(&server, None).unwrap(), first);
    assert!(server.log().len() > asked, "without an expectation the hub is asked whether there is a newer one");
    assert_eq!(server.content_requests(), ["whole"]);
}

#[test]
fn a_newer_version_is_fetched() {
    let cache = Cache::new();
    cache.fetch(&Server::good(&weights()), None).unwrap();
    let content = bytes(2);
    let newer = Published { etag: sha256(&content), content, commit: NEXT_COMMIT.into(), large: true };
    let path = cache.fetch(&Server::good(&newer), None).unwrap();
    assert_eq!((path.as_path(), std::fs::read(&path).unwrap()), (cache.pointer(NEXT_COMMIT).as_path(), newer.content));
}

#[test]
fn a_cut_download_is_taken_up_where_it_broke() {
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
fn a_server_without_ranges_is_asked_for_the_whole_again() {
    let published = weights();
    let faults = |n| if n == 0 { Reply::Cut(70_000) } else { Reply::WithoutRanges };
    let (server, cache) = (Server::start(&published, Head::Good, faults), Cache::new());
    assert_eq!(std::fs::read(cache.fetch(&server, None).unwrap()).unwrap(), published.content);
}

#[test]
fn a_silent_connection_counts_as_cut() {
    let published = weights();
    let faults = |n| if n == 0 { Reply::Stall(70_000) } else { Reply::Good };
    let (server, cache) = (Server::start(&published, Head::Good, faults), Cache::new());
    let options = HubOptions { patience: Duration::from_millis(400), ..options(cache.0.path(), &server.endpoint()) };
    let path = Hub::new(options).unwrap().fetch(&file(), None, false).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), published.content);
}

#[test]
fn a_connection_that_always_breaks_is_an_error_and_leaves_no_file() {
    for published in [weights(), small()] {
        let (server, cache) = (Server::start(&published, Head::Good, |_| Reply::Cut(1_000)), Cache::new());
        let by_hand = format!("{}/owner/repo/resolve/main/folder/weights.pth", server.endpoint());
        assert_told(cache.fetch(&server, None), &["Try again later", &by_hand, "--weights"]);
        cache.assert_no_file();
        assert!(cache.blobs().is_empty(), "nobody could say what an unfinished file belongs to: {:?}", cache.blobs());
    }
}

#[test]
fn a_later_run_goes_on_where_an_earlier_one_gave_up() {
    let published = weights();
    let cache = Cache::new();
    let expected = ExpectedFile { size: published.content.len() as u64, sha256: &published.etag };
    let bad = Server::start(&published, Head::Good, |_| Reply::Cut(1_000));
    assert_told(cache.fetch(&bad, Some(&expected)), &["Try again later"]);
    cache.assert_no_file();
    let good = Server::good(&published);
    assert_eq!(std::fs::read(cache.fetch(&good, Some(&expected)).unwrap()).unwrap(), published.content);
    assert_eq!(good.content_requests(), ["bytes=1000-199999"]);
}

#[test]
fn another_file_than_the_published_one_is_refused_and_not_kept() {
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
fn bytes_that_were_damaged_on_the_way_are_refused_by_the_hub_s_own_hash() {
    let damaged = Published { content: bytes(3), ..weights() };
    let (server, cache) = (Server::good(&damaged), Cache::new());
    let error = cache.fetch(&server, None).unwrap_err();
    assert!(matches!(error, Error::Hash { .. }), "{error:?}");
    let message = error.to_string();
    assert!(message.contains(&damaged.etag) && message.contains(&sha256(&damaged.content)), "{message}");
    cache.assert_no_file();
}

#[test]
fn a_cached_file_that_was_damaged_is_fetched_again() {
    let published = weights();
    let (server, cache) = (Server::good(&published), Cache::new());
    let expected = ExpectedFile { size: published.content.len() as u64, sha256: &published.etag };
    let path = cache.fetch(&server, Some(&expected)).unwrap();
    std::fs::write(&path, &published.content[..1_000]).unwrap();
    assert!(matches!(cache.offline(Some(&expected)), Err(Error::Format { .. })), "offline it can only be told");
    assert_eq!(std::fs::read(cache.fetch(&server, Some(&expected)).unwrap()).unwrap(), published.content);
}

#[test]
fn a_refusal_says_what_to_do() {
    let published = weights();
    for (status, parts) in [
        (401, &["401", "so it is", "/owner/repo", "HF_TOKEN", "hf auth login"][..]),
        (403, &["403", "so it is", "terms", "HF_TOKEN"]),
        (404, &["404", "no such file", "/owner/repo/tree/main"]),
        (429, &["429", "too many requests", "try again"]),
        (500, &["500", "--weights"]),
    ] {
        let (server, cache) = (Server::start(&published, Head::Status(status), |_| Reply::Good), Cache::new());
        assert_told(cache.fetch(&server, None), parts);
        cache.assert_no_file();
        assert!(server.content_requests().is_empty());
    }
}

#[test]
fn an_error_s_web_page_is_not_kept_as_the_file() {
    for status in [200, 403, 404, 503] {
        for published in [weights(), small()] {
            let server = Server::start(&published, Head::Good, move |_| Reply::Page(status));
            let cache = Cache::new();
            assert_told(cache.fetch(&server, None), &["--weights"]);
            cache.assert_no_file();
        }
    }
    let (server, cache) = (Server::start(&weights(), Head::Portal, |_| Reply::Page(200)), Cache::new());
    assert_told(cache.fetch(&server, None), &["--weights"]);
    cache.assert_no_file();
}

#[test]
fn an_error_s_web_page_is_not_the_end_when_the_file_comes_after() {
    let published = weights();
    let faults = |n| if n == 0 { Reply::Page(404) } else { Reply::Good };
    let (server, cache) = (Server::start(&published, Head::Good, faults), Cache::new());
    assert_eq!(std::fs::read(cache.fetch(&server, None).unwrap()).unwrap(), published.content);
}

#[test]
fn offline_uses_the_cache_and_says_how_else_to_get_the_file() {
    let published = weights();
    let (server, cache) = (Server::good(&published), Cache::new());
    let expected = ExpectedFile { size: published.content.len() as u64, sha256: &published.etag };
    let by_hand = "http://127.0.0.1:9/owner/repo/resolve/main/folder/weights.pth";
    assert_told(cache.offline(None), &["HF_HUB_OFFLINE", by_hand, "--weights"]);
    let path = cache.fetch(&server, None).unwrap();
    assert_eq!(cache.offline(None).unwrap(), path);
    assert_eq!(cache.offline(Some(&expected)).unwrap(), path);
}

#[test]
fn a_hub_that_is_gone_leaves_the_cache_in_use() {
    let published = weights();
    let (server, cache) = (Server::good(&published), Cache::new());
    let endpoint = server.endpoint();
    let path = cache.fetch(&server, None).unwrap();
    drop(server);
    let fetch = |folder: &Path| Hub::new(options(folder, &endpoint)).unwrap().fetch(&file(), None, false);
    assert_eq!(fetch(cache.0.path()).unwrap(), path);
    let empty = Cache::new();
    assert_told(fetch(empty.0.path()), &["no connection", &endpoint, "--weights"]);
}

#[test]
fn a_newer_version_that_does_not_come_leaves_the_older_one() {
    let content = bytes(2);
    let newer = Published { etag: sha256(&content), content, commit: NEXT_COMMIT.into(), large: true };
    for fault in [Reply::Cut(1_000), Reply::Page(503)] {
        let cache = Cache::new();
        let path = cache.fetch(&Server::good(&weights()), None).unwrap();
        assert_told(cache.fetch(&Server::start(&newer, Head::Good, move |_| fault), None), &["--weights"]);
        assert_eq!(cache.offline(None).unwrap(), path);
        assert_eq!(std::fs::read(&path).unwrap(), weights().content);
        assert!(cache.pointer(NEXT_COMMIT).symlink_metadata().is_err());
    }
}
