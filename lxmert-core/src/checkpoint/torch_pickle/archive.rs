//! The directory of a zip archive, as far as torch writes one: which bytes belong to each entry.
//!
//! This project has its own reader for two reasons: it needs entries as ranges of the mapped file, not as streams, and
//! the `zip` crate (9.8) finds the directory by searching for signatures and refuses some archives that torch writes
//! and Python's `zipfile` reads (`tests/fixtures/pth/expanded_to_terabytes.pth` is one). The layout follows PKWARE's
//! APPNOTE 6.3.10, §4.3: the end record (§4.3.16) points to the central directory, whose headers (§4.3.12) point to the
//! local ones (§4.3.7), which the data follows. Numbers that do not fit are in the zip64 records and extra fields
//! (§4.3.14, §4.5.3).

use std::collections::BTreeMap;
use std::ops::Range;

/// Where an entry's bytes are.
pub(super) enum Entry {
    /// Uncompressed in the file.
    Stored(Range<usize>),
    /// Compressed or encrypted.
    Compressed,
}

/// The entries by name; the error says what is wrong with the archive.
pub(super) fn entries(bytes: &[u8]) -> Result<BTreeMap<String, Entry>, &'static str> {
    let (count, mut at) = directory(bytes)?;
    let mut entries = BTreeMap::new();
    for _ in 0..count {
        let cut = "its directory is truncated";
        let header = bytes.get(at..).and_then(|rest| rest.get(..46)).ok_or(cut)?;
        if !header.starts_with(b"PK\x01\x02") {
            return Err("its directory is damaged");
        }
        let [name_length, extra_length, comment_length] = [28, 30, 32].map(|i| usize::from(u16_at(header, i)));
        let name = bytes.get(at + 46..at + 46 + name_length).ok_or(cut)?;
        let extra = bytes.get(at + 46 + name_length..at + 46 + name_length + extra_length).ok_or(cut)?;
        let mut wide = zip64_extra(extra);
        let mut number = |i| match u32_at(header, i) {
            u32::MAX => wide.next().ok_or("an entry's zip64 size is missing"),
            value => Ok(u64::from(value)),
        };
        // The extra field holds the numbers that did not fit, in this order.
        let (size, compressed_size, local) = (number(24)?, number(20)?, number(42)?);
        let encrypted = u16_at(header, 8) & 1 != 0;
        let entry = if u16_at(header, 10) == 0 && !encrypted && size == compressed_size {
            Entry::Stored(
                data(bytes, local, size).ok_or("an entry lies outside the file; the end is missing or moved")?,
            )
        } else {
            Entry::Compressed
        };
        entries.insert(String::from_utf8_lossy(name).into_owned(), entry);
        at += 46 + name_length + extra_length + comment_length;
    }
    Ok(entries)
}

/// How many headers the central directory has, and where it starts.
fn directory(bytes: &[u8]) -> Result<(u64, usize), &'static str> {
    let missing = "its directory, which ends a zip archive, is missing";
    // The end record is 22 bytes plus a comment of at most 65535.
    let last = bytes.len().checked_sub(22).ok_or(missing)?;
    let end = (last.saturating_sub(65535)..=last)
        .rev()
        .find(|&at| {
            bytes[at..].starts_with(b"PK\x05\x06") && usize::from(u16_at(&bytes[at..], 20)) == bytes.len() - at - 22
        })
        .ok_or(missing)?;
    let mut count = u64::from(u16_at(&bytes[end..], 10));
    let mut start = u64::from(u32_at(&bytes[end..], 16));
    let locator = end.checked_sub(20).map(|at| &bytes[at..end]).filter(|l| l.starts_with(b"PK\x06\x07"));
    if let Some(locator) = locator {
        let record = usize::try_from(u64_at(locator, 8)).ok().and_then(|at| bytes.get(at..)?.get(..56));
        let record = record.filter(|r| r.starts_with(b"PK\x06\x06")).ok_or("its zip64 end record is damaged")?;
        (count, start) = (u64_at(record, 32), u64_at(record, 48));
    }
    let start =
        usize::try_from(start).ok().filter(|&start| start <= end).ok_or("its directory lies outside the file")?;
    Ok((count, start))
}

/// The numbers of the zip64 extra field (id 1).
fn zip64_extra(mut extra: &[u8]) -> impl Iterator<Item = u64> {
    let mut numbers: &[u8] = &[];
    while extra.len() >= 4 {
        let (id, length) = (u16_at(extra, 0), usize::from(u16_at(extra, 2)));
        let Some(field) = extra.get(4..4 + length) else { break };
        if id == 1 {
            numbers = field;
        }
        extra = &extra[4 + length..];
    }
    numbers.chunks_exact(8).map(|number| u64_at(number, 0))
}

/// The bytes of an entry, after its local header's name and extra field.
fn data(bytes: &[u8], local: u64, size: u64) -> Option<Range<usize>> {
    let local = usize::try_from(local).ok()?;
    let header = bytes.get(local..)?.get(..30)?;
    if !header.starts_with(b"PK\x03\x04") {
        return None;
    }
    let start = local + 30 + usize::from(u16_at(header, 26)) + usize::from(u16_at(header, 28));
    let end = start.checked_add(usize::try_from(size).ok()?)?;
    (end <= bytes.len()).then_some(start..end)
}

// Every caller has checked that these bytes exist.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
