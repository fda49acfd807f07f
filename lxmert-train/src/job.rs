//! One training run: its settings, its folder, and how to handle an existing run.

use crate::data::LoadOptions;
use crate::data::paths::Data;
use crate::data::splits::Split;
use crate::recipe::Recipe;
use crate::run_folder::RunFolder;
use crate::{Error, Result};
use candle_core::Device;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// How to handle a folder that already holds a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// Start in an empty folder; resume an unfinished run with the same settings; leave a finished one alone.
    #[default]
    Auto,
    /// Resume, or fail if there is nothing to resume.
    Resume,
    /// Delete the run and start again.
    Overwrite,
}

/// One training run.
#[derive(Debug, Clone)]
pub struct Job {
    /// What to train and how.
    pub recipe: Recipe,
    /// The data.
    pub data: Data,
    /// The run folder.
    pub output: PathBuf,
    /// The run's name; `None` for the name that it has already, or its folder's.
    pub name: Option<String>,
    /// Where to compute.
    pub device: Device,
    /// How to handle an existing run.
    pub start: Start,
    /// Whether any number of captioned images may lack features.
    pub allow_missing_images: bool,
    /// Optimiser steps between saved states.
    pub save_every_steps: u64,
    /// Time between saved states.
    pub save_every: Duration,
    /// Stop after this many steps, as by Ctrl-C (for tests and short sessions).
    pub stop_after: Option<u64>,
    /// Whether to draw progress bars.
    pub show_progress: bool,
    /// The command, for the model card.
    pub command: String,
}

impl Job {
    /// The settings that are saved in the run folder.
    ///
    /// # Errors
    /// Returns an error if a data file cannot be read.
    pub fn settings(&self) -> Result<RunSettings> {
        let sha256 = |path: PathBuf| Ok((path.display().to_string(), lxmert_core::files::sha256(&path)?));
        let files = self.data.files().into_iter().map(sha256).collect::<Result<_>>()?;
        let name = self.name.clone().unwrap_or_default();
        Ok(RunSettings { name, recipe: self.recipe.clone(), data: self.data.clone(), files })
    }

    /// How to load captioned images.
    pub fn load_options(&self) -> LoadOptions {
        LoadOptions {
            max_length: self.recipe.max_length,
            regions: self.recipe.regions,
            seed: self.recipe.seed,
            allow_missing_images: self.allow_missing_images,
            needed: Split::ALL.to_vec(),
        }
    }
}

/// The settings of a run, saved in its `run.json`. A run is resumed only with the same settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSettings {
    /// The run's name in reports and logs; a resumed run may have another.
    pub name: String,
    /// What to train and how.
    pub recipe: Recipe,
    /// The data.
    pub data: Data,
    /// SHA-256 of each file that defines the data (see [`Data::files`]).
    pub files: BTreeMap<String, String>,
}

impl RunSettings {
    /// The settings of the run in a folder, if there is one.
    ///
    /// # Errors
    /// Returns an error if `run.json` cannot be understood.
    pub fn read(folder: &RunFolder) -> Result<Option<Self>> {
        let path = folder.settings();
        if !path.is_file() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        serde_json::from_str(&text).map(Some).map_err(|e| {
            let reason =
                format!("not the settings of a run of this version ({e}); use another --output, or --overwrite");
            Error::file(&path, reason)
        })
    }

    /// The recipe and the data as names and values. Objects are taken apart, and lists are one value. A name that both have is
    /// the recipe's; the data's has `data-` before it.
    pub fn flat(&self) -> BTreeMap<String, Value> {
        let (mut flat, mut data) = (BTreeMap::new(), BTreeMap::new());
        flatten("", &serde_json::to_value(&self.recipe).unwrap_or_default(), &mut flat);
        flatten("", &serde_json::to_value(&self.data).unwrap_or_default(), &mut data);
        for (name, value) in data {
            let name = if flat.contains_key(&name) { format!("data-{name}") } else { name };
            flat.insert(name, value);
        }
        flat
    }

    /// One line per setting in which a run (`self`) differs from what is now asked for, and per file that has changed.
    pub fn differences(&self, asked: &Self) -> Vec<String> {
        let value = |settings: &Self| serde_json::to_value((&settings.recipe, &settings.data)).unwrap_or_default();
        let mut lines = Vec::new();
        for (old, new) in
            value(self).as_array().into_iter().flatten().zip(value(asked).as_array().into_iter().flatten())
        {
            compare("", old, new, &mut lines);
        }
        let changed = self.files.iter().filter(|(path, hash)| asked.files.get(*path).is_some_and(|now| now != *hash));
        lines.extend(changed.map(|(path, _)| format!("  {path} has changed since the run began")));
        lines
    }
}

fn flatten(name: &str, value: &Value, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| flatten(key, value, into)),
        other => {
            into.insert(name.replace('_', "-"), other.clone());
        }
    }
}

fn compare(name: &str, old: &Value, new: &Value, lines: &mut Vec<String>) {
    match (old.as_object(), new.as_object()) {
        (Some(o), Some(n)) => {
            for (key, value) in o {
                compare(key, value, n.get(key).unwrap_or(&Value::Null), lines);
            }
        }
        _ if old != new => {
            lines.push(format!("  {}: the run has {old}, the command says {new}", name.replace('_', "-")))
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::paths::DataPaths;

    #[test]
    fn names_differing_settings_with_both_values() {
        let data = |features: &str| {
            Data::Captions(DataPaths {
                name: "x".into(),
                captions: "c".into(),
                splits: None,
                hard_negatives: None,
                features: features.into(),
            })
        };
        let files = BTreeMap::from([("a_b.csv", "0"), ("c.json", "1")].map(|(path, hash)| (path.into(), hash.into())));
        let run = RunSettings { name: "run".into(), recipe: Recipe::scenes(), data: data("f"), files };
        let mut asked = run.clone();
        assert!(run.differences(&asked).is_empty());
        asked.name = "another".into();
        assert!(run.differences(&asked).is_empty(), "a name is no setting");
        let flat = run.flat();
        let both = (&flat["hard-negatives"], &flat["data-hard-negatives"]);
        assert_eq!((both, &flat["data-features"]), ((&0.5.into(), &Value::Null), &"f".into()));
        asked.recipe.learning_rate = 0.25;
        asked.data = data("g");
        asked.files.insert("a_b.csv".into(), "2".into());
        let lines = run.differences(&asked).join("\n");
        assert!(lines.contains("a_b.csv has changed since the run began") && !lines.contains("c.json"), "{lines}");
        assert!(lines.contains("learning-rate: the run has 0.001, the command says 0.25"), "{lines}");
        assert!(lines.contains("features: the run has \"f\", the command says \"g\""), "{lines}");
    }
}
