//! Watching a transfer: its progress bar, its silence, and Ctrl-C.

use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};
use indicatif::{ProgressBar, ProgressStyle};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Hears of every byte that comes.
pub(super) struct Watch {
    bar: Option<ProgressBar>,
    /// The file's size by the hub's word; 0 before it said one.
    announced: AtomicU64,
    /// Bytes that are already on the disk when a transfer takes up in the middle.
    held: AtomicU64,
    /// Whether a transfer in parts goes on, whose parts announce only themselves.
    in_parts: AtomicBool,
    heard: Mutex<Instant>,
}

/// Why a watched call brought nothing.
pub(super) enum Silence {
    /// No byte for longer than the patience given.
    Stalled,
    /// Ctrl-C.
    Interrupted,
    /// The thread that ran it died.
    Died,
}

impl Watch {
    pub fn new(show: bool, label: &str) -> Arc<Self> {
        let bar = show.then(|| {
            let bar = ProgressBar::no_length();
            let style = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            bar.set_message(label.to_string());
            bar
        });
        Arc::new(Self {
            bar,
            announced: AtomicU64::new(0),
            held: AtomicU64::new(0),
            in_parts: AtomicBool::new(false),
            heard: Mutex::new(Instant::now()),
        })
    }

    /// The file's size as the hub announced it, if it was asked for the file at all.
    pub fn announced(&self) -> Option<u64> {
        Some(self.announced.load(Ordering::SeqCst)).filter(|&size| size > 0)
    }

    /// A part is to be asked for, after `held` bytes of `total`.
    pub fn part(&self, held: u64, total: u64) {
        self.in_parts.store(true, Ordering::SeqCst);
        self.held.store(held, Ordering::SeqCst);
        self.announced.store(total, Ordering::SeqCst);
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(held);
        }
        self.hear();
    }

    /// The whole file is to be asked for. What was announced before is forgotten: where the hub no longer
    /// answers, hf-hub gives the older file in the cache, which has its own size.
    pub fn whole(&self) {
        self.announced.store(0, Ordering::SeqCst);
        self.in_parts.store(false, Ordering::SeqCst);
        self.held.store(0, Ordering::SeqCst);
    }

    fn hear(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn silent_for(&self) -> Duration {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Runs `call` on a thread of its own and waits for it, but not for longer than `patience` without a
    /// byte, nor after Ctrl-C. hf-hub sets no time limit itself; a call that is given up on goes on in its
    /// thread until its connection dies or the process ends.
    pub fn run<T: Send + 'static>(
        &self,
        patience: Duration,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Silence> {
        let (sender, receiver) = mpsc::channel();
        self.hear();
        std::thread::spawn(move || sender.send(call()));
        loop {
            match receiver.recv_timeout(Duration::from_millis(100)) {
                Ok(value) => return Ok(value),
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(Silence::Died),
                Err(mpsc::RecvTimeoutError::Timeout) if crate::cli::interrupted() => return Err(Silence::Interrupted),
                Err(mpsc::RecvTimeoutError::Timeout) if self.silent_for() > patience => return Err(Silence::Stalled),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl ProgressHandler for Watch {
    fn on_progress(&self, event: &ProgressEvent) {
        self.hear();
        let ProgressEvent::Download(event) = event else { return };
        let held = self.held.load(Ordering::SeqCst);
        match event {
            DownloadEvent::Start { total_bytes, .. } if !self.in_parts.load(Ordering::SeqCst) => {
                self.announced.store(*total_bytes, Ordering::SeqCst);
                if let Some(bar) = &self.bar {
                    bar.set_length(*total_bytes);
                }
            }
            DownloadEvent::Progress { files } => {
                if let (Some(bar), Some(file)) = (&self.bar, files.last()) {
                    bar.set_position(held + file.bytes_completed);
                }
            }
            DownloadEvent::AggregateProgress { bytes_completed, .. } => {
                if let Some(bar) = &self.bar {
                    bar.set_position(held + bytes_completed);
                }
            }
            _ => {}
        }
    }
}
