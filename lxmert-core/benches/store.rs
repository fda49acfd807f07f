//! A feature store as training uses it: the time to open it, to look names up and to read random batches, and the resident memory
//! after each, as JSON lines. Memory is this process's own (`RssAnon`) and that of mapped files (`RssFile`), which the system
//! may drop.
//!
//! `cargo bench -p lxmert-core --bench store -- [--images N] [--dtype f32|f16|bf16] [--batches N] [--folder DIR]`
//! writes a store of N images (default: Flickr30k's 31,783) with 36 regions of 2048 numbers into a temporary folder in
//! DIR, reads it in a separate process and removes it: 9.4 GB in f32. `--write DIR` only writes a store and keeps it;
//! `--read DIR` only reads; given more than once, the folders are one store.

use anyhow::{Result, ensure};
use clap::Parser;
use lxmert_core::features::{FeatureStore, Regions, StoreDtype, StoreFolders, StoreInfo, StoreWriter};
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
    read: Vec<PathBuf>,
    /// The images' names start so
    #[arg(long, value_name = "TEXT", default_value = "")]
    prefix: String,
    /// Passed by Cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn write(folder: &Path, arguments: &Arguments) -> Result<()> {
    let Arguments { images, dtype, ref prefix, .. } = *arguments;
    let (regions, width) = if arguments.index_only { (1, 1) } else { (REGIONS, WIDTH) };
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
        writer.push(&format!("{prefix}{image:07}.jpg"), &regions)?;
    }
    writer.finish()?;
    Ok(())
}

/// The resident memory of this process and of files that it has mapped, in MB; known only on Linux.
fn resident() -> Option<[f64; 2]> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<f64>().ok()? * 1024.0 / 1e6)
    };
    Some([of("RssAnon:")?, of("RssFile:")?])
}

fn read(folders: &[PathBuf], batches: usize) -> Result<()> {
    let before = resident();
    let start = Instant::now();
    let store = FeatureStore::open(folders.iter().cloned().collect::<StoreFolders>())?;
    let opened = start.elapsed().as_secs_f64();
    let after_opening = resident();
    const LOOKUPS: usize = 100_000;
    let drawn = procedural::values("names", LOOKUPS, 0.0, store.len() as f64, 0);
    let names: Vec<String> = drawn.iter().map(|v| store.name((*v as usize).min(store.len() - 1)).to_string()).collect();
    let start = Instant::now();
    ensure!(names.iter().all(|name| store.find(name).is_some()), "a name is not found");
    let lookup = start.elapsed().as_secs_f64() / LOOKUPS as f64;
    drop((names, drawn));
    let after_lookups = resident();
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
        "batch_seconds": start.elapsed().as_secs_f64() / batches as f64, "batches": batches, "lookup_seconds": lookup,
        "resident_megabytes": {
            "before": before, "opened": after_opening, "looked up": after_lookups, "read": resident(),
        },
    });
    println!("{line}");
    Ok(())
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if !arguments.read.is_empty() {
        return read(&arguments.read, arguments.batches);
    }
    if let Some(folder) = &arguments.write {
        return write(folder, &arguments);
    }
    let folder = tempfile::Builder::new()
        .prefix("lxmert-store-")
        .tempdir_in(arguments.folder.clone().unwrap_or_else(std::env::temp_dir))?;
    write(folder.path(), &arguments)?;
    let mut child = std::process::Command::new(std::env::current_exe()?);
    child.arg("--read").arg(folder.path()).args(["--batches", &arguments.batches.to_string()]);
    ensure!(child.status()?.success(), "reading failed");
    Ok(())
}
