//! Whether the user asked the process to stop. The handler that [`crate::cli::catch_interrupts`] installs sets it.

use crate::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Asks the job to stop at its next safe point.
pub fn set() {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// Whether the job was asked to stop.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Call this at every safe point of a long job.
///
/// # Errors
/// [`Error::Interrupted`] if the job was asked to stop.
pub fn check_interrupt() -> Result<()> {
    if interrupted() { Err(Error::Interrupted) } else { Ok(()) }
}
