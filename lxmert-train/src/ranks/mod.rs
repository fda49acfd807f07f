//! Ranks: the processes of one job, on one machine or several.
//!
//! A process that was started alone is a [`World`] of one, and everything here is then free. Built with the feature `mpi` and
//! started by `mpirun` or `srun`, the ranks share the batches: of an optimiser step's batches, rank r computes those whose
//! place j has j mod ranks = r. [`GradientSum`] adds the gradients in the order of the batches, so that weights are equal to
//! the bit for any number of ranks. In evaluation, batches are shared out likewise and what each gives is gathered in their order.
//!
//! # How a job ends
//!
//! [`World::gather`] carries errors: if one rank's work fails, every rank gets an error, and the job ends in order. An error
//! elsewhere (a full disk under rank 0), and a panic, end the whole job at once by `MPI_Abort`; files are written whole or not at
//! all, so the last saved state stays good. A rank that is killed is noticed by the launcher, which ends the others.

#[cfg(feature = "nccl")]
mod nccl;
mod sum;
mod threads;
#[cfg(feature = "mpi")]
mod transport;

pub use sum::GradientSum;
pub use threads::share_of_cores;

use crate::{Error, Result};
#[cfg(not(feature = "mpi"))]
use candle_core::{Device, Tensor};

/// The ranks of this job. It is the same everywhere in a process: [`world`] gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct World {
    rank: usize,
    size: usize,
}

/// Keeps the connection to the other ranks. When it is dropped, this rank waits for the others to end too.
pub struct Connection {
    #[cfg(feature = "mpi")]
    _universe: Option<mpi::environment::Universe>,
}

/// Connects to the other ranks. Call once, first thing in `main`, from the thread that later trains.
///
/// # Errors
/// When a launcher has started several processes but this build has no MPI, or MPI cannot be started.
pub fn connect() -> Result<Connection> {
    let launched = lxmert_core::launcher::rank(|name| std::env::var(name).ok()).map_or(1, |place| place.count);
    #[cfg(feature = "mpi")]
    {
        // Alone, nothing of MPI is needed. Launchers that say nothing else say the rank by PMIx.
        if launched == 1 && std::env::var_os("PMIX_RANK").is_none() {
            return Ok(Connection { _universe: None });
        }
        let universe = transport::connect()?;
        end_all_on_panic();
        Ok(Connection { _universe: Some(universe) })
    }
    #[cfg(not(feature = "mpi"))]
    {
        if launched > 1 {
            return Err(Error::Argument(format!(
                "{launched} processes were started together, but this build has no MPI: build with `--features mpi`, or start one"
            )));
        }
        Ok(Connection {})
    }
}

/// The ranks of this job; a world of one until [`connect`] was called.
pub fn world() -> World {
    #[cfg(feature = "mpi")]
    let (rank, size) = transport::place();
    #[cfg(not(feature = "mpi"))]
    let (rank, size) = (0, 1);
    World { rank, size }
}

/// If one rank panics, the others would wait forever.
#[cfg(feature = "mpi")]
fn end_all_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let world = world();
        if !world.is_alone() {
            eprintln!("rank {} of {} panicked; ending all", world.rank, world.size);
        }
        print(panic);
        world.abort(1);
    }));
}

impl World {
    /// This process's number, from 0.
    pub fn rank(self) -> usize {
        self.rank
    }

    /// How many ranks there are.
    pub fn size(self) -> usize {
        self.size
    }

    /// This process's number among those on its machine, as the launcher says; 0 where none says.
    pub fn local_rank(self) -> usize {
        let names = ["OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"];
        names.iter().find_map(|name| std::env::var(name).ok()?.parse().ok()).unwrap_or(0)
    }

    /// An error's text with this rank's number, where there are others.
    pub fn naming(self, error: &impl std::fmt::Display) -> String {
        if self.is_alone() { error.to_string() } else { format!("rank {}: {error}", self.rank) }
    }

    /// Whether this is the only process.
    pub fn is_alone(self) -> bool {
        self.size == 1
    }

    /// Whether this is rank 0, which writes all files and reports progress.
    pub fn is_first(self) -> bool {
        self.rank == 0
    }

    /// Every rank's bytes, by rank. All ranks must call it at the same point.
    ///
    /// # Errors
    /// When some rank's `own` is an error: its own error on that rank, [`Error::OtherRank`] on the others. Where any rank was
    /// interrupted, all were.
    pub fn gather(self, own: Result<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        if self.is_alone() {
            return own.map(|bytes| vec![bytes]);
        }
        const FINE: u8 = 0;
        const FAILED: u8 = 1;
        const INTERRUPTED: u8 = 2;
        let message = match &own {
            Ok(bytes) => [&[FINE], bytes.as_slice()].concat(),
            Err(error) if error.is_interrupt() => vec![INTERRUPTED],
            Err(error) => [&[FAILED], error.to_string().as_bytes()].concat(),
        };
        let all = self.exchange(&message);
        let of_kind = |kind: u8| all.iter().position(|message| message.first() == Some(&kind));
        if let Some(rank) = of_kind(FAILED) {
            own?;
            let reason = String::from_utf8_lossy(&all[rank][1..]).into_owned();
            return Err(Error::OtherRank { rank, reason });
        }
        if of_kind(INTERRUPTED).is_some() {
            return Err(lxmert_core::Error::Interrupted.into());
        }
        Ok(all.iter().map(|message| message[1..].to_vec()).collect())
    }

    /// Waits for all ranks, and fails on all if it fails on one; see [`World::gather`].
    ///
    /// # Errors
    /// As [`World::gather`].
    pub fn agree<T>(self, own: Result<T>) -> Result<T> {
        if self.is_alone() {
            return own;
        }
        let (value, own) = match own {
            Ok(value) => (Some(value), Ok(Vec::new())),
            Err(error) => (None, Err(error)),
        };
        self.gather(own)?;
        // Without a value `gather` has failed.
        value.ok_or_else(|| Error::Argument("a rank failed without an error".into()))
    }

    /// Rank 0's value, on all ranks.
    ///
    /// # Errors
    /// When it fails on rank 0.
    pub fn from_first(self, make: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
        let own = if self.is_first() { make() } else { Ok(Vec::new()) };
        Ok(self.gather(own)?.swap_remove(0))
    }

    /// Checks that all ranks hold the same value.
    ///
    /// # Errors
    /// When a rank differs from rank 0, on all ranks, with all that do. `what` they are: "the weights after epoch 3".
    pub fn same(self, what: &str, own: &str) -> Result<()> {
        let all = self.gather(Ok(own.as_bytes().to_vec()))?;
        let differ = all.iter().enumerate().filter(|(_, value)| *value != &all[0]);
        let ranks: Vec<String> = differ.map(|(rank, _)| rank.to_string()).collect();
        if ranks.is_empty() {
            return Ok(());
        }
        Err(Error::RanksDiffer { what: what.into(), ranks: ranks.join(", ") })
    }

    /// Ends the whole job at once with this exit code. Returns only in a world of one.
    pub fn abort(self, code: i32) {
        #[cfg(feature = "mpi")]
        if !self.is_alone() {
            transport::abort(code);
        }
        let _ = code;
    }

    /// Every rank's bytes, by rank.
    #[cfg(feature = "mpi")]
    fn exchange(self, own: &[u8]) -> Vec<Vec<u8>> {
        transport::gather(own)
    }
}

/// Without MPI there is one rank, which keeps its own.
#[cfg(not(feature = "mpi"))]
impl World {
    fn exchange(self, own: &[u8]) -> Vec<Vec<u8>> {
        vec![own.to_vec()]
    }

    fn all_to_all(self, send: Vec<Vec<Tensor>>, _counts: &[usize], _device: &Device) -> Result<Vec<Tensor>> {
        Ok(send.iter().map(|to| Tensor::cat(to, 0)).collect::<candle_core::Result<_>>()?)
    }

    fn all_gather(self, send: Vec<Tensor>, counts: &[usize], device: &Device) -> Result<Vec<Tensor>> {
        self.all_to_all(vec![send], counts, device)
    }
}

/// What ranks tell each other of an example: always as many numbers, in which f32 and u32 keep their values.
pub trait Numbers {
    /// The value as numbers.
    fn numbers(&self) -> Vec<f64>;

    /// The value of these numbers.
    fn of_numbers(numbers: &[f64]) -> Self;
}

impl Numbers for u32 {
    fn numbers(&self) -> Vec<f64> {
        vec![f64::from(*self)]
    }

    fn of_numbers(numbers: &[f64]) -> Self {
        numbers.first().map_or(0, |number| *number as Self)
    }
}

impl Numbers for bool {
    fn numbers(&self) -> Vec<f64> {
        vec![if *self { 1.0 } else { 0.0 }]
    }

    fn of_numbers(numbers: &[f64]) -> Self {
        numbers.first() == Some(&1.0)
    }
}

/// Numbers as bytes, for [`World::gather`].
pub fn to_bytes(numbers: &[f64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// What [`to_bytes`] made.
pub fn from_bytes(bytes: &[u8]) -> Vec<f64> {
    bytes.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_alone_is_a_world_of_one() {
        let world = world();
        assert!(world.is_alone() && world.is_first());
        assert_eq!(world.gather(Ok(vec![1, 2])).unwrap(), [[1, 2]]);
        assert_eq!(world.from_first(|| Ok(vec![3])).unwrap(), [3]);
        assert!(world.same("it", "x").is_ok());
        let failed = world.agree::<()>(Err(Error::Argument("why".into()))).unwrap_err();
        assert_eq!(failed.to_string(), "why");
    }

    #[test]
    fn numbers_pass_through_bytes_unchanged() {
        let numbers = [0.1, -0.0, f64::NAN, f64::INFINITY, 16_777_217.0];
        let back = from_bytes(&to_bytes(&numbers));
        assert!(back.iter().zip(numbers).all(|(a, b)| a.to_bits() == b.to_bits()) && back.len() == 5);
    }
}
