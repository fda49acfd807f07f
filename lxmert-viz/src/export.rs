//! Attention maps and relevances as arrays, for your own analysis.
//!
//! `lxmert-viz export` writes one safetensors file. With N pairs, at most W word pieces and R regions, and, for each
//! kind of attention, L layers of H heads:
//!
//! | tensor | dtype | shape | what |
//! | --- | --- | --- | --- |
//! | `logits`, `probabilities` | F32 | `[N]` | the match logit and its sigmoid |
//! | `boxes` | F32 | `[N, R, 4]` | x0 y0 x1 y1, divided by the image's width and height |
//! | `detection_scores` | F32 | `[N, R]` | the detector's confidence, 0..1 |
//! | `attention/language`, `attention/language-self` | F32 | `[N, L, H, W, W]` | words over words, in the language layers and after the cross-attention |
//! | `attention/vision`, `attention/vision-self` | F32 | `[N, L, H, R, R]` | regions over regions, likewise |
//! | `attention/language-to-vision` | F32 | `[N, L, H, W, R]` | words over regions |
//! | `attention/vision-to-language` | F32 | `[N, L, H, R, W]` | regions over words |
//! | `relevance/METHOD/words` | F32 | `[N, W]` | how much each word piece matters to the score: the row of `[CLS]`, its own entry 0 |
//! | `relevance/METHOD/regions` | F32 | `[N, R]` | how much each region matters to the score |
//! | `relevance/METHOD/words-to-regions` | F32 | `[N, W, R]` | the whole matrix |
//! | `input_ids` | U32 | `[N, W]` | the word pieces |
//! | `labels` | U32 | `[N, R]` | each region's class, an index into the lines of `label_names` |
//! | `num_words`, `num_regions` | U32 | `[N]` | how many of W and R are real; the others are zeros |
//! | `truth` | U8 | `[N]` | 1 if the sentence is a caption of the image, 0 if it is a false one, 255 if unknown |
//! | `images`, `texts` | U8 | `[bytes]` | the images' names and the sentences in UTF-8, N lines |
//! | `tokens` | U8 | `[bytes]` | the word pieces, N lines, separated by spaces |
//! | `label_names` | U8 | `[bytes]` | the names of the classes, one per line |
//!
//! METHOD is `attention`, `gradient-attention`, `relevancy`, `rollout` or `grad-cam`. Those that use gradients also
//! occur as `relevance/METHOD-against/…`, the evidence against the match. Attention that the model does not have is
//! left out; with `--no-maps` all maps are. Indices count from 0 here: row 2 is the region that pictures number 3. The
//! file's metadata names the checkpoint, the captions and the features.
//!
//! Python reads it with the safetensors package alone:
//!
//! ```python
//! from safetensors.numpy import load_file
//! x = load_file("runs/scenes/plots/export.safetensors")
//! images, texts = (bytes(x[name]).decode().split("\n") for name in ("images", "texts"))
//! words, regions = x["num_words"][0], x["num_regions"][0]
//! print(images[0], texts[0], x["attention/language-to-vision"][0, -1, :, :words, :regions].mean(axis=0))
//! ```

use crate::explain::maps::{Direction, HeadMaps, Stance};
use crate::explain::matrix::Matrix;
use crate::explain::methods::Method;
use crate::explain::scorer::Scored;
use crate::{Error, Result};
use lxmert_core::features::Regions;
use lxmert_core::files::atomic_write;
use std::collections::BTreeMap;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

/// A sentence and an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportPair {
    /// The image's name.
    pub image: String,
    /// The sentence.
    pub text: String,
    /// The sentence's word pieces.
    pub tokens: Vec<String>,
    /// Whether the sentence is a caption of the image, if known.
    pub is_match: Option<bool>,
}

/// What to write beside the arrays of the pairs.
#[derive(Debug, Clone, Default)]
pub struct ExportInfo {
    /// The names of the regions' classes.
    pub label_names: Vec<String>,
    /// The file's metadata.
    pub metadata: BTreeMap<String, String>,
    /// Whether to write the attention maps.
    pub maps: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dtype {
    F32,
    U32,
    U8,
}

impl Dtype {
    const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::U32 => "U32",
            Self::U8 => "U8",
        }
    }

    const fn size(self) -> usize {
        if matches!(self, Self::U8) { 1 } else { 4 }
    }
}

/// Where an array is in the file's data.
struct Array {
    dtype: Dtype,
    shape: Vec<usize>,
    offset: usize,
}

impl Array {
    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }

    /// Bytes per pair.
    fn row(&self) -> usize {
        self.shape.iter().skip(1).product::<usize>() * self.dtype.size()
    }
}

/// The arrays of a file, in the order of their data.
#[derive(Default)]
struct Layout {
    arrays: Vec<(String, Array)>,
    bytes: usize,
}

impl Layout {
    fn add(&mut self, name: impl Into<String>, dtype: Dtype, shape: &[usize]) {
        let array = Array { dtype, shape: shape.to_vec(), offset: self.bytes };
        self.bytes += array.bytes();
        self.arrays.push((name.into(), array));
    }

    /// The length of the header, and the header, padded to a multiple of 8 bytes.
    fn header(&self, metadata: &BTreeMap<String, String>) -> Vec<u8> {
        let mut header = serde_json::Map::new();
        header.insert("__metadata__".into(), serde_json::json!(metadata));
        for (name, array) in &self.arrays {
            let end = array.offset + array.bytes();
            let entry = serde_json::json!({
                "dtype": array.dtype.name(), "shape": array.shape, "data_offsets": [array.offset, end],
            });
            header.insert(name.clone(), entry);
        }
        let mut text = serde_json::Value::Object(header).to_string();
        text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
        [(text.len() as u64).to_le_bytes().as_slice(), text.as_bytes()].concat()
    }
}

/// The largest sizes of a file's pairs.
struct Sizes {
    pairs: usize,
    words: usize,
    regions: usize,
}

fn layout(sizes: &Sizes, first: &Scored, texts: &[(&str, String)], maps: bool) -> Result<Layout> {
    let Sizes { pairs: n, words: w, regions: r } = *sizes;
    let mut layout = Layout::default();
    layout.add("logits", Dtype::F32, &[n]);
    layout.add("probabilities", Dtype::F32, &[n]);
    layout.add("boxes", Dtype::F32, &[n, r, 4]);
    layout.add("detection_scores", Dtype::F32, &[n, r]);
    for (name, _, _) in methods() {
        layout.add(format!("relevance/{name}/words"), Dtype::F32, &[n, w]);
        layout.add(format!("relevance/{name}/regions"), Dtype::F32, &[n, r]);
        layout.add(format!("relevance/{name}/words-to-regions"), Dtype::F32, &[n, w, r]);
    }
    for direction in Direction::ALL.into_iter().filter(|_| maps) {
        let layers = first.maps()?.layers(direction);
        if let Some(layer) = layers.first() {
            let (rows, columns) = sides(direction, (w, r));
            let shape = [n, layers.len(), layer.probabilities.len(), rows, columns];
            layout.add(format!("attention/{}", direction.slug()), Dtype::F32, &shape);
        }
    }
    layout.add("input_ids", Dtype::U32, &[n, w]);
    layout.add("labels", Dtype::U32, &[n, r]);
    layout.add("num_words", Dtype::U32, &[n]);
    layout.add("num_regions", Dtype::U32, &[n]);
    layout.add("truth", Dtype::U8, &[n]);
    texts.iter().for_each(|(name, text)| layout.add(*name, Dtype::U8, &[text.len()]));
    Ok(layout)
}

/// Every method with its name in the file; those that use gradients also against the match.
fn methods() -> Vec<(String, Method, Stance)> {
    let signed = Method::ALL.into_iter().filter(|method| method.needs_gradients());
    let against = signed.map(|method| (format!("{}-against", method.slug()), method, Stance::Against));
    Method::ALL.into_iter().map(|m| (m.slug().to_string(), m, Stance::For)).chain(against).collect()
}

/// The numbers of queries and keys of an attention.
const fn sides(direction: Direction, (words, regions): (usize, usize)) -> (usize, usize) {
    match direction {
        Direction::LanguageToVision => (words, regions),
        Direction::VisionToLanguage => (regions, words),
        Direction::LanguageSelf | Direction::Language => (words, words),
        Direction::VisionSelf | Direction::Vision => (regions, regions),
    }
}

/// Writes the arrays of `pairs` to `path`, whole or not at all, and returns the file's size in bytes. `regions`: the
/// largest number of regions of an image. `score(from)` scores some pairs from that one on, with gradients, and returns
/// the regions of each.
///
/// # Errors
/// [`Error::Shape`] if there is no pair; the errors of `score`; [`Error::Core`] with the path.
pub fn write(
    path: &Path,
    pairs: &[ExportPair],
    regions: usize,
    info: &ExportInfo,
    mut score: impl FnMut(usize) -> Result<Vec<(Scored, Regions)>>,
) -> Result<u64> {
    let words = pairs.iter().map(|pair| pair.tokens.len()).max().unwrap_or(0);
    let sizes = Sizes { pairs: pairs.len(), words, regions };
    let mut batch = if pairs.is_empty() { Vec::new() } else { score(0)? };
    let (first, _) = batch.first().ok_or_else(|| Error::Shape("no pair to export".into()))?;
    let lines = |of: &dyn Fn(&ExportPair) -> String| {
        let lines: Vec<String> = pairs.iter().map(|pair| of(pair).replace(['\n', '\r'], " ")).collect();
        lines.join("\n")
    };
    let texts = [
        ("images", lines(&|pair| pair.image.clone())),
        ("texts", lines(&|pair| pair.text.clone())),
        ("tokens", lines(&|pair| pair.tokens.join(" "))),
        ("label_names", info.label_names.join("\n")),
    ];
    let layout = layout(&sizes, first, &texts, info.maps)?;
    let header = layout.header(&info.metadata);
    let mut failed = None;
    let written = atomic_write(path, |file| {
        file.write_all(&header)?;
        let mut rows = Rows { file, layout: &layout, start: header.len() };
        for (name, text) in &texts {
            rows.put(name, 0, text.as_bytes())?;
        }
        let mut fill = || -> Result<()> {
            let mut done = 0;
            while done < pairs.len() {
                if done > 0 {
                    batch = score(done)?;
                }
                for ((scored, regions), pair) in batch.drain(..).zip(&pairs[done..]) {
                    rows.pair(done, pair, (&scored, &regions), &sizes)?;
                    done += 1;
                }
            }
            Ok(())
        };
        fill().map_err(|error| {
            failed = Some(error);
            std::io::Error::other("a pair could not be scored")
        })
    });
    match (written, failed) {
        (_, Some(error)) => Err(error),
        (written, None) => Ok(written.map(|()| (header.len() + layout.bytes) as u64)?),
    }
}

/// The arrays of a file while it is written.
struct Rows<'a, W> {
    file: &'a mut W,
    layout: &'a Layout,
    /// Where the data begins.
    start: usize,
}

impl<W: Write + Seek> Rows<'_, W> {
    /// Writes `bytes` as pair `row` of an array; does nothing if the file has no such array.
    fn put(&mut self, name: &str, row: usize, bytes: &[u8]) -> std::io::Result<()> {
        let Some((_, array)) = self.layout.arrays.iter().find(|(known, _)| known == name) else { return Ok(()) };
        let at = self.start + array.offset + row * array.row();
        self.file.seek(SeekFrom::Start(at as u64))?;
        self.file.write_all(bytes)
    }

    fn floats(&mut self, name: &str, row: usize, values: &[f32]) -> Result<()> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.put(name, row, &bytes).map_err(Error::io(name))
    }

    fn integers(&mut self, name: &str, row: usize, values: &[u32]) -> Result<()> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.put(name, row, &bytes).map_err(Error::io(name))
    }

    fn pair(
        &mut self,
        row: usize,
        pair: &ExportPair,
        (scored, regions): (&Scored, &Regions),
        sizes: &Sizes,
    ) -> Result<()> {
        let Sizes { words: w, regions: r, .. } = *sizes;
        let (words, count) = (scored.encoding.ids.len(), regions.num_regions());
        if words > w || count > r {
            let image = &pair.image;
            return Err(Error::Shape(format!(
                "{image}: {words} word pieces of at most {w}, {count} regions of at most {r}"
            )));
        }
        self.floats("logits", row, &[scored.logit])?;
        self.floats("probabilities", row, &[scored.probability()])?;
        self.floats("boxes", row, &padded(&regions.boxes.concat(), 4 * r))?;
        self.floats("detection_scores", row, &padded(&regions.scores, r))?;
        let maps = scored.maps()?;
        for (name, method, stance) in methods() {
            let maps = maps.taking(stance);
            let found = method.sentence(&maps)?;
            self.floats(&format!("relevance/{name}/words"), row, &padded(&found.words, w))?;
            self.floats(&format!("relevance/{name}/regions"), row, &padded(&found.regions, r))?;
            let matrix = table(&method.words_to_regions(&maps)?, (w, r));
            self.floats(&format!("relevance/{name}/words-to-regions"), row, &matrix)?;
        }
        for direction in Direction::ALL {
            let size = sides(direction, (w, r));
            let heads =
                |layer: &&HeadMaps| layer.probabilities.iter().flat_map(|map| table(map, size)).collect::<Vec<_>>();
            let values: Vec<f32> = maps.layers(direction).iter().flat_map(heads).collect();
            self.floats(&format!("attention/{}", direction.slug()), row, &values)?;
        }
        self.integers("input_ids", row, &padded(&scored.encoding.ids, w))?;
        self.integers("labels", row, &padded(&regions.labels, r))?;
        self.integers("num_words", row, &[words as u32])?;
        self.integers("num_regions", row, &[count as u32])?;
        let truth = pair.is_match.map_or(255, u8::from);
        self.put("truth", row, &[truth]).map_err(Error::io("truth"))
    }
}

/// `values` padded with zeros to `length`.
fn padded<T: Copy + Default>(values: &[T], length: usize) -> Vec<T> {
    let mut out = values.to_vec();
    out.resize(length, T::default());
    out
}

/// The rows of `matrix`, padded with zeros to the right and below.
fn table(matrix: &Matrix, (rows, columns): (usize, usize)) -> Vec<f32> {
    let filled: Vec<f32> = (0..matrix.rows).flat_map(|row| padded(matrix.row(row), columns)).collect();
    padded(&filled, rows * columns)
}
