//! The methods that say which regions and words a score is based on: raw attention and four that go further.
//!
//! An attention map says where a layer reads, not whether what it reads there matters. Chefer, Gur & Wolf (ICCV 2021)
//! therefore weight each map by the gradient of the score with respect to it and propagate the result through the
//! layers ([`super::relevancy`]). The simpler methods that they compare with are here too, to show what each step adds.
//!
//! Every method gives a matrix, words × regions, and for the whole sentence a weight for each word and each region: the
//! row of `[CLS]`, where the score is read.

use super::maps::{HeadMaps, PairMaps, mean};
use super::matrix::Matrix;
use super::relevancy::relevancy;
use super::rollout::{rolled, rollout};
use super::words::{self, Word};
use crate::Result;

/// A method that says which regions matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Method {
    /// The last cross layer's attention, mean over heads
    Attention,
    /// The last cross layer's attention times its positive gradient (transformer attribution)
    GradientAttention,
    /// Relevancy propagated through all layers (Chefer et al. 2021)
    Relevancy,
    /// Attention multiplied through all layers (Abnar & Zuidema 2020)
    Rollout,
    /// The last cross layer's attention, heads weighted by their mean gradient (Grad-CAM)
    GradCam,
}

impl Method {
    /// All methods, in the order of reports.
    pub const ALL: [Self; 5] =
        [Self::Attention, Self::GradientAttention, Self::Relevancy, Self::Rollout, Self::GradCam];

    /// A name for titles and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::GradientAttention => "gradient × attention",
            Self::Relevancy => "relevancy (Chefer)",
            Self::Rollout => "rollout",
            Self::GradCam => "Grad-CAM",
        }
    }

    /// A name for files and exported arrays.
    pub const fn slug(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::GradientAttention => "gradient-attention",
            Self::Relevancy => "relevancy",
            Self::Rollout => "rollout",
            Self::GradCam => "grad-cam",
        }
    }

    /// A one-line explanation.
    pub const fn explanation(self) -> &'static str {
        match self {
            Self::Attention => "attention of the last cross layer, mean of its heads",
            Self::GradientAttention => "attention × its gradient in the last cross layer",
            Self::Relevancy => "relevancy through all layers (Chefer et al. 2021)",
            Self::Rollout => "attention rolled out through all layers",
            Self::GradCam => "Grad-CAM of the last cross layer",
        }
    }

    /// The kind of weight, for colour bars.
    pub const fn weight_kind(self) -> &'static str {
        match self {
            Self::Attention => "attention weight",
            Self::Rollout => "rolled-out attention",
            Self::GradientAttention | Self::Relevancy | Self::GradCam => "relevance for the score",
        }
    }

    /// The methods to draw and measure side by side, as in Chefer et al. 2021.
    pub const COMPARED: [Self; 4] = [Self::Attention, Self::Rollout, Self::GradCam, Self::Relevancy];

    /// Whether it needs the score's gradient.
    pub const fn needs_gradients(self) -> bool {
        matches!(self, Self::GradientAttention | Self::Relevancy | Self::GradCam)
    }

    /// What it makes of one layer's heads; `None` for the methods that go through all layers.
    pub fn of_layer(self, heads: &HeadMaps) -> Option<Matrix> {
        match self {
            Self::Attention => Some(heads.mean()),
            Self::GradientAttention => Some(heads.weighted()),
            Self::GradCam => Some(grad_cam(heads)),
            Self::Relevancy | Self::Rollout => None,
        }
    }

    /// Words × regions, values ≥ 0.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if the model has no cross-modality layer.
    pub fn words_to_regions(self, maps: &PairMaps) -> Result<Matrix> {
        match self.of_layer(&maps.last_cross()?.language_to_vision) {
            Some(matrix) => Ok(matrix),
            None if self == Self::Relevancy => Ok(relevancy(maps)?.words_to_regions),
            None => rollout(maps),
        }
    }

    /// Words × words, values ≥ 0: of the last layer where words attend to words, or through all of them.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) when the model has no cross-modality layer, or no layer where words attend to words.
    pub fn words_to_words(self, maps: &PairMaps) -> Result<Matrix> {
        match self.of_layer(maps.last_language_self()?) {
            Some(matrix) => Ok(matrix),
            None if self == Self::Relevancy => Ok(relevancy(maps)?.words_to_words),
            None => {
                let cross = maps.cross.iter().filter_map(|layer| layer.language_self.as_ref());
                Ok(rolled(maps.language.iter().chain(cross), maps.words))
            }
        }
    }

    /// What the score, read at `[CLS]`, is based on: the row of `[CLS]` over the words and over the regions, as Chefer
    /// et al. compare the methods. The entry of `[CLS]` itself is set to zero.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if the model has no cross-modality layer, or no layer in which words
    /// attend to words.
    pub fn sentence(self, maps: &PairMaps) -> Result<Relevance> {
        let mut words = self.words_to_words(maps)?.row(0).to_vec();
        words[0] = 0.0;
        Ok(Relevance { words, regions: self.words_to_regions(maps)?.row(0).to_vec() })
    }
}

/// How much each word piece and each region matters to a score.
#[derive(Debug, Clone, PartialEq)]
pub struct Relevance {
    /// One weight per word piece, `[CLS]` first; that of `[CLS]` itself is 0.
    pub words: Vec<f32>,
    /// One weight per region.
    pub regions: Vec<f32>,
}

/// How much each region matters to `pieces` of the sentence in `matrix`, the words × regions matrix of `method`. `None`
/// asks for the whole sentence: attention uses the mean over its words, the other methods the row of `[CLS]`, where the
/// score is read.
pub fn region_weights(matrix: &Matrix, method: Method, pieces: Option<&[usize]>, words: &[Word]) -> Vec<f32> {
    match (pieces, method) {
        (Some(pieces), _) => matrix.mean_of_rows(pieces),
        (None, Method::Attention | Method::GradientAttention) => matrix.mean_of_rows(&words::spoken_pieces(words)),
        (None, _) => matrix.mean_of_rows(&[0]),
    }
}

/// Each head's map times its mean gradient, averaged over heads, negative values dropped.
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
    use super::super::maps::Stance;
    use super::super::maps::example::pair;
    use super::*;

    fn assert_close(got: &[f32], want: &[f32]) {
        assert_eq!(got.len(), want.len());
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 2e-6), "{got:?}\n{want:?}");
    }

    // The expected numbers come from the same rules written in numpy, in f64.

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
        // The student's cross layers have no attention among words, so the last language layer is used.
        let mut student = maps.clone();
        student.cross.iter_mut().for_each(|layer| layer.language_self = None);
        let own = maps.language[0].mean();
        assert_eq!(Method::Attention.sentence(&student).unwrap().words[1..], own.row(0)[1..]);
        student.language.clear();
        assert!(Method::Attention.sentence(&student).is_err());
    }

    #[test]
    fn grad_cam_weights_each_head_by_its_mean_gradient() {
        let want = [0.045702, 0.0, 0.0, 0.0, 0.006777, 0.019414, 0.001107, 0.0, 0.03624, 0.022671, 0.004541, 0.0];
        assert_close(&Method::GradCam.words_to_regions(&pair()).unwrap().values, &want);
    }

    #[test]
    fn gradient_attention_uses_only_the_last_layer() {
        let want = [0.051174, 0.0, 0.0, 0.114738, 0.123589, 0.005391, 0.0, 0.0, 0.0, 0.116652, 0.171371, 0.005071];
        assert_close(&Method::GradientAttention.words_to_regions(&pair()).unwrap().values, &want);
    }

    #[test]
    fn evidence_against_a_score_is_evidence_for_its_negative() {
        let maps = pair();
        let against = Method::GradientAttention.words_to_regions(&maps.taking(Stance::Against)).unwrap();
        let product = |i: usize| -> f32 {
            let last = &maps.cross.last().unwrap().language_to_vision;
            let gradients = last.gradients.as_ref().unwrap();
            let heads = last.probabilities.iter().zip(gradients);
            heads.map(|(a, g)| (-a.values[i] * g.values[i]).max(0.0)).sum::<f32>() / 2.0
        };
        let want: Vec<f32> = (0..12).map(product).collect();
        assert!(want.iter().any(|v| *v > 0.0));
        assert_close(&against.values, &want);
        assert_eq!(maps.taking(Stance::For), maps);
        let attention = |maps: &PairMaps| Method::Attention.words_to_regions(maps).unwrap();
        assert_eq!(
            attention(&maps.taking(Stance::Against)),
            attention(&maps),
            "without gradients both sides are equal"
        );
    }

    #[test]
    fn a_model_without_cross_layers_is_an_error() {
        let maps = PairMaps { cross: Vec::new(), ..pair() };
        for method in Method::ALL {
            assert!(method.words_to_regions(&maps).is_err());
        }
    }
}
