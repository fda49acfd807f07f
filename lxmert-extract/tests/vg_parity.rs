//! Bottom-up attention's detector against reference runs (f32, formula weights): Hugging Face's own code, and Caffe's
//! conventions with MILVLG's weight names; stage by stage, then the chosen regions. See `fixtures/frcnn_vg/README.md`.
//!
//! The bounds are three times those that the reference's README suggests; this port's own errors are printed
//! (`--nocapture`).

mod common;

use anyhow::{Context, Result, ensure};
use candle_core::{D, DType, Device, Tensor};
use candle_nn::VarBuilder;
use common::{VisualGenomeRun, box_error, boxes, fixture, tensors};
use lxmert_core::batch::Batch;
use lxmert_core::config::LxmertConfig;
use lxmert_core::model::{AnswerModel, Pass};
use lxmert_core::ops::{BufferPool, FeatureMap, Precision};
use lxmert_core::procedural;
use lxmert_core::text::WordPiece;
use lxmert_extract::detector::anchors::cell_anchors;
use lxmert_extract::detector::config::{AnchorStyle, BoxConvention, Resize, TransformConfig};
use lxmert_extract::detector::nms::{Suppression, nms};
use lxmert_extract::detector::ops::max_pool_map_ceil;
use lxmert_extract::detector::roi_align::LevelRegion;
use lxmert_extract::detector::roi_pool::{RoiPool, roi_pool};
use lxmert_extract::detector::selection::{
    ChosenProposal, RegionCount, class_aware_confidence, keep_confident, select_proposals,
};
use lxmert_extract::detector::transform::transform;
use lxmert_extract::detector::{Analysis, Detector, DetectorConfig, visual_genome};
use lxmert_extract::images::DecodedImage;
use lxmert_extract::regions::Selection;
use lxmert_extract::regions::detections::select;
use lxmert_extract::weights;
use std::collections::{BTreeMap, HashMap};

/// A reference run, and the errors measured against it.
struct Reference {
    stem: String,
    tensors: HashMap<String, Tensor>,
    measured: Vec<(String, f32, f32)>,
}

impl Reference {
    fn open(run: &VisualGenomeRun, stem: &str) -> Result<Self> {
        let tensors = run.tensors(&format!("{stem}.safetensors"))?;
        Ok(Self { stem: stem.into(), tensors, measured: Vec::new() })
    }

    fn get(&self, name: &str) -> Result<Tensor> {
        Ok(self.tensors.get(name).with_context(|| format!("{} lacks {name}", self.stem))?.clone())
    }

    fn numbers(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.get(name)?.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?)
    }

    fn indices(&self, name: &str) -> Result<Vec<usize>> {
        Ok(self.get(name)?.to_vec1::<i64>()?.into_iter().map(|i| i as usize).collect())
    }

    /// Checks that the largest difference from the tensor `name`, divided by `unit`, is below `bound`.
    fn compare(&mut self, name: &str, got: &[f32], unit: f32, bound: f32) -> Result<()> {
        let expected = self.numbers(name)?;
        ensure!(got.len() == expected.len(), "{name}: {} values for {}", got.len(), expected.len());
        let largest = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / unit;
        ensure!(got.iter().all(|v| v.is_finite()), "{name} is not finite");
        self.measured.push((name.into(), largest, bound));
        Ok(())
    }

    /// Compares shape, mean of absolute values, and all channels at two cells of a map.
    fn compare_map(&mut self, name: &str, map: &Tensor, bound: f32) -> Result<()> {
        let dims: Vec<usize> = map.dims().to_vec();
        ensure!(dims == self.indices(&format!("{name}.shape"))?, "{name} is {dims:?}");
        let mean = self.numbers(&format!("{name}.mean_abs"))?[0];
        let at = |y: usize, x: usize| -> Result<Vec<f32>> {
            Ok(map.get(0)?.narrow(1, y, 1)?.narrow(2, x, 1)?.flatten_all()?.to_vec1()?)
        };
        self.compare(&format!("{name}.mean_abs"), &[mean_abs(map)?], mean, bound)?;
        self.compare(&format!("{name}.centre"), &at(dims[2] / 2, dims[3] / 2)?, mean, bound)?;
        self.compare(&format!("{name}.corner"), &at(dims[2] - 1, dims[3] - 1)?, mean, bound)
    }

    fn finish(self) {
        for (name, largest, bound) in &self.measured {
            println!("{} {name}: {largest:.1e} of {bound:.1e}", self.stem);
        }
        for (name, largest, bound) in &self.measured {
            assert!(largest < bound, "{} {name}: {largest} is not below {bound}", self.stem);
        }
    }
}

/// The mean of absolute values, summed in f64: an f32 sum of millions of values is too inexact.
fn mean_abs(tensor: &Tensor) -> Result<f32> {
    let values = flat(tensor)?;
    Ok((values.iter().map(|v| f64::from(v.abs())).sum::<f64>() / values.len() as f64) as f32)
}

fn flat(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

/// Compares input and trunk, then the proposals as a set; returns our index for each of the reference's.
fn compare_proposals(reference: &mut Reference, detector: &Detector, analysis: &Analysis) -> Result<Vec<usize>> {
    let input = &analysis.input;
    let (height, width) = input.resized_size;
    assert_eq!(vec![input.image_size.0, input.image_size.1], reference.indices("raw_size")?);
    assert_eq!(vec![height, width], reference.indices("resized_size")?);
    assert_eq!(input.padded_size, input.resized_size);
    let image = input.tensor.get(0)?;
    // Hugging Face's to the bit; OpenCV adds in an order of its own.
    let bound = if reference.stem.ends_with("caffe") { 3e-4 } else { f32::MIN_POSITIVE };
    reference.compare("input_slice", &flat(&image.narrow(1, 100, 8)?.narrow(2, 200, 8)?)?, 1.0, bound)?;
    let corner = image.narrow(1, height - 4, 4)?.narrow(2, width - 4, 4)?;
    reference.compare("input_corner", &flat(&corner)?, 1.0, bound)?;
    reference.compare("input.mean_abs", &[mean_abs(&image)?], 1.0, 3e-4)?;
    let res4 = &analysis.levels[0];
    reference.compare_map("res4", res4, 6e-4)?;

    let prediction = detector.network().rpn.forward_t(std::slice::from_ref(res4), false)?.remove(0);
    let (y, x) = (res4.dim(2)? / 2, res4.dim(3)? / 2);
    let slice = |t: &Tensor| -> Result<Tensor> { Ok(t.get(0)?.narrow(1, y, 4)?.narrow(2, x, 4)?) };
    let logits = slice(&prediction.logits)?;
    if reference.tensors.contains_key("rpn_fg_slice") {
        let probabilities = ((logits.neg()?.exp()? + 1.0)?).recip()?;
        reference.compare("rpn_fg_slice", &flat(&probabilities)?, 1.0, 1e-4)?;
    } else {
        reference.compare("rpn_logits_slice", &flat(&logits)?, 1.0, 3e-4)?;
    }
    reference.compare("rpn_deltas_slice", &flat(&slice(&prediction.deltas)?)?, 1.0, 9e-5)?;

    let (ours, theirs) = (&analysis.proposals.boxes, boxes(&reference.get("proposals")?)?);
    assert_eq!(ours.len(), theirs.len());
    let nearest = |b: &[f32; 4]| {
        let errors = ours.iter().map(|p| box_error(p, b)).enumerate();
        errors.min_by(|a, b| a.1.total_cmp(&b.1)).context("no proposals")
    };
    let matched = theirs.iter().map(nearest).collect::<Result<Vec<_>>>()?;
    let largest = matched.iter().map(|m| m.1).fold(0.0, f32::max);
    reference.measured.push(("proposals".into(), largest, 1.5e-2));
    let moved = matched.iter().enumerate().filter(|(i, m)| *i != m.0).count();
    println!("{}: {moved} of {} proposals at another rank", reference.stem, theirs.len());
    let mut indices: Vec<usize> = matched.iter().map(|m| m.0).collect();
    let order = indices.clone();
    indices.sort_unstable();
    indices.dedup();
    assert_eq!(indices.len(), theirs.len(), "two proposals of the reference are one of ours");
    Ok(order)
}

/// Compares the pooled regions and their features.
fn compare_features(
    reference: &mut Reference,
    detector: &Detector,
    analysis: &Analysis,
    features: &Tensor,
) -> Result<()> {
    let pooler = &detector.network().roi_heads.pooler;
    let proposals = boxes(&reference.get("proposals")?)?;
    let pooled = pooler.forward(&analysis.levels, &[proposals], analysis.input.padded_size)?;
    let mean = reference.numbers("roi_pool.mean_abs")?[0];
    reference.compare("roi_pool.mean_abs", &[mean_abs(&pooled)?], mean, 6e-4)?;
    if reference.tensors.contains_key("roi_pool_first") {
        reference.compare("roi_pool_first", &flat(&pooled.get(0)?.narrow(0, 0, 8)?)?, mean, 6e-4)?;
    }
    reference.compare("roi_features.mean", &flat(&features.mean(1)?)?, 1.0, 1.5e-4)?;
    reference.compare("roi_features_first", &flat(&features.narrow(0, 0, 4)?)?, 1.0, 1.5e-4)
}

/// Checks that the chosen regions are `keep` in the same order, with ids, probabilities and features.
fn compare_choice(
    reference: &mut Reference,
    detector: &Detector,
    analysis: &Analysis,
    order: &[usize],
    prefix: &str,
    keep: &str,
) -> Result<Vec<ChosenProposal>> {
    let chosen = select_proposals(detector.config(), analysis, RegionCount::exactly(36)).context("a rule")?;
    let ours: Vec<usize> = chosen.iter().map(|c| c.proposal).collect();
    let theirs: Vec<usize> = reference.indices(keep)?.into_iter().map(|i| order[i]).collect();
    assert_eq!(ours, theirs, "{}", reference.stem);
    let labels: Vec<usize> = chosen.iter().map(|c| c.candidate.label as usize - 1).collect();
    assert_eq!(labels, reference.indices(&format!("{prefix}obj_ids"))?);
    let scores: Vec<f32> = chosen.iter().map(|c| c.candidate.score).collect();
    reference.compare(&format!("{prefix}obj_probs"), &scores, 1.0, 1.5e-4)?;
    let rows: Vec<u32> = ours.iter().map(|&i| i as u32).collect();
    let features = analysis.features.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?;
    let mean = reference.get(&format!("{prefix}features"))?.mean_all()?.to_scalar::<f32>()?;
    reference.compare(&format!("{prefix}features"), &flat(&features)?, mean, 1e-3)?;
    let attributes = detector.first_attribute(&features)?.context("attributes")?;
    let ids: Vec<usize> = attributes.labels.iter().map(|id| *id as usize).collect();
    assert_eq!(ids, reference.indices(&format!("{prefix}attr_ids"))?);
    reference.compare(&format!("{prefix}attr_probs"), &attributes.scores, 1.0, 1.5e-4)?;
    Ok(chosen)
}

/// The questions of `scripts/photo_to_answer.py`.
const QUESTIONS: [&str; 3] =
    ["What animal is this?", "What color is the cup on the table?", "How many eyes can you see?"];

/// A small LXMERT of formula weights, as the script fills it.
fn question_model() -> Result<(LxmertConfig, AnswerModel)> {
    let config = LxmertConfig { visual_feat_dim: 2048, num_qa_labels: 3129, ..LxmertConfig::preset("small")? };
    let tensor = |(name, shape): (String, Vec<usize>)| -> Result<(String, Tensor)> {
        let norm = ["LayerNorm", "layer_norm", "logit_fc.2"].iter().any(|part| name.contains(part));
        let reach = 1.2 * (3.0 / shape[shape.len() - 1] as f64).sqrt();
        let (low, high) = match name.ends_with("weight") {
            true if norm => (0.8, 1.2),
            false if norm => (-0.1, 0.1),
            weight if !weight || name.contains("embeddings") => (-0.05, 0.05),
            _ => (-reach, reach),
        };
        Ok((name.clone(), procedural::tensor(&name, &shape, low, high, 0)?))
    };
    let weights = AnswerModel::expected(&config)?.into_iter().map(tensor).collect::<Result<_>>()?;
    let model = AnswerModel::new(&config, VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu))?;
    Ok((config, model))
}

/// From the photo to the answer logits of transformers' LXMERT, which took the regions of Hugging Face's detector.
fn compare_answers(detector: &Detector, analysis: &Analysis, stem: &str) -> Result<()> {
    let expected = tensors("photo_to_answer.safetensors")?;
    let regions = select(detector, analysis, 36, Selection::Detections)?;
    let (config, model) = question_model()?;
    assert_eq!(regions.feature_dim, config.visual_feat_dim);
    let text = WordPiece::bundled()?;
    for (number, question) in QUESTIONS.iter().enumerate() {
        let ids = text.encode(question, 20)?.ids;
        let theirs: Vec<u32> = expected[&format!("ids.{number}")].to_dtype(DType::U32)?.to_vec1()?;
        assert_eq!(ids, theirs, "{question}");
        let inputs = Batch::of_regions(&[(&regions, &ids)], 36, text.special().pad).inputs(&Device::Cpu)?;
        let logits: Vec<f32> = model.forward(&inputs, &Pass::eval())?.logits.squeeze(0)?.to_vec1()?;
        let theirs: Vec<f32> = expected[&format!("{stem}.{number}")].to_vec1()?;
        let best = |logits: &[f32]| {
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            order.truncate(5);
            order
        };
        assert_eq!(best(&logits), best(&theirs), "{stem}, {question}");
        let largest = logits.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{stem}, {question} logits within {largest:.1e}");
        assert!(largest < 1e-3, "{stem}, {question} {largest}");
    }
    Ok(())
}

fn compare_hugging_face(run: &VisualGenomeRun, detector: &Detector, stem: &str) -> Result<Analysis> {
    let mut reference = Reference::open(run, stem)?;
    let analysis = detector.analyse(detector.input(&run.photo(stem)?)?)?;

    // %% The trunk of the plain network
    let body = &detector.network().body;
    let stem_map = body.stem_t(&analysis.input.tensor, false)?;
    reference.compare_map("conv1", &stem_map, 1.5e-4)?;
    reference.compare_map("pool1", &body.pool(&stem_map)?, 1.5e-4)?;
    let stages = body.forward_t(&analysis.input.tensor, false)?;
    for (name, map) in ["res2", "res3", "res4"].iter().zip(&stages) {
        reference.compare_map(name, map, 6e-4)?;
    }

    // %% Proposals and features, in the reference's order
    let order = compare_proposals(&mut reference, detector, &analysis)?;
    let rows = Tensor::new(order.iter().map(|&i| i as u32).collect::<Vec<_>>(), &Device::Cpu)?;
    let features = analysis.features.index_select(&rows, 0)?;
    compare_features(&mut reference, detector, &analysis, &features)?;

    // %% Heads: background is last in the file and first here
    let prediction = detector.network().roi_heads.predict(&features)?;
    let first_last = |t: &Tensor| -> Result<Tensor> {
        let rest = t.dim(1)? - 1;
        Ok(Tensor::cat(&[t.narrow(1, 1, rest)?, t.narrow(1, 0, 1)?], 1)?)
    };
    let class_logits = first_last(&prediction.class_logits)?;
    reference.compare("class_logits_first", &flat(&class_logits.narrow(0, 0, 4)?)?, 1.0, 9e-4)?;
    let attribute_logits = first_last(&prediction.attribute_logits[0].narrow(0, 0, 4)?)?;
    reference.compare("attr_logits_first", &flat(&attribute_logits)?, 1.0, 9e-4)?;
    let deltas = prediction.box_deltas.narrow(0, 0, 1)?.narrow(1, 4, 6400)?;
    reference.compare("deltas_first", &flat(&deltas)?, 1.0, 9e-4)?;
    let argmax: Vec<usize> = class_logits.argmax(D::Minus1)?.to_vec1::<u32>()?.iter().map(|i| *i as usize).collect();
    assert_eq!(argmax, reference.indices("argmax_all")?);
    let best: Vec<(usize, f32)> = order.iter().map(|&i| analysis.best_class(i)).collect();
    assert_eq!(best.iter().map(|b| b.0 - 1).collect::<Vec<_>>(), reference.indices("obj_ids_all")?);
    reference.compare("obj_probs_all", &best.iter().map(|b| b.1).collect::<Vec<_>>(), 1.0, 1.5e-4)?;
    let regressed: Vec<f32> = order.iter().zip(&best).flat_map(|(&i, b)| analysis.regressed_box(i, b.0)).collect();
    reference.compare("boxes_all", &regressed, 1.0, 1.5e-2)?;
    let attributes = detector.first_attribute(&features)?.context("attributes")?;
    let ids: Vec<usize> = attributes.labels.iter().map(|id| *id as usize).collect();
    assert_eq!(ids, reference.indices("attr_ids_all")?);
    reference.compare("attr_probs_all", &attributes.scores, 1.0, 1.5e-4)?;

    // %% The 36 regions, and more with later thresholds
    let chosen = compare_choice(&mut reference, detector, &analysis, &order, "hf.", "hf.keep")?;
    let resized: Vec<f32> = chosen.iter().flat_map(|c| c.candidate.box_xyxy).collect();
    reference.compare("hf.boxes_resized", &resized, 1.0, 1.5e-2)?;
    let in_image: Vec<f32> = chosen.iter().flat_map(|c| analysis.input.to_image(&c.candidate.box_xyxy)).collect();
    reference.compare("hf.boxes", &in_image, 1.0, 1e-2)?;
    for wanted in [200, 250] {
        let Ok(keep) = reference.indices(&format!("hf{wanted}.keep")) else { continue };
        let more = select_proposals(detector.config(), &analysis, RegionCount::exactly(wanted)).context("a rule")?;
        let theirs: Vec<usize> = keep.into_iter().map(|i| order[i]).collect();
        let ours = more.iter().map(|c| c.proposal).collect();
        same_order(run, ours, theirs, |proposal| analysis.best_class(proposal).1);
    }

    // %% Caffe's rule on the same proposals and probabilities
    let boxes: Vec<[f32; 4]> = order.iter().map(|&i| analysis.input.to_image(&analysis.proposals.boxes[i])).collect();
    let rule = Suppression { threshold: 0.3, convention: BoxConvention::Inclusive };
    let confidence =
        class_aware_confidence(&boxes, analysis.num_classes(), rule, |index| analysis.probabilities(order[index]));
    reference.compare("caffe_rule.max_conf", &confidence, 1.0, 1.5e-4)?;
    for (keep, min, max) in [("10_100", 10, 100), ("36", 36, 36), ("200_250", 200, 250)] {
        let kept = keep_confident(&confidence, 0.2, RegionCount { min, max });
        let theirs = reference.indices(&format!("caffe_rule.keep_{keep}"))?;
        same_order(run, kept, theirs, |proposal| confidence[proposal]);
    }
    reference.finish();
    Ok(analysis)
}

fn compare_caffe(run: &VisualGenomeRun, detector: &Detector, stem: &str) -> Result<()> {
    let mut reference = Reference::open(run, &format!("{stem}_caffe"))?;
    let analysis = detector.analyse(detector.input(&run.photo(stem)?)?)?;
    let order = compare_proposals(&mut reference, detector, &analysis)?;
    let scores: Vec<f32> = order.iter().map(|&i| analysis.proposals.scores[i]).collect();
    reference.compare("proposal_scores", &scores, 1.0, 1e-4)?;
    let rows = Tensor::new(order.iter().map(|&i| i as u32).collect::<Vec<_>>(), &Device::Cpu)?;
    let features = analysis.features.index_select(&rows, 0)?;
    compare_features(&mut reference, detector, &analysis, &features)?;

    // %% Heads, background first in the file too
    let prediction = detector.network().roi_heads.predict(&features)?;
    reference.compare("class_logits_first", &flat(&prediction.class_logits.narrow(0, 0, 2)?)?, 1.0, 9e-4)?;
    reference.compare("attr_logits_first", &flat(&prediction.attribute_logits[0].narrow(0, 0, 2)?)?, 1.0, 9e-4)?;
    let argmax = prediction.class_logits.argmax(D::Minus1)?.to_vec1::<u32>()?;
    assert_eq!(argmax.iter().map(|i| *i as usize).collect::<Vec<_>>(), reference.indices("argmax_all")?);

    // %% The 36 regions; between 10 and 100 in the proposals' own order
    let chosen = compare_choice(&mut reference, detector, &analysis, &order, "", "keep_36")?;
    let in_image: Vec<f32> = chosen.iter().flat_map(|c| analysis.input.to_image(&c.candidate.box_xyxy)).collect();
    reference.compare("boxes", &in_image, 1.0, 1e-2)?;
    let regressed = chosen.iter().map(|c| analysis.regressed_box(c.proposal, c.candidate.label as usize));
    let regressed: Vec<f32> = regressed.flat_map(|b| analysis.input.to_image(&b)).collect();
    reference.compare("regressed_boxes", &regressed, 1.0, 1.5e-2)?;
    for (keep, min, max) in [("10_100", 10, 100), ("200_250", 200, 250)] {
        let chosen = select_proposals(detector.config(), &analysis, RegionCount { min, max }).context("a rule")?;
        let mut ours: Vec<usize> = chosen.iter().map(|c| c.proposal).collect();
        let mut theirs: Vec<usize> =
            reference.indices(&format!("keep_{keep}"))?.into_iter().map(|i| order[i]).collect();
        if keep == "10_100" {
            assert!(ours.is_sorted());
            // The order of the proposals is compared above, up to near ties.
            (ours, theirs) = (sorted(ours), sorted(theirs));
        }
        assert_eq!(ours, theirs);
    }
    reference.finish();
    Ok(())
}

/// Checks that the same proposals are chosen in the same order. In a run of other weights, two of many may be as probable as
/// each other up to rounding; in the shipped one none are.
fn same_order(run: &VisualGenomeRun, ours: Vec<usize>, theirs: Vec<usize>, probability: impl Fn(usize) -> f32) {
    let tie = if run.is_shipped() { 0.0 } else { 1e-6 };
    for (&a, &b) in ours.iter().zip(&theirs).filter(|(a, b)| a != b) {
        let (p, q) = (probability(a), probability(b));
        assert!((p - q).abs() < tie, "{a} ({p}) where the reference has {b} ({q})");
    }
    assert_eq!(sorted(ours), sorted(theirs));
}

fn sorted(mut indices: Vec<usize>) -> Vec<usize> {
    indices.sort_unstable();
    indices
}

#[test]
fn hugging_faces_rules_agree_with_its_own_code() -> Result<()> {
    let run = VisualGenomeRun::chosen()?;
    let detector = run.detector(false, Precision::F32)?;
    for stem in &run.stems {
        let analysis = compare_hugging_face(&run, &detector, stem)?;
        if run.is_shipped() {
            compare_answers(&detector, &analysis, stem)?;
        }
    }
    Ok(())
}

#[test]
fn caffes_rules_agree_with_a_port_of_the_original() -> Result<()> {
    let run = VisualGenomeRun::chosen()?;
    let detector = run.detector(true, Precision::F32)?;
    run.stems.iter().try_for_each(|stem| compare_caffe(&run, &detector, stem))
}

// ------------------------------------------------------------------ single steps

fn largest_difference(got: &[f32], expected: &Tensor) -> Result<f32> {
    let expected = flat(expected)?;
    ensure!(got.len() == expected.len(), "{} values for {}", got.len(), expected.len());
    Ok(got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max))
}

#[test]
fn resizing_equals_the_originals() -> Result<()> {
    let units = tensors("frcnn_vg/units.safetensors")?;
    for (case, min_size, max_size) in [("resize", 33, 45), ("shrink", 17, 30)] {
        let bgr = &units[&format!("{case}.image")];
        let (height, width, _) = bgr.dims3()?;
        let rgb: Vec<u8> =
            bgr.flatten_all()?.to_vec1::<u8>()?.chunks_exact(3).flat_map(|p| [p[2], p[1], p[0]]).collect();
        let image = DecodedImage { width: width as u32, height: height as u32, rgb };
        for (family, config) in [("hf", visual_genome::hugging_face()), ("caffe", visual_genome::caffe())] {
            let config = TransformConfig { min_size, max_size, ..config.transform };
            let input = transform(&config, &image, &Device::Cpu)?;
            let expected = &units[&format!("{case}.{family}")];
            assert_eq!(&input.tensor.dims()[1..], expected.dims(), "{case} {family}");
            let error = largest_difference(&flat(&input.tensor)?, expected)?;
            println!("{case} {family}: {error:.1e} grey levels");
            // Of 255: Hugging Face's to the bit, OpenCV's but for rounding.
            assert!(error <= if family == "hf" { 0.0 } else { 5e-5 }, "{case} {family}: {error}");
        }
        // The two sampling steps differ clearly.
        let steps = [Resize::Detectron2, Resize::Caffe].map(|resize| -> Result<Vec<f32>> {
            let config = TransformConfig { min_size, max_size, resize, ..visual_genome::caffe().transform };
            flat(&transform(&config, &image, &Device::Cpu)?.tensor)
        });
        let [a, b] = steps;
        assert!(a?.iter().zip(b?).any(|(a, b)| (a - b).abs() > 1.0), "{case}");
    }
    Ok(())
}

#[test]
fn region_pooling_equals_torchvisions_bit_for_bit() -> Result<()> {
    let units = tensors("frcnn_vg/units.safetensors")?;
    let (map, expected) = (units["roi_pool.map"].unsqueeze(0)?, &units["roi_pool.out"]);
    let regions: Vec<LevelRegion> =
        boxes(&units["roi_pool.boxes"])?.into_iter().map(|xyxy| LevelRegion { level: 0, image: 0, xyxy }).collect();
    let options = RoiPool { spatial_scale: 1.0 / 16.0, output_size: 14, dilation: 1 };
    let pooled = roi_pool(&map, &regions, options, &BufferPool::new())?.into_tensor()?;
    assert_eq!(pooled.dims(), expected.dims());
    assert_eq!(flat(&pooled)?, flat(expected)?);
    Ok(())
}

#[test]
fn ceil_mode_pooling_equals_torchs_on_either_path() -> Result<()> {
    let units = tensors("frcnn_vg/units.safetensors")?;
    let (map, expected) = (units["ceil_pool.in"].unsqueeze(0)?, &units["ceil_pool.out"]);
    let pooled = max_pool_map_ceil(&FeatureMap::from_tensor(&map, &BufferPool::new())?, 3, 2)?.into_tensor()?;
    assert_eq!((&pooled.dims()[1..], flat(&pooled)?), (expected.dims(), flat(expected)?));
    Ok(())
}

#[test]
fn anchors_follow_each_familys_convention() -> Result<()> {
    let units = tensors("frcnn_vg/units.safetensors")?;
    for (family, config) in [("hf", visual_genome::hugging_face()), ("caffe", visual_genome::caffe())] {
        let anchors = cell_anchors(config.rpn.anchor_style, &config.rpn.anchor_sizes[0], &config.rpn.aspect_ratios);
        assert_eq!(anchors, boxes(&units[&format!("anchors.{family}")])?, "{family}");
    }
    assert_eq!(visual_genome::caffe().rpn.anchor_style, AnchorStyle::Caffe);
    Ok(())
}

#[test]
fn suppression_at_exactly_one_half_differs_by_family() -> Result<()> {
    let units = tensors("frcnn_vg/units.safetensors")?;
    let (boxes, scores) = (boxes(&units["nms.boxes"])?, units["nms.scores"].to_vec1::<f32>()?);
    for (name, convention) in [("plain", BoxConvention::Continuous), ("caffe", BoxConvention::Inclusive)] {
        let kept = nms(&boxes, &scores, Suppression { threshold: 0.5, convention }, usize::MAX);
        let kept: Vec<i64> = kept.into_iter().map(|i| i as i64).collect();
        assert_eq!(kept, units[&format!("nms.{name}_0.5")].to_vec1::<i64>()?);
    }
    Ok(())
}

// ------------------------------------------------------------------ weight files

#[test]
fn rejects_weights_of_the_other_family_and_names_the_right_detector() -> Result<()> {
    let only = |rows: usize| -> Result<BTreeMap<String, Tensor>> {
        let name = "proposal_generator.rpn_head.objectness_logits.weight";
        Ok([(name.to_string(), Tensor::zeros((rows, 512, 1, 1), DType::F32, &Device::Cpu)?)].into())
    };
    let told = |config: &DetectorConfig, rows| -> Result<String> {
        let loaded = weights::from_tensors(config, &fixture("w.bin"), only(rows)?, Precision::F32, &Device::Cpu);
        Ok(loaded.map_or_else(|e| e.to_string(), |_| "loaded".into()))
    };
    assert!(told(&visual_genome::hugging_face(), 24)?.contains("use --detector visual-genome-caffe"));
    assert!(told(&visual_genome::caffe(), 12)?.contains("use --detector visual-genome"));
    let missing = told(&visual_genome::caffe(), 24)?;
    assert!(missing.contains("534 missing (backbone.res2.0.conv1.norm.bias"), "{missing}");
    Ok(())
}
