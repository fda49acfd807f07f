//! A feature store as training uses it: the time to open it, the time of its first batch, and the resident memory that
//! reading random batches takes, as JSON lines.
//!
//! `cargo bench -p lxmert-core --bench store -- [--images N] [--dtype f32|f16|bf16] [--batches N] [--folder DIR]`
//! writes a store of N images (default: Flickr30k's 31,783) with 36 regions of 2048 numbers into a temporary folder in
//! DIR, reads it in a separate process and removes it: 9.4 GB in f32. `--write DIR` only writes a store and keeps it;
//! `--read DIR` only reads.

use anyhow::{Result, ensure};
use clap::Parser;
use lxmert_core::features::{FeatureStore, Regions, StoreDtype, StoreInfo, StoreWriter};
use lxmert_core::procedural;
use std::path::{Path, PathBuf};
use std::time::Instant;

const REGIONS: usize = 36;
const WIDTH: usize = 2048;
const BATCH: usize = 32;

/// Measures reading a feature store; prints one JSON line.
#[derive(Parser)]
struct Arguments {
    /// Images in the store
    #[arg(long, value_name = "N", default_value_t = 31_783)]
    images: usize,
    /// Random batches to read
    #[arg(long, value_name = "N", default_value_t = 200)]
    batches: usize,
    #[arg(long, value_enum, default_value_t = StoreDtype::F32)]
    dtype: StoreDtype,
    /// Where to write and remove the store [default: the system's folder for temporary files]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Images of one region of one number, in as many shards as real ones take: what opening costs at 10⁵ and 10⁶ images
    #[arg(long)]
    index_only: bool,
    /// Only write a store and keep it
    #[arg(long, value_name = "DIR", conflicts_with = "read")]
    write: Option<PathBuf>,
    /// Only read
    #[arg(long, value_name = "DIR")]
    read: Option<PathBuf>,
    /// Passed by Cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn write(folder: &Path, images: usize, dtype: StoreDtype, (regions, width): (usize, usize)) -> Result<()> {
    let info = StoreInfo {
        regions,
        feature_dim: width,
        dtype,
        detector: "random numbers".into(),
        settings: Default::default(),
        label_names: vec!["thing".into()],
        attribute_names: Vec::new(),
    };
    let numbers = procedural::values("features", regions * width + images, 0.0, 2.0, 0);
    // As many images a shard as of real regions: 256 MiB.
    let row = |regions: usize, width: usize| regions * (width * dtype.size() + 24) + 12;
    let per_shard = (256 << 20) / row(REGIONS, WIDTH);
    let mut writer = StoreWriter::open_with(folder, info, per_shard * row(regions, width))?;
    for image in 0..images {
        let regions = Regions {
            image_width: 500,
            image_height: 375,
            feature_dim: width,
            features: numbers[image..image + regions * width].to_vec(),
            boxes: vec![[0.25, 0.25, 0.75, 0.75]; regions],
            labels: vec![0; regions],
            scores: vec![1.0; regions],
            attributes: None,
        };
        writer.push(&format!("{image:07}.jpg"), &regions)?;
    }
    writer.finish()?;
    Ok(())
}

/// The peak resident memory of this process, in MB; known only on Linux.
fn peak_resident() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<f64>().ok()? * 1024.0 / 1e6)
}

fn read(folder: &Path, batches: usize) -> Result<()> {
    let start = Instant::now();
    let store = FeatureStore::open(folder)?;
    let opened = start.elapsed().as_secs_f64();
    let after_opening = peak_resident();
    let (mut features, mut boxes, mut mask) = (Vec::new(), Vec::new(), Vec::new());
    let mut first = None;
    let start = Instant::now();
    for batch in 0..batches {
        let drawn = procedural::values("images", BATCH, 0.0, store.len() as f64, batch as u64);
        let images: Vec<usize> = drawn.iter().map(|v| (*v as usize).min(store.len() - 1)).collect();
        store.read_batch(&images, &mut features, &mut boxes, &mut mask)?;
        ensure!(
            features.len() == BATCH * store.info().regions * store.info().feature_dim && mask.iter().all(|m| *m == 1.0),
            "a batch is incomplete"
        );
        first.get_or_insert(start.elapsed().as_secs_f64());
    }
    let line = serde_json::json!({
        "images": store.len(), "dtype": store.info().dtype.name(), "gigabytes": store.size_on_disk() as f64 / 1e9,
        "shards": store.num_shards(), "open_seconds": opened, "first_batch_seconds": first,
        "batch_seconds": start.elapsed().as_secs_f64() / batches as f64, "batches": batches,
        "resident_megabytes_after_opening": after_opening, "resident_megabytes": peak_resident(),
    });
    println!("{line}");
    Ok(())
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(folder) = arguments.read {
        return read(&folder, arguments.batches);
    }
    let size = if arguments.index_only { (1, 1) } else { (REGIONS, WIDTH) };
    if let Some(folder) = arguments.write {
        return write(&folder, arguments.images, arguments.dtype, size);
    }
    let folder = tempfile::Builder::new()
        .prefix("lxmert-store-")
        .tempdir_in(arguments.folder.unwrap_or_else(std::env::temp_dir))?;
    write(folder.path(), arguments.images, arguments.dtype, size)?;
    let mut child = std::process::Command::new(std::env::current_exe()?);
    child.arg("--read").arg(folder.path()).args(["--batches", &arguments.batches.to_string()]);
    ensure!(child.status()?.success(), "reading failed");
    Ok(())
}
