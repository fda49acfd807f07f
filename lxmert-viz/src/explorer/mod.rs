//! The explorer: one page in a browser that shows what a checkpoint sees in photos and sentences, and, from the local
//! server, answers about others.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`teaching`] | which pairs teach most: right and sure, wrong and sure, hard, undecided |
//! | [`views`] | a checkpoint that matches, answers or both; what it makes of a photo and a sentence |
//! | [`pack`] | attention maps and relevances in a byte a value |
//! | [`document`] | what the page is given, as JSON |
//! | [`live`] | dropped photos, and what is asked of the models: explain, hide, perturb |
//! | [`http`], [`server`] | one request a connection, its limits and rules; the routes and the queue |
//! | [`page`] | the page itself, with styles, script and data in one file |
//!
//! The page's sources lie in `page/`: one HTML skeleton, one style sheet, and plain script files that are joined to one
//! module. Its content security policy allows that script and that style sheet by their hashes and nothing else; a page in
//! a file may make no request at all.

pub mod document;
pub mod http;
pub mod live;
pub mod pack;
pub mod page;
pub mod server;
pub mod teaching;
pub mod views;
