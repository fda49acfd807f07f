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
    in_pool(|| run(loss))
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
