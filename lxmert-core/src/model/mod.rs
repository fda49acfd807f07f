//! LXMERT (Tan & Bansal 2019): two single-modality encoders and a cross-modality encoder.
//!
//! The structs mirror the hub's checkpoint key by key (`lxmert.encoder.x_layers.0.…`), so code and
//! weights read alike. [`LxmertModel`] is the trunk, [`MatchingModel`] the trunk with an image-text
//! matching head, [`AnswerModel`] and [`PairModel`] the trunk for questions and for statements about two
//! images, [`ReferringModel`] the trunk for referring expressions, [`PretrainingHeads`] and [`AnswerHead`] the published heads, [`student`] the student project's
//! variant.

mod answering;
mod attention;
mod embeddings;
mod encoder;
mod heads;
pub mod init;
mod layers;
mod matching;
mod referring;
pub mod student;

pub use answering::{AnswerModel, AnswerOutput, PairModel};
pub use encoder::{CrossLayer, Encoded, LxmertModel};
pub use heads::{
    AnswerHead, PretrainingHeads, PretrainingLogits, PretrainingModel, RegionHead, RegionLogits, WordHead,
};
pub use matching::{MatchingModel, MatchingOutput};
pub use referring::ReferringModel;

use crate::ops::{DropoutRng, PackedWeights, Precision};
use candle_core::{Tensor, Var};

/// One batch of images and sentences.
#[derive(Debug, Clone)]
pub struct LxmertInputs {
    /// `[batch, words]`, u32.
    pub input_ids: Tensor,
    /// `[batch, words]`, 1 for words and 0 for padding; none when nothing is padded.
    pub attention_mask: Option<Tensor>,
    /// `[batch, regions, visual_feat_dim]`.
    pub visual_feats: Tensor,
    /// `[batch, regions, 4]`, x0 y0 x1 y1 in 0..1 (not x y width height, as the hub's docs say).
    pub visual_boxes: Tensor,
    /// `[batch, regions]`, 1 for regions and 0 for padding; none when nothing is padded.
    pub visual_attention_mask: Option<Tensor>,
}

/// What a forward pass gives.
#[derive(Debug, Clone)]
pub struct LxmertOutput {
    /// `[batch, words, hidden]`; rows of padding hold nothing of use.
    pub language: Tensor,
    /// `[batch, regions, hidden]`; likewise.
    pub vision: Tensor,
    /// `[batch, hidden]`: tanh of a linear map of `[CLS]`.
    pub pooled: Tensor,
    /// Every attention map, when [`Forward::capture`] asks for them.
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
    /// Words over words, after the cross attention; the student's layer has none.
    pub language_self: Option<AttentionMap>,
    /// Regions over regions, after the cross attention; the student's layer has none.
    pub vision_self: Option<AttentionMap>,
}

/// One attention map.
#[derive(Debug, Clone)]
pub struct AttentionMap {
    /// `[batch, heads, queries, keys]`, before dropout: each row sums to 1.
    pub probabilities: Tensor,
    /// With [`Capture::Probes`]: `gradients.get(&probe)` is the gradient by the probabilities.
    pub probe: Option<Var>,
}

/// Which attention maps a forward pass returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Capture {
    /// None: the fused kernels are free to never form them.
    #[default]
    None,
    /// All of them.
    Maps,
    /// All of them, each with a probe through which its gradient can be read.
    Probes,
}

/// How to run a forward pass.
#[derive(Debug, Clone, Copy, Default)]
pub struct Forward<'a> {
    /// Which attention maps to return.
    pub capture: Capture,
    /// Draws the dropout masks; none in evaluation.
    pub rng: Option<&'a DropoutRng>,
    /// Whether only [`LxmertOutput::pooled`] is wanted. The last cross-modality layer then computes no more of the language
    /// stream than its first word, and nothing of the vision stream: `language` is `[batch, 1, hidden]`, `vision`
    /// `[batch, 0, hidden]`. Without effect where the fast kernels do not apply.
    pub pooled_only: bool,
    /// What the products of the encoders' layers (projections and feed-forward, forward and backward) round their operands to;
    /// embeddings, attention proper, norms, pooler and heads are f32. The weights themselves stay as they are.
    pub precision: Precision,
    /// Where the encoders' layers keep their weights packed from pass to pass, for weights that stay as they are.
    pub packed: Option<&'a PackedWeights>,
}

impl<'a> Forward<'a> {
    /// No dropout, no maps.
    pub fn eval() -> Self {
        Self::default()
    }

    /// The same pass for its pooled output alone.
    #[must_use]
    pub fn pooled_only(self) -> Self {
        Self { pooled_only: true, ..self }
    }

    /// The same pass with another precision.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The same pass with weights packed once for many.
    #[must_use]
    pub fn with_packed(self, packed: &'a PackedWeights) -> Self {
        Self { packed: Some(packed), ..self }
    }

    /// With dropout.
    pub fn train(rng: &'a DropoutRng) -> Self {
        Self { rng: Some(rng), ..Self::default() }
    }

    /// No dropout, with maps or probes.
    pub fn capture(capture: Capture) -> Self {
        Self { capture, ..Self::default() }
    }
}
