//! The hub's protocol: `HEAD` on `/resolve/` returns a file's commit, ETag and size; `GET` returns its content, with a
//! range after a broken transfer. A mirror only needs to serve `/resolve/`.

use super::cache::{Repository, discard};
use super::client::{Answer, Hub};
use super::{ExpectedFile, HubFile, HubOptions};
use crate::interrupt::check_interrupt;
use crate::progress;
use crate::{Error, Result};
use indicatif::{ProgressBar, ProgressFinish};
use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use ureq::config::RedirectAuthHeaders;
use ureq::http::{Response, Uri};
use ureq::tls::{RootCerts, TlsConfig};

/// A transfer of at least this many bytes before a break does not count as a failed attempt.
const PROGRESS: u64 = 1 << 20;

/// Redirects in a row before the hub is considered broken.
const MOST_REDIRECTS: usize = 10;

/// A file as the hub describes it.
pub(super) struct Remote {
    commit: String,
    etag: String,
    size: Option<u64>,
}

pub(super) fn agent(options: &HubOptions) -> ureq::Agent {
    let patience = Some(options.patience);
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .redirect_auth_headers(RedirectAuthHeaders::SameHost)
        .user_agent(concat!("lxmert/", env!("CARGO_PKG_VERSION")))
        .accept_encoding("identity")
        .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
        .timeout_resolve(patience)
        .timeout_connect(patience)
        .timeout_per_read(patience)
        .build()
        .into()
}

impl Hub {
    /// Asks the hub about a file: reads the headers of its address, or of the redirect's target.
    pub(super) fn ask_network(&self, file: &HubFile) -> Result<Answer> {
        let mut url = self.url(file);
        for _ in 0..MOST_REDIRECTS {
            let response = match self.request(self.agent.head(&url).config().max_redirects(0).build(), &url).call() {
                Ok(response) => response,
                Err(error) => return Ok(Answer::Unreachable(self.silence(file, &error))),
            };
            let status = response.status().as_u16();
            let etag = header(&response, "x-linked-etag").or_else(|| header(&response, "etag"));
            match (status, etag, header(&response, "x-repo-commit")) {
                (200..=399, Some(etag), Some(commit)) => {
                    let etag = etag.trim_start_matches("W/").trim_matches('"');
                    let length = header(&response, "content-length").filter(|_| status < 300);
                    let size = header(&response, "x-linked-size").or(length).and_then(|size| size.parse().ok());
                    if !is_hash(etag) || !is_hash(commit) {
                        return Err(self.error(
                            file,
                            format!("ETag '{etag}' or commit '{commit}' is not a hash. {}", self.by_hand(file)),
                        ));
                    }
                    return Ok(Answer::There(Remote { commit: commit.into(), etag: etag.into(), size }));
                }
                (300..=399, ..) if let Some(location) = header(&response, "location") => url = join(&url, location),
                (404, ..) => {
                    return match header(&response, "x-error-code") {
                        Some("RepoNotFound" | "RevisionNotFound") => Err(self.not_found(file)),
                        _ => Ok(Answer::Missing),
                    };
                }
                (429 | 500..=599, ..) => return Ok(Answer::Unreachable(self.refusal(file, &response))),
                _ => return Err(self.error(file, format!("{}. {}", self.refusal(file, &response), self.by_hand(file)))),
            }
        }
        Err(self.error(file, format!("{MOST_REDIRECTS} redirects in a row, the last to {url}. {}", self.by_hand(file))))
    }

    /// Adds the token if `url` is on the hub's own host; ureq drops it if a redirect leaves the host.
    fn request<B>(&self, request: ureq::RequestBuilder<B>, url: &str) -> ureq::RequestBuilder<B> {
        match &self.options.token {
            Some(token) if same_host(url, self.endpoint()) => {
                request.header("Authorization", format!("Bearer {token}"))
            }
            _ => request,
        }
    }

    fn silence(&self, file: &HubFile, error: &ureq::Error) -> String {
        let (page, seconds) = (self.page(file), self.options.patience.as_secs());
        match error {
            ureq::Error::Timeout(_) => format!("no answer from {page} in {seconds} s; is there a network?"),
            _ => format!("no connection to {page}: {error}"),
        }
    }

    /// The meaning of a refusal, and what to do.
    fn refusal(&self, file: &HubFile, response: &Response<ureq::Body>) -> String {
        let page = self.page(file);
        let said = header(response, "x-error-message").map_or(String::new(), |said| format!(" (it says: {said})"));
        match response.status().as_u16() {
            401 => format!(
                "the hub answers 401{said}: the repository does not exist, or is private or gated. Check its name at {page}; if \
                 it is right, set HF_TOKEN to a token that may read it, or log in with `hf auth login`"
            ),
            403 => format!(
                "the hub answers 403{said}: your token may not read it, or a proxy forbids it. Accept the repository's terms at \
                 {page} if it has any, and set HF_TOKEN to a token of that account"
            ),
            429 => {
                let when = header(response, "retry-after").map_or("later".into(), |delay| format!("in {delay} s"));
                format!("the hub answers 429{said}: too many requests; try again {when}")
            }
            status @ 200..=399 => format!(
                "{page} answers {status} without the hub's headers X-Repo-Commit and ETag: a login page of this network, or a \
                 mirror that lacks them"
            ),
            status => format!("the hub answers {status}{said}"),
        }
    }

    /// The file's path in the cache, after downloading and checking its content if it is not there. [`Error::Io`] if
    /// the cache cannot be written.
    pub(super) fn bring(
        &self,
        file: &HubFile,
        remote: &Remote,
        expected: Option<&ExpectedFile<'_>>,
        repository: &Repository,
        show_progress: bool,
    ) -> Result<PathBuf> {
        let blob = repository.blob(&remote.etag);
        let resumed = !is_complete(&blob, remote) && self.download(file, remote, &blob, show_progress)?;
        // A large file's ETag is its SHA-256, 64 digits; a small file's is git's hash.
        let named = (remote.etag.len() == 64).then(|| ExpectedFile { size: length(&blob), sha256: &remote.etag });
        if let Some(Err(error)) = expected.or(named.as_ref()).map(|expected| expected.check(&blob)) {
            discard(&blob)?;
            if resumed {
                log::warn!("{error}; downloading it again from the beginning");
                return self.bring(file, remote, expected, repository, show_progress);
            }
            return Err(error);
        }
        repository.link(file, &remote.commit, &remote.etag)
    }

    /// Downloads a blob; returns whether it continued an earlier download.
    fn download(&self, file: &HubFile, remote: &Remote, blob: &Path, show_progress: bool) -> Result<bool> {
        let folder = blob.parent().unwrap_or(blob);
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let _lock = self.lock(file, &remote.etag)?;
        if is_complete(blob, remote) {
            return Ok(false); // another process has just downloaded it
        }
        let part = folder.join(format!("{}.incomplete", remote.etag));
        let resumed = length(&part) > 0;
        let bar = progress_bar(file, remote, show_progress);
        let mut failures = 0;
        loop {
            let before = length(&part);
            let Some(reason) = self.transfer(file, remote, &part, &bar)? else { break };
            failures = if length(&part) >= before + PROGRESS { 1 } else { failures + 1 };
            if failures >= self.options.attempts {
                let by_hand = self.by_hand(file);
                return Err(self.error(file, format!("{reason}, {failures} times. Try again later. {by_hand}")));
            }
            log::warn!("{file}: {reason}; trying again");
            wait(self.options.retry_delay.saturating_mul(1 << (failures - 1).min(5)))?;
        }
        std::fs::rename(&part, blob).map_err(Error::io(blob))?;
        Ok(resumed)
    }

    /// Downloads the missing part of `part`; returns the reason if the connection broke before the end.
    fn transfer(&self, file: &HubFile, remote: &Remote, part: &Path, bar: &ProgressBar) -> Result<Option<String>> {
        let mut held = length(part);
        if held > 0 && Some(held) == remote.size {
            return Ok(None);
        }
        let url = self.url(file);
        let mut request = self.request(self.agent.get(&url), &url);
        match remote.size {
            Some(size) if 0 < held && held < size => {
                request = request.header("Range", format!("bytes={held}-{}", size - 1));
            }
            _ => held = 0,
        }
        let response = match request.call() {
            Ok(response) => response,
            Err(error) => return Ok(Some(format!("the connection broke ({error})"))),
        };
        let at = |range: &str| range.starts_with(&format!("bytes {held}-"));
        match response.status().as_u16() {
            200 => held = 0, // the whole file, even if a range was requested
            206 if header(&response, "content-range").is_none_or(at) => {}
            status => return Ok(Some(format!("the download is answered with {status}"))),
        }
        if let (Some(comes), Some(size)) = (response.body().content_length(), remote.size)
            && held + comes != size
        {
            return Ok(Some(format!("the server announces {comes} bytes, but {} are missing", size - held)));
        }
        let mut out = File::options().create(true).append(true).open(part).map_err(Error::io(part))?;
        out.set_len(held).map_err(Error::io(part))?;
        bar.set_position(held);
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 18];
        loop {
            check_interrupt()?;
            match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    out.write_all(&buffer[..count]).map_err(Error::io(part))?;
                    held += count as u64;
                    bar.set_position(held);
                }
                Err(error) => return Ok(Some(format!("the connection broke after {held} bytes ({error})"))),
            }
        }
        out.sync_all().map_err(Error::io(part))?;
        let cut = remote.size.is_some_and(|size| held != size);
        Ok(cut.then(|| format!("the connection broke after {held} bytes")))
    }

    /// Takes Python's lock of a blob, so that two processes do not write the same file.
    fn lock(&self, file: &HubFile, etag: &str) -> Result<File> {
        let folder = self.options.cache_dir.join(".locks").join(file.repository().folder_name());
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let path = folder.join(format!("{etag}.lock"));
        let lock = File::create(&path).map_err(Error::io(&path))?;
        let taken = || matches!(lock.try_lock(), Err(TryLockError::WouldBlock)); // false on a file system without locks
        if taken() {
            log::info!("{file}: another process is downloading it; waiting");
            while taken() {
                wait(Duration::from_millis(100))?;
            }
        }
        Ok(lock)
    }
}

/// Sleeps; Ctrl-C interrupts it.
fn wait(time: Duration) -> Result<()> {
    let until = Instant::now() + time;
    while Instant::now() < until {
        check_interrupt()?;
        std::thread::sleep(Duration::from_millis(50).min(until.saturating_duration_since(Instant::now())));
    }
    check_interrupt()
}

fn header<'a, T>(response: &'a Response<T>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok().map(str::trim).filter(|value| !value.is_empty())
}

fn length(path: &Path) -> u64 {
    path.metadata().map_or(0, |metadata| metadata.len())
}

fn is_complete(blob: &Path, remote: &Remote) -> bool {
    blob.is_file() && remote.size.is_none_or(|size| length(blob) == size)
}

/// The target of a redirect from `url`.
fn join(url: &str, location: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
    let host = rest.split('/').next().unwrap_or(rest);
    if location.contains("://") {
        location.to_string()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{host}{location}")
    } else {
        format!("{}/{location}", url.rsplit_once('/').map_or(url, |(folder, _)| folder))
    }
}

fn same_host(url: &str, other: &str) -> bool {
    let host =
        |url: &str| url.parse::<Uri>().ok().and_then(|uri| Some((uri.scheme()?.clone(), uri.host()?.to_string())));
    host(url).is_some() && host(url) == host(other)
}

/// Commits and ETags become file names in the cache, so they must be hashes.
fn is_hash(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn progress_bar(file: &HubFile, remote: &Remote, show: bool) -> ProgressBar {
    let template = "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
    let bar = progress::bar(remote.size, template, show);
    bar.with_message(file.file.clone()).with_finish(ProgressFinish::AndClear)
}
