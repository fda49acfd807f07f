//! The model card: what a checkpoint was made of, how, and how good it is.

use super::jsonl::{EpochRecord, Retrieval};
use crate::data::Dataset;
use crate::data::splits::Split;
use crate::metrics::{Metrics, Ranking};
use crate::run_folder::Report;
use crate::trainer::Job;
use lxmert_core::config::LxmertConfig;
use std::fmt::Write;

/// What the card tells.
pub struct Facts<'a> {
    /// The run.
    pub job: &'a Job,
    /// Its data.
    pub dataset: &'a Dataset,
    /// The model.
    pub config: &'a LxmertConfig,
    /// The epoch of this checkpoint.
    pub epoch: &'a EpochRecord,
    /// The test results, once there are any.
    pub report: Option<&'a Report>,
}

/// The card's text, with the hub's metadata block at its head.
pub fn model_card(facts: &Facts) -> String {
    let Facts { job, dataset, config, epoch, report } = facts;
    let recipe = &job.recipe;
    let mut text = format!(
        "---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\ntags: [lxmert, image-text-matching]\n---\n\n\
         # LXMERT, image-text matching on {}\n\n\
         Says whether a sentence describes an image, from the image's regions and the sentence's words.\n\n\
         ## Model\n{} preset: {} wide, {} heads, {}/{}/{} language, vision and cross-modality layers; {} regions of {} numbers from the detector \
         '{}'; sentences of at most {} WordPieces.\n\n",
        job.data.name,
        recipe.preset,
        config.hidden_size,
        config.num_attention_heads,
        config.l_layers,
        config.r_layers,
        config.x_layers,
        dataset.regions(),
        config.visual_feat_dim,
        dataset.store.info().detector,
        recipe.max_length,
    );
    let count = |split| (dataset.splits.images(split).count(), dataset.splits.captions(&dataset.captions, split).len());
    let (train, val, test) = (count(Split::Train), count(Split::Val), count(Split::Test));
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "## Data\n| split | images | captions |\n| --- | ---: | ---: |\n| train | {} | {} |\n| val | {} | {} |\n| test | {} | {} |\n\n\
         Split by image ({}). Half of the pairs are mismatched; {:.0} % of the mismatched training pairs are hard (one word changed) where \
         the data has hard negatives.\n\n\
         ## Training\n```\n{}\n```\nEpoch {}, step {}; AdamW at {} with {:.0} % warm-up and linear decay, weight decay {}, batch {}, seed {}.\n\n",
        train.0,
        train.1,
        val.0,
        val.1,
        test.0,
        test.1,
        dataset.splits.source,
        100.0 * recipe.hard_negatives,
        job.command,
        epoch.epoch,
        epoch.step,
        recipe.learning_rate,
        100.0 * recipe.warmup,
        recipe.weight_decay,
        recipe.batch_size * recipe.accumulate,
        recipe.seed,
    );
    for (what, weight) in
        [("a contrastive word-region alignment loss", recipe.alignment), ("a masked-word loss", recipe.masked_words)]
    {
        if weight > 0.0 {
            let _ = writeln!(text, "Beside matching: {what}, weight {weight}.\n");
        }
    }
    text.push_str("## Metrics\n| pairs | loss | accuracy | precision | recall | F1 | AUC |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n");
    row(&mut text, "validation", &epoch.validation);
    if let Some(hard) = &epoch.validation_hard {
        row(&mut text, "validation, hard", hard);
    }
    if let Some(report) = report {
        row(&mut text, "test", &report.test.test);
        if let Some(hard) = &report.test.test_hard {
            row(&mut text, "test, hard", hard);
        }
        if let Some(retrieval) = &report.test.retrieval {
            text.push_str(&retrieval_table(retrieval));
        }
    }
    text
}

fn row(text: &mut String, name: &str, m: &Metrics) {
    let _ = writeln!(
        text,
        "| {name} | {:.4} | {:.4} | {:.4} | {:.4} | {:.4} | {:.4} |",
        m.loss, m.accuracy, m.precision, m.recall, m.f1, m.auc
    );
}

/// The recalls as a Markdown table.
pub fn retrieval_table(r: &Retrieval) -> String {
    let line = |name: &str, k: &Ranking| {
        format!(
            "| {name} | {} | {:.1} % | {:.1} % | {:.1} % | {} |\n",
            k.candidates,
            100.0 * k.recall_at_1,
            100.0 * k.recall_at_5,
            100.0 * k.recall_at_10,
            k.median_rank
        )
    };
    format!(
        "\nRetrieval over {} test images and {} captions:\n\n| direction | candidates | R@1 | R@5 | R@10 | median rank |\n| --- | ---: | ---: | ---: | ---: | ---: |\n{}{}",
        r.images,
        r.captions,
        line("image to text", &r.image_to_text),
        line("text to image", &r.text_to_image)
    )
}
