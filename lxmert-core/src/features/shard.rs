//! One shard: its tensors, their order, and their conversion to and from bytes.

use super::index::{FORMAT, StoreInfo, VERSION};
use super::{Attributes, Regions, StoreDtype};
use crate::checkpoint::save::header;
use crate::files::atomic_write;
use crate::{Error, Result};
use half::slice::HalfFloatSliceExt;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

const NAMES: &str = "names";

/// One tensor of a shard, without the leading image axis.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub name: &'static str,
    dtype: Dtype,
    /// Shape of one image's row.
    shape: Vec<usize>,
    /// Byte range of the row in an image's record (see [`Layout::encode`]).
    pub bytes: Range<usize>,
    /// Bytes per number.
    number: usize,
}

/// The tensors of every shard of a store, in file order.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub columns: Vec<Column>,
    regions: usize,
    feature_dim: usize,
    dtype: StoreDtype,
    attributes: bool,
}

impl Layout {
    pub fn of(info: &StoreInfo) -> Self {
        let (n, dtype) = (info.regions, info.dtype);
        let features = match dtype {
            StoreDtype::F32 => Dtype::F32,
            StoreDtype::F16 => Dtype::F16,
            StoreDtype::Bf16 => Dtype::BF16,
        };
        let mut tensors = vec![
            ("features", features, dtype.size(), vec![n, info.feature_dim]),
            ("boxes", Dtype::F32, 4, vec![n, 4]),
            ("scores", Dtype::F32, 4, vec![n]),
            ("labels", Dtype::U32, 4, vec![n]),
        ];
        if info.has_attributes() {
            tensors.push(("attribute_scores", Dtype::F32, 4, vec![n]));
            tensors.push(("attribute_labels", Dtype::U32, 4, vec![n]));
        }
        tensors.push(("num_regions", Dtype::U32, 4, vec![]));
        tensors.push(("image_sizes", Dtype::U32, 4, vec![2]));
        let mut end = 0;
        let columns = tensors
            .into_iter()
            .map(|(name, dtype, size, shape)| {
                let start = end;
                end += size * shape.iter().product::<usize>();
                Column { name, dtype, shape, bytes: start..end, number: size }
            })
            .collect();
        let (regions, feature_dim) = (info.regions, info.feature_dim);
        Self { columns, regions, feature_dim, dtype, attributes: info.has_attributes() }
    }

    /// Bytes per image record.
    pub fn row_bytes(&self) -> usize {
        self.columns.last().map_or(0, |column| column.bytes.end)
    }

    /// One image's record: its row of every column in turn, padded with zeros to the store's number of regions. The
    /// regions must agree with the store ([`Regions::fault`]).
    pub fn encode(&self, regions: &Regions) -> Vec<u8> {
        let mut record = Vec::with_capacity(self.row_bytes());
        let mut columns = self.columns.iter();
        let mut close = |record: &mut Vec<u8>| {
            if let Some(column) = columns.next() {
                record.resize(column.bytes.end, 0);
            }
        };
        match self.dtype {
            StoreDtype::F32 => record.extend(regions.features.iter().flat_map(|v| v.to_le_bytes())),
            StoreDtype::F16 => {
                record.extend(regions.features.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()))
            }
            StoreDtype::Bf16 => {
                record.extend(regions.features.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()))
            }
        }
        close(&mut record);
        record.extend(regions.boxes.iter().flatten().flat_map(|v| v.to_le_bytes()));
        close(&mut record);
        let attributes = regions.attributes.as_ref().map(|a| (&a.scores, &a.labels));
        for (scores, labels) in [(&regions.scores, &regions.labels)].into_iter().chain(attributes) {
            record.extend(scores.iter().flat_map(|v| v.to_le_bytes()));
            close(&mut record);
            record.extend(labels.iter().flat_map(|v| v.to_le_bytes()));
            close(&mut record);
        }
        record.extend((regions.num_regions() as u32).to_le_bytes());
        close(&mut record);
        record.extend([regions.image_width, regions.image_height].iter().flat_map(|v| v.to_le_bytes()));
        close(&mut record);
        record
    }
}

/// Writes a shard, whole or not at all. `part(image, range, &mut bytes)` appends that range of the image's record.
pub(super) fn write_shard(
    path: &Path,
    layout: &Layout,
    names: &[&str],
    mut part: impl FnMut(usize, Range<usize>, &mut Vec<u8>) -> std::io::Result<()>,
) -> Result<()> {
    let names_joined = names.join("\n");
    let tensors = layout.columns.iter().map(|column| {
        let shape = std::iter::once(names.len()).chain(column.shape.iter().copied()).collect();
        (column.name, column.dtype, shape)
    });
    let metadata = [("format", FORMAT.to_string()), ("version", VERSION.to_string())];
    let header = header(
        &metadata.map(|(key, value)| (key.to_string(), value)).into(),
        tensors.chain([(NAMES, Dtype::U8, vec![names_joined.len()])]),
    )?;
    atomic_write(path, |file| {
        file.write_all(&header)?;
        let mut bytes = Vec::new();
        for column in &layout.columns {
            for image in 0..names.len() {
                bytes.clear();
                part(image, column.bytes.clone(), &mut bytes)?;
                file.write_all(&bytes)?;
            }
        }
        file.write_all(names_joined.as_bytes())
    })
}

/// Open files of a store's shards, a few at a time: a large store has more shards than a process may have open files. Opening one
/// again costs little beside a row.
#[derive(Debug)]
pub(super) struct OpenFiles([Mutex<Option<OpenFile>>; Self::MOST]);

#[derive(Debug)]
struct OpenFile {
    shard: usize,
    file: Arc<File>,
}

impl OpenFiles {
    const MOST: usize = 128;

    pub fn new() -> Arc<Self> {
        Arc::new(Self([const { Mutex::new(None) }; Self::MOST]))
    }

    /// The file of a store's shard, by its number.
    fn open(&self, shard: usize, path: &Path) -> Result<Arc<File>> {
        let mut place = self.0[shard % Self::MOST].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = place.as_ref().filter(|open| open.shard == shard) {
            return Ok(Arc::clone(&open.file));
        }
        let file = Arc::new(File::open(path).map_err(Error::io(path))?);
        *place = Some(OpenFile { shard, file: Arc::clone(&file) });
        Ok(file)
    }
}

/// A shard whose header agrees with the store. Rows are read on request. The file is not mapped into memory: the pages
/// that random batches touch would stay resident until the whole store is.
#[derive(Debug)]
pub(super) struct Shard {
    pub path: PathBuf,
    pub images: usize,
    /// Its number in the store, and where it gets its file.
    number: usize,
    files: Arc<OpenFiles>,
    /// Where each column of the layout starts in the file.
    starts: Vec<u64>,
    /// Where the images' names are, joined by line feeds.
    names: Range<u64>,
    layout: Arc<Layout>,
}

impl Shard {
    pub fn open(path: &Path, layout: &Arc<Layout>, number: usize, files: &Arc<OpenFiles>) -> Result<Self> {
        let file = files.open(number, path)?;
        let size = file.metadata().map_err(Error::io(path))?.len();
        let fault = |reason: String| {
            Error::format(path, format!("{reason}; delete this file and extract again; the other images are kept"))
        };
        let broken = |error| fault(format!("the shard is truncated or not safetensors ({error})"));
        let header = header_of(size, |offset, bytes| read_at(&file, offset, bytes))
            .map_err(|error| broken(error.to_string()))?;
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| broken(error.to_string()))?;
        let data = 8 + header.len();
        let names = metadata.info(NAMES).ok_or_else(|| fault("no tensor 'names'".into()))?;
        let expected = (data + names.data_offsets.1) as u64;
        if expected != size {
            return Err(fault(format!("the shard has {size} bytes, not the {expected} of its header")));
        }
        let tensors = metadata.tensors().len();
        if tensors != layout.columns.len() + 1 {
            return Err(fault(format!("{tensors} tensors, not {}", layout.columns.len() + 1)));
        }
        let images = metadata.info("num_regions").and_then(|info| info.shape.first().copied()).unwrap_or(0);
        let mut starts = Vec::with_capacity(layout.columns.len());
        for column in &layout.columns {
            let info = metadata.info(column.name).ok_or_else(|| fault(format!("no tensor '{}'", column.name)))?;
            let shape: Vec<usize> = std::iter::once(images).chain(column.shape.iter().copied()).collect();
            if info.dtype != column.dtype || info.shape != shape {
                return Err(fault(format!(
                    "'{}' is {} {:?}, not the store's {} {shape:?}",
                    column.name, info.dtype, info.shape, column.dtype
                )));
            }
            starts.push((data + info.data_offsets.0) as u64);
        }
        let names = (data + names.data_offsets.0) as u64..(data + names.data_offsets.1) as u64;
        let (path, layout, files) = (path.to_path_buf(), Arc::clone(layout), Arc::clone(files));
        Ok(Self { path, images, number, files, starts, names, layout })
    }

    /// The images' names, in order, joined by line feeds.
    pub fn names(&self) -> Result<String> {
        let mut bytes = vec![0; (self.names.end - self.names.start) as usize];
        let file = self.files.open(self.number, &self.path)?;
        read_at(&file, self.names.start, &mut bytes).map_err(Error::io(&self.path))?;
        let names = String::from_utf8(bytes)
            .map_err(|error| Error::format(&self.path, format!("the names are not UTF-8: {error}")))?;
        let count = if self.images == 0 { 0 } else { names.split('\n').count() };
        if count != self.images {
            let reason = format!("{count} names for {} images; delete this file and extract again", self.images);
            return Err(Error::format(&self.path, reason));
        }
        Ok(names)
    }

    /// Calls `take` with the bytes of `numbers` in an image's row of a column, block by block. `image` must be less
    /// than `images` and `column` must exist; this module and the reader check both.
    fn read(&self, column: usize, image: usize, numbers: Range<usize>, mut take: impl FnMut(&[u8])) -> Result<()> {
        // A row of features exceeds the first-level cache, and fresh memory for it would cost page faults.
        const BLOCK: usize = 1 << 14;
        let Column { bytes: row, number, .. } = &self.layout.columns[column];
        let start = self.starts[column] + (image * row.len() + numbers.start * number) as u64;
        let bytes = numbers.len() * number;
        let file = self.files.open(self.number, &self.path)?;
        let mut block = [0; BLOCK];
        for at in (0..bytes).step_by(BLOCK) {
            let block = &mut block[..BLOCK.min(bytes - at)];
            read_at(&file, start + at as u64, block).map_err(Error::io(&self.path))?;
            take(block);
        }
        Ok(())
    }

    /// The index of a column, by name.
    fn column(&self, name: &str) -> Option<usize> {
        self.layout.columns.iter().position(|column| column.name == name)
    }

    /// The first `count` numbers of an image's row; none if there is no such column.
    fn u32s(&self, name: &str, image: usize, count: usize, out: &mut Vec<u32>) -> Result<()> {
        self.column(name).map_or(Ok(()), |column| self.read(column, image, 0..count, |bytes| out.extend(u32s(bytes))))
    }

    /// As [`u32s`](Self::u32s).
    fn f32s(&self, name: &str, image: usize, count: usize, out: &mut Vec<f32>) -> Result<()> {
        let Some(column) = self.column(name) else { return Ok(()) };
        let from = out.len();
        self.read(column, image, 0..count, |bytes| out.extend(f32s(bytes)))?;
        self.check_finite(name, image, &out[from..])
    }

    /// A writer accepts finite numbers only, so others come from damage or from another program.
    fn check_finite(&self, name: &str, image: usize, numbers: &[f32]) -> Result<()> {
        // Without an early exit, so that the compiler vectorises it.
        if !numbers.iter().fold(false, |broken, number| broken | !number.is_finite()) {
            return Ok(());
        }
        let reason = format!(
            "the {name} of its image {image} are NaN or infinite; the file is damaged: delete it and extract again; the \
             images of other shards are kept"
        );
        Err(Error::format(&self.path, reason))
    }

    pub fn num_regions(&self, image: usize) -> Result<usize> {
        let mut number = Vec::with_capacity(1);
        self.u32s("num_regions", image, 1, &mut number)?;
        let n = number.first().map_or(0, |n| *n as usize);
        if n > self.layout.regions {
            let most = self.layout.regions;
            return Err(Error::format(&self.path, format!("image {image} has {n} regions, more than {most}")));
        }
        Ok(n)
    }

    /// Appends the features of a range of an image's regions, as `f32`.
    pub fn features(&self, image: usize, regions: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let Layout { feature_dim, dtype, .. } = *self.layout;
        let from = out.len();
        self.read(0, image, regions.start * feature_dim..regions.end * feature_dim, |bytes| match dtype {
            StoreDtype::F32 => out.extend(f32s(bytes)),
            StoreDtype::F16 => widen(bytes, out, half::f16::from_le_bytes, |half, out| half.convert_to_f32_slice(out)),
            StoreDtype::Bf16 => {
                widen(bytes, out, half::bf16::from_le_bytes, |half, out| half.convert_to_f32_slice(out))
            }
        })?;
        self.check_finite("features", image, &out[from..])
    }

    /// Appends the boxes of an image's first `n` regions, 4 numbers each.
    pub fn boxes(&self, image: usize, n: usize, out: &mut Vec<f32>) -> Result<()> {
        self.f32s("boxes", image, n * 4, out)
    }

    /// Appends the labels and scores of an image's first `n` regions, or, with `prefix` "attribute_", their attributes'.
    pub fn labels(
        &self,
        image: usize,
        n: usize,
        prefix: &str,
        labels: &mut Vec<u32>,
        scores: &mut Vec<f32>,
    ) -> Result<()> {
        self.u32s(&format!("{prefix}labels"), image, n, labels)?;
        self.f32s(&format!("{prefix}scores"), image, n, scores)
    }

    pub fn regions(&self, image: usize) -> Result<Regions> {
        let n = self.num_regions(image)?;
        let (mut features, mut boxes, mut size) = (Vec::new(), Vec::new(), Vec::new());
        self.features(image, 0..n, &mut features)?;
        self.boxes(image, n, &mut boxes)?;
        self.u32s("image_sizes", image, 2, &mut size)?;
        let classes = |prefix: &str| -> Result<(Vec<u32>, Vec<f32>)> {
            let (mut labels, mut scores) = (Vec::new(), Vec::new());
            self.labels(image, n, prefix, &mut labels, &mut scores)?;
            Ok((labels, scores))
        };
        let (labels, scores) = classes("")?;
        let attributes = match self.layout.attributes {
            true => {
                let (labels, scores) = classes("attribute_")?;
                Some(Attributes { labels, scores })
            }
            false => None,
        };
        Ok(Regions {
            image_width: size.first().copied().unwrap_or(0),
            image_height: size.last().copied().unwrap_or(0),
            feature_dim: self.layout.feature_dim,
            features,
            boxes: boxes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect(),
            labels,
            scores,
            attributes,
        })
    }
}

/// The header of a safetensors file of `size` bytes, which `read(offset, &mut bytes)` reads.
pub(super) fn header_of(size: u64, read: impl Fn(u64, &mut [u8]) -> std::io::Result<()>) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 8];
    read(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    // Check the length against the file before allocating that much memory.
    if length.saturating_add(8) > size {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let mut header = vec![0; length as usize];
    read(8, &mut header)?;
    Ok(header)
}

/// Fills `bytes` from `offset`; safe from any thread.
#[cfg(unix)]
fn read_at(file: &File, offset: u64, bytes: &mut [u8]) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

/// Fills `bytes` from `offset`; safe from any thread, since the file position that this moves is used no more.
#[cfg(windows)]
fn read_at(file: &File, mut offset: u64, mut bytes: &mut [u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, offset)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => (offset, bytes) = (offset + n as u64, &mut std::mem::take(&mut bytes)[n..]),
        }
    }
    Ok(())
}

fn u32s(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn f32s(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// Converts half-precision numbers to `f32` in blocks, so that the CPU's vector unit does the work.
fn widen<H: Copy + Default>(
    bytes: &[u8],
    out: &mut Vec<f32>,
    from_bytes: impl Fn([u8; 2]) -> H,
    convert: impl Fn(&[H], &mut [f32]),
) {
    const BLOCK: usize = 1024;
    let mut halves = [H::default(); BLOCK];
    let mut floats = [0f32; BLOCK];
    for block in bytes.chunks(2 * BLOCK) {
        let n = block.len() / 2;
        for (half, b) in halves.iter_mut().zip(block.chunks_exact(2)) {
            *half = from_bytes([b[0], b[1]]);
        }
        convert(&halves[..n], &mut floats[..n]);
        out.extend_from_slice(&floats[..n]);
    }
}
