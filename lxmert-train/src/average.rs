//! The exponential moving average of the weights: `--ema`.

use crate::recipe::Recipe;
use crate::trainable::is_frozen;
use crate::{Error, Result};
use candle_core::Tensor;
use lxmert_core::optim::AdamW;
use std::collections::BTreeMap;

/// The average of the weights that learn, by name. While it is swapped in, it holds the weights themselves.
pub struct Average {
    decay: f64,
    tensors: BTreeMap<String, Tensor>,
}

impl Average {
    /// The weights as they are.
    ///
    /// # Errors
    /// Returns an error if a tensor cannot be copied.
    pub fn new(decay: f64, recipe: &Recipe, optimiser: &AdamW) -> Result<Self> {
        let learning = optimiser.parameters().filter(|(name, _)| !is_frozen(recipe, name));
        let tensors = learning.map(|(name, var)| Ok((name.to_string(), var.as_tensor().copy()?)));
        Ok(Self { decay, tensors: tensors.collect::<Result<_>>()? })
    }

    /// Moves the average towards the weights after `step` steps. At first the decay is (1 + step) / (10 + step) at most,
    /// so that the random start is soon forgotten (TensorFlow's `ExponentialMovingAverage`).
    ///
    /// # Errors
    /// Returns an error if a tensor operation fails.
    pub fn update(&mut self, optimiser: &AdamW, step: u64) -> Result<()> {
        let decay = self.decay.min((1 + step) as f64 / (10 + step) as f64);
        for (name, var) in optimiser.parameters() {
            if let Some(average) = self.tensors.get_mut(name) {
                *average = ((&*average * decay)? + (var.as_tensor() * (1.0 - decay))?)?;
            }
        }
        Ok(())
    }

    /// Exchanges the weights with their average.
    ///
    /// # Errors
    /// Returns an error if a tensor cannot be copied.
    pub fn swap(&mut self, optimiser: &AdamW) -> Result<()> {
        for (name, var) in optimiser.parameters() {
            if let Some(average) = self.tensors.get_mut(name) {
                let own = var.as_tensor().copy()?;
                var.set(&std::mem::replace(average, own))?;
            }
        }
        Ok(())
    }

    /// The average for the training state, as `average.<name>`.
    pub fn state(&self) -> impl Iterator<Item = (String, Tensor)> + '_ {
        self.tensors.iter().map(|(name, tensor)| (format!("average.{name}"), tensor.clone()))
    }

    /// Takes the average from a training state.
    ///
    /// # Errors
    /// Returns an error if a tensor is missing or has another shape.
    pub fn restore(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        for (name, average) in &mut self.tensors {
            let key = format!("average.{name}");
            *average = match state.get(&key) {
                Some(saved) if saved.shape() == average.shape() => saved.to_device(average.device())?,
                _ => return Err(Error::Argument(format!("the training state has no '{key}' of this model's size"))),
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use lxmert_core::optim::AdamWConfig;

    #[test]
    fn averages_the_weights_and_swaps_with_them() {
        let var = |value: f32| Var::new(&[value], &Device::Cpu).unwrap();
        let parameters = BTreeMap::from([("a".to_string(), var(1.0)), ("b".to_string(), var(1.0))]);
        let optimiser = AdamW::new(AdamWConfig::default(), parameters).unwrap();
        let values = || optimiser.parameters().map(|(_, var)| var.to_vec1::<f32>().unwrap()[0]).collect::<Vec<_>>();
        let recipe = Recipe { freeze: vec!["b".into()], ..Recipe::scenes() };
        let mut average = Average::new(0.75, &recipe, &optimiser).unwrap();
        let set = |value: f32| {
            optimiser.parameters().for_each(|(_, var)| var.set(&Tensor::new(&[value], &Device::Cpu).unwrap()).unwrap());
        };
        // Decays (1 + 2) / (10 + 2) = 0.25, and later 0.75.
        set(5.0);
        average.update(&optimiser, 2).unwrap();
        set(8.0);
        average.update(&optimiser, 1000).unwrap();
        let state = average.state().collect();
        average.swap(&optimiser).unwrap();
        assert_eq!(values(), [0.75 * 4.0 + 0.25 * 8.0, 8.0]);
        average.swap(&optimiser).unwrap();
        assert_eq!(values(), [8.0, 8.0]);
        let mut other = Average::new(0.75, &recipe, &optimiser).unwrap();
        other.restore(&state).unwrap();
        other.swap(&optimiser).unwrap();
        assert_eq!(values()[0], 5.0);
        let error = other.restore(&BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains("'average.a'"), "{error}");
    }
}
