//! Pictures of what a trained LXMERT attends to: from a checkpoint, an image's regions and a sentence
//! to PNG files.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`heatmap`], [`heads`], [`overlay`], [`grid`], [`curves`] | the kinds of pictures; each takes plain names and numbers |
//! | [`canvas`], [`font`], [`palette`], [`legend`], [`labels`] | what they are drawn with |
//! | [`scorer`] | a checkpoint that scores pairs and gives every attention map with its gradient |
//! | [`relevancy`] | attention, rollout, Grad-CAM and Chefer's relevancy |
//! | [`words`], [`pictures`] | from a scored pair to pictures of it |
//! | [`grounding`] | whether the model looks at what a sentence names, measured |
//! | [`dataset`], [`photo`] | where photos, features and captions lie |
//! | [`gallery`], [`pair`] | the bare command; one photo and one sentence from scratch |

pub mod asker;
pub mod canvas;
pub mod curves;
pub mod dataset;
pub mod error;
pub mod font;
pub mod gallery;
pub mod grid;
pub mod grounding;
pub mod heads;
pub mod heatmap;
pub mod labels;
pub mod legend;
pub mod maps;
pub mod matrix;
pub mod methods;
pub mod overlay;
pub mod pair;
pub mod palette;
pub mod perturbation;
pub mod perturbation_picture;
pub mod photo;
pub mod pictures;
pub mod relevancy;
pub mod scorer;
pub mod words;

pub use error::{Error, Result};
