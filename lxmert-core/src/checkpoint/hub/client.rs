//! What to fetch, and when to use the cached copy.

use super::cache::{Repository, discard};
use super::{ExpectedFile, HubFile, HubOptions};
use crate::{Error, Result};
use std::path::PathBuf;
use std::sync::OnceLock;

/// A client of the hub with its cache.
pub struct Hub {
    pub(super) options: HubOptions,
    #[cfg(feature = "hub")]
    pub(super) agent: ureq::Agent,
    /// Why the hub could not be reached; once this is known, it is not asked again.
    unreachable: OnceLock<String>,
}

/// The hub's answer about a file.
pub(super) enum Answer {
    #[cfg(feature = "hub")]
    There(super::network::Remote),
    /// The repository has no such file.
    Missing,
    /// The hub cannot be asked, for this reason.
    Unreachable(String),
}

impl Hub {
    /// Creates a client; does not use the network yet.
    ///
    /// # Errors
    /// [`Error::Argument`] if the endpoint is not an address, or the token has an invalid character.
    pub fn new(options: HubOptions) -> Result<Self> {
        let http = |url: &String| url.starts_with("http://") || url.starts_with("https://");
        if let Some(endpoint) = options.endpoint.as_ref().filter(|endpoint| !http(endpoint)) {
            return Err(Error::Argument(format!("HF_ENDPOINT '{endpoint}' does not begin with https:// or http://")));
        }
        if options.token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(Error::Argument("HF_TOKEN is not a token: it has a space or a special character".into()));
        }
        Ok(Self {
            #[cfg(feature = "hub")]
            agent: super::network::agent(&options),
            options,
            unreachable: OnceLock::new(),
        })
    }

    /// The file's path in the cache. A cached file that matches `expected` is used without asking the hub. Without
    /// `expected` the hub is asked for a newer version; if the hub cannot be reached or the cache not written, the
    /// cached file is used.
    ///
    /// # Errors
    /// See [`WeightSource::resolve`](super::WeightSource::resolve).
    pub fn fetch(&self, file: &HubFile, expected: Option<&ExpectedFile<'_>>, show_progress: bool) -> Result<PathBuf> {
        self.find(file, expected, false, show_progress)?.ok_or_else(|| self.not_found(file))
    }

    /// [`Hub::fetch`] for a file that the repository may lack: then the result is `None`. If the hub cannot be reached,
    /// the cache decides.
    ///
    /// # Errors
    /// As [`Hub::fetch`]; also if there is no such repository or revision.
    pub fn fetch_if_there(&self, file: &HubFile, show_progress: bool) -> Result<Option<PathBuf>> {
        self.find(file, None, true, show_progress)
    }

    fn find(
        &self,
        file: &HubFile,
        expected: Option<&ExpectedFile<'_>>,
        optional: bool,
        show_progress: bool,
    ) -> Result<Option<PathBuf>> {
        let repository = Repository::of(file, &self.options.cache_dir);
        let mut cached = repository.find(file);
        if let (Some(path), Some(expected)) = (&cached, expected) {
            match expected.check(path) {
                Err(error @ (Error::Hash { .. } | Error::Format { .. })) if !self.options.offline => {
                    log::warn!("{error}; downloading it again");
                    discard(path)?;
                    cached = None;
                }
                checked => return checked.map(|()| cached),
            }
        }
        let reason = match self.ask(file)? {
            #[cfg(feature = "hub")]
            Answer::There(remote) => match self.bring(file, &remote, expected, &repository, show_progress) {
                Err(error @ Error::Io { .. }) if cached.is_some() => error.to_string(),
                Err(Error::Io { path, source }) => {
                    let advice = "Set HF_HUB_CACHE to a writable folder with enough space";
                    let path = path.display();
                    return Err(self.error(file, format!("cannot write to the cache: {path}: {source}. {advice}")));
                }
                brought => return brought.map(Some),
            },
            Answer::Missing => return Ok(None),
            Answer::Unreachable(reason) => reason,
        };
        match cached {
            Some(_) => log::info!("{file}: {reason}; using the cached copy"),
            None if optional => {}
            None => {
                let (cache, by_hand) = (self.options.cache_dir.display(), self.by_hand(file));
                return Err(self.error(file, format!("{reason}, and the file is not in the cache {cache}. {by_hand}")));
            }
        }
        Ok(cached)
    }

    fn ask(&self, file: &HubFile) -> Result<Answer> {
        if self.options.offline {
            return Ok(Answer::Unreachable("HF_HUB_OFFLINE forbids asking the hub".into()));
        }
        if let Some(reason) = self.unreachable.get() {
            return Ok(Answer::Unreachable(reason.clone()));
        }
        #[cfg(feature = "hub")]
        let answer = self.ask_network(file)?;
        #[cfg(not(feature = "hub"))]
        let answer = Answer::Unreachable("this program was built without the hub's client".into());
        if let Answer::Unreachable(reason) = &answer {
            let _ = self.unreachable.set(reason.clone());
        }
        Ok(answer)
    }

    pub(super) fn endpoint(&self) -> &str {
        self.options.endpoint.as_deref().unwrap_or("https://huggingface.co").trim_end_matches('/')
    }

    /// The address of the repository's page.
    pub(super) fn page(&self, file: &HubFile) -> String {
        let space = if file.space { "spaces/" } else { "" };
        format!("{}/{space}{}/{}", self.endpoint(), encode(&file.owner), encode(&file.repo))
    }

    /// The address of the file itself.
    pub(super) fn url(&self, file: &HubFile) -> String {
        let path: Vec<_> = file.file.split('/').map(encode).collect();
        format!("{}/resolve/{}/{}", self.page(file), encode(file.revision()), path.join("/"))
    }

    /// How to get the file without this program.
    pub(super) fn by_hand(&self, file: &HubFile) -> String {
        let url = self.url(file);
        format!("Or download {url} and pass it as --weights FILE (a model: as --init or --checkpoint)")
    }

    pub(super) fn not_found(&self, file: &HubFile) -> Error {
        let tree = format!("{}/tree/{}", self.page(file), file.revision());
        self.error(file, format!("the hub answers 404: no such file, revision or repository. See {tree}"))
    }

    pub(super) fn error(&self, file: &HubFile, reason: String) -> Error {
        Error::Hub { file: file.to_string(), reason }
    }
}

/// Percent-encodes one part of an address.
fn encode(part: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    part.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
