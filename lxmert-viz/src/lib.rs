//! Pictures and measures of what a trained LXMERT attends to: from a checkpoint, an image's regions and a sentence to
//! figures (PNG, SVG) and arrays (safetensors).
//!
//! | module | what it does |
//! | --- | --- |
//! | [`explain`] | a checkpoint's attention maps, the methods that say what a score rests on, two measures of the methods |
//! | [`explorer`] | one page in a browser with the pairs, maps and methods of a checkpoint, and a server for others |
//! | [`pictures`] | the kinds of pictures, and what they are drawn with |
//! | [`commands`] | what each subcommand of `lxmert-viz` does, as library calls |
//! | [`places`], [`dataset`], [`photo`] | where a run's photos, features and captions lie, and reading them |
//! | [`export`] | attention maps, relevances, boxes, words and scores as arrays, and how Python reads them |
//! | [`figures`] | where figures go, in which formats and sizes |
//!
//! ```no_run
//! use candle_core::Device;
//! use lxmert_core::model::Capture;
//! use lxmert_viz::dataset::DataSet;
//! use lxmert_viz::explain::methods::Method;
//! use lxmert_viz::explain::scorer::{PairInput, Scorer};
//! use lxmert_viz::places::Places;
//!
//! fn main() -> lxmert_viz::Result<()> {
//!     // runs/scenes and the data that it names.
//!     let places = Places::of_run(None)?;
//!     let scorer = Scorer::open(&places.checkpoint, &Device::Cpu)?;
//!     let data = DataSet::open(places, scorer.regions())?;
//!
//!     let image = data.first_image()?;
//!     let (regions, text) = (data.regions(&image)?, data.captions_of(&image)[0]);
//!     let scored = &scorer.score(&[PairInput { regions: &regions, text }], Capture::Probes)?[0];
//!     println!("{image}, {text}: P(match) = {:.3}", scored.probability());
//!     println!("relevance of each region: {:?}", Method::Relevancy.sentence(scored.maps()?)?.regions);
//!     Ok(())
//! }
//! ```
//!
//! # What a score is based on
//!
//! ```text
//! lxmert-viz relevancy [--image NAME] [--text SENTENCE] [--method METHOD]
//! lxmert-viz relevancy --photo photo.jpg --text "a cup of coffee on a saucer"
//! lxmert-viz relevancy --question "what colour is the heart ?" [--answer NAME] [--photo photo.jpg]
//! lxmert-viz relevancy --statement "There are two stars ." --image LEFT --second-image RIGHT
//! ```
//!
//! One picture: attention, rollout, Grad-CAM and relevancy, each with the photo and its regions and the sentence and
//! its words. The two methods that use gradients have two panels, the evidence for the score and the evidence against
//! it, in the same unit. Weights are multiples of the uniform share, so a model without an opinion looks like one:
//! nothing stands out.
//! The methods see only the attention maps and the gradient of one scalar with respect to them, so the match logit, an
//! answer's logit and a verdict on two images are explained in the same way ([`explain::maps::read`]).
//!
//! # Which data
//!
//! A run's `run.json` names its captions and its feature store, and every command uses them. `--captions`, `--features` and
//! `--splits` show other data; each picture then says so at the bottom. Regions are numbered from 1 in pictures and
//! tables.
//!
//! # How good the explanations are
//!
//! `lxmert-viz perturbation` removes what a method calls relevant, first or last, and counts how many true captions are
//! still called a match. Areas under the curves of the default run on the scenes (seed 0; 400 captions, standard errors
//! at most 0.015):
//!
//! | | most relevant first (less is better): regions | words | least first (more is better): regions | words |
//! | --- | ---: | ---: | ---: | ---: |
//! | attention | **0.138** | 0.303 | 0.615 | 0.396 |
//! | gradient × attention | 0.349 | 0.311 | 0.364 | 0.407 |
//! | relevancy (Chefer) | 0.174 | 0.198 | 0.561 | 0.492 |
//! | rollout | **0.138** | **0.156** | **0.639** | **0.540** |
//! | Grad-CAM | 0.422 | 0.336 | 0.307 | 0.373 |
//! | random | 0.363 | 0.302 | 0.362 | 0.295 |
//!
//! Over regions, attention and rollout tie and relevancy follows. Over words, relevancy and rollout beat raw attention by
//! far, and rollout beats relevancy by several errors; a likely (but unmeasured) reason is that this model has few
//! layers to multiply (one language, one object, two cross). Over regions, gradient × attention is no better than chance
//! here and Grad-CAM is worse: it weights a head by the mean gradient over its whole map, and drops negative results, so
//! that an image where most heads have a negative mean keeps few weights. The curves end when nothing is left: for an
//! image without regions the words get zeros, as in the reference, and of the sentence `[CLS]` and `[SEP]` stay.
//!
//! `lxmert-viz grounding` asks whether the region with the largest weight in the rows of a phrase is what the phrase
//! names, by type of phrase: its centre must be in a true box (the pointing game), or the IoU at least 0.5. On the
//! scenes the boxes are exact and the types are those of the captions; `--entities DIR` uses the annotations of
//! Flickr30k Entities (people, clothing, …). On the scenes, over 1,600 nouns: relevancy 91.5 %, attention 77.4 %,
//! rollout 68.3 %, gradient × attention 44.4 %, chance 28.0 %, Grad-CAM 9.6 %.

pub mod commands;
pub mod dataset;
pub mod error;
pub mod explain;
pub mod explorer;
pub mod export;
pub mod figures;
pub mod photo;
pub mod pictures;
pub mod places;

pub use error::{Error, Result};
