//! Region features that other programs made, into a store.

pub mod tsv;
