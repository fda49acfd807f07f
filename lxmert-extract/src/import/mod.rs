//! Region features that other programs made, into a store.

pub mod pt;
pub mod tsv;
