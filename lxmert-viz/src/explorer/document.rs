//! The data for the page, as JSON. The scripts read these field names.

use super::pack::Packed;
use crate::explain::maps::Direction;
use crate::explain::methods::Method;
use crate::explain::words::Word;
use crate::pictures::palette::{ColourScale, Rgb};
use crate::{Error, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::RgbImage;
use image::codecs::jpeg::JpegEncoder;
use lxmert_core::answering::Answer;
use lxmert_core::boxes::BoxXyxy;
use lxmert_core::features::Regions;
use serde::Serialize;

/// All data for the page.
#[derive(Debug, Clone, Serialize)]
pub struct Document {
    /// The name of the data set.
    pub title: String,
    /// A note about the data for the reader.
    pub notice: Option<String>,
    /// The colours of a scale from 0 to 1, evenly spread, as `#rrggbb`.
    pub palette: Vec<String>,
    /// The methods.
    pub methods: Vec<MethodText>,
    /// The kinds of attention.
    pub directions: Vec<DirectionText>,
    /// The checkpoints.
    pub models: Vec<ModelText>,
    /// The photos.
    pub photos: Vec<Photo>,
    /// The pairs.
    pub pairs: Vec<Pair>,
    /// The capabilities of the server behind the page; absent in a file.
    pub live: Option<Live>,
}

impl Document {
    /// A page without pairs.
    pub fn new(title: &str, notice: Option<String>, colours: ColourScale) -> Self {
        let methods = Method::ALL.into_iter().map(|method| MethodText {
            slug: method.slug(),
            name: method.name(),
            explanation: method.explanation(),
            signed: method.needs_gradients(),
        });
        let directions = Direction::ALL.into_iter().map(|direction| DirectionText {
            slug: direction.slug(),
            sentence: direction.sentence(),
            layer: direction.layer_kind(),
        });
        Self {
            title: title.into(),
            notice,
            palette: (0..COLOURS).map(|i| hex(colours.at(i as f32 / (COLOURS - 1) as f32))).collect(),
            methods: methods.collect(),
            directions: directions.collect(),
            models: Vec::new(),
            photos: Vec::new(),
            pairs: Vec::new(),
            live: None,
        }
    }
}

/// Number of colours from which the page interpolates its scale.
const COLOURS: usize = 33;

fn hex([r, g, b]: Rgb) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// A method.
#[derive(Debug, Clone, Serialize)]
pub struct MethodText {
    slug: &'static str,
    name: &'static str,
    explanation: &'static str,
    /// Whether it gives evidence for and against.
    signed: bool,
}

/// A kind of attention.
#[derive(Debug, Clone, Serialize)]
pub struct DirectionText {
    slug: &'static str,
    sentence: &'static str,
    layer: &'static str,
}

/// A checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelText {
    /// Where it is, shortened.
    pub name: String,
    /// Whether it scores how well a sentence fits a photo.
    pub matches: bool,
    /// Whether it answers questions.
    pub answers: bool,
}

/// The capabilities of the server.
#[derive(Debug, Clone, Serialize)]
pub struct Live {
    /// The detector for dropped photos.
    pub detector: String,
    /// Maximum size of a dropped photo in bytes.
    pub most_bytes: usize,
    /// Maximum length of a sentence in characters.
    pub most_characters: usize,
}

/// A photo and its regions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Photo {
    /// The server's id for it; absent in a file.
    pub id: Option<String>,
    /// The image's name.
    pub name: String,
    /// Width in pixels, of the original photo.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// The photo as a data URL, at most [`LONGEST_SIDE`] pixels per side.
    pub src: String,
    /// The regions, best detection first.
    pub regions: Vec<Region>,
}

/// Pictures are scaled down to this many pixels, the size at which the page shows them.
pub const LONGEST_SIDE: u32 = 512;
const JPEG_QUALITY: u8 = 80;

/// A region.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Region {
    /// x0 y0 x1 y1, 0..1.
    #[serde(rename = "box")]
    pub corners: BoxXyxy,
    /// The class, if the detector names it.
    pub label: Option<String>,
    /// The attribute, if the detector names one.
    pub attribute: Option<String>,
    /// The detector's confidence.
    pub score: Option<f32>,
}

/// The names of classes and attributes.
#[derive(Debug, Clone, Copy)]
pub struct Names<'a> {
    /// The names of the regions' classes.
    pub labels: &'a [String],
    /// The names of their attributes.
    pub attributes: &'a [String],
}

impl Names<'_> {
    /// Each region with its names.
    pub fn regions(&self, regions: &Regions) -> Vec<Region> {
        let named = |names: &[String], index: Option<&u32>| -> Option<String> {
            names.get(*index? as usize).filter(|name| !name.is_empty()).cloned()
        };
        (0..regions.num_regions())
            .map(|i| Region {
                corners: regions.boxes[i],
                label: named(self.labels, regions.labels.get(i)),
                attribute: regions.attributes.as_ref().and_then(|a| named(self.attributes, a.labels.get(i))),
                score: regions.scores.get(i).copied(),
            })
            .collect()
    }
}

impl Photo {
    /// A photo for the page.
    ///
    /// # Errors
    /// [`Error::Drawing`] if it cannot be encoded.
    pub fn new(name: &str, photo: &RgbImage, regions: Vec<Region>) -> Result<Self> {
        let (width, height) = photo.dimensions();
        Ok(Self { id: None, name: name.into(), width, height, src: data_url(photo)?, regions })
    }
}

/// A photo as a JPEG in a data URL, scaled down to [`LONGEST_SIDE`].
fn data_url(photo: &RgbImage) -> Result<String> {
    let (width, height) = photo.dimensions();
    let scale = f64::from(LONGEST_SIDE) / f64::from(width.max(height).max(1));
    let side = |pixels: u32| ((f64::from(pixels) * scale).round() as u32).max(1);
    let small = (scale < 1.0).then(|| image::imageops::thumbnail(photo, side(width), side(height)));
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, JPEG_QUALITY)
        .encode_image(small.as_ref().unwrap_or(photo))
        .map_err(|error| Error::Drawing(error.to_string()))?;
    Ok(format!("data:image/jpeg;base64,{}", STANDARD.encode(jpeg)))
}

/// Why a pair is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A caption of the image.
    Caption,
    /// A caption of another image.
    Other,
    /// A caption made false by one word or relation.
    Hard,
    /// A question.
    Question,
    /// A user's text.
    Own,
}

/// A photo and a sentence or question.
#[derive(Debug, Clone, Serialize)]
pub struct Pair {
    /// The photo, an index into [`Document::photos`].
    pub photo: usize,
    /// The sentence or question.
    pub text: String,
    /// The kind of pair.
    pub kind: Kind,
    /// Whether the sentence is a caption of the image, if known.
    pub truth: Option<bool>,
    /// The true answers with their scores.
    pub answers: Vec<(String, f32)>,
    /// Each checkpoint's view of it.
    pub views: Vec<View>,
}

/// One checkpoint's view of a pair.
#[derive(Debug, Clone, Serialize)]
pub struct View {
    /// The checkpoint, an index into [`Document::models`].
    pub model: usize,
    /// The explained logit: of the match, or of an answer.
    pub logit: f32,
    /// Its sigmoid.
    pub probability: f32,
    /// The explained answer.
    pub answer: Option<String>,
    /// The best answers.
    pub best: Vec<Answer>,
    /// Whether the checkpoint is right, if known.
    pub right: Option<bool>,
    /// The word pieces.
    pub tokens: Vec<String>,
    /// The words as written, with the positions of their pieces.
    pub words: Vec<WordText>,
    /// The positions of pieces that belong to words with letters or digits.
    pub spoken: Vec<usize>,
    /// How many word pieces were truncated.
    pub truncated: usize,
    /// How many of the photo's regions the model saw.
    pub regions: usize,
    /// The maps.
    pub maps: Packed,
}

/// A word and its pieces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WordText {
    /// As written.
    pub text: String,
    /// The positions of its pieces.
    pub pieces: Vec<usize>,
}

impl From<Word> for WordText {
    fn from(word: Word) -> Self {
        Self { text: word.text, pieces: word.pieces }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lxmert_core::features::Attributes;

    #[test]
    fn regions_have_names_attributes_and_scores() {
        let attributes = Some(Attributes { labels: vec![1, 0], scores: vec![0.5, 0.4] });
        let regions = Regions {
            boxes: vec![[0.0; 4]; 2],
            labels: vec![1, 9],
            scores: vec![0.9, 0.8],
            attributes,
            ..Regions::default()
        };
        let (labels, attributes) = (["".to_string(), "star".into()], ["".to_string(), "red".into()]);
        let found = Names { labels: &labels, attributes: &attributes }.regions(&regions);
        assert_eq!(found[0].label.as_deref(), Some("star"));
        assert_eq!(found[0].attribute.as_deref(), Some("red"));
        assert_eq!((found[1].label.as_ref(), found[1].attribute.as_ref(), found[1].score), (None, None, Some(0.8)));
    }

    #[test]
    fn photos_are_scaled_down_and_small_ones_stay() {
        for ((width, height), want) in [((1280, 320), (512, 128)), ((30, 20), (30, 20)), ((3000, 1), (512, 1))] {
            let photo = RgbImage::from_pixel(width, height, image::Rgb([200, 30, 40]));
            let page = Photo::new("a.jpg", &photo, Vec::new()).unwrap();
            let jpeg = STANDARD.decode(page.src.strip_prefix("data:image/jpeg;base64,").unwrap()).unwrap();
            let shown = image::load_from_memory(&jpeg).unwrap();
            assert_eq!((shown.width(), shown.height()), want);
            assert_eq!((page.width, page.height), (width, height));
        }
    }
}
