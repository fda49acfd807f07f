//! A trained checkpoint that says how well sentences and images match, and shows where it looks.

use crate::relevancy::{CrossMaps, HeadMaps, Matrix, PairMaps};
use crate::{Error, Result};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use lxmert_core::config::LxmertConfig;
use lxmert_core::features::Regions;
use lxmert_core::model::{AttentionMap, Attentions, Capture, Forward, LxmertInputs, MatchingModel};
use lxmert_core::text::{Encoding, WordPiece};
use lxmert_train::run_folder::{Preprocessing, matching_weights};
use std::path::{Path, PathBuf};

/// Longest sentence in word pieces; what is longer is cut off and told.
pub const LONGEST_SENTENCE: usize = 50;

/// A matching model with its vocabulary.
pub struct Scorer {
    config: LxmertConfig,
    model: MatchingModel,
    vocabulary: WordPiece,
    device: Device,
    regions: usize,
}

/// A sentence and an image's regions.
#[derive(Debug, Clone, Copy)]
pub struct PairInput<'a> {
    /// The image's regions.
    pub regions: &'a Regions,
    /// The sentence.
    pub text: &'a str,
}

/// What the model says of a pair.
#[derive(Debug, Clone)]
pub struct Scored {
    /// The match logit.
    pub logit: f32,
    /// The sentence as the model read it.
    pub encoding: Encoding,
    /// Every attention map, when asked for.
    pub maps: Option<PairMaps>,
}

impl Scored {
    /// The probability that sentence and image belong together.
    pub fn probability(&self) -> f32 {
        1.0 / (1.0 + (-self.logit).exp())
    }

    /// The maps.
    ///
    /// # Errors
    /// [`Error::Shape`] when they were not asked for.
    pub fn maps(&self) -> Result<&PairMaps> {
        self.maps.as_ref().ok_or_else(|| Error::Shape("this pair was scored without its attention maps".into()))
    }
}

impl Scorer {
    /// Opens a checkpoint folder in the hub's layout (`config.json`, `model.safetensors` or
    /// `pytorch_model.bin`, `vocab.txt` if it has its own), or a weight file with the `config.json`
    /// beside it.
    ///
    /// # Errors
    /// [`Error::Missing`] when there is none; [`Error::Core`] when a file is not what it should be or
    /// keys are missing, unexpected or misshapen.
    pub fn open(checkpoint: &Path, device: &Device) -> Result<Self> {
        let (folder, weights) = locate(checkpoint)?;
        let config = LxmertConfig::from_file(folder.join("config.json"))?;
        let vocabulary = match folder.join("vocab.txt") {
            path if path.is_file() => WordPiece::from_vocab(path)?,
            _ => WordPiece::bundled()?,
        };
        let tensors = matching_weights(&weights, &config, false)?;
        let vb = VarBuilder::from_tensors(tensors.into_iter().collect(), DType::F32, device);
        let model = MatchingModel::new(&config, vb)?;
        let regions = Preprocessing::of_checkpoint(&folder)?.regions;
        Ok(Self { config, model, vocabulary, regions, device: device.clone() })
    }

    /// Regions an image that the model was trained on.
    pub fn regions(&self) -> usize {
        self.regions
    }

    /// The model's configuration.
    pub fn config(&self) -> &LxmertConfig {
        &self.config
    }

    /// Scores pairs in one batch. With [`Capture::Probes`] the maps carry the match logit's gradients.
    ///
    /// # Errors
    /// [`Error::Argument`] when the regions' features are not as long as the model's; [`Error::Candle`].
    pub fn score(&self, pairs: &[PairInput], capture: Capture) -> Result<Vec<Scored>> {
        if pairs.is_empty() {
            return Ok(Vec::new());
        }
        let longest = LONGEST_SENTENCE.min(self.config.max_position_embeddings);
        let encodings = pairs
            .iter()
            .map(|pair| self.vocabulary.encode(pair.text, longest))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        for (pair, encoding) in pairs.iter().zip(&encodings) {
            let (has, needs) = (pair.regions.feature_dim, self.config.visual_feat_dim);
            if has != needs {
                return Err(Error::Argument(format!(
                    "regions with {has} numbers each, but the model was trained on {needs}: \
                     use the detector and the feature store it was trained with"
                )));
            }
            if pair.regions.boxes.is_empty() {
                return Err(Error::Argument("an image without regions: nothing to attend to".into()));
            }
            if encoding.truncated > 0 {
                log::warn!("“{}”: the last {} word pieces do not fit and are ignored", pair.text, encoding.truncated);
            }
        }
        let inputs = self.inputs(pairs, &encodings)?;
        let output = self.model.forward(&inputs, &Forward::capture(capture))?;
        let gradients = match capture {
            Capture::Probes => Some(output.logits.sum_all()?.backward()?),
            _ => None,
        };
        let logits: Vec<f32> = output.logits.to_dtype(DType::F32)?.to_vec1()?;
        let mut maps: Vec<Option<PairMaps>> = match &output.trunk.attentions {
            Some(attentions) => {
                let sizes: Vec<(usize, usize)> =
                    pairs.iter().zip(&encodings).map(|(p, e)| (e.ids.len(), p.regions.boxes.len())).collect();
                read_maps(attentions, gradients.as_ref(), &sizes)?.into_iter().map(Some).collect()
            }
            None => vec![None; pairs.len()],
        };
        Ok(encodings
            .into_iter()
            .zip(logits)
            .zip(maps.drain(..))
            .map(|((encoding, logit), maps)| Scored { logit, encoding, maps })
            .collect())
    }

    fn inputs(&self, pairs: &[PairInput], encodings: &[Encoding]) -> Result<LxmertInputs> {
        let batch = pairs.len();
        let length = encodings.iter().map(|e| e.ids.len()).max().unwrap_or(0);
        let regions = pairs.iter().map(|p| p.regions.boxes.len()).max().unwrap_or(0);
        let width = self.config.visual_feat_dim;
        let (mut ids, mut word_mask) = (vec![0u32; batch * length], vec![0f32; batch * length]);
        let (mut features, mut boxes) = (vec![0f32; batch * regions * width], vec![0f32; batch * regions * 4]);
        let mut region_mask = vec![0f32; batch * regions];
        for (i, (pair, encoding)) in pairs.iter().zip(encodings).enumerate() {
            let words = encoding.ids.len();
            ids[i * length..i * length + words].copy_from_slice(&encoding.ids);
            word_mask[i * length..i * length + words].fill(1.0);
            let from = i * regions;
            let count = pair.regions.boxes.len();
            features[from * width..(from + count) * width].copy_from_slice(&pair.regions.features);
            for (slot, corners) in boxes[from * 4..].chunks_exact_mut(4).zip(&pair.regions.boxes) {
                slot.copy_from_slice(corners);
            }
            region_mask[from..from + count].fill(1.0);
        }
        let d = &self.device;
        Ok(LxmertInputs {
            input_ids: Tensor::from_vec(ids, (batch, length), d)?,
            attention_mask: Some(Tensor::from_vec(word_mask, (batch, length), d)?),
            visual_feats: Tensor::from_vec(features, (batch, regions, width), d)?,
            visual_boxes: Tensor::from_vec(boxes, (batch, regions, 4), d)?,
            visual_attention_mask: Some(Tensor::from_vec(region_mask, (batch, regions), d)?),
        })
    }
}

fn locate(checkpoint: &Path) -> Result<(PathBuf, PathBuf)> {
    let missing = |what, path: &Path| Error::Missing {
        what,
        path: path.to_path_buf(),
        advice: "train one with `cargo run -p lxmert-train`, or name another with --checkpoint".into(),
    };
    if checkpoint.is_file() {
        let folder = checkpoint.parent().unwrap_or(Path::new(".")).to_path_buf();
        return Ok((folder, checkpoint.to_path_buf()));
    }
    if !checkpoint.is_dir() {
        return Err(missing("the checkpoint", checkpoint));
    }
    let weights = ["model.safetensors", "pytorch_model.bin"].map(|name| checkpoint.join(name));
    match weights.iter().find(|path| path.is_file()) {
        Some(path) => Ok((checkpoint.to_path_buf(), path.clone())),
        None => Err(missing("the checkpoint's weight file", &weights[0])),
    }
}

/// Batched maps to one [`PairMaps`] per pair, padding cut off. `sizes`: words and regions of each.
fn read_maps(
    attentions: &Attentions,
    gradients: Option<&GradStore>,
    sizes: &[(usize, usize)],
) -> Result<Vec<PairMaps>> {
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
