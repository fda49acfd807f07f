//! Padded batches without their padding: the real rows of all sentences (or images), one after another, so that layers which
//! treat each row alone compute nothing for padding.

use super::{contiguous_f32, cpu_tensor, with_f32};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use std::sync::Arc;

/// Where the real rows of a padded `[batch, length, width]` tensor lie.
#[derive(Debug, Clone)]
pub struct Packing(Arc<Rows>);

#[derive(Debug)]
struct Rows {
    batch: usize,
    length: usize,
    /// Item `i` has the packed rows `starts[i]..starts[i + 1]`.
    starts: Vec<usize>,
    /// The padded row of each packed one.
    rows: Vec<u32>,
}

impl Packing {
    /// Every row is real.
    pub fn dense(batch: usize, length: usize) -> Self {
        let starts = (0..=batch).map(|i| i * length).collect();
        Self(Arc::new(Rows { batch, length, starts, rows: (0..(batch * length) as u32).collect() }))
    }

    /// From a mask, `[batch, length]`, 1 for real and 0 for padding. An item that is all padding keeps all its rows: masks are
    /// added to attention scores, where the same number for all keys changes nothing. None when the mask has other values
    /// or an item does not begin with a real row.
    pub(super) fn of_mask(mask: &[f32], batch: usize, length: usize) -> Option<Self> {
        let (mut starts, mut rows) = (Vec::with_capacity(batch + 1), Vec::with_capacity(mask.len()));
        starts.push(0);
        for item in 0..batch {
            let mask = &mask[item * length..][..length];
            let empty = mask.iter().all(|m| *m == 0.0);
            if mask.iter().any(|m| *m != 0.0 && *m != 1.0) || (!empty && mask[0] == 0.0) {
                return None;
            }
            rows.extend((0..length).filter(|i| empty || mask[*i] == 1.0).map(|i| (item * length + i) as u32));
            starts.push(rows.len());
        }
        Some(Self(Arc::new(Rows { batch, length, starts, rows })))
    }

    /// Items.
    pub fn batch(&self) -> usize {
        self.0.batch
    }

    /// Rows of an item with its padding.
    pub fn length(&self) -> usize {
        self.0.length
    }

    /// Real rows of all items.
    pub fn count(&self) -> usize {
        self.0.rows.len()
    }

    /// The padded row of each packed one.
    pub(crate) fn rows(&self) -> &[u32] {
        &self.0.rows
    }

    /// Item `i` has the packed rows `starts[i]..starts[i + 1]`.
    pub(crate) fn starts(&self) -> &[usize] {
        &self.0.starts
    }

    /// Only the first row of every item.
    pub fn first_rows(&self) -> Self {
        let Rows { batch, length, .. } = *self.0;
        let rows = (0..batch).map(|i| (i * length) as u32).collect();
        Self(Arc::new(Rows { batch, length, starts: (0..=batch).collect(), rows }))
    }

    /// The real rows of `x`: `[batch, length, width]`; gives `[rows, width]`.
    ///
    /// # Errors
    /// When `x` has another shape.
    pub fn pack(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, length, width) = x.dims3()?;
        if (batch, length) != (self.0.batch, self.0.length) {
            candle_core::bail!("{:?} is not a batch of {} by {}", x.dims(), self.0.batch, self.0.length);
        }
        let flat = x.contiguous()?.reshape((batch * length, width))?;
        if self.count() == batch * length { Ok(flat) } else { flat.apply_op1(Pack(self.clone())) }
    }

    /// The first row of every item of packed `x`: `[rows, width]`; gives `[batch, width]`.
    ///
    /// # Errors
    /// When an item has no rows.
    pub fn pick_first(&self, x: &Tensor) -> Result<Tensor> {
        let (starts, count) = (self.starts(), x.dim(0)?);
        if starts.windows(2).any(|pair| pair[0] == pair[1]) || count != self.count() {
            candle_core::bail!("an item of the batch has no rows");
        }
        let rows = starts[..self.batch()].iter().map(|start| *start as u32).collect();
        // Here packed rows play the padded ones' part.
        let inner = Rows { batch: 1, length: count, starts: Vec::new(), rows };
        x.contiguous()?.apply_op1(Pack(Self(Arc::new(inner))))
    }

    /// Packed rows, `[rows, width]`, back in their places among zeros: `[batch, length, width]`.
    ///
    /// # Errors
    /// When `x` has another number of rows.
    pub fn unpack(&self, x: &Tensor) -> Result<Tensor> {
        let (count, width) = x.dims2()?;
        if count != self.count() {
            candle_core::bail!("{count} rows are not the {} of the packing", self.count());
        }
        let shape = (self.0.batch, self.0.length, width);
        let full = self.0.batch * self.0.length;
        (if count == full { x.clone() } else { x.contiguous()?.apply_op1(Unpack(self.clone()))? }).reshape(shape)
    }

    fn gather(&self, from: &[f32], width: usize) -> Vec<f32> {
        let mut to = Vec::with_capacity(self.count() * width);
        for row in self.rows() {
            to.extend_from_slice(&from[*row as usize * width..][..width]);
        }
        to
    }

    fn scatter(&self, from: &[f32], width: usize) -> Vec<f32> {
        let mut to = vec![0.0; self.0.batch * self.0.length * width];
        for (row, from) in self.rows().iter().zip(from.chunks_exact(width.max(1))) {
            to[*row as usize * width..][..width].copy_from_slice(from);
        }
        to
    }
}

struct Pack(Packing);
struct Unpack(Packing);

impl CustomOp1 for Pack {
    fn name(&self) -> &'static str {
        "pack"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = layout.shape().dims2()?.1;
        let rows = self.0.gather(contiguous_f32(storage, layout)?, width);
        Ok((CpuStorage::F32(rows), (self.0.count(), width).into()))
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let width = x.dim(1)?;
        cpu_tensor(with_f32(grad, |grad| self.0.scatter(grad, width))?, x.shape()).map(Some)
    }
}

impl CustomOp1 for Unpack {
    fn name(&self) -> &'static str {
        "unpack"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = layout.shape().dims2()?.1;
        let rows = self.0.scatter(contiguous_f32(storage, layout)?, width);
        Ok((CpuStorage::F32(rows), (self.0.0.batch * self.0.0.length, width).into()))
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let width = x.dim(1)?;
        cpu_tensor(with_f32(grad, |grad| self.0.gather(grad, width))?, x.shape()).map(Some)
    }
}
