//! Referring expressions: which region does the expression name? RefCOCO, RefCOCO+, RefCOCOg (Bugliarello et al. 2021;
//! their code is e-bug/volta).
//!
//! Every region is an independent yes or no. Its target is the IoU of its box with the named object's. The loss of an
//! expression is the binary cross entropy of each region's logit with its target: the mean over the regions times their
//! number, that is, the sum over the image's real regions. The region with the largest logit is right if its IoU is
//! above 0.5. The IoU is the original's, in pixels with the last pixel inside the box.

use super::examples::ExampleTask;
use super::losses::binary_cross_entropy;
use crate::Result;
use crate::data::batches::Batch;
use crate::data::refcoco::Expression;
use crate::job::Job;
use crate::log::card::Description;
use crate::measures::Measures;
use crate::ranks::Numbers;
use crate::recipe::{NamedRecipe, Optimiser, Recipe, Suits};
use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use lxmert_core::boxes::{self, BoxXyxy};
use lxmert_core::config::LxmertConfig;
use lxmert_core::files::atomic_write;
use lxmert_core::model::{LxmertInputs, Pass, ReferringModel};
use lxmert_core::pretrained::Pretrained;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

/// The IoU above which a region is right.
const RIGHT: f32 = 0.5;

/// The head's weights.
const HEAD: &str = "referring_head.";

/// Finding the region that an expression names.
pub struct Referring;

impl ExampleTask<1> for Referring {
    const NAME: &'static str = "referring";
    const ABOUT: &'static str =
        "Which region does the expression name? RefCOCO, RefCOCO+, RefCOCOg. Measured by accuracy at an IoU above 0.5";
    const STEM: &'static str = "referring";
    const RECIPES: &'static [NamedRecipe] = &[NamedRecipe {
        name: "paper-refcoco",
        about: "volta's RefCOCO+: 20 epochs of batches of 256 at 1e-4",
        recipe: || Self::recipe(Suits::Benchmark),
    }];

    // transformers has no class with a head over regions' final states. This class opens the trunk and reports the
    // head's two weights, `referring_head.{weight,bias}`, as unexpected.
    const ARCHITECTURE: &'static str = "LxmertModel";

    type Example = Expression;
    type Model = ReferringModel;
    type Judgement = Choice;

    fn recipe(suits: Suits) -> Recipe {
        let recipe = Recipe::fine_tuning_for(suits).for_task(Self::NAME, "val/accuracy");
        match suits {
            // volta's config_tasks/ctrl_trainval_tasks.yml.
            Suits::Benchmark => Recipe {
                epochs: 20,
                batch_size: 256,
                learning_rate: 1e-4,
                max_length: 20,
                regions: Some(36),
                optimiser: Optimiser::AdamW,
                decay_all: false,
                clip: 1.0,
                ..recipe
            },
            // Every region has a target, so random weights learn at matching's own rate and in few epochs.
            Suits::Scenes => Recipe { learning_rate: 1e-3, epochs: 4, ..recipe },
            Suits::Photos => recipe,
        }
    }

    fn of_job(_: &Job) -> Result<Self> {
        Ok(Self)
    }

    fn of_checkpoint(_: &Pretrained) -> Result<Self> {
        Ok(Self)
    }

    fn model(config: &LxmertConfig, vb: VarBuilder) -> candle_core::Result<ReferringModel> {
        ReferringModel::new(config, vb)
    }

    fn open(checkpoint: &Pretrained, device: &Device) -> Result<ReferringModel> {
        let lacking = "no head over regions; use a checkpoint of --task referring";
        let model = checkpoint.model(device, ReferringModel::new);
        Ok(model.map_err(|error| error.for_lacking_head(HEAD, lacking))?)
    }

    fn starting_weights(
        &self,
        checkpoint: &Pretrained,
        config: &LxmertConfig,
        allow_missing: &[String],
    ) -> Result<BTreeMap<String, Tensor>> {
        let fresh = [vec![format!("{HEAD}*")], allow_missing.to_vec()].concat();
        Ok(checkpoint.weights(&ReferringModel::expected(config)?, &fresh)?)
    }

    fn logits(model: &ReferringModel, inputs: &LxmertInputs, pass: &Pass) -> candle_core::Result<Tensor> {
        model.forward(inputs, pass) // [batch, regions]
    }

    fn losses(&self, logits: &Tensor, expressions: &[&Expression], inputs: &Batch) -> Result<Tensor> {
        let targets: Vec<f32> =
            (0..).zip(expressions).flat_map(|(row, expression)| overlaps(expression, inputs, row)).collect();
        losses(logits, &targets, &inputs.region_mask)
    }

    fn verdicts(logits: &Tensor) -> candle_core::Result<Tensor> {
        Ok(logits.clone())
    }

    fn judge(&self, logits: &[f32], expressions: &[&Expression], inputs: &Batch) -> Vec<Choice> {
        let rows = (0..).zip(expressions).zip(logits.chunks_exact(inputs.regions.max(1)));
        rows.map(|((row, expression), logits)| Choice::of(expression, inputs, row, logits)).collect()
    }

    fn is_right(&self, _: &Expression, choice: &Choice) -> bool {
        choice.iou > RIGHT
    }

    fn measures(&self, expressions: &[Expression], judged: &[(Choice, f32)]) -> Measures {
        measures(expressions.iter().zip(judged).map(|(expression, (choice, loss))| (expression, choice, *loss)))
    }

    fn record(&self, expression: &Expression, choice: &Choice, _: &[f32]) -> Vec<(&'static str, Value)> {
        vec![
            ("ref_id", json!(expression.ref_id)),
            ("sent_id", json!(expression.sent_id)),
            ("split", json!(expression.split)),
            ("label_box_xyxy_px", json!(expression.box_xyxy_px)),
            ("box_xyxy_px", json!(choice.box_xyxy_px)),
            ("iou", json!(choice.iou)),
            ("probability", json!(choice.probability)),
        ]
    }

    /// `refcoco.json`: for each expression the chosen box (x y width height in pixels, as in `instances.json`) and its
    /// IoU with the named object's.
    fn write_predictions(&self, folder: &Path, expressions: &[Expression], judged: &[(Choice, f32)]) -> Result<()> {
        let entry = |(expression, (choice, _)): (&Expression, &(Choice, f32))| {
            let bbox = choice.box_xyxy_px.map(|[x0, y0, x1, y1]| [x0, y0, x1 - x0, y1 - y0]);
            let (ref_id, sent_id, split) = (expression.ref_id, expression.sent_id, &expression.split);
            json!({"ref_id": ref_id, "sent_id": sent_id, "split": split, "bbox": bbox, "iou": choice.iou})
        };
        let entries: Vec<_> = expressions.iter().zip(judged).map(entry).collect();
        Ok(atomic_write(folder.join("refcoco.json"), |file| {
            serde_json::to_writer(&mut *file, &entries)?;
            file.write_all(b"\n")
        })?)
    }

    fn description(&self, data: String) -> Description {
        Description {
            title: "referring expressions".into(),
            pipeline_tag: "zero-shot-object-detection",
            does: "Finds the region that an expression names, from the image's regions and the expression's words. \
                   transformers' `LxmertModel` opens the trunk and reports `referring_head.*`, for which it has no class, as \
                   unexpected."
                .into(),
            data,
            losses: "Binary cross entropy of each region with the IoU of its box and the named object's, summed over the \
                     regions."
                .into(),
        }
    }
}

/// The IoU of each region of row `row` with the named object's box; 0 for padding.
fn overlaps(expression: &Expression, batch: &Batch, row: usize) -> Vec<f32> {
    let [width, height] = expression.image_size_px;
    regions_px(batch, row, width, height)
        .map(|region| region.map_or(0.0, |region| boxes::iou_inclusive(&region, &expression.box_xyxy_px)))
        .collect()
}

/// The boxes of the regions of row `row` in pixels; `None` for padding.
fn regions_px(batch: &Batch, row: usize, width: f32, height: f32) -> impl Iterator<Item = Option<BoxXyxy>> + '_ {
    let all = row * batch.regions..(row + 1) * batch.regions;
    let (boxes_normalised, _) = batch.boxes[4 * all.start..4 * all.end].as_chunks::<4>();
    let mask = &batch.region_mask[all];
    boxes_normalised.iter().zip(mask).map(move |(b, &real)| (real > 0.0).then(|| boxes::to_pixels(b, width, height)))
}

/// The loss of each expression, `[batch]`. `logits`: `[batch, regions]`; `targets` and `mask` have as many values.
fn losses(logits: &Tensor, targets: &[f32], mask: &[f32]) -> Result<Tensor> {
    let of = |values: &[f32]| Tensor::from_slice(values, logits.shape(), logits.device());
    Ok((binary_cross_entropy(logits, &of(targets)?)? * of(mask)?)?.sum(1)?)
}

/// The model's choice for an expression, and what there was to choose from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Choice {
    /// The chosen region's box; `None` in an image without regions.
    pub box_xyxy_px: Option<BoxXyxy>,
    /// Its IoU with the named object's box.
    pub iou: f32,
    /// The sigmoid of its logit: the IoU that the model expects.
    pub probability: f32,
    /// The largest IoU of the image's regions.
    pub best_iou: f32,
    /// The fraction of the image's regions that would be right.
    pub chance: f32,
}

impl Choice {
    /// The region with the largest of `logits` (those of row `row`).
    fn of(expression: &Expression, batch: &Batch, row: usize, logits: &[f32]) -> Self {
        let [width, height] = expression.image_size_px;
        let ious = overlaps(expression, batch, row);
        let regions = regions_px(batch, row, width, height).zip(ious).zip(logits);
        let real: Vec<(BoxXyxy, f32, f32)> =
            regions.filter_map(|((region, iou), &logit)| Some((region?, iou, logit))).collect();
        let chosen = real.iter().copied().reduce(|best, next| if next.2 > best.2 { next } else { best });
        let right = real.iter().filter(|(_, iou, _)| *iou > RIGHT).count();
        Self {
            box_xyxy_px: chosen.map(|(region, ..)| region),
            iou: chosen.map_or(0.0, |(_, iou, _)| iou),
            probability: chosen.map_or(0.0, |(_, _, logit)| 1.0 / (1.0 + (-logit).exp())),
            best_iou: real.iter().map(|(_, iou, _)| *iou).fold(0.0, f32::max),
            chance: right as f32 / real.len().max(1) as f32,
        }
    }
}

impl Numbers for Choice {
    fn numbers(&self) -> Vec<f64> {
        let [x0, y0, x1, y1] = self.box_xyxy_px.unwrap_or_default();
        let chosen = if self.box_xyxy_px.is_some() { 1.0 } else { 0.0 };
        [chosen, x0, y0, x1, y1, self.iou, self.probability, self.best_iou, self.chance].map(f64::from).to_vec()
    }

    fn of_numbers(numbers: &[f64]) -> Self {
        let at = |i: usize| numbers.get(i).map_or(0.0, |number| *number as f32);
        let box_xyxy_px = (at(0) > 0.0).then(|| [at(1), at(2), at(3), at(4)]);
        Self { box_xyxy_px, iou: at(5), probability: at(6), best_iou: at(7), chance: at(8) }
    }
}

/// By split: expressions, accuracy, the upper bound (the share of expressions with a right region in the image), and
/// the expected score of a random region.
fn measures<'a>(chosen: impl IntoIterator<Item = (&'a Expression, &'a Choice, f32)>) -> Measures {
    let mut sums: BTreeMap<&str, [f64; 5]> = BTreeMap::new();
    for (expression, choice, loss) in chosen {
        let share = |right: bool| if right { 1.0 } else { 0.0 };
        let sum = sums.entry(&expression.split).or_default();
        let values =
            [1.0, share(choice.iou > RIGHT), share(choice.best_iou > RIGHT), f64::from(choice.chance), f64::from(loss)];
        sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }
    let mut measures = Measures::default();
    for (split, [count, right, attainable, chance, loss]) in sums {
        measures.extend(
            split,
            [
                ("expressions", count),
                ("accuracy", right / count),
                ("upper_bound", attainable / count),
                ("chance", chance / count),
                ("loss", loss / count),
            ],
        );
    }
    measures
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn the_loss_is_binary_cross_entropy_with_the_iou_summed_over_regions() {
        let logits = Var::new(&[[0.5f32, -1.0, 9.0], [2.0, 0.0, -3.0]], &Device::Cpu).unwrap();
        // The first image has two regions: its third logit belongs to padding and does not count.
        let (targets, mask) = ([0.8f32, 0.1, 0.0, 0.0, 0.0, 1.0], [1f32, 1.0, 0.0, 1.0, 1.0, 1.0]);
        let loss = losses(&logits, &targets, &mask).unwrap();
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let bce = |x: f64, y: f64| -(y * sigmoid(x).ln() + (1.0 - y) * (1.0 - sigmoid(x)).ln());
        // The mean over two regions times two; the mean over three times three.
        let want = [bce(0.5, 0.8) + bce(-1.0, 0.1), bce(2.0, 0.0) + bce(0.0, 0.0) + bce(-3.0, 1.0)];
        let got: Vec<f32> = loss.to_vec1().unwrap();
        assert!(got.iter().zip(want).all(|(g, w)| (f64::from(*g) - w).abs() < 2e-6), "{got:?}, not {want:?}");
        // The gradient with respect to a logit is its sigmoid minus its target.
        let gradients = loss.sum_all().unwrap().backward().unwrap();
        let got: Vec<f32> = gradients.get(&logits).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let want = [sigmoid(0.5) - 0.8, sigmoid(-1.0) - 0.1, 0.0, sigmoid(2.0), 0.5, sigmoid(-3.0) - 1.0];
        assert!(got.iter().zip(want).all(|(g, w)| (f64::from(*g) - w).abs() < 2e-6), "{got:?}, not {want:?}");
    }

    /// Two images of 100 × 50 pixels with two regions each; the second image's second region is padding.
    fn batch() -> Batch {
        Batch {
            rows: 2,
            regions: 2,
            boxes: [[0.0, 0.0, 0.09, 0.18], [0.0, 0.0, 0.24, 0.18], [0.5, 0.5, 0.59, 0.68], [0.0; 4]].concat(),
            region_mask: vec![1.0, 1.0, 1.0, 0.0],
            ..Batch::default()
        }
    }

    fn expression(split: &str, box_xyxy_px: BoxXyxy) -> Expression {
        Expression {
            ref_id: 1,
            sent_id: 2,
            split: split.into(),
            image: 0,
            sentence: "left".into(),
            box_xyxy_px,
            image_size_px: [100.0, 50.0],
        }
    }

    #[test]
    fn targets_are_the_regions_ious_and_zero_for_padding() {
        // 10 × 10 pixels including the last: the whole first region, 10 of the second's 25 columns.
        let close = |got: Vec<f32>, want: [f32; 2]| got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-6);
        let named = expression("val", [0.0, 0.0, 9.0, 9.0]);
        assert!(close(overlaps(&named, &batch(), 0), [1.0, 0.4]), "{:?}", overlaps(&named, &batch(), 0));
        assert!(close(overlaps(&named, &batch(), 1), [0.0, 0.0]));
        // A box in the corner overlaps the padding's zeros by one pixel, which does not count.
        assert!(close(overlaps(&expression("val", [0.0; 4]), &batch(), 1), [0.0, 0.0]));
    }

    #[test]
    fn the_best_scored_region_is_right_above_an_iou_of_one_half() {
        let named = expression("testA", [0.0, 0.0, 9.0, 9.0]);
        let (first, second) =
            (Choice::of(&named, &batch(), 0, &[2.0, 1.0]), Choice::of(&named, &batch(), 0, &[1.0, 2.0]));
        assert!((first.iou - 1.0).abs() < 1e-6 && (second.iou - 0.4).abs() < 1e-6);
        assert_eq!((second.best_iou, second.chance), (first.best_iou, 0.5));
        // Padding is never chosen, however high its logit.
        let other = expression("testB", [50.0, 25.0, 59.0, 34.0]);
        let third = Choice::of(&other, &batch(), 1, &[-1.0, 9.0]);
        assert!(third.iou > 0.99 && third.chance == 1.0, "{third:?}");
        let nowhere = expression("testB", [80.0, 0.0, 99.0, 40.0]);
        let fourth = Choice::of(&nowhere, &batch(), 1, &[-1.0, 9.0]);
        let found = measures([
            (&named, &first, 1.0),
            (&named, &Choice { iou: 0.5, ..second }, 3.0),
            (&other, &third, 1.0),
            (&nowhere, &fourth, 1.0),
        ]);
        let get = |set: &str| {
            ["expressions", "accuracy", "upper_bound", "chance", "loss"].map(|name| found.get(set, name).unwrap())
        };
        assert_eq!((get("testA"), get("testB")), ([2.0, 0.5, 1.0, 0.5, 2.0], [2.0, 0.5, 0.5, 0.5, 1.0]));
    }
}
