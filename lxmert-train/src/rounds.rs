//! How the batches of an optimiser step are shared out among ranks, and what ranks tell each other of a round of batches.

use crate::ranks::World;
use crate::recipe::Recipe;
use crate::{Error, Result};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

/// How a step's batches are shared out, for the log; nothing for one rank.
pub fn shares(world: World, recipe: &Recipe) -> Option<String> {
    let (ranks, accumulate, batch) = (world.size(), recipe.accumulate, recipe.batch_size);
    if world.is_alone() {
        return None;
    }
    let step = format!("{ranks} ranks: a step of {} examples is", batch * accumulate);
    if !accumulate.is_multiple_of(ranks) {
        let advice = format!("so some wait; make --accumulate a multiple of {ranks}");
        return Some(format!(
            "{step} {accumulate} batches of {batch}, which {ranks} ranks cannot share evenly, {advice}"
        ));
    }
    let times = if accumulate == ranks { String::new() } else { format!(", {} times", accumulate / ranks) };
    Some(format!("{step} {ranks} ranks × {batch}{times}"))
}

/// This rank's batches from number `done` on, round by round: of a step's batches a round holds as many as there are ranks,
/// and a rank without one an empty batch.
pub fn rounds<E>(mut plan: Vec<Vec<E>>, accumulate: usize, world: World, done: usize) -> Vec<Vec<E>> {
    let count = plan.len();
    let mut rounds = Vec::new();
    for group in (done / accumulate * accumulate..count).step_by(accumulate) {
        let end = (group + accumulate).min(count);
        for first in (group..end).step_by(world.size()).filter(|first| *first >= done) {
            let own = first + world.rank();
            rounds.push(if own < end { std::mem::take(&mut plan[own]) } else { Vec::new() });
        }
    }
    rounds
}

/// What ranks tell each other of a round of batches besides the gradients.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Round {
    /// Which parameters have a gradient; empty where a rank had no batch.
    pub present: Vec<bool>,
    /// Whether this rank was asked to stop.
    pub stop: bool,
}

impl Round {
    /// A batch's round.
    pub fn of(gradients: &[Option<Tensor>]) -> Self {
        Self { present: gradients.iter().map(Option::is_some).collect(), ..Self::default() }
    }

    /// All ranks' rounds, by rank.
    ///
    /// # Errors
    /// The error of any rank.
    pub fn gather(world: World, own: Result<Self>) -> Result<Vec<Self>> {
        if world.is_alone() {
            return own.map(|own| vec![own]);
        }
        let json = |round: Self| serde_json::to_vec(&round).map_err(Error::json("another rank"));
        let all = world.gather(own.and_then(json))?;
        all.iter().map(|bytes| serde_json::from_slice(bytes).map_err(Error::json("another rank"))).collect()
    }
}
