//! TensorBoard event files.
//!
//! An event file is a sequence of records, each
//!
//! ```text
//! length  u64 little-endian
//! masked crc32c of the length, u32 little-endian
//! data    `length` bytes: a protocol buffer of type Event
//! masked crc32c of the data, u32 little-endian
//! ```
//!
//! where `masked = rotate_right(crc, 15) + 0xa282ead8` (tensorflow's `lib/core/io/record_writer`).
//! Four fields of the Event message are written: `wall_time` (1, double), `step` (2, varint), `file_version` (3,
//! string, only in the first record) and `summary` (5), which holds `value`s (1) with a `tag` (1, string) and a
//! `simple_value` (2, float). This project writes them itself because a resumed run must truncate the file to its saved
//! state and append.

use crate::{Error, Result};
use lxmert_core::files::AppendLog;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Name of a run's only event file; TensorBoard looks for `tfevents` in it.
pub const EVENT_FILE: &str = "events.out.tfevents.0000000000.lxmert-train";

/// Appends scalars to a run's event file.
#[derive(Debug)]
pub struct EventWriter {
    log: AppendLog,
}

impl EventWriter {
    /// Opens the event file in `folder` and keeps its first `keep` bytes.
    ///
    /// # Errors
    /// Returns an error if the folder or file cannot be written, or the file is shorter than `keep`.
    pub fn open(folder: &Path, keep: u64) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let mut log = AppendLog::open(folder.join(EVENT_FILE))?;
        log.cut(keep)?;
        let mut writer = Self { log };
        if keep == 0 {
            writer.record(&event(now(), 0, Payload::Version("brain.Event:2")))?;
        }
        Ok(writer)
    }

    /// Writes scalars at a step.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn scalars<S: AsRef<str>>(&mut self, step: u64, values: &[(S, f64)]) -> Result<()> {
        let values: Vec<(&str, f64)> = values.iter().map(|(name, value)| (name.as_ref(), *value)).collect();
        self.record(&event(now(), step, Payload::Scalars(&values)))
    }

    /// The file's length, for the training state.
    ///
    /// # Errors
    /// Returns an error if the file cannot be synced to disk.
    pub fn position(&self) -> Result<u64> {
        Ok(self.log.sync()?)
    }

    fn record(&mut self, data: &[u8]) -> Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut out = Vec::with_capacity(data.len() + 16);
        out.extend_from_slice(&length);
        out.extend_from_slice(&masked_crc32c(&length).to_le_bytes());
        out.extend_from_slice(data);
        out.extend_from_slice(&masked_crc32c(data).to_le_bytes());
        Ok(self.log.append(&out)?)
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

enum Payload<'a> {
    Version(&'a str),
    Scalars(&'a [(&'a str, f64)]),
}

fn event(wall_time: f64, step: u64, payload: Payload) -> Vec<u8> {
    let mut out = vec![0x09]; // field 1, 64 bits
    out.extend_from_slice(&wall_time.to_le_bytes());
    out.push(0x10); // field 2, varint
    varint(&mut out, step);
    match payload {
        Payload::Version(text) => bytes_field(&mut out, 3, text.as_bytes()),
        Payload::Scalars(values) => {
            let mut summary = Vec::new();
            for (tag, value) in values {
                let mut entry = Vec::new();
                bytes_field(&mut entry, 1, tag.as_bytes());
                entry.push(0x15); // field 2, 32 bits
                entry.extend_from_slice(&(*value as f32).to_le_bytes());
                bytes_field(&mut summary, 1, &entry);
            }
            bytes_field(&mut out, 5, &summary);
        }
    }
    out
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn bytes_field(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// CRC-32C (Castagnoli), bit by bit; records are only about a hundred bytes.
fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg()))
    })
}

fn masked_crc32c(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xA282_EAD8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_matches_the_standard_check_values() {
        // RFC 3720, B.4, and the catalogue's check value of CRC-32C.
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
    }

    #[test]
    fn event_bytes_match_tensorflows() {
        // python: tensorboard's event_pb2.Event(wall_time=1.0, step=300, summary=Summary(value=[
        //   Summary.Value(tag="loss", simple_value=0.5)])).SerializeToString().hex()
        let bytes = event(1.0, 300, Payload::Scalars(&[("loss", 0.5)]));
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "09000000000000f03f10ac022a0d0a0b0a046c6f7373150000003f");
    }

    #[test]
    fn reopening_truncates_and_appends_whole_records() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::open(folder.path(), 0).unwrap();
        writer.scalars(1, &[("loss", 0.5)]).unwrap();
        let keep = writer.position().unwrap();
        writer.scalars(2, &[("loss", 0.4)]).unwrap();
        let mut writer = EventWriter::open(folder.path(), keep).unwrap();
        writer.scalars(3, &[("loss", 0.3), ("accuracy", 0.9)]).unwrap();
        let bytes = std::fs::read(folder.path().join(EVENT_FILE)).unwrap();
        let (mut at, mut records) = (0, 0);
        while at < bytes.len() {
            let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            assert_eq!(bytes[at + 8..at + 12], masked_crc32c(&bytes[at..at + 8]).to_le_bytes());
            let data = &bytes[at + 12..at + 12 + length];
            assert_eq!(bytes[at + 12 + length..at + 16 + length], masked_crc32c(data).to_le_bytes());
            at += 16 + length;
            records += 1;
        }
        assert_eq!(records, 3);
    }
}
