//! Embedding lookup: rows of a table by index, with the gradient with respect to the table.

use super::gradients::deliver;
use super::math::add_scaled;
use super::{contiguous_f32, cuda, use_fast, with_f32};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

/// `table`: `[rows, width]`; `ids`: integers of any shape; returns `[…, width]`.
///
/// # Errors
/// Returns an error if an id is not a row of the table.
pub fn embedding(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let (rows, width) = table.dims2()?;
    let mut shape = ids.dims().to_vec();
    shape.push(width);
    let flat = ids.flatten_all()?;
    if !use_fast(&[table]) {
        let rows = cuda::fused::embedding(table, &flat)?.map_or_else(|| table.index_select(&flat, 0), Ok);
        return rows?.reshape(shape);
    }
    let ids = flat.to_dtype(candle_core::DType::U32)?.to_vec1::<u32>()?;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
        bail!("id {id} of a table with {rows} rows");
    }
    table.contiguous()?.apply_op1(Embedding { ids })?.reshape(shape)
}

struct Embedding {
    ids: Vec<u32>,
}

impl CustomOp1 for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, table: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (table, width) = (contiguous_f32(table, layout)?, layout.dims()[1]);
        let mut out = Vec::with_capacity(self.ids.len() * width);
        self.ids.iter().for_each(|&id| out.extend_from_slice(&table[id as usize * width..][..width]));
        Ok((CpuStorage::F32(out), (self.ids.len(), width).into()))
    }

    fn bwd(&self, table: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let width = table.dim(1)?;
        let mut sums = vec![0.0f32; table.elem_count()];
        with_f32(grad, |grad| {
            for (&id, grad) in self.ids.iter().zip(grad.chunks_exact(width.max(1))) {
                add_scaled(&mut sums[id as usize * width..][..width], 1.0, grad);
            }
        })?;
        deliver(table, sums)
    }
}
