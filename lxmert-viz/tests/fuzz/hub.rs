//! The hub's answers.

use super::{MB, remove, target, text, texts};
use crate::harness::Target;
use lxmert_core::checkpoint::Hub;
use lxmert_core::checkpoint::HubOptions;
use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

/// What a hub answers.
pub fn hub(root: &Path) -> Target {
    let good = "HTTP/1.1 200 OK\r\nX-Repo-Commit: 0123456789abcdef0123456789abcdef01234567\r\n\
                ETag: \"fedcba9876543210fedcba9876543210fedcba98\"\r\nContent-Length: 5\r\nAccept-Ranges: bytes\r\n\r\nhello";
    let large = "HTTP/1.1 302 Found\r\nX-Repo-Commit: 0123456789abcdef\r\nX-Linked-ETag: \"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824\"\r\n\
                 X-Linked-Size: 5\r\nLocation: /storage\r\nContent-Length: 0\r\n\r\n";
    let missing = "HTTP/1.1 404 Not Found\r\nX-Error-Code: EntryNotFound\r\nContent-Length: 0\r\n\r\n";
    let chunked = "HTTP/1.1 200 OK\r\nX-Repo-Commit: 01\r\nETag: W/\"02\"\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let words = &[
        "\r\n",
        ": ",
        "ETag: ",
        "X-Linked-Size: 18446744073709551615\r\n",
        "X-Repo-Commit: ../x\r\n",
        "HTTP/1.1 206 P\r\n",
        "Content-Range: bytes 0-4/5\r\n",
        "Content-Length: 4\r\n",
        "Connection: close\r\n",
        "Content-Encoding: gzip\r\n",
        "\0",
        "..",
        "/",
    ];
    let target = target(root, "hub", "answer", texts(&[good, large, missing, chunked]), words, |_| Ok(()));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let answer = Arc::new(Mutex::new(Vec::new()));
    let given = Arc::clone(&answer);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let (mut request, mut block) = (Vec::new(), [0; 2048]);
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                match stream.read(&mut block) {
                    Ok(n) if n > 0 => request.extend_from_slice(&block[..n]),
                    _ => break,
                }
            }
            let _ = stream.write_all(&given.lock().unwrap());
        }
    });
    let (path, cache) = (target.path.clone(), target.path.with_extension("cache"));
    let read = move || {
        let bytes = std::fs::read(&path).unwrap();
        // A redirect must not lead to another host.
        if bytes.windows(2).any(|pair| pair == b"//") {
            return Err("left out".into());
        }
        *answer.lock().unwrap() = bytes;
        let options = HubOptions {
            endpoint: Some(endpoint.clone()),
            attempts: 1,
            retry_delay: Duration::ZERO,
            patience: Duration::from_secs(2),
            ..HubOptions::new(&cache)
        };
        let fetched = Hub::new(options).and_then(|hub| hub.fetch(&"owner/repo/file".parse().unwrap(), None, false));
        if let Ok(path) = &fetched {
            assert!(path.starts_with(&cache), "{}", path.display());
        }
        remove(&cache);
        fetched.map(drop).map_err(text)
    };
    Target { spare: 16 * MB, read: Box::new(read), ..target }
}
