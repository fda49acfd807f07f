//! The operands of [`strassen`](super::strassen)'s products: sums and differences of a matrix's two by two blocks.

#![allow(unsafe_code)]

use super::simd::{Level, Plain, Vector, level};

/// Products of blocks, each of an operand of either side.
pub(super) const PRODUCTS: usize = 7;

/// A matrix cut into two by two blocks: `lines` lines at the top and as many below, `leading` apart, each of twice `len` values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quarters<'a> {
    pub values: &'a [f32],
    pub leading: usize,
    pub lines: usize,
    pub len: usize,
}

/// Where seven matrices of `lines` × `len` go: they begin `apart`, and their lines `leading`, from one to the next.
#[derive(Debug)]
pub(super) struct Sums<'a> {
    pub values: &'a mut [f32],
    pub apart: usize,
    pub leading: usize,
}

/// Whose operands are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

/// Values in the widest register: no line is shorter.
const LANES: usize = 16;

/// One line of the sums.
type Line = unsafe fn(*mut f32, usize, [*const f32; 4], usize);

/// Writes the seven operands of a side.
pub(super) fn write(side: Side, sums: Sums, quarters: Quarters) {
    write_by(lines_of(level()), side, sums, quarters);
}

/// For the left side and for the right.
fn lines_of(level: Level) -> [Line; 2] {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => [avx512::<false>, avx512::<true>],
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => [avx2::<false>, avx2::<true>],
        _ => [line::<Plain, false>, line::<Plain, true>],
    }
}

fn write_by(kernels: [Line; 2], side: Side, sums: Sums, quarters: Quarters) {
    let Quarters { values, leading, lines, len } = quarters;
    assert!(lines > 0 && len >= LANES);
    assert!(values.len() >= (2 * lines - 1) * leading + 2 * len);
    assert!(sums.values.len() >= (PRODUCTS - 1) * sums.apart + (lines - 1) * sums.leading + len);
    for index in 0..lines {
        let (top, below) = (&values[index * leading..], &values[(index + lines) * leading..]);
        let blocks = [top.as_ptr(), top[len..].as_ptr(), below.as_ptr(), below[len..].as_ptr()];
        let out = sums.values[index * sums.leading..].as_mut_ptr();
        // SAFETY: by the assertions every block has `len` values from its pointer on, and so has each of the seven runs that begin
        // `apart`; `level` has found the instructions.
        unsafe { kernels[side as usize](out, sums.apart, blocks, len) };
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
unsafe fn avx512<const RIGHT: bool>(out: *mut f32, apart: usize, blocks: [*const f32; 4], len: usize) {
    // SAFETY: passed on to the caller.
    unsafe { line::<std::arch::x86_64::__m512, RIGHT>(out, apart, blocks, len) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const RIGHT: bool>(out: *mut f32, apart: usize, blocks: [*const f32; 4], len: usize) {
    // SAFETY: as above.
    unsafe { line::<std::arch::x86_64::__m256, RIGHT>(out, apart, blocks, len) }
}

/// # Safety
/// `len` is at least a register's. The four pointers are valid for `len` values, and `out` for as many at each of seven places `apart`.
#[inline(always)]
unsafe fn line<V: Vector, const RIGHT: bool>(out: *mut f32, apart: usize, blocks: [*const f32; 4], len: usize) {
    let mut at = 0;
    // SAFETY: `at + LANES <= len`; pointers step as in `kernel.rs`.
    unsafe {
        loop {
            let [x11, x12, x21, x22] = blocks;
            let x = [
                V::load(x11.wrapping_add(at)),
                V::load(x12.wrapping_add(at)),
                V::load(x21.wrapping_add(at)),
                V::load(x22.wrapping_add(at)),
            ];
            let mut to = out.wrapping_add(at);
            for sum in combine::<V, RIGHT>(x) {
                sum.store(to);
                to = to.wrapping_add(apart);
            }
            at += V::LANES;
            if at == len {
                return;
            }
            // The last register covers some values again.
            at = at.min(len - V::LANES);
        }
    }
}

/// The operands in the order of the products.
#[inline(always)]
unsafe fn combine<V: Vector, const RIGHT: bool>([x11, x12, x21, x22]: [V; 4]) -> [V; PRODUCTS] {
    // SAFETY: registers only.
    unsafe {
        match RIGHT {
            true => [x11.add(x22), x11, x12.sub(x22), x21.sub(x11), x22, x11.add(x12), x21.add(x22)],
            false => [x11.add(x22), x21.add(x22), x11, x22, x11.add(x12), x21.sub(x11), x12.sub(x22)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::checked::{Checked, Lent, strays};
    use super::*;
    use crate::procedural;
    use proptest::prelude::*;

    unsafe fn checked<const LANES: usize, const RIGHT: bool>(
        out: *mut f32,
        apart: usize,
        blocks: [*const f32; 4],
        len: usize,
    ) {
        // SAFETY: every address is checked.
        unsafe { line::<Checked<LANES>, RIGHT>(out, apart, blocks, len) }
    }

    /// Those of every machine with checked bounds, and those of this one.
    fn kernels() -> [[Line; 2]; 4] {
        [
            [checked::<4, false>, checked::<4, true>],
            [checked::<8, false>, checked::<8, true>],
            [checked::<16, false>, checked::<16, true>],
            lines_of(level()),
        ]
    }

    /// The operands of Strassen's products.
    fn expected(side: Side, [x11, x12, x21, x22]: [f32; 4]) -> [f32; PRODUCTS] {
        match side {
            Side::Left => [x11 + x22, x21 + x22, x11, x22, x11 + x12, x21 - x11, x12 - x22],
            Side::Right => [x11 + x22, x11, x12 - x22, x21 - x11, x22, x11 + x12, x21 + x22],
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn sums_stay_within_their_slices(lines in 1usize..4, len in LANES..50, gaps in (0usize..3, 0usize..3, 0usize..3)) {
            let (leading, out_leading) = (2 * len + gaps.0, len + gaps.1);
            let apart = lines * out_leading + gaps.2;
            let size = |count: usize, leading: usize, len: usize| (count - 1) * leading + len;
            let values = procedural::values("x", size(2 * lines, leading, 2 * len), -1.0, 1.0, 1);
            let before = vec![7.0; (PRODUCTS - 1) * apart + size(lines, out_leading, len)];
            for (kernels, side) in kernels().into_iter().flat_map(|k| [(k, Side::Left), (k, Side::Right)]) {
                let mut out = before.clone();
                let lent = Lent::new(&[&values], &[&out]);
                let sums = Sums { values: &mut out, apart, leading: out_leading };
                write_by(kernels, side, sums, Quarters { values: &values, leading, lines, len });
                drop(lent);
                let mut want = before.clone();
                for (line, i) in (0..lines).flat_map(|line| (0..len).map(move |i| (line, i))) {
                    let at = |lower: usize, right: usize| values[(line + lower * lines) * leading + right * len + i];
                    let sums = expected(side, [at(0, 0), at(0, 1), at(1, 0), at(1, 1)]);
                    for (index, sum) in sums.into_iter().enumerate() {
                        want[index * apart + line * out_leading + i] = sum;
                    }
                }
                prop_assert_eq!(out, want);
            }
        }
    }

    #[test]
    fn a_slice_that_is_too_short_is_noticed() {
        let (lines, len) = (2, 20);
        let values = vec![1.0; 4 * lines * len];
        for kernels in &kernels()[..3] {
            let quarters = Quarters { values: &values, leading: 2 * len, lines, len };
            let mut out = vec![0.0; PRODUCTS * lines * len];
            // What was lent is one value shorter than the slices.
            for (less_in, less_out) in [(1, 0), (0, 1)] {
                let lent = Lent::new(&[&values[..values.len() - less_in]], &[&out[..out.len() - less_out]]);
                let strayed = strays(|| {
                    let sums = Sums { values: &mut out, apart: lines * len, leading: len };
                    write_by(*kernels, Side::Right, sums, quarters);
                });
                drop(lent);
                assert!(strayed);
            }
            // And the slices are shorter than what is asked for.
            for (less_in, less_out) in [(1, 0), (0, 1)] {
                let quarters = Quarters { values: &values[less_in..], ..quarters };
                let short = out.len() - less_out;
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    let sums = Sums { values: &mut out[..short], apart: lines * len, leading: len };
                    write_by(*kernels, Side::Left, sums, quarters);
                }));
                let message = *result.expect_err("a short slice was taken").downcast::<&str>().expect("an assertion");
                assert!(message.starts_with("assertion failed"), "{message}");
            }
        }
    }
}
