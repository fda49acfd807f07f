//! The model card: how a checkpoint was trained, on what, and how good it is.

use super::jsonl::EpochRecord;
use crate::job::Job;
use crate::recipe::Recipe;
use crate::run_folder::{CheckpointParts, Report};
use lxmert_core::config::CrossLayer;
use lxmert_core::ops::Precision;
use lxmert_core::optim::Decay;
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

/// How to use the checkpoint here and from Python.
fn usage(task: &str, parts: &CheckpointParts) -> String {
    let here = match task {
        "questions" => "lxmert-train ask --checkpoint . --image photo.jpg --question \"What is it?\"".into(),
        "matching" | "retrieval" => "lxmert-viz pair --checkpoint . --image photo.jpg --text \"A dog runs.\"".into(),
        "pretraining" => {
            "lxmert-train --task questions --init . --train-file … --valid-file … --features … --answers …".into()
        }
        _ => format!("lxmert-train evaluate . --task {task} --features STORE --test-file FILE"),
    };
    if parts.config.cross_layer == CrossLayer::Student {
        return format!("```\n{here}\n```\ntransformers has no class for this variant of LXMERT.\n");
    }
    let python = match (task, parts.architecture) {
        (_, "LxmertForQuestionAnswering") => "model = LxmertForQuestionAnswering.from_pretrained(\".\")\n\
             out = model(**words, visual_feats=features, visual_pos=boxes)\n\
             print(model.config.id2label[out.question_answering_score.argmax(-1).item()])\n"
            .to_string(),
        // The published class would start its other heads at random, so this opens the trunk and reads the head.
        ("matching" | "retrieval", _) => "from safetensors.torch import load_file\n\
             model = LxmertModel.from_pretrained(\".\")\n\
             head = {k: v for k, v in load_file(\"model.safetensors\").items() if k.startswith(\"cls.seq_relationship\")}\n\
             pooled = model(**words, visual_feats=features, visual_pos=boxes).pooled_output\n\
             scores = pooled @ head[\"cls.seq_relationship.weight\"].T + head[\"cls.seq_relationship.bias\"]\n\
             print(scores.softmax(-1)[:, 1])  # the probability that they match\n"
            .to_string(),
        (_, class) => format!(
            "model = {class}.from_pretrained(\".\")\nout = model(**words, visual_feats=features, visual_pos=boxes)\n"
        ),
    };
    let class = if python.contains("LxmertModel") { "LxmertModel" } else { parts.architecture };
    format!(
        "```\n{here}\n```\nFrom Python, with `features` `[1, N, {}]` and `boxes` `[1, N, 4]` (x0 y0 x1 y1 in 0..1): the first N = \
         `num_regions`, at most {}, rows of an image in a store that lxmert-extract wrote:\n```python\nfrom transformers import LxmertTokenizer, {class}\n\
         words = LxmertTokenizer.from_pretrained(\".\")(\"A dog runs.\", return_tensors=\"pt\")\n{python}```\n",
        parts.config.visual_feat_dim, parts.preprocessing.regions
    )
}

/// Which weights did not learn as the others did, and whether these are an average.
fn learning(recipe: &Recipe) -> String {
    let mut text = String::new();
    if !recipe.freeze.is_empty() {
        text += &format!("; `{}` frozen", recipe.freeze.join("`, `"));
    }
    for scale in &recipe.lr_scale {
        text += &format!("; `{}` at {} times the rate", scale.pattern, scale.factor);
    }
    if let Some(decay) = recipe.ema {
        text += &format!("; the weights are their moving average with decay {decay}");
    }
    text
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
        preprocessing.min_regions.map_or_else(String::new, |least| format!("{least} to "))
            + &preprocessing.regions.to_string(),
        config.visual_feat_dim,
        preprocessing.detector,
        preprocessing.max_length,
    );
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "## Data\n{}\n\n## Training\n```\n{}\n```\nEpoch {}, step {}; {} at {} with {:.0} % warm-up and {}, weight decay {}, batch {}, seed {}{}{}.\n\n",
        description.data,
        job.command,
        epoch.epoch,
        epoch.step,
        recipe.optimiser.title(),
        recipe.learning_rate,
        100.0 * recipe.warmup,
        match recipe.schedule {
            Decay::Linear => "linear decay",
            Decay::Cosine => "cosine decay",
            Decay::Constant => "a constant rate",
        },
        recipe.weight_decay,
        recipe.batch_size * recipe.accumulate,
        recipe.seed,
        if recipe.precision == Precision::F32 { String::new() } else { format!(", products in {}", recipe.precision) },
        learning(recipe),
    );
    if !description.losses.is_empty() {
        let _ = write!(text, "{}\n\n", description.losses);
    }
    let _ = write!(text, "## How to use\n{}\n", usage(&recipe.task, parts));
    let _ = write!(text, "## Metrics\n{}", epoch.validation.tables("validation"));
    if let Some(report) = report {
        text.push_str(&report.test.test.tables("test"));
    }
    text
}
