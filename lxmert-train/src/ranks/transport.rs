//! Bytes and gradients between ranks, by MPI, and by NCCL between GPUs.

use super::World;
use crate::{Error, Result};
use candle_core::{CpuStorage, Device, Storage, Tensor};
use mpi::Count;
use mpi::datatype::{Partition, PartitionMut};
use mpi::environment::Universe;
use mpi::topology::{Communicator, SimpleCommunicator};
use mpi::traits::{CommunicatorCollectives, Equivalence};

pub(super) fn connect() -> Result<Universe> {
    match mpi::initialize_with_threading(mpi::Threading::Funneled) {
        Some((universe, _)) => Ok(universe),
        None => Err(Error::Argument("MPI is connected already".into())),
    }
}

fn communicator() -> SimpleCommunicator {
    SimpleCommunicator::world()
}

/// Rank and size; 0 and 1 while there is no connection.
pub(super) fn place() -> (usize, usize) {
    if !mpi::environment::is_initialized() || mpi::environment::is_finalized() {
        return (0, 1);
    }
    (communicator().rank() as usize, communicator().size() as usize)
}

pub(super) fn abort(code: i32) -> ! {
    communicator().abort(code)
}

pub(super) fn gather(own: &[u8]) -> Vec<Vec<u8>> {
    let mut lengths = vec![0u64; communicator().size() as usize];
    communicator().all_gather_into(&(own.len() as u64), &mut lengths[..]);
    let lengths: Vec<usize> = lengths.into_iter().map(|length| length as usize).collect();
    let all = varied(own, &lengths, |own, all| communicator().all_gather_varcount_into(own, all));
    let mut rest = all.as_slice();
    lengths.iter().map(|length| rest.split_off(..*length).unwrap_or_default().to_vec()).collect()
}

/// Fills a buffer of `counts` numbers by rank.
fn varied<T: Equivalence + Default + Clone>(
    own: &[T],
    counts: &[usize],
    receive: impl FnOnce(&[T], &mut PartitionMut<[T], Vec<Count>, Vec<Count>>),
) -> Vec<T> {
    let mut all = vec![T::default(); counts.iter().sum()];
    let (counts, starts) = partition(counts);
    receive(own, &mut PartitionMut::new(&mut all[..], counts, starts));
    all
}

/// Counts and where each starts, as MPI takes them.
fn partition(counts: &[usize]) -> (Vec<Count>, Vec<Count>) {
    let starts = counts.iter().scan(0, |at, count| {
        *at += count;
        Some((*at - count) as Count)
    });
    (counts.iter().map(|count| *count as Count).collect(), starts.collect())
}

/// The numbers of flat f32 tensors, one after another.
fn numbers(tensors: &[Tensor]) -> Result<Vec<f32>> {
    let mut all = Vec::with_capacity(tensors.iter().map(Tensor::elem_count).sum());
    for tensor in tensors {
        let (storage, layout) = tensor.storage_and_layout();
        match (&*storage, layout.contiguous_offsets()) {
            (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => all.extend_from_slice(&values[start..end]),
            _ => {
                drop(storage);
                all.extend(tensor.to_vec1::<f32>()?);
            }
        }
    }
    Ok(all)
}

/// Cuts numbers into one tensor a rank.
fn by_rank(all: &[f32], counts: &[usize], device: &Device) -> Result<Vec<Tensor>> {
    let mut rest = all;
    let cut = counts.iter().map(|count| {
        let own = rest.split_off(..*count).unwrap_or_default();
        Ok(Tensor::from_slice(own, own.len(), device)?)
    });
    cut.collect()
}

impl World {
    /// Sends each rank the tensors meant for it; gives what each rank has sent, `counts` numbers, by rank.
    pub(super) fn all_to_all(self, send: Vec<Vec<Tensor>>, counts: &[usize], device: &Device) -> Result<Vec<Tensor>> {
        #[cfg(feature = "nccl")]
        if let Device::Cuda(device) = device {
            return super::nccl::all_to_all(self, &send, counts, device);
        }
        let lengths: Vec<usize> = send.iter().map(|to| to.iter().map(Tensor::elem_count).sum()).collect();
        let own = numbers(&send.concat())?;
        let (send_counts, starts) = partition(&lengths);
        let all = varied(&own, counts, |own, all| {
            communicator().all_to_all_varcount_into(&Partition::new(own, send_counts, starts), all);
        });
        by_rank(&all, counts, device)
    }

    /// Sends the tensors to all ranks; gives what each has sent, `counts` numbers, by rank.
    pub(super) fn all_gather(self, send: Vec<Tensor>, counts: &[usize], device: &Device) -> Result<Vec<Tensor>> {
        #[cfg(feature = "nccl")]
        if let Device::Cuda(device) = device {
            let to_all = vec![send; self.size()];
            return super::nccl::all_to_all(self, &to_all, counts, device);
        }
        let all = varied(&numbers(&send)?, counts, |own, all| communicator().all_gather_varcount_into(own, all));
        by_rank(&all, counts, device)
    }
}
