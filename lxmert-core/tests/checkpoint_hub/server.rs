//! A small hub on the loopback interface, with the faults that a test requests. It serves one file of `owner/repo`,
//! either as the hub serves large files (a redirect with `X-Linked-Etag`, `X-Linked-Size` and `X-Repo-Commit` to a
//! storage host with ranges) or as it serves small ones (from the repository itself). Like a mirror it serves only
//! `/resolve/`; every other address is a 404.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// The file to serve.
#[derive(Clone)]
pub struct Published {
    pub content: Vec<u8>,
    /// Its name in the cache's `blobs`: the SHA-256 of a large file, another hash of a small one.
    pub etag: String,
    pub commit: String,
    /// Whether it is on the storage host, behind a redirect.
    pub large: bool,
}

/// How to answer a request for the content.
#[derive(Clone, Copy)]
pub enum Reply {
    /// The whole file or the requested range.
    Good,
    /// The whole file even if a range is requested.
    WithoutRanges,
    /// This many bytes, then the connection closes.
    Cut(usize),
    /// This many bytes, then silence.
    Stall(usize),
    /// An HTML page with this status.
    Page(u16),
}

/// The published file's path in its repository.
pub const FILE: &str = "folder/weights.pth";

/// How to answer a request about the file (`HEAD`).
#[derive(Clone, Copy)]
pub enum Head {
    Good,
    Status(u16),
    /// 404 with this `X-Error-Code`.
    Absent(&'static str),
    /// A redirect, without the hub's headers, to the same path under `/moved` on another host name; the same for the
    /// download.
    Moved,
    /// A redirect to itself.
    Loop,
    /// 200 with the headers of a web page, as a captive portal answers.
    Portal,
}

pub const PAGE: &str = "<!doctype html><html><body>Something went wrong</body></html>";

struct Site {
    published: Published,
    head: Head,
    /// The answer to the n-th request for the content, counted from 0.
    content: Box<dyn Fn(usize) -> Reply + Send + Sync>,
    served: AtomicUsize,
    log: Mutex<Vec<String>>,
    stop: AtomicBool,
}

pub struct Server {
    address: SocketAddr,
    site: Arc<Site>,
    listener: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(published: &Published, head: Head, content: impl Fn(usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let site = Arc::new(Site {
            published: published.clone(),
            head,
            content: Box::new(content),
            served: AtomicUsize::new(0),
            log: Mutex::new(Vec::new()),
            stop: AtomicBool::new(false),
        });
        let shared = Arc::clone(&site);
        let listener = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.stop.load(Ordering::SeqCst) {
                    return;
                }
                let (site, stream) = (Arc::clone(&shared), stream.unwrap());
                std::thread::spawn(move || site.answer(stream, address));
            }
        });
        Self { address, site, listener: Some(listener) }
    }

    pub fn good(published: &Published) -> Self {
        Self::start(published, Head::Good, |_| Reply::Good)
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests so far: method, path, range, token.
    pub fn log(&self) -> Vec<String> {
        self.site.log.lock().unwrap().clone()
    }

    /// The requests for the content: the range of each, or `whole`.
    pub fn content_requests(&self) -> Vec<String> {
        let path = if self.site.published.large { "GET /storage/" } else { "GET /owner/" };
        let log = self.log().into_iter().filter(|line| line.starts_with(path));
        log.map(|line| line.split(' ').nth(2).unwrap().to_string()).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.site.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        let _ = self.listener.take().unwrap().join();
    }
}

impl Site {
    fn answer(&self, stream: TcpStream, address: SocketAddr) {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
        let Some(request) = lines.next() else { return };
        let headers: Vec<(String, String)> = lines
            .take_while(|line| !line.is_empty())
            .filter_map(|line| line.split_once(':').map(|(k, v)| (k.to_ascii_lowercase(), v.trim().to_string())))
            .collect();
        let header = |name: &str| headers.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str());
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let (range, token) = (header("range"), header("authorization"));
        let line = format!("{method} {path} {} {}", range.unwrap_or("whole"), token.unwrap_or("nobody"));
        self.log.lock().unwrap().push(line);

        let file = &self.published;
        let moved = path.strip_prefix("/moved");
        let address_of_file = moved.unwrap_or(path);
        let address_of_file = address_of_file.strip_prefix("/spaces").unwrap_or(address_of_file);
        let resolve = address_of_file.starts_with("/owner/repo/resolve/");
        if resolve && matches!(self.head, Head::Moved) && moved.is_none() {
            let location = format!("Location: http://localhost:{}/moved{path}\r\n", address.port());
            return send(&stream, 308, &location, b"");
        }
        if resolve && !path.ends_with(FILE) {
            return send(&stream, 404, "X-Error-Code: EntryNotFound\r\n", b"");
        }
        if resolve && method == "HEAD" {
            match self.head {
                Head::Good | Head::Moved => {}
                Head::Absent(code) => return send(&stream, 404, &format!("X-Error-Code: {code}\r\n"), b""),
                Head::Loop => return send(&stream, 302, &format!("Location: {path}\r\n"), b""),
                Head::Status(status) => return send(&stream, status, "X-Error-Message: so it is\r\n", b""),
                Head::Portal => return send(&stream, 200, "Content-Type: text/html\r\n", b""),
            }
        }
        let identity = format!("X-Repo-Commit: {}\r\nAccept-Ranges: bytes\r\n", file.commit);
        if resolve && file.large {
            let linked = format!(
                "{identity}X-Linked-Etag: \"{}\"\r\nX-Linked-Size: {}\r\nETag: \"of-the-pointer\"\r\nLocation: http://{address}/storage/file\r\n",
                file.etag,
                file.content.len()
            );
            return send(&stream, 302, &linked, b"");
        }
        if !resolve && !path.starts_with("/storage/") {
            return send(&stream, 404, "", b"");
        }
        let identity = format!("{identity}ETag: \"{}\"\r\n", file.etag);
        if method == "HEAD" {
            let head = format!(
                "HTTP/1.1 200 OK\r\n{identity}Content-Length: {}\r\nConnection: close\r\n\r\n",
                file.content.len()
            );
            let _ = (&stream).write_all(head.as_bytes());
            return;
        }
        let reply = (self.content)(self.served.fetch_add(1, Ordering::SeqCst));
        let range = range.filter(|_| !matches!(reply, Reply::WithoutRanges)).map(|range| {
            let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
            first.parse().unwrap()..=last.parse().unwrap()
        });
        let (status, body) = match range {
            Some(range) => (206, &file.content[range]),
            None => (200, &file.content[..]),
        };
        match reply {
            Reply::Good | Reply::WithoutRanges => send(&stream, status, &identity, body),
            Reply::Page(status) => send(&stream, status, "Content-Type: text/html\r\n", PAGE.as_bytes()),
            Reply::Cut(length) => send_part(&stream, status, &identity, body, length),
            Reply::Stall(length) => {
                send_part(&stream, status, &identity, body, length);
                while !self.stop.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        }
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn send(stream: &TcpStream, status: u16, headers: &str, body: &[u8]) {
    send_part(stream, status, headers, body, body.len());
}

/// Sends the head of the full response and the first `length` bytes of its body. The other side may be gone.
fn send_part(mut stream: &TcpStream, status: u16, headers: &str, body: &[u8], length: usize) {
    let head =
        format!("HTTP/1.1 {status} Status\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(&body[..length.min(body.len())]);
    let _ = stream.flush();
}
