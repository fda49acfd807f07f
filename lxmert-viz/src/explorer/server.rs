//! The local server of the page: connections on separate threads, and one queue to the models, which stay on the thread
//! that opened them.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /` | the page |
//! | `GET /api/status` | the models' current job, its duration, and how many wait |
//! | `POST /api/photo?NAME`, a photo | its regions |
//! | `POST /api/explain`, JSON | each checkpoint's view of a photo and a text, with maps |
//! | `POST /api/score`, JSON | the score without some words and regions |
//! | `POST /api/perturb`, JSON | the perturbation curves of the pair |
//!
//! Nothing else is answered, so no file on disk can be read. Photos are kept in memory, and the oldest are dropped.

use super::http::{self, Limits, Request, Response};
use super::live::{Ask, LiveModels, MOST_BYTES};
use crate::{Error, Result};
use lxmert_core::interrupt::interrupted;
use serde::Serialize;
use std::net::{TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many requests may wait for the models.
const MOST_WAITING: usize = 4;
/// Maximum number of simultaneous connections.
const MOST_CONNECTIONS: usize = 32;

/// A request to the models.
enum Work {
    Photo { name: String, bytes: Vec<u8> },
    Explain(Ask),
    Score(Ask),
    Perturb(Ask),
}

impl Work {
    const fn name(&self) -> &'static str {
        match self {
            Self::Photo { .. } => "finding the regions of a photo",
            Self::Explain(_) => "explaining",
            Self::Score(_) => "scoring",
            Self::Perturb(_) => "perturbing",
        }
    }

    fn run(&self, models: &mut LiveModels) -> Response {
        match self {
            Self::Photo { name, bytes } => answer(models.drop_photo(name, bytes)),
            Self::Explain(ask) => answer(models.explain(ask)),
            Self::Score(ask) => answer(models.score(ask)),
            Self::Perturb(ask) => answer(models.perturb(ask)),
        }
    }
}

fn answer(found: Result<impl Serialize>) -> Response {
    match found {
        Ok(found) => match serde_json::to_vec(&found) {
            Ok(json) => Response::json(json),
            Err(error) => Response::refusal("500 Internal Server Error", error.to_string()),
        },
        Err(error) => Response::refusal("422 Unprocessable Content", error.to_string()),
    }
}

struct Job {
    work: Work,
    reply: Sender<Response>,
}

/// The models' state, for the page.
#[derive(Default)]
struct Status {
    now: Mutex<Option<(&'static str, Instant)>>,
    waiting: AtomicUsize,
}

impl Status {
    fn set(&self, now: Option<&'static str>) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = now.map(|what| (what, Instant::now()));
    }

    fn response(&self) -> Response {
        let now = *self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = self.waiting.load(Ordering::Relaxed);
        let (what, seconds) = now.map_or((None, 0.0), |(what, since)| (Some(what), since.elapsed().as_secs_f32()));
        let status = serde_json::json!({ "what": what, "seconds": seconds, "waiting": waiting });
        Response::json(status.to_string().into_bytes())
    }
}

/// The data that every connection needs.
struct Shared {
    page: String,
    name: String,
    status: Status,
    queue: SyncSender<Job>,
    connections: AtomicUsize,
}

/// Serves the page on `listener` until the user interrupts it. `name`: the host's name, if it was given as one.
///
/// # Errors
/// [`Error::Core`] if the listener fails.
pub fn serve(listener: TcpListener, name: &str, page: String, models: &mut LiveModels) -> Result<()> {
    let (queue, jobs) = sync_channel(MOST_WAITING);
    let connections = AtomicUsize::new(0);
    let shared = Arc::new(Shared { page, name: name.into(), status: Status::default(), queue, connections });
    let accepting = Arc::clone(&shared);
    // The thread ends with the process.
    std::thread::Builder::new()
        .name("accept".into())
        .spawn(move || accept(&listener, &accepting))
        .map_err(Error::io("a thread"))?;
    work(&jobs, &shared.status, models);
    Ok(())
}

/// Runs the jobs, one after another.
fn work(jobs: &Receiver<Job>, status: &Status, models: &mut LiveModels) {
    while !interrupted() {
        let job = match jobs.recv_timeout(Duration::from_millis(200)) {
            Ok(job) => job,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        status.waiting.fetch_sub(1, Ordering::Relaxed);
        status.set(Some(job.work.name()));
        // One bad input for a decoder or a model must not end the session.
        let response = catch_unwind(AssertUnwindSafe(|| job.work.run(models))).unwrap_or_else(|_| {
            Response::refusal("500 Internal Server Error", "the model failed on this; others still work")
        });
        status.set(None);
        let _ = job.reply.send(response); // the client may be gone
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else {
            std::thread::sleep(Duration::from_millis(50)); // no descriptors left, perhaps
            continue;
        };
        if shared.connections.fetch_add(1, Ordering::Relaxed) >= MOST_CONNECTIONS {
            shared.connections.fetch_sub(1, Ordering::Relaxed);
            continue; // closed
        }
        let own = Arc::clone(shared);
        let started = std::thread::Builder::new().name("connection".into()).spawn(move || {
            respond(&mut stream, &own);
            own.connections.fetch_sub(1, Ordering::Relaxed);
        });
        if started.is_err() {
            shared.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn respond(stream: &mut TcpStream, shared: &Shared) {
    let limits = Limits { body: MOST_BYTES, patience: Duration::from_secs(30) };
    let _ = stream.set_write_timeout(Some(Duration::from_secs(30)));
    let response = match http::read(stream, &limits, &shared.name) {
        Ok(request) => route(request, shared),
        Err(refusal) => refusal,
    };
    response.send(stream);
}

fn route(request: Request, shared: &Shared) -> Response {
    let ask = |make: fn(Ask) -> Work| match serde_json::from_slice(&request.body) {
        Ok(ask) => enqueue(make(ask), shared),
        Err(error) => Response::refusal("400 Bad Request", format!("the request's JSON: {error}")),
    };
    match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/") => Response::html(&shared.page),
        ("GET", "/api/status") => shared.status.response(),
        ("POST", "/api/photo") => {
            let name = if request.query.is_empty() { "photo".into() } else { decoded(&request.query) };
            enqueue(Work::Photo { name, bytes: request.body }, shared)
        }
        ("POST", "/api/explain") => ask(Work::Explain),
        ("POST", "/api/score") => ask(Work::Score),
        ("POST", "/api/perturb") => ask(Work::Perturb),
        (_, "/" | "/api/status" | "/api/photo" | "/api/explain" | "/api/score" | "/api/perturb") => {
            Response::refusal("405 Method Not Allowed", "this method is not allowed")
        }
        _ => Response::refusal("404 Not Found", "there is no such page"),
    }
}

/// Waits for the models' response, behind at most [`MOST_WAITING`] others.
fn enqueue(work: Work, shared: &Shared) -> Response {
    let (reply, response) = channel();
    shared.status.waiting.fetch_add(1, Ordering::Relaxed);
    if let Err(error) = shared.queue.try_send(Job { work, reply }) {
        shared.status.waiting.fetch_sub(1, Ordering::Relaxed);
        let message = match error {
            TrySendError::Full(_) => {
                format!("the model is busy and {MOST_WAITING} requests wait; try again in a moment")
            }
            TrySendError::Disconnected(_) => "the server is stopping".into(),
        };
        return Response::refusal("503 Service Unavailable", message);
    }
    response.recv().unwrap_or_else(|_| Response::refusal("503 Service Unavailable", "the server is stopping"))
}

/// Decodes a name from a URL, at most 80 characters of it.
fn decoded(query: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = query.bytes();
    while let Some(byte) = rest.next() {
        let hex = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        bytes.push(match byte {
            b'%' => {
                let (high, low) = (hex(rest.next()), hex(rest.next()));
                high.zip(low).map_or(b'?', |(high, low)| (high * 16 + low) as u8)
            }
            other => other,
        });
    }
    String::from_utf8_lossy(&bytes).chars().filter(|c| !c.is_control()).take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_urls_are_decoded_and_truncated() {
        assert_eq!(decoded("my%20cat%C3%A9.jpg"), "my caté.jpg");
        assert_eq!(decoded("a%0a%zz%"), "a??");
        assert_eq!(decoded(&"x".repeat(500)).len(), 80);
    }
}
