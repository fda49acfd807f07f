//! The detector's own operations with gradients, each beside the plain composition of Candle operations that defines
//! it: convolution, max pooling, batch normalisation. Inference on the CPU uses `lxmert_core::ops::PrepackedConv2d`
//! instead.

pub mod batch_norm;
pub mod conv;
mod im2col;
pub mod max_pool;

pub use batch_norm::batch_norm;
pub use conv::conv2d;
pub use max_pool::{max_pool_map, max_pool_map_ceil, max_pool2d};
