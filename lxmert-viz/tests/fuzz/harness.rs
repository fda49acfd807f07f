//! Runs a reader on mutated files, and measures what it takes.

use lxmert_core::procedural::splitmix64;
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Longest time of the processor for one file. A reader takes milliseconds, a picture of a hundred million pixels seconds.
const LONGEST: Duration = Duration::from_secs(10);
/// A file that is being read for so long, on a machine however busy, ends the process.
const HANGS: Duration = Duration::from_secs(600);
/// Longest file that mutations make of a seed.
const MOST_BYTES: usize = 1 << 16;
/// Files that gave a new message and are mutated further.
const MOST_KEPT: usize = 2000;
/// A file that takes so long is read, but not mutated.
const SLOW: Duration = Duration::from_millis(200);
/// A target with so many failures is left.
const MOST_FAILURES: usize = 5;

/// The system's allocator, which counts bytes.
pub struct Counted;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn count(more: usize) {
    let live = LIVE.fetch_add(more, Relaxed) + more;
    PEAK.fetch_max(live, Relaxed);
}

#[allow(unsafe_code)]
// SAFETY: every call goes to the system's allocator with the same arguments.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as the caller's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LIVE.fetch_sub(layout.size(), Relaxed);
        count(size);
        // SAFETY: as the caller's.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// A reader, and files that it accepts or refuses.
pub struct Target {
    /// Its name, and that of its folder of files in `tests/corpus`.
    pub name: &'static str,
    /// Where the file to read is put.
    pub path: PathBuf,
    /// Files to start from.
    pub seeds: Vec<Vec<u8>>,
    /// Words of the format.
    pub words: &'static [&'static str],
    /// Makes checksums of a mutated file right again.
    pub repair: Option<fn(&mut [u8])>,
    /// Bytes of memory that a file of any size may take.
    pub spare: usize,
    /// Bytes of memory for each of the file's bytes.
    pub per_byte: usize,
    /// Reads the file; the error is the reader's message.
    pub read: Box<dyn FnMut() -> Result<(), String>>,
}

/// How much to do.
pub struct Budget {
    /// Mutated files of a target.
    executions: u64,
    /// Time of a target.
    time: Duration,
    /// The targets; none for all.
    only: Vec<String>,
    seed: u64,
}

impl Budget {
    /// From `LXMERT_FUZZ_EXECUTIONS` (of each target), `LXMERT_FUZZ_SECONDS` (of each target), `LXMERT_FUZZ_TARGETS`
    /// (names, separated by commas) and `LXMERT_FUZZ_SEED`; without them, a fraction of a second each.
    pub fn from_env() -> Self {
        let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
        let (executions, seconds) = (number("LXMERT_FUZZ_EXECUTIONS"), number("LXMERT_FUZZ_SECONDS"));
        let time = match (executions, seconds) {
            (_, Some(seconds)) => Duration::from_secs(seconds),
            (Some(_), None) => Duration::from_secs(1 << 20),
            (None, None) => Duration::from_millis(400),
        };
        let only = std::env::var("LXMERT_FUZZ_TARGETS").unwrap_or_default();
        Self {
            executions: executions.unwrap_or(u64::MAX),
            time,
            only: only.split(',').filter(|name| !name.is_empty()).map(String::from).collect(),
            seed: number("LXMERT_FUZZ_SEED").unwrap_or(0),
        }
    }

    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

/// The last panic's message; the hook keeps it from the terminal.
static PANIC: Mutex<String> = Mutex::new(String::new());
/// What is being read, and since when, for the watchdog.
static READING: Mutex<Option<(PathBuf, Instant)>> = Mutex::new(None);

/// Takes over panics' messages, and ends the process where a reader never ends.
pub fn watch() {
    std::panic::set_hook(Box::new(|panic| *PANIC.lock().unwrap() = panic.to_string()));
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            if let Some((path, since)) = READING.lock().unwrap().as_ref()
                && since.elapsed() > HANGS
            {
                eprintln!("{}: this file is still being read after {:?}", path.display(), since.elapsed());
                std::process::abort();
            }
        }
    });
}

/// How long this thread has run, where the system says it; otherwise how long it has been.
fn processor_time(start: Instant) -> Duration {
    let said = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = said.and_then(|text| text.split(' ').next()?.parse().ok());
    nanoseconds.map_or_else(|| start.elapsed(), Duration::from_nanos)
}

/// What the reads of a target took.
#[derive(Default)]
struct Tally {
    executions: u64,
    accepted: u64,
    messages: HashSet<String>,
    peak: usize,
    longest: Duration,
    last: Duration,
    failures: Vec<String>,
}

impl Target {
    /// Reads these bytes, which stay at the target's path. Returns whether the message is a new one.
    fn execute(&mut self, bytes: &[u8], tally: &mut Tally) -> bool {
        std::fs::write(&self.path, bytes).unwrap();
        let live = LIVE.load(Relaxed);
        PEAK.store(live, Relaxed);
        let start = Instant::now();
        *READING.lock().unwrap() = Some((self.path.clone(), start));
        let before = processor_time(start);
        let result = catch_unwind(AssertUnwindSafe(&mut self.read));
        let time = processor_time(start).saturating_sub(before);
        *READING.lock().unwrap() = None;
        let peak = PEAK.load(Relaxed).saturating_sub(live);
        let most = self.spare + self.per_byte * bytes.len();
        let fault = match &result {
            Err(_) => Some(std::mem::take(&mut *PANIC.lock().unwrap())),
            Ok(_) if peak > most => Some(format!("takes {peak} bytes of memory for {} (at most {most})", bytes.len())),
            Ok(_) if time > LONGEST => Some(format!("takes {time:?}")),
            Ok(_) => None,
        };
        if let Some(fault) = fault {
            let file = format!("{}-{}", self.name, tally.failures.len());
            let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(file);
            std::fs::write(&file, bytes).unwrap();
            tally.failures.push(format!("{}: {fault}\n  the file: {}", self.name, file.display()));
        }
        let result = result.unwrap_or(Ok(()));
        tally.executions += 1;
        tally.accepted += u64::from(result.is_ok());
        (tally.peak, tally.longest, tally.last) = (tally.peak.max(peak), tally.longest.max(time), time);
        tally.messages.insert(result.err().map_or_else(String::new, |message| kind(&message)))
    }

    /// Replays the corpus and reads mutated files; returns what fell.
    /// Files that give a new message are mutated further.
    pub fn fuzz(mut self, budget: &Budget) -> Vec<String> {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(self.name);
        let mut kept: Vec<PathBuf> =
            std::fs::read_dir(kept).map_or(Vec::new(), |entries| entries.map(|entry| entry.unwrap().path()).collect());
        kept.sort();
        let kept = kept.iter().map(|path| std::fs::read(path).unwrap());
        let mut corpus: Vec<Vec<u8>> = self.seeds.drain(..).chain(kept).collect();
        let name = self.name.bytes().fold(0, |hash, byte| splitmix64(hash ^ u64::from(byte)));
        let mut random = Random(splitmix64(budget.seed ^ name));
        let mut tally = Tally::default();
        // Slow files are read, but not mutated.
        corpus.retain(|bytes| {
            self.execute(bytes, &mut tally);
            tally.last < SLOW
        });
        let (seeds, start) = (corpus.len(), Instant::now());
        if tally.accepted == 0 {
            tally.failures.push(format!("{}: every seed is refused, so little of the reader runs", self.name));
        }
        let replayed = std::mem::take(&mut tally.executions);
        tally.accepted = 0;
        while tally.executions < budget.executions
            && start.elapsed() < budget.time
            && tally.failures.len() < MOST_FAILURES
        {
            // Half of the time a seed, which a reader accepts, and so perhaps what comes of it.
            let some = if random.below(2) == 0 { &corpus[..seeds] } else { &corpus };
            let bytes = self.mutate(some, &mut random);
            if self.execute(&bytes, &mut tally) && corpus.len() < MOST_KEPT {
                corpus.push(bytes);
            }
        }
        let Tally { executions, accepted, messages, peak, longest, failures, .. } = tally;
        println!(
            "{:<12} {replayed:>3} files and {executions:>8} mutated in {:>7.1} s, {:>4.1} % accepted, {:>4} messages, at most \
             {:>6.1} MB and {:>7.1} ms",
            self.name,
            start.elapsed().as_secs_f64(),
            100.0 * accepted as f64 / executions.max(1) as f64,
            messages.len(),
            peak as f64 / 1e6,
            longest.as_secs_f64() * 1e3,
        );
        failures
    }

    /// One of the corpus with a few changes.
    fn mutate(&self, corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
        let mut bytes = random.pick(corpus).clone();
        // Mostly one change: with more, little is accepted.
        let changes = [1, 1, 1, 1, 2, 2, 3, 8];
        for _ in 0..*random.pick(&changes) {
            change(&mut bytes, corpus, self.words, random);
        }
        bytes.truncate(MOST_BYTES.max(corpus.iter().map(Vec::len).max().unwrap_or(0)));
        if let Some(repair) = self.repair
            && random.below(4) > 0
        {
            repair(&mut bytes);
        }
        bytes
    }
}

/// What kind of message it is: its words without numbers and names.
fn kind(message: &str) -> String {
    let plain = message.split(['\'', '"', '`']).step_by(2);
    plain.flat_map(|part| part.chars().filter(|c| c.is_ascii_alphabetic() || *c == ' ')).take(300).collect()
}

/// Numbers at which code errs.
const NUMBERS: [&str; 22] = [
    "0",
    "-1",
    "1",
    "-0.0",
    "1e999",
    "-1e999",
    "1e-999",
    "NaN",
    "null",
    "true",
    "3.5",
    "255",
    "65535",
    "65536",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551616",
];

/// Changes one thing.
fn change(bytes: &mut Vec<u8>, corpus: &[Vec<u8>], words: &[&str], random: &mut Random) {
    let length = bytes.len();
    let at = random.below(length + 1);
    let most = 1 << random.below(12);
    let end = at + random.below((length - at).min(most) + 1);
    match random.below(14) {
        0 if length > 0 => bytes[at % length] ^= 1 << random.below(8),
        1 if length > 0 => bytes[at % length] = random.next() as u8,
        2 => {
            // A number of 1, 2, 4 or 8 bytes, either end first.
            let numbers = [0, 1, 0x7f, 0x80, 0xff, length as u64, 0x7fff_ffff, 0x8000_0000, u64::MAX, 1 << 62, 1 << 40];
            let number = random.pick(&numbers).wrapping_add(random.below(3) as u64).wrapping_sub(1);
            let width = 1 << random.below(4);
            let number = match random.below(2) {
                0 => number.to_le_bytes()[..width].to_vec(),
                _ => number.to_be_bytes()[8 - width..].to_vec(),
            };
            if at + width <= length {
                bytes[at..at + width].copy_from_slice(&number);
            }
        }
        3 => drop(bytes.drain(at..end)),
        4 => bytes.truncate(at),
        5 => {
            let part = bytes[at..end].to_vec();
            let to = random.below(bytes.len() + 1);
            bytes.splice(to..to, part);
        }
        6 => {
            // Many times the same: deep nesting, long lists.
            let part = bytes[at..end.min(at + 8)].to_vec();
            let times = 1 << random.below(6) << random.below(9);
            bytes.splice(at..at, part.repeat(times));
        }
        7 => drop(bytes.splice(at..at, (0..random.below(9)).map(|_| random.next() as u8).collect::<Vec<_>>())),
        8 | 9 if !words.is_empty() => {
            let word = random.pick(words).as_bytes().to_vec();
            let end = if random.below(2) == 0 { at } else { (at + word.len()).min(length) };
            bytes.splice(at..end, word);
        }
        10 | 11 => {
            // A number in text.
            let digit = |i: &usize| bytes[*i].is_ascii_digit();
            if let Some(start) = (at..length).find(digit) {
                let stop = (start..length).find(|i| !digit(i)).unwrap_or(length);
                let number = random.pick(&NUMBERS).as_bytes().to_vec();
                bytes.splice(start..stop, number);
            }
        }
        12 => {
            let other = random.pick(corpus).clone();
            let (from, to) = (random.below(other.len() + 1), random.below(other.len() + 1));
            bytes.splice(at..end, other[from.min(to)..from.max(to)].iter().copied());
        }
        _ => {
            // Two parts change places.
            let other = random.below(length + 1);
            let width = (end - at).min(length - other);
            for i in 0..width {
                bytes.swap(at + i, other + i);
            }
        }
    }
}

/// A generator of random numbers.
pub struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        splitmix64(self.0)
    }

    /// A number below `end`, or 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}
