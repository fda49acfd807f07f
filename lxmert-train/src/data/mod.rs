//! From the files of a data set and a feature store to batches.
//!
//! | module | what it reads |
//! | --- | --- |
//! | [`dataset`] | captioned images with splits, features and tokens |
//! | [`splits`], [`paths`] | which image of a caption file is in which split; where files are |
//! | [`pretraining`] | the original's pre-training JSON, or captions alone |
//! | [`questions`], [`vqa_answers`] | VQA, GQA, OK-VQA and VizWiz; answers normalised as in VQA's evaluation |
//! | [`statements`] | NLVR2 |
//! | [`snli_ve`] | SNLI-VE |
//! | [`refcoco`] | RefCOCO, RefCOCO+, RefCOCOg |
//! | [`image_examples`] | sentences about images from any number of files, tokenised, with their images found |
//! | [`predictions`] | prediction files and the benchmarks' measures |
//! | [`names`] | finds a file's image names in a feature store |
//! | [`sentences`], [`rows`] | many sentences, and long JSON files, in little memory |
//! | [`pairs`], [`batches`] | matched and mismatched pairs; batches read ahead |

pub mod batches;
pub mod dataset;
pub mod image_examples;
pub mod names;
pub mod pairs;
pub mod paths;
pub mod predictions;
pub mod pretraining;
pub mod questions;
pub mod refcoco;
pub mod rows;
pub mod sentences;
pub mod snli_ve;
pub mod splits;
pub mod statements;
pub mod vqa_answers;

pub use dataset::{CaptionedImages, Dataset, LoadOptions};
