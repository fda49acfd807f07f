//! Attention maps on the host, built from what a forward pass captured and the scalar to be explained. Match scores and
//! answer scores take the same path.

use super::matrix::Matrix;
use crate::{Error, Result};
use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor};
use lxmert_core::model::{AttentionMap, Attentions};

/// A kind of attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Direction {
    /// Cross layers: each word attends to the regions
    LanguageToVision,
    /// Cross layers: each region attends to the words
    VisionToLanguage,
    /// Cross layers: words attend to words, after the cross-attention
    LanguageSelf,
    /// Cross layers: regions attend to regions, after the cross-attention
    VisionSelf,
    /// Language layers: words attend to words
    Language,
    /// Vision layers: regions attend to regions
    Vision,
}

impl Direction {
    /// All of them, the cross layers' first.
    pub const ALL: [Self; 6] = [
        Self::LanguageToVision,
        Self::VisionToLanguage,
        Self::LanguageSelf,
        Self::VisionSelf,
        Self::Language,
        Self::Vision,
    ];

    /// "words attend to regions".
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::LanguageToVision => "words attend to regions",
            Self::VisionToLanguage => "regions attend to words",
            Self::LanguageSelf | Self::Language => "words attend to words",
            Self::VisionSelf | Self::Vision => "regions attend to regions",
        }
    }

    /// "cross layer", "language layer", "vision layer".
    pub const fn layer_kind(self) -> &'static str {
        match self {
            Self::Language => "language layer",
            Self::Vision => "vision layer",
            _ => "cross layer",
        }
    }

    /// A name for files and exported arrays.
    pub const fn slug(self) -> &'static str {
        match self {
            Self::LanguageToVision => "language-to-vision",
            Self::VisionToLanguage => "vision-to-language",
            Self::LanguageSelf => "language-self",
            Self::VisionSelf => "vision-self",
            Self::Language => "language",
            Self::Vision => "vision",
        }
    }
}

/// The heads of one attention module, for one pair.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadMaps {
    /// Attention probabilities of each head, queries × keys.
    pub probabilities: Vec<Matrix>,
    /// The score's gradient with respect to them; `None` if it was not requested, or if the score does not depend on
    /// this module (the last layer's image side).
    pub gradients: Option<Vec<Matrix>>,
}

impl HeadMaps {
    /// The mean over the heads.
    pub fn mean(&self) -> Matrix {
        mean(&self.probabilities)
    }

    /// `mean_h max(0, ∇A ⊙ A)` (Chefer et al. 2021, eq. 5); zero if there is no gradient.
    pub fn weighted(&self) -> Matrix {
        let Some(gradients) = &self.gradients else {
            let (rows, columns) = self.probabilities.first().map_or((0, 0), |m| (m.rows, m.columns));
            return Matrix::zeros(rows, columns);
        };
        let products: Vec<Matrix> = self
            .probabilities
            .iter()
            .zip(gradients)
            .map(|(a, g)| {
                let values = a.values.iter().zip(&g.values).map(|(a, g)| (a * g).max(0.0)).collect();
                Matrix { values, ..*a }
            })
            .collect();
        mean(&products)
    }
}

/// The mean of matrices with the same shape.
pub(super) fn mean(maps: &[Matrix]) -> Matrix {
    let Some((first, rest)) = maps.split_first() else { return Matrix::zeros(0, 0) };
    let mut sum = rest.iter().fold(first.clone(), |sum, map| sum.plus(map));
    sum.values.iter_mut().for_each(|v| *v /= maps.len() as f32);
    sum
}

/// The maps of a cross-modality layer.
#[derive(Debug, Clone, PartialEq)]
pub struct CrossMaps {
    /// Words (queries) over regions.
    pub language_to_vision: HeadMaps,
    /// Regions over words.
    pub vision_to_language: HeadMaps,
    /// Words over words, after the cross-attention; absent in layers without it.
    pub language_self: Option<HeadMaps>,
    /// Regions over regions, likewise.
    pub vision_self: Option<HeadMaps>,
}

/// Which side of a score to explain: what raises it, or what lowers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stance {
    /// What raises it.
    For,
    /// What lowers it.
    Against,
}

impl Stance {
    /// "for", "against".
    pub const fn word(self) -> &'static str {
        match self {
            Self::For => "for",
            Self::Against => "against",
        }
    }

    /// What to explain about a score with this probability: why it is high, or why it is low.
    pub fn of(probability: f32) -> Self {
        if probability >= 0.5 { Self::For } else { Self::Against }
    }
}

/// Every attention map of one pair, without padding.
#[derive(Debug, Clone, PartialEq)]
pub struct PairMaps {
    /// Number of word pieces, `[CLS]` first.
    pub words: usize,
    /// Number of regions.
    pub regions: usize,
    /// The language layers, in order.
    pub language: Vec<HeadMaps>,
    /// The object-relationship layers, in order.
    pub vision: Vec<HeadMaps>,
    /// The cross-modality layers, in order.
    pub cross: Vec<CrossMaps>,
}

impl PairMaps {
    /// The layers with this attention, in order; empty if the model has no such layer.
    pub fn layers(&self, direction: Direction) -> Vec<&HeadMaps> {
        match direction {
            Direction::Language => self.language.iter().collect(),
            Direction::Vision => self.vision.iter().collect(),
            Direction::LanguageToVision => self.cross.iter().map(|l| &l.language_to_vision).collect(),
            Direction::VisionToLanguage => self.cross.iter().map(|l| &l.vision_to_language).collect(),
            Direction::LanguageSelf => self.cross.iter().filter_map(|l| l.language_self.as_ref()).collect(),
            Direction::VisionSelf => self.cross.iter().filter_map(|l| l.vision_self.as_ref()).collect(),
        }
    }

    /// The maps for explaining the score, or its negative, whose gradients have the opposite sign.
    #[must_use]
    pub fn taking(&self, stance: Stance) -> Self {
        let mut maps = self.clone();
        if stance == Stance::For {
            return maps;
        }
        let cross = maps.cross.iter_mut().flat_map(|layer| {
            let own = layer.language_self.iter_mut().chain(&mut layer.vision_self);
            [&mut layer.language_to_vision, &mut layer.vision_to_language].into_iter().chain(own)
        });
        for heads in maps.language.iter_mut().chain(&mut maps.vision).chain(cross) {
            let gradients = heads.gradients.iter_mut().flatten();
            gradients.for_each(|matrix| matrix.values.iter_mut().for_each(|value| *value = -*value));
        }
        maps
    }

    /// The last cross-modality layer.
    ///
    /// # Errors
    /// [`Error::Shape`] if the model has none.
    pub fn last_cross(&self) -> Result<&CrossMaps> {
        self.cross.last().ok_or_else(|| Error::Shape("the model has no cross-modality layer".into()))
    }

    /// The last layer in which words attend to words: in the last cross layer or, if the cross layers have none (the
    /// student's), in the last language layer.
    ///
    /// # Errors
    /// [`Error::Shape`] if the model has neither.
    pub fn last_language_self(&self) -> Result<&HeadMaps> {
        let own = self.last_cross()?.language_self.as_ref().or(self.language.last());
        own.ok_or_else(|| Error::Shape("the model has no layer where words attend to words".into()))
    }
}

/// Splits batched maps into one [`PairMaps`] per pair, without padding. `sizes`: words and regions of each pair.
/// `target` is what to explain: one logit per pair, `[batch]`, each depending only on its own pair (so that the
/// gradient of their sum contains each one's). If `None`, the maps have no gradients; otherwise they must have been
/// captured with probes.
///
/// # Errors
/// [`Error::Candle`] if a computation fails.
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

/// One module's maps for a whole batch, on the host.
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

/// Synthetic maps for the tests of the methods.
#[cfg(test)]
pub(crate) mod example {
    use super::*;
    use lxmert_core::procedural::values;

    /// Two heads' maps from the formula; rows sum to 1, gradients are in -0.7..1.
    fn heads(name: &str, rows: usize, columns: usize, with_gradient: bool) -> HeadMaps {
        let split = |values: Vec<f32>| -> Vec<Matrix> {
            values.chunks(rows * columns).map(|v| Matrix { rows, columns, values: v.to_vec() }).collect()
        };
        let mut probabilities = split(values(name, 2 * rows * columns, 0.0, 1.0, 0));
        for row in probabilities.iter_mut().flat_map(|m| m.values.chunks_mut(columns)) {
            let sum: f32 = row.iter().sum();
            row.iter_mut().for_each(|v| *v /= sum);
        }
        let gradients = split(values(&format!("{name}.gradient"), 2 * rows * columns, -0.7, 1.0, 0));
        HeadMaps { probabilities, gradients: with_gradient.then_some(gradients) }
    }

    /// Four words, three regions, two heads; one language, one vision and two cross layers.
    pub fn pair() -> PairMaps {
        let (t, n) = (4, 3);
        let cross = (0..2)
            .map(|i| CrossMaps {
                language_to_vision: heads(&format!("cross.{i}.lv"), t, n, true),
                vision_to_language: heads(&format!("cross.{i}.vl"), n, t, i == 0),
                language_self: Some(heads(&format!("cross.{i}.ls"), t, t, true)),
                vision_self: Some(heads(&format!("cross.{i}.vs"), n, n, i == 0)),
            })
            .collect();
        let language = vec![heads("language.0", t, t, true)];
        PairMaps { words: t, regions: n, language, vision: vec![heads("vision.0", n, n, true)], cross }
    }
}
