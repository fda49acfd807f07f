//! The live models behind the page: photos in memory, and requests to the models, one at a time.

use super::document::{Names, Photo, View};
use super::views::{Claim, Explorer, Hidden, Score};
use crate::explain::perturbation;
use crate::{Error, Result};
use image::RgbImage;
use lxmert_core::features::Regions;
use lxmert_extract::finder::Finder;
use lxmert_extract::images::{self, DecodedImage};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Cursor;

/// Maximum size of a photo in bytes.
pub const MOST_BYTES: usize = 20_000_000;
/// Maximum number of pixels of a photo.
pub const MOST_PIXELS: u64 = 40_000_000;
/// Maximum length of a sentence in characters.
pub const MOST_CHARACTERS: usize = 500;
/// How many dropped photos to remember.
const MOST_PHOTOS: usize = 8;

/// Photos, detector and checkpoints.
pub struct LiveModels {
    /// The checkpoints, as on the page.
    pub explorers: Vec<Explorer>,
    /// Finds the regions of dropped photos.
    pub finder: Finder,
    /// The regions of the page's own photos.
    pub shown: Vec<Regions>,
    /// The regions of dropped photos with their ids, newest first.
    pub dropped: VecDeque<(String, Regions)>,
}

/// A request to the models.
#[derive(Debug, Clone, Deserialize)]
pub struct Ask {
    /// The photo's id.
    photo: String,
    /// The sentence or question.
    text: String,
    /// Whether it is a question.
    question: bool,
    /// The answer to explain; the best by default.
    #[serde(default)]
    answer: Option<String>,
    /// The index of the checkpoint; all that can answer by default.
    #[serde(default)]
    model: Option<usize>,
    /// Word pieces to remove.
    #[serde(default)]
    hidden_words: Vec<usize>,
    /// Regions to remove.
    #[serde(default)]
    hidden_regions: Vec<usize>,
}

/// One curve of a pair's perturbation.
#[derive(Debug, Clone, Serialize)]
pub struct PairCurve {
    side: &'static str,
    order: &'static str,
    method: &'static str,
    /// The fractions removed.
    removed: Vec<f64>,
    /// The remaining probability at each.
    probability: Vec<f32>,
}

impl LiveModels {
    /// Finds the regions of a photo dropped on the page.
    ///
    /// # Errors
    /// [`Error::Argument`] if it is not a picture, damaged or too large; [`Error::Extract`] if the detector fails.
    pub fn drop_photo(&mut self, name: &str, bytes: &[u8]) -> Result<Photo> {
        let decoded = decode(bytes)?;
        let regions = self.finder.regions(&decoded)?;
        if regions.num_regions() == 0 {
            return Err(Error::Argument("the detector found no region in the photo".into()));
        }
        let names = Names { labels: self.finder.label_names(), attributes: self.finder.attribute_names() };
        let DecodedImage { width, height, rgb } = decoded;
        let photo = RgbImage::from_raw(width, height, rgb)
            .ok_or_else(|| Error::Argument("the photo has fewer pixels than its size implies".into()))?;
        let id = secret();
        let mut shown = Photo::new(name, &photo, names.regions(&regions))?;
        shown.id = Some(id.clone());
        self.dropped.push_front((id, regions));
        self.dropped.truncate(MOST_PHOTOS);
        Ok(shown)
    }

    fn regions(&self, id: &str) -> Result<&Regions> {
        let shown = id.parse::<usize>().ok().and_then(|index| self.shown.get(index));
        let dropped = || self.dropped.iter().find(|(known, _)| known == id).map(|(_, regions)| regions);
        shown.or_else(dropped).ok_or_else(|| {
            Error::Argument(format!(
                "the server remembers only {MOST_PHOTOS} photos and has forgotten this one; drop it again"
            ))
        })
    }

    fn asked<'a>(&self, ask: &'a Ask) -> Result<(&Regions, Claim<'a>)> {
        let characters = ask.text.chars().count();
        if characters > MOST_CHARACTERS {
            return Err(Error::Argument(format!(
                "the text has {characters} characters; at most {MOST_CHARACTERS} are read"
            )));
        }
        let claim = match ask.question {
            true => Claim::Answer(&ask.text, ask.answer.as_deref()),
            false => Claim::Match(&ask.text),
        };
        Ok((self.regions(&ask.photo)?, claim))
    }

    fn explorer(&self, ask: &Ask, claim: &Claim) -> Result<&Explorer> {
        let named = ask.model.and_then(|model| self.explorers.get(model));
        named.or_else(|| self.explorers.iter().find(|one| one.can(claim))).ok_or_else(|| lacks(claim))
    }

    /// The view of each checkpoint that can handle the request.
    ///
    /// # Errors
    /// [`Error::Argument`] if none can, the photo is forgotten, or the text is empty or too long; [`Error::Candle`].
    pub fn explain(&self, ask: &Ask) -> Result<Vec<View>> {
        let (regions, claim) = self.asked(ask)?;
        let able = self.explorers.iter().enumerate().filter(|(_, one)| one.can(&claim));
        let views = able.map(|(model, one)| one.view(model, regions, &claim)).collect::<Result<Vec<_>>>()?;
        if views.is_empty() { Err(lacks(&claim)) } else { Ok(views) }
    }

    /// The score after removing regions and words.
    ///
    /// # Errors
    /// See [`LiveModels::explain`].
    pub fn score(&self, ask: &Ask) -> Result<Score> {
        let (regions, claim) = self.asked(ask)?;
        let hidden = Hidden { words: &ask.hidden_words, regions: &ask.hidden_regions };
        self.explorer(ask, &claim)?.score(regions, &claim, hidden)
    }

    /// The perturbation curves of this one pair ([`perturbation`]).
    ///
    /// # Errors
    /// See [`LiveModels::explain`].
    pub fn perturb(&self, ask: &Ask) -> Result<Vec<PairCurve>> {
        let (regions, claim) = self.asked(ask)?;
        let found = self.explorer(ask, &claim)?.perturb(regions, &claim)?;
        let curves =
            perturbation::lines().into_iter().zip(found).map(|(((side, order), ranking), (removed, logits))| {
                let probability = logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect();
                let (side, order, method) = (side.name(), order.name(), perturbation::ranking_name(ranking));
                PairCurve { side, order, method, removed, probability }
            });
        Ok(curves.collect())
    }
}

fn lacks(claim: &Claim) -> Error {
    Error::Argument(match claim {
        Claim::Match(_) => "no checkpoint here can score sentences; ask a question".into(),
        Claim::Answer(..) => {
            "no checkpoint here answers questions; start the server with --questions CHECKPOINT".into()
        }
    })
}

/// Decodes a photo if its header states at most [`MOST_PIXELS`].
fn decode(bytes: &[u8]) -> Result<DecodedImage> {
    let reader = image::ImageReader::new(Cursor::new(bytes)).with_guessed_format();
    if let Some((width, height)) = reader.ok().and_then(|reader| reader.into_dimensions().ok())
        && u64::from(width) * u64::from(height) > MOST_PIXELS
    {
        let most = MOST_PIXELS / 1_000_000;
        return Err(Error::Argument(format!("{width} × {height} pixels; at most {most} million are accepted")));
    }
    images::decode(bytes).map_err(|reason| Error::Argument(format!("the photo: {reason}")))
}

/// An unguessable id: two hashes with the process's own random keys.
fn secret() -> String {
    let random = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A BMP header that states more pixels than are accepted, without any pixel data.
    #[test]
    fn rejects_a_header_with_too_many_pixels_before_decoding() {
        let mut bmp = vec![0u8; 54];
        bmp[..2].copy_from_slice(b"BM");
        bmp[10] = 54;
        bmp[14] = 40;
        bmp[18..22].copy_from_slice(&30_000u32.to_le_bytes());
        bmp[22..26].copy_from_slice(&30_000u32.to_le_bytes());
        (bmp[26], bmp[28]) = (1, 24);
        let message = decode(&bmp).unwrap_err().to_string();
        assert_eq!(message, "30000 × 30000 pixels; at most 40 million are accepted");
        assert!(decode(b"no picture").unwrap_err().to_string().contains("not a JPEG"));
        assert!(decode(b"").is_err());
    }

    #[test]
    fn ids_are_long_and_unique() {
        let (a, b) = (secret(), secret());
        assert!(a.len() == 32 && a != b && a.parse::<usize>().is_err(), "{a} {b}");
    }
}
