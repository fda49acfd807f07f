//! Seeded initial weights: a variable's initial value depends only on its name and the seed. (Candle's generator for
//! the CPU cannot be seeded.)

use candle_core::{DType, Device, Result, Shape, Tensor, Var, bail};
use candle_nn::Init;
use candle_nn::init::NormalOrUniform;
use candle_nn::var_builder::SimpleBackend;
use lxmert_core::procedural::splitmix64;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Variables by name, created when a network requests them. Clones share the variables.
#[derive(Debug, Clone)]
pub struct SeededVariables {
    seed: u64,
    variables: Arc<Mutex<BTreeMap<String, Var>>>,
}

impl SeededVariables {
    /// Creates an empty set.
    pub fn new(seed: u64) -> Self {
        Self { seed, variables: Arc::default() }
    }

    /// A builder for networks that take their variables from here.
    pub fn builder(&self, device: &Device) -> candle_nn::VarBuilder<'static> {
        candle_nn::VarBuilder::from_backend(Box::new(self.clone()), DType::F32, device.clone())
    }

    /// Every variable, by name.
    pub fn all(&self) -> BTreeMap<String, Var> {
        self.locked().clone()
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<String, Var>> {
        // The map is consistent between any two operations, even if a thread panicked.
        self.variables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draw(&self, shape: &Shape, name: &str, init: Init) -> Vec<f32> {
        let key = name.bytes().fold(self.seed, |key, byte| splitmix64(key ^ u64::from(byte)).wrapping_add(1));
        let mut rng = ChaCha8Rng::seed_from_u64(key);
        let mut uniform = |low: f64, high: f64| (low + (high - low) * rng.random::<f64>()) as f32;
        let count = shape.elem_count();
        let (mean, deviation) = match init {
            Init::Const(value) => return vec![value as f32; count],
            Init::Uniform { lo, up } => return (0..count).map(|_| uniform(lo, up)).collect(),
            Init::Randn { mean, stdev } => (mean, stdev),
            Init::Kaiming { dist, fan, non_linearity } => {
                let deviation = non_linearity.gain() / (fan.for_shape(shape) as f64).sqrt();
                if matches!(dist, NormalOrUniform::Uniform) {
                    let bound = 3f64.sqrt() * deviation;
                    return (0..count).map(|_| uniform(-bound, bound)).collect();
                }
                (0.0, deviation)
            }
        };
        // The Box–Muller transform; 1 − u keeps the logarithm finite.
        let mut normal = || {
            let (radius, angle) = (1.0 - f64::from(uniform(0.0, 1.0)), f64::from(uniform(0.0, 1.0)));
            (-2.0 * radius.max(1e-12).ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
        };
        (0..count).map(|_| (mean + deviation * normal()) as f32).collect()
    }
}

impl SimpleBackend for SeededVariables {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        if let Some(variable) = self.locked().get(name) {
            if variable.shape() != &shape {
                bail!("{name} is {:?}, not {shape:?}", variable.shape());
            }
            return Ok(variable.as_tensor().clone());
        }
        let values = Tensor::from_vec(self.draw(&shape, name, init), shape, device)?.to_dtype(dtype)?;
        let variable = Var::from_tensor(&values)?;
        let tensor = variable.as_tensor().clone();
        self.locked().insert(name.to_owned(), variable);
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        match self.locked().get(name) {
            Some(variable) => Ok(variable.as_tensor().clone()),
            None => bail!("no variable {name}"),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.locked().contains_key(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_depend_on_name_and_seed_and_have_the_right_spread() -> Result<()> {
        let get = |seed, name: &str, init| {
            let variables = SeededVariables::new(seed);
            variables.builder(&Device::Cpu).get_with_hints((400, 50), name, init)?.flatten_all()?.to_vec1::<f32>()
        };
        let init = candle_nn::init::DEFAULT_KAIMING_NORMAL;
        let a = get(0, "a", init)?;
        assert_eq!(a, get(0, "a", init)?);
        assert_ne!(a, get(0, "b", init)?);
        assert_ne!(a, get(1, "a", init)?);
        let variance = a.iter().map(|v| v * v).sum::<f32>() / a.len() as f32;
        assert!((variance - 2.0 / 50.0).abs() < 2e-3, "{variance}");
        let uniform = get(0, "a", Init::Uniform { lo: -1.0, up: 3.0 })?;
        assert!(uniform.iter().all(|v| (-1.0..3.0).contains(v)));
        assert!((uniform.iter().sum::<f32>() / uniform.len() as f32 - 1.0).abs() < 0.03);
        Ok(())
    }

    #[test]
    fn a_name_refers_to_one_variable() -> Result<()> {
        let variables = SeededVariables::new(0);
        let vb = variables.builder(&Device::Cpu);
        vb.get(3, "x")?;
        vb.get(3, "x")?;
        assert_eq!(variables.all().len(), 1);
        assert!(vb.get(4, "x").is_err());
        Ok(())
    }
}
