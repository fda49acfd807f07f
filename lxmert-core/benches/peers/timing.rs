//! Timing for the benches that `compare.py` reads.

use anyhow::Result;
use std::time::Instant;

/// Seconds for each of `runs` runs, after one warm-up run.
pub fn time(runs: usize, mut run: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
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
