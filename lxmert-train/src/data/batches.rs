//! Turns examples into padded batches, which a separate thread reads ahead.
//!
//! A batch is padded to its longest sentence, not to the model's maximum; training examples are grouped so that the
//! sentences of a batch have about the same length. Orders and groups depend only on the seed and the epoch, so a
//! resumed run sees the same batches.

pub use lxmert_core::batch::Batch;

use crate::{Error, Result};
use lxmert_core::procedural::splitmix64;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::sync::mpsc::sync_channel;

/// How many batches to sort together by sentence length. Small enough that a batch remains a fair sample of the epoch.
const WINDOW: usize = 32;

/// How many batches are read ahead of the one being computed.
const AHEAD: usize = 2;

/// The examples of an epoch, in an order that depends only on the seed and the epoch.
pub fn shuffled<E: Copy>(examples: &[E], seed: u64, epoch: u64) -> Vec<E> {
    let mut order = examples.to_vec();
    let mut rng = ChaCha8Rng::seed_from_u64(splitmix64(seed ^ splitmix64(epoch.wrapping_add(0x6f72_6465))));
    order.shuffle(&mut rng);
    order
}

/// Divides shuffled training examples into batches with sentences of about the same length, in random order.
pub fn plan<E: Copy>(
    examples: &[E],
    length: impl Fn(&E) -> usize,
    batch_size: usize,
    seed: u64,
    epoch: u64,
) -> Vec<Vec<E>> {
    let mut rng = ChaCha8Rng::seed_from_u64(splitmix64(seed ^ splitmix64(epoch.wrapping_add(0x706c_616e))));
    let batch_size = batch_size.max(1);
    let mut batches = Vec::with_capacity(examples.len().div_ceil(batch_size));
    for window in examples.chunks(WINDOW * batch_size) {
        let mut window = window.to_vec();
        window.sort_by_key(&length);
        let mut cut: Vec<Vec<E>> = window.chunks(batch_size).map(<[E]>::to_vec).collect();
        cut.shuffle(&mut rng);
        batches.append(&mut cut);
    }
    batches
}

/// Divides examples into batches by length, for evaluation; returns indices into `examples`.
pub fn plan_in_order<E>(examples: &[E], length: impl Fn(&E) -> usize, batch_size: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_key(|&i| length(&examples[i]));
    order.chunks(batch_size.max(1)).map(<[usize]>::to_vec).collect()
}

/// Calls `work` with each batch in order, while another thread calls `read` for the next ones. Stops early, without an
/// error, if `work` returns `false`.
///
/// # Errors
/// The first error of reading or of `work`.
pub fn for_each<E: Send, B: Send>(
    batches: impl Iterator<Item = Vec<E>> + Send,
    read: impl Fn(Vec<E>) -> Result<B> + Send,
    mut work: impl FnMut(B) -> Result<bool>,
) -> Result<()> {
    for_each_result(batches, read, |batch| work(batch?))
}

/// As [`for_each`], with errors of reading given to `work`.
///
/// # Errors
/// The first error of `work`.
pub fn for_each_result<E: Send, B: Send>(
    batches: impl Iterator<Item = Vec<E>> + Send,
    read: impl Fn(Vec<E>) -> Result<B> + Send,
    mut work: impl FnMut(Result<B>) -> Result<bool>,
) -> Result<()> {
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(AHEAD);
        let reader = scope.spawn(move || {
            for examples in batches {
                // The receiver is gone if the work ended early.
                if sender.send(read(examples)).is_err() {
                    return;
                }
            }
        });
        for batch in &receiver {
            if !work(batch)? {
                break;
            }
        }
        drop(receiver);
        reader.join().map_err(|_| Error::Argument("the thread that reads batches ended unexpectedly".into()))
    })
}
