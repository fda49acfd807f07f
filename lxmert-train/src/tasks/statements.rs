//! Statements about two images, true or false: NLVR2 (Suhr et al. 2019; Tan & Bansal 2019, §4).
//!
//! The same trunk reads the sentence with each image; a separate head classifies the two concatenated pooled outputs as
//! "false" or "true", with cross entropy as loss. The head starts at random, whatever the checkpoint.

use super::examples::ExampleTask;
use super::losses::cross_entropy;
use crate::Result;
use crate::data::batches::Batch;
use crate::data::per_example;
use crate::data::predictions::{statement_accuracy, write_judgements};
use crate::data::statements::Statement;
use crate::job::Job;
use crate::log::card::Description;
use crate::measures::Measures;
use crate::recipe::{NamedRecipe, Recipe, Suits};
use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use lxmert_core::checkpoint::take_weights;
use lxmert_core::config::LxmertConfig;
use lxmert_core::model::{LxmertInputs, PairModel, Pass};
use lxmert_core::pretrained::Pretrained;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Predicting whether statements are true.
pub struct Statements;

impl ExampleTask<2> for Statements {
    const NAME: &'static str = "statements";
    const ABOUT: &'static str = "Is a statement about two images true? NLVR2. Measured by accuracy and consistency";
    const STEM: &'static str = "statements";
    const RECIPES: &'static [NamedRecipe] = &[NamedRecipe {
        name: "paper-nlvr2",
        about: "The original's NLVR2: 4 epochs of batches of 32 at 5e-5",
        recipe: || Self::recipe(Suits::Benchmark),
    }];

    // transformers has no class with a head over two images. This class opens the trunk, finds all its keys, and
    // reports the head's six, `answer_head.logit_fc.{0,2,3}.{weight,bias}`, as unexpected.
    const ARCHITECTURE: &'static str = "LxmertModel";

    type Example = Statement;
    type Model = PairModel;
    /// Whether the statement is true.
    type Judgement = bool;

    fn recipe(suits: Suits) -> Recipe {
        Recipe::fine_tuning_for(suits).for_task(Self::NAME, "all/accuracy")
    }

    fn of_job(_: &Job) -> Result<Self> {
        Ok(Self)
    }

    fn of_checkpoint(_: &Pretrained) -> Result<Self> {
        Ok(Self)
    }

    fn model(config: &LxmertConfig, vb: VarBuilder) -> candle_core::Result<PairModel> {
        PairModel::new(config, vb)
    }

    fn open(checkpoint: &Pretrained, device: &Device) -> Result<PairModel> {
        Ok(checkpoint.judging(device)?)
    }

    fn starting_weights(
        &self,
        checkpoint: &Pretrained,
        config: &LxmertConfig,
        allow_missing: &[String],
    ) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = checkpoint.tensors().clone();
        let expected = PairModel::expected(config)?;
        // Use the checkpoint's head if it is over two images; skip a head of another task, which has another shape.
        let shape_of = |name: &str| expected.iter().find(|(known, _)| known == name).map(|(_, shape)| shape.as_slice());
        let same_head =
            (tensors.iter()).all(|(name, t)| !name.starts_with("answer_head.") || shape_of(name) == Some(t.dims()));
        if !same_head {
            tensors.retain(|name, _| !name.starts_with("answer_head."));
        }
        let fresh = [vec!["answer_head.*".into()], allow_missing.to_vec()].concat();
        Ok(take_weights(&checkpoint.place.weights, tensors, &expected, &fresh)?)
    }

    fn logits(model: &PairModel, inputs: &LxmertInputs, pass: &Pass) -> candle_core::Result<Tensor> {
        Ok(model.forward(inputs, pass)?.logits) // [statements, 2]
    }

    fn losses(&self, logits: &Tensor, statements: &[&Statement], _: &Batch) -> Result<Tensor> {
        // A statement without a label counts as false but is not measured.
        let labels: Vec<u32> = statements.iter().map(|statement| u32::from(statement.label == Some(true))).collect();
        Ok(cross_entropy(logits, &labels)?)
    }

    fn judge(&self, classes: &[f32], _: &[&Statement], _: &Batch) -> Vec<bool> {
        classes.iter().map(|class| *class == 1.0).collect()
    }

    fn is_right(&self, statement: &Statement, &judged: &bool) -> bool {
        statement.label == Some(judged)
    }

    fn measures(&self, statements: &[Statement], judged: &[(bool, f32)]) -> Measures {
        let found = statement_accuracy(statements, judged.iter().map(|(judged, _)| *judged));
        let mut measures = Measures::default();
        measures.set("all", "statements", statements.len() as f64);
        if found.accuracy.count > 0 {
            let labelled = statements.iter().zip(judged).filter(|(statement, _)| statement.label.is_some());
            let loss = labelled.map(|(_, (_, loss))| f64::from(*loss)).sum::<f64>() / found.accuracy.count as f64;
            let (accuracy, consistency) = (found.accuracy.mean(), found.consistency.mean());
            measures.extend("all", [("accuracy", accuracy), ("consistency", consistency), ("loss", loss)]);
        }
        measures
    }

    fn record(&self, statement: &Statement, judged: &bool, logits: &[f32]) -> Vec<(&'static str, Value)> {
        vec![
            ("identifier", json!(statement.identifier)),
            ("label", json!(statement.label)),
            ("prediction", json!(judged)),
            ("probability", json!(per_example::softmax(logits).get(1))),
        ]
    }

    /// Writes `nlvr2.csv` for NLVR2's evaluation.
    fn write_predictions(&self, folder: &Path, statements: &[Statement], judged: &[(bool, f32)]) -> Result<()> {
        let identifiers = statements.iter().map(|statement| statement.identifier.as_str());
        write_judgements(&folder.join("nlvr2.csv"), identifiers.zip(judged.iter().map(|(judged, _)| *judged)))
    }

    fn description(&self, data: String) -> Description {
        Description {
            title: "statements about two images".into(),
            pipeline_tag: "visual-question-answering",
            does: "Says whether a statement about two images is true, from their regions and the statement's words. \
                   transformers' `LxmertModel` opens the trunk and reports `answer_head.logit_fc.*`, the head over two \
                   images for which it has no class, as unexpected."
                .into(),
            data,
            losses: "Cross entropy of false and true.".into(),
        }
    }
}
