//! The kernels on tensors, with their gradients. Each gives none where it does not apply (another device, another element type, sizes
//! that a block cannot hold): the caller then composes the same from candle's operations.

use super::device::{address, address_or_null, element, empty, room, run, storage_address, tensor, use_kernels};
use super::launches::{self, Chunks, Element, Launch};
use crate::ops::attention::HeadsLayout;
use crate::ops::dropout_mask::Mask;
use crate::ops::ragged::Ragged;
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::{CudaDevice, CudaStorage};
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor, bail};
use std::sync::Mutex;

type Gradients = [Option<Tensor>; 3];

/// A result that kernels have computed, on its way into the graph; and how its gradient goes back to up to three tensors.
struct Computed<B> {
    name: &'static str,
    result: Mutex<Option<CudaStorage>>,
    shape: Shape,
    backward: B,
}

impl<B: Fn(&Tensor) -> Result<Gradients> + Send + Sync> CustomOp3 for Computed<B> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        bail!("{}: computed on a CUDA device", self.name)
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        match self.result.lock().ok().and_then(|mut result| result.take()) {
            Some(result) => Ok((result, self.shape.clone())),
            None => bail!("{}: its result was taken before", self.name),
        }
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [first, second, third] = (self.backward)(&grad.contiguous()?)?;
        Ok((first, second, third))
    }
}

/// `result` as a tensor that depends on `inputs`, where any of them has a gradient.
fn into_graph(
    name: &'static str,
    result: CudaStorage,
    shape: impl Into<Shape>,
    [a, b, c]: [&Tensor; 3],
    backward: impl Fn(&Tensor) -> Result<Gradients> + Send + Sync + 'static,
) -> Result<Tensor> {
    if [a, b, c].iter().any(|input| input.track_op()) {
        a.apply_op3(b, c, Computed { name, result: Mutex::new(Some(result)), shape: shape.into(), backward })
    } else {
        Ok(tensor(result, shape))
    }
}

/// Launches of `Σ a (b)` down the columns into `out`, and room for the partial sums.
fn column_sums(
    device: &CudaDevice,
    element: Element,
    [a, b, out]: [u64; 3],
    (rows, width): (u32, u32),
) -> Result<(Vec<Launch>, Option<Tensor>)> {
    let chunks = Chunks::of_columns(rows, width);
    if chunks.count == 1 {
        return Ok((vec![launches::column_sums(element, [a, b, out], rows, width, chunks)], None));
    }
    let partial = empty(device, (chunks.count as usize, width as usize), DType::F32)?;
    let place = address(&partial)?;
    let whole = Chunks { count: 1, size: chunks.count };
    let launches = vec![
        launches::column_sums(element, [a, b, place], rows, width, chunks),
        launches::column_sums(Element::F32, [place, 0, out], chunks.count, width, whole),
    ];
    Ok((launches, Some(partial)))
}

/// Runs the sums of several matrices `(a, b)` of `width` columns, into consecutive rows of one vector.
fn sums_of(
    device: &CudaDevice,
    element: Element,
    matrices: &[(&Tensor, Option<&Tensor>)],
    width: usize,
) -> Result<Tensor> {
    let out = empty(device, matrices.len() * width, DType::F32)?;
    let (mut all, mut partial) = (Vec::new(), Vec::new());
    for (index, (a, b)) in matrices.iter().enumerate() {
        let place = address(&out)? + (index * width * 4) as u64;
        let sizes = ((a.elem_count() / width) as u32, width as u32);
        let (launches, room) = column_sums(device, element, [address(a)?, address_or_null(*b)?, place], sizes)?;
        all.extend(launches);
        partial.push(room);
    }
    run(device, &all)?;
    drop(partial);
    Ok(out)
}

fn small(count: usize) -> bool {
    u32::try_from(count).is_ok()
}

/// `norm(dropout(x + bias) + residual) · weight + shift` over the last dimension.
pub fn norm(
    x: &Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    (weight, shift, eps): (&Tensor, &Tensor, f64),
    dropout: Option<(Mask, &Ragged)>,
) -> Result<Option<Tensor>> {
    let width = weight.elem_count();
    let vectors: Vec<&Tensor> = bias.into_iter().chain([weight, shift]).collect();
    let fits = launches::Norm::fits(width)
        && vectors.iter().all(|v| v.dtype() == DType::F32 && v.dims() == [width])
        && residual.is_none_or(|residual| residual.dtype() == x.dtype() && residual.dims() == x.dims())
        && x.dims().last() == Some(&width)
        && small(x.elem_count());
    let (Some(element), true) = (element(x.dtype()), fits && use_kernels(&vectors) && use_kernels(&[x])) else {
        return Ok(None);
    };
    let device = x.device().as_cuda_device()?.clone();
    let x = x.contiguous()?;
    let residual = residual.map(Tensor::contiguous).transpose()?;
    let vectors = Tensor::cat(&vectors, 0)?; // one argument of the operation
    let (has_bias, tracked) = (bias.is_some(), [Some(&x), residual.as_ref(), Some(&vectors)]);
    let tracked = tracked.iter().flatten().any(|input| input.track_op());
    let height = x.elem_count() / width;
    let rows = dropout.map(|(_, rows)| rows.on(x.device())).transpose()?;
    let y = room(&device, x.shape(), x.dtype())?;
    let normed = tracked.then(|| empty(&device, x.shape(), x.dtype())).transpose()?;
    let scales = tracked.then(|| empty(&device, height, DType::F32)).transpose()?;
    let [first, step] = [address(&vectors)?, 4 * width as u64];
    let weights = first + if has_bias { step } else { 0 };
    let launch = launches::Norm {
        weight: weights,
        rows: address_or_null(rows.as_ref().map(|[_, rows]| rows))?,
        normed: address_or_null(normed.as_ref())?,
        scales: address_or_null(scales.as_ref())?,
        height: height as u32,
        width: width as u32,
        dropout: dropout.map(|(mask, _)| mask).into(),
    };
    let residual_address = address_or_null(residual.as_ref())?;
    let bias_address = if has_bias { first } else { 0 };
    let places = [address(&x)?, bias_address, residual_address, weights + step, storage_address(&y)?];
    run(&device, &[launch.forward(element, places, eps as f32)])?;
    let (shape, dtype) = (x.shape().clone(), x.dtype());
    let (has_residual, drops) = (residual.is_some(), dropout.is_some());
    let held = (vectors.clone(), rows); // what the launch's addresses are of
    let backward = move |grad: &Tensor| {
        let _ = &held;
        let (Some(normed), Some(_)) = (&normed, &scales) else { bail!("norm: nothing was kept for its gradient") };
        let dx = empty(&device, &shape, dtype)?;
        let dropped = if drops { empty(&device, &shape, dtype)? } else { dx.clone() };
        run(&device, &[launch.backward(element, [address(grad)?, address(&dx)?, address(&dropped)?])])?;
        let mut matrices = vec![(grad, Some(normed)), (grad, None)];
        if has_bias {
            matrices.insert(0, (&dropped, None));
        }
        let vectors = sums_of(&device, element, &matrices, width)?;
        Ok([Some(dropped), has_residual.then_some(dx), Some(vectors)])
    };
    let second = residual.as_ref().unwrap_or(&x);
    into_graph("norm", y, x.shape(), [&x, second, &vectors], backward).map(Some)
}

/// `dropout(activation(x + bias))`, `[…, width]`; 0: no activation, 1: GELU, 2: ReLU. Without rows the mask is of the elements in
/// their order.
pub fn activate(
    x: &Tensor,
    bias: Option<&Tensor>,
    activation: u32,
    dropout: Option<(Mask, Option<&Ragged>)>,
) -> Result<Option<Tensor>> {
    let width = x.dims().last().copied().unwrap_or(1);
    let fits = bias.is_none_or(|bias| bias.dtype() == DType::F32 && bias.dims() == [width] && use_kernels(&[bias]));
    let (Some(element), true) = (element(x.dtype()), fits && small(x.elem_count()) && use_kernels(&[x])) else {
        return Ok(None);
    };
    let device = x.device().as_cuda_device()?.clone();
    let x = x.contiguous()?;
    let bias = bias.map(Tensor::contiguous).transpose()?;
    let rows = dropout.and_then(|(_, rows)| rows).map(|rows| rows.on(x.device())).transpose()?;
    let launch = launches::Activate {
        x: address(&x)?,
        bias: address_or_null(bias.as_ref())?,
        rows: address_or_null(rows.as_ref().map(|[_, rows]| rows))?,
        count: x.elem_count() as u64,
        width: width as u32,
        activation,
        dropout: dropout.map(|(mask, _)| mask).into(),
    };
    let y = room(&device, x.shape(), x.dtype())?;
    run(&device, &[launch.forward(element, storage_address(&y)?)])?;
    let (input, held) = (x.clone(), (bias.clone(), rows));
    let backward = move |grad: &Tensor| {
        let _ = &held;
        let dx = empty(&device, input.shape(), input.dtype())?;
        run(&device, &[launch.backward(element, [address(grad)?, address(&dx)?])])?;
        let db = held.0.as_ref().filter(|bias| bias.track_op());
        let db = db.map(|_| sums_of(&device, element, &[(&dx, None)], width)).transpose()?;
        Ok([Some(dx), db, None])
    };
    let second = bias.as_ref().unwrap_or(&x);
    into_graph("activate", y, x.shape(), [&x, second, &x], backward).map(Some)
}

/// Attention over ragged rows; `q`: `[queries, width]`, `kv`: `[keys, 2 · width]`, keys before values; or both are one tensor,
/// `[rows, 3 · width]`, queries first. Returns `[queries, width]`.
pub fn attention(q: &Tensor, kv: &Tensor, layout: &HeadsLayout) -> Result<Option<Tensor>> {
    let (width, itself) = (layout.width, q.id() == kv.id());
    let [q_stride, kv_stride] = if itself { [3 * width; 2] } else { [width, 2 * width] };
    let d = width / layout.heads.max(1);
    let fits = launches::Attention::fits(layout.keys.length(), d)
        && (q.dims(), kv.dims()) == (&[layout.queries.count(), q_stride], &[layout.keys.count(), kv_stride])
        && q.dtype() == kv.dtype()
        && small(q.elem_count().max(kv.elem_count()))
        && layout.heads <= 65_535;
    let (Some(element), true) = (element(q.dtype()), fits && use_kernels(&[q, kv])) else { return Ok(None) };
    let device = q.device().as_cuda_device()?.clone();
    let q = q.contiguous()?;
    let kv = if itself { q.clone() } else { kv.contiguous()? };
    let [q_starts, q_rows] = layout.queries.on(q.device())?;
    let [k_starts, k_rows] = layout.keys.on(q.device())?;
    // Where queries, keys and values begin, or their gradients.
    let step = (width * q.dtype().size_in_bytes()) as u64;
    let places = move |q: &Tensor, kv: &Tensor| -> Result<[u64; 3]> {
        let keys = address(kv)? + if itself { step } else { 0 };
        Ok([address(q)?, keys, keys + step])
    };
    let [q_place, k_place, v_place] = places(&q, &kv)?;
    let launch = launches::Attention {
        q: q_place,
        k: k_place,
        v: v_place,
        q_starts: address(&q_starts)?,
        k_starts: address(&k_starts)?,
        q_rows: address(&q_rows)?,
        k_rows: address(&k_rows)?,
        q_stride: q_stride as u32,
        kv_stride: kv_stride as u32,
        batch: layout.queries.batch() as u32,
        heads: layout.heads as u32,
        d: d as u32,
        q_length: layout.queries.length() as u32,
        k_length: layout.keys.length() as u32,
        dropout: layout.dropout.into(),
    };
    let shape = (layout.queries.count(), width);
    let out = room(&device, shape, q.dtype())?;
    run(&device, &[launch.forward(element, storage_address(&out)?)])?;
    let held = ([q.clone(), kv.clone()], [q_starts, q_rows, k_starts, k_rows]);
    let backward = move |grad: &Tensor| {
        let dq = empty(&device, held.0[0].shape(), held.0[0].dtype())?;
        let dkv = if itself { dq.clone() } else { empty(&device, held.0[1].shape(), held.0[1].dtype())? };
        let [dq_place, dk_place, dv_place] = places(&dq, &dkv)?;
        run(&device, &[launch.backward(element, [address(grad)?, dq_place, dk_place, dv_place])])?;
        Ok([Some(dq), (!itself).then_some(dkv), None])
    };
    into_graph("attention", out, shape, [&q, &kv, &q], backward).map(Some)
}

/// Rows of `table`, `[rows, width]`, by `ids`, `[count]`, u32: `[count, width]`.
pub fn embedding(table: &Tensor, ids: &Tensor) -> Result<Option<Tensor>> {
    let ((rows, width), count) = (table.dims2()?, ids.elem_count());
    let types = table.dtype() == DType::F32 && ids.dtype() == DType::U32;
    if !types || !launches::Norm::fits(width) || !small(count.max(rows * width)) || !use_kernels(&[table, ids]) {
        return Ok(None);
    }
    let device = table.device().as_cuda_device()?.clone();
    let (table, ids) = (table.contiguous()?, ids.contiguous()?);
    let result = {
        let ((table, table_layout), (ids, ids_layout)) = (table.storage_and_layout(), ids.storage_and_layout());
        match (&*table, &*ids) {
            (Storage::Cuda(table), Storage::Cuda(ids)) => table.index_select(ids, table_layout, ids_layout, 0)?,
            _ => return Ok(None),
        }
    };
    let backward = move |grad: &Tensor| {
        let chunks = Chunks::of_table(count as u32, rows as u32);
        let out = empty(&device, (rows, width), DType::F32)?;
        let sizes = (rows as u32, width as u32);
        let launch = |place: u64| -> Result<Launch> {
            let places = [address(&ids)?, address(grad)?, place];
            Ok(launches::embedding_backward(Element::F32, places, count as u32, sizes, chunks))
        };
        if chunks.count == 1 {
            run(&device, &[launch(address(&out)?)?])?;
        } else {
            let partial = empty(&device, (chunks.count as usize, rows * width), DType::F32)?;
            let whole = Chunks { count: 1, size: chunks.count };
            let places = [address(&partial)?, 0, address(&out)?];
            let columns = (rows * width) as u32;
            let sum = launches::column_sums(Element::F32, places, chunks.count, columns, whole);
            run(&device, &[launch(address(&partial)?)?, sum])?;
        }
        Ok([Some(out), None, None])
    };
    into_graph("embedding", result, (count, width), [&table, &table, &table], backward).map(Some)
}
