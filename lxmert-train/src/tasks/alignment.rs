//! Align before fuse (Li et al. 2021): before the streams meet, each sentence's words are compared with each image's
//! regions. A sentence must be most similar to its own image, and the image to its own sentence (InfoNCE, van den Oord
//! et al. 2018). A sentence's similarity to an image is the mean over its words of the best region's cosine (late
//! interaction, Yao et al. 2022).
//!
//! Every pair in the batch is a training signal here, whereas matching gives one bit per pair, and the gradient is
//! useful before any attention is right; cross-attention then compares like with like.

use super::losses::cross_entropy;
use crate::Result;
use crate::data::batches::Batch;
use candle_core::{D, Tensor};

/// The temperature that divides cosines (the initial value in Radford et al. 2021).
const TEMPERATURE: f64 = 0.07;

/// Mean of both directions' cross entropies over the batch's matched pairs; `None` if fewer than two different images
/// are matched. `matched`: each matched row with its image. `language`: `[batch, words, hidden]`; `vision`: `[batch,
/// regions, hidden]`, both before the cross-modality layers.
///
/// # Errors
/// Returns an error if the batch does not match.
pub fn loss(matched: &[(u32, usize)], batch: &Batch, language: &Tensor, vision: &Tensor) -> Result<Option<Tensor>> {
    let device = language.device();
    // One pair per image: a second caption of the same image would be a false negative.
    let mut seen = std::collections::HashSet::new();
    let rows: Vec<u32> = matched.iter().filter(|(_, image)| seen.insert(*image)).map(|(row, _)| *row).collect();
    let pairs = rows.len();
    if pairs < 2 {
        return Ok(None);
    }
    let of_rows = |values: &[f32], width: usize| -> Vec<f32> {
        rows.iter().flat_map(|row| &values[*row as usize * width..][..width]).copied().collect()
    };
    let (words, regions) = (batch.length, batch.regions);
    let word_mask = Tensor::from_vec(of_rows(&batch.attention_mask, words), (pairs, words, 1), device)?;
    let region_mask = Tensor::from_vec(of_rows(&batch.region_mask, regions), (1, pairs, regions), device)?;
    let index = Tensor::from_vec(rows, pairs, device)?;
    let unit = |x: &Tensor| -> Result<Tensor> {
        let x = x.index_select(&index, 0)?.flatten_to(1)?;
        Ok(x.broadcast_div(&(x.sqr()?.sum_keepdim(D::Minus1)? + 1e-12)?.sqrt()?)?)
    };
    let cosines = unit(language)?.matmul(&unit(vision)?.t()?)?.reshape((pairs * words, pairs, regions))?;
    // A cosine is at least -1, so padding at -2 is never the best.
    let best = cosines.broadcast_add(&((region_mask - 1.0)? * 2.0)?)?.max(D::Minus1)?;
    let summed = best.reshape((pairs, words, pairs))?.broadcast_mul(&word_mask)?.sum(1)?;
    let similarity = (summed.broadcast_div(&word_mask.sum(1)?)? / TEMPERATURE)?;
    let own: Vec<u32> = (0..pairs as u32).collect();
    let direction = |logits: &Tensor| -> Result<Tensor> { Ok(cross_entropy(logits, &own)?.mean_all()?) };
    Ok(Some(((direction(&similarity)? + direction(&similarity.t()?.contiguous()?)?)? / 2.0)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn batch(rows: usize) -> Batch {
        Batch {
            rows,
            length: 2,
            regions: 2,
            attention_mask: vec![1.0; 2 * rows],
            region_mask: vec![1.0; 2 * rows],
            ..Batch::default()
        }
    }

    #[test]
    fn aligned_streams_have_a_lower_loss_than_swapped_ones() {
        let device = Device::Cpu;
        let matched = [(0, 7), (1, 8)];
        let language = Tensor::new(&[[[1f32, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]], &device).unwrap();
        let crossed = Tensor::new(&[[[0f32, 1.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]], &device).unwrap();
        let cost = |vision: &Tensor| {
            loss(&matched, &batch(2), &language, vision).unwrap().unwrap().to_scalar::<f32>().unwrap()
        };
        // Cosine 1 against 0: ln(1 + e^(-1/0.07)) and ln(1 + e^(1/0.07)).
        assert!(cost(&language) < 1e-5);
        assert!((cost(&crossed) - 1.0 / 0.07).abs() < 1e-3);
    }

    #[test]
    fn leaves_out_mismatched_pairs_and_second_captions() {
        let device = Device::Cpu;
        let states = Tensor::ones((3, 2, 2), candle_core::DType::F32, &device).unwrap();
        let one = [(0, 7), (1, 7)];
        assert!(loss(&one, &batch(3), &states, &states).unwrap().is_none());
    }
}
