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
    if lines == 0 || len == 0 {
        return;
    }
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
/// The four pointers are valid for `len` values, and `out` for as many at each of seven places `apart`.
#[inline(always)]
unsafe fn line<V: Vector, const RIGHT: bool>(out: *mut f32, apart: usize, blocks: [*const f32; 4], len: usize) {
    let mut at = 0;
    // SAFETY: `at + LANES <= len` in the first loop and `at < len` in the second; pointers step as in `kernel.rs`.
    unsafe {
        if len >= V::LANES {
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
        // Fewer values than a register has.
        while at < len {
            let x = blocks.map(|block| Plain::splat(*block.wrapping_add(at)));
            for (index, sum) in combine::<Plain, RIGHT>(x).into_iter().enumerate() {
                *out.wrapping_add(index * apart + at) = sum.first();
            }
            at += 1;
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
