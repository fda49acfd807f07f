//! `names.safetensors`: the names of a store's images, as they are looked up, and the sizes of its shards.
//!
//! All of it can be made anew from the shards. Opening a store maps the file and looks at its header alone, so that it costs the same
//! for any number of images. Nothing in it is trusted: offsets are checked where they are used, and a shard whose names are
//! others is refused when it is first read.

use super::index::{FORMAT, Index, VERSION};
use super::shard::header_of;
use crate::checkpoint::save::header;
use crate::files::{Bytes, atomic_write, map_file};
use crate::image_names::{Sorted, compare, order_of};
use crate::{Error, Result};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

/// The file's name in a store's folder.
pub(super) const NAMES_FILE: &str = "names.safetensors";

/// The names of one folder's images.
#[derive(Debug)]
pub(super) struct Names {
    bytes: Bytes,
    images: usize,
    shard_bytes: Range<usize>,
    ends: Range<usize>,
    order: Range<usize>,
    names: Range<usize>,
}

impl Names {
    /// Maps the folder's file. None if there is none, or it is of other shards than `index` lists.
    pub fn open(folder: &Path, index: &Index) -> Result<Option<Self>> {
        let path = folder.join(NAMES_FILE);
        let bytes = match map_file(&path) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let names = Self::of(bytes).ok_or_else(|| {
            Error::format(&path, "the file is damaged; delete it: it only saves reading the names from the shards")
        })?;
        Ok((names.images == index.images() && names.shard_bytes.len() == 8 * index.shards.len()).then_some(names))
    }

    /// Makes the file's content from the names, in order, joined by line feeds.
    ///
    /// # Errors
    /// The name that occurs twice.
    pub fn build(joined: &str, images: usize, shard_bytes: &[u64]) -> Result<std::result::Result<Self, String>> {
        let starts = std::iter::once(0).chain(joined.match_indices('\n').map(|(at, _)| at + 1)).take(images);
        let starts: Vec<usize> = starts.collect();
        let end = |i: usize| starts.get(i + 1).map_or(joined.len(), |next| next - 1);
        let name = |i: usize| &joined[starts[i]..end(i)];
        let order = order_of(images, name);
        let twice = order.windows(2).find(|pair| name(pair[0] as usize) == name(pair[1] as usize));
        if let Some(pair) = twice {
            return Ok(Err(name(pair[0] as usize).to_string()));
        }
        let metadata = [("format", FORMAT.to_string()), ("version", VERSION.to_string())];
        let mut bytes = header(
            &metadata.map(|(key, value)| (key.to_string(), value)).into(),
            [
                ("shard_bytes", Dtype::U64, vec![shard_bytes.len()]),
                ("ends", Dtype::U64, vec![images]),
                ("order", Dtype::U32, vec![images]),
                ("names", Dtype::U8, vec![joined.len()]),
            ],
        )?;
        bytes.extend(shard_bytes.iter().flat_map(|size| size.to_le_bytes()));
        bytes.extend((0..images).flat_map(|i| (end(i) as u64).to_le_bytes()));
        bytes.extend(order.iter().flat_map(|number| number.to_le_bytes()));
        bytes.extend(joined.as_bytes());
        let unread = || Error::Argument("the table of names that was just made cannot be read".into());
        Ok(Ok(Self::of(Bytes::Owned(bytes)).ok_or_else(unread)?))
    }

    /// Finds the tensors. None if they are not those of such a file.
    fn of(bytes: Bytes) -> Option<Self> {
        let json = header_of(bytes.len() as u64, |offset, out| {
            let from = bytes.get(offset as usize..).and_then(|rest| rest.get(..out.len()));
            from.map(|from| out.copy_from_slice(from)).ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
        });
        let json = json.ok()?;
        let metadata: Metadata = serde_json::from_slice(&json).ok()?;
        let data = 8 + json.len();
        let tensor = |name: &str, dtype: Dtype| {
            let info = metadata.info(name).filter(|info| info.dtype == dtype && info.shape.len() == 1)?;
            let range = data + info.data_offsets.0..data + info.data_offsets.1;
            (range.end <= bytes.len()).then_some((range, info.shape[0]))
        };
        let (shard_bytes, _) = tensor("shard_bytes", Dtype::U64)?;
        let ((ends, images), (order, ordered)) = (tensor("ends", Dtype::U64)?, tensor("order", Dtype::U32)?);
        let (names, _) = tensor("names", Dtype::U8)?;
        (images == ordered && images <= u32::MAX as usize).then_some(Self {
            bytes,
            images,
            shard_bytes,
            ends,
            order,
            names,
        })
    }

    /// Writes the file, if this was not read from it.
    pub fn write(&self, folder: &Path) -> Result<()> {
        match &self.bytes {
            Bytes::Mapped(_) => Ok(()),
            Bytes::Owned(bytes) => atomic_write(folder.join(NAMES_FILE), |file| file.write_all(bytes)),
        }
    }

    pub fn len(&self) -> usize {
        self.images
    }

    /// How long a shard's file is.
    pub fn shard_bytes(&self, shard: usize) -> Option<u64> {
        number(&self.bytes[self.shard_bytes.clone()], shard)
    }

    /// The name of image `number`; empty if the file is damaged there.
    pub fn get(&self, number: usize) -> &str {
        let bytes = self.joined(number..number + 1);
        std::str::from_utf8(bytes).unwrap_or_default()
    }

    /// The names of these images, which must not be none, joined by line feeds; empty if the file is damaged there.
    pub fn joined(&self, images: Range<usize>) -> &[u8] {
        let end = |image: usize| number(&self.bytes[self.ends.clone()], image).map(|end| end as usize);
        let start = if images.start == 0 { Some(0) } else { end(images.start - 1).and_then(|end| end.checked_add(1)) };
        let range = start.zip(images.end.checked_sub(1).and_then(end)).map(|(start, end)| start..end);
        range.and_then(|range| self.bytes[self.names.clone()].get(range)).unwrap_or_default()
    }

    /// A name that `other` has too. Takes few steps where the names of one lie between two of the other, as those of two data sets do.
    pub fn shared_with(&self, other: &Self) -> Option<&str> {
        let (mut own, mut others) = (0, 0);
        while own < self.count() && others < other.count() {
            let (a, b) = (self.at(own).1, other.at(others).1);
            match compare(a, b) {
                std::cmp::Ordering::Equal => return Some(a),
                std::cmp::Ordering::Less => own = self.next_place(b, own + 1),
                std::cmp::Ordering::Greater => others = other.next_place(a, others + 1),
            }
        }
        None
    }
}

impl Sorted for Names {
    fn count(&self) -> usize {
        self.images
    }

    fn at(&self, place: usize) -> (usize, &str) {
        let order = &self.bytes[self.order.clone()];
        let number =
            order.get(4 * place..).and_then(|rest| rest.first_chunk()).map(|b| u32::from_le_bytes(*b) as usize);
        let number = number.filter(|number| *number < self.images).unwrap_or(0);
        (number, self.get(number))
    }
}

/// The number at a place in little-endian bytes.
fn number(bytes: &[u8], place: usize) -> Option<u64> {
    bytes.get(place.checked_mul(8)?..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}
