//! Gradients of variables without candle's accumulation, which allocates zeros for each variable and adds to them: two
//! more passes over memory. Kernels [`deliver`] their gradients, and [`backward`] puts them into the store at the end.

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
    /// The gradients delivered to the [`backward`] that runs on this thread; `None` outside it.
    static DELIVERED: RefCell<Option<Delivered>> = const { RefCell::new(None) };
}

/// Values added per task.
const PER_TASK: usize = 1 << 16;

/// A faster `loss.backward()` with the same gradients for the same variables.
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

/// The gradient of `tensor` (which has as many values), for an operation to return; `None` if it has been delivered or
/// is not wanted.
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
