//! The explorer: a page in the browser that shows what a checkpoint sees in photos and sentences; with the local server
//! behind it, the page also answers requests about others.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`teaching`] | the most instructive pairs: confident and right, confident and wrong, hard, undecided |
//! | [`views`] | a checkpoint that matches, answers or both; its view of a photo and a sentence |
//! | [`pack`] | attention maps and relevances with one byte per value |
//! | [`document`] | the data for the page, as JSON |
//! | [`live`] | dropped photos, and requests to the models: explain, hide, perturb |
//! | [`http`], [`server`] | one request per connection, its limits and rules; the routes and the queue |
//! | [`page`] | the page itself, with styles, script and data in one file |
//!
//! The page's sources are in `page/`: one HTML skeleton, one style sheet, and plain script files that are joined to one
//! module. Its content security policy allows only that script and that style sheet, by their hashes; a page in a file
//! may make no request at all.

pub mod document;
pub mod http;
pub mod live;
pub mod pack;
pub mod page;
pub mod server;
pub mod teaching;
pub mod views;
