//! Faster R-CNN R50-FPN with the reference run's formula weights, at the sizes that the peers' scripts time. Prints
//! JSON lines for `lxmert-core/benches/peers/compare.py`.
//!
//! `cargo bench -p lxmert-extract --bench detector -- [--runs N] [--height N --width N] [case …]`

use anyhow::{Context, Result};
use clap::Parser;
use lxmert_core::cli::CommonArgs;
use lxmert_core::ops::Precision;
use lxmert_core::procedural;
use lxmert_extract::detector::inference::PrepackedNetwork;
use lxmert_extract::regions::Selection;
use lxmert_extract::regions::detections::select;
use timing::time;

#[path = "../tests/common/mod.rs"]
mod common;

#[path = "../../lxmert-core/benches/peers/timing.rs"]
mod timing;

/// Times the detector; prints one JSON line per case.
#[derive(Parser)]
struct Arguments {
    /// Timed runs per case
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
    /// Height of the network's input
    #[arg(long, value_name = "N", default_value_t = 800)]
    height: usize,
    /// Width of the network's input
    #[arg(long, value_name = "N", default_value_t = 1088)]
    width: usize,
    /// The cases to run, by their printed names [default: all]
    cases: Vec<String>,
    #[command(flatten)]
    common: CommonArgs,
    /// Passed by Cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let Arguments { runs, height, width, cases, common, .. } = Arguments::parse();
    common.start()?;
    let wanted = |case: &String| cases.is_empty() || cases.contains(case);
    let report = |case: &str, seconds: Vec<f64>| {
        println!("{}", serde_json::json!({"case": case, "height": height, "width": width, "seconds": seconds}));
    };
    for (suffix, precision) in [("", Precision::F32), (", bf16", Precision::Bf16)] {
        let name = format!("detector network{suffix}");
        if wanted(&name) {
            let images = procedural::tensor("images", &[1, 3, height, width], -2.0, 2.0, 1)?;
            let detector = common::reference_detector(0, precision)?;
            let network = PrepackedNetwork::new(detector.network(), precision)?;
            let network = network.context("LXMERT_KERNELS=reference has no prepacked network")?;
            report(&name, time(runs, || Ok(network.forward(&images, true).map(drop)?))?);
        }
        let name = format!("whole image{suffix}");
        if wanted(&name) {
            let detector = common::reference_detector(0, precision)?;
            let image = common::photo("coffee.png")?;
            let run = || {
                let analysis = detector.analyse(detector.input(&image)?)?;
                let found = detector.detections(&analysis)?;
                anyhow::ensure!(found.features.dim(0)? >= 36, "fewer than 36 regions");
                Ok(())
            };
            report(&name, time(runs, run)?);
        }
        let name = format!("visual genome image{suffix}");
        if wanted(&name) {
            // 800 × 1200, 300 proposals: 2,054 GFLOP if computed directly, 85 % of them in the stage on regions.
            let detector = common::VisualGenomeRun::shipped().detector(false, precision)?;
            let image = common::photo("coffee.png")?;
            let run = || {
                let analysis = detector.analyse(detector.input(&image)?)?;
                let found = select(&detector, &analysis, 36, Selection::Detections)?;
                anyhow::ensure!(found.num_regions() == 36, "{} regions", found.num_regions());
                Ok(())
            };
            report(&name, time(runs, run)?);
        }
    }
    Ok(())
}
