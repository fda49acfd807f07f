//! Memory for packed operands, aligned to cache lines, so that loading a register never touches two. A thread keeps its
//! scratch memory between calls: fresh memory costs more to touch than to fill.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Values of a cache line.
pub(super) const LINE: usize = 16;

/// A buffer whose first value is at the start of a cache line.
#[derive(Debug, Default)]
pub(crate) struct Aligned {
    values: Vec<f32>,
    start: usize,
}

impl Aligned {
    pub fn zeros(len: usize) -> Self {
        let values = vec![0.0; len + LINE - 1];
        // `align_offset` may fail with `usize::MAX`; a start elsewhere only costs speed.
        let start = values.as_ptr().align_offset(size_of::<[f32; LINE]>()).min(LINE - 1);
        Self { values, start }
    }
}

impl Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[self.start..]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.start..]
    }
}

thread_local! {
    static FREE: RefCell<Vec<Aligned>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with slices of these lengths and arbitrary contents, each from the start of a cache line on. Calls may nest.
pub(crate) fn with_scratch<const N: usize, R>(lengths: [usize; N], f: impl FnOnce([&mut [f32]; N]) -> R) -> R {
    let total = lengths.iter().map(|len| len.next_multiple_of(LINE)).sum();
    let mut buffer = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
    if buffer.len() < total {
        buffer = Aligned::zeros(total);
    }
    let mut rest = &mut *buffer;
    let parts = lengths.map(|len| {
        let (part, after) = std::mem::take(&mut rest).split_at_mut(len.next_multiple_of(LINE));
        rest = after;
        &mut part[..len]
    });
    let result = f(parts);
    FREE.with_borrow_mut(|free| free.push(buffer));
    result
}
