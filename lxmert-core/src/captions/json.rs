//! Caption files in JSON.

use super::columns::Columns;
use super::{Reader, short};
use crate::{Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::path::Path;

/// The fields of Karpathy's and COCO's files that are read. Their lists are long, so nothing else is kept.
#[derive(Deserialize)]
struct File {
    images: Option<Vec<Image>>,
    annotations: Option<Vec<Annotation>>,
}

#[derive(Deserialize)]
struct Annotation {
    image_id: Option<Value>,
    caption: Option<String>,
}

#[derive(Deserialize)]
struct Image {
    id: Option<Value>,
    file_name: Option<String>,
    filename: Option<String>,
    /// The folder of an image in Karpathy's edition of COCO.
    filepath: Option<String>,
    split: Option<String>,
    #[serde(default)]
    sentences: Vec<Sentence>,
}

#[derive(Deserialize)]
struct Sentence {
    raw: String,
}

const WANTED: &str = "Karpathy's {\"images\": [{\"filename\", \"sentences\": [{\"raw\"}]}]}, COCO's {\"images\": [{\"id\", \
                      \"file_name\"}], \"annotations\": [{\"image_id\", \"caption\"}]}, or objects of {\"image\", \
                      \"caption\"} in a list or one per line";

/// Reads captions from any of the JSON forms.
pub(super) fn read(reader: &mut Reader, text: &str) -> Result<()> {
    let path = reader.captions.path.clone();
    if text.trim_start().starts_with('[') {
        return read_entries(reader, parse(&path, text)?);
    }
    // One object may fill a line of 100 MB; a caption object is short.
    const LONGEST_LINE: usize = 1 << 16;
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let first = lines.next().filter(|line| line.len() < LONGEST_LINE);
    if let (Some(Ok(first)), second) = (first.map(serde_json::from_str::<Map<String, Value>>), lines.next())
        && (second.is_some_and(|line| line.trim_start().starts_with('{')) || is_entry(&first))
    {
        return read_lines(reader, text);
    }
    match parse(&path, text)? {
        File { images: Some(images), annotations: Some(annotations) } => read_coco(reader, &images, &annotations),
        File { images: Some(images), annotations: None } => read_karpathy(reader, &images),
        File { images: None, annotations: Some(_) } => {
            #[derive(Deserialize)]
            struct Entries {
                annotations: Vec<Value>,
            }
            let Entries { annotations } = parse(&path, text)?;
            read_entries(reader, annotations)
        }
        File { images: None, annotations: None } => {
            let images: Map<String, Value> = parse(&path, text)?;
            if !images.values().all(|captions| sentences(captions).is_some()) {
                let keys = short(&images.keys().map(String::as_str).collect::<Vec<_>>().join(", "));
                return Err(Error::format(
                    &path,
                    format!("an object of {keys} is not a caption file; expected {WANTED}"),
                ));
            }
            for (i, (image, captions)) in images.iter().enumerate() {
                let pushed = reader.push(i + 1, image, None, &sentences(captions).unwrap_or_default());
                pushed.map_err(|reason| Error::format(&path, format!("'{image}': {reason}")))?;
            }
            Ok(())
        }
    }
}

/// Parses one of the forms; the error for any other JSON lists them all.
fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| match error.is_data() {
        true => Error::row(path, error.line(), format!("this JSON is not a caption file; expected {WANTED}")),
        false => Error::json(path)(error),
    })
}

fn is_entry(object: &Map<String, Value>) -> bool {
    Columns::of(object.keys().map(String::as_str)).is_some()
}

fn read_entries(reader: &mut Reader, entries: Vec<Value>) -> Result<()> {
    for (i, entry) in entries.into_iter().enumerate() {
        let pushed = match entry {
            Value::Object(entry) => push_entry(reader, i + 1, &entry),
            other => Err(format!("'{}' is not a caption; expected {WANTED}", short(&other.to_string()))),
        };
        pushed.map_err(|reason| Error::row(&reader.captions.path, i + 1, reason))?;
    }
    Ok(())
}

fn read_lines(reader: &mut Reader, text: &str) -> Result<()> {
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let pushed = serde_json::from_str(line)
            .map_err(|error| format!("expected one JSON object per line, found '{}' ({error})", short(line)))
            .and_then(|entry| push_entry(reader, i + 1, &entry));
        pushed.map_err(|reason| Error::row(&reader.captions.path, i + 1, reason))?;
    }
    Ok(())
}

fn push_entry(reader: &mut Reader, row: usize, entry: &Map<String, Value>) -> std::result::Result<(), String> {
    let keys: Vec<&str> = entry.keys().map(String::as_str).collect();
    let columns = Columns::of(keys.iter().copied())
        .ok_or_else(|| format!("an object of {} is not a caption; expected {WANTED}", short(&keys.join(", "))))?;
    let value = |column: usize| &entry[keys[column]];
    let image = name(value(columns.image)).ok_or_else(|| format!("'{}' is not a name", keys[columns.image]))?;
    let mut texts = Vec::new();
    for &column in &columns.captions {
        let found = sentences(value(column)).ok_or_else(|| format!("'{}' is not a sentence", keys[column]))?;
        texts.extend(found);
    }
    let number = columns.number.and_then(|column| u32::try_from(value(column).as_u64()?).ok());
    let image = reader.push(row, &image, number, &texts)?;
    match columns.split.and_then(|column| value(column).as_str()) {
        Some(split) => reader.set_split(image, split),
        None => Ok(()),
    }
}

/// A name or id as text.
fn name(value: &Value) -> Option<String> {
    match value {
        Value::String(name) => Some(name.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A sentence or a list of sentences, each a string or an object that holds one.
fn sentences(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(list) => list.iter().map(|one| sentences(one)?.pop()).collect(),
        Value::Object(sentence) => sentence.get("raw").or_else(|| sentence.get("caption")).and_then(sentences),
        _ => None,
    }
}

impl Image {
    fn name(&self) -> Option<String> {
        let name = self.file_name.as_ref().or(self.filename.as_ref())?;
        Some(match self.filepath.as_deref().filter(|folder| !folder.is_empty()) {
            Some(folder) => format!("{folder}/{name}"),
            None => name.clone(),
        })
    }
}

fn read_karpathy(reader: &mut Reader, images: &[Image]) -> Result<()> {
    for (i, image) in images.iter().enumerate() {
        let path = reader.captions.path.clone();
        let wrong = |reason: String| Error::format(&path, format!("images[{i}]: {reason}"));
        let name = image.name().ok_or_else(|| wrong(format!("neither filename nor file_name; expected {WANTED}")))?;
        if image.sentences.is_empty() {
            continue;
        }
        let texts: Vec<String> = image.sentences.iter().map(|sentence| sentence.raw.clone()).collect();
        if let Some(empty) = texts.iter().position(|text| text.trim().is_empty()) {
            return Err(wrong(format!("sentences[{empty}] is empty")));
        }
        let before = reader.captions.images.len();
        let number = reader.push(i + 1, &name, None, &texts).map_err(wrong)?;
        if number < before {
            return Err(wrong(format!("'{name}' appears twice")));
        }
        if let Some(split) = &image.split {
            reader.set_split(number, split).map_err(wrong)?;
        }
    }
    Ok(())
}

fn read_coco(reader: &mut Reader, images: &[Image], annotations: &[Annotation]) -> Result<()> {
    let path = reader.captions.path.clone();
    let mut names = HashMap::with_capacity(images.len());
    for (i, image) in images.iter().enumerate() {
        let wrong = |what: &str| Error::format(&path, format!("images[{i}]: no {what}; expected {WANTED}"));
        let id = image.id.as_ref().and_then(name).ok_or_else(|| wrong("id"))?;
        names.insert(id, image.name().ok_or_else(|| wrong("file_name"))?);
    }
    for (i, annotation) in annotations.iter().enumerate() {
        let wrong = |reason: String| Error::format(&path, format!("annotations[{i}]: {reason}"));
        let id = annotation.image_id.as_ref().and_then(name).ok_or_else(|| wrong("no image_id".into()))?;
        let image = names.get(&id).ok_or_else(|| wrong(format!("no image has id {id}")))?;
        let text = annotation.caption.clone().ok_or_else(|| wrong("no caption; name COCO's captions_*.json".into()))?;
        reader.push(i + 1, image, None, &[text]).map_err(wrong)?;
    }
    Ok(())
}
