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
//! `simple_value` (2, float). The HParams plugin reads two values of another kind, without a number but with `metadata`
//! (9): at the start of a run the settings, at its end that it has ended (tensorboard's
//! `plugins/hparams/plugin_data.proto`). Its table takes the results from the scalars. This project writes the file itself
//! because a resumed run must truncate it to its saved state and append.

use crate::{Error, Result};
use lxmert_core::files::AppendLog;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Name of a run's only event file; TensorBoard looks for `tfevents` in it.
pub const EVENT_FILE: &str = "events.out.tfevents.0000000000.lxmert-train";

/// Appends to a run's event file.
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

    /// Writes the settings of a run that starts, for HParams; those without a value are left out.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn start(&mut self, name: &str, settings: &BTreeMap<String, Value>) -> Result<()> {
        self.record(&event(now(), 0, Payload::Session("session_start_info", &session_start(name, settings, now()))))
    }

    /// Writes that the run has ended well, for HParams.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn end(&mut self) -> Result<()> {
        self.record(&event(now(), 0, Payload::Session("session_end_info", &session_end(now()))))
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
    /// A tag of HParams, and the plugin's data.
    Session(&'a str, &'a [u8]),
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
        Payload::Session(tag, data) => {
            let (mut plugin, mut metadata, mut value, mut summary) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            bytes_field(&mut plugin, 1, b"hparams");
            bytes_field(&mut plugin, 2, data);
            bytes_field(&mut metadata, 1, &plugin);
            bytes_field(&mut value, 1, format!("_hparams_/{tag}").as_bytes());
            bytes_field(&mut value, 8, &NO_NUMBER);
            bytes_field(&mut value, 9, &metadata);
            bytes_field(&mut summary, 1, &value);
            bytes_field(&mut out, 5, &summary);
        }
    }
    out
}

/// A TensorProto that holds the float 0, which the plugin puts where a value needs one: its type (1, varint), its empty shape
/// (2) and its packed values (5).
const NO_NUMBER: [u8; 10] = [0x08, 1, 0x12, 0, 0x2a, 4, 0, 0, 0, 0];

/// HParams' data with a SessionStartInfo (3): the settings (1, a map) as protobuf's JSON values, the name (4) and the time
/// (5).
fn session_start(name: &str, settings: &BTreeMap<String, Value>, time: f64) -> Vec<u8> {
    let (mut out, mut info) = (Vec::new(), Vec::new());
    for (key, value) in settings {
        let mut json = Vec::new();
        match value {
            Value::Null => continue,
            Value::Bool(flag) => json.extend([0x20, u8::from(*flag)]), // field 4, varint
            Value::Number(number) => {
                json.push(0x11); // field 2, 64 bits
                json.extend(number.as_f64().unwrap_or(f64::NAN).to_le_bytes());
            }
            Value::String(text) => bytes_field(&mut json, 3, text.as_bytes()),
            other => bytes_field(&mut json, 3, other.to_string().as_bytes()),
        }
        let mut entry = Vec::new();
        bytes_field(&mut entry, 1, key.as_bytes());
        bytes_field(&mut entry, 2, &json);
        bytes_field(&mut info, 1, &entry);
    }
    bytes_field(&mut info, 4, name.as_bytes());
    info.push(0x29); // field 5, 64 bits
    info.extend(time.to_le_bytes());
    bytes_field(&mut out, 3, &info);
    out
}

/// HParams' data with a SessionEndInfo (4): the status (1, varint; 1 is success) and the time (2).
fn session_end(time: f64) -> Vec<u8> {
    let (mut out, mut info) = (Vec::new(), vec![0x08, 1, 0x11]);
    info.extend(time.to_le_bytes());
    bytes_field(&mut out, 4, &info);
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
    fn sessions_match_tensorboards() {
        // python: plugins.hparams.plugin_data_pb2.HParamsPluginData(session_start_info=SessionStartInfo(
        //   group_name="try", start_time_secs=2.0)) with hparams["flag"].bool_value = True, or hparams["lr"].number_value = 0.5,
        //   or hparams["lr"].string_value = "x"; and session_end_info=SessionEndInfo(status=1, end_time_secs=2.0)
        let hex = |bytes: Vec<u8>| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let start = |name: &str, key: &str, value: Value| {
            let settings = BTreeMap::from([(key.to_string(), value), ("unset".to_string(), Value::Null)]);
            hex(session_start(name, &settings, 2.0))
        };
        assert_eq!(start("try", "flag", true.into()), "1a1a0a0a0a04666c6167120220012203747279290000000000000040");
        assert_eq!(start("t", "lr", 0.5.into()), "1a1d0a0f0a026c72120911000000000000e03f220174290000000000000040");
        assert_eq!(start("t", "lr", "x".into()), "1a170a090a026c7212031a0178220174290000000000000040");
        assert_eq!(hex(session_end(2.0)), "220b0801110000000000000040");
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
