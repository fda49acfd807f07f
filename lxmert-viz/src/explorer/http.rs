//! One HTTP request per connection, for a page on the same machine: limited in size and time, and rejected if another
//! page sends it.
//!
//! `httparse` (hyper's) parses the head; this module adds the socket, the limits and the rules:
//!
//! | rule | against |
//! | --- | --- |
//! | `Host` is an address, `localhost` or the name given by `--host` | a foreign name that was bound to this address (DNS rebinding) |
//! | `Origin`, if present, is this server; `Sec-Fetch-Site` is not another site | a page from elsewhere that sends requests here |
//! | a body states its length, at most [`Limits::body`] | a body that fills the memory |
//! | [`Limits::patience`] for the whole request | a client that sends a byte a minute |

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::time::{Duration, Instant};

/// Maximum size of the request line and the headers in bytes.
const HEAD: usize = 16 * 1024;
const HEADERS: usize = 64;

/// Limits on what a client may send, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Maximum size of a body in bytes.
    pub body: usize,
    /// Time limit for the whole request.
    pub patience: Duration,
}

/// A request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `POST`, …
    pub method: String,
    /// The path, without the part after a `?`.
    pub path: String,
    /// The part after it.
    pub query: String,
    host: Option<String>,
    origin: Option<String>,
    fetch_site: Option<String>,
    length: Option<usize>,
    continues: bool,
    /// The body.
    pub body: Vec<u8>,
}

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status with its reason: "200 OK".
    pub status: &'static str,
    /// The media type.
    pub kind: &'static str,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// A page.
    pub fn html(page: &str) -> Self {
        Self { status: "200 OK", kind: "text/html; charset=utf-8", body: page.into() }
    }

    /// JSON.
    pub fn json(value: Vec<u8>) -> Self {
        Self { status: "200 OK", kind: "application/json", body: value }
    }

    /// A message for the reader of the page.
    pub fn refusal(status: &'static str, message: impl Into<String>) -> Self {
        let body = serde_json::json!({ "error": message.into() }).to_string().into_bytes();
        Self { status, kind: "application/json", body }
    }

    /// Sends it and closes the connection. Reads the rest of the client's request for a while; otherwise the client
    /// would never see the response to a request that was rejected halfway.
    pub fn send(&self, stream: &mut TcpStream) {
        let head = format!(
            "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\nCache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\nX-Frame-Options: DENY\r\nReferrer-Policy: no-referrer\r\n\
             Cross-Origin-Resource-Policy: same-origin\r\n\r\n",
            self.status,
            self.kind,
            self.body.len()
        );
        let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&self.body));
        if sent.and_then(|()| stream.shutdown(Shutdown::Write)).is_err() {
            return; // the client is gone
        }
        let end = Instant::now() + Duration::from_secs(2);
        let mut rest = [0; 64 * 1024];
        while Instant::now() < end && read_within(stream, &mut rest, end).is_ok_and(|read| read > 0) {}
    }
}

/// Reads until `end` at the latest.
fn read_within(stream: &mut TcpStream, into: &mut [u8], end: Instant) -> std::io::Result<usize> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(ErrorKind::TimedOut.into());
    }
    stream.set_read_timeout(Some(left))?;
    stream.read(into)
}

/// Reads a request, or returns the reason it could not. `name`: the host's own name besides its addresses.
///
/// # Errors
/// The response to send if the head or the body is too large, too slow or not HTTP, or another page sent it.
pub fn read(stream: &mut TcpStream, limits: &Limits, name: &str) -> Result<Request, Response> {
    let end = Instant::now() + limits.patience;
    let gone = |error: std::io::Error| match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => {
            Response::refusal("408 Request Timeout", "the request did not arrive in time")
        }
        _ => Response::refusal("400 Bad Request", "the connection broke off"),
    };
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 * 1024];
    let (mut request, start) = loop {
        let read = read_within(stream, &mut buffer, end).map_err(gone)?;
        if read == 0 {
            return Err(Response::refusal("400 Bad Request", "the request broke off"));
        }
        bytes.extend_from_slice(&buffer[..read]);
        let found = head(&bytes)?;
        if found.as_ref().map_or(bytes.len(), |(_, start)| *start) > HEAD {
            return Err(Response::refusal(
                "431 Request Header Fields Too Large",
                "the request's headers are too large",
            ));
        }
        if let Some(found) = found {
            break found;
        }
    };
    request.check(name)?;
    let length = match (request.method.as_str(), request.length) {
        ("POST", None) => {
            return Err(Response::refusal("411 Length Required", "the request must state the body's length"));
        }
        (_, length) => length.unwrap_or(0),
    };
    if length > limits.body {
        let message = format!("{} MB; at most {} MB are accepted", length.div_ceil(1_000_000), limits.body / 1_000_000);
        return Err(Response::refusal("413 Content Too Large", message));
    }
    if request.continues {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").map_err(gone)?;
    }
    request.body = bytes.split_off(start);
    while request.body.len() < length {
        let read = read_within(stream, &mut buffer, end).map_err(gone)?;
        if read == 0 {
            return Err(Response::refusal("400 Bad Request", "the body broke off"));
        }
        request.body.extend_from_slice(&buffer[..read]);
    }
    request.body.truncate(length);
    Ok(request)
}

/// The request without its body, and where the body begins; `None` if the head is incomplete.
fn head(bytes: &[u8]) -> Result<Option<(Request, usize)>, Response> {
    let malformed = |what: &str| Response::refusal("400 Bad Request", format!("not an HTTP request: {what}"));
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let start = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(start)) => start,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(malformed(&error.to_string())),
    };
    let target = parsed.path.unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        method: parsed.method.unwrap_or_default().into(),
        path: path.into(),
        query: query.into(),
        ..Request::default()
    };
    for header in parsed.headers.iter() {
        let value = || String::from_utf8(header.value.to_vec()).map_err(|_| malformed("a header is not UTF-8"));
        // Two headers of one kind would be ambiguous.
        let once = |slot: &mut Option<String>| match slot.replace(value()?) {
            None => Ok(()),
            Some(_) => Err(malformed("a header is repeated")),
        };
        match header.name.to_ascii_lowercase().as_str() {
            "host" => once(&mut request.host)?,
            "origin" => once(&mut request.origin)?,
            "sec-fetch-site" => once(&mut request.fetch_site)?,
            "transfer-encoding" => {
                return Err(Response::refusal("411 Length Required", "the request must state the body's length"));
            }
            "expect" => request.continues = value()?.eq_ignore_ascii_case("100-continue"),
            "content-length" => {
                let length = value()?.parse().map_err(|_| malformed("the body's length is not a number"))?;
                if request.length.replace(length).is_some() {
                    return Err(malformed("a header is repeated"));
                }
            }
            _ => {}
        }
    }
    Ok(Some((request, start)))
}

impl Request {
    /// Rejects a request that another page may have sent.
    fn check(&self, name: &str) -> Result<(), Response> {
        let forbidden = |message: String| Err(Response::refusal("403 Forbidden", message));
        let Some(host) = &self.host else { return forbidden("the request names no host".into()) };
        if !is_own(host, name) {
            return forbidden(format!("'{host}' is not a name of this server; open it by its address"));
        }
        if let Some(origin) = &self.origin
            && *origin != format!("http://{host}")
        {
            return forbidden(format!("pages of {origin} may not send requests here"));
        }
        match self.fetch_site.as_deref() {
            // A link on another site may lead to the page, but not to its API.
            None | Some("same-origin" | "none") => Ok(()),
            Some(_) if self.path == "/" && self.method == "GET" => Ok(()),
            Some(site) => forbidden(format!("{site} pages may not send requests here")),
        }
    }
}

/// Whether a `Host` header is an address, `localhost` or the server's own name, with or without a port.
fn is_own(host: &str, name: &str) -> bool {
    let bare = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split_once(':').map_or(host, |(bare, _)| bare),
    };
    bare.parse::<IpAddr>().is_ok() || bare.eq_ignore_ascii_case("localhost") || bare.eq_ignore_ascii_case(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> Result<Option<(Request, usize)>, Response> {
        head(text.as_bytes())
    }

    fn checked(headers: &str) -> Result<(), Response> {
        parsed(&format!("POST /api/score HTTP/1.1\r\n{headers}\r\n\r\n")).unwrap().unwrap().0.check("studio.local")
    }

    #[test]
    fn hosts_are_addresses_or_own_names() {
        for host in
            ["127.0.0.1:8080", "localhost", "LOCALHOST:80", "[::1]:8080", "192.168.0.4:8080", "studio.local:8080"]
        {
            assert!(checked(&format!("Host: {host}")).is_ok(), "{host}");
        }
        for host in ["evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example", "", "[::1"] {
            assert_eq!(checked(&format!("Host: {host}")).unwrap_err().status, "403 Forbidden", "{host}");
        }
        assert!(checked("Accept: */*").is_err());
    }

    #[test]
    fn rejects_other_origins() {
        assert!(
            checked("Host: localhost:8080\r\nOrigin: http://localhost:8080\r\nSec-Fetch-Site: same-origin").is_ok()
        );
        for origin in
            ["http://localhost:9090", "https://localhost:8080", "null", "http://evil.example", "http://127.0.0.1:8080"]
        {
            assert!(checked(&format!("Host: localhost:8080\r\nOrigin: {origin}")).is_err(), "{origin}");
        }
        for site in ["cross-site", "same-site"] {
            assert!(checked(&format!("Host: localhost:8080\r\nSec-Fetch-Site: {site}")).is_err(), "{site}");
        }
    }

    #[test]
    fn rejects_odd_heads_and_waits_for_unfinished_ones() {
        assert_eq!(parsed("GET / HTTP/1.1\r\nHost: a"), Ok(None));
        for bad in [
            "Host: a\r\nHost: b",
            "Content-Length: 1\r\nContent-Length: 2",
            "Content-Length: -1",
            "Transfer-Encoding: chunked",
        ] {
            assert!(parsed(&format!("POST / HTTP/1.1\r\n{bad}\r\n\r\n")).is_err(), "{bad}");
        }
        let (request, start) = parsed("GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\nrest").unwrap().unwrap();
        assert_eq!((request.path.as_str(), request.query.as_str(), start), ("/a", "b=c", 32));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = head(&bytes);
        }
    }
}
