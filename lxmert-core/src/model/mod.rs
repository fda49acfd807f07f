//! LXMERT (Tan & Bansal 2019): two single-modality encoders and a cross-modality encoder.
//!
//! The structs mirror the hub's checkpoint key by key (`lxmert.encoder.x_layers.0.…`), so code and weights read alike.
//! [`LxmertModel`] is the trunk. [`MatchingModel`], [`AnswerModel`], [`PairModel`] and [`ReferringModel`] add a head
//! for matching, for questions, for statements about two images, and for referring expressions; [`PretrainingHeads`]
//! and [`AnswerHead`] are the published heads. The student project's variant (`student.rs`) is the same trunk with
//! other parts.
//!
//! Read `attention.rs` and `layers.rs` for the sub-layers and layers, `embeddings.rs` for their inputs, `encoder.rs`
//! for the whole trunk, and `heads.rs` and `tasks.rs` for the heads and models. A [`Pass`] says how the model runs; a
//! [`Stream`] is a modality on its way through it.

mod attention;
mod embeddings;
mod encoder;
mod heads;
pub mod init;
mod layers;
mod student;
mod tasks;

pub use encoder::LxmertModel;
pub use heads::{AnswerHead, PretrainingHeads, PretrainingLogits, RegionHead, RegionLogits, WordHead};
pub use tasks::{AnswerModel, HeadOutput, MatchingModel, PairModel, PretrainingModel, ReferringModel};

use crate::ops::sublayers::Run;
use crate::ops::{DropoutRng, Precision, PrepackedWeights, Ragged};
use candle_core::{Result, Tensor, Var};

/// One batch of images and sentences.
#[derive(Debug, Clone)]
pub struct LxmertInputs {
    /// `[batch, words]`, u32.
    pub input_ids: Tensor,
    /// `[batch, words]`, 1 for words and 0 for padding, best on the CPU, where it is read; `None` if nothing is padded.
    pub attention_mask: Option<Tensor>,
    /// `[batch, regions, visual_feat_dim]`.
    pub visual_feats: Tensor,
    /// `[batch, regions, 4]`, x0 y0 x1 y1 in 0..1 (not x y width height, as the hub's docs say).
    pub visual_boxes: Tensor,
    /// `[batch, regions]`, 1 for regions and 0 for padding, likewise; `None` if nothing is padded.
    pub visual_attention_mask: Option<Tensor>,
}

/// The output of a forward pass.
#[derive(Debug, Clone)]
pub struct LxmertOutput {
    /// `[batch, words, hidden]`; the values of padding rows are meaningless.
    pub language: Tensor,
    /// `[batch, regions, hidden]`; likewise.
    pub vision: Tensor,
    /// `[batch, hidden]`: tanh of a linear map of `[CLS]`.
    pub pooled: Tensor,
    /// Every attention map, if [`Pass::capture`] requests them.
    pub attentions: Option<Attentions>,
}

/// Every attention map of a forward pass, in the order of the layers.
#[derive(Debug, Clone, Default)]
pub struct Attentions {
    /// Words over words, one per language layer.
    pub language: Vec<AttentionMap>,
    /// Regions over regions, one per vision layer.
    pub vision: Vec<AttentionMap>,
    /// One per cross-modality layer.
    pub cross: Vec<CrossAttentions>,
}

/// The attention maps of one cross-modality layer.
#[derive(Debug, Clone)]
pub struct CrossAttentions {
    /// Words over regions.
    pub language_to_vision: AttentionMap,
    /// Regions over words.
    pub vision_to_language: AttentionMap,
    /// Words over words, after the cross-attention; the student's layer has none.
    pub language_self: Option<AttentionMap>,
    /// Regions over regions, after the cross-attention; the student's layer has none.
    pub vision_self: Option<AttentionMap>,
}

impl Attentions {
    /// Splits the maps of the two encoded streams from those added by `layers` cross-modality layers. Each layer adds
    /// the cross-attention's map to a stream, then the self-attention's if it has one.
    fn new(language: &Stream, vision: &Stream, l: &Stream, v: &Stream, layers: usize) -> Self {
        let (added_l, added_v) = (&l.maps[language.maps.len()..], &v.maps[vision.maps.len()..]);
        let each = (added_l.len() / layers.max(1)).max(1);
        let layer = |(l, v): (&[AttentionMap], &[AttentionMap])| CrossAttentions {
            language_to_vision: l[0].clone(),
            vision_to_language: v[0].clone(),
            language_self: l.get(1).cloned(),
            vision_self: v.get(1).cloned(),
        };
        let cross = added_l.chunks_exact(each).zip(added_v.chunks_exact(each)).map(layer).collect();
        Self { language: language.maps.clone(), vision: vision.maps.clone(), cross }
    }
}

/// One attention map.
#[derive(Debug, Clone)]
pub struct AttentionMap {
    /// `[batch, heads, queries, keys]`, before dropout: each row sums to 1. The values of padding rows are meaningless.
    pub probabilities: Tensor,
    /// With [`Capture::Probes`]: `gradients.get(&probe)` is the gradient with respect to the probabilities.
    pub probe: Option<Var>,
}

impl AttentionMap {
    /// The map, and what the pass uses instead of it.
    fn new(probabilities: Tensor, capture: Capture) -> Result<(Self, Tensor)> {
        if capture != Capture::Probes {
            return Ok((Self { probabilities: probabilities.clone(), probe: None }, probabilities));
        }
        // Adding a zero variable changes no value; its gradient is the map's.
        let probe = Var::zeros(probabilities.shape(), probabilities.dtype(), probabilities.device())?;
        let used = (&probabilities + probe.as_tensor())?;
        Ok((Self { probabilities, probe: Some(probe) }, used))
    }
}

/// Which attention maps a forward pass returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Capture {
    /// None: the fused kernels need not form them.
    #[default]
    None,
    /// All of them.
    Maps,
    /// All of them, each with a probe through which its gradient can be read.
    Probes,
}

/// One pass through the model: what is the same for all of its layers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pass<'a> {
    /// Which attention maps to return.
    pub capture: Capture,
    /// Draws the dropout masks; `None` in evaluation.
    pub rng: Option<&'a DropoutRng>,
    /// Whether only [`LxmertOutput::pooled`] is wanted. The last cross-modality layer then computes only the first word
    /// of the language stream and nothing of the vision stream: `language` is `[batch, 1, hidden]`, `vision` `[batch,
    /// 0, hidden]`. No effect if maps are captured.
    pub pooled_only: bool,
    /// Precision to which the encoder layers' products (projections and feed-forward, forward and backward) round their
    /// operands; embeddings, attention itself, norms, pooler and heads are f32. The weights themselves are not changed.
    pub precision: Precision,
    /// The encoder layers' prepacked weights, kept between passes; for weights that do not change.
    pub prepacked: Option<&'a PrepackedWeights>,
}

impl<'a> Pass<'a> {
    /// No dropout, no maps.
    pub fn eval() -> Self {
        Self::default()
    }

    /// With dropout.
    pub fn train(rng: &'a DropoutRng) -> Self {
        Self { rng: Some(rng), ..Self::default() }
    }

    /// No dropout, with maps or probes.
    pub fn capture(capture: Capture) -> Self {
        Self { capture, ..Self::default() }
    }

    /// The same pass, for only its pooled output.
    #[must_use]
    pub fn pooled_only(self) -> Self {
        Self { pooled_only: true, ..self }
    }

    /// The same pass with another precision.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The same pass with prepacked weights.
    #[must_use]
    pub fn with_prepacked(self, prepacked: &'a PrepackedWeights) -> Self {
        Self { prepacked: Some(prepacked), ..self }
    }

    /// The settings for the sub-layers.
    fn run(&self) -> Run<'a> {
        Run { rng: self.rng, precision: self.precision, prepacked: self.prepacked }
    }
}

/// One modality on its way through the model: the real rows of all sentences (or images), and their positions.
#[derive(Debug, Clone)]
pub struct Stream {
    /// `[rows, hidden]`, ragged.
    pub states: Tensor,
    /// The positions of the rows in the padded batch.
    pub rows: Ragged,
    /// The attention maps of every layer so far, if the pass captures them.
    pub maps: Vec<AttentionMap>,
}

impl Stream {
    fn new(states: Tensor, rows: Ragged) -> Self {
        Self { states, rows, maps: Vec::new() }
    }

    /// The same stream after one more sub-layer.
    fn with(&self, states: Tensor) -> Self {
        Self { states, rows: self.rows.clone(), maps: self.maps.clone() }
    }

    /// Only the first row of each sentence (or image).
    fn first(&self) -> Result<Self> {
        let states = self.rows.pick_first(&self.states)?;
        Ok(Self { states, rows: self.rows.first_rows(), maps: self.maps.clone() })
    }

    /// `[batch, length, hidden]`; padding rows are 0.
    ///
    /// # Errors
    /// Returns an error if the device is out of memory.
    pub fn padded(&self) -> Result<Tensor> {
        self.rows.scatter(&self.states)
    }

    /// Item `index` of the batch, repeated `times` times, without its maps: one image beside many sentences.
    ///
    /// # Errors
    /// Returns an error if there is no such item.
    pub fn repeat(&self, index: usize, times: usize) -> Result<Self> {
        let rows = self.rows.repeat(index, times)?;
        let (first, hidden) = (self.rows.starts()[index], self.states.dim(1)?);
        let count = self.rows.starts()[index + 1] - first;
        let items = self.states.narrow(0, first, count)?.unsqueeze(0)?.expand((times, count, hidden))?;
        Ok(Self::new(items.flatten(0, 1)?, rows))
    }
}
