//! `lxmert-train`: arguments in, a run folder or a table of measures out.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use lxmert_core::cli::{self, CommonArgs, DeviceChoice, catch_interrupts, keep_freed_memory, print_line};
use lxmert_core::ops::Precision;
use lxmert_train::arguments::{Circumstances, EvaluateArgs, TrainArgs};
use lxmert_train::ask::{self, AskArgs};
use lxmert_train::log::jsonl::TestRecord;
use lxmert_train::ranks;
use lxmert_train::run_folder::Report;
use lxmert_train::tasks::registry;
use lxmert_train::trainer::Outcome;
use serde::Serialize;
use std::process::ExitCode;

/// Trains LXMERT on one of its tasks, such as to tell whether a sentence describes an image.
///
/// Without arguments it trains on the generated scenes (data/scenes, data/features/scenes) and
/// writes runs/scenes; an unfinished run of the same settings is resumed.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    train: TrainArgs,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Measure a checkpoint on a data set's test split
    Evaluate(EvaluateArgs),
    Ask(AskArgs),
}

fn main() -> ExitCode {
    let cli = cli::parse();
    // Kept until the end.
    let _connection = match ranks::connect() {
        Ok(connection) => connection,
        Err(error) => return cli::report_failure(&error, false),
    };
    run(cli).map_or_else(|error| failure(&error), |()| ExitCode::SUCCESS)
}

/// Says why the job failed. What has failed on one rank alone ends all.
fn failure(error: &anyhow::Error) -> ExitCode {
    let (own, world) = (error.downcast_ref::<lxmert_train::Error>(), ranks::world());
    let stopped = own.is_some_and(lxmert_train::Error::is_interrupt);
    // Rank 0 says for all what has ended all, and each rank its own errors.
    let elsewhere = matches!(own, Some(lxmert_train::Error::OtherRank { .. }));
    let code = match world.is_first() || !(stopped || elsewhere) {
        // Our errors carry their cause in their own text; printing the chain would repeat it.
        true => cli::report_failure(&world.naming(error), stopped),
        false => ExitCode::from(if stopped { 130 } else { 1 }),
    };
    if !(stopped || elsewhere) {
        world.abort(1);
    }
    code
}

fn run(mut cli: Cli) -> Result<()> {
    let world = ranks::world();
    // Rank 0 speaks for all.
    cli.common.quiet |= !world.is_first();
    let (threads, crowded) = ranks::share_of_cores(world, cli.common.threads)?;
    cli.common.threads = threads;
    if cfg!(feature = "nccl") && cli.common.device == DeviceChoice::Auto {
        cli.common.device = DeviceChoice::Cuda(world.local_rank());
    }
    let CommonArgs { seed, .. } = cli.common;
    let with = Circumstances { device: cli.common.start()?, seed, show_progress: cli.common.show_progress() };
    if let Some(warning) = crowded {
        log::warn!("{warning}");
    }
    catch_interrupts();
    match &cli.command {
        Some(Command::Evaluate(args)) => evaluate(args, &with),
        Some(Command::Ask(args)) => Ok(ask::run(args, &with.device, with.show_progress)?),
        None => train(&cli.train, with),
    }
}

fn train(args: &TrainArgs, with: Circumstances) -> Result<()> {
    keep_freed_memory();
    let job = args.job(with, command_line())?;
    let output = &job.output;
    let outcome = registry::train(&job)?;
    if !ranks::world().is_first() {
        return Ok(());
    }
    match outcome {
        Outcome::Finished(report) => {
            print_report(&report)?;
            let (best, curves) = (output.join("best"), output.join("curves.png"));
            print_line(format_args!("checkpoint {}\ncurves     {}", best.display(), curves.display()))?;
        }
        Outcome::AlreadyFinished(report) => {
            print_report(&report)?;
            print_line(format_args!(
                "{}: this run has already finished; nothing was done. Train again with --overwrite, or beside it with --output DIR",
                output.display()
            ))?;
        }
    }
    Ok(())
}

/// What `evaluate --json` prints.
#[derive(Serialize)]
struct Evaluated {
    precision: Precision,
    #[serde(flatten)]
    record: TestRecord,
}

fn evaluate(args: &EvaluateArgs, with: &Circumstances) -> Result<()> {
    let test = args.measure(with)?;
    if !ranks::world().is_first() {
        return Ok(());
    }
    if args.json {
        let measured = Evaluated { precision: args.precision, record: TestRecord { epoch: 0, test } };
        print_line(serde_json::to_string_pretty(&measured).context("the measures as JSON")?)?;
    } else {
        print_line(format_args!("products of the encoders' layers in {}\n", args.precision))?;
        cli::print(test.tables("test"))?;
    }
    Ok(())
}

fn print_report(report: &Report) -> lxmert_core::Result<()> {
    print_line(format_args!(
        "{}, {}: {} epochs, {} steps, {:.0} s; best epoch {}\n",
        report.data, report.task, report.epochs, report.steps, report.training_seconds, report.test.epoch
    ))?;
    cli::print(report.test.test.tables("test"))
}

/// The command as it was typed, with the program's bare name.
fn command_line() -> String {
    let mut words = vec!["lxmert-train".to_string()];
    words.extend(std::env::args().skip(1).map(|word| if word.contains(' ') { format!("'{word}'") } else { word }));
    words.join(" ")
}
