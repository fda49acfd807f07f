//! Progress bars on standard error. Where it is no terminal (a log file, a job's output), a line of text every 20 seconds
//! takes the place of the bar.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle, TermLike};
use std::io::{self, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Time between two lines.
const LINE_EVERY: Duration = Duration::from_secs(20);

/// The part of a template that only a terminal shows.
pub const BAR: &str = "[{wide_bar}] ";

/// A bar over `total` units, drawn by indicatif's `template`, in which [`BAR`] is the bar; hidden if `show` is false.
pub fn bar(total: Option<u64>, template: &str, show: bool) -> ProgressBar {
    let terminal = ProgressDrawTarget::stderr();
    let (target, template) = match (show, terminal.is_hidden()) {
        (false, _) => (ProgressDrawTarget::hidden(), template.to_string()),
        (true, false) => (terminal, template.to_string()),
        (true, true) => (Lines::target(LINE_EVERY, io::stderr()), template.replace(BAR, "")),
    };
    let bar = ProgressBar::with_draw_target(total, target);
    if let Ok(style) = ProgressStyle::with_template(&template) {
        let per_second = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = write!(out, "{:.1}/s", state.per_sec());
        };
        bar.set_style(style.progress_chars("=> ").with_key("per_sec", per_second));
    }
    bar
}

/// indicatif's terminal for output that is none: of what is drawn, it writes a line now and then.
#[derive(Debug)]
struct Lines<W> {
    every: Duration,
    state: Mutex<State<W>>,
}

#[derive(Debug)]
struct State<W> {
    out: W,
    /// What has been drawn since the last flush.
    drawn: String,
    /// When the last line was written, or the job began.
    last: Instant,
}

impl<W: Write + Send + Sync + std::fmt::Debug + 'static> Lines<W> {
    fn target(every: Duration, out: W) -> ProgressDrawTarget {
        let state = Mutex::new(State { out, drawn: String::new(), last: Instant::now() });
        ProgressDrawTarget::term_like_with_hz(Box::new(Self { every, state }), 1)
    }

    fn with(&self, change: impl FnOnce(&mut State<W>)) -> io::Result<()> {
        if let Ok(mut state) = self.state.lock() {
            change(&mut state);
        }
        Ok(())
    }
}

impl<W: Write + Send + Sync + std::fmt::Debug + 'static> TermLike for Lines<W> {
    fn width(&self) -> u16 {
        160
    }

    fn move_cursor_up(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_down(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_right(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_left(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.write_str(text)
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.with(|state| state.drawn.push_str(text))
    }

    fn clear_line(&self) -> io::Result<()> {
        self.with(|state| state.drawn.clear())
    }

    fn flush(&self) -> io::Result<()> {
        self.with(|state| {
            let line = state.drawn.split_whitespace().collect::<Vec<_>>().join(" ");
            state.drawn.clear();
            if !line.is_empty() && state.last.elapsed() >= self.every {
                state.last = Instant::now();
                // Standard error may be closed; then nobody is reading.
                let _ = writeln!(state.out, "{line}");
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Debug, Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn drawn(every: Duration) -> String {
        let out = Shared::default();
        let bar = ProgressBar::with_draw_target(Some(10), Lines::target(every, out.clone()));
        bar.set_style(ProgressStyle::with_template("{prefix:>8} {pos}/{len} steps, {msg}").unwrap());
        bar.set_prefix("epoch 1");
        bar.set_message("loss 0.500");
        bar.inc(3);
        bar.force_draw();
        bar.suspend(|| ());
        bar.finish_and_clear();
        let bytes = out.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn without_a_terminal_whole_lines_are_written_now_and_then() {
        let text = drawn(Duration::ZERO);
        assert!(text.lines().any(|line| line == "epoch 1 3/10 steps, loss 0.500"), "{text:?}");
        assert!(text.lines().all(|line| line.starts_with("epoch 1") || line.starts_with("0/10")), "{text:?}");
        assert_eq!(drawn(LINE_EVERY), "");
    }
}
