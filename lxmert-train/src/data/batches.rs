//! Examples to padded batches, read ahead on a thread of their own.
//!
//! A batch is padded to its longest sentence, not to the model's maximum; training examples are
//! grouped so that sentences of a batch are about equally long. Both orders and groups depend on
//! the seed and the epoch alone, so a resumed run sees the same batches.

use crate::{Error, Result};
use candle_core::{Device, Tensor};
use lxmert_core::features::FeatureStore;
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

/// The examples of an epoch in an order that the seed and the epoch alone decide.
pub fn shuffled<E: Copy>(examples: &[E], seed: u64, epoch: u64) -> Vec<E> {
    let mut order = examples.to_vec();
    let mut rng = ChaCha8Rng::seed_from_u64(splitmix64(seed ^ splitmix64(epoch.wrapping_add(0x6f72_6465))));
    order.shuffle(&mut rng);
    order
}

/// Cuts shuffled training examples into batches of about equally long sentences, in random order.
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

/// Cuts examples into batches in order of length, for evaluation: the places in `examples`.
pub fn plan_in_order<E>(examples: &[E], length: impl Fn(&E) -> usize, batch_size: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_key(|&i| length(&examples[i]));
    order.chunks(batch_size.max(1)).map(<[usize]>::to_vec).collect()
}

/// A padded batch of images and sentences in main memory.
#[derive(Debug, Default, Clone)]
pub struct Batch {
    /// Number of rows.
    pub rows: usize,
    /// Sentences' padded length.
    pub length: usize,
    /// Regions per image.
    pub regions: usize,
    /// `[rows, length]`, padded with `[PAD]`.
    pub input_ids: Vec<u32>,
    /// `[rows, length]`, 1 for words.
    pub attention_mask: Vec<f32>,
    /// `[rows, regions, feature_dim]`.
    pub features: Vec<f32>,
    /// `[rows, regions, 4]`, normalised x0 y0 x1 y1.
    pub boxes: Vec<f32>,
    /// `[rows, regions]`, 1 for regions.
    pub region_mask: Vec<f32>,
}

impl Batch {
    /// Reads the regions of `images` (numbers in the store, the first `regions` of each) and pads their sentences'
    /// WordPiece ids with `pad`.
    ///
    /// # Errors
    /// When the store is damaged or lacks an image.
    pub fn read(store: &FeatureStore, regions: usize, rows: &[(usize, &[u32])], pad: u32) -> Result<Self> {
        let images: Vec<usize> = rows.iter().map(|(image, _)| *image).collect();
        let mut batch = Self { regions, ..Self::of_sentences(rows.iter().map(|(_, tokens)| *tokens), pad) };
        store.read_batch(&images, &mut batch.features, &mut batch.boxes, &mut batch.region_mask)?;
        let info = store.info();
        if regions < info.regions {
            keep_first(&mut batch.features, info.regions, regions, info.feature_dim);
            keep_first(&mut batch.boxes, info.regions, regions, 4);
            keep_first(&mut batch.region_mask, info.regions, regions, 1);
        }
        Ok(batch)
    }

    fn of_sentences<'a>(sentences: impl Iterator<Item = &'a [u32]> + Clone, pad: u32) -> Self {
        let length = sentences.clone().map(<[u32]>::len).max().unwrap_or(0);
        let mut batch = Self { length, ..Self::default() };
        for tokens in sentences {
            batch.rows += 1;
            let end = batch.rows * length;
            batch.input_ids.extend_from_slice(tokens);
            batch.input_ids.resize(end, pad);
            batch.attention_mask.resize(end - length + tokens.len(), 1.0);
            batch.attention_mask.resize(end, 0.0);
        }
        batch
    }

    /// What the model takes, on `device`.
    ///
    /// # Errors
    /// When a tensor cannot be made there.
    pub fn inputs(&self, device: &Device) -> Result<LxmertInputs> {
        let (b, t, n) = (self.rows, self.length, self.regions);
        let width = self.features.len().checked_div(b * n).unwrap_or(0);
        Ok(LxmertInputs {
            input_ids: Tensor::from_slice(&self.input_ids, (b, t), device)?,
            attention_mask: Some(Tensor::from_slice(&self.attention_mask, (b, t), device)?),
            visual_feats: Tensor::from_slice(&self.features, (b, n, width), device)?,
            visual_boxes: Tensor::from_slice(&self.boxes, (b, n, 4), device)?,
            visual_attention_mask: Some(Tensor::from_slice(&self.region_mask, (b, n), device)?),
        })
    }
}

/// Of each group of `stored` rows of `width` values, keeps the first `used`.
pub(crate) fn keep_first<T: Copy>(values: &mut Vec<T>, stored: usize, used: usize, width: usize) {
    let groups = values.len() / (stored * width).max(1);
    for group in 0..groups {
        values.copy_within(group * stored * width..(group * stored + used) * width, group * used * width);
    }
    values.truncate(groups * used * width);
}

/// Calls `work` with each batch in order, while the next ones are read on another thread by `read`.
/// Ends early, without an error, when `work` gives `false`.
///
/// # Errors
/// The first error of reading or of `work`.
pub fn for_each<E: Send, B: Send>(
    batches: impl Iterator<Item = Vec<E>> + Send,
    read: impl Fn(Vec<E>) -> Result<B> + Send,
    mut work: impl FnMut(B) -> Result<bool>,
) -> Result<()> {
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(AHEAD);
        let reader = scope.spawn(move || {
            for examples in batches {
                // The receiver is gone when the work has ended early.
                if sender.send(read(examples)).is_err() {
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
    fn keeps_the_first_regions_of_each_image() {
        let mut values: Vec<f32> = (0..24).map(|i| i as f32).collect(); // 2 images, 3 regions, 4 wide
        keep_first(&mut values, 3, 2, 4);
        let expected: Vec<f32> = (0..8).chain(12..20).map(|i| i as f32).collect();
        assert_eq!(values, expected);
    }
}
