//! The model card: how a checkpoint was trained, on what, and how good it is.

use super::jsonl::EpochRecord;
use crate::job::Job;
use crate::run_folder::{CheckpointParts, Report};
use lxmert_core::ops::Precision;
use std::fmt::Write;

/// A task's description of itself and of its data.
#[derive(Debug, Clone)]
pub struct Description {
    /// `image-text matching`.
    pub title: String,
    /// The hub's `pipeline_tag`.
    pub pipeline_tag: &'static str,
    /// One sentence on what the model does.
    pub does: String,
    /// Markdown: sizes of the splits, and how examples are drawn.
    pub data: String,
    /// Markdown: the losses and their weights; may be empty.
    pub losses: String,
}

/// The contents of the card.
pub struct Facts<'a> {
    /// The run.
    pub job: &'a Job,
    /// The task and its data.
    pub description: Description,
    /// The model.
    pub parts: &'a CheckpointParts,
    /// The epoch of this checkpoint.
    pub epoch: &'a EpochRecord,
    /// The test results, once available.
    pub report: Option<&'a Report>,
}

/// The card's text, starting with the hub's metadata block.
pub fn model_card(facts: &Facts) -> String {
    let Facts { job, description, parts, epoch, report } = facts;
    let (recipe, config, preprocessing) = (&job.recipe, &parts.config, &parts.preprocessing);
    let mut text = format!(
        "---\nlibrary_name: transformers\npipeline_tag: {}\ntags: [lxmert]\n---\n\n# LXMERT, {} on {}\n\n{}\n\n\
         ## Model\n{} wide, {} heads, {}/{}/{} language, vision and cross-modality layers; {} regions of {} numbers from the detector \
         '{}'; sentences of at most {} WordPieces.\n\n",
        description.pipeline_tag,
        description.title,
        job.data.name(),
        description.does,
        config.hidden_size,
        config.num_attention_heads,
        config.l_layers,
        config.r_layers,
        config.x_layers,
        preprocessing.regions,
        config.visual_feat_dim,
        preprocessing.detector,
        preprocessing.max_length,
    );
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "## Data\n{}\n\n## Training\n```\n{}\n```\nEpoch {}, step {}; {} at {} with {:.0} % warm-up and linear decay, weight decay {}, batch {}, seed {}{}.\n\n",
        description.data,
        job.command,
        epoch.epoch,
        epoch.step,
        recipe.optimiser.title(),
        recipe.learning_rate,
        100.0 * recipe.warmup,
        recipe.weight_decay,
        recipe.batch_size * recipe.accumulate,
        recipe.seed,
        if recipe.precision == Precision::F32 { "" } else { ", products in bf16" },
    );
    if !description.losses.is_empty() {
        let _ = write!(text, "{}\n\n", description.losses);
    }
    let _ = write!(text, "## Metrics\n{}", epoch.validation.tables("validation"));
    if let Some(report) = report {
        text.push_str(&report.test.test.tables("test"));
    }
    text
}
