//! The tasks, one line each. Code that depends on a run's task looks it up here by name.

use super::entailment::Entailment;
use super::examples::OverExamples;
use super::matching::Matching;
use super::pretraining::Pretraining;
use super::questions::Questions;
use super::referring::Referring;
use super::retrieval::Retrieval;
use super::statements::Statements;
use super::{Exam, Reads, Task};
use crate::job::Job;
use crate::measures::Measures;
use crate::recipe::{NamedRecipe, Recipe, Suits};
use crate::trainer::{self, Outcome};
use crate::{Error, Result};

/// Every task; the first is the default.
pub static TASKS: [Entry; 7] = [
    Entry::of::<Matching>(),
    Entry::of::<Retrieval>(),
    Entry::of::<Pretraining>(),
    Entry::of::<OverExamples<Questions, 1>>(),
    Entry::of::<OverExamples<Statements, 2>>(),
    Entry::of::<OverExamples<Entailment, 1>>(),
    Entry::of::<OverExamples<Referring, 1>>(),
];

/// A [`Task`] as a value.
pub struct Entry {
    /// Its name for `--task`.
    pub name: &'static str,
    /// A one-line description for the help.
    pub about: &'static str,
    /// The data that it reads.
    pub reads: Reads,
    /// Its recipes for `--recipe`.
    pub recipes: &'static [NamedRecipe],
    /// The default recipe for a run on such data.
    pub recipe: fn(Suits) -> Recipe,
    /// Measures a checkpoint on a test split.
    pub evaluate: fn(&Exam) -> Result<Measures>,
    train: fn(&Job) -> Result<Outcome>,
}

impl Entry {
    const fn of<T: Task>() -> Self {
        Self {
            name: T::NAME,
            about: T::ABOUT,
            reads: T::READS,
            recipes: T::RECIPES,
            recipe: T::recipe,
            evaluate: T::evaluate,
            train: trainer::run::<T>,
        }
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// The task of this name.
///
/// # Errors
/// Returns an error that lists the tasks if there is none.
pub fn task(name: &str) -> Result<&'static Entry> {
    TASKS.iter().find(|task| task.name == name).ok_or_else(|| {
        let known: Vec<&str> = TASKS.iter().map(|task| task.name).collect();
        Error::Argument(format!("no task is called '{name}'; the tasks are {}", known.join(", ")))
    })
}

/// The recipe of this name.
///
/// # Errors
/// Returns an error if there is none.
pub fn named_recipe(name: &str) -> Result<&'static NamedRecipe> {
    recipes().find(|recipe| recipe.name == name).ok_or_else(|| Error::Argument(format!("no recipe is called '{name}'")))
}

/// Every recipe that `--recipe` names.
pub fn recipes() -> impl Iterator<Item = &'static NamedRecipe> {
    TASKS.iter().flat_map(|task| task.recipes)
}

/// Trains the task that a job's recipe names; see [`trainer::run`].
///
/// # Errors
/// As [`trainer::run`]; also if the recipe names no task.
pub fn train(job: &Job) -> Result<Outcome> {
    (task(&job.recipe.task)?.train)(job)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin::Origin;

    #[test]
    fn names_are_unique_and_recipes_name_their_own_task() {
        let mut names: Vec<&str> = TASKS.iter().map(|task| task.name).chain(recipes().map(|r| r.name)).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        for entry in &TASKS {
            let suiting = [Suits::Scenes, Suits::Photos, Suits::Benchmark].map(entry.recipe);
            for recipe in entry.recipes.iter().map(|named| (named.recipe)()).chain(suiting) {
                assert_eq!(recipe.task, entry.name);
                recipe.check().unwrap();
                Origin::open(&recipe, None).unwrap().config(2048).unwrap();
            }
        }
        assert!(task("poetry").unwrap_err().to_string().contains("the tasks are matching, "));
    }
}
