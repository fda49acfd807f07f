//! A hub on the loopback interface that serves the small files of one repository; nothing contacts a real host.
#![allow(dead_code)] // each test uses part of it

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A file's name in the repository, and its content.
pub type File = (String, Vec<u8>);

/// [`serve`] for texts.
pub fn serve_texts(files: &[(&str, &str)]) -> String {
    serve(files.iter().map(|(name, text)| ((*name).to_string(), text.as_bytes().to_vec())).collect())
}

/// [`serve`] for every file of a folder, without its subfolders.
pub fn serve_folder(folder: &Path) -> String {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    let named =
        |path: PathBuf| (path.file_name().unwrap().to_str().unwrap().to_string(), std::fs::read(&path).unwrap());
    serve(files.map(named).collect())
}

/// Serves these files as `owner/repo` at revisions `main` and `v1` and returns the address; runs until the test process
/// ends.
pub fn serve(files: Vec<File>) -> String {
    let files = Arc::new(files);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let files = Arc::clone(&files);
            std::thread::spawn(move || answer(&stream.unwrap(), &files));
        }
    });
    endpoint
}

fn answer(mut stream: &TcpStream, files: &[File]) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    assert!(
        headers.iter().all(|line| !line.to_ascii_lowercase().starts_with("range:")),
        "small files are fetched whole"
    );
    let (method, path) = request.rsplit_once(' ').unwrap().0.split_once(' ').unwrap();
    let revision = ["main", "v1"].into_iter().find(|revision| path.contains(&format!("/{revision}")));
    let name = path.strip_prefix("/owner/repo/resolve/").and_then(|rest| rest.split_once('/')).map(|(_, name)| name);
    let found = revision.and_then(|_| files.iter().position(|(file, _)| Some(file.as_str()) == name));
    let _ = match found {
        Some(i) => {
            let content = &files[i].1;
            let length = content.len();
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nX-Repo-Commit: {COMMIT}\r\nETag: \"{i:040}\"\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
            )
            .and_then(|()| stream.write_all(if method == "HEAD" { &[] } else { content }))
        }
        None if revision.is_some() && path.starts_with("/api/models/owner/repo/revision/") => {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}")
        }
        None => write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
    };
    let _ = stream.flush();
}
