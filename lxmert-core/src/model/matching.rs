//! Image-text matching: does this sentence describe this image?

use super::layers::Linear;
use super::student::StudentModel;
use super::{LxmertInputs, LxmertModel, LxmertOutput, Pass, Stream};
use crate::config::{CrossLayer, LxmertConfig};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

/// A trunk with a matching head.
#[derive(Debug, Clone)]
pub enum MatchingModel {
    /// LXMERT with its published matching head (`cls.seq_relationship`): two logits, of which the
    /// difference is the match logit.
    Lxmert {
        /// The trunk (`lxmert.…`).
        trunk: Box<LxmertModel>,
        /// `[2, hidden]`; row 1 is "they match".
        head: MatchingHead,
    },
    /// The student project's variant, with its own head.
    Student(Box<StudentModel>),
}

/// `cls.seq_relationship`.
#[derive(Debug, Clone)]
pub struct MatchingHead(Linear);

impl MatchingHead {
    /// `pooled`: `[batch, hidden]`; gives the match logit, `[batch]`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, pooled: &Tensor) -> Result<Tensor> {
        let both = self.0.forward(pooled)?;
        both.narrow(1, 1, 1)?.sub(&both.narrow(1, 0, 1)?)?.squeeze(1)
    }
}

/// What a matching pass gives.
#[derive(Debug, Clone)]
pub struct MatchingOutput {
    /// `[batch]`; its sigmoid is the probability that the pair matches. The cross entropy over the
    /// published head's two logits equals the binary cross entropy of this one.
    pub logits: Tensor,
    /// The trunk's output.
    pub trunk: LxmertOutput,
}

impl MatchingModel {
    /// The model that `config.cross_layer` names, with the weights at the root of `vb`.
    ///
    /// # Errors
    /// When a weight is missing or misshapen.
    pub fn new(config: &LxmertConfig, vb: VarBuilder) -> Result<Self> {
        match config.cross_layer {
            CrossLayer::Lxmert => Ok(Self::Lxmert {
                trunk: Box::new(LxmertModel::new(config, vb.pp("lxmert"))?),
                head: MatchingHead(Linear::new(config.hidden_size, 2, vb.pp("cls.seq_relationship"))?),
            }),
            CrossLayer::Student => Ok(Self::Student(Box::new(StudentModel::new(config, vb)?))),
        }
    }

    /// The word embedding table, `[vocab_size, hidden]`.
    pub fn word_embeddings(&self) -> &Tensor {
        match self {
            Self::Lxmert { trunk, .. } => trunk.word_embeddings(),
            Self::Student(model) => model.word_embeddings(),
        }
    }

    /// Names and shapes of every weight [`MatchingModel::new`] reads, sorted by name.
    ///
    /// # Errors
    /// When the configuration does not fit together.
    pub fn expected(config: &LxmertConfig) -> Result<Vec<(String, Vec<usize>)>> {
        super::init::expected(|vb| Self::new(config, vb).map(drop))
    }

    /// The whole pass.
    ///
    /// # Errors
    /// When the inputs' shapes do not fit the model or each other.
    pub fn forward(&self, inputs: &LxmertInputs, pass: &Pass) -> Result<MatchingOutput> {
        let language = self.encode_language(&inputs.input_ids, inputs.attention_mask.as_ref(), pass)?;
        let mask = inputs.visual_attention_mask.as_ref();
        let vision = self.encode_vision(&inputs.visual_feats, &inputs.visual_boxes, mask, pass)?;
        self.match_encoded(&language, &vision, pass)
    }

    /// The language encoder alone; see [`LxmertModel::encode_language`].
    ///
    /// # Errors
    /// When a sentence is longer than the model's positions.
    pub fn encode_language(&self, ids: &Tensor, mask: Option<&Tensor>, pass: &Pass) -> Result<Stream> {
        match self {
            Self::Lxmert { trunk, .. } => trunk.encode_language(ids, mask, pass),
            Self::Student(model) => model.encode_language(ids, mask, pass),
        }
    }

    /// The vision encoder alone; see [`LxmertModel::encode_vision`].
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn encode_vision(
        &self,
        features: &Tensor,
        boxes: &Tensor,
        mask: Option<&Tensor>,
        pass: &Pass,
    ) -> Result<Stream> {
        match self {
            Self::Lxmert { trunk, .. } => trunk.encode_vision(features, boxes, mask, pass),
            Self::Student(model) => model.encode_vision(features, boxes, mask, pass),
        }
    }

    /// Both encoded streams through the cross-modality encoder and the head: what retrieval runs
    /// once per pair, after encoding each image and each sentence once.
    ///
    /// # Errors
    /// When the batches differ.
    pub fn match_encoded(&self, language: &Stream, vision: &Stream, pass: &Pass) -> Result<MatchingOutput> {
        match self {
            Self::Lxmert { trunk, head } => {
                let trunk = trunk.cross(language, vision, pass)?;
                Ok(MatchingOutput { logits: head.forward(&trunk.pooled)?, trunk })
            }
            Self::Student(model) => model.match_encoded(language, vision, pass),
        }
    }
}
