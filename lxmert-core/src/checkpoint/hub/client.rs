//! Fetching a file of the hub into the cache.
//!
//! hf-hub keeps the cache (its layout is the Python library's) and speaks the protocol. Around it stands
//! what it leaves to its callers: a cut transfer is taken up where it broke; what came is checked against
//! what was announced and expected before it counts as there; an answer is turned into what to do next;
//! and no call waits for ever.

use super::transfer::{Silence, Watch};
use super::{ExpectedFile, HubFile, HubOptions, verify};
use crate::files::sha256;
use crate::{Error, Result};
use hf_hub::repository::RepoTypeModel;
use hf_hub::{HFClientBuilder, HFClientSync, HFError, HFRepositorySync};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Bytes of one part of a transfer that was cut and taken up again.
const PART: u64 = 8 << 20;

/// A client of the hub with its cache.
#[derive(Debug)]
pub struct Hub {
    options: HubOptions,
    client: HFClientSync,
}

impl Hub {
    /// A client; nothing is asked of the network yet.
    ///
    /// # Errors
    /// [`Error::Argument`] when the endpoint is no address.
    pub fn new(options: HubOptions) -> Result<Self> {
        let mut builder = HFClientBuilder::new()
            .cache_dir(&options.cache_dir)
            .retry_max_attempts(2)
            .retry_base_delay(options.retry_delay / 2)
            .user_agent(concat!("lxmert/", env!("CARGO_PKG_VERSION")));
        if let Some(endpoint) = &options.endpoint {
            builder = builder.endpoint(endpoint);
        }
        if let Some(token) = &options.token {
            builder = builder.token(token);
        }
        let client = builder
            .build_sync()
            .map_err(|e| Error::Argument(format!("cannot set up the hub's client: {e}; is HF_ENDPOINT an address?")))?;
        Ok(Self { options, client })
    }

    /// The file's path in the cache. One that is there and passes `expected` is used without asking the
    /// network; one that is there and has no expectation is used when the network does not answer.
    ///
    /// # Errors
    /// As [`WeightSource::resolve`](super::WeightSource::resolve).
    pub fn fetch(&self, file: &HubFile, expected: Option<&ExpectedFile<'_>>, show_progress: bool) -> Result<PathBuf> {
        let fetch = self.of(file, show_progress);
        if let Some(path) = fetch.cached() {
            match expected.map(|expected| verify::check_remembered(&path, &fetch.folder, expected)) {
                Some(Ok(())) => return Ok(path),
                Some(Err(error)) if self.options.offline => return Err(error),
                Some(Err(error @ (Error::Hash { .. } | Error::Format { .. }))) => {
                    log::warn!("{error}; fetching it again");
                    fetch.discard(&path)?;
                }
                Some(Err(error)) => return Err(error),
                None if self.options.offline || fetch.unreachable()? => {
                    log::info!("{file}: the hub is not asked or does not answer, using the cached copy");
                    return Ok(path);
                }
                None => {}
            }
        } else if self.options.offline {
            return Err(fetch.error(format!(
                "not in the cache {}, and HF_HUB_OFFLINE forbids asking the hub. {}",
                self.options.cache_dir.display(),
                fetch.by_hand()
            )));
        }
        let reference = std::fs::read(fetch.reference()).ok();
        let path = fetch.download(expected).inspect_err(|_| fetch.restore(reference.as_deref()))?;
        let checked = match (expected, verify::named_by_hash(&path)?) {
            (Some(expected), _) => verify::check_remembered(&path, &fetch.folder, expected),
            // The hub's own word on what it sent.
            (None, Some((size, sha256))) => {
                verify::check_remembered(&path, &fetch.folder, &ExpectedFile { size, sha256: &sha256 })
            }
            (None, None) => Ok(()),
        };
        if let Err(error) = checked {
            fetch.discard(&path)?;
            fetch.restore(reference.as_deref());
            return Err(error);
        }
        Ok(path)
    }

    /// [`Hub::fetch`] of a file that the repository may lack: none where it does. Without a network, what the cache has.
    ///
    /// # Errors
    /// As [`Hub::fetch`], also when there is no such repository or revision.
    pub fn fetch_if_there(&self, file: &HubFile, show_progress: bool) -> Result<Option<PathBuf>> {
        let fetch = self.of(file, show_progress);
        if self.options.offline {
            return Ok(fetch.cached());
        }
        match fetch.exists() {
            Ok(Ok(true)) => self.fetch(file, None, show_progress).map(Some),
            Ok(Ok(false)) => Ok(None),
            Ok(Err(HFError::Request { .. })) | Err(Silence::Stalled | Silence::Died) => Ok(fetch.cached()),
            Ok(Err(error)) => match fetch.explain(error) {
                Failure::Final(error) => Err(error),
                Failure::Cut(reason) => Err(fetch.error(format!("{reason}. {}", fetch.by_hand()))),
            },
            Err(Silence::Interrupted) => Err(Error::Interrupted),
        }
    }

    fn of<'a>(&'a self, file: &'a HubFile, show_progress: bool) -> Fetch<'a> {
        Fetch {
            options: &self.options,
            file,
            repo: self.client.model(&file.owner, &file.repo),
            folder: self.options.cache_dir.join(format!("models--{}--{}", file.owner, file.repo)),
            page: format!("{}/{}/{}", self.endpoint(), file.owner, file.repo),
            watch: Watch::new(show_progress && !self.options.offline, &file.file),
        }
    }

    fn endpoint(&self) -> String {
        let endpoint = self.options.endpoint.clone().or_else(|| std::env::var("HF_ENDPOINT").ok());
        endpoint.unwrap_or_else(|| "https://huggingface.co".into()).trim_end_matches('/').to_string()
    }
}

/// One file being fetched.
struct Fetch<'a> {
    options: &'a HubOptions,
    file: &'a HubFile,
    repo: HFRepositorySync<RepoTypeModel>,
    /// The repository's folder in the cache.
    folder: PathBuf,
    /// The repository's page, for messages.
    page: String,
    watch: Arc<Watch>,
}

/// How an attempt ended that brought no file.
enum Failure {
    /// The connection broke: worth another attempt.
    Cut(String),
    /// Anything else: told to the user.
    Final(Error),
}

impl Fetch<'_> {
    fn cached(&self) -> Option<PathBuf> {
        let request = self.repo.download_file().filename(&self.file.file).maybe_revision(self.file.revision.clone());
        request.local_files_only(true).send().ok()
    }

    /// Whether the hub does not answer at all, asked about this file.
    fn unreachable(&self) -> Result<bool> {
        match self.exists() {
            Ok(Err(HFError::Request { .. })) | Err(Silence::Stalled | Silence::Died) => Ok(true),
            Ok(_) => Ok(false),
            Err(Silence::Interrupted) => Err(Error::Interrupted),
        }
    }

    /// Whether the repository has the file, as the hub answers.
    fn exists(&self) -> std::result::Result<std::result::Result<bool, HFError>, Silence> {
        let (repo, file, revision) = (self.repo.clone(), self.file.file.clone(), self.file.revision.clone());
        self.watch.run(self.options.patience, move || {
            repo.file_exists().filename(&file).maybe_revision(revision.as_deref()).send()
        })
    }

    fn download(&self, expected: Option<&ExpectedFile<'_>>) -> Result<PathBuf> {
        // What an earlier run left of the very file that is expected.
        if let Some(expected) = expected {
            let part = self.folder.join("blobs").join(format!("{}.incomplete", expected.sha256));
            if part.metadata().is_ok_and(|metadata| metadata.len() <= expected.size) {
                log::info!("{}: going on where an earlier download was cut", self.file);
                self.take_up(&part, expected.size)?;
            }
        }
        let mut reason = String::new();
        for attempt in 1..=self.options.attempts {
            if attempt > 1 {
                log::warn!("{}: {reason}; trying again", self.file);
                self.pause(attempt - 1)?;
            }
            let started = SystemTime::now();
            match self.whole_file() {
                Ok(path) => return Ok(path),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Cut(cut)) => reason = cut,
            }
            if let (Some(part), Some(total)) = (self.part_since(started), self.watch.announced()) {
                let resumable = expected.is_some_and(|e| part.file_stem().is_some_and(|stem| stem == e.sha256));
                let taken_up = self.take_up(&part, total);
                if taken_up.is_err() && !resumable {
                    let _ = std::fs::remove_file(&part); // no later run could know that it is this file's
                }
                taken_up?;
            }
        }
        Err(self.error(format!("{reason}, {} times. Try again later. {}", self.options.attempts, self.by_hand())))
    }

    /// One attempt at the whole file by hf-hub, which finds it in the cache where it is complete there.
    fn whole_file(&self) -> std::result::Result<PathBuf, Failure> {
        let (repo, file, revision) = (self.repo.clone(), self.file.file.clone(), self.file.revision.clone());
        let progress = Arc::clone(&self.watch);
        self.watch.whole();
        let path = self
            .watched(move || repo.download_file().filename(file).maybe_revision(revision).progress(progress).send())?;
        // hf-hub stores the body of any answer, also an error's page: only the length tells.
        let length = path.metadata().map_err(|e| Failure::Final(Error::io(&path)(e)))?.len();
        match self.watch.announced() {
            Some(announced) if announced != length => {
                self.discard(&path).map_err(Failure::Final)?;
                Err(Failure::Cut(format!("{length} bytes came, {announced} were announced")))
            }
            _ => Ok(path),
        }
    }

    /// Fetches what is missing of `part`, piece by piece, and makes it the blob that it is a part of.
    fn take_up(&self, part: &Path, total: u64) -> Result<()> {
        let mut failures = 0;
        loop {
            let held = part.metadata().map_err(Error::io(part))?.len();
            if held >= total {
                break;
            }
            let end = total.min(held + PART);
            self.watch.part(held, total);
            let (repo, file, revision) = (self.repo.clone(), self.file.file.clone(), self.file.revision.clone());
            let progress = Arc::clone(&self.watch);
            let came = self.watched(move || {
                let request = repo.download_file_to_bytes().filename(file).maybe_revision(revision);
                request.range(held..end).progress(progress).send()
            });
            let cut = match came {
                Ok(bytes) if bytes.len() as u64 == end - held => {
                    let mut file = OpenOptions::new().append(true).open(part).map_err(Error::io(part))?;
                    file.write_all(&bytes).map_err(Error::io(part))?;
                    failures = 0;
                    continue;
                }
                // A server without ranges sends the whole.
                Ok(bytes) if bytes.len() as u64 == total => {
                    std::fs::write(part, &bytes).map_err(Error::io(part))?;
                    continue;
                }
                Ok(bytes) => format!("{} bytes came, {} were asked for", bytes.len(), end - held),
                Err(Failure::Cut(cut)) => cut,
                Err(Failure::Final(error)) => return Err(error),
            };
            failures += 1;
            if failures >= self.options.attempts {
                return Err(self.error(format!(
                    "{cut}, {failures} times after {held} of {total} bytes. Try again later. {}",
                    self.by_hand()
                )));
            }
            log::warn!("{}: {cut} after {held} of {total} bytes; taking it up again", self.file);
            self.pause(failures)?;
        }
        let blob = part.with_extension("");
        if let Some(name) = verify::hash_in_name(&blob)
            && sha256(part)? != name
        {
            log::warn!("{}: the pieces do not make the file; starting over", self.file);
            return std::fs::remove_file(part).map_err(Error::io(part));
        }
        std::fs::rename(part, &blob).map_err(Error::io(&blob))
    }

    /// Runs a call of hf-hub and sorts its failures.
    fn watched<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> std::result::Result<T, HFError> + Send + 'static,
    ) -> std::result::Result<T, Failure> {
        match self.watch.run(self.options.patience, call) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.explain(error)),
            Err(Silence::Interrupted) => Err(Failure::Final(Error::Interrupted)),
            Err(Silence::Died) => Err(Failure::Final(self.error("the download's thread died".into()))),
            Err(Silence::Stalled) if self.watch.announced().is_none() => Err(Failure::Final(self.error(format!(
                "no answer from {} in {} s; is there a network? {}",
                self.page,
                self.options.patience.as_secs(),
                self.by_hand()
            )))),
            Err(Silence::Stalled) => Err(Failure::Cut(format!("no byte for {} s", self.options.patience.as_secs()))),
        }
    }

    fn explain(&self, error: HFError) -> Failure {
        let said = |message: &Option<String>| match message.as_deref().map(str::trim) {
            Some(message) if !message.is_empty() => format!(" (it says: {message})"),
            _ => String::new(),
        };
        let reason = match &error {
            HFError::AuthRequired { context } => format!(
                "the hub answers 401{}: the repository does not exist, or is private or gated. Check its name at {}; if it \
                 is right, set HF_TOKEN to a token that may read it, or log in with `hf auth login`",
                said(&context.server_message),
                self.page
            ),
            HFError::Forbidden { context } => format!(
                "the hub answers 403{}: your token may not read it, or a proxy forbids it. Accept the repository's terms at {} \
                 if it has any, and set HF_TOKEN to a token of that account",
                said(&context.server_message),
                self.page
            ),
            HFError::EntryNotFound { .. } | HFError::RepoNotFound { .. } | HFError::RevisionNotFound { .. } => format!(
                "the hub answers 404: no such file, revision or repository. What there is stands at {}/tree/{}",
                self.page,
                self.file.revision.as_deref().unwrap_or("main")
            ),
            HFError::RateLimited { retry_after, context } => format!(
                "the hub answers 429{}: too many requests; try again {}",
                said(&context.server_message),
                retry_after.map_or("later".into(), |delay| format!("in {} s", delay.as_secs()))
            ),
            HFError::Request { source, .. } if source.is_connect() => {
                format!("no connection to {}: {}. {}", self.page, innermost(source), self.by_hand())
            }
            HFError::Request { source, .. } => {
                return Failure::Cut(format!("the connection broke ({})", innermost(source)));
            }
            HFError::Xet { source, .. } => return Failure::Cut(format!("the transfer broke ({source})")),
            HFError::Io(source) => format!("cannot write to the cache {}: {source}", self.options.cache_dir.display()),
            other => format!("{other}. {}", self.by_hand()),
        };
        Failure::Final(self.error(reason))
    }

    fn error(&self, reason: String) -> Error {
        Error::Hub { file: self.file.to_string(), reason }
    }

    /// How to get the file without this program.
    fn by_hand(&self) -> String {
        let revision = self.file.revision.as_deref().unwrap_or("main");
        format!(
            "Or download {}/resolve/{revision}/{} and name it with --weights FILE (a model: with --init or --checkpoint)",
            self.page, self.file.file
        )
    }

    /// The one unfinished blob that was written to since then; none where several are.
    fn part_since(&self, since: SystemTime) -> Option<PathBuf> {
        let since = since - Duration::from_secs(2); // clocks of file systems are coarse
        let entries = std::fs::read_dir(self.folder.join("blobs")).ok()?;
        let mut parts = entries.filter_map(std::result::Result::ok).map(|entry| entry.path()).filter(|path| {
            path.extension().is_some_and(|extension| extension == "incomplete")
                && path.metadata().and_then(|m| m.modified()).is_ok_and(|modified| modified >= since)
        });
        let part = parts.next()?;
        parts.next().is_none().then_some(part)
    }

    /// Removes a file from the cache: the name under which it was found, and what that name leads to.
    fn discard(&self, path: &Path) -> Result<()> {
        let blob = path.canonicalize().map_err(Error::io(path))?;
        std::fs::remove_file(path).map_err(Error::io(path))?;
        match std::fs::remove_file(&blob) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&blob)(error)),
            _ => Ok(()),
        }
    }

    /// Where the cache notes the commit of a branch or tag.
    fn reference(&self) -> PathBuf {
        self.folder.join("refs").join(self.file.revision.as_deref().unwrap_or("main"))
    }

    /// Puts back the commit that was noted before a download that failed: hf-hub notes the new one even if
    /// what came is discarded, and an older file would no longer be found.
    fn restore(&self, commit: Option<&[u8]>) {
        let path = self.reference();
        let restored = match commit {
            Some(commit) if std::fs::read(&path).is_ok_and(|now| now != commit) => std::fs::write(&path, commit),
            _ => Ok(()),
        };
        if let Err(error) = restored {
            log::warn!("cannot put back {}: {error}", path.display());
        }
    }

    /// Waits before another attempt, twice as long each time; Ctrl-C ends it.
    fn pause(&self, failures: u32) -> Result<()> {
        let until = Instant::now() + self.options.retry_delay.saturating_mul(1 << (failures - 1).min(5));
        while Instant::now() < until {
            crate::cli::check_interrupt()?;
            std::thread::sleep(Duration::from_millis(50).min(until.saturating_duration_since(Instant::now())));
        }
        crate::cli::check_interrupt()
    }
}

/// The root of an error's chain of causes, which says what happened.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
