//! Makes maps small enough for a page: each value is rounded to one of a number of even steps up to the map's largest
//! value, then all are deflated.
//!
//! A map's values are ≥ 0. Step `q` of `n` stands for `q / n · max`, so a value is off by at most half a step, `max /
//! 2n`; the page says so beside the numbers. Maps of layers and heads have 255 steps, one byte per value: the base
//! model has 309,000 attention probabilities for a pair of 20 word pieces and 36 regions. Maps of a method through all
//! layers have 65,535 steps, since they contain both a word's relevance to itself, 1 or more, and hundredths.

use crate::Error;
use crate::Result;
use crate::explain::maps::{Direction, HeadMaps, PairMaps, Stance};
use crate::explain::matrix::Matrix;
use crate::explain::methods::Method;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use serde::Serialize;
use std::io::Write as _;

/// Steps between 0 and the largest value of a layer's or a head's map.
pub const STEPS: u16 = 255;
/// The same for a map through all layers.
pub const FINE_STEPS: u16 = 65_535;

/// Maps of one shape: from one method, for one kind of attention.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stack {
    /// The method's [`Method::slug`], with `-against` appended for the evidence against the score.
    pub method: String,
    /// The attention's [`Direction::slug`].
    pub direction: &'static str,
    /// Layers, maps per layer, rows, columns. A method with one matrix for the whole model has one layer and one map.
    pub shape: [usize; 4],
    /// Steps of a map's values; two bytes per value (little-endian) if there are more than 255.
    pub steps: u16,
    /// Each map's largest value, layer by layer.
    pub max: Vec<f32>,
}

/// The maps of one pair by every method.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Packed {
    /// The contents of `data`, in order.
    pub stacks: Vec<Stack>,
    /// The steps of each value, deflated (zlib), in base64.
    pub data: String,
}

/// Collects maps.
#[derive(Debug, Default)]
struct Packer {
    stacks: Vec<Stack>,
    bytes: Vec<u8>,
}

impl Packer {
    /// Adds `layers`, each with the same number of maps; does nothing if there are none.
    fn add(&mut self, method: &str, direction: Direction, layers: &[Vec<Matrix>], steps: u16) {
        let Some(first) = layers.first().and_then(|maps| maps.first()) else { return };
        let mut max = Vec::new();
        for map in layers.iter().flatten() {
            let (largest, values) = quantise(&map.values, steps);
            max.push(largest);
            let width = if steps > STEPS { 2 } else { 1 };
            self.bytes.extend(values.iter().flat_map(|value| value.to_le_bytes().into_iter().take(width)));
        }
        let shape = [layers.len(), layers[0].len(), first.rows, first.columns];
        self.stacks.push(Stack { method: method.into(), direction: direction.slug(), shape, steps, max });
    }

    fn finish(self) -> Result<Packed> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        let deflated = encoder.write_all(&self.bytes).and_then(|()| encoder.finish()).map_err(Error::io("maps"))?;
        Ok(Packed { stacks: self.stacks, data: STANDARD.encode(deflated) })
    }
}

/// The largest value, and each value as a number of steps; values that are not finite or below 0 become 0.
pub fn quantise(values: &[f32], steps: u16) -> (f32, Vec<u16>) {
    let largest = values.iter().copied().filter(|value| value.is_finite()).fold(0.0, f32::max);
    let per_value = if largest > 0.0 { f64::from(steps) / f64::from(largest) } else { 0.0 };
    let step = |value: &f32| {
        if value.is_finite() { (f64::from(*value) * per_value).round().clamp(0.0, f64::from(steps)) as u16 } else { 0 }
    };
    (largest, values.iter().map(step).collect())
}

/// Every map of a pair: each head's attention, and per layer and for the whole model the methods' results, for the
/// score and, if the method uses gradients, against it.
///
/// # Errors
/// [`Error::Shape`] if the model has no cross-modality layer.
pub fn pack(maps: &PairMaps) -> Result<Packed> {
    let mut packer = Packer::default();
    for direction in Direction::ALL {
        let heads: Vec<Vec<Matrix>> =
            maps.layers(direction).into_iter().map(|layer| layer.probabilities.clone()).collect();
        packer.add(Method::Attention.slug(), direction, &heads, STEPS);
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
                packer.add(&name, direction, &layers, STEPS);
            }
            if matches!(method, Method::Relevancy | Method::Rollout) {
                let (regions, words) = (method.words_to_regions(maps)?, method.words_to_words(maps)?);
                packer.add(&name, Direction::LanguageToVision, &[vec![regions]], FINE_STEPS);
                packer.add(&name, Direction::Language, &[vec![words]], FINE_STEPS);
            }
        }
    }
    packer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::maps::CrossMaps;
    use crate::explain::maps::example::pair;
    use crate::explorer::document::Photo;
    use flate2::read::ZlibDecoder;
    use lxmert_core::procedural::values;
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
            for steps in [STEPS, FINE_STEPS] {
                let (max, quantised) = quantise(&values, steps);
                for (value, step) in values.iter().zip(quantised) {
                    let error = (f64::from(*value) - f64::from(step) * f64::from(max) / f64::from(steps)).abs();
                    // Half a step; the rest is f64's rounding.
                    prop_assert!(error <= f64::from(max) * (0.5 / f64::from(steps) + 1e-12), "{value} {step} {max}");
                }
            }
        }
    }

    /// A softmax over uniform logits from -3 to 3, different for each map.
    fn attention(name: &str, heads: usize, (rows, columns): (usize, usize)) -> HeadMaps {
        let maps = (0..heads).map(|head| {
            let mut values = values(&format!("{name}.{head}"), rows * columns, -3.0, 3.0, 0);
            values.iter_mut().for_each(|value| *value = value.exp());
            for row in values.chunks_mut(columns) {
                let sum: f32 = row.iter().sum();
                row.iter_mut().for_each(|value| *value /= sum);
            }
            Matrix { rows, columns, values }
        });
        let probabilities: Vec<Matrix> = maps.collect();
        HeadMaps { gradients: Some(probabilities.clone()), probabilities }
    }

    #[test]
    fn twenty_pairs_of_the_base_model_and_their_photos_stay_below_ten_megabytes() {
        let (w, r) = (20, 36);
        let cross = |layer: usize| CrossMaps {
            language_to_vision: attention(&format!("lv{layer}"), 12, (w, r)),
            vision_to_language: attention(&format!("vl{layer}"), 12, (r, w)),
            language_self: Some(attention(&format!("ls{layer}"), 12, (w, w))),
            vision_self: Some(attention(&format!("vs{layer}"), 12, (r, r))),
        };
        let maps = PairMaps {
            words: w,
            regions: r,
            language: (0..9).map(|layer| attention(&format!("l{layer}"), 12, (w, w))).collect(),
            vision: (0..5).map(|layer| attention(&format!("v{layer}"), 12, (r, r))).collect(),
            cross: (0..5).map(cross).collect(),
        };
        let packed = serde_json::to_string(&pack(&maps).unwrap()).unwrap().len();
        let photo = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/photos/astronaut.png");
        let photo = crate::photo::read(photo.as_ref()).unwrap();
        let photo = Photo::new("photo", &photo, Vec::new()).unwrap().src.len();
        println!("maps {packed} bytes, photo {photo} bytes");
        assert!(20 * (packed + photo + 10_000) < 10_000_000, "maps {packed}, photo {photo}");
    }

    #[test]
    fn odd_values_are_zero() {
        assert_eq!(quantise(&[f32::NAN, -1.0, 0.5, f32::INFINITY, 1.0], STEPS), (1.0, vec![0, 0, 128, 0, 255]));
        assert_eq!(quantise(&[0.0, 0.0], STEPS), (0.0, vec![0, 0]));
        assert_eq!(quantise(&[], STEPS), (0.0, vec![]));
    }

    #[test]
    fn every_map_can_be_found_by_its_stack() {
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
                let width = if stack.steps > STEPS { 2 } else { 1 };
                let got = bytes[offset..offset + width * rows * columns].chunks(width);
                offset += width * rows * columns;
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
                for (step, value) in got.zip(&want.values) {
                    let step = step.iter().rev().fold(0.0, |step, byte| step * 256.0 + f32::from(*byte));
                    let error = (step / f32::from(stack.steps) * max - value).abs();
                    assert!(error <= max * (0.5 / f32::from(stack.steps) + 1e-6), "{}: {error}", stack.method);
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
