//! The weights of the pre-training tasks, and changes to them in the format of `--task-weights`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The weight of each pre-training task; 0 to omit it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TaskWeights {
    /// Masked words.
    pub words: f64,
    /// Cross-modality matching.
    pub matching: f64,
    /// Masked objects' classes.
    pub objects: f64,
    /// Masked objects' attributes.
    pub attributes: f64,
    /// Masked objects' features.
    pub features: f64,
    /// Image question answering.
    pub answers: f64,
}

impl Default for TaskWeights {
    fn default() -> Self {
        Self { words: 1.0, matching: 1.0, objects: 1.0, attributes: 1.0, features: 1.0, answers: 1.0 }
    }
}

impl TaskWeights {
    const NAMES: [&str; 6] = ["words", "matching", "objects", "attributes", "features", "answers"];

    fn all(&self) -> [(&'static str, f64); 6] {
        let values = [self.words, self.matching, self.objects, self.attributes, self.features, self.answers];
        std::array::from_fn(|i| (Self::NAMES[i], values[i]))
    }

    /// These weights with those that `changes` names.
    pub fn changed(mut self, changes: &WeightChanges) -> Self {
        let Self { words, matching, objects, attributes, features, answers } = &mut self;
        let places = [words, matching, objects, attributes, features, answers];
        for (task, weight) in &changes.0 {
            *places[*task] = *weight;
        }
        self
    }

    /// The weight of a task by name.
    pub fn of(&self, name: &str) -> Option<f64> {
        self.all().iter().find(|(known, _)| *known == name).map(|(_, weight)| *weight)
    }

    /// Whether every weight is 0, so that nothing is trained.
    pub fn all_zero(&self) -> bool {
        self.all().iter().all(|(_, weight)| *weight == 0.0)
    }

    /// Whether any task masks regions.
    pub fn any_region(&self) -> bool {
        self.objects + self.attributes + self.features > 0.0
    }

    /// The weights in an epoch, counted from 0: answers are learnt from epoch `from` on (in the paper, in the last ten
    /// of twenty).
    pub fn in_epoch(&self, epoch: u64, from: u64) -> Self {
        Self { answers: if epoch >= from { self.answers } else { 0.0 }, ..*self }
    }

    /// The tasks that `asked` switches on but these weights switch off.
    pub fn left_out(&self, asked: &Self) -> Vec<&'static str> {
        let both = self.all().into_iter().zip(asked.all());
        both.filter(|((_, now), (_, then))| *now == 0.0 && *then > 0.0).map(|((name, _), _)| name).collect()
    }
}

impl fmt::Display for TaskWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = self.all().into_iter().filter(|(_, weight)| *weight > 0.0);
        let texts: Vec<String> =
            on.map(|(name, weight)| if weight == 1.0 { name.into() } else { format!("{name} × {weight}") }).collect();
        f.write_str(&texts.join(", "))
    }
}

/// Weights for some of the tasks, each by its place among the fields of [`TaskWeights`]: `words=1,answers=0`.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightChanges(Vec<(usize, f64)>);

impl FromStr for WeightChanges {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut changes = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let names = TaskWeights::NAMES;
            let wanted = || format!("'{part}': expected TASK=WEIGHT, with TASK one of {}", names.join(", "));
            let (name, value) = part.split_once('=').ok_or_else(wanted)?;
            let value: f64 = value.trim().parse().map_err(|_| wanted())?;
            if !value.is_finite() || value < 0.0 {
                return Err(format!("'{part}': a weight must be a number of at least 0"));
            }
            changes.push((names.iter().position(|known| *known == name.trim()).ok_or_else(wanted)?, value));
        }
        Ok(Self(changes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_and_prints_weights_by_name() {
        let recipe = TaskWeights { matching: 10.0, ..TaskWeights::default() };
        let changes = "answers=0, words=2,matching=1".parse().unwrap();
        let weights = recipe.changed(&changes);
        assert_eq!(weights, TaskWeights { answers: 0.0, words: 2.0, ..TaskWeights::default() });
        assert_eq!(recipe.changed(&"words=2".parse().unwrap()), TaskWeights { words: 2.0, ..recipe });
        assert_eq!(weights.to_string(), "words × 2, matching, objects, attributes, features");
        assert_eq!(weights.left_out(&TaskWeights::default()), ["answers"]);
        for (text, reason) in [("word=1", "TASK one of words"), ("words", "TASK=WEIGHT"), ("words=-1", "at least 0")] {
            assert!(text.parse::<WeightChanges>().unwrap_err().contains(reason), "{text}");
        }
    }

    #[test]
    fn answers_are_learnt_from_their_epoch_on() {
        let weights = TaskWeights { answers: 2.0, ..TaskWeights::default() };
        assert_eq!((weights.in_epoch(9, 10).answers, weights.in_epoch(10, 10).answers), (0.0, 2.0));
    }
}
