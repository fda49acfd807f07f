//! What a model is trained to do; one file per task.

pub mod alignment;
pub mod masked_words;
pub mod matching;
