//! The result of a batch, and running sums over steps and epochs.

use crate::measures::nan_for_null;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::AddAssign;

/// What to log of one batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// Examples in the batch.
    pub examples: usize,
    /// Sum over the examples of the loss to log, in f64.
    pub sum: f64,
    /// Number of correct predictions, and of predictions.
    pub right: (usize, usize),
    /// The losses that add up to the total, if there are several.
    pub parts: Vec<Part>,
}

/// One of the losses of a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    /// Its name.
    pub name: &'static str,
    /// Its mean over the batch, before weighting.
    pub loss: f64,
    /// Number of correct guesses, and of guesses; 0 if there are none to count.
    pub right: (usize, usize),
}

/// Running sums of the training loss.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Sums {
    /// Sum of the examples' losses.
    #[serde(deserialize_with = "nan_for_null")]
    pub loss: f64,
    /// Correct predictions.
    pub right: usize,
    /// Predictions.
    pub judged: usize,
    /// Examples.
    pub examples: usize,
    /// For each part of the loss: the sum of its batch means, and how many batches had it.
    pub parts: BTreeMap<String, (f64, u64)>,
    /// For each part with guesses: correct guesses, and guesses.
    pub guesses: BTreeMap<String, (usize, usize)>,
    /// Sum of the gradient norms.
    pub norm: f64,
    /// Optimiser steps.
    pub steps: u64,
}

impl Sums {
    /// Those of one batch. Where its loss is not a number there are no parts, which JSON could not hold.
    pub fn of_batch(batch: &Seen) -> Self {
        let mut sums = Self::default();
        sums.add_batch(batch);
        if !sums.loss.is_finite() {
            sums.parts.clear();
        }
        sums
    }

    /// Adds a batch's result.
    pub fn add_batch(&mut self, batch: &Seen) {
        self.loss += batch.sum;
        self.right += batch.right.0;
        self.judged += batch.right.1;
        self.examples += batch.examples;
        for &Part { name, loss, right } in &batch.parts {
            add(&mut self.parts, name, (loss, 1));
            if right.1 > 0 {
                add(&mut self.guesses, name, right);
            }
        }
    }

    /// Adds what other sums hold of batches.
    pub fn add_batches(&mut self, more: &Self) {
        self.loss += more.loss;
        self.right += more.right;
        self.judged += more.judged;
        self.examples += more.examples;
        more.parts.iter().for_each(|(name, sums)| add(&mut self.parts, name, *sums));
        more.guesses.iter().for_each(|(name, counts)| add(&mut self.guesses, name, *counts));
    }

    /// Adds the batches of an optimiser step, and the norm of its gradient.
    pub fn add_step(&mut self, step: &Self, norm: f64) {
        self.add_batches(step);
        self.norm += norm;
        self.steps += 1;
    }

    /// Mean loss per example.
    pub fn mean_loss(&self) -> f64 {
        self.loss / self.examples.max(1) as f64
    }

    /// Share of correct predictions; `None` if there are none.
    pub fn accuracy(&self) -> Option<f64> {
        (self.judged > 0).then(|| self.right as f64 / self.judged as f64)
    }

    /// Each part's mean over the batches that had it.
    pub fn part_means(&self) -> BTreeMap<String, f64> {
        self.parts.iter().map(|(name, (sum, batches))| (name.clone(), sum / *batches as f64)).collect()
    }

    /// The share of correct guesses, for each part with guesses.
    pub fn part_accuracies(&self) -> BTreeMap<String, f64> {
        self.guesses.iter().map(|(name, (right, all))| (name.clone(), *right as f64 / (*all).max(1) as f64)).collect()
    }
}

fn add<A: Copy + Default + AddAssign, B: Copy + Default + AddAssign>(
    sums: &mut BTreeMap<String, (A, B)>,
    name: &str,
    (a, b): (A, B),
) {
    let sum = sums.entry(name.to_string()).or_default();
    sum.0 += a;
    sum.1 += b;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_means_over_batches_and_guesses_are_counted() {
        let batch = |parts: &[Part]| Seen { examples: 4, sum: 2.0, right: (0, 0), parts: parts.to_vec() };
        let (words, regions) =
            (|loss, right| Part { name: "words", loss, right }, Part { name: "features", loss: 1.0, right: (0, 0) });
        let (mut step, mut sums) = (Sums::default(), Sums::default());
        step.add_batch(&batch(&[words(3.0, (1, 4)), regions]));
        step.add_batch(&batch(&[words(1.0, (2, 2))]));
        sums.add_step(&step, 1.0);
        sums.add_step(&Sums::default(), 1.0);
        assert_eq!(sums.part_means(), BTreeMap::from([("words".into(), 2.0), ("features".into(), 1.0)]));
        assert_eq!(sums.part_accuracies(), BTreeMap::from([("words".into(), 0.5)]));
    }
}
