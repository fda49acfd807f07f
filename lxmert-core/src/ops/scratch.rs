//! Scratch memory of a thread, kept between calls: fresh memory costs more to touch than to fill.

use std::cell::RefCell;

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with slices of these lengths and arbitrary contents. Calls may nest.
pub(crate) fn with_scratch<const N: usize, R>(lengths: [usize; N], f: impl FnOnce([&mut [f32]; N]) -> R) -> R {
    let total = lengths.iter().sum();
    let mut buffer = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
    if buffer.len() < total {
        buffer = vec![0.0; total];
    }
    let mut rest = buffer.as_mut_slice();
    let parts = lengths.map(|len| {
        let (part, after) = std::mem::take(&mut rest).split_at_mut(len);
        rest = after;
        part
    });
    let result = f(parts);
    FREE.with_borrow_mut(|free| free.push(buffer));
    result
}
