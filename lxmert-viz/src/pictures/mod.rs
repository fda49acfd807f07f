//! The kinds of pictures, and what they are drawn with. Each kind takes plain names and numbers; [`explained`] gets
//! them from a scored pair.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`explained`] | from a scored pair to its pictures |
//! | [`heatmap`], [`heads`], [`overlay`], [`methods`], [`grid`], [`perturbation`], [`curves`] | the kinds of pictures |
//! | [`sheet`], [`legend`] | their common frame: title, how to read it, colour bar |
//! | [`regions`], [`labels`] | regions on a photo, and the placement of their names |
//! | [`canvas`], [`shapes`], `raster`, `svg` | shapes, and their output as PNG and SVG |
//! | [`font`], [`palette`] | text and colours |

pub mod canvas;
pub mod curves;
pub mod explained;
pub mod font;
pub mod grid;
pub mod heads;
pub mod heatmap;
pub mod labels;
pub mod legend;
pub mod methods;
pub mod overlay;
pub mod palette;
pub mod perturbation;
mod raster;
pub mod regions;
pub mod shapes;
pub mod sheet;
mod svg;
