//! Fresh weights from a seed, and the weights that a model expects from a checkpoint.

use crate::Result;
use crate::procedural::splitmix64;
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder, VarMap};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Sets every variable of `varmap` from `seed`: layer norms to 1 and 0, biases to 0, all others normal with standard
/// deviation `range` (Devlin et al. 2019). A variable's values depend only on the seed and its name, so adding a head
/// does not change the trunk.
///
/// # Errors
/// Returns an error if a variable cannot be set.
pub fn seed_weights(varmap: &VarMap, seed: u64, range: f64) -> Result<()> {
    let variables = varmap.data().lock().unwrap_or_else(PoisonError::into_inner);
    for (name, variable) in variables.iter() {
        let (count, shape) = (variable.elem_count(), variable.shape());
        let values = if name.ends_with("bias") {
            vec![0.0; count]
        } else if is_norm(name) {
            vec![1.0; count]
        } else {
            normal(name, count, range, seed)
        };
        let fresh = Tensor::from_vec(values, shape, variable.device())?.to_dtype(variable.dtype())?;
        variable.set(&fresh)?;
    }
    Ok(())
}

/// Whether a variable belongs to a layer norm, judged by the names of the hub (where an answer head has only numbers)
/// and of the student project.
pub fn is_norm(name: &str) -> bool {
    ["LayerNorm.", "layer_norm", ".norm1.", ".norm2.", ".ln_", "logit_fc.2."].iter().any(|part| name.contains(part))
}

/// `count` normal values of mean 0 (Box & Muller 1958 over the uniform formula of
/// [`crate::procedural`]).
fn normal(name: &str, count: usize, deviation: f64, seed: u64) -> Vec<f32> {
    let seed = splitmix64(seed.wrapping_add(0x5851_F42D_4C95_7F2D));
    let radius = crate::procedural::values(name, count, 0.0, 1.0, seed);
    let angle = crate::procedural::values(&format!("{name}#angle"), count, 0.0, std::f64::consts::TAU, seed);
    // The uniform values are below 1, so the logarithm's argument is above 0.
    let pairs = radius.iter().zip(&angle);
    pairs.map(|(u, a)| ((-2.0 * (1.0 - f64::from(*u)).ln()).sqrt() * f64::from(*a).cos() * deviation) as f32).collect()
}

/// Names and shapes of every weight that `build` requests from its [`VarBuilder`], sorted by name.
///
/// # Errors
/// Returns an error if `build` fails.
pub fn expected(
    build: impl FnOnce(VarBuilder) -> candle_core::Result<()>,
) -> candle_core::Result<Vec<(String, Vec<usize>)>> {
    let seen = Arc::new(Mutex::new(BTreeMap::new()));
    let recorder = Recorder { seen: seen.clone() };
    build(VarBuilder::from_backend(Box::new(recorder), DType::F32, Device::Cpu))?;
    let seen = std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(seen.into_iter().collect())
}

/// Answers every request with a broadcast zero and records it.
struct Recorder {
    seen: Arc<Mutex<BTreeMap<String, Vec<usize>>>>,
}

impl SimpleBackend for Recorder {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(name.into(), shape.dims().to_vec());
        Tensor::zeros((), dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("'{name}' asked for without a shape")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeded_weights_have_the_right_spread_and_depend_on_the_seed() {
        let values = normal("a.weight", 40_000, 0.02, 7);
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / 40_000.0;
        let deviation = (values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 40_000.0).sqrt();
        assert!(mean.abs() < 5e-4, "{mean}");
        assert!((deviation - 0.02).abs() < 5e-4, "{deviation}");
        assert_ne!(values[0], normal("a.weight", 1, 0.02, 8)[0]);
        assert_eq!(values[0], normal("a.weight", 1, 0.02, 7)[0]);
    }
}
