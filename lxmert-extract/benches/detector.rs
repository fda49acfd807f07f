//! Faster R-CNN R50-FPN with the reference run's formula weights, at the sizes that the peers' scripts time, as JSON lines that
//! `lxmert-core/benches/peers/compare.py` reads.
//!
//! `cargo bench -p lxmert-extract --bench detector -- [--runs N] [--height N --width N] [case …]`

use anyhow::{Context, Result};
use candle_core::Tensor;
use lxmert_core::ops::Precision;
use lxmert_core::procedural;
use lxmert_extract::detector::inference::PackedNetwork;
use std::time::Instant;

#[path = "../tests/common/mod.rs"]
mod common;

/// Seconds of each of `runs` runs after one to warm up.
fn time(runs: usize, mut run: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    let mut seconds = Vec::with_capacity(runs);
    for i in 0..=runs {
        let start = Instant::now();
        run()?;
        if i > 0 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    Ok(seconds)
}

#[allow(unsafe_code)]
fn main() -> Result<()> {
    // SAFETY: the first thing in `main`, while this is the only thread. As `CommonArgs::start` does: candle's own pool spins.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    let (mut runs, mut height, mut width, mut names) = (5, 800, 1088, Vec::new());
    let mut arguments = std::env::args().skip(1).filter(|a| a != "--bench");
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().context("a number is missing")?.parse().context("not a number");
        match argument.as_str() {
            "--runs" => runs = number()?,
            "--height" => height = number()?,
            "--width" => width = number()?,
            _ => names.push(argument),
        }
    }
    let wanted = |case: &str| names.is_empty() || names.iter().any(|name| name == case);
    let report = |case: &str, seconds: Vec<f64>| {
        println!("{}", serde_json::json!({"case": case, "height": height, "width": width, "seconds": seconds}));
    };
    for (suffix, precision) in [("", Precision::F32), (", bf16", Precision::Bf16)] {
        let name = format!("detector network{suffix}");
        if wanted(&name) {
            let images = procedural::tensor("images", &[1, 3, height, width], -2.0, 2.0, 1)?;
            let detector = common::reference_detector(0, precision)?;
            let network = PackedNetwork::new(detector.network(), precision)?;
            let network = network.context("LXMERT_KERNELS=reference packs nothing")?;
            report(&name, time(runs, || Ok(network.forward(&images).map(drop)?))?);
        }
        let name = format!("whole image{suffix}");
        if wanted(&name) {
            let detector = common::reference_detector(0, precision)?;
            let image: Tensor = common::photo("coffee.png")?;
            let run = || {
                let analysis = detector.analyse(&image)?;
                let found = detector.detections(&analysis)?;
                anyhow::ensure!(found.features.dim(0)? >= 36, "fewer than 36 regions");
                Ok(())
            };
            report(&name, time(runs, run)?);
        }
    }
    Ok(())
}
