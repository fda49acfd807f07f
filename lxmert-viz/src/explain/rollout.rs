//! Attention rollout (Abnar & Zuidema 2020): the product of the layers' attention.

use super::maps::{HeadMaps, PairMaps};
use super::matrix::Matrix;
use crate::Result;

/// Attention rollout: for each side the product of `(A + I) / 2` over its layers, joined by the last cross layer's
/// attention as `Rᵗᵗᵀ · A · Rⁱⁱ`.
pub(super) fn rollout(maps: &PairMaps) -> Result<Matrix> {
    let last = maps.last_cross()?;
    let earlier = &maps.cross[..maps.cross.len() - 1];
    let words = maps.language.iter().chain(earlier.iter().filter_map(|layer| layer.language_self.as_ref()));
    let regions = maps.vision.iter().chain(earlier.iter().filter_map(|layer| layer.vision_self.as_ref()));
    let (tt, ii) = (rolled(words, maps.words), rolled(regions, maps.regions));
    Ok(tt.transposed().times(&last.language_to_vision.mean().times(&ii)))
}

/// The product of `(A + I) / 2` over `layers`, each the mean of its heads.
pub(super) fn rolled<'a>(layers: impl Iterator<Item = &'a HeadMaps>, size: usize) -> Matrix {
    layers.fold(Matrix::identity(size), |product, layer| {
        let mut step = layer.mean().plus(&Matrix::identity(size));
        step.values.iter_mut().for_each(|v| *v /= 2.0);
        step.times(&product)
    })
}

#[cfg(test)]
mod tests {
    use super::super::maps::example::pair;
    use super::*;

    #[test]
    fn rollout_multiplies_the_layers() {
        let want = [
            0.321683, 0.304548, 0.282981, 0.344461, 0.331831, 0.317359, 0.398216, 0.390173, 0.384097, 0.321279,
            0.328226, 0.275146,
        ];
        let got = rollout(&pair()).unwrap().values;
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 2e-6), "{got:?}");
    }
}
