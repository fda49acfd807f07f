//! The progress bar: steps, rate, time left, and the latest loss.

use indicatif::ProgressBar;

/// A bar over `total` units; hidden if `show` is false. Where standard error is no terminal, a line every 20 seconds.
pub fn bar(total: u64, unit: &str, show: bool) -> ProgressBar {
    let template = format!("{{prefix:>8}} [{{wide_bar}}] {{pos}}/{{len}} {unit}, {{per_sec}}, {{eta}} left {{msg}}");
    lxmert_core::progress::bar(Some(total), &template, show)
}
