//! The progress bar: steps, rate, time left, and the latest loss.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar over `total` units; hidden if `show` is false or stderr is not a terminal.
pub fn bar(total: u64, unit: &str, show: bool) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(
        Some(total),
        if show { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() },
    );
    let template = format!("{{prefix:>8}} [{{wide_bar}}] {{pos}}/{{len}} {unit} {{per_sec}}, {{eta}} left {{msg}}");
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}
