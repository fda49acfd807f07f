//! `lxmert-extract`: arguments, and what to print.

use clap::{Parser, Subcommand};
use lxmert_core::cli::{self, CommonArgs, print_line};
use lxmert_core::features::{FeatureStore, StoreDtype};
use lxmert_extract::detector::training::cli::{self as training_cli, TrainDetectorArgs};
use lxmert_extract::extraction::Extraction;
use lxmert_extract::import::pt::import_pt;
use lxmert_extract::import::tsv::{TsvOptions, import_tsv};
use lxmert_extract::pipeline::ExtractSummary;
use lxmert_extract::scenes::cli::{self as scenes_cli, ScenesArgs};
use lxmert_extract::{failures, inspect};
use std::path::PathBuf;
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
        /// Names of the objects, one per line; of comma-separated synonyms, the first [default: their numbers]
        #[arg(long, value_name = "FILE")]
        objects: Option<PathBuf>,
        /// Names of the attributes, likewise [default: their numbers]
        #[arg(long, value_name = "FILE")]
        attributes: Option<PathBuf>,
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
        None => return report("extracted", &cli.extraction.run(seed, &device, progress)?),
        Some(Command::Scenes(args)) => scenes_cli::run(&args, seed, progress)?,
        Some(Command::TrainDetector(args)) => training_cli::run(&args, seed, &device, progress)?,
        Some(Command::Inspect { store, image }) => {
            let store = FeatureStore::open(store)?;
            match image {
                Some(name) => cli::print(inspect::describe_image(&store, &name)?)?,
                None => cli::print(inspect::describe_store(&store)?)?,
            }
        }
        Some(Command::Import(Import::BottomUp { tsv, output, dtype, objects, attributes })) => {
            let options = TsvOptions::new(dtype, objects.as_deref(), attributes.as_deref())?;
            return report("imported", &import_tsv(&tsv, &output, &options, progress)?);
        }
        Some(Command::Import(Import::Student { folder, output, dtype })) => {
            return report("imported", &import_pt(&folder, &output, dtype, progress)?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints what a job did; returns its exit code.
fn report(done: &str, summary: &ExtractSummary) -> lxmert_extract::Result<ExitCode> {
    print_line(summary.describe(done))?;
    if !summary.failures.is_empty() {
        let list = failures::path_in(&summary.store.folder);
        eprintln!("{} images failed: see {}", summary.failures.len(), list.display());
    }
    Ok(if summary.interrupted {
        eprintln!("stopped; run the same command again to continue");
        ExitCode::from(130)
    } else if summary.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
