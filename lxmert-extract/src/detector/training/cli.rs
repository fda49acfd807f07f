//! `lxmert-extract train-detector`: trains the detector that ships in this crate (`assets/scenes-detector`).

use super::scenes::{Evaluation, TRAINING_SCENES_SEED, build, detector_config, evaluate, train};
use super::{StepLosses, TrainingConfig};
use crate::detector::DetectorConfig;
use crate::scenes::{Scene, ScenesConfig, records};
use candle_core::{Device, Tensor};
use lxmert_core::checkpoint::save_safetensors;
use lxmert_core::files::atomic_write;
use lxmert_core::workspace::Workspace;
use lxmert_core::{Error, Result};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Train the small detector of scenes, measure it on held-out scenes, and write its card
#[derive(Debug, Clone, clap::Args)]
pub struct TrainDetectorArgs {
    /// Folder for model.safetensors, config.json and README.md [default: data/scenes-detector]
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Number of updates
    #[arg(long, default_value_t = TrainingConfig::default().steps, value_name = "N")]
    pub steps: usize,
    /// Scenes per update; each scene is drawn anew and seen once
    #[arg(long, default_value_t = TrainingConfig::default().batch_size, value_name = "N")]
    pub batch_size: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = TrainingConfig::default().learning_rate, value_name = "RATE")]
    pub learning_rate: f64,
}

/// Runs the command. Writes nothing if it is stopped early.
///
/// # Errors
/// Returns an error if training diverges, the folder cannot be written, or Ctrl-C was pressed.
pub fn run(args: &TrainDetectorArgs, seed: u64, device: &Device, progress: bool) -> Result<()> {
    let output = match &args.output {
        Some(folder) => folder.clone(),
        None => Workspace::locate().data("scenes-detector"),
    };
    fs::create_dir_all(&output).map_err(Error::io(&output))?;
    let training = TrainingConfig {
        steps: args.steps,
        batch_size: args.batch_size,
        learning_rate: args.learning_rate,
        seed,
        ..TrainingConfig::default()
    };
    let detector = detector_config();
    let started = Instant::now();
    let bar = progress_bar(args.steps as u64, progress);
    let mut smooth: Option<StepLosses> = None;
    let weights = train(&training, &detector, device, |step, losses| {
        let recent = smooth.map_or(*losses, |old| old.towards(losses, 0.05));
        smooth = Some(recent);
        bar.set_message(recent.to_string());
        bar.inc(1);
        if (step + 1) % 200 == 0 {
            log::debug!("step {}: {recent}", step + 1);
        }
    })?;
    bar.finish_and_clear();
    let minutes = started.elapsed().as_secs_f64() / 60.0;

    let evaluation = publish(&output, &training, &detector, &weights, minutes, device)?;
    lxmert_core::cli::print_line(format_args!("{}: {evaluation}", output.display()))?;
    Ok(())
}

/// Measures trained weights on held-out scenes, and writes them with their configuration and card to `folder`, which
/// must exist. `minutes`: how long training took.
///
/// # Errors
/// Returns an error if a weight does not fit the configuration or a file cannot be written.
pub fn publish(
    folder: &Path,
    training: &TrainingConfig,
    detector: &DetectorConfig,
    weights: &BTreeMap<String, Tensor>,
    minutes: f64,
    device: &Device,
) -> Result<Evaluation> {
    let evaluation = evaluate(&build(detector, weights, device)?, &held_out_scenes())?;
    save(folder, detector, weights, &card(training, detector, weights, &evaluation, minutes))?;
    Ok(evaluation)
}

/// The test split of the shipped data set, drawn in memory.
pub fn held_out_scenes() -> Vec<Scene> {
    let config = ScenesConfig::default();
    let test = records::split(config.count, config.seed).test;
    (0..config.count)
        .filter(|&index| test.binary_search(&records::image_name(index)).is_ok())
        .map(|index| Scene::generate(&config, index))
        .collect()
}

fn progress_bar(steps: u64, progress: bool) -> indicatif::ProgressBar {
    let template = "training [{wide_bar}] {pos}/{len} steps, {msg} ({per_sec}, {eta} left)";
    lxmert_core::progress::bar(Some(steps), template, progress)
}

/// Writes the three files, each whole or not at all.
fn save(folder: &Path, config: &DetectorConfig, weights: &BTreeMap<String, Tensor>, card: &str) -> Result<()> {
    let weights: Vec<(String, Tensor)> = weights.iter().map(|(name, w)| (name.clone(), w.clone())).collect();
    save_safetensors(folder.join("model.safetensors"), &weights, &[("format".to_owned(), "pt".to_owned())].into())?;
    let path = folder.join("config.json");
    let config = serde_json::to_vec_pretty(config).map_err(Error::json(&path))?;
    atomic_write(path, |file| file.write_all(&config))?;
    atomic_write(folder.join("README.md"), |file| file.write_all(card.as_bytes()))
}

fn card(
    training: &TrainingConfig,
    config: &DetectorConfig,
    weights: &BTreeMap<String, Tensor>,
    evaluation: &Evaluation,
    minutes: f64,
) -> String {
    let parameters: usize = weights.values().map(Tensor::elem_count).sum();
    let TrainingConfig { steps, batch_size, learning_rate, seed, .. } = training;
    let mut text = format!(
        "# The detector of scenes\n\n\
         A Faster R-CNN on a narrow ResNet-FPN, of the same code as the COCO detector: {parameters} parameters in f16, \
         regions of {} numbers. It finds the {} shapes of the generated scenes (128 × 128 px) and has heads for colour, \
         size and texture, so that a region's feature says how it looks. Key names are torchvision's.\n\n\
         | file | what |\n| --- | --- |\n\
         | `model.safetensors` | weights, batch norms with their running moments |\n\
         | `config.json` | the architecture and the label names |\n\n\
         ## How it was made\n\n```\ncargo run --release -p lxmert-extract -- train-detector --steps {steps} \
         --batch-size {batch_size} --learning-rate {learning_rate} --seed {seed}\n```\n\n\
         {steps} updates of {batch_size} scenes, each scene drawn once (scene seed {TRAINING_SCENES_SEED}; the data set \
         that ships has seed 0, so none is in both); AdamW, {} warm-up steps, then a cosine to 0; {minutes:.0} minutes on \
         a shared machine of two cores. Losses are torchvision's, plus a cross entropy for each attribute.\n\n\
         ## How well it does\n\n\
         On the {} scenes ({} objects) of the test split of `data/scenes`, with the weights as stored:\n\n\
         | measure | value |\n| --- | --- |\n\
         | AP at IoU 0.5, mean over shapes (COCO's 101 recalls) | {:.3} |\n\
         | AP at IoU 0.75 | {:.3} |\n\
         | objects found (right shape, score ≥ 0.5, IoU ≥ 0.5) | {:.1} % |\n",
        config.roi_heads.representation_size,
        config.num_classes() - 1,
        training.warmup_steps,
        evaluation.scenes,
        evaluation.objects,
        evaluation.ap50,
        evaluation.ap75,
        100.0 * evaluation.recall,
    );
    // Writing to a String cannot fail.
    for (name, accuracy) in &evaluation.attribute_accuracy {
        let _ = writeln!(text, "| {name} right, of objects found | {:.1} % |", 100.0 * accuracy);
    }
    let _ = write!(text, "\n| shape | AP at 0.5 |\n| --- | --- |\n");
    for (name, precision) in &evaluation.ap50_of_label {
        let _ = writeln!(text, "| {name} | {precision:.3} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn training_and_held_out_scenes_are_disjoint() {
        assert_ne!(TRAINING_SCENES_SEED, ScenesConfig::default().seed);
        assert_eq!(held_out_scenes().len(), 200);
    }
}
