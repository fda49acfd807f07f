//! Where the hub and its cache are, and the token to send.

use std::path::PathBuf;
use std::time::Duration;

/// How to reach the hub. Commands use [`HubOptions::from_env`]; tests set the fields. Not `Debug`, so that no log shows
/// the token.
#[derive(Clone)]
pub struct HubOptions {
    /// Base address; `None` is <https://huggingface.co>.
    pub endpoint: Option<String>,
    /// The cache's folder, as in `HF_HUB_CACHE`.
    pub cache_dir: PathBuf,
    /// Access token.
    pub token: Option<String>,
    /// Use only the cache.
    pub offline: bool,
    /// How often in a row a transfer may break without fetching a mebibyte.
    pub attempts: u32,
    /// Pause before the second attempt; it doubles each time.
    pub retry_delay: Duration,
    /// How long a connection may be silent before it is considered broken.
    pub patience: Duration,
}

impl HubOptions {
    /// The cache in `cache_dir`, no token, and defaults for everything else.
    #[must_use]
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: None,
            cache_dir: cache_dir.into(),
            token: None,
            offline: false,
            attempts: 4,
            retry_delay: Duration::from_millis(500),
            patience: Duration::from_secs(30),
        }
    }

    /// The Python library's environment variables: `HF_ENDPOINT`; `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`; `HF_TOKEN`,
    /// `HF_TOKEN_PATH` and the token that `hf auth login` stored; `HF_HUB_OFFLINE`.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let user = variable("HOME").map_or_else(std::env::temp_dir, PathBuf::from);
        let folder = |text: String| match text.strip_prefix("~/") {
            Some(rest) => user.join(rest),
            None => PathBuf::from(text),
        };
        let is_set = |name: &str| {
            variable(name).is_some_and(|v| matches!(v.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
        };
        let home = variable("HF_HOME").map(folder).unwrap_or_else(|| {
            variable("XDG_CACHE_HOME").map_or_else(|| user.join(".cache"), folder).join("huggingface")
        });
        let cache = variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE"));
        let stored = || {
            let path = variable("HF_TOKEN_PATH").map_or_else(|| home.join("token"), folder);
            std::fs::read_to_string(path).ok().filter(|_| !is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN"))
        };
        let token = variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN")).or_else(stored);
        Self {
            endpoint: variable("HF_ENDPOINT"),
            token: token.map(|token| token.trim().to_string()).filter(|token| !token.is_empty()),
            offline: is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE"),
            ..Self::new(cache.map_or_else(|| home.join("hub"), folder))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(pairs: &[(&str, &str)]) -> HubOptions {
        HubOptions::from_variables(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_string()))
    }

    #[test]
    fn cache_folder_is_the_python_librarys() {
        let home = ("HOME", "/home/u");
        assert_eq!(from(&[home]).cache_dir, PathBuf::from("/home/u/.cache/huggingface/hub"));
        assert_eq!(from(&[home, ("XDG_CACHE_HOME", "/x")]).cache_dir, PathBuf::from("/x/huggingface/hub"));
        assert_eq!(
            from(&[home, ("HF_HOME", "~/hf"), ("XDG_CACHE_HOME", "/x")]).cache_dir,
            PathBuf::from("/home/u/hf/hub")
        );
        assert_eq!(from(&[home, ("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h")]).cache_dir, PathBuf::from("/c"));
    }

    #[test]
    fn offline_accepts_pythons_words_for_true() {
        assert!(from(&[("HF_HUB_OFFLINE", "1")]).offline);
        assert!(from(&[("TRANSFORMERS_OFFLINE", "true")]).offline);
        assert!(!from(&[("HF_HUB_OFFLINE", "0")]).offline);
        assert!(!from(&[]).offline);
    }

    #[test]
    fn token_comes_from_the_variable_then_from_the_stored_file() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        assert_eq!(from(&[("HF_HOME", home)]).token, None);
        std::fs::write(folder.path().join("token"), "hf_stored\n").unwrap();
        assert_eq!(from(&[("HF_HOME", home)]).token.as_deref(), Some("hf_stored"));
        assert_eq!(from(&[("HF_HOME", home), ("HF_TOKEN", "hf_named")]).token.as_deref(), Some("hf_named"));
        assert_eq!(from(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).token, None);
        std::fs::write(folder.path().join("other"), "hf_other").unwrap();
        let other = format!("{home}/other");
        assert_eq!(from(&[("HF_HOME", home), ("HF_TOKEN_PATH", &other)]).token.as_deref(), Some("hf_other"));
    }
}
