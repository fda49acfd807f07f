//! From what a forward pass captured, and the scalar that is to be explained, to maps on the host: the same
//! for a match score and for the score of an answer.

use crate::Result;
use crate::matrix::Matrix;
use crate::relevancy::{CrossMaps, HeadMaps, PairMaps};
use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor};
use lxmert_core::model::{AttentionMap, Attentions};

/// Batched maps to one [`PairMaps`] per pair, padding cut off. `sizes`: words and regions of each pair.
///
/// `target` is what is to be explained: one logit per pair, `[batch]`, each depending on its own pair alone
/// (so that the gradient of their sum holds each one's). Without it the maps come without gradients; with it
/// they must have been captured with probes.
///
/// # Errors
/// [`Error::Candle`](crate::Error::Candle) when a computation fails.
pub fn read(attentions: &Attentions, target: Option<&Tensor>, sizes: &[(usize, usize)]) -> Result<Vec<PairMaps>> {
    let gradients = target.map(|logits| logits.sum_all()?.backward()).transpose()?;
    let gradients = gradients.as_ref();
    let words = |i: usize| sizes[i].0;
    let regions = |i: usize| sizes[i].1;
    let read = |map: &AttentionMap| Batched::read(map, gradients);
    let language = attentions.language.iter().map(read).collect::<Result<Vec<_>>>()?;
    let vision = attentions.vision.iter().map(read).collect::<Result<Vec<_>>>()?;
    let cross = attentions
        .cross
        .iter()
        .map(|layer| {
            Ok((
                read(&layer.language_to_vision)?,
                read(&layer.vision_to_language)?,
                layer.language_self.as_ref().map(read).transpose()?,
                layer.vision_self.as_ref().map(read).transpose()?,
            ))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok((0..sizes.len())
        .map(|i| PairMaps {
            words: words(i),
            regions: regions(i),
            language: language.iter().map(|m| m.pair(i, words(i), words(i))).collect(),
            vision: vision.iter().map(|m| m.pair(i, regions(i), regions(i))).collect(),
            cross: cross
                .iter()
                .map(|(to_vision, to_language, language_self, vision_self)| CrossMaps {
                    language_to_vision: to_vision.pair(i, words(i), regions(i)),
                    vision_to_language: to_language.pair(i, regions(i), words(i)),
                    language_self: language_self.as_ref().map(|m| m.pair(i, words(i), words(i))),
                    vision_self: vision_self.as_ref().map(|m| m.pair(i, regions(i), regions(i))),
                })
                .collect(),
        })
        .collect())
}

/// One module's maps of a whole batch, on the host.
struct Batched {
    /// Heads, queries, keys.
    shape: [usize; 3],
    probabilities: Vec<f32>,
    gradients: Option<Vec<f32>>,
}

impl Batched {
    fn read(map: &AttentionMap, gradients: Option<&GradStore>) -> Result<Self> {
        let (_, heads, queries, keys) = map.probabilities.dims4()?;
        let host = |t: &Tensor| -> Result<Vec<f32>> { Ok(t.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?) };
        let gradient = gradients.zip(map.probe.as_ref()).and_then(|(store, probe)| store.get(probe));
        Ok(Self {
            shape: [heads, queries, keys],
            probabilities: host(&map.probabilities)?,
            gradients: gradient.map(host).transpose()?,
        })
    }

    fn pair(&self, pair: usize, rows: usize, columns: usize) -> HeadMaps {
        HeadMaps {
            probabilities: self.cut(&self.probabilities, pair, rows, columns),
            gradients: self.gradients.as_ref().map(|values| self.cut(values, pair, rows, columns)),
        }
    }

    fn cut(&self, values: &[f32], pair: usize, rows: usize, columns: usize) -> Vec<Matrix> {
        let [heads, queries, keys] = self.shape;
        (0..heads)
            .map(|head| {
                let from = (pair * heads + head) * queries * keys;
                let values =
                    (0..rows).flat_map(|row| values[from + row * keys..from + row * keys + columns].to_vec()).collect();
                Matrix { rows, columns, values }
            })
            .collect()
    }
}
