//! The single-modality layers, the cross-modality layer, and the model they make
//! (Tan & Bansal 2019, §2.2).

use super::attention::AttentionBlock;
use super::embeddings::{LanguageEmbeddings, RegionEmbeddings};
use super::layers::{FeedForward, Linear};
use super::{AttentionMap, Attentions, Capture, CrossAttentions, Forward, LxmertInputs, LxmertOutput};
use crate::config::LxmertConfig;
use crate::ops::{KeyMask, Packing, blocks, in_pool};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

/// Self-attention and feed-forward (`layer.i` or `r_layers.i`).
#[derive(Debug, Clone)]
struct Layer {
    attention: AttentionBlock,
    feed_forward: FeedForward,
}

impl Layer {
    fn new(config: &LxmertConfig, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            attention: AttentionBlock::new(config, "self", vb.pp("attention"))?,
            feed_forward: FeedForward::new(config, vb.pp("intermediate"), vb.pp("output"))?,
        })
    }
}

/// A layer of a single-modality encoder.
pub(super) trait EncoderLayer {
    /// `x`: `[batch, length, hidden]`.
    fn forward(&self, x: &Tensor, mask: Option<&KeyMask>, run: &Forward) -> Result<(Tensor, Option<AttentionMap>)>;

    /// `x`: `[rows, hidden]`, packed.
    fn packed(&self, x: &Tensor, packing: &Packing, run: &Forward) -> Result<Tensor>;
}

impl EncoderLayer for Layer {
    fn forward(&self, x: &Tensor, mask: Option<&KeyMask>, run: &Forward) -> Result<(Tensor, Option<AttentionMap>)> {
        let (x, map) = self.attention.forward(x, x, mask, run)?;
        Ok((self.feed_forward.forward(&x, run)?, map))
    }

    fn packed(&self, x: &Tensor, packing: &Packing, run: &Forward) -> Result<Tensor> {
        let x = self.attention.packed((x, packing), (x, packing), run)?;
        self.feed_forward.packed(&x, packing, run)
    }
}

/// One cross-modality layer (`x_layers.i`): one shared cross attention runs both ways from the
/// layer's inputs, then each stream has its self-attention and feed-forward.
#[derive(Debug, Clone)]
pub struct CrossLayer {
    cross: AttentionBlock,
    language_self: AttentionBlock,
    vision_self: AttentionBlock,
    language_feed_forward: FeedForward,
    vision_feed_forward: FeedForward,
}

impl CrossLayer {
    fn new(config: &LxmertConfig, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            cross: AttentionBlock::new(config, "att", vb.pp("visual_attention"))?,
            language_self: AttentionBlock::new(config, "self", vb.pp("lang_self_att"))?,
            vision_self: AttentionBlock::new(config, "self", vb.pp("visn_self_att"))?,
            language_feed_forward: FeedForward::new(config, vb.pp("lang_inter"), vb.pp("lang_output"))?,
            vision_feed_forward: FeedForward::new(config, vb.pp("visn_inter"), vb.pp("visn_output"))?,
        })
    }

    fn forward(
        &self,
        (language, language_mask): (&Tensor, Option<&KeyMask>),
        (vision, vision_mask): (&Tensor, Option<&KeyMask>),
        run: &Forward,
    ) -> Result<(Tensor, Tensor, Option<CrossAttentions>)> {
        let (l, language_to_vision) = self.cross.forward(language, vision, vision_mask, run)?;
        let (v, vision_to_language) = self.cross.forward(vision, language, language_mask, run)?;
        let (l, language_self) = self.language_self.forward(&l, &l, language_mask, run)?;
        let (v, vision_self) = self.vision_self.forward(&v, &v, vision_mask, run)?;
        let l = self.language_feed_forward.forward(&l, run)?;
        let v = self.vision_feed_forward.forward(&v, run)?;
        let maps = language_to_vision.zip(vision_to_language).map(|(language_to_vision, vision_to_language)| {
            CrossAttentions { language_to_vision, vision_to_language, language_self, vision_self }
        });
        Ok((l, v, maps))
    }

    /// The same of packed rows.
    fn packed(
        &self,
        (language, words): (&Tensor, &Packing),
        (vision, regions): (&Tensor, &Packing),
        run: &Forward,
    ) -> Result<(Tensor, Tensor)> {
        let l = self.cross.packed((language, words), (vision, regions), run)?;
        let v = self.cross.packed((vision, regions), (language, words), run)?;
        let l = self.language_self.packed((&l, words), (&l, words), run)?;
        let v = self.vision_self.packed((&v, regions), (&v, regions), run)?;
        let l = self.language_feed_forward.packed(&l, words, run)?;
        Ok((l, self.vision_feed_forward.packed(&v, regions, run)?))
    }

    /// The first word of each sentence alone, `[batch, hidden]`. In training its dropout masks are others than those of
    /// [`packed`](Self::packed), which draws more of them.
    fn packed_first(
        &self,
        (language, words): (&Tensor, &Packing),
        (vision, regions): (&Tensor, &Packing),
        run: &Forward,
    ) -> Result<Tensor> {
        let l = self.cross.packed((language, words), (vision, regions), run)?;
        let (first, firsts) = (words.pick_first(&l)?, words.first_rows());
        let first = self.language_self.packed((&first, &firsts), (&l, words), run)?;
        self.language_feed_forward.packed(&first, &firsts, run)
    }
}

/// The trunk: embeddings, both encoders, the cross-modality encoder, the pooler.
#[derive(Debug, Clone)]
pub struct LxmertModel {
    embeddings: LanguageEmbeddings,
    regions: RegionEmbeddings,
    language_layers: Vec<Layer>,
    vision_layers: Vec<Layer>,
    cross_layers: Vec<CrossLayer>,
    pooler: Linear,
}

/// One stream on its way through the model.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// `[batch, length, hidden]`.
    pub states: Tensor,
    /// The stream's padding.
    pub mask: Option<KeyMask>,
    /// The encoder's own attention maps, when captured.
    pub maps: Vec<AttentionMap>,
}

impl LxmertModel {
    /// Reads (or creates) the weights under `vb`, whose keys are those of the hub below `lxmert.`.
    ///
    /// # Errors
    /// When a weight is missing or misshapen.
    pub fn new(config: &LxmertConfig, vb: VarBuilder) -> Result<Self> {
        let encoder = vb.pp("encoder");
        let layers = |count: usize, name: &str| -> Result<Vec<Layer>> {
            (0..count).map(|i| Layer::new(config, encoder.pp(name).pp(i))).collect()
        };
        Ok(Self {
            embeddings: LanguageEmbeddings::new(config, vb.pp("embeddings"))?,
            regions: RegionEmbeddings::new(config, encoder.pp("visn_fc"))?,
            language_layers: layers(config.l_layers, "layer")?,
            vision_layers: layers(config.r_layers, "r_layers")?,
            cross_layers: (0..config.x_layers)
                .map(|i| CrossLayer::new(config, encoder.pp("x_layers").pp(i)))
                .collect::<Result<_>>()?,
            pooler: Linear::new(config.hidden_size, config.hidden_size, vb.pp("pooler").pp("dense"))?,
        })
    }

    /// The whole pass.
    ///
    /// # Errors
    /// When the inputs' shapes do not fit the model or each other.
    pub fn forward(&self, inputs: &LxmertInputs, run: &Forward) -> Result<LxmertOutput> {
        let language = self.encode_language(&inputs.input_ids, inputs.attention_mask.as_ref(), run)?;
        let vision =
            self.encode_vision(&inputs.visual_feats, &inputs.visual_boxes, inputs.visual_attention_mask.as_ref(), run)?;
        self.cross(&language, &vision, run)
    }

    /// The language encoder alone. `ids`, `mask`: `[batch, words]`.
    ///
    /// # Errors
    /// When a sentence is longer than the model's positions.
    pub fn encode_language(&self, ids: &Tensor, mask: Option<&Tensor>, run: &Forward) -> Result<Encoded> {
        in_pool(|| {
            let states = self.embeddings.forward(ids, run)?;
            Encoded::through(states, mask, &self.language_layers, run)
        })
    }

    /// The vision encoder alone. `features`: `[batch, regions, visual_feat_dim]`; `boxes`:
    /// `[batch, regions, 4]`; `mask`: `[batch, regions]`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn encode_vision(
        &self,
        features: &Tensor,
        boxes: &Tensor,
        mask: Option<&Tensor>,
        run: &Forward,
    ) -> Result<Encoded> {
        in_pool(|| {
            let states = self.regions.forward(features, boxes, run)?;
            Encoded::through(states, mask, &self.vision_layers, run)
        })
    }

    /// The cross-modality encoder and the pooler over two encoded streams of equal batch.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn cross(&self, language: &Encoded, vision: &Encoded, run: &Forward) -> Result<LxmertOutput> {
        in_pool(|| self.cross_streams(language, vision, run))
    }

    fn cross_streams(&self, language: &Encoded, vision: &Encoded, run: &Forward) -> Result<LxmertOutput> {
        if let (Some(words), Some(regions)) = (language.packing(run)?, vision.packing(run)?) {
            return self.cross_packed(
                (&words.pack(&language.states)?, &words),
                (&regions.pack(&vision.states)?, &regions),
                run,
            );
        }
        let (language_mask, vision_mask) = (language.mask.as_ref(), vision.mask.as_ref());
        let (mut l, mut v) = (language.states.clone(), vision.states.clone());
        let mut maps = Vec::new();
        for layer in &self.cross_layers {
            let map;
            (l, v, map) = layer.forward((&l, language_mask), (&v, vision_mask), run)?;
            maps.extend(map);
        }
        let pooled = self.pooler.forward(&l.narrow(1, 0, 1)?.squeeze(1)?)?.tanh()?;
        let attentions = (run.capture != Capture::None).then(|| Attentions {
            language: language.maps.clone(),
            vision: vision.maps.clone(),
            cross: maps,
        });
        Ok(LxmertOutput { language: l, vision: v, pooled, attentions })
    }

    fn cross_packed(
        &self,
        (language, words): (&Tensor, &Packing),
        (vision, regions): (&Tensor, &Packing),
        run: &Forward,
    ) -> Result<LxmertOutput> {
        let (mut l, mut v) = (language.clone(), vision.clone());
        let (last, before) = match self.cross_layers.split_last() {
            Some((last, before)) if run.pooled_only => (Some(last), before),
            _ => (None, self.cross_layers.as_slice()),
        };
        for layer in before {
            (l, v) = layer.packed((&l, words), (&v, regions), run)?;
        }
        let (first, language, vision) = match last {
            Some(last) => {
                let first = last.packed_first((&l, words), (&v, regions), run)?;
                (first.clone(), first.unsqueeze(1)?, regions.unpack(&v)?.narrow(1, 0, 0)?)
            }
            None => (words.pick_first(&l)?, words.unpack(&l)?, regions.unpack(&v)?),
        };
        Ok(LxmertOutput { language, vision, pooled: self.pooler.forward(&first)?.tanh()?, attentions: None })
    }

    /// The word embedding table, `[vocab_size, hidden]`, which the masked-word decoder shares.
    pub fn word_embeddings(&self) -> &Tensor {
        &self.embeddings.tables.words
    }
}

impl Encoded {
    /// `states` through an encoder's layers in turn. `mask`: `[batch, length]`, 1 for real positions.
    pub(super) fn through<L: EncoderLayer>(
        states: Tensor,
        mask: Option<&Tensor>,
        layers: &[L],
        run: &Forward,
    ) -> Result<Self> {
        let mask = mask.map(KeyMask::new).transpose()?;
        let mut encoded = Self { states, mask, maps: Vec::new() };
        if let Some(packing) = encoded.packing(run)? {
            let mut x = packing.pack(&encoded.states)?;
            for layer in layers {
                x = layer.packed(&x, &packing, run)?;
            }
            encoded.states = packing.unpack(&x)?;
            return Ok(encoded);
        }
        for layer in layers {
            let (states, map) = layer.forward(&encoded.states, encoded.mask.as_ref(), run)?;
            encoded.states = states;
            encoded.maps.extend(map);
        }
        Ok(encoded)
    }

    /// Where the real rows lie, if the kernels on packed rows apply: no map is asked for, and the mask says yes or no.
    pub(super) fn packing(&self, run: &Forward) -> Result<Option<Packing>> {
        if run.capture != Capture::None || !blocks::apply(&self.states) {
            return Ok(None);
        }
        let (batch, length, _) = self.states.dims3()?;
        if length == 0 {
            return Ok(None);
        }
        Ok(match &self.mask {
            Some(mask) => mask.packing().cloned(),
            None => Some(Packing::dense(batch, length)),
        })
    }
}
