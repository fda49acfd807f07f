//! Where a run, its features, its photos and its sentences are, as the run's own `run.json` says. Other data is shown only on
//! request, and then each picture says so.

use crate::{Error, Result};
use lxmert_core::features::StoreFolders;
use lxmert_core::workspace::Workspace;
use lxmert_train::data::paths::{Data, DataPaths};
use lxmert_train::job::RunSettings;
use lxmert_train::run_folder::RunFolder;
use std::path::{Path, PathBuf};

/// The options that say where things lie.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct PlacesArgs {
    /// Use the run on Flickr30k whose images and captions lie in DIR
    #[arg(long, global = true, value_name = "DIR", help_heading = "Where things lie")]
    pub flickr30k: Option<PathBuf>,
    /// The run: its best/ checkpoint, metrics.jsonl and plots/; its run.json names captions and features [default: runs/scenes]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Where things lie")]
    pub run: Option<PathBuf>,
    /// The checkpoint: a folder, a run folder, a weights file beside its config.json, or `hf:owner/repo[@revision]`
    /// [default: RUN/best]
    #[arg(long, global = true, value_name = "CHECKPOINT", help_heading = "Where things lie")]
    pub checkpoint: Option<PathBuf>,
    /// Another feature store than the run's; given several times, the stores are read as one
    #[arg(long, global = true, value_name = "DIR", help_heading = "Where things lie")]
    pub features: Vec<PathBuf>,
    /// The folder of the photos [default: found beside the captions]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Where things lie")]
    pub images: Option<PathBuf>,
    /// Another caption file than the run's; a splits.json and a hard_negatives.csv beside it belong to it
    #[arg(long, global = true, value_name = "FILE", help_heading = "Where things lie")]
    pub captions: Option<PathBuf>,
    /// Another split file than the run's
    #[arg(long, global = true, value_name = "FILE", help_heading = "Where things lie")]
    pub splits: Option<PathBuf>,
}

/// The folders and files of one data set and the run trained on it.
#[derive(Debug, Clone)]
pub struct Places {
    /// "scenes", "flickr30k": for titles.
    pub name: String,
    /// The run: checkpoints, `metrics.jsonl`, `plots/`.
    pub run: PathBuf,
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// The feature store's folders.
    pub features: StoreFolders,
    /// The caption file; none for a run on questions or statements.
    pub captions: Option<PathBuf>,
    /// The split file, when there is one.
    pub splits: Option<PathBuf>,
    /// False captions, when there are any.
    pub hard_negatives: Option<PathBuf>,
    /// The folder of the photos, when it was named.
    pub images: Option<PathBuf>,
    /// The folder that the photos lie in or below: that of the captions or examples.
    pub beside: PathBuf,
    /// The seed of the run, which draws the split of data without a split file.
    pub seed: u64,
    /// What pictures say when the data is not the run's.
    pub notice: Option<String>,
}

impl Places {
    /// The run at `run`, with the data that its `run.json` names; `runs/scenes` and the generated scenes when `None`.
    ///
    /// # Errors
    /// See [`PlacesArgs::resolve`].
    pub fn of_run(run: Option<&Path>) -> Result<Self> {
        PlacesArgs { run: run.map(Path::to_path_buf), ..PlacesArgs::default() }.resolve(&Workspace::locate(), "scenes")
    }

    /// The folder with the true boxes (`scenes.json`), when the data set is drawn.
    pub fn scenes(&self) -> Option<&Path> {
        Some(self.beside.as_path()).filter(|folder| folder.join("scenes.json").is_file())
    }

    /// The default folder for figures.
    pub fn plots(&self) -> PathBuf {
        self.run.join("plots")
    }

    fn set(&mut self, data: &Data) {
        self.name = data.name().to_string();
        self.features = data.features().clone();
        let file = match data {
            Data::Captions(paths) => {
                self.captions = Some(paths.captions.clone());
                self.splits.clone_from(&paths.splits);
                self.hard_negatives.clone_from(&paths.hard_negatives);
                Some(&paths.captions)
            }
            Data::Examples(paths) => [&paths.test, &paths.valid, &paths.train].into_iter().flatten().next(),
        };
        self.beside = file.and_then(|file| file.parent()).unwrap_or(Path::new("")).to_path_buf();
    }
}

impl PlacesArgs {
    /// Finds everything. `default_run`: the run below `runs/` when neither a run nor a checkpoint is named.
    ///
    /// # Errors
    /// [`Error::Missing`] when the named run does not say what its data is and the options do not either;
    /// [`Error::Train`] when a file is damaged or absent.
    pub fn resolve(&self, workspace: &Workspace, default_run: &str) -> Result<Places> {
        let default_run = if self.flickr30k.is_some() { "flickr30k" } else { default_run };
        let of_checkpoint = self.checkpoint.as_deref().and_then(run_of);
        let run = self.run.clone().or(of_checkpoint.clone()).unwrap_or_else(|| workspace.run(default_run));
        // A checkpoint from elsewhere has nothing to do with the default run.
        let stranger = self.checkpoint.is_some() && self.run.is_none() && of_checkpoint.is_none();
        let own = if stranger { None } else { RunSettings::read(&RunFolder::new(&run))? };
        let scenes = workspace.data("scenes");
        let mut places = Places {
            name: "scenes".into(),
            checkpoint: self.checkpoint.clone().unwrap_or_else(|| run.join("best")),
            features: workspace.features("scenes").into(),
            captions: None,
            splits: None,
            hard_negatives: None,
            images: self.images.clone(),
            beside: scenes.clone(),
            seed: own.as_ref().map_or(0, |settings| settings.recipe.seed),
            notice: None,
            run,
        };
        match &own {
            Some(settings) => places.set(&settings.data),
            None => {
                let paths = DataPaths::of_files(scenes.join("results.csv"), None, workspace.features("scenes"));
                places.set(&Data::Captions(DataPaths { name: "scenes".into(), ..paths }));
            }
        }
        let before = places.clone();
        if let Some(folder) = &self.flickr30k {
            places.set(&Data::Captions(DataPaths::flickr30k(folder, workspace)?));
        }
        if let Some(captions) = &self.captions {
            let features = places.features.clone();
            places.set(&Data::Captions(DataPaths::of_files(captions.clone(), None, features)));
        }
        if !self.features.is_empty() {
            places.features = self.features.iter().cloned().collect();
        }
        if let Some(splits) = &self.splits {
            std::fs::metadata(splits).map_err(Error::io(splits))?;
            places.splits = Some(splits.clone());
        }
        let named = self.flickr30k.is_some() || self.captions.is_some() || !self.features.is_empty();
        if own.is_none() && self.run.is_some() && !named && self.checkpoint.is_none() {
            let advice = "train it (cargo run -p lxmert-train), or name the data by --captions and --features".into();
            let path = places.run.join("run.json");
            return Err(Error::Missing { what: "the file that says what the run was trained on", path, advice });
        }
        places.notice = match own {
            Some(_) => other_data(&before, &places),
            None if stranger || named => Some(format!(
                "The checkpoint does not say what it was trained on. Shown here: {}",
                places.captions.as_ref().map_or_else(|| places.features.to_string(), |path| path.display().to_string())
            )),
            None => None,
        };
        Ok(places)
    }
}

/// What of the data is not the run's, in a sentence.
fn other_data(own: &Places, shown: &Places) -> Option<String> {
    let parts = [
        ("captions", own.captions.as_slice(), shown.captions.as_slice()),
        ("features", own.features.paths(), shown.features.paths()),
        ("splits", own.splits.as_slice(), shown.splits.as_slice()),
    ];
    let same = |(a, b): (&PathBuf, &PathBuf)| {
        a == b || std::fs::canonicalize(a).ok().is_some_and(|a| Some(a) == std::fs::canonicalize(b).ok())
    };
    let other = parts.into_iter().filter_map(|(what, own, shown)| {
        let all_same = own.len() == shown.len() && own.iter().zip(shown).all(same);
        let shown = shown.iter().cloned().collect::<StoreFolders>();
        (!all_same && !shown.paths().is_empty()).then(|| format!("{what} {shown}"))
    });
    let other: Vec<String> = other.collect();
    (!other.is_empty()).then(|| format!("Not the data of the run: {}", other.join(", ")))
}

/// The run folder that a checkpoint lies in.
pub(crate) fn run_of(checkpoint: &Path) -> Option<PathBuf> {
    checkpoint.ancestors().take(3).find(|folder| folder.join("run.json").is_file()).map(Path::to_path_buf)
}
