//! Gradients of variables without candle's accumulation, which allocates zeros for each variable and adds: two more passes over
//! memory. Kernels [`deliver`] their gradients, and [`backward`] puts them into the store at the end.

use super::math::add_scaled;
use super::{cpu_tensor, in_pool};
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, TensorId};
use rayon::prelude::*;
use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

type Delivered = HashMap<TensorId, (Tensor, Vec<f32>)>;

thread_local! {
    /// What kernels have delivered to the [`backward`] that runs on this thread; none outside of it.
    static DELIVERED: RefCell<Option<Delivered>> = const { RefCell::new(None) };
}

/// Values that one task adds.
const PER_TASK: usize = 1 << 16;

/// `loss.backward()`, faster: the same gradients to the same variables.
///
/// # Errors
/// As there.
pub fn backward(loss: &Tensor) -> Result<GradStore> {
    in_pool(loss.device(), || run(loss))
}

fn run(loss: &Tensor) -> Result<GradStore> {
    let outer = DELIVERED.replace(Some(HashMap::new()));
    let store = loss.backward();
    let delivered = DELIVERED.replace(outer).unwrap_or_default();
    let mut store = store?;
    for (_, (variable, values)) in delivered {
        let mut gradient = cpu_tensor(values, variable.shape())?;
        if let Some(other) = store.remove(&variable) {
            gradient = (gradient + other)?;
        }
        store.insert(&variable, gradient);
    }
    Ok(store)
}

/// The gradient of `tensor` (which has as many values), for an operation to return: none where it has been delivered or is
/// not wanted.
pub(crate) fn deliver(tensor: &Tensor, values: Vec<f32>) -> Result<Option<Tensor>> {
    if !tensor.track_op() {
        return Ok(None);
    }
    let left = DELIVERED.with_borrow_mut(|delivered| match delivered {
        Some(delivered) if tensor.is_variable() => {
            match delivered.entry(tensor.id()) {
                Entry::Vacant(entry) => drop(entry.insert((tensor.clone(), values))),
                Entry::Occupied(mut entry) => {
                    let sums = entry.get_mut().1.par_chunks_mut(PER_TASK);
                    sums.zip(values.par_chunks(PER_TASK)).for_each(|(sum, values)| add_scaled(sum, 1.0, values));
                }
            }
            None
        }
        _ => Some(values),
    });
    left.map(|values| cpu_tensor(values, tensor.shape())).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops;
    use candle_core::{Device, Var};

    #[test]
    fn the_store_holds_what_candle_s_own_would() -> Result<()> {
        let variable = |name: &str, shape: &[usize]| {
            let values = crate::procedural::values(name, shape.iter().product(), -1.0, 1.0, 1);
            Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu)?)
        };
        let (w, b, unused) = (variable("w", &[6, 6])?, variable("b", &[6])?, variable("unused", &[2])?);
        let x = variable("x", &[4, 6])?;
        // The weights twice, once of their own and once derived, and in an operation of candle's.
        let loss = || -> Result<Tensor> {
            let y = ops::linear(&ops::linear(&x, &w, &b)?, &w.t()?.contiguous()?, &b)?;
            let y = ops::linear(&y, &w, &(b.as_tensor() * 2.0)?)?;
            y.sqr()?.sum_all()? + w.sqr()?.sum_all()?
        };
        let (ours, theirs) = (backward(&loss()?)?, loss()?.backward()?);
        for var in [&w, &b, &x] {
            let difference = (ours.get(var).unwrap() - theirs.get(var).unwrap())?.abs()?.flatten_all()?.max(0)?;
            assert!(difference.to_scalar::<f32>()? < 1e-4);
        }
        assert!(ours.get(&unused).is_none());
        // Candle's own backward, above, got every gradient directly.
        assert!(theirs.get(&w).is_some() && DELIVERED.with_borrow(Option::is_none));
        Ok(())
    }
}
