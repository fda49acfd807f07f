//! `lxmert-extract scenes`: its arguments and the command.

use super::{ScenesConfig, generate};
use lxmert_core::Result;
use lxmert_core::cli::print_line;
use lxmert_core::workspace::Workspace;
use std::path::PathBuf;

/// Draw the data set of scenes, with captions, hard negatives and boxes
#[derive(Debug, Clone, clap::Args)]
pub struct ScenesArgs {
    /// Folder to create [default: data/scenes]
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Number of scenes
    #[arg(long, default_value_t = ScenesConfig::default().count, value_name = "N")]
    pub count: usize,
    /// Width and height of the pictures in pixels
    #[arg(long, default_value_t = ScenesConfig::default().width, value_name = "PX")]
    pub side: u32,
    /// Replace the folder if it exists
    #[arg(long)]
    pub overwrite: bool,
}

/// Runs the command; `seed` and `progress` come from the common arguments.
///
/// # Errors
/// As [`generate`]; also if the folder exists and `--overwrite` is not given.
pub fn run(args: &ScenesArgs, seed: u64, progress: bool) -> Result<()> {
    let output = match &args.output {
        Some(folder) => folder.clone(),
        None => Workspace::locate().data("scenes"),
    };
    let config =
        ScenesConfig { count: args.count, seed, width: args.side, height: args.side, ..ScenesConfig::default() };
    let summary = generate(&output, &config, args.overwrite, progress)?;
    progress.then(|| print_line(format_args!("{}: {summary}", output.display()))).transpose()?;
    Ok(())
}
