//! Where the hub is, where its cache lies, and who asks.

use std::path::PathBuf;
use std::time::Duration;

/// How to reach the hub. [`HubOptions::from_env`] is what the commands use; tests set the fields.
#[derive(Clone)]
pub struct HubOptions {
    /// Base address; `None` is `HF_ENDPOINT`, else huggingface.co.
    pub endpoint: Option<String>,
    /// The cache's folder, as in `HF_HUB_CACHE`.
    pub cache_dir: PathBuf,
    /// Access token; `None` is what `HF_TOKEN`, `HF_TOKEN_PATH` or `hf auth login` left.
    pub token: Option<String>,
    /// Never ask the network.
    pub offline: bool,
    /// How often a cut transfer is taken up again without a byte gained in between.
    pub attempts: u32,
    /// First pause before asking again; it doubles each time.
    pub retry_delay: Duration,
    /// How long no byte may come before a connection counts as cut.
    pub patience: Duration,
}

impl std::fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("cache_dir", &self.cache_dir)
            .field("token", &self.token.as_ref().map(|_| "(set)"))
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

impl HubOptions {
    /// A hub with its cache in `cache_dir`, everything else at its default.
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

    /// What the environment says, by the Python library's variables.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let home = variable("HOME").map_or_else(std::env::temp_dir, PathBuf::from);
        let folder = |text: String| match text.strip_prefix("~/") {
            Some(rest) => home.join(rest),
            None => PathBuf::from(text),
        };
        let cache_dir = variable("HF_HUB_CACHE")
            .or_else(|| variable("HUGGINGFACE_HUB_CACHE"))
            .map(folder)
            .or_else(|| variable("HF_HOME").map(|home| folder(home).join("hub")))
            .or_else(|| variable("XDG_CACHE_HOME").map(|cache| folder(cache).join("huggingface/hub")))
            .unwrap_or_else(|| home.join(".cache/huggingface/hub"));
        let offline = variable("HF_HUB_OFFLINE").or_else(|| variable("TRANSFORMERS_OFFLINE"));
        // hf-hub reads every other variable of endpoint and token itself; this one it does not know.
        let token = if variable("HF_TOKEN").is_some() { None } else { variable("HUGGING_FACE_HUB_TOKEN") };
        Self {
            token,
            offline: offline.is_some_and(|v| matches!(v.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")),
            ..Self::new(cache_dir)
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
    fn the_cache_lies_where_python_looks_for_it() {
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
    fn offline_is_set_by_python_s_words_for_true() {
        assert!(from(&[("HF_HUB_OFFLINE", "1")]).offline);
        assert!(from(&[("TRANSFORMERS_OFFLINE", "true")]).offline);
        assert!(!from(&[("HF_HUB_OFFLINE", "0")]).offline);
        assert!(!from(&[]).offline);
    }

    #[test]
    fn a_token_is_not_printed() {
        let options = HubOptions { token: Some("hf_secret".into()), ..HubOptions::new("/c") };
        assert!(!format!("{options:?}").contains("secret"));
    }
}
