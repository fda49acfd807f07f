//! `lxmert-extract`: arguments, and what to print.

use clap::{Parser, Subcommand};
use lxmert_core::cli::{self, CommonArgs, print_line};
use lxmert_core::features::{FeatureStore, StoreDtype};
use lxmert_extract::detector::training::cli::{self as training_cli, TrainDetectorArgs};
use lxmert_extract::extraction::Extraction;
use lxmert_extract::failures::{self, Failure};
use lxmert_extract::import::pt::import_pt;
use lxmert_extract::import::tsv::{TsvOptions, import_tsv};
use lxmert_extract::inspect;
use lxmert_extract::parts::{self, PartChoice};
use lxmert_extract::pipeline::ExtractSummary;
use lxmert_extract::scenes::cli::{self as scenes_cli, ScenesArgs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Photos to regions: finds objects in images and stores a feature, box and label for each.
///
/// Without arguments: draws data/scenes if it does not exist and extracts it into data/features/scenes.
/// Exit code: 0 success, 1 some images or the job failed, 2 wrong arguments, 130 after Ctrl-C.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    extraction: Extraction,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Subcommand)]
enum Command {
    Scenes(ScenesArgs),
    /// Show the contents of a feature store
    Inspect {
        /// Folder of the store
        store: PathBuf,
        /// Show this image's regions
        #[arg(long, value_name = "NAME")]
        image: Option<String>,
        /// List the names: of the images, of the objects and of the attributes
        #[arg(long, conflicts_with = "image")]
        names: bool,
    },
    /// Make one feature store of the parts that --part has extracted; shards are renamed, not copied
    Merge {
        /// Folder of the store
        store: PathBuf,
    },
    /// Train a small detector on generated scenes
    TrainDetector(TrainDetectorArgs),
    /// Make a feature store from region features of another program
    #[command(subcommand)]
    Import(Import),
}

#[derive(Subcommand)]
enum Import {
    /// Bottom-up attention's TSV, as LXMERT reads it
    BottomUp {
        /// The TSV
        tsv: PathBuf,
        /// Folder of the store
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
        /// Number type of the stored features
        #[arg(long, value_enum, default_value_t = StoreDtype::F32)]
        dtype: StoreDtype,
        /// Names of the objects, one per line; of comma-separated synonyms, the first [default: Visual Genome's]
        #[arg(long, value_name = "FILE")]
        objects: Option<PathBuf>,
        /// Names of the attributes, likewise [default: Visual Genome's]
        #[arg(long, value_name = "FILE")]
        attributes: Option<PathBuf>,
        /// Import only the K-th of N blocks of the rows, as --part of an extraction does; merge the parts afterwards
        #[arg(long, value_name = "K/N|auto")]
        part: Option<PartChoice>,
    },
    /// The student project's folder of .pt files, one per image
    Student {
        /// The folder
        folder: PathBuf,
        /// Folder of the store
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
        /// Number type of the stored features
        #[arg(long, value_enum, default_value_t = StoreDtype::F32)]
        dtype: StoreDtype,
    },
}

fn main() -> ExitCode {
    // Our errors include their cause; printing the chain would repeat it.
    run(cli::parse()).unwrap_or_else(|error| cli::report_failure(&error, error.is_interrupt()))
}

fn run(cli: Cli) -> lxmert_extract::Result<ExitCode> {
    let device = cli.common.start()?;
    let (seed, progress) = (cli.common.seed(), cli.common.show_progress());
    cli::catch_interrupts();
    match cli.command {
        None => return report("extracted", &cli.extraction.run(seed, &device, progress)?, progress),
        Some(Command::Scenes(args)) => scenes_cli::run(&args, seed, progress)?,
        Some(Command::TrainDetector(args)) => training_cli::run(&args, seed, &device, progress)?,
        Some(Command::Inspect { store, image, names }) => {
            let store = FeatureStore::open(store)?;
            cli::print(match image {
                Some(name) => inspect::describe_image(&store, &name)?,
                None if names => inspect::list_names(&store),
                None => inspect::describe_store(&store)?,
            })?;
        }
        Some(Command::Merge { store }) => {
            let merged = parts::merge(&store)?;
            progress.then(|| print_line(merged.describe())).transpose()?;
            return list_failures(&merged.store.folder, &merged.failures);
        }
        Some(Command::Import(Import::BottomUp { tsv, output, dtype, objects, attributes, part })) => {
            let part = part.map(PartChoice::part).transpose()?;
            let options = TsvOptions { part, ..TsvOptions::new(dtype, objects.as_deref(), attributes.as_deref())? };
            return report("imported", &import_tsv(&tsv, &output, &options, progress)?, progress);
        }
        Some(Command::Import(Import::Student { folder, output, dtype })) => {
            return report("imported", &import_pt(&folder, &output, dtype, progress)?, progress);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints what a job did, unless it is to be quiet; returns its exit code.
fn report(done: &str, summary: &ExtractSummary, print: bool) -> lxmert_extract::Result<ExitCode> {
    print.then(|| print_line(summary.describe(done))).transpose()?;
    let code = list_failures(&summary.store.folder, &summary.failures)?;
    if summary.interrupted {
        eprintln!("stopped; run the same command again to continue");
        return Ok(ExitCode::from(130));
    }
    Ok(code)
}

/// Says where the images that failed are listed; returns the exit code.
fn list_failures(store: &Path, failures: &[Failure]) -> lxmert_extract::Result<ExitCode> {
    if failures.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("{} failed: see {}", failures.len(), failures::path_in(store).display());
    Ok(ExitCode::FAILURE)
}
