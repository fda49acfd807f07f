//! Maps small enough for a page: each rounded to 255 steps of its own largest value, then deflated.
//!
//! A map's values are ≥ 0. Step `q` of a map stands for `q / 255 · max`, so a value is off by at most half a step,
//! `max / 510`; the page says so beside the numbers. The base model has 309,000 attention probabilities for a pair of 20
//! word pieces and 36 regions; as steps they are 309 KB before deflation.

use crate::Result;
use crate::explain::maps::{Direction, HeadMaps, PairMaps, Stance};
use crate::explain::matrix::Matrix;
use crate::explain::methods::Method;
use crate::Error;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use serde::Serialize;
use std::io::Write as _;

/// Steps between 0 and a map's largest value.
pub const STEPS: u8 = 255;

/// Maps of one shape: of one method, for one kind of attention.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stack {
    /// The method, as [`Method::slug`] writes it, with `-against` behind it for what speaks against the score.
    pub method: String,
    /// The attention, as [`Direction::slug`] writes it.
    pub direction: &'static str,
    /// Layers, maps a layer, rows, columns. A method that gives one matrix for the whole model has one layer and one map.
    pub shape: [usize; 4],
    /// Each map's largest value, layer by layer.
    pub max: Vec<f32>,
}

/// The maps of one pair by every method.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Packed {
    /// What lies in `data`, in its order.
    pub stacks: Vec<Stack>,
    /// A byte for each value, deflated (zlib), in base64.
    pub data: String,
}

/// Collects maps.
#[derive(Debug, Default)]
struct Packer {
    stacks: Vec<Stack>,
    bytes: Vec<u8>,
}

impl Packer {
    /// Adds `layers`, each with as many maps as the others; nothing where there is none.
    fn add(&mut self, method: &str, direction: Direction, layers: &[Vec<Matrix>]) {
        let Some(first) = layers.first().and_then(|maps| maps.first()) else { return };
        let mut max = Vec::new();
        for map in layers.iter().flatten() {
            let (largest, steps) = quantise(&map.values);
            max.push(largest);
            self.bytes.extend(steps);
        }
        let shape = [layers.len(), layers[0].len(), first.rows, first.columns];
        self.stacks.push(Stack { method: method.into(), direction: direction.slug(), shape, max });
    }

    fn finish(self) -> Result<Packed> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        let deflated = encoder.write_all(&self.bytes).and_then(|()| encoder.finish()).map_err(Error::io("maps"))?;
        Ok(Packed { stacks: self.stacks, data: STANDARD.encode(deflated) })
    }
}

/// The largest value, and each value in steps of a 255th of it; what is not finite or below 0 is 0.
pub fn quantise(values: &[f32]) -> (f32, Vec<u8>) {
    let largest = values.iter().copied().filter(|value| value.is_finite()).fold(0.0, f32::max);
    let per_value = if largest > 0.0 { f32::from(STEPS) / largest } else { 0.0 };
    let step = |value: &f32| if value.is_finite() { (value * per_value).round().clamp(0.0, 255.0) as u8 } else { 0 };
    (largest, values.iter().map(step).collect())
}

/// Every map of a pair: each head's attention; per layer and for the whole model what the methods make of it, for the
/// score and, where they read gradients, against it.
///
/// # Errors
/// [`Error::Shape`] when the model has no cross-modality layer.
pub fn pack(maps: &PairMaps) -> Result<Packed> {
    let mut packer = Packer::default();
    for direction in Direction::ALL {
        let heads: Vec<Vec<Matrix>> =
            maps.layers(direction).into_iter().map(|layer| layer.probabilities.clone()).collect();
        packer.add(Method::Attention.slug(), direction, &heads);
    }
    for stance in [Stance::For, Stance::Against] {
        let maps = &maps.taking(stance);
        for method in Method::ALL.into_iter().filter(|method| *method != Method::Attention) {
            let name = match stance {
                Stance::For => method.slug().to_string(),
                Stance::Against if method.needs_gradients() => format!("{}-against", method.slug()),
                Stance::Against => continue,
            };
            let of_layer = |layer: &HeadMaps| method.of_layer(layer).map(|map| vec![map]);
            for direction in Direction::ALL {
                let layers: Vec<Vec<Matrix>> = maps.layers(direction).into_iter().filter_map(of_layer).collect();
                packer.add(&name, direction, &layers);
            }
            if matches!(method, Method::Relevancy | Method::Rollout) {
                packer.add(&name, Direction::LanguageToVision, &[vec![method.words_to_regions(maps)?]]);
                packer.add(&name, Direction::Language, &[vec![method.words_to_words(maps)?]]);
            }
        }
    }
    packer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::maps::example::pair;
    use flate2::read::ZlibDecoder;
    use proptest::prelude::*;
    use std::io::Read as _;

    fn unpacked(packed: &Packed) -> Vec<u8> {
        let mut bytes = Vec::new();
        ZlibDecoder::new(&*STANDARD.decode(&packed.data).unwrap()).read_to_end(&mut bytes).unwrap();
        bytes
    }

    proptest! {
        #[test]
        fn a_value_is_off_by_at_most_half_a_step(values in proptest::collection::vec(0f32..1e6, 1..200), scale in 1e-6f32..1.0) {
            let values: Vec<f32> = values.iter().map(|value| value * scale).collect();
            let (max, steps) = quantise(&values);
            for (value, step) in values.iter().zip(steps) {
                let error = (f64::from(*value) - f64::from(step) * f64::from(max) / 255.0).abs();
                // Half a step, and the rounding of f32 in the product.
                prop_assert!(error <= f64::from(max) * (1.0 / 510.0 + 1e-6), "{value} {step} {max}");
            }
        }
    }

    #[test]
    fn odd_values_are_zero() {
        assert_eq!(quantise(&[f32::NAN, -1.0, 0.5, f32::INFINITY, 1.0]), (1.0, vec![0, 0, 128, 0, 255]));
        assert_eq!(quantise(&[0.0, 0.0]), (0.0, vec![0, 0]));
        assert_eq!(quantise(&[]), (0.0, vec![]));
    }

    #[test]
    fn every_map_is_found_again_where_its_stack_says() {
        let maps = pair();
        let packed = pack(&maps).unwrap();
        let bytes = unpacked(&packed);
        let mut offset = 0;
        let mut seen = Vec::new();
        for stack in &packed.stacks {
            let [layers, heads, rows, columns] = stack.shape;
            assert_eq!(stack.max.len(), layers * heads);
            seen.push(format!("{}/{}", stack.method, stack.direction));
            let direction = Direction::ALL.into_iter().find(|d| d.slug() == stack.direction).unwrap();
            for (number, max) in stack.max.iter().enumerate() {
                let got = &bytes[offset..offset + rows * columns];
                offset += rows * columns;
                let layer = maps.layers(direction)[number / heads];
                let want = match stack.method.as_str() {
                    "attention" => &layer.probabilities[number % heads],
                    "gradient-attention" => &layer.weighted(),
                    "rollout" if stack.direction == "language" => &Method::Rollout.words_to_words(&maps).unwrap(),
                    "rollout" => &Method::Rollout.words_to_regions(&maps).unwrap(),
                    "relevancy-against" if stack.direction == "language-to-vision" => {
                        &Method::Relevancy.words_to_regions(&maps.taking(Stance::Against)).unwrap()
                    }
                    _ => continue,
                };
                for (step, value) in got.iter().zip(&want.values) {
                    assert!((f32::from(*step) / 255.0 * max - value).abs() <= max / 509.0, "{}", stack.method);
                }
            }
        }
        assert_eq!(offset, bytes.len());
        for name in ["attention/vision-self", "grad-cam-against/language-to-vision", "relevancy/language"] {
            assert!(seen.iter().any(|seen| seen == name), "{name} of {seen:?}");
        }
        assert!(!seen.iter().any(|seen| seen.starts_with("rollout-against")));
    }
}
