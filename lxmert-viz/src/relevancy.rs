//! Which regions and words a match score rests on: raw attention and four ways that go further.
//!
//! A map of attention says where a layer reads, not whether what it reads there matters. Chefer, Gur
//! & Wolf (ICCV 2021) therefore weight each map by the gradient of the score with respect to it and
//! follow the result through the layers. Beside their rules stand the simpler ways they compare
//! with, so that a reader can see what each adds.
//!
//! Every method gives one matrix, words × regions, and for the whole sentence a weight for each word and
//! each region: the row of `[CLS]`, since the score is read there.

use crate::matrix::Matrix;
use crate::{Error, Result};

/// One attention module's heads.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadMaps {
    /// Attention probabilities of each head, queries × keys.
    pub probabilities: Vec<Matrix>,
    /// The score's gradient with respect to them; `None` where it was not asked for, or where the
    /// score does not depend on this module (the last layer's image side).
    pub gradients: Option<Vec<Matrix>>,
}

impl HeadMaps {
    /// The mean over the heads.
    pub fn mean(&self) -> Matrix {
        mean(&self.probabilities)
    }

    /// `mean_h max(0, ∇A ⊙ A)` (Chefer et al. 2021, eq. 5); zero where there is no gradient.
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

fn mean(maps: &[Matrix]) -> Matrix {
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
    /// Words over words, after the cross attention; absent in layers without it.
    pub language_self: Option<HeadMaps>,
    /// Regions over regions, likewise.
    pub vision_self: Option<HeadMaps>,
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
    fn last_cross(&self) -> Result<&CrossMaps> {
        self.cross.last().ok_or_else(|| Error::Shape("the model has no cross-modality layer".into()))
    }

    /// The last layer where words attend to words: in the last cross layer, or, where the cross layers have
    /// none (the student's), the last language layer.
    fn last_language_self(&self) -> Result<&HeadMaps> {
        let own = self.last_cross()?.language_self.as_ref().or(self.language.last());
        own.ok_or_else(|| Error::Shape("the model has no layer where words attend to words".into()))
    }
}

/// A way to say which regions matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Method {
    /// The last cross layer's attention, mean over heads
    Attention,
    /// The last cross layer's attention times its positive gradient (transformer attribution)
    GradientAttention,
    /// Relevancy followed through all layers (Chefer et al. 2021)
    Relevancy,
    /// Attention multiplied through all layers (Abnar & Zuidema 2020)
    Rollout,
    /// The last cross layer's attention, heads weighted by their mean gradient (Grad-CAM)
    GradCam,
}

impl Method {
    /// All of them, in the order of reports.
    pub const ALL: [Self; 5] =
        [Self::Attention, Self::GradientAttention, Self::Relevancy, Self::Rollout, Self::GradCam];

    /// For titles and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::GradientAttention => "gradient × attention",
            Self::Relevancy => "relevancy (Chefer)",
            Self::Rollout => "rollout",
            Self::GradCam => "Grad-CAM",
        }
    }

    /// What it reads, in a line.
    pub const fn explanation(self) -> &'static str {
        match self {
            Self::Attention => "attention of the last cross layer, mean of its heads",
            Self::GradientAttention => "attention × its gradient in the last cross layer",
            Self::Relevancy => "relevancy through all layers (Chefer et al. 2021)",
            Self::Rollout => "attention rolled out through all layers",
            Self::GradCam => "Grad-CAM of the last cross layer",
        }
    }

    /// For colour bars.
    pub const fn weight_kind(self) -> &'static str {
        match self {
            Self::Attention => "attention weight",
            Self::Rollout => "rolled-out attention",
            Self::GradientAttention | Self::Relevancy | Self::GradCam => "relevance for the score",
        }
    }

    /// The ones that are drawn and measured side by side, as in Chefer et al. 2021.
    pub const COMPARED: [Self; 4] = [Self::Attention, Self::Rollout, Self::GradCam, Self::Relevancy];

    /// Whether it needs the score's gradient.
    pub const fn needs_gradients(self) -> bool {
        matches!(self, Self::GradientAttention | Self::Relevancy | Self::GradCam)
    }

    /// Words × regions, values ≥ 0.
    ///
    /// # Errors
    /// [`Error::Shape`] when the model has no cross-modality layer.
    pub fn words_to_regions(self, maps: &PairMaps) -> Result<Matrix> {
        let last = &maps.last_cross()?.language_to_vision;
        Ok(match self {
            Self::Attention => last.mean(),
            Self::GradientAttention => last.weighted(),
            Self::Relevancy => relevancy(maps)?.words_to_regions,
            Self::Rollout => rollout(maps)?,
            Self::GradCam => grad_cam(last),
        })
    }

    /// What the score, read at `[CLS]`, rests on: the row of `[CLS]` over the words and over the regions, as
    /// Chefer et al. compare the methods. Its own entry among the words is set to zero.
    ///
    /// # Errors
    /// [`Error::Shape`] when the model has no cross-modality layer, or no layer where words attend to words.
    pub fn sentence(self, maps: &PairMaps) -> Result<Relevance> {
        let own = maps.last_language_self()?;
        let words = match self {
            Self::Attention => own.mean(),
            Self::GradientAttention => own.weighted(),
            Self::Relevancy => relevancy(maps)?.words_to_words,
            Self::Rollout => {
                let cross = maps.cross.iter().filter_map(|layer| layer.language_self.as_ref());
                rolled(maps.language.iter().chain(cross), maps.words)
            }
            Self::GradCam => grad_cam(own),
        };
        let mut words = words.row(0).to_vec();
        words[0] = 0.0;
        Ok(Relevance { words, regions: self.words_to_regions(maps)?.row(0).to_vec() })
    }
}

/// How much each word piece and each region matters to a score.
#[derive(Debug, Clone, PartialEq)]
pub struct Relevance {
    /// One weight per word piece, `[CLS]` first; `[CLS]`'s own is 0.
    pub words: Vec<f32>,
    /// One weight per region.
    pub regions: Vec<f32>,
}

/// What [`relevancy`] finds.
#[derive(Debug, Clone, PartialEq)]
pub struct Relevancy {
    /// `R^tt`: words × words.
    pub words_to_words: Matrix,
    /// `R^ti`: words × regions.
    pub words_to_regions: Matrix,
}

/// The relevancy maps of Chefer et al. 2021 (eq. 5–11), for a score read from the words' side.
///
/// Start: each word and each region is relevant to itself only. A self-attention layer adds
/// `Ā·R` to both relevancies of its side (eq. 6, 7); a cross-attention layer adds to all four
/// relevancies from the values before the layer (eq. 10, 11); in the last layer only the words'
/// attentions count, since nothing reads the regions after it.
///
/// # Errors
/// [`Error::Shape`] when the model has no cross-modality layer.
pub fn relevancy(maps: &PairMaps) -> Result<Relevancy> {
    let (mut tt, mut ii) = (Matrix::identity(maps.words), Matrix::identity(maps.regions));
    let (mut ti, mut it) = (Matrix::zeros(maps.words, maps.regions), Matrix::zeros(maps.regions, maps.words));
    maps.last_cross()?;
    for layer in &maps.language {
        self_attention_rule(&layer.weighted(), &mut tt, &mut ti);
    }
    for layer in &maps.vision {
        self_attention_rule(&layer.weighted(), &mut ii, &mut it);
    }
    for (number, layer) in maps.cross.iter().enumerate() {
        let (tt_bar, ii_bar) = (row_normalised(&tt), row_normalised(&ii));
        let words = layer.language_to_vision.weighted();
        let to_ti = tt_bar.transposed().times(&words.times(&ii_bar));
        let to_tt = words.times(&it);
        if number + 1 < maps.cross.len() {
            let regions = layer.vision_to_language.weighted();
            let to_it = ii_bar.transposed().times(&regions.times(&tt_bar));
            let to_ii = regions.times(&ti);
            it = it.plus(&to_it);
            ii = ii.plus(&to_ii);
        }
        ti = ti.plus(&to_ti);
        tt = tt.plus(&to_tt);
        if let Some(own) = &layer.language_self {
            self_attention_rule(&own.weighted(), &mut tt, &mut ti);
        }
        if let (Some(own), true) = (&layer.vision_self, number + 1 < maps.cross.len()) {
            self_attention_rule(&own.weighted(), &mut ii, &mut it);
        }
    }
    Ok(Relevancy { words_to_words: tt, words_to_regions: ti })
}

/// Eq. 6 and 7, both from the values before.
fn self_attention_rule(weighted: &Matrix, own: &mut Matrix, other: &mut Matrix) {
    let (to_own, to_other) = (weighted.times(own), weighted.times(other));
    *own = own.plus(&to_own);
    *other = other.plus(&to_other);
}

/// Eq. 8 and 9: `R − I`, each row divided by its sum, plus `I`. A row that has gathered nothing yet
/// (all its gradients were negative) sums to 0 and stays as it is, where the original divides 0 by 0.
fn row_normalised(relevancy: &Matrix) -> Matrix {
    let mut out = relevancy.clone();
    for row in 0..out.rows {
        let columns = out.columns;
        let values = &mut out.values[row * columns..(row + 1) * columns];
        values[row] -= 1.0;
        let sum: f32 = values.iter().sum();
        if sum > 0.0 {
            values.iter_mut().for_each(|v| *v /= sum);
        }
        values[row] += 1.0;
    }
    out
}

/// Attention rollout: per side the product of `(A + I) / 2` over its layers, joined by the last cross
/// layer's attention as `Rᵗᵗᵀ · A · Rⁱⁱ`.
fn rollout(maps: &PairMaps) -> Result<Matrix> {
    let last = maps.last_cross()?;
    let earlier = &maps.cross[..maps.cross.len() - 1];
    let words = maps.language.iter().chain(earlier.iter().filter_map(|layer| layer.language_self.as_ref()));
    let regions = maps.vision.iter().chain(earlier.iter().filter_map(|layer| layer.vision_self.as_ref()));
    let (tt, ii) = (rolled(words, maps.words), rolled(regions, maps.regions));
    Ok(tt.transposed().times(&last.language_to_vision.mean().times(&ii)))
}

fn rolled<'a>(layers: impl Iterator<Item = &'a HeadMaps>, size: usize) -> Matrix {
    layers.fold(Matrix::identity(size), |product, layer| {
        let mut step = layer.mean().plus(&Matrix::identity(size));
        step.values.iter_mut().for_each(|v| *v /= 2.0);
        step.times(&product)
    })
}

/// Each head's map times its mean gradient, mean over heads, negative parts dropped.
fn grad_cam(maps: &HeadMaps) -> Matrix {
    let Some(gradients) = &maps.gradients else { return maps.weighted() };
    let scaled: Vec<Matrix> = maps
        .probabilities
        .iter()
        .zip(gradients)
        .map(|(a, g)| {
            let weight = g.values.iter().sum::<f32>() / g.values.len().max(1) as f32;
            Matrix { values: a.values.iter().map(|v| v * weight).collect(), ..*a }
        })
        .collect();
    let mut out = mean(&scaled);
    out.values.iter_mut().for_each(|v| *v = v.max(0.0));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use lxmert_core::procedural::values;

    /// Two heads' maps from the formula, rows summing to 1, gradients in -0.7..1.
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

    fn pair() -> PairMaps {
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

    fn assert_close(got: &[f32], want: &[f32]) {
        assert_eq!(got.len(), want.len());
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 2e-6), "{got:?}\n{want:?}");
    }

    // The expected numbers come from the same rules written in numpy, in f64.

    #[test]
    fn relevancy_follows_the_rules_through_all_layers() {
        let found = relevancy(&pair()).unwrap();
        let want = [
            0.733143, 0.432377, 0.423122, 1.021542, 0.591268, 0.360094, 0.960336, 0.471908, 0.214639, 0.820902,
            0.509172, 0.173642,
        ];
        assert_close(&found.words_to_regions.values, &want);
        assert_close(found.words_to_words.row(0), &[1.464487, 0.502989, 0.25343, 0.130002]);
    }

    /// One word, one region, one head, so that every matrix is a number: `weighted()` is the product given.
    fn number(product: f32) -> HeadMaps {
        let one = |value| vec![Matrix { rows: 1, columns: 1, values: vec![value] }];
        HeadMaps { probabilities: one(1.0), gradients: Some(one(product)) }
    }

    fn numbers(language: f32, vision: f32) -> PairMaps {
        let layer = |[lv, vl, ls, vs]: [f32; 4]| CrossMaps {
            language_to_vision: number(lv),
            vision_to_language: number(vl),
            language_self: Some(number(ls)),
            vision_self: Some(number(vs)),
        };
        // The last layer's image side must not count.
        let cross = vec![layer([0.25, 0.75, 0.5, 2.0]), layer([0.125, 99.0, 1.0, 99.0])];
        PairMaps { words: 1, regions: 1, language: vec![number(language)], vision: vec![number(vision)], cross }
    }

    /// By hand. Language layer: tt = 1 + 0.5; vision layer: ii = 1 + 0.25. Normalised (eq. 8, 9), each is
    /// 0.5/0.5 + 1 = 2, whatever the layer added. Cross layer 0 from the values before it: ti = 2·0.25·2 = 1,
    /// it = 2·0.75·2 = 3, and nothing for tt and ii, as ti and it were 0. Its self attentions:
    /// tt = 1.5·1.5 = 2.25, ti = 1·1.5 = 1.5, ii = 1.25·3, it = 3·3 = 9. Last layer, words' side:
    /// ti = 1.5 + 2·0.125·2 = 2, tt = 2.25 + 0.125·9 = 3.375; its self attention doubles both.
    #[test]
    fn the_rules_come_in_the_order_of_the_paper() {
        let found = relevancy(&numbers(0.5, 0.25)).unwrap();
        assert_eq!((found.words_to_regions.values[0], found.words_to_words.values[0]), (4.0, 6.75));
    }

    /// As above with a language layer that adds nothing: its row of R − I is 0, where 0/0 would be NaN, and the
    /// guard leaves 1. Cross layer 0: ti = 1·0.25·2 = 0.5, it = 2·0.75·1 = 1.5; self: tt = 1.5, ti = 0.75,
    /// it = 4.5; last layer: tt normalised is 0.5/0.5 + 1 = 2, so ti = 0.75 + 0.5 = 1.25 and
    /// tt = 1.5 + 0.125·4.5 = 2.0625; doubled.
    #[test]
    fn a_row_that_has_gathered_nothing_counts_as_the_identity() {
        for nothing in [0.0, -3.0] {
            let found = relevancy(&numbers(nothing, 0.25)).unwrap();
            assert_eq!((found.words_to_regions.values[0], found.words_to_words.values[0]), (2.5, 4.125));
        }
    }

    #[test]
    fn the_sentence_is_the_row_of_cls_without_itself() {
        let maps = pair();
        let last = maps.cross.last().unwrap();
        for (method, words, regions) in [
            (Method::Attention, last.language_self.as_ref().unwrap().mean(), last.language_to_vision.mean()),
            (Method::Relevancy, relevancy(&maps).unwrap().words_to_words, relevancy(&maps).unwrap().words_to_regions),
        ] {
            let found = method.sentence(&maps).unwrap();
            assert_eq!(found.words[0], 0.0);
            assert_eq!(found.words[1..], words.row(0)[1..]);
            assert_eq!(found.regions, regions.row(0));
        }
        // The student's cross layers have no attention among words: the last language layer answers.
        let mut student = maps.clone();
        student.cross.iter_mut().for_each(|layer| layer.language_self = None);
        let own = maps.language[0].mean();
        assert_eq!(Method::Attention.sentence(&student).unwrap().words[1..], own.row(0)[1..]);
        student.language.clear();
        assert!(Method::Attention.sentence(&student).is_err());
    }

    #[test]
    fn rollout_multiplies_the_layers() {
        let want = [
            0.321683, 0.304548, 0.282981, 0.344461, 0.331831, 0.317359, 0.398216, 0.390173, 0.384097, 0.321279,
            0.328226, 0.275146,
        ];
        assert_close(&Method::Rollout.words_to_regions(&pair()).unwrap().values, &want);
    }

    #[test]
    fn grad_cam_weights_each_head_by_its_mean_gradient() {
        let want = [0.045702, 0.0, 0.0, 0.0, 0.006777, 0.019414, 0.001107, 0.0, 0.03624, 0.022671, 0.004541, 0.0];
        assert_close(&Method::GradCam.words_to_regions(&pair()).unwrap().values, &want);
    }

    #[test]
    fn gradient_attention_is_the_last_layer_alone() {
        let want = [0.051174, 0.0, 0.0, 0.114738, 0.123589, 0.005391, 0.0, 0.0, 0.0, 0.116652, 0.171371, 0.005071];
        assert_close(&Method::GradientAttention.words_to_regions(&pair()).unwrap().values, &want);
    }

    #[test]
    fn gradients_that_are_all_negative_give_zeros_and_not_nan() {
        let mut maps = pair();
        let negate = |heads: &mut HeadMaps| {
            for m in heads.gradients.iter_mut().flatten() {
                m.values.iter_mut().for_each(|v| *v = -v.abs());
            }
        };
        maps.language.iter_mut().chain(&mut maps.vision).for_each(negate);
        for layer in &mut maps.cross {
            negate(&mut layer.language_to_vision);
            negate(&mut layer.vision_to_language);
            layer.language_self.iter_mut().chain(&mut layer.vision_self).for_each(negate);
        }
        let found = relevancy(&maps).unwrap();
        assert!(found.words_to_regions.values.iter().all(|v| *v == 0.0));
        assert_eq!(found.words_to_words, Matrix::identity(4));
    }

    #[test]
    fn a_model_without_cross_layers_is_an_error() {
        let maps = PairMaps { cross: Vec::new(), ..pair() };
        for method in Method::ALL {
            assert!(method.words_to_regions(&maps).is_err());
        }
    }
}
