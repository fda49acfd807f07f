//! How to run a model for measuring; scores of pairs, and measures over them.

use crate::Result;
use crate::data::Dataset;
use crate::data::batches;
use crate::data::pairs::Pair;
use crate::metrics::Metrics;
use crate::ranks::{from_bytes, to_bytes, world};
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

/// What `work` makes of each batch, in the batches' order. The batches are shared out among the ranks, and every rank gets all
/// results. `work` is given a batch's number too.
///
/// # Errors
/// Returns the first error of reading or of `work` on any rank, or an error if Ctrl-C was pressed.
pub fn share_out<E: Send, B: Send>(
    batches: Vec<Vec<E>>,
    read: impl Fn(Vec<E>) -> Result<B> + Send,
    mut work: impl FnMut(usize, B) -> Result<Vec<f64>>,
) -> Result<Vec<Vec<f64>>> {
    let (world, count) = (world(), batches.len());
    let own = batches.into_iter().skip(world.rank()).step_by(world.size());
    let mut found: Vec<Vec<f64>> = Vec::new();
    let worked = batches::for_each(own, read, |batch| {
        check_interrupt()?;
        found.push(work(world.rank() + found.len() * world.size(), batch)?);
        Ok(true)
    });
    if world.is_alone() {
        return worked.map(|()| found);
    }
    // Each batch's numbers follow how many they are.
    let flat = |numbers: &Vec<f64>| [&[numbers.len() as f64], numbers.as_slice()].concat();
    let all = world.gather(worked.map(|()| to_bytes(&found.iter().flat_map(flat).collect::<Vec<_>>())))?;
    let mut all: Vec<_> = all.iter().map(|bytes| from_bytes(bytes).into_iter()).collect();
    let next = |batch: usize| {
        let numbers = &mut all[batch % world.size()];
        let count = numbers.next().unwrap_or(0.0) as usize;
        numbers.take(count).collect()
    };
    Ok((0..count).map(next).collect())
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
    let prepacked = PrepackedWeights::new();
    let run = how.forward(&prepacked).pooled_only();
    let planned = order.iter().map(|batch| batch.iter().map(|&i| pairs[i]).collect()).collect();
    let scored = share_out(
        planned,
        |pairs: Vec<Pair>| dataset.read(&pairs),
        |_, batch| {
            let output = model.forward(&batch.inputs(how.device)?, &run)?;
            bar.inc(batch.rows as u64);
            Ok(output.logits.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
        },
    )?;
    let mut logits = vec![0f32; pairs.len()];
    for (&place, logit) in order.iter().flatten().zip(scored.iter().flatten()) {
        logits[place] = *logit as f32;
    }
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
