//! Recalls: every image ranks every caption, and every caption ranks every image.
//!
//! LXMERT scores a pair jointly, so each of the images × captions pairs passes the cross-modality layers; each image
//! and each caption passes its own encoder once. The cost is still quadratic: Flickr30k's 1,000 test images with 5,000
//! captions are 5,000,000 pairs, some hours on a CPU and minutes on a GPU. `--recall-images` limits the images.

use crate::data::Dataset;
use crate::data::pairs::{Pair, PairKind};
use crate::data::splits::Split;
use crate::evaluate::Evaluation;
use crate::measures::Measures;
use crate::metrics::{Ranking, best_rank};
use crate::ranks::world;
use crate::{Error, Result};
use indicatif::ProgressBar;
use lxmert_core::cli::check_interrupt;
use lxmert_core::model::{MatchingModel, Stream};
use lxmert_core::ops::PrepackedWeights;
use std::time::Instant;

/// Recalls in both directions.
#[derive(Debug, Clone, PartialEq)]
pub struct Recalls {
    /// Number of images ranked.
    pub images: usize,
    /// Number of captions ranked.
    pub captions: usize,
    /// Each image ranks all captions; its own are right.
    pub image_to_text: Ranking,
    /// Each caption ranks all images; its own is right.
    pub text_to_image: Ranking,
    /// Seconds spent.
    pub seconds: f64,
}

impl Recalls {
    /// Adds both rankings to `measures`.
    pub fn add_to(&self, measures: &mut Measures) {
        self.image_to_text.add_to(measures, "image_to_text");
        self.text_to_image.add_to(measures, "text_to_image");
    }
}

/// One batch of captions, encoded.
struct EncodedCaptions {
    /// Indices among the ranked captions.
    places: Vec<usize>,
    encoded: Stream,
}

/// The images of a split to rank, and their captions.
pub fn participants(dataset: &Dataset, split: Split, max_images: usize) -> (Vec<usize>, Vec<usize>) {
    let mut images: Vec<usize> = dataset.splits.images(split).collect();
    images.truncate(max_images);
    let captions = dataset.splits.captions(&dataset.captions, split);
    let captions =
        captions.into_iter().filter(|&c| images.binary_search(&dataset.captions.captions[c].image).is_ok()).collect();
    (images, captions)
}

/// Recalls in both directions over the first `max_images` images of `split`.
///
/// # Errors
/// Returns an error if the data does not fit the model, or Ctrl-C was pressed.
pub fn recalls(
    model: &MatchingModel,
    dataset: &Dataset,
    split: Split,
    max_images: usize,
    how: Evaluation,
    bar: &ProgressBar,
) -> Result<Recalls> {
    let start = Instant::now();
    let (images, captions) = participants(dataset, split, max_images);
    let owner: Vec<usize> = captions
        .iter()
        .map(|&c| images.binary_search(&dataset.captions.captions[c].image).unwrap_or(usize::MAX))
        .collect();
    bar.set_length((images.len() * captions.len()) as u64);
    let scores = score_all(model, dataset, &images, &captions, how, bar)?;
    if scores.iter().any(|score| score.is_nan()) {
        return Err(Error::Argument("retrieval: the model's outputs are NaN, so nothing can be ranked".into()));
    }
    let width = captions.len();
    let image_ranks =
        (0..images.len()).map(|i| best_rank(&scores[i * width..(i + 1) * width], |c| owner[c] == i)).collect();
    let mut column = vec![0f32; images.len()];
    let caption_ranks = (0..width)
        .map(|c| {
            for (i, score) in column.iter_mut().enumerate() {
                *score = scores[i * width + c];
            }
            best_rank(&column, |i| i == owner[c])
        })
        .collect();
    Ok(Recalls {
        images: images.len(),
        captions: width,
        image_to_text: Ranking::new(image_ranks, width),
        text_to_image: Ranking::new(caption_ranks, images.len()),
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Match logits of all images (rows) with all captions (columns). The images are shared out among the ranks.
///
/// # Errors
/// See [`recalls`].
pub fn score_all(
    model: &MatchingModel,
    dataset: &Dataset,
    images: &[usize],
    captions: &[usize],
    how: Evaluation,
    bar: &ProgressBar,
) -> Result<Vec<f32>> {
    let (world, width) = (world(), captions.len());
    let own = score_own(model, dataset, images, captions, how, bar);
    if world.is_alone() {
        return own;
    }
    let bytes = |scores: Vec<f32>| scores.iter().flat_map(|score| score.to_le_bytes()).collect();
    let all = world.gather(own.map(bytes))?;
    let mut rows: Vec<_> = all.iter().map(|bytes| bytes.chunks(4 * width.max(1))).collect();
    let mut scores = Vec::with_capacity(images.len() * width);
    for image in 0..images.len() {
        let row = rows[image % world.size()].next().unwrap_or_default();
        scores.extend(row.as_chunks::<4>().0.iter().map(|score| f32::from_le_bytes(*score)));
    }
    Ok(scores)
}

/// The rows of the images that are this rank's: of `images`, each whose place modulo the ranks is this rank.
fn score_own(
    model: &MatchingModel,
    dataset: &Dataset,
    images: &[usize],
    captions: &[usize],
    how: Evaluation,
    bar: &ProgressBar,
) -> Result<Vec<f32>> {
    let batch_size = how.batch_size.max(1);
    let prepacked = PrepackedWeights::new();
    let run = how.forward(&prepacked).pooled_only();
    let pair = |image: usize, caption: usize| Pair { image, caption, kind: PairKind::Matched };

    // Each caption once, in batches of about equal length.
    let mut order: Vec<usize> = (0..captions.len()).collect();
    order.sort_by_key(|&place| dataset.tokens(&pair(0, captions[place])).len());
    let mut encoded_captions = Vec::new();
    for places in order.chunks(batch_size) {
        check_interrupt()?;
        let pairs: Vec<Pair> =
            places.iter().map(|&p| pair(dataset.captions.captions[captions[p]].image, captions[p])).collect();
        let inputs = dataset.read(&pairs)?.inputs(how.device)?;
        let encoded = model.trunk.encode_language(&inputs.input_ids, inputs.attention_mask.as_ref(), &run)?;
        encoded_captions.push(EncodedCaptions { places: places.to_vec(), encoded });
    }

    // Each image once, then each image against each batch of captions.
    let (world, mut scores) = (world(), Vec::new());
    for (chunk, group) in images.chunks(batch_size).enumerate() {
        let Some(&any_caption) = captions.first() else { break };
        let pairs: Vec<Pair> = group.iter().map(|&image| pair(image, any_caption)).collect();
        let inputs = dataset.read(&pairs)?.inputs(how.device)?;
        let mask = inputs.visual_attention_mask.as_ref();
        let vision = model.trunk.encode_vision(&inputs.visual_feats, &inputs.visual_boxes, mask, &run)?;
        for i in (0..group.len()).filter(|i| (chunk * batch_size + i) % world.size() == world.rank()) {
            check_interrupt()?;
            let row = scores.len();
            scores.resize(row + captions.len(), 0f32);
            for batch in &encoded_captions {
                let image = vision.repeat(i, batch.places.len())?;
                let output = model.match_encoded(&batch.encoded, &image, &run)?;
                for (&place, logit) in batch.places.iter().zip(output.logits.to_vec1::<f32>()?) {
                    scores[row + place] = logit;
                }
                bar.inc(batch.places.len() as u64);
            }
        }
    }
    Ok(scores)
}
