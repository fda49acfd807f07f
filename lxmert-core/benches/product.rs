//! Matrix products by the microkernel, with the right side packed on the way. Prints a JSON line for each size, with the
//! median's GFLOP/s.
//!
//! `cargo bench -p lxmert-core --bench product -- [--runs N] [case …]`

use anyhow::Result;
use clap::Parser;
use lxmert_core::cli::CommonArgs;
use lxmert_core::ops::{Matrix, MatrixMut, Threads, Write, gemm};
use lxmert_core::procedural::values;
use timing::time;

#[path = "peers/timing.rs"]
mod timing;

/// Times matrix products; prints one JSON line per case.
#[derive(Parser)]
struct Arguments {
    /// Timed runs per case
    #[arg(long, value_name = "N", default_value_t = 20)]
    runs: usize,
    /// The cases to run, by their printed names [default: all]
    cases: Vec<String>,
    #[command(flatten)]
    common: CommonArgs,
    /// Passed by Cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// Rows, inner dimension, columns: a cube, and one layer's projection and feed-forward at a batch of 32 pairs.
const SIZES: [[usize; 3]; 3] = [[2048, 2048, 2048], [1792, 768, 768], [1792, 3072, 768]];

fn main() -> Result<()> {
    let Arguments { runs, cases, common, .. } = Arguments::parse();
    common.start()?;
    for [rows, inner, columns] in SIZES {
        let (a, b) = (values("a", rows * inner, -1.0, 1.0, 0), values("b", inner * columns, -1.0, 1.0, 0));
        let mut out = vec![0.0; rows * columns];
        for transposed in [false, true] {
            let case = format!("product {rows} x {inner} x {columns}{}", if transposed { ", transposed" } else { "" });
            if !cases.is_empty() && !cases.contains(&case) {
                continue;
            }
            let seconds = time(runs, || {
                let left = if transposed { Matrix::new(&a, inner, rows).t() } else { Matrix::new(&a, rows, inner) };
                let out = MatrixMut::new(&mut out, rows, columns);
                gemm(out, Write::Replace, left, Matrix::new(&b, inner, columns), Threads::Pool);
                Ok(())
            })?;
            let mut sorted = seconds.clone();
            sorted.sort_by(f64::total_cmp);
            let gflops = 2e-9 * (rows * inner * columns) as f64 / sorted[sorted.len() / 2];
            println!("{}", serde_json::json!({"case": case, "seconds": seconds, "gflops": gflops}));
        }
    }
    Ok(())
}
