//! Where a checkpoint is: a folder, a file, or a repository on the hub.

use super::{Hub, HubFile, HubOptions};
use crate::{Error, Result, nearby};
use std::path::{Path, PathBuf};

/// Names of a folder's weights files, in order of preference.
pub const WEIGHTS: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];

/// Files that may lie beside the weights and are fetched with them.
const COMPANIONS: [&str; 6] =
    ["config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "answers.json"];

/// Extensions of weights files.
const ENDINGS: [&str; 4] = ["safetensors", "pth", "pt", "bin"];

/// The ways to name a checkpoint, for error messages.
const FORMS: &str = "a checkpoint is a folder with model.safetensors or pytorch_model.bin, the folder of a run \
                     (`cargo run -p lxmert-train` makes one), a weights file, or hf:owner/repo[@revision]";

/// A checkpoint's files on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The weights file.
    pub weights: PathBuf,
    /// The folder that holds it, with `config.json`, `vocab.txt` and so on if the checkpoint has them.
    pub folder: PathBuf,
}

impl Place {
    /// Finds the checkpoint at `place`, which is one of
    /// - a folder with `model.safetensors` or `pytorch_model.bin`;
    /// - the folder of a training run, whose `best` is such a folder;
    /// - a weights file of any name;
    /// - `hf:owner/repo[@revision]`, from which one of those two files is fetched, with those that lie beside it;
    /// - `hf:owner/repo/file[@revision]`, one file of such a repository.
    ///
    /// # Errors
    /// Returns an error if there is no checkpoint at `place`, or the hub refuses or does not answer.
    pub fn find(place: impl AsRef<Path>) -> Result<Self> {
        let place = place.as_ref();
        match place.to_str().filter(|text| text.starts_with("hf:")) {
            Some(text) => Self::on_hub(text, &Hub::new(HubOptions::from_env())?, true),
            None => Self::local(place),
        }
    }

    fn local(place: &Path) -> Result<Self> {
        let about = std::fs::metadata(place).map_err(|error| {
            let reason = nearby::explain(place, error);
            // Python names a repository on the hub by `owner/repo` alone.
            let hub = match place.to_str().map(|text| text.split('/').collect::<Vec<_>>()) {
                Some(parts) if parts.len() == 2 && !parts.contains(&"") && !Path::new(parts[0]).exists() => {
                    format!(" (on the hub: hf:{})", place.display())
                }
                _ => String::new(),
            };
            Error::format(place, format!("{reason}{hub}; {FORMS}"))
        })?;
        if !about.is_dir() {
            let folder = place.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            return Ok(Self { weights: place.to_path_buf(), folder: folder.to_path_buf() });
        }
        for folder in [place.to_path_buf(), place.join("best")] {
            if let Some(weights) = WEIGHTS.iter().map(|name| folder.join(name)).find(|path| path.is_file()) {
                return Ok(Self { weights, folder });
            }
        }
        let files = std::fs::read_dir(place).map_err(Error::io(place))?.flatten().map(|entry| entry.path());
        let weights =
            files.filter(|path| path.extension().is_some_and(|end| ENDINGS.iter().any(|known| end == *known)));
        let advice = match weights.min() {
            Some(file) => format!("name the weights file itself, such as {}", file.display()),
            None => FORMS.into(),
        };
        Err(Error::format(place, format!("no {} here; {advice}", WEIGHTS.join(" and no "))))
    }

    /// The checkpoint at `hf:owner/repo[@revision]` or `hf:owner/repo/file[@revision]`.
    ///
    /// # Errors
    /// [`Error::Argument`] if `text` does not have that form; [`Error::Hub`] if the repository has no weights, or the
    /// hub refuses, or does not answer and the cache has none.
    pub fn on_hub(text: &str, hub: &Hub, show_progress: bool) -> Result<Self> {
        let repository = text.strip_prefix("hf:").unwrap_or(text);
        let (path, revision) = repository.split_at(repository.rfind('@').unwrap_or(repository.len()));
        // If a file is named, its folder in the repository is the checkpoint's.
        let (folder, weights) = match path.split('/').count() {
            ..2 => {
                let reason = format!("'hf:{repository}' is not a repository; write hf:owner/repo[@revision]");
                return Err(Error::Argument(reason));
            }
            2 => (path, WEIGHTS.to_vec()),
            _ => path.rsplit_once('/').map_or((path, Vec::new()), |(folder, file)| (folder, vec![file])),
        };
        let file = |name: &str| format!("{folder}/{name}{revision}").parse::<HubFile>().map_err(Error::Argument);
        for companion in COMPANIONS {
            hub.fetch_if_there(&file(companion)?, show_progress)?;
        }
        for name in &weights {
            if let Some(weights) = hub.fetch_if_there(&file(name)?, show_progress)? {
                return Self::local(&weights);
            }
        }
        // No weights: the hub's answer to the first name says why.
        Self::local(&hub.fetch(&file(weights[0])?, None, show_progress)?)
    }
}
