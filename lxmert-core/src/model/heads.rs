//! The published heads: pre-training (`cls`, `obj_predict_head`, `answer_head`) and answers.

use super::LxmertOutput;
use super::layers::{LayerNorm, Linear, activate};
use crate::config::LxmertConfig;
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
        self.layer_norm.forward(&activate(self.activation, &self.dense.forward(x)?)?)
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
    /// `answers` logits, with the weights under `vb` (`logit_fc.0`, `.2`, `.3`).
    ///
    /// # Errors
    /// When a weight is missing or misshapen.
    pub fn new(config: &LxmertConfig, answers: usize, vb: VarBuilder) -> Result<Self> {
        Self::over(config, 1, answers, vb)
    }

    /// As [`AnswerHead::new`], over the pooled outputs of `images` images laid side by side: `[batch, images·hidden]`.
    ///
    /// # Errors
    /// When a weight is missing or misshapen.
    pub fn over(config: &LxmertConfig, images: usize, answers: usize, vb: VarBuilder) -> Result<Self> {
        let (hidden, vb) = (config.hidden_size, vb.pp("logit_fc"));
        Ok(Self {
            first: Linear::new(images * hidden, 2 * hidden, vb.pp(0))?,
            layer_norm: LayerNorm::new(2 * hidden, config.layer_norm_eps, vb.pp(2))?,
            last: Linear::new(2 * hidden, answers, vb.pp(3))?,
        })
    }

    /// `pooled`: `[batch, hidden]`; gives `[batch, answers]`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, pooled: &Tensor) -> Result<Tensor> {
        let x = activate(Activation::Gelu, &self.first.forward(pooled)?)?;
        self.last.forward(&self.layer_norm.forward(&x)?)
    }
}

/// Words from the language stream (`cls.predictions`), through the word embeddings themselves.
#[derive(Debug, Clone)]
pub struct WordHead {
    transform: Transform,
    decoder: Linear,
}

impl WordHead {
    /// Weights at the root of the checkpoint; the decoder is `word_embeddings`, `[vocab_size, hidden]`.
    ///
    /// # Errors
    /// When a weight is missing or misshapen.
    pub fn new(config: &LxmertConfig, word_embeddings: &Tensor, vb: VarBuilder) -> Result<Self> {
        let vb = vb.pp("cls.predictions");
        Ok(Self {
            transform: Transform::new(config, vb.pp("transform"))?,
            decoder: Linear::from_tensors(word_embeddings.clone(), vb.get(config.vocab_size, "bias")?),
        })
    }

    /// `language`: `[…, hidden]`; gives `[…, vocab_size]`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, language: &Tensor) -> Result<Tensor> {
        self.decoder.forward(&self.transform.forward(language)?)
    }
}

/// Every head of pre-training (Tan & Bansal 2019, §3).
#[derive(Debug, Clone)]
pub struct PretrainingHeads {
    words: WordHead,
    matching: Linear,
    object_transform: Transform,
    objects: Linear,
    attributes: Linear,
    features: Linear,
    answers: AnswerHead,
}

/// The logits of every pre-training task.
#[derive(Debug, Clone)]
pub struct PretrainingLogits {
    /// `[batch, words, vocab_size]`.
    pub words: Tensor,
    /// `[batch, 2]`; index 1 is "they match".
    pub matching: Tensor,
    /// `[batch, regions, num_object_labels]`.
    pub objects: Tensor,
    /// `[batch, regions, num_attr_labels]`.
    pub attributes: Tensor,
    /// `[batch, regions, visual_feat_dim]`.
    pub features: Tensor,
    /// `[batch, num_qa_labels]`.
    pub answers: Tensor,
}

impl PretrainingHeads {
    /// Weights at the root of the checkpoint; the word decoder is `word_embeddings` itself.
    ///
    /// # Errors
    /// When a weight is missing or misshapen.
    pub fn new(config: &LxmertConfig, word_embeddings: &Tensor, vb: VarBuilder) -> Result<Self> {
        let objects = vb.pp("obj_predict_head");
        let decoder =
            |name: &str, width: usize| Linear::new(config.hidden_size, width, objects.pp("decoder_dict").pp(name));
        Ok(Self {
            words: WordHead::new(config, word_embeddings, vb.clone())?,
            matching: Linear::new(config.hidden_size, 2, vb.pp("cls.seq_relationship"))?,
            object_transform: Transform::new(config, objects.pp("transform"))?,
            objects: decoder("obj", config.num_object_labels)?,
            attributes: decoder("attr", config.num_attr_labels)?,
            features: decoder("feat", config.visual_feat_dim)?,
            answers: AnswerHead::new(config, config.num_qa_labels, vb.pp("answer_head"))?,
        })
    }

    /// The logits over a trunk's output.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, output: &LxmertOutput) -> Result<PretrainingLogits> {
        let regions = self.object_transform.forward(&output.vision)?;
        Ok(PretrainingLogits {
            words: self.words.forward(&output.language)?,
            matching: self.matching.forward(&output.pooled)?,
            objects: self.objects.forward(&regions)?,
            attributes: self.attributes.forward(&regions)?,
            features: self.features.forward(&regions)?,
            answers: self.answers.forward(&output.pooled)?,
        })
    }
}
