//! What all commands share: common options, parsing, signals, printing, exit codes.

pub use crate::interrupt::{check_interrupt, interrupted};
use crate::ops::{Precision, cuda};
use crate::{Error, Result};
use candle_core::Device;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, Parser, value_parser};
use clap_complete::Shell;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Where tensors live and products are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// CUDA or Metal if both the build and the machine have it, otherwise the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of this number.
    Cuda(usize),
    /// The Metal device.
    Metal,
}

impl std::str::FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "metal" => Ok(Self::Metal),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("'{text}' is not one of auto, cpu, cuda, cuda:N, metal")),
        }
    }
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    /// Returns an error if a device named explicitly cannot be opened, or this build lacks its feature.
    pub fn open(self) -> Result<Device> {
        let absent = |name: &str, source: candle_core::Error| {
            Error::Argument(format!(
                "--device {name}: {source}; build with `--features {}` on a machine that has one, or use --device cpu",
                name.split(':').next().unwrap_or(name)
            ))
        };
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(n) => cuda::open(n).map_err(|e| absent(&format!("cuda:{n}"), e)),
            Self::Metal => Device::new_metal(0).map_err(|e| absent("metal", e)),
            Self::Auto if cfg!(feature = "cuda") => Ok(or_cpu("cuda", cuda::open(0))),
            Self::Auto if cfg!(feature = "metal") => Ok(or_cpu("metal", Device::new_metal(0))),
            Self::Auto => Ok(Device::Cpu),
        }
    }
}

/// The accelerator that `--device auto` tried to open, otherwise the CPU; logs which.
fn or_cpu(name: &str, opened: candle_core::Result<Device>) -> Device {
    match opened {
        Ok(device) => {
            log::info!("computing on {name}");
            device
        }
        Err(error) => {
            log::warn!(
                "computing on the CPU: --device auto could not open {name}: {error}; pass --device cpu to silence this warning"
            );
            Device::Cpu
        }
    }
}

/// `--device`, `--seed`, `--threads`, `-v`, `-q`: flatten into a binary's arguments.
#[derive(Debug, Clone, clap::Args)]
pub struct CommonArgs {
    /// Where to compute: auto, cpu, cuda, cuda:N or metal
    #[arg(long, global = true, default_value = "auto", value_name = "DEVICE", help_heading = "Common options")]
    pub device: DeviceChoice,
    /// Seed of all random draws [default: 0]
    #[arg(long, global = true, value_name = "N", help_heading = "Common options")]
    pub seed: Option<u64>,
    /// Threads to compute with [default: one per core]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Common options")]
    pub threads: Option<u16>,
    /// Say more (-v debug, -vv trace)
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Common options")]
    pub verbose: u8,
    /// Print measures and errors only: no progress, no notes, no warnings, not what was written
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Common options")]
    pub quiet: bool,
}

/// Parses the command line. Common options may come before or after a subcommand; an option that only the command
/// without a subcommand has is refused before one. Exits on `--help` and on an error, as clap does, and after the
/// subcommands that every program has: `completions SHELL` and `man DIR`.
pub fn parse<T: Parser>() -> T {
    parse_from(std::env::args_os()).unwrap_or_else(|error| error.exit())
}

/// The subcommands that every program has.
fn with_manuals(command: Command) -> Command {
    let shell = Arg::new("shell").required(true).value_parser(value_parser!(Shell)).help("The shell");
    let folder = Arg::new("folder").required(true).value_name("DIR").value_parser(value_parser!(PathBuf));
    command.subcommand(Command::new("completions").about("Print a shell's completion script").arg(shell)).subcommand(
        Command::new("man")
            .about("Write the manual pages, one a subcommand")
            .arg(folder.help("Folder for the pages, such as ~/.local/share/man/man1")),
    )
}

/// Runs `completions` or `man` of `command`, which has not parsed yet; gives whether it was one of them.
fn run_manuals(mut command: Command, matches: &ArgMatches) -> Result<bool> {
    match matches.subcommand() {
        Some(("completions", given)) => {
            let Some(shell) = given.get_one::<Shell>("shell") else { return Ok(false) };
            let (name, mut script) = (command.get_name().to_string(), Vec::new());
            clap_complete::generate(*shell, &mut command, name.as_str(), &mut script);
            // clap_complete (4.6) gives a program with a hyphen one name in bash where it is set and another where it is looked for.
            let of = |hyphen: &str| name.replace('-', hyphen) + "__subcmd__";
            print(String::from_utf8_lossy(&script).replace(&of("__subcmd__"), &of("__")))?;
        }
        Some(("man", given)) => {
            let Some(folder) = given.get_one::<PathBuf>("folder") else { return Ok(false) };
            std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
            clap_mangen::generate_to(command.disable_help_subcommand(true), folder).map_err(Error::io(folder))?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn parse_from<T: Parser>(words: impl IntoIterator<Item = OsString>) -> std::result::Result<T, clap::Error> {
    let mut command = with_manuals(T::command());
    let matches = command.try_get_matches_from_mut(words)?;
    match run_manuals(with_manuals(T::command()), &matches) {
        Ok(true) => std::process::exit(0),
        Ok(false) => {}
        Err(error) => return Err(command.error(ErrorKind::Io, error)),
    }
    if let Some((subcommand, _)) = matches.subcommand() {
        let given = |arg: &&clap::Arg| matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
        let misplaced = command.get_arguments().filter(|arg| !arg.is_global_set()).find(given).map(ToString::to_string);
        if let Some(arg) = misplaced {
            let message = format!("the argument '{arg}' cannot be used before the subcommand '{subcommand}'");
            return Err(command.error(ErrorKind::ArgumentConflict, message));
        }
    }
    T::from_arg_matches(&matches)
}

/// [`print()`] with a final line break.
///
/// # Errors
/// See [`print()`].
pub fn print_line(results: impl Display) -> Result<()> {
    print(format_args!("{results}\n"))
}

/// Prints a command's results on standard output. If the reader has closed the pipe (`| head`), that is not an error.
///
/// # Errors
/// [`Error::Io`] if the output cannot be written, as on a full disk.
pub fn print(results: impl Display) -> Result<()> {
    let mut out = std::io::stdout().lock();
    write!(out, "{results}").and_then(|()| out.flush()).or_else(|error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(Error::Io { path: "standard output".into(), source: error }),
    })
}

/// Reports a failed job on standard error and returns its exit code: 130 if the user stopped it, otherwise 1.
pub fn report_failure(error: &dyn Display, stopped: bool) -> ExitCode {
    // Standard error may be closed, as after a hang-up; then nobody is reading.
    let _ = writeln!(std::io::stderr(), "error: {error}");
    ExitCode::from(if stopped { 130 } else { 1 })
}

/// [`Precision::prepare`], with a warning if products in `precision` are slower than f32 on `device`.
///
/// # Errors
/// As there.
pub fn prepare_precision(precision: Precision, device: &Device) -> Result<()> {
    precision.prepare(device)?;
    if !precision.is_fast_on(device) {
        log::warn!("--precision {precision}: this CPU has no instruction for it (AVX512-BF16), so f32 is faster");
    }
    Ok(())
}

impl CommonArgs {
    /// Starts logging and the thread pool, and opens the device. Call this once, first in `main`.
    ///
    /// # Errors
    /// Returns an error if the device cannot be opened.
    pub fn start(&self) -> Result<Device> {
        let level = match (self.quiet, self.verbose) {
            (true, _) => log::LevelFilter::Error,
            (_, 0) => log::LevelFilter::Info,
            (_, 1) => log::LevelFilter::Debug,
            _ => log::LevelFilter::Trace,
        };
        let _ = env_logger::Builder::new()
            .filter_level(level.min(log::LevelFilter::Warn))
            .filter_module("lxmert_core", level)
            .filter_module("lxmert_extract", level)
            .filter_module("lxmert_train", level)
            .filter_module("lxmert_viz", level)
            .format_target(false)
            .format_timestamp(None)
            .try_init();
        set_thread_variables(self.threads);
        raise_open_files();
        if let Some(threads) = self.threads {
            let _ = rayon::ThreadPoolBuilder::new().num_threads(usize::from(threads)).build_global();
        }
        self.device.open()
    }

    /// The given seed, or 0.
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or(0)
    }

    /// Whether to draw progress bars.
    pub fn show_progress(&self) -> bool {
        !self.quiet
    }
}

/// candle reads its thread counts from the environment. Only its elementwise operations use its pool, and the pool
/// spins while it waits, which takes the cores from our kernels (a quarter of a training step's time on two cores). So
/// the pool gets one thread unless the user sets another number.
#[allow(unsafe_code)]
fn set_thread_variables(threads: Option<u16>) {
    // SAFETY: called from `CommonArgs::start`, first in `main`, while this is the only thread.
    unsafe {
        if let Some(threads) = threads {
            std::env::set_var("RAYON_NUM_THREADS", threads.to_string());
        }
        if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
            std::env::set_var("CANDLE_NUM_THREADS", "1");
        }
    }
}

/// Makes glibc keep up to 2 GiB of freed memory for training: every step allocates and frees as much as the step
/// before. By default glibc returns it to the system, and clearing fresh pages then takes a tenth of the base model's
/// step. No effect on other systems.
#[allow(unsafe_code)]
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` takes two numbers and holds the allocator's lock while it sets them.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
    }
}

/// Raises the limit on open files as far as this process may: a feature store of 10⁶ images is some 1,200 files, and the usual
/// limit is 1,024.
#[allow(unsafe_code)]
fn raise_open_files() {
    #[cfg(unix)]
    // SAFETY: both calls take a pointer to a limit that lives until they return.
    unsafe {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

static HANDLER: OnceLock<()> = OnceLock::new();

/// Signals this close together count as one: a wrapper such as `timeout` forwards a signal that the program has already
/// received from the terminal or its process group.
const ONE_PRESS: Duration = Duration::from_millis(300);

/// Installs the handler of Ctrl-C, and of SIGTERM and SIGHUP, which schedulers and closed terminals send. The first
/// signal asks the job to stop at the next safe point; the second ends the process at once (files are written whole or
/// not at all, so nothing is lost). If the parent ignores SIGHUP, as `nohup` does, it stays ignored.
pub fn catch_interrupts() {
    HANDLER.get_or_init(|| {
        let mut first: Option<Instant> = None;
        #[cfg(unix)]
        let hang_up_ignored = ignore_hang_up();
        let _ = ctrlc::set_handler(move || {
            crate::interrupt::set();
            match first {
                Some(first) if first.elapsed() > ONE_PRESS => std::process::exit(130),
                Some(_) => {}
                None => {
                    first = Some(Instant::now());
                    let _ = writeln!(
                        std::io::stderr(),
                        "\nstopping at the next safe point; press Ctrl-C again to stop at once"
                    );
                }
            }
        });
        #[cfg(unix)]
        if hang_up_ignored {
            ignore_hang_up();
        }
    });
}

/// Ignores SIGHUP and returns whether it was already ignored.
#[cfg(unix)]
#[allow(unsafe_code)]
fn ignore_hang_up() -> bool {
    // SAFETY: `signal` with SIG_IGN installs no code.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) == libc::SIG_IGN }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_falls_back_to_the_cpu_with_a_warning() {
        static WARNINGS: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(Vec::new());
        struct Recorder;
        impl log::Log for Recorder {
            fn enabled(&self, _: &log::Metadata) -> bool {
                true
            }
            fn log(&self, record: &log::Record) {
                WARNINGS.lock().unwrap().push(format!("{} {}", record.level(), record.args()));
            }
            fn flush(&self) {}
        }
        log::set_logger(&Recorder).unwrap();
        log::set_max_level(log::LevelFilter::Warn);
        let device = or_cpu("cuda", Err(candle_core::Error::Msg("no driver".into())));
        assert!(device.is_cpu());
        let said = WARNINGS.lock().unwrap().clone();
        let warned =
            |part: &str| said.iter().any(|line| line.starts_with("WARN computing on the CPU") && line.contains(part));
        assert!(warned("cuda") && warned("no driver"), "{said:?}");
    }

    #[test]
    fn device_names_parse() {
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert!("cuda:x".parse::<DeviceChoice>().is_err());
        assert!("gpu".parse::<DeviceChoice>().is_err());
    }

    #[derive(Debug, clap::Parser)]
    struct Job {
        #[command(subcommand)]
        command: Option<Task>,
        /// An option of the command without a subcommand.
        #[arg(long)]
        output: Option<String>,
        #[command(flatten)]
        common: CommonArgs,
    }

    #[derive(Debug, clap::Subcommand)]
    enum Task {
        Inspect { name: String },
    }

    fn parse_words(words: &str) -> std::result::Result<Job, clap::Error> {
        parse_from(words.split(' ').map(OsString::from))
    }

    #[test]
    fn common_options_may_come_before_or_after_a_subcommand() {
        for words in ["job -q --seed 3 inspect a", "job inspect -q --seed 3 a", "job -q inspect a --seed 3"] {
            let job = parse_words(words).unwrap();
            assert!(matches!(job.command, Some(Task::Inspect { name }) if name == "a"), "{words}");
            assert_eq!((job.common.quiet, job.common.seed()), (true, 3), "{words}");
        }
        assert_eq!(parse_words("job --output x -q").unwrap().output.as_deref(), Some("x"));
    }

    #[test]
    fn refuses_a_main_option_before_a_subcommand() {
        let error = parse_words("job --output x inspect a").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ArgumentConflict);
        assert!(error.to_string().contains("--output") && error.to_string().contains("inspect"), "{error}");
    }
}
