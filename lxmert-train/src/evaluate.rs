//! Scores of pairs, and the measures over them.

use crate::Result;
use crate::data::Dataset;
use crate::data::batches;
use crate::data::pairs::Pair;
use crate::metrics::Metrics;
use candle_core::Device;
use indicatif::ProgressBar;
use lxmert_core::cli::check_interrupt;
use lxmert_core::model::{Forward, MatchingModel};
use lxmert_core::ops::PackedWeights;

/// The match logit of each pair, in the pairs' order, without dropout.
///
/// # Errors
/// When the data does not fit the model, or Ctrl-C was pressed.
pub fn logits(
    model: &MatchingModel,
    dataset: &Dataset,
    pairs: &[Pair],
    batch_size: usize,
    device: &Device,
    bar: &ProgressBar,
) -> Result<Vec<f32>> {
    let order = batches::plan_in_order(pairs, |pair| dataset.tokens(pair).len(), batch_size);
    let mut logits = vec![0f32; pairs.len()];
    let mut at = 0;
    let packed = PackedWeights::new();
    let run = Forward::eval().pooled_only().with_packed(&packed);
    let planned = order.iter().map(|batch| batch.iter().map(|&i| pairs[i]).collect());
    batches::for_each(
        planned,
        |pairs: Vec<Pair>| dataset.read(&pairs),
        |batch| {
            check_interrupt()?;
            let output = model.forward(&batch.inputs(device)?, &run)?;
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
/// As [`logits`].
pub fn metrics(
    model: &MatchingModel,
    dataset: &Dataset,
    pairs: &[Pair],
    batch_size: usize,
    device: &Device,
    bar: &ProgressBar,
) -> Result<Metrics> {
    let scores = logits(model, dataset, pairs, batch_size, device, bar)?;
    let matched: Vec<bool> = pairs.iter().map(Pair::matched).collect();
    Ok(Metrics::new(&scores, &matched))
}
