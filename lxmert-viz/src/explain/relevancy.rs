//! Relevancy propagated through all layers (Chefer, Gur & Wolf, ICCV 2021).

use super::maps::PairMaps;
use super::matrix::Matrix;
use crate::Result;

/// The result of [`relevancy`].
#[derive(Debug, Clone, PartialEq)]
pub struct Relevancy {
    /// `R^tt`: words × words.
    pub words_to_words: Matrix,
    /// `R^ti`: words × regions.
    pub words_to_regions: Matrix,
}

/// The relevancy maps of Chefer et al. 2021 (eq. 5–11), for a score read from the words' side.
///
/// At the start each word and each region is relevant only to itself. A self-attention layer adds `Ā·R` to both
/// relevancies of its side (eq. 6, 7); a cross-attention layer adds to all four relevancies, computed from the values
/// before the layer (eq. 10, 11). In the last layer only the words' attentions count, since nothing reads the regions
/// after it.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the model has no cross-modality layer.
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

/// Eq. 6 and 7, both computed from the values before.
fn self_attention_rule(weighted: &Matrix, own: &mut Matrix, other: &mut Matrix) {
    let (to_own, to_other) = (weighted.times(own), weighted.times(other));
    *own = own.plus(&to_own);
    *other = other.plus(&to_other);
}

/// Eq. 8 and 9: `R − I`, each row divided by its sum, plus `I`. A row that has gathered nothing yet (all its gradients
/// were negative) sums to 0 and stays unchanged, whereas the original divides 0 by 0.
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

#[cfg(test)]
mod tests {
    use super::super::maps::example::pair;
    use super::super::maps::{CrossMaps, HeadMaps, PairMaps};
    use super::*;

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
    fn the_rules_are_applied_in_the_papers_order() {
        let found = relevancy(&numbers(0.5, 0.25)).unwrap();
        assert_eq!((found.words_to_regions.values[0], found.words_to_words.values[0]), (4.0, 6.75));
    }

    /// As above with a language layer that adds nothing: its row of R − I is 0, where 0/0 would be NaN, and the
    /// guard leaves 1. Cross layer 0: ti = 1·0.25·2 = 0.5, it = 2·0.75·1 = 1.5; self: tt = 1.5, ti = 0.75,
    /// it = 4.5; last layer: tt normalised is 0.5/0.5 + 1 = 2, so ti = 0.75 + 0.5 = 1.25 and
    /// tt = 1.5 + 0.125·4.5 = 2.0625; doubled.
    #[test]
    fn an_empty_row_counts_as_the_identity() {
        for nothing in [0.0, -3.0] {
            let found = relevancy(&numbers(nothing, 0.25)).unwrap();
            assert_eq!((found.words_to_regions.values[0], found.words_to_words.values[0]), (2.5, 4.125));
        }
    }

    #[test]
    fn all_negative_gradients_give_zeros_and_not_nan() {
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
}
