//! What a run starts from: the run that its folder holds, or the data and the initial weights; and what to do if they do not
//! fit.

use crate::average::Average;
use crate::job::{Job, RunSettings, Start};
use crate::origin::Origin;
use crate::resume::{self, Position};
use crate::run_folder::RunFolder;
use crate::tasks::Task;
use crate::trainable;
use crate::{Error, Result};
use candle_core::Var;
use candle_nn::VarMap;
use lxmert_core::checkpoint::{Misshapen, Place};
use lxmert_core::model::init;
use lxmert_core::optim::AdamW;
use lxmert_core::text::WordPiece;
use std::collections::BTreeMap;
use std::path::Path;

/// What there is to go on with.
#[derive(Debug, Clone, Copy)]
pub enum Found {
    /// No run.
    Nothing,
    /// A run with a saved state.
    Unfinished,
    /// A run with a report.
    Finished,
}

/// Looks for a run of these settings in the folder.
///
/// # Errors
/// When the folder holds another run, or none where one is to be resumed, or the initial checkpoint that `--overwrite` would delete.
pub fn found(job: &Job, folder: &RunFolder, settings: &RunSettings) -> Result<Found> {
    if job.start == Start::Overwrite {
        refuse_init_inside(job)?;
        return Ok(Found::Nothing);
    }
    if let Some(old) = RunSettings::read(folder)? {
        let differences = old.differences(settings);
        if !differences.is_empty() {
            return Err(Error::OtherSettings { folder: job.output.clone(), differences: differences.join("\n") });
        }
        if folder.report().is_file() {
            return Ok(Found::Finished);
        }
    }
    match (folder.state().is_file(), job.start) {
        (true, _) => Ok(Found::Unfinished),
        (false, Start::Resume) => {
            Err(Error::file(&job.output, "no unfinished run here to resume; start one without --resume"))
        }
        (false, _) => Ok(Found::Nothing),
    }
}

/// Rejects an initial checkpoint that `--overwrite` is about to delete.
fn refuse_init_inside(job: &Job) -> Result<()> {
    let Some(init) = job.recipe.init.as_deref().filter(|init| !init.starts_with("hf:")) else { return Ok(()) };
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let weights = Place::find(init)?.weights;
    if real(&weights).starts_with(real(&job.output)) {
        return Err(Error::Argument(format!(
            "--init {init}: --overwrite would delete this checkpoint, which is in {}; use another --output, or move the \
             checkpoint first",
            job.output.display()
        )));
    }
    Ok(())
}

/// The run's name: as asked for, as it is already, or as its folder is called.
pub fn name(job: &Job, folder: &RunFolder) -> String {
    let stays = |settings: &RunSettings| job.start != Start::Overwrite && !settings.name.is_empty();
    let old = || RunSettings::read(folder).ok().flatten().filter(stays).map(|settings| settings.name);
    let of_folder = || std::path::absolute(folder.root()).ok()?.file_name().map(|name| name.to_string_lossy().into());
    job.name.clone().or_else(old).or_else(of_folder).unwrap_or_default()
}

/// What learns, from the start or from a saved state.
pub struct Learner<T> {
    /// Cuts sentences.
    pub text: WordPiece,
    /// The task, with its data and its model.
    pub task: T,
    /// The weights and their moments.
    pub optimiser: AdamW,
    /// The weights' average, if it is what is measured and saved.
    pub average: Option<Average>,
    /// How far training has come.
    pub position: Position,
}

impl<T: Task> Learner<T> {
    /// The data and the model, at the saved state or at the start.
    ///
    /// # Errors
    /// When the data or the weights are unusable or do not fit each other.
    pub fn open(job: &Job, folder: &RunFolder, resumes: bool) -> Result<Self> {
        let recipe = &job.recipe;
        let last = Some(folder.last()).filter(|last| resumes && last.join("model.safetensors").is_file());
        let origin = Origin::open(recipe, last.as_deref())?;
        let variables = VarMap::new();
        let task = T::new(job, &origin, &variables)?;
        init::seed_weights(&variables, recipe.seed, recipe.initializer_range)?;
        let variables: BTreeMap<String, Var> = match variables.data().lock() {
            Ok(variables) => variables.iter().map(|(name, var)| (name.clone(), var.clone())).collect(),
            Err(_) => return Err(Error::Argument("the variables' lock is poisoned".into())),
        };
        trainable::check(recipe, &variables.keys().map(String::as_str).collect::<Vec<_>>())?;
        let Origin { text, checkpoint, .. } = origin;
        if let Some(checkpoint) = checkpoint.filter(|_| !resumes) {
            for (name, tensor) in task.starting_weights(&checkpoint).map_err(cannot_start)? {
                if let Some(var) = variables.get(&name) {
                    var.set(&tensor.to_device(&job.device)?)?;
                }
            }
        }
        let mut optimiser = AdamW::new(recipe.adamw(), variables)?;
        optimiser.scale_rates(|name| trainable::rate(recipe, name));
        let mut average = recipe.ema.map(|decay| Average::new(decay, recipe, &optimiser)).transpose()?;
        let position = match resumes {
            true => resume::load(&folder.state(), &mut optimiser, average.as_mut())?,
            false => Position::default(),
        };
        Ok(Self { text, task, optimiser, average, position })
    }
}

/// The projection of a region's features: `[hidden, width of the features]`.
const REGION_WEIGHTS: &str = "lxmert.encoder.visn_fc.visn_fc.weight";

/// The error for a checkpoint that does not fit, with advice: other features if it needs another width, and
/// `--allow-missing` for weights that it lacks.
fn cannot_start(error: Error) -> Error {
    let Error::Core(lxmert_core::Error::Checkpoint { missing, misshapen, .. }) = &error else { return error };
    let of_another_width =
        |weight: &&Misshapen| weight.name == REGION_WEIGHTS && weight.found.last() != weight.expected.last();
    let regions = misshapen.iter().find(of_another_width);
    let what_to_do = match (regions, missing.first()) {
        (Some(weight), _) => format!(
            "it needs regions of {} numbers, but the store has {}: use the features of the detector it was trained on",
            weight.found.last().unwrap_or(&0),
            weight.expected.last().unwrap_or(&0)
        ),
        (None, Some(first)) => format!("to start missing weights fresh, pass --allow-missing '{first}'"),
        (None, None) if !misshapen.is_empty() => "it has other classes or another size".into(),
        (None, None) => "it belongs to another network".into(),
    };
    Error::Argument(format!("--init {error}; {what_to_do}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advises_on_a_checkpoint_that_does_not_fit() {
        let said = |missing: &[&str], found: &[usize]| {
            let regions = Misshapen { name: REGION_WEIGHTS.into(), expected: vec![128, 256], found: found.to_vec() };
            let misshapen = if found == [128, 256] { Vec::new() } else { vec![regions] };
            let missing = missing.iter().map(ToString::to_string).collect();
            let (path, unexpected) = ("x".into(), vec!["surprise".into()]);
            cannot_start(lxmert_core::Error::Checkpoint { path, missing, unexpected, misshapen }.into()).to_string()
        };
        assert!(said(&[], &[128, 2048]).contains("it needs regions of 2048 numbers, but the store has 256"));
        assert!(said(&[], &[768, 256]).ends_with("it has other classes or another size"));
        assert!(said(&["a", "b"], &[128, 256]).ends_with("--allow-missing 'a'"));
        assert!(said(&[], &[128, 256]).ends_with("it belongs to another network"));
    }
}
