//! Gradients between GPUs, by NCCL: one process a GPU. Messages, and the id that NCCL starts from, go by MPI.

use super::World;
use crate::{Error, Result};
use candle_core::cuda_backend::cudarc::nccl::{Comm, Id, group_end, group_start};
use candle_core::cuda_backend::{CudaDevice, CudaStorage};
use candle_core::op::BackpropOp;
use candle_core::{Storage, Tensor};
use std::cell::OnceCell;

thread_local! {
    /// Made at the first exchange, by the thread that trains.
    static COMM: OnceCell<Comm> = const { OnceCell::new() };
}

fn failed(error: impl std::fmt::Debug) -> Error {
    Error::Argument(format!("NCCL: {error:?}; NCCL_DEBUG=INFO says more"))
}

fn connect(world: World, device: &CudaDevice) -> Result<Comm> {
    let id = world.from_first(|| {
        let id = Id::new().map_err(failed)?;
        Ok(id.internal().iter().map(|byte| *byte as u8).collect())
    })?;
    let mut internal = [0; 128];
    internal.iter_mut().zip(id).for_each(|(to, byte)| *to = byte as std::ffi::c_char);
    Comm::from_rank(device.cuda_stream(), world.rank(), world.size(), Id::uninit(internal)).map_err(failed)
}

/// As the transport's function of this name, between GPUs.
pub(super) fn all_to_all(
    world: World,
    send: &[Vec<Tensor>],
    counts: &[usize],
    device: &CudaDevice,
) -> Result<Vec<Tensor>> {
    COMM.with(|cell| {
        if cell.get().is_none() {
            // Set once: this thread alone comes here.
            let _ = cell.set(connect(world, device)?);
        }
        match cell.get() {
            Some(comm) => exchange(comm, send, counts, device),
            None => Err(failed("no connection")),
        }
    })
}

fn exchange(comm: &Comm, send: &[Vec<Tensor>], counts: &[usize], device: &CudaDevice) -> Result<Vec<Tensor>> {
    let whole = |to: &Vec<Tensor>| match to.is_empty() {
        true => Ok(None),
        false => Tensor::cat(to, 0).map(Some),
    };
    let send: Vec<Option<Tensor>> = send.iter().map(whole).collect::<candle_core::Result<_>>()?;
    let mut received = Vec::with_capacity(counts.len());
    for &count in counts {
        received.push(device.alloc_zeros::<f32>(count.max(1))?);
    }
    let guards: Vec<_> = send.iter().map(|tensor| tensor.as_ref().map(Tensor::storage_and_layout)).collect();
    group_start().map_err(failed)?;
    for (peer, (guard, into)) in guards.iter().zip(&mut received).enumerate() {
        if let Some((storage, layout)) = guard {
            let (Storage::Cuda(storage), Some((start, end))) = (&**storage, layout.contiguous_offsets()) else {
                return Err(failed("a gradient that is not contiguous on the device"));
            };
            let values = storage.as_cuda_slice::<f32>()?.slice(start..end);
            comm.send(&values, peer as i32).map_err(failed)?;
        }
        if counts[peer] > 0 {
            comm.recv(into, peer as i32).map_err(failed)?;
        }
    }
    group_end().map_err(failed)?;
    drop(guards);
    let tensors = received.into_iter().zip(counts).map(|(values, &count)| {
        let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(values, device.clone()));
        let tensor = Tensor::from_storage(storage, count.max(1), BackpropOp::none(), false);
        Ok(if count == 0 { tensor.narrow(0, 0, 0)? } else { tensor })
    });
    tensors.collect()
}
