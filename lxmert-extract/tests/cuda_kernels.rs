//! A detector's CUDA kernels without a GPU: held against the CPU's operations on the same inputs, launched as the device launches
//! them. Every launch runs with its threads in either order and must give the same bits; boxes must be the CPU's, bit for bit.

#![cfg(unix)]

#[path = "../../lxmert-core/tests/cuda_on_cpu/mod.rs"]
mod cuda_on_cpu;

use candle_core::{Result, Tensor};
use cuda_on_cpu::Library;
use lxmert_core::boxes::BoxXyxy;
use lxmert_core::ops::cuda::launches::Launch;
use lxmert_core::ops::cuda::launches::regions::{Pooling, Proposing, ProposingPlaces, REGION};
use lxmert_core::procedural;
use lxmert_extract::detector::DetectorConfig;
use lxmert_extract::detector::config::{BoxConvention, PoolerType, RoiHeadsConfig, RpnConfig};
use lxmert_extract::detector::roi_heads::RoiPooler;
use lxmert_extract::detector::rpn::{LevelPrediction, Proposals, propose, proposing};
use lxmert_extract::detector::visual_genome;

/// Runs the launches into `out`, threads in either order, and asserts that the bits are the same.
fn run(library: &Library, launches: &[Launch], out: &mut [f32]) {
    let mut once = |reverse| {
        out.fill(f32::NAN);
        launches.iter().for_each(|launch| library.launch(launch, reverse));
        out.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
    };
    assert!(once(false) == once(true), "{}: depends on the order of threads", launches[0].kernel);
    assert!(out.iter().all(|value| !value.is_nan()), "{}: leaves values out", launches[0].kernel);
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn tensor(name: &str, shape: &[usize], range: (f32, f32), seed: u64) -> Tensor {
    procedural::tensor(name, shape, f64::from(range.0), f64::from(range.1), seed).unwrap()
}

/// Rows of a kernel's regions.
fn rows(boxes: &[BoxXyxy]) -> Vec<f32> {
    boxes.iter().flat_map(|b| [b[0], b[1], b[2], b[3], 1.0, 1.0]).collect()
}

/// Pooled by the kernel.
fn pooled(library: &Library, pooling: &Pooling, levels: &[Tensor], boxes: &[BoxXyxy]) -> Vec<f32> {
    let levels: Vec<Vec<f32>> = levels.iter().map(values).collect();
    let addresses: Vec<u64> = levels.iter().map(|level| level.as_ptr() as u64).collect();
    let (table, regions) = (pooling.table(&addresses), rows(boxes));
    let mut out = vec![0.0; boxes.len() * (pooling.channels * pooling.bins * pooling.bins) as usize];
    let places = [table.as_ptr() as u64, regions.as_ptr() as u64, out.as_ptr() as u64];
    run(library, &[pooling.launch(places, boxes.len() as u32)], &mut out);
    out
}

/// Boxes of all sizes, at the border, outside, empty, inverted, and of the sizes at which the level changes.
fn boxes() -> Vec<BoxXyxy> {
    let mut boxes: Vec<BoxXyxy> = vec![
        [0.0, 0.0, 111.0, 95.0],
        [10.0, 10.0, 10.0, 10.0],
        [50.0, 40.0, 20.0, 30.0],
        [-30.0, -20.0, 4.0, 5.0],
        [100.0, 90.0, 400.0, 300.0],
        [500.0, 500.0, 510.0, 510.0],
        [0.0, 0.0, 16.0, 16.0],
        [3.0, 4.0, 35.0, 36.0],
        [7.5, 2.5, 64.5, 31.5],
    ];
    for (i, v) in procedural::values("boxes", 80, 0.0, 100.0, 3).chunks_exact(4).enumerate() {
        boxes.push([v[0], v[1], v[0] + v[2] / (1 + i % 5) as f32, v[1] + v[3] / (1 + i % 7) as f32]);
    }
    boxes
}

#[test]
fn pooled_regions_equal_the_cpu_s() -> Result<()> {
    let Some((library, _lock)) = Library::get() else { return Ok(()) };
    let padded = (96, 112);
    let (mut furthest, mut largest) = (0f32, 0f32);
    for (case, channels) in [5usize, 1, 64].into_iter().enumerate() {
        let pyramid: Vec<Tensor> = [4, 8, 16, 32]
            .iter()
            .map(|s| tensor("level", &[1, channels, padded.0 / s, padded.1 / s], (-1.0, 1.0), *s as u64))
            .collect();
        let heads = RoiHeadsConfig {
            pool_size: [7, 3, 1][case],
            sampling_ratio: [2, 0, 3][case],
            canonical_box_size: 32.0,
            ..RoiHeadsConfig::default()
        };
        let align = DetectorConfig { roi_heads: heads, ..DetectorConfig::coco() };
        let mut max = visual_genome::caffe();
        max.roi_heads.pool_size = [14, 3, 1][case];
        assert_eq!(max.roi_heads.pooler_type, PoolerType::RoiPool);
        for (config, levels) in [(&align, &pyramid[..]), (&max, &pyramid[2..3])] {
            let pooler = RoiPooler::new(config);
            for count in [0, 1, boxes().len()] {
                let boxes = boxes()[..count].to_vec();
                let want = values(&pooler.forward(levels, std::slice::from_ref(&boxes), padded)?);
                let got = pooled(library, &pooler.pooling(levels, padded)?, levels, &boxes);
                assert_eq!(got.len(), want.len());
                let exact = config.roi_heads.pooler_type == PoolerType::RoiPool;
                for (g, w) in got.iter().zip(&want) {
                    assert!((g - w).abs() <= if exact { 0.0 } else { 1e-5 }, "{g}, not {w}: {config:?}");
                    (furthest, largest) = (furthest.max((g - w).abs()), largest.max(w.abs()));
                }
            }
        }
    }
    println!("pooled regions: largest error {furthest:e} of values up to {largest}");
    Ok(())
}

/// The kernels' proposals.
fn proposed(library: &Library, proposing: &Proposing, predictions: &[LevelPrediction]) -> Result<Proposals> {
    let held: Vec<[Vec<f32>; 2]> = predictions.iter().map(|p| [values(&p.logits), values(&p.deltas)]).collect();
    let addresses: Vec<[u64; 3]> = held
        .iter()
        .zip(&proposing.levels)
        .map(|([logits, deltas], level)| {
            [logits.as_ptr() as u64, deltas.as_ptr() as u64, level.anchors.as_ptr() as u64]
        })
        .collect();
    assert!(proposing.fits());
    let table = proposing.table(&addresses);
    let rooms = proposing.rooms().map(|count| vec![u64::MAX; count.div_ceil(2)]);
    let mut out = vec![0.0; proposing.post_nms_top_n as usize * REGION];
    let places = ProposingPlaces {
        table: table.as_ptr() as u64,
        rooms: rooms.each_ref().map(|room| room.as_ptr() as u64),
        out: out.as_ptr() as u64,
    };
    run(library, &proposing.launches(&places), &mut out);
    Proposals::of_regions(&out)
}

/// Predictions of levels of 12 × 14, 6 × 7 and 3 × 4 cells. `ties`: logits of few different values.
fn predictions(shapes: usize, levels: usize, spread: f32, ties: bool, seed: u64) -> Vec<LevelPrediction> {
    let of = |(i, (h, w)): (usize, (usize, usize))| {
        let logits = tensor(&format!("logits{i}"), &[1, shapes, h, w], (-6.0, 9.0), seed);
        let logits = if ties { ((logits / 3.0).unwrap().round().unwrap() * 12.0).unwrap() } else { logits };
        let deltas = tensor(&format!("deltas{i}"), &[1, 4 * shapes, h, w], (-spread, spread), seed);
        LevelPrediction { logits, deltas }
    };
    [(12, 14), (6, 7), (3, 4)].into_iter().take(levels).enumerate().map(of).collect()
}

/// Random and tied scores, boxes that overlap little and much or are too small, more and fewer candidates than are wanted, both
/// conventions, and images without a proposal.
#[test]
fn proposals_are_the_cpu_s_bit_for_bit() -> Result<()> {
    let Some((library, _lock)) = Library::get() else { return Ok(()) };
    let (padded, resized, scale) = ((96, 112), (90, 107), 1.25);
    let rpn = RpnConfig {
        anchor_sizes: vec![vec![8.0], vec![16.0], vec![32.0]],
        aspect_ratios: vec![0.5, 1.0, 2.0],
        ..RpnConfig::default()
    };
    let coco = DetectorConfig { rpn, ..DetectorConfig::coco() };
    let mut caffe = visual_genome::caffe();
    caffe.rpn.anchor_sizes = vec![vec![16.0, 32.0, 64.0, 128.0]];
    let (mut kept, mut tested) = (0, 0);
    for (config, shapes, levels) in [(&coco, 3, 3), (&caffe, 12, 1)] {
        assert_eq!(config.box_convention == BoxConvention::Inclusive, levels == 1);
        for (case, spread) in [0.1f32, 0.5, 3.0, 0.5, 0.5, 0.5].into_iter().enumerate() {
            for ties in [false, true] {
                let mut config = config.clone();
                config.rpn.pre_nms_top_n = [50, 1000, 2000, 1, 300, 300][case];
                config.rpn.post_nms_top_n = [30, 1000, 100, 5, 1, 40][case];
                config.rpn.score_threshold = [0.0, 0.0, 0.3, 0.0, 0.0, 2.0][case];
                let predictions = predictions(shapes, levels, spread, ties, case as u64);
                let want = propose(&config, &predictions, 0, resized, padded, scale)?;
                let proposing = proposing(&config, &predictions, resized, padded, scale)?;
                let got = proposed(library, &proposing, &predictions)?;
                let bits = |p: &Proposals| p.boxes.iter().flatten().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert!(bits(&got) == bits(&want), "case {case}, ties {ties}: {got:?}, not {want:?}");
                assert_eq!(got.scores, want.scores, "case {case}, ties {ties}");
                assert_eq!(want.boxes.is_empty(), case == 5);
                (kept, tested) = (kept + got.boxes.len(), tested + 1);
            }
        }
        let mut broken = predictions(shapes, levels, 0.5, false, 9);
        broken[levels - 1].deltas = (&broken[levels - 1].deltas * f64::NAN)?;
        let proposing = proposing(config, &broken, resized, padded, scale)?;
        assert!(proposed(library, &proposing, &broken).unwrap_err().to_string().contains("are NaN"));
    }
    println!("proposals: {kept} boxes of {tested} images, all the CPU's");
    Ok(())
}

/// The CPU's rule for up to 1000 boxes shifts levels apart, and the coordinates are rounded there.
#[test]
fn more_than_a_thousand_candidates_are_not_shifted() -> Result<()> {
    let Some((library, _lock)) = Library::get() else { return Ok(()) };
    let mut config = DetectorConfig::coco();
    config.rpn.anchor_sizes = vec![vec![8.0], vec![16.0]];
    config.rpn.pre_nms_top_n = 900;
    config.rpn.post_nms_top_n = 400;
    let sides = [(24usize, 28usize), (12, 14)];
    let predictions: Vec<LevelPrediction> = sides
        .iter()
        .map(|&(h, w)| LevelPrediction {
            logits: tensor("logits", &[1, 3, h, w], (-6.0, 9.0), 1),
            deltas: tensor("deltas", &[1, 12, h, w], (-0.3, 0.3), 1),
        })
        .collect();
    let want = propose(&config, &predictions, 0, (96, 112), (96, 112), 1.0)?;
    let got = proposed(library, &proposing(&config, &predictions, (96, 112), (96, 112), 1.0)?, &predictions)?;
    assert_eq!((got.boxes, got.scores), (want.boxes, want.scores));
    Ok(())
}
