//! Photos to regions: a Faster R-CNN on Candle, the choice of an image's regions, and the generated
//! scenes that ship as the default data set.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`detector`], [`weights`] | the Faster R-CNNs of torchvision and of bottom-up attention, stage by stage; their published weights |
//! | [`regions`], [`choice`] | region sources: detections, a grid, cells, patches; the names by which options choose them |
//! | [`inputs`], [`images`] | which images, and their pixels |
//! | [`extraction`], [`pipeline`], [`parts`], [`failures`] | a folder of photos to a store, on several threads, in parts, listing what fails |
//! | [`finder`], [`region_cache`] | the regions of a user's single photo, kept for the next time |
//! | [`import`], [`inspect`] | features of other programs; what a store holds |
//! | [`scenes`] | the generated scenes, their captions and the tasks' files |
//!
//! # The regions of one photo
//!
//! ```no_run
//! use candle_core::Device;
//! use lxmert_core::pretrained::Preprocessing;
//! use lxmert_extract::finder::{Finder, FinderArgs};
//! use lxmert_extract::images::decode_file;
//!
//! fn main() -> lxmert_extract::Result<()> {
//!     // Visual Genome's detector, whose 2048 numbers a region the published checkpoints take; its weights come from the hub.
//!     let trained = Preprocessing { detector: "visual-genome".into(), ..Preprocessing::default() };
//!     let finder = Finder::open(&FinderArgs::default(), 2048, &trained, true, &Device::Cpu)?;
//!     let found = finder.find(&decode_file("data/photos/chelsea.png")?, "chelsea.png")?;
//!     for region in 0..found.regions.num_regions() {
//!         println!("{} at {:?}", found.info.region_name(&found.regions, region), found.regions.boxes[region]);
//!     }
//!     Ok(())
//! }
//! ```

pub mod choice;
pub mod detector;
pub mod error;
pub mod extraction;
pub mod failures;
pub mod finder;
pub mod images;
pub mod import;
pub mod inputs;
pub mod inspect;
pub mod parts;
pub mod pipeline;
pub mod region_cache;
pub mod regions;
pub mod scenes;
pub mod weights;

pub use error::{Error, Result};
