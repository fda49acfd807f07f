//! The losses of one masked batch.

use super::regions::MaskedRegions;
use crate::recipe::RegionLosses;
use crate::task_weights::TaskWeights;
use crate::tasks::losses::{cross_entropy, right};
use crate::tasks::masked_words::{Guesses, MaskedWords};
use crate::{Error, Result};
use candle_core::Tensor;
use lxmert_core::model::{LxmertInputs, Pass, PretrainingModel, Stream};
use rand::Rng;

/// What to predict about a batch with words and regions already masked.
#[derive(Debug, Default)]
pub struct Targets {
    /// The masked words.
    pub words: MaskedWords,
    /// The masked regions.
    pub regions: MaskedRegions,
    /// Per row whether sentence and image match.
    pub matched: Vec<bool>,
    /// The answer of each row; `None` if there is none to learn.
    pub answers: Vec<Option<u32>>,
}

/// One loss and its correct predictions, both scalars on the device; the first is to be differentiated.
#[derive(Debug, Clone)]
pub struct Term {
    /// The task.
    pub name: &'static str,
    /// The loss of the batch.
    pub loss: Tensor,
    /// Number of correct predictions.
    pub right: Tensor,
    /// Number of predictions; 0 if the task has none to count.
    pub guesses: usize,
    /// The weight of the batch's loss in a mean over batches.
    pub weight: f64,
}

/// The terms of the tasks that `weights` switches on, each before weighting, and both streams before they meet. A task
/// with nothing to predict in this batch has no term.
///
/// # Errors
/// Returns an error if the batch does not fit the model.
pub fn terms(
    model: &PretrainingModel,
    inputs: &LxmertInputs,
    targets: &Targets,
    weights: &TaskWeights,
    (kind, normaliser): (RegionLosses, f64),
    run: &Pass,
) -> Result<(Vec<Term>, Stream, Stream)> {
    let language = model.trunk.encode_language(&inputs.input_ids, inputs.attention_mask.as_ref(), run)?;
    let mask = inputs.visual_attention_mask.as_ref();
    let vision = model.trunk.encode_vision(&inputs.visual_feats, &inputs.visual_boxes, mask, run)?;
    let output = model.trunk.cross(&language, &vision, run)?;
    let heads = &model.heads;
    let rows = targets.matched.len() as f64;

    let mut terms = Vec::new();
    if weights.words > 0.0
        && let Some(guess) = targets.words.loss(&heads.words, &output.language)?
    {
        let Guesses { loss, right, count: guesses } = guess;
        terms.push(Term { name: "words", loss, right, guesses, weight: guesses as f64 });
    }
    if weights.matching > 0.0 {
        let classes: Vec<u32> = targets.matched.iter().map(|matched| u32::from(*matched)).collect();
        terms.push(classified("matching", &heads.matching(&output.pooled)?, &classes)?);
    }
    if weights.any_region() {
        let found = targets.regions.losses(&heads.regions, &output.vision, kind, normaliser)?;
        let features = found.features.map(|loss| Ok::<_, Error>((loss.clone(), loss.zeros_like()?, 0))).transpose()?;
        let named = [
            ("objects", weights.objects, found.objects),
            ("attributes", weights.attributes, found.attributes),
            ("features", weights.features, features),
        ];
        for (name, weight, found) in named {
            if let Some((loss, right, guesses)) = found.filter(|_| weight > 0.0) {
                terms.push(Term { name, loss, right, guesses, weight: rows });
            }
        }
    }
    if let Some(head) = heads.answers.as_ref().filter(|_| weights.answers > 0.0) {
        let asked = targets.answers.iter().enumerate();
        let (index, answers): (Vec<u32>, Vec<u32>) =
            asked.filter_map(|(row, answer)| Some((row as u32, (*answer)?))).unzip();
        if !index.is_empty() {
            let index = Tensor::from_slice(&index, index.len(), output.pooled.device())?;
            terms.push(classified("answers", &head.forward(&output.pooled.index_select(&index, 0)?)?, &answers)?);
        }
    }
    Ok((terms, language, vision))
}

/// The mean cross entropy of rows with one class each.
fn classified(name: &'static str, logits: &Tensor, targets: &[u32]) -> Result<Term> {
    let right = right(logits, targets, None)?;
    let loss = cross_entropy(logits, targets)?.mean_all()?;
    Ok(Term { name, loss, right, guesses: targets.len(), weight: targets.len() as f64 })
}

/// A label that represents a soft label in one step, drawn in proportion to the scores, as the original draws one at
/// each visit. `None`, which no loss counts, if the soft label is empty.
pub fn sample(label: &[(u32, f32)], rng: &mut impl Rng) -> Option<u32> {
    let total: f32 = label.iter().map(|(_, score)| score).sum();
    if label.len() < 2 || !total.is_finite() {
        return label.first().map(|(label, _)| *label);
    }
    let mut left = rng.random_range(0.0..1.0f32) * total;
    for &(label, score) in label {
        if left < score {
            return Some(label);
        }
        left -= score;
    }
    label.last().map(|(label, _)| *label) // because the sum is rounded
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn draws_labels_in_proportion_to_their_scores_and_by_the_seed() {
        let label = [(3, 0.3), (5, 0.9)];
        let draw = |seed| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            (0..4000).map(|_| sample(&label, &mut rng).unwrap()).collect::<Vec<_>>()
        };
        let drawn = draw(0);
        assert_eq!(drawn, draw(0));
        let share = drawn.iter().filter(|&&label| label == 3).count() as f64 / 4000.0;
        assert!((share - 0.25).abs() < 0.03, "{share}"); // four standard deviations
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        assert_eq!((sample(&[], &mut rng), sample(&[(7, 0.3)], &mut rng)), (None, Some(7)));
    }
}
