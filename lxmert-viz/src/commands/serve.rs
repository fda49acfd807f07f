//! `serve`: the explorer's page with a live model behind it ([`crate::explorer`]).

use super::explore::{ExploreArgs, document};
use super::{DetectorArgs, Report, Session};
use crate::explorer::document::Live;
use crate::explorer::live::{LiveModels, MOST_BYTES, MOST_CHARACTERS};
use crate::explorer::{page, server};
use crate::{Error, Result};
use std::collections::VecDeque;
use std::net::{IpAddr, TcpListener, ToSocketAddrs as _};

/// `serve`.
#[derive(Debug, Clone, clap::Args)]
pub struct ServeArgs {
    /// The content of the page.
    #[command(flatten)]
    pub explore: ExploreArgs,
    /// The detector for dropped photos.
    #[command(flatten)]
    pub detector: DetectorArgs,
    /// Address to listen on; any but this machine's own address lets others use the model
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub host: String,
    /// The port; 0 for any free one
    #[arg(long, default_value_t = 8080, value_name = "N")]
    pub port: u16,
}

impl ServeArgs {
    /// Serves the page until the user interrupts it.
    ///
    /// # Errors
    /// Returns an error if a checkpoint, the detector or the data cannot be read, or the address is not available.
    pub fn run(&self, session: &Session) -> Result<Report> {
        let at = format!("{}:{}", self.host, self.port);
        let refused = |error: std::io::Error| {
            let advice = match error.kind() {
                std::io::ErrorKind::AddrInUse => "; another program listens there, choose another --port",
                _ => "",
            };
            Error::Argument(format!("cannot listen at {at}: {error}{advice}"))
        };
        // Bind the port before opening the models, which may take minutes.
        let address = (self.host.as_str(), self.port).to_socket_addrs().map_err(refused)?.next();
        let address = address.ok_or_else(|| Error::Argument(format!("--host {}: no such address", self.host)))?;
        let listener = TcpListener::bind(address).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        if !address.ip().is_loopback() {
            log::warn!(
                "anyone who reaches {address} can use the model and see the pairs on the page; there is no password"
            );
        }
        let explorers = self.explore.open(session)?;
        let takes = (explorers[0].takes().0, explorers.iter().map(|one| one.takes().1).max().unwrap_or(0));
        let finder = self.detector.open(session, takes)?;
        let (mut document, shown) = document(session, &explorers, self.explore.pairs, None)?;
        for (id, photo) in document.photos.iter_mut().enumerate() {
            photo.id = Some(id.to_string());
        }
        let detector = finder.name().to_string();
        document.live = Some(Live { detector, most_bytes: MOST_BYTES, most_characters: MOST_CHARACTERS });
        let page = page::html(&document)?;
        lxmert_core::cli::print_line(format!("http://{address}/  (Ctrl-C stops it)"))?;
        let name = if self.host.parse::<IpAddr>().is_ok() { "" } else { &self.host };
        let mut models = LiveModels { explorers, finder, shown, dropped: VecDeque::new() };
        server::serve(listener, name, page, &mut models)?;
        Ok(Report::default())
    }
}
