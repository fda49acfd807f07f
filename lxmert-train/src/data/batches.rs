//! Pairs to padded batches, read ahead on a thread of their own.
//!
//! A batch is padded to its longest sentence, not to the model's maximum; training pairs are
//! grouped so that sentences of a batch are about equally long. Both orders and groups depend on
//! the seed and the epoch alone, so a resumed run sees the same batches.

use super::Dataset;
use super::pairs::Pair;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use lxmert_core::model::LxmertInputs;
use lxmert_core::procedural::splitmix64;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::sync::mpsc::sync_channel;

/// Batches whose sentences are sorted by length together. Small enough that a batch stays a fair
/// sample of the epoch.
const WINDOW: usize = 32;

/// Batches that wait, read, for the one being computed.
const AHEAD: usize = 2;

/// Cuts shuffled training pairs into batches of about equally long sentences, in random order.
pub fn plan(dataset: &Dataset, pairs: &[Pair], batch_size: usize, seed: u64, epoch: u64) -> Vec<Vec<Pair>> {
    let mut rng = ChaCha8Rng::seed_from_u64(splitmix64(seed ^ splitmix64(epoch.wrapping_add(0x706c_616e))));
    let batch_size = batch_size.max(1);
    let mut batches = Vec::with_capacity(pairs.len().div_ceil(batch_size));
    for window in pairs.chunks(WINDOW * batch_size) {
        let mut window = window.to_vec();
        window.sort_by_key(|pair| dataset.tokens(pair).len());
        let mut cut: Vec<Vec<Pair>> = window.chunks(batch_size).map(<[Pair]>::to_vec).collect();
        cut.shuffle(&mut rng);
        batches.append(&mut cut);
    }
    batches
}

/// Cuts pairs into batches in order of length, for evaluation; with each pair its place in `pairs`.
pub fn plan_in_order(dataset: &Dataset, pairs: &[Pair], batch_size: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..pairs.len()).collect();
    order.sort_by_key(|&i| dataset.tokens(&pairs[i]).len());
    order.chunks(batch_size.max(1)).map(<[usize]>::to_vec).collect()
}

/// A padded batch in main memory.
#[derive(Debug, Default)]
pub struct Batch {
    /// The pairs.
    pub pairs: Vec<Pair>,
    /// Sentences' padded length.
    pub length: usize,
    /// Regions per image.
    pub regions: usize,
    /// `[batch, length]`, padded with 0.
    pub input_ids: Vec<u32>,
    /// `[batch, length]`, 1 for words.
    pub attention_mask: Vec<f32>,
    /// `[batch, regions, feature_dim]`.
    pub features: Vec<f32>,
    /// `[batch, regions, 4]`, normalised x0 y0 x1 y1.
    pub boxes: Vec<f32>,
    /// `[batch, regions]`, 1 for regions.
    pub region_mask: Vec<f32>,
}

impl Batch {
    /// Reads the regions and pads the sentences of `pairs`.
    ///
    /// # Errors
    /// When the store is damaged.
    pub fn read(dataset: &Dataset, pairs: Vec<Pair>) -> Result<Self> {
        let length = pairs.iter().map(|pair| dataset.tokens(pair).len()).max().unwrap_or(0);
        let images: Vec<usize> = pairs.iter().map(|pair| dataset.store_index[pair.image]).collect();
        let mut batch = Self { length, regions: dataset.regions(), ..Self::default() };
        for pair in &pairs {
            let tokens = dataset.tokens(pair);
            batch.input_ids.extend_from_slice(tokens);
            batch.input_ids.resize(batch.input_ids.len() + length - tokens.len(), 0);
            batch.attention_mask.resize(batch.attention_mask.len() + tokens.len(), 1.0);
            batch.attention_mask.resize(batch.attention_mask.len() + length - tokens.len(), 0.0);
        }
        dataset.store.read_batch(&images, &mut batch.features, &mut batch.boxes, &mut batch.region_mask)?;
        let (stored, used) = (dataset.store.info().regions, dataset.regions());
        if used < stored {
            keep_first(&mut batch.features, stored, used, dataset.feature_dim());
            keep_first(&mut batch.boxes, stored, used, 4);
            keep_first(&mut batch.region_mask, stored, used, 1);
        }
        batch.pairs = pairs;
        Ok(batch)
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether there is no pair.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// What the model takes, on `device`.
    ///
    /// # Errors
    /// When a tensor cannot be made there.
    pub fn inputs(&self, device: &Device) -> Result<LxmertInputs> {
        let (b, t, n) = (self.len(), self.length, self.regions);
        let width = self.features.len().checked_div(b * n).unwrap_or(0);
        Ok(LxmertInputs {
            input_ids: Tensor::from_slice(&self.input_ids, (b, t), device)?,
            attention_mask: Some(Tensor::from_slice(&self.attention_mask, (b, t), device)?),
            visual_feats: Tensor::from_slice(&self.features, (b, n, width), device)?,
            visual_boxes: Tensor::from_slice(&self.boxes, (b, n, 4), device)?,
            visual_attention_mask: Some(Tensor::from_slice(&self.region_mask, (b, n), device)?),
        })
    }

    /// `[batch]`: 1 for matched pairs, 0 for the others.
    ///
    /// # Errors
    /// When the tensor cannot be made.
    pub fn targets(&self, device: &Device) -> Result<Tensor> {
        let targets: Vec<f32> = self.pairs.iter().map(|pair| f32::from(u8::from(pair.matched()))).collect();
        Ok(Tensor::from_vec(targets, self.len(), device)?)
    }
}

/// Of each group of `stored` rows of `width` values, keeps the first `used`.
fn keep_first(values: &mut Vec<f32>, stored: usize, used: usize, width: usize) {
    let groups = values.len() / (stored * width).max(1);
    for group in 0..groups {
        values.copy_within(group * stored * width..(group * stored + used) * width, group * used * width);
    }
    values.truncate(groups * used * width);
}

/// Calls `work` with each batch in order, while the next ones are read on another thread. Ends
/// early, without an error, when `work` gives `false`.
///
/// # Errors
/// The first error of reading or of `work`.
pub fn for_each(
    dataset: &Dataset,
    batches: impl Iterator<Item = Vec<Pair>> + Send,
    mut work: impl FnMut(Batch) -> Result<bool>,
) -> Result<()> {
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(AHEAD);
        let reader = scope.spawn(move || {
            for pairs in batches {
                // The receiver is gone when the work has ended early.
                if sender.send(Batch::read(dataset, pairs)).is_err() {
                    return;
                }
            }
        });
        for batch in &receiver {
            if !work(batch?)? {
                break;
            }
        }
        drop(receiver);
        reader.join().map_err(|_| Error::Argument("the thread that reads batches ended unexpectedly".into()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_regions_of_each_image_are_kept() {
        let mut values: Vec<f32> = (0..24).map(|i| i as f32).collect(); // 2 images, 3 regions, 4 wide
        keep_first(&mut values, 3, 2, 4);
        let expected: Vec<f32> = (0..8).chain(12..20).map(|i| i as f32).collect();
        assert_eq!(values, expected);
    }
}
