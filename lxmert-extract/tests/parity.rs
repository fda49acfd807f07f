//! Every stage against torchvision 0.29's own numbers (f32 on the CPU, formula weights). The errors of this port are printed
//! (`--nocapture`).

mod common;

use anyhow::Result;
use candle_core::{Device, Tensor};
use common::{box_error, boxes, photo, reference_detector, relative_error, tensors};
use lxmert_core::boxes::to_pixels;
use lxmert_core::ops::Precision;
use lxmert_extract::detector::{Analysis, Detector};
use lxmert_extract::regions::Selection;
use lxmert_extract::regions::detections::select;

fn compare(detector: &Detector, stem: &str) -> Result<Analysis> {
    let reference = tensors(&format!("frcnn/{stem}.safetensors"))?;
    let get = |name: &str| reference.get(name).ok_or_else(|| anyhow::anyhow!("{stem} lacks {name}"));
    let size = |name: &str| -> Result<Vec<i64>> { Ok(get(name)?.to_vec1::<i64>()?) };
    let analysis = detector.analyse(detector.input(&photo(&format!("{stem}.png"))?)?)?;

    // %% Input
    let pair = |(h, w): (usize, usize)| vec![h as i64, w as i64];
    assert_eq!(pair(analysis.input.resized_size), size("resized_size")?);
    assert_eq!(pair(analysis.input.padded_size), size("padded_size")?);
    let slice = analysis.input.tensor.squeeze(0)?.narrow(1, 100, 8)?.narrow(2, 200, 8)?;
    let input_error = relative_error(&slice, get("input_slice")?)?;

    // %% Pyramid, the pooled level included
    let mut level_error = 0f32;
    for (level, name) in analysis.levels.iter().zip(["0", "1", "2", "3", "pool"]) {
        let dims: Vec<i64> = level.dims().iter().map(|d| *d as i64).collect();
        assert_eq!(dims, size(&format!("fpn.{name}.shape"))?);
        let centre = level.get(0)?.narrow(1, level.dim(2)? / 2, 1)?.narrow(2, level.dim(3)? / 2, 1)?.flatten_all()?;
        let mean_abs = level.abs()?.mean_all()?.reshape(1)?;
        level_error = level_error.max(relative_error(&centre, get(&format!("fpn.{name}.centre"))?)?);
        level_error = level_error.max(relative_error(&mean_abs, get(&format!("fpn.{name}.mean_abs"))?)?);
    }
    assert_eq!(analysis.levels.len(), 5);

    // %% Proposals, as a set: near ties may swap ranks
    let expected = boxes(get("proposals")?)?;
    assert_eq!(analysis.proposals.boxes.len(), expected.len());
    let near = |b: &[f32; 4]| analysis.proposals.boxes.iter().any(|p| box_error(p, b) < 0.05);
    let matched = expected.iter().filter(|b| near(b)).count();

    // %% Heads on the reference's own proposals
    let heads = detector.features_at(&analysis, &expected[..36])?;
    let logits = detector.network().roi_heads.predict(&heads)?.class_logits;
    let head_error = relative_error(&heads, get("proposal_features36")?)?;
    let logit_error = relative_error(&logits, get("proposal_logits36")?)?;

    // %% Detections, in the reference's order
    let found = detector.detections(&analysis)?;
    let expected_labels = get("labels")?.to_vec1::<i64>()?;
    assert_eq!(found.labels.len(), expected_labels.len());
    let expected_scores = get("scores")?.to_vec1::<f32>()?;
    let places = places(&expected_scores[..36], &boxes(get("boxes")?)?[..36], &found.boxes_xyxy_px);
    let labels: Vec<i64> = places.iter().map(|&place| i64::from(found.labels[place])).collect();
    assert_eq!(labels, expected_labels[..36]);
    let score_error = places
        .iter()
        .zip(&expected_scores)
        .map(|(&place, score)| (found.scores[place] - score).abs())
        .fold(0.0, f32::max);
    let largest = |got: &[[f32; 4]], name: &str| -> Result<f32> {
        let pairs = boxes(get(name)?)?.into_iter().zip(places.iter().map(|&place| got[place]));
        Ok(pairs.map(|(a, b)| box_error(&a, &b)).fold(0.0, f32::max))
    };
    let box_px = largest(&found.boxes_xyxy_px, "boxes")?;
    let resized_px = largest(&found.boxes_resized_px, "boxes_resized")?;
    let feature_error = relative_error(&found.features.index_select(&order(&places)?, 0)?, get("features36_resized")?)?;
    // The same boxes, read in the other frame; see the fixtures' README.
    let elsewhere = detector.features_at(&analysis, &boxes(get("boxes")?)?[..36])?;
    let elsewhere_error = relative_error(&elsewhere, get("features36")?)?;

    println!(
        "{stem}: input {input_error:.1e}, levels {level_error:.1e}, proposals {matched}/{}, proposal features \
         {head_error:.1e}, logits {logit_error:.1e}, scores {score_error:.1e}, boxes {box_px:.1e} px ({resized_px:.1e} \
         resized), features {feature_error:.1e}, elsewhere {elsewhere_error:.1e}",
        expected.len()
    );
    // Each about five times the most that was measured, which stands beside it; the input is equal to the bit.
    assert!(input_error == 0.0, "input {input_error}");
    assert!(level_error < 3e-4, "levels {level_error}"); // 6.1e-5
    assert!(matched * 100 >= expected.len() * 99, "{matched} of {} proposals", expected.len()); // all
    assert!(head_error < 3e-4, "proposal features {head_error}"); // 5.8e-5
    assert!(logit_error < 2e-4, "proposal logits {logit_error}"); // 3.8e-5
    assert!(score_error < 3e-5, "scores {score_error}"); // 9.0e-6
    assert!(box_px < 1e-3, "boxes {box_px} px"); // 2.1e-4
    assert!(resized_px < 2.2e-3, "boxes {resized_px} px of the resized image"); // 4.3e-4
    assert!(feature_error < 5e-4, "features {feature_error}"); // 1.0e-4
    assert!(elsewhere_error < 3e-4, "features elsewhere {elsewhere_error}"); // 5.2e-5
    Ok(analysis)
}

/// For each of the reference's detections its place among ours: the same one, but that detections whose scores differ by less
/// than the scores' error may have swapped places. (In `chelsea` two of different classes are 2.3e-6 apart.)
fn places(scores: &[f32], boxes: &[[f32; 4]], found: &[[f32; 4]]) -> Vec<usize> {
    const TIE: f32 = 2e-5; // twice the scores' error
    let mut places: Vec<usize> = Vec::new();
    for (i, expected) in boxes.iter().enumerate() {
        let tied = (0..scores.len()).filter(|&j| (scores[i] - scores[j]).abs() < TIE && !places.contains(&j));
        let nearest = tied.min_by(|&a, &b| box_error(&found[a], expected).total_cmp(&box_error(&found[b], expected)));
        places.push(nearest.unwrap_or(i));
    }
    places
}

fn order(places: &[usize]) -> Result<Tensor> {
    Ok(Tensor::new(places.iter().map(|&place| place as u32).collect::<Vec<_>>(), &Device::Cpu)?)
}

/// The student project's own code, run with the same weights.
fn compare_student(detector: &Detector, analysis: &Analysis, stem: &str) -> Result<()> {
    let reference = tensors(&format!("student/{stem}.safetensors"))?;
    let regions = select(detector, analysis, 36, Selection::Student)?;
    let expected = boxes(&reference["visual_pos"])?;
    assert_eq!(regions.num_regions(), expected.len());
    let (width, height) = (regions.image_width as f32, regions.image_height as f32);
    let px = |boxes: &[[f32; 4]]| boxes.iter().map(|b| to_pixels(b, width, height)).collect::<Vec<_>>();
    let (found, expected) = (px(&regions.boxes), px(&expected));
    let places = places(&regions.scores, &expected, &found);
    let errors = places.iter().zip(&expected).map(|(&place, b)| box_error(&found[place], b));
    let box_px = errors.fold(0.0, f32::max);
    let features = Tensor::from_vec(regions.features, (36, regions.feature_dim), &Device::Cpu)?;
    let feature_error = relative_error(&features.index_select(&order(&places)?, 0)?, &reference["visual_feats"])?;
    println!("{stem}, student's rule: boxes {box_px:.1e} px, features {feature_error:.1e}");
    assert!(box_px < 1e-3, "{stem}: boxes {box_px} px"); // measured 2.1e-4
    assert!(feature_error < 3e-4, "{stem}: features {feature_error}"); // measured 6.1e-5
    Ok(())
}

#[test]
fn both_photos_agree_with_torchvision_and_the_student_project() -> Result<()> {
    let detector = reference_detector(0, Precision::F32)?;
    for stem in ["chelsea", "coffee"] {
        let analysis = compare(&detector, stem)?;
        compare_student(&detector, &analysis, stem)?;
    }
    Ok(())
}

/// Another seed, and a portrait image, whose long side sets the scale.
#[test]
fn another_network_and_photo_agree_with_torchvision() -> Result<()> {
    compare(&reference_detector(7, Precision::F32)?, "astronaut")?;
    Ok(())
}
