//! What a run tells while it goes: lines of JSON, TensorBoard events, a progress bar, curves.

pub mod card;
pub mod curves;
pub mod jsonl;
pub mod progress;
pub mod tensorboard;

pub use jsonl::{Record, read_records};
