//! The published heads: pre-training (`cls`, `obj_predict_head`, `answer_head`) and answers.

use super::LxmertOutput;
use super::layers::{LayerNorm, Linear};
use crate::config::LxmertConfig;
use crate::ops;
use candle_core::{Result, Tensor};
use candle_nn::{Activation, VarBuilder};

/// Dense, activation, layer norm (`…transform`).
#[derive(Debug, Clone)]
struct Transform {
    dense: Linear,
    activation: Activation,
    layer_norm: LayerNorm,
}

impl Transform {
    fn new(config: &LxmertConfig, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            dense: Linear::new(config.hidden_size, config.hidden_size, vb.pp("dense"))?,
            activation: config.hidden_act,
            layer_norm: LayerNorm::new(config.hidden_size, config.layer_norm_eps, vb.pp("LayerNorm"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.layer_norm.forward(&ops::activate(self.activation, &self.dense.forward(x)?)?)
    }
}

/// Answers from the pooled output (`answer_head.logit_fc`): linear, GELU, layer norm, linear.
#[derive(Debug, Clone)]
pub struct AnswerHead {
    first: Linear,
    layer_norm: LayerNorm,
    last: Linear,
}

impl AnswerHead {
    /// A head with `answers` logits over the concatenated pooled outputs of `images` images, with the weights under
    /// `vb` (`logit_fc.0`, `.2`, `.3`).
    ///
    /// # Errors
    /// Returns an error if a weight is missing or misshapen.
    pub fn new(config: &LxmertConfig, images: usize, answers: usize, vb: VarBuilder) -> Result<Self> {
        let (hidden, vb) = (config.hidden_size, vb.pp("logit_fc"));
        Ok(Self {
            first: Linear::new(images * hidden, 2 * hidden, vb.pp(0))?,
            layer_norm: LayerNorm::new(2 * hidden, config.layer_norm_eps, vb.pp(2))?,
            last: Linear::new(2 * hidden, answers, vb.pp(3))?,
        })
    }

    /// `pooled`: `[batch, images·hidden]`; returns `[batch, answers]`.
    ///
    /// # Errors
    /// Returns an error if the shapes do not fit.
    pub fn forward(&self, pooled: &Tensor) -> Result<Tensor> {
        let x = ops::activate(Activation::Gelu, &self.first.forward(pooled)?)?;
        self.last.forward(&self.layer_norm.forward(&x)?)
    }
}

/// Predicts words from the language stream (`cls.predictions`), with the word embeddings as decoder.
#[derive(Debug, Clone)]
pub struct WordHead {
    transform: Transform,
    decoder: Linear,
}

impl WordHead {
    /// The weights are at the root of the checkpoint; the decoder is `word_embeddings`, `[vocab_size, hidden]`.
    ///
    /// # Errors
    /// Returns an error if a weight is missing or misshapen.
    pub fn new(config: &LxmertConfig, word_embeddings: &Tensor, vb: VarBuilder) -> Result<Self> {
        let vb = vb.pp("cls.predictions");
        Ok(Self {
            transform: Transform::new(config, vb.pp("transform"))?,
            decoder: Linear { weight: word_embeddings.clone(), bias: vb.get(config.vocab_size, "bias")? },
        })
    }

    /// `language`: `[…, hidden]`; returns `[…, vocab_size]`.
    ///
    /// # Errors
    /// Returns an error if the shapes do not fit.
    pub fn forward(&self, language: &Tensor) -> Result<Tensor> {
        self.decoder.forward(&self.transform.forward(language)?)
    }
}

/// Predictions of the masked-object tasks for a region (`obj_predict_head`): a shared transform, then one linear layer
/// per task.
#[derive(Debug, Clone)]
pub struct RegionHead {
    transform: Transform,
    objects: Option<Linear>,
    attributes: Option<Linear>,
    features: Linear,
}

/// The output of [`RegionHead`].
#[derive(Debug, Clone)]
pub struct RegionLogits {
    /// `[…, num_object_labels]`; `None` if the model has no object classes.
    pub objects: Option<Tensor>,
    /// `[…, num_attr_labels]`; `None` if the model has no attributes.
    pub attributes: Option<Tensor>,
    /// `[…, visual_feat_dim]`.
    pub features: Tensor,
}

impl RegionHead {
    fn new(config: &LxmertConfig, vb: VarBuilder) -> Result<Self> {
        let decoder = |name: &str, width: usize| Linear::new(config.hidden_size, width, vb.pp("decoder_dict").pp(name));
        let classes = |name: &str, count: usize| (count > 0).then(|| decoder(name, count)).transpose();
        Ok(Self {
            transform: Transform::new(config, vb.pp("transform"))?,
            objects: classes("obj", config.num_object_labels)?,
            attributes: classes("attr", config.num_attr_labels)?,
            features: decoder("feat", config.visual_feat_dim)?,
        })
    }

    /// `vision`: `[…, hidden]`.
    ///
    /// # Errors
    /// Returns an error if the shapes do not fit.
    pub fn forward(&self, vision: &Tensor) -> Result<RegionLogits> {
        let regions = self.transform.forward(vision)?;
        let classes = |head: &Option<Linear>| head.as_ref().map(|head| head.forward(&regions)).transpose();
        Ok(RegionLogits {
            objects: classes(&self.objects)?,
            attributes: classes(&self.attributes)?,
            features: self.features.forward(&regions)?,
        })
    }
}

/// All heads of pre-training (Tan & Bansal 2019, §3). A head with 0 classes (`num_object_labels`, `num_attr_labels`,
/// `num_qa_labels`) has no weights and no output.
#[derive(Debug, Clone)]
pub struct PretrainingHeads {
    /// Masked words.
    pub words: WordHead,
    matching: Linear,
    /// Masked objects.
    pub regions: RegionHead,
    /// Image question answering.
    pub answers: Option<AnswerHead>,
}

/// The logits of every pre-training task.
#[derive(Debug, Clone)]
pub struct PretrainingLogits {
    /// `[batch, words, vocab_size]`.
    pub words: Tensor,
    /// `[batch, 2]`; index 1 means "they match".
    pub matching: Tensor,
    /// `[batch, regions, …]`.
    pub regions: RegionLogits,
    /// `[batch, num_qa_labels]`.
    pub answers: Option<Tensor>,
}

impl PretrainingHeads {
    /// The weights are at the root of the checkpoint; the word decoder is `word_embeddings` itself.
    ///
    /// # Errors
    /// Returns an error if a weight is missing or misshapen.
    pub fn new(config: &LxmertConfig, word_embeddings: &Tensor, vb: VarBuilder) -> Result<Self> {
        let answers = config.num_qa_labels;
        Ok(Self {
            words: WordHead::new(config, word_embeddings, vb.clone())?,
            matching: Linear::new(config.hidden_size, 2, vb.pp("cls.seq_relationship"))?,
            regions: RegionHead::new(config, vb.pp("obj_predict_head"))?,
            answers: (answers > 0).then(|| AnswerHead::new(config, 1, answers, vb.pp("answer_head"))).transpose()?,
        })
    }

    /// `pooled`: `[batch, hidden]`; returns `[batch, 2]`, where index 1 means "they match".
    ///
    /// # Errors
    /// Returns an error if the shapes do not fit.
    pub fn matching(&self, pooled: &Tensor) -> Result<Tensor> {
        self.matching.forward(pooled)
    }

    /// The logits for every word, region and pair, from a trunk's output.
    ///
    /// # Errors
    /// Returns an error if the shapes do not fit.
    pub fn forward(&self, output: &LxmertOutput) -> Result<PretrainingLogits> {
        Ok(PretrainingLogits {
            words: self.words.forward(&output.language)?,
            matching: self.matching(&output.pooled)?,
            regions: self.regions.forward(&output.vision)?,
            answers: self.answers.as_ref().map(|head| head.forward(&output.pooled)).transpose()?,
        })
    }
}
