//! `lxmert-train`: arguments in, a run folder or a table of measures out.

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use lxmert_core::cli::{self, CommonArgs, DeviceChoice, catch_interrupts, keep_freed_memory, print_line};
use lxmert_train::arguments::{Circumstances, EvaluateArgs, Evaluated, TrainArgs};
use lxmert_train::ask::{self, AskArgs};
use lxmert_train::check_published::{self, CheckArgs};
use lxmert_train::compare::CompareArgs;
use lxmert_train::ranks;
use lxmert_train::run_folder::Report;
use lxmert_train::tasks::registry;
use lxmert_train::trainer::Outcome;
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
    /// Measure a checkpoint on a split of a data set
    Evaluate(EvaluateArgs),
    Ask(AskArgs),
    Compare(CompareArgs),
    CheckPublished(Box<CheckArgs>),
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
        Some(Command::Compare(args)) => Ok(cli::print(args.run()?)?),
        Some(Command::CheckPublished(args)) => {
            let findings = check_published::run(args, &with)?;
            cli::print(&findings)?;
            match findings.wrong() {
                0 => Ok(()),
                wrong => bail!("{wrong} of {} checks are not as published", findings.0.len()),
            }
        }
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
            log::info!("checkpoint {}", output.join("best").display());
            log::info!("curves {}", output.join("curves.png").display());
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

fn evaluate(args: &EvaluateArgs, with: &Circumstances) -> Result<()> {
    let found = args.measure(with)?;
    if !ranks::world().is_first() {
        return Ok(());
    }
    if args.json {
        return Ok(print_line(serde_json::to_string_pretty(&found).context("the measures as JSON")?)?);
    }
    let epoch = found.epoch.map_or_else(String::new, |epoch| format!(", epoch {epoch}"));
    let Evaluated { task, data, precision, .. } = &found;
    print_line(format_args!("{task} on {data}{epoch}; products of the encoders' layers in {precision}\n"))?;
    Ok(cli::print(found.measures.tables(&found.split))?)
}

fn print_report(report: &Report) -> lxmert_core::Result<()> {
    print_line(format_args!(
        "{}, {}, seed {}: {} epochs, {} steps, {}; best epoch {}\n",
        report.data, report.task, report.seed, report.epochs, report.steps, report.seconds, report.test.epoch
    ))?;
    cli::print(report.test.test.tables("test"))
}

/// The command as it was typed, with the program's bare name.
fn command_line() -> String {
    let mut words = vec!["lxmert-train".to_string()];
    words.extend(std::env::args().skip(1).map(|word| if word.contains(' ') { format!("'{word}'") } else { word }));
    words.join(" ")
}
