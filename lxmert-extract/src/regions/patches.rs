//! Patch states of a DINOv2 vision transformer (Oquab et al. 2023), under the key names and with the numbers of
//! transformers' `Dinov2Model`.
//!
//! The image keeps its shape: its short side becomes 224 pixels, its long side 448 at most, padded to whole patches. The last
//! hidden states are means over `rows` × `columns` rectangles of patches, as [`cells`](super::cells) takes them of a map.
//!
//! candle-transformers' `dinov2` is not used: it resizes the position embeddings by nearest neighbour where the original
//! resizes them bicubically, has another epsilon, and reads Facebook's key names, not those of the hub's checkpoints.

use super::cells::mean_regions;
use super::{RegionSource, SourceOptions};
use crate::Result;
use crate::choice::DetectorChoice;
use crate::detector::config::TransformConfig;
use crate::detector::transform::{NetworkInput, transform};
use crate::images::DecodedImage;
use candle_core::{D, DType, Device, Tensor};
use candle_nn::VarBuilder;
use lxmert_core::Error;
use lxmert_core::checkpoint::{FitOptions, Place, fit, read_tensors};
use lxmert_core::features::{Regions, StoreDtype, StoreInfo};
use lxmert_core::files::{read_json, read_text, sha256};
use lxmert_core::model::init;
use lxmert_core::ops::{Precision, gelu, layer_norm, linear};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// `config.json` of a DINOv2 checkpoint.
#[derive(Debug, Clone, Deserialize)]
pub struct Dinov2Config {
    /// Width of a token.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads of an attention; divides the width.
    pub num_attention_heads: usize,
    /// Inner width of a feed-forward block, as a multiple of the width.
    #[serde(default = "four")]
    pub mlp_ratio: usize,
    /// Epsilon of the layer norms.
    #[serde(default = "epsilon")]
    pub layer_norm_eps: f64,
    /// Side in pixels of the image that the position embeddings are for.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Whether the feed-forward blocks are gated (the giant model's), which this code does not read.
    #[serde(default)]
    pub use_swiglu_ffn: bool,
}

impl Dinov2Config {
    /// Whether a `config.json` is that of a DINOv2 checkpoint.
    pub fn is_in(path: &Path) -> bool {
        read_json::<serde_json::Value>(path).is_ok_and(|config| config["model_type"] == "dinov2")
    }

    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// When the file cannot be read, lacks a field, or describes a network that this code does not run.
    pub fn from_json_file(path: impl AsRef<Path>) -> lxmert_core::Result<Self> {
        let path = path.as_ref();
        let config: Self = read_json(path)?;
        let refuse = |reason: &str| Err(Error::format(path, reason));
        let side = config.image_size.checked_div(config.patch_size).unwrap_or_default();
        let widths = (1..=1 << 13).contains(&config.hidden_size) && (1..=64).contains(&config.mlp_ratio);
        let counts = (1..=256).contains(&side) && (1..=256).contains(&config.num_hidden_layers);
        if !widths || !counts {
            return refuse("hidden_size, mlp_ratio, num_hidden_layers, image_size or patch_size cannot be used");
        }
        if config.num_attention_heads == 0 || !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            return refuse("num_attention_heads does not divide hidden_size");
        }
        if config.use_swiglu_ffn {
            return refuse("gated feed-forward blocks (use_swiglu_ffn, the giant model's) are not supported");
        }
        Ok(config)
    }
}

fn four() -> usize {
    4
}

fn epsilon() -> f64 {
    1e-6
}

/// Weight and bias of a linear layer or a norm.
#[derive(Debug, Clone)]
struct Affine {
    weight: Tensor,
    bias: Tensor,
}

impl Affine {
    fn linear(inputs: usize, outputs: usize, vb: VarBuilder) -> candle_core::Result<Self> {
        Ok(Self { weight: vb.get((outputs, inputs), "weight")?, bias: vb.get(outputs, "bias")? })
    }

    fn norm(width: usize, vb: VarBuilder) -> candle_core::Result<Self> {
        Ok(Self { weight: vb.get(width, "weight")?, bias: vb.get(width, "bias")? })
    }

    fn apply(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        linear(x, &self.weight, &self.bias)
    }

    fn normalise(&self, x: &Tensor, epsilon: f64) -> candle_core::Result<Tensor> {
        layer_norm(x, &self.weight, &self.bias, epsilon)
    }
}

/// Attention and feed-forward, each after a norm and scaled by channel before it is added.
#[derive(Debug, Clone)]
struct Layer {
    norm1: Affine,
    query: Affine,
    key: Affine,
    value: Affine,
    output: Affine,
    scale1: Tensor,
    norm2: Affine,
    fc1: Affine,
    fc2: Affine,
    scale2: Tensor,
    heads: usize,
    epsilon: f64,
}

impl Layer {
    fn new(config: &Dinov2Config, vb: VarBuilder) -> candle_core::Result<Self> {
        let width = config.hidden_size;
        let inner = width * config.mlp_ratio;
        let attention = vb.pp("attention.attention");
        Ok(Self {
            norm1: Affine::norm(width, vb.pp("norm1"))?,
            query: Affine::linear(width, width, attention.pp("query"))?,
            key: Affine::linear(width, width, attention.pp("key"))?,
            value: Affine::linear(width, width, attention.pp("value"))?,
            output: Affine::linear(width, width, vb.pp("attention.output.dense"))?,
            scale1: vb.get(width, "layer_scale1.lambda1")?,
            norm2: Affine::norm(width, vb.pp("norm2"))?,
            fc1: Affine::linear(width, inner, vb.pp("mlp.fc1"))?,
            fc2: Affine::linear(inner, width, vb.pp("mlp.fc2"))?,
            scale2: vb.get(width, "layer_scale2.lambda1")?,
            heads: config.num_attention_heads,
            epsilon: config.layer_norm_eps,
        })
    }

    /// `x`: `[1, tokens, hidden_size]`.
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let attended = self.attend(&self.norm1.normalise(x, self.epsilon)?)?;
        let x = (x + attended.broadcast_mul(&self.scale1)?)?;
        let inner = gelu(&self.fc1.apply(&self.norm2.normalise(&x, self.epsilon)?)?)?;
        &x + self.fc2.apply(&inner)?.broadcast_mul(&self.scale2)?
    }

    fn attend(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (_, tokens, width) = x.dims3()?;
        let head = width / self.heads;
        // [1, heads, tokens, head]
        let split = |x: Tensor| x.reshape((1, tokens, self.heads, head))?.transpose(1, 2)?.contiguous();
        let (q, k, v) = (split(self.query.apply(x)?)?, split(self.key.apply(x)?)?, split(self.value.apply(x)?)?);
        let scores = (q.matmul(&k.t()?)? / (head as f64).sqrt())?;
        let context = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&v)?;
        self.output.apply(&context.transpose(1, 2)?.contiguous()?.flatten_from(2)?)
    }
}

/// The transformer, without a head.
#[derive(Debug, Clone)]
pub struct Dinov2 {
    config: Dinov2Config,
    cls_token: Tensor,
    position_embeddings: Vec<f32>,
    projection: Affine,
    layers: Vec<Layer>,
    norm: Affine,
}

impl Dinov2 {
    /// Takes the weights, under transformers' key names, from `vb`. `config` must be one that
    /// [`Dinov2Config::from_json_file`] accepts.
    ///
    /// # Errors
    /// When a weight is missing or misshapen.
    pub fn new(config: &Dinov2Config, vb: VarBuilder) -> candle_core::Result<Self> {
        let (width, patch) = (config.hidden_size, config.patch_size);
        let side = config.image_size / patch;
        let embeddings = vb.pp("embeddings");
        let projection = embeddings.pp("patch_embeddings.projection");
        let positions: Tensor = embeddings.get((1, side * side + 1, width), "position_embeddings")?;
        let layer = |i: usize| Layer::new(config, vb.pp(format!("encoder.layer.{i}")));
        Ok(Self {
            cls_token: embeddings.get((1, 1, width), "cls_token")?,
            position_embeddings: positions.flatten_all()?.to_vec1()?,
            projection: Affine {
                weight: projection.get((width, 3, patch, patch), "weight")?.reshape((width, 3 * patch * patch))?,
                bias: projection.get(width, "bias")?,
            },
            layers: (0..config.num_hidden_layers).map(layer).collect::<candle_core::Result<_>>()?,
            norm: Affine::norm(width, vb.pp("layernorm"))?,
            config: config.clone(),
        })
    }

    /// Last hidden states of the patches of `images` `[1, 3, height, width]`, normalised, whose sides are whole patches:
    /// `[1, hidden_size, rows, columns]`.
    ///
    /// # Errors
    /// When the sides are not whole patches or a computation fails.
    pub fn forward(&self, images: &Tensor) -> candle_core::Result<Tensor> {
        let (_, _, height, width) = images.dims4()?;
        let patch = self.config.patch_size;
        if !height.is_multiple_of(patch) || !width.is_multiple_of(patch) {
            candle_core::bail!("{height} × {width} pixels are not whole patches of {patch}");
        }
        let (rows, columns) = (height / patch, width / patch);
        // [1, rows · columns, 3 · patch · patch], a patch's values in the order of the convolution's kernel
        let patches = images.reshape(&[3, rows, patch, columns, patch])?.permute((1, 3, 0, 2, 4))?;
        let patches = patches.reshape((1, rows * columns, 3 * patch * patch))?;
        let tokens = Tensor::cat(&[&self.cls_token, &self.projection.apply(&patches)?], 1)?;
        let mut x = (tokens + self.positions(rows, columns, images.device())?)?;
        for layer in &self.layers {
            x = layer.forward(&x)?;
        }
        let states = self.norm.normalise(&x, self.config.layer_norm_eps)?.narrow(1, 1, rows * columns)?;
        states.transpose(1, 2)?.reshape((1, self.config.hidden_size, rows, columns))
    }

    /// Position embeddings of the class token and of `rows` × `columns` patches, resized as torch's
    /// `interpolate(mode="bicubic", align_corners=False)` does.
    fn positions(&self, rows: usize, columns: usize, device: &Device) -> candle_core::Result<Tensor> {
        let width = self.config.hidden_size;
        let side = self.config.image_size / self.config.patch_size;
        if (rows, columns) == (side, side) {
            return Tensor::from_slice(&self.position_embeddings, (1, side * side + 1, width), device);
        }
        let (class, table) = self.position_embeddings.split_at(width);
        let (down, across) = (cubic_taps(side, rows), cubic_taps(side, columns));
        let mut values = class.to_vec();
        for taps_y in &down {
            for taps_x in &across {
                let start = values.len();
                values.resize(start + width, 0.0);
                for (y, weight_y) in taps_y {
                    for (x, weight_x) in taps_x {
                        let from = &table[(y * side + x) * width..][..width];
                        for (value, from) in values[start..].iter_mut().zip(from) {
                            *value += weight_y * weight_x * from;
                        }
                    }
                }
            }
        }
        Tensor::from_vec(values, (1, rows * columns + 1, width), device)
    }
}

/// For each of `to` samples the four of `from` that it is made of, with their weights (Keys 1981, a = −0.75 as in torch);
/// outside, the border is repeated.
fn cubic_taps(from: usize, to: usize) -> Vec<[(usize, f32); 4]> {
    const A: f32 = -0.75;
    let near = |t: f32| ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0;
    let far = |t: f32| ((A * t - 5.0 * A) * t + 8.0 * A) * t - 4.0 * A;
    let scale = from as f32 / to as f32;
    (0..to)
        .map(|i| {
            let position = scale * (i as f32 + 0.5) - 0.5;
            let first = position.floor();
            let t = position - first;
            let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
            std::array::from_fn(|k| {
                let index = (first as isize + k as isize - 1).clamp(0, from as isize - 1);
                (index as usize, weights[k])
            })
        })
        .collect()
}

const FOR_DINOV2: &str = "--regions NxN takes a DINOv2 transformer, such as --detector hf:facebook/dinov2-small";

/// A vision transformer whose patch states are regions.
#[derive(Debug)]
pub struct PatchSource {
    /// The transformer.
    pub transformer: Dinov2,
    /// Its name in a store.
    pub name: String,
    /// SHA-256 of its weight file, in hexadecimal.
    pub weights_sha256: String,
    /// Most regions down and across.
    pub grid: (usize, usize),
    /// Where it runs.
    pub device: Device,
}

impl PatchSource {
    /// The folder that names a DINOv2 checkpoint, and where its files are.
    fn place(detector: &DetectorChoice) -> Result<(&Path, Place)> {
        let DetectorChoice::Folder(named) = detector else { return Err(Error::Argument(FOR_DINOV2.into()).into()) };
        let place = Place::find(named)?;
        let path = place.folder.join("config.json");
        if !Dinov2Config::is_in(&path) {
            return Err(Error::format(path, format!("not that of DINOv2; {FOR_DINOV2}")).into());
        }
        Ok((named, place))
    }

    /// Numbers of a region.
    ///
    /// # Errors
    /// When `detector` names another network, or its configuration cannot be found.
    pub fn feature_dim(detector: &DetectorChoice) -> Result<usize> {
        let (_, place) = Self::place(detector)?;
        Ok(Dinov2Config::from_json_file(place.folder.join("config.json"))?.hidden_size)
    }

    /// The text of its configuration, and the hash of its weights.
    ///
    /// # Errors
    /// When a file cannot be found or read.
    pub fn identity(options: &SourceOptions<'_>, show_progress: bool) -> Result<(String, String)> {
        let (_, place) = Self::place(options.detector)?;
        let weights = options.weights.map_or(Ok(place.weights), |source| source.resolve(None, show_progress))?;
        Ok((read_text(place.folder.join("config.json"))?, sha256(weights)?))
    }

    /// Reads the DINOv2 checkpoint that `options` name.
    ///
    /// # Errors
    /// When they name another network, a file cannot be found or downloaded, or the weights do not fit the configuration.
    pub fn open(
        options: &SourceOptions<'_>,
        grid: (usize, usize),
        device: &Device,
        show_progress: bool,
    ) -> Result<Self> {
        let (named, place) = Self::place(options.detector)?;
        if options.precision == Precision::Bf16 {
            return Err(Error::Argument("--precision bf16 is for detectors, not for DINOv2".into()).into());
        }
        let config = Dinov2Config::from_json_file(place.folder.join("config.json"))?;
        let weights =
            options.weights.map_or(Ok(place.weights.clone()), |source| source.resolve(None, show_progress))?;
        let expected = init::expected(|vb| Dinov2::new(&config, vb).map(drop))?;
        // What pre-training puts in a hidden patch's place.
        let ignoring = FitOptions { ignore: vec!["embeddings.mask_token".into()], ..FitOptions::default() };
        let tensors = fit(&weights, &expected, read_tensors(&weights)?, &ignoring)?;
        let vb = VarBuilder::from_tensors(tensors.into_iter().collect(), DType::F32, device);
        let transformer = Dinov2::new(&config, vb)?;
        let name = match named.to_str().and_then(|named| named.strip_prefix("hf:")) {
            Some(repository) => repository.to_string(),
            None => named.file_name().unwrap_or(named.as_os_str()).to_string_lossy().into_owned(),
        };
        let weights_sha256 = sha256(&weights)?;
        Ok(Self { transformer, name, weights_sha256, grid, device: device.clone() })
    }
}

impl RegionSource for PatchSource {
    fn info(&self, dtype: StoreDtype) -> StoreInfo {
        let (rows, columns) = self.grid;
        StoreInfo {
            detector: self.name.clone(),
            settings: BTreeMap::from([
                ("select".to_string(), format!("patches:{rows}x{columns}")),
                ("weights sha256".to_string(), self.weights_sha256.clone()),
            ]),
            regions: rows * columns,
            feature_dim: self.transformer.config.hidden_size,
            dtype,
            label_names: vec!["patch".into()],
            attribute_names: Vec::new(),
        }
    }

    fn input(&self, image: &DecodedImage) -> Result<NetworkInput> {
        let divisor = self.transformer.config.patch_size;
        let sizes =
            TransformConfig { min_size: 224, max_size: 448, size_divisor: divisor, ..TransformConfig::default() };
        Ok(transform(&sizes, image, &self.device)?)
    }

    fn regions(&self, input: NetworkInput) -> Result<Regions> {
        let map = self.transformer.forward(&input.tensor)?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        Ok(mean_regions(&map, self.grid, &input)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cubic_weights_are_torch_s() {
        // python: F.interpolate(torch.tensor([[[[0., 1., 4., 9.]]]]), size=(1, 3), mode="bicubic")
        let source = [0.0, 1.0, 4.0, 9.0];
        let got: Vec<f32> =
            cubic_taps(4, 3).iter().map(|taps| taps.iter().map(|(i, w)| w * source[*i]).sum()).collect();
        for (got, torch) in got.iter().zip([0.091_435_015, 2.125, 8.334_492]) {
            assert!((got - torch).abs() < 1e-6, "{got}");
        }
        for taps in cubic_taps(37, 16) {
            assert!((taps.iter().map(|tap| tap.1).sum::<f32>() - 1.0).abs() < 1e-6);
        }
    }
}
