//! A vector register that checks every address, so that tests can run the kernels with bounds checks: a read or write
//! outside the slices that the test has lent panics.
//!
//! Its number of lanes is a parameter, so that this machine can run the tiles of every machine.

#![allow(unsafe_code)]

use super::precision;
use super::simd::Vector;
use std::cell::RefCell;
use std::ops::Range;

thread_local! {
    /// Addresses that kernels on this thread may read, and whether they may write to them.
    static LENT: RefCell<Vec<(Range<usize>, bool)>> = const { RefCell::new(Vec::new()) };
}

/// Lends slices to the kernels on this thread until dropped.
#[must_use]
pub(super) struct Lent(());

impl Lent {
    /// Lends `inputs` for reading and `outputs` for reading and writing.
    pub fn new(inputs: &[&[f32]], outputs: &[&[f32]]) -> Self {
        let addresses = |slice: &&[f32]| {
            let range = slice.as_ptr_range();
            range.start as usize..range.end as usize
        };
        let inputs = inputs.iter().map(|slice| (addresses(slice), false));
        let outputs = outputs.iter().map(|slice| (addresses(slice), true));
        LENT.set(inputs.chain(outputs).collect());
        Self(())
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        LENT.take();
    }
}

fn check(from: *const f32, count: usize, write: bool) {
    let (start, end) = (from as usize, from as usize + count * size_of::<f32>());
    let inside = |(lent, writable): &(Range<usize>, bool)| {
        lent.start <= start && end <= lent.end && (start - lent.start).is_multiple_of(4) && (*writable || !write)
    };
    let verb = if write { "wrote" } else { "read" };
    assert!(LENT.with_borrow(|lent| lent.iter().any(inside)), "a kernel {verb} {count} values outside of its slices");
}

/// `LANES` values; every load and store is checked.
#[derive(Clone, Copy)]
pub(super) struct Checked<const LANES: usize>([f32; LANES]);

impl<const LANES: usize> Checked<LANES> {
    fn with(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl<const LANES: usize> Vector for Checked<LANES> {
    const LANES: usize = LANES;
    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }
    unsafe fn load(from: *const f32) -> Self {
        check(from, LANES, false);
        // SAFETY: within a slice that lives while it is lent, just checked; `[f32; LANES]` is aligned as f32 is.
        Self(unsafe { from.cast::<[f32; LANES]>().read() })
    }
    unsafe fn broadcast(from: *const f32) -> Self {
        check(from, 1, false);
        // SAFETY: as above.
        Self([unsafe { from.read() }; LANES])
    }
    unsafe fn store(self, to: *mut f32) {
        check(to, LANES, true);
        // SAFETY: as above, and the slice is one that may be written.
        unsafe { to.cast::<[f32; LANES]>().write(self.0) }
    }
    unsafe fn add(self, other: Self) -> Self {
        self.with(other, |a, b| a + b)
    }
    unsafe fn sub(self, other: Self) -> Self {
        self.with(other, |a, b| a - b)
    }
    unsafe fn mul(self, other: Self) -> Self {
        self.with(other, |a, b| a * b)
    }
    unsafe fn mul_add(self, other: Self, sum: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].mul_add(other.0[i], sum.0[i])))
    }
    unsafe fn mul_add_pairs(self, other: Self, sum: Self) -> Self {
        let products = self.with(other, precision::products);
        products.with(sum, |a, b| a + b)
    }
    unsafe fn store_pairs(self, to: *mut f32) {
        check(to, LANES / 2, true);
        for (i, values) in self.0.chunks_exact(2).enumerate() {
            // SAFETY: as above.
            unsafe { to.wrapping_add(i).write(precision::pair(values[0], values[1])) }
        }
    }
}

/// Whether `f` panics with a message from [`check`].
pub(super) fn strays(f: impl FnOnce()) -> bool {
    let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)) else { return false };
    panic.downcast_ref::<String>().is_some_and(|message| message.contains("outside of its slices"))
}

/// Asserts that `run` goes out of bounds if any of the `operands` (the last `outputs` are written to) is lent one value
/// short, and stays within bounds if all are lent whole: each is exactly as long as needed.
pub(super) fn assert_every_value_is_needed(operands: &[Range<*const f32>], outputs: usize, mut run: impl FnMut()) {
    for short in 0..=operands.len() {
        let lend = |(which, operand): (usize, &Range<*const f32>)| {
            let end = operand.end as usize - if which == short { size_of::<f32>() } else { 0 };
            (operand.start as usize..end, which + outputs >= operands.len())
        };
        LENT.set(operands.iter().enumerate().map(lend).collect());
        let lent = Lent(());
        let strayed = strays(&mut run);
        drop(lent);
        assert_eq!(strayed, short < operands.len(), "operand {short} of {}", operands.len());
    }
}

mod tests {
    use super::*;

    type Register = Checked<4>;

    #[test]
    fn rejects_accesses_to_slices_that_were_not_lent() {
        let (values, mut out) = ([1.0f32; 8], [0.0f32; 8]);
        let place = out.as_mut_ptr();
        let copy = |from: usize, to: usize| {
            // SAFETY: both addresses are checked, and lie within the arrays while the check holds.
            unsafe { Register::load(values.as_ptr().wrapping_add(from)).store(place.wrapping_add(to)) }
        };
        assert!(strays(|| copy(0, 0)), "nothing is lent");
        let lent = Lent::new(&[&values[..7]], &[&out[..7]]);
        assert!(!strays(|| copy(3, 3)));
        assert!(strays(|| copy(4, 3)), "reading one value past the end");
        assert!(strays(|| copy(3, 4)), "writing one value past the end");
        assert!(strays(|| copy(usize::MAX, 0)), "reading one value before the start");
        // SAFETY: checked, as above.
        assert!(strays(|| unsafe { Register::splat(1.0).store(values.as_ptr().cast_mut()) }), "writing to an input");
        drop(lent);
        assert!(strays(|| copy(0, 0)), "what was lent is taken back");
        assert_eq!(out, [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0]);
    }
}
