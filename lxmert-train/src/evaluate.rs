//! How to run a model for measuring; scores of pairs, and measures over them.

use crate::Result;
use crate::data::Dataset;
use crate::data::batches;
use crate::data::pairs::Pair;
use crate::metrics::Metrics;
use crate::recipe::Recipe;
use candle_core::Device;
use indicatif::ProgressBar;
use lxmert_core::cli::check_interrupt;
use lxmert_core::model::{MatchingModel, Pass};
use lxmert_core::ops::{Precision, PrepackedWeights};

/// How to run a model for measuring: without dropout, batch by batch.
#[derive(Debug, Clone, Copy)]
pub struct Evaluation<'a> {
    /// Examples per batch.
    pub batch_size: usize,
    /// Precision to which the encoder layers' products round their operands; everything else is f32 (see
    /// [`Pass::precision`]).
    pub precision: Precision,
    /// The device that holds the model.
    pub device: &'a Device,
}

impl<'a> Evaluation<'a> {
    /// The settings with which a run by `recipe` measures itself: in f32 even if it trains in bf16, so that runs are
    /// comparable.
    pub fn of_run(recipe: &Recipe, device: &'a Device) -> Self {
        Self { batch_size: recipe.evaluation_batch(), precision: Precision::F32, device }
    }

    /// How to run the model, whose weights stay in `prepacked` from batch to batch.
    pub fn forward<'p>(&self, prepacked: &'p PrepackedWeights) -> Pass<'p> {
        Pass::eval().with_precision(self.precision).with_prepacked(prepacked)
    }
}

/// The match logit of each pair, in order, without dropout.
///
/// # Errors
/// Returns an error if the data does not fit the model, or Ctrl-C was pressed.
pub fn logits(
    model: &MatchingModel,
    dataset: &Dataset,
    pairs: &[Pair],
    how: Evaluation,
    bar: &ProgressBar,
) -> Result<Vec<f32>> {
    let order = batches::plan_in_order(pairs, |pair| dataset.tokens(pair).len(), how.batch_size);
    let mut logits = vec![0f32; pairs.len()];
    let mut at = 0;
    let prepacked = PrepackedWeights::new();
    let run = how.forward(&prepacked).pooled_only();
    let planned = order.iter().map(|batch| batch.iter().map(|&i| pairs[i]).collect());
    batches::for_each(
        planned,
        |pairs: Vec<Pair>| dataset.read(&pairs),
        |batch| {
            check_interrupt()?;
            let output = model.forward(&batch.inputs(how.device)?, &run)?;
            for (&place, logit) in order[at].iter().zip(output.logits.to_vec1::<f32>()?) {
                logits[place] = logit;
            }
            at += 1;
            bar.inc(batch.rows as u64);
            Ok(true)
        },
    )?;
    Ok(logits)
}

/// The measures over `pairs`; see [`logits`].
///
/// # Errors
/// See [`logits`].
pub fn metrics(
    model: &MatchingModel,
    dataset: &Dataset,
    pairs: &[Pair],
    how: Evaluation,
    bar: &ProgressBar,
) -> Result<Metrics> {
    let scores = logits(model, dataset, pairs, how, bar)?;
    let matched: Vec<bool> = pairs.iter().map(Pair::matched).collect();
    Ok(Metrics::new(&scores, &matched))
}
