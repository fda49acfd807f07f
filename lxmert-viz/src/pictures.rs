//! From a scored pair to the pictures of it: which map, which rows, which names.

use crate::heads::{HeadPanel, HeadsPicture};
use crate::heatmap::AttentionPicture;
use crate::matrix::Matrix;
use crate::methods::{MethodPanel, MethodsPicture};
use crate::overlay::{CaptionWord, OverlayPicture};
use crate::palette::ColourScale;
use crate::relevancy::{HeadMaps, Method};
use crate::scorer::Scored;
use crate::words::{self, Word};
use crate::{Error, Result};
use image::RgbImage;
use lxmert_core::boxes::BoxXyxy;
use lxmert_core::features::Regions;

/// Which attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Which {
    /// Cross layers: each word attends to the regions
    LanguageToVision,
    /// Cross layers: each region attends to the words
    VisionToLanguage,
    /// Cross layers: words attend to words, after the cross attention
    LanguageSelf,
    /// Cross layers: regions attend to regions, after the cross attention
    VisionSelf,
    /// Language layers: words attend to words
    Language,
    /// Vision layers: regions attend to regions
    Vision,
}

impl Which {
    /// All of them: the cross layers' first.
    pub const ALL: [Self; 6] = [
        Self::LanguageToVision,
        Self::VisionToLanguage,
        Self::LanguageSelf,
        Self::VisionSelf,
        Self::Language,
        Self::Vision,
    ];

    /// "words attend to regions".
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::LanguageToVision => "words attend to regions",
            Self::VisionToLanguage => "regions attend to words",
            Self::LanguageSelf | Self::Language => "words attend to words",
            Self::VisionSelf | Self::Vision => "regions attend to regions",
        }
    }

    /// "cross layer", "language layer", "vision layer".
    pub const fn layer_kind(self) -> &'static str {
        match self {
            Self::Language => "language layer",
            Self::Vision => "vision layer",
            _ => "cross layer",
        }
    }

    /// For file names.
    pub const fn slug(self) -> &'static str {
        match self {
            Self::LanguageToVision => "language-to-vision",
            Self::VisionToLanguage => "vision-to-language",
            Self::LanguageSelf => "language-self",
            Self::VisionSelf => "vision-self",
            Self::Language => "language",
            Self::Vision => "vision",
        }
    }
}

/// Regions of the pictures with fewer cells than this are drawn by name, else by number.
const REGION_NAMES_UP_TO: usize = 120;

/// A pair, what the model says of it, and the names of what is in it.
pub struct Explained<'a> {
    /// The image's name.
    pub image: &'a str,
    /// The sentence.
    pub text: &'a str,
    /// The model's answer with its maps.
    pub scored: &'a Scored,
    /// The image's regions.
    pub regions: &'a Regions,
    /// Their names with numbers: "3 red circle".
    pub region_names: Vec<String>,
    /// The sentence's words.
    pub words: Vec<Word>,
    /// What the score is of: "match", or an answer.
    pub claim: String,
}

impl<'a> Explained<'a> {
    /// Puts names to a scored pair; `label_names` are the detector's classes.
    pub fn new(
        image: &'a str,
        text: &'a str,
        scored: &'a Scored,
        regions: &'a Regions,
        label_names: &[String],
    ) -> Self {
        let region_names = region_names(regions, label_names);
        let words = words::words(text, &scored.encoding);
        Self { image, text, scored, regions, region_names, words, claim: "match".into() }
    }

    /// The same for the score of an answer in place of the match.
    #[must_use]
    pub fn of_answer(self, answer: &str) -> Self {
        Self { claim: format!("“{answer}”"), ..self }
    }

    /// "P(match) = 97 %".
    fn score(&self) -> String {
        format!("P({}) = {}", self.claim, crate::grid::percent(self.scored.probability()))
    }

    /// What each of `methods` says the score rests on, side by side: regions on the photo, words in the sentence.
    ///
    /// # Errors
    /// [`Error::Shape`] when the maps, or the gradients that a method needs, were not asked for.
    pub fn methods(&self, photo: RgbImage, methods: &[Method]) -> Result<MethodsPicture> {
        let maps = self.scored.maps()?;
        let panels = methods
            .iter()
            .map(|method| {
                let found = method.sentence(maps)?;
                let strongest = |word: &Word| word.pieces.iter().map(|p| found.words[*p]).fold(0.0, f32::max);
                Ok(MethodPanel {
                    title: method.name().into(),
                    note: method.explanation().into(),
                    words: self.words.iter().map(strongest).collect(),
                    regions: found.regions,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(MethodsPicture {
            title: match self.claim.as_str() {
                "match" => "What the match rests on".into(),
                answer => format!("What the answer {answer} rests on"),
            },
            subtitle: format!("{} · {} · {}", self.image, self.score(), "the row of [CLS], where the score is read"),
            photo,
            boxes_normalised: self.regions.boxes.clone(),
            names: self.region_names.clone(),
            words: self.words.iter().map(|word| word.text.clone()).collect(),
            panels,
            colours: ColourScale::default(),
        })
    }

    fn layers(&self, which: Which) -> Result<Vec<&HeadMaps>> {
        let maps = self.scored.maps()?;
        let layers: Vec<&HeadMaps> = match which {
            Which::Language => maps.language.iter().collect(),
            Which::Vision => maps.vision.iter().collect(),
            Which::LanguageToVision => maps.cross.iter().map(|l| &l.language_to_vision).collect(),
            Which::VisionToLanguage => maps.cross.iter().map(|l| &l.vision_to_language).collect(),
            Which::LanguageSelf => maps.cross.iter().filter_map(|l| l.language_self.as_ref()).collect(),
            Which::VisionSelf => maps.cross.iter().filter_map(|l| l.vision_self.as_ref()).collect(),
        };
        if layers.is_empty() {
            return Err(Error::Argument(format!(
                "this model has no {} where {}",
                which.layer_kind(),
                which.sentence()
            )));
        }
        Ok(layers)
    }

    /// How many layers have this attention; 0 when the model has none.
    ///
    /// # Errors
    /// [`Error::Shape`] when the pair was scored without maps.
    pub fn num_layers(&self, which: Which) -> Result<usize> {
        self.scored.maps()?;
        Ok(self.layers(which).map_or(0, |layers| layers.len()))
    }

    /// How many heads the attention of `layer` (from 1) has; 0 when there is no such layer.
    ///
    /// # Errors
    /// [`Error::Shape`] when the pair was scored without maps.
    pub fn num_heads(&self, which: Which, layer: usize) -> Result<usize> {
        self.scored.maps()?;
        let heads = |layers: Vec<&HeadMaps>| layers.get(layer.wrapping_sub(1)).map_or(0, |m| m.probabilities.len());
        Ok(self.layers(which).map_or(0, heads))
    }

    fn sides(&self, which: Which) -> [(&'static str, &[String]); 2] {
        let words = ("word", self.scored.encoding.tokens.as_slice());
        let regions = ("region", self.region_names.as_slice());
        match which {
            // Both directions are drawn words × regions, so that they can be compared.
            Which::LanguageToVision | Which::VisionToLanguage => [words, regions],
            Which::LanguageSelf | Which::Language => [words, words],
            Which::VisionSelf | Which::Vision => [regions, regions],
        }
    }

    fn subtitle(&self, reading: &str) -> String {
        format!("{} · “{}” · {} · {reading}", self.image, self.text, self.score())
    }

    /// One attention map. `layer` counts from 1, the last when `None`; `head` from 1, the mean over
    /// the heads when `None`.
    ///
    /// # Errors
    /// [`Error::Argument`] when there is no such layer or head.
    pub fn heatmap(&self, which: Which, layer: Option<usize>, head: Option<usize>) -> Result<AttentionPicture> {
        let layers = self.layers(which)?;
        let layer = layer.unwrap_or(layers.len());
        let heads = layer
            .checked_sub(1)
            .and_then(|i| layers.get(i))
            .ok_or_else(|| Error::Argument(format!("no {} {layer}; there are {}", which.layer_kind(), layers.len())))?;
        let count = heads.probabilities.len();
        let (map, of) = match head {
            None => (heads.mean(), format!("mean of {count} heads")),
            Some(head) => {
                let map = head.checked_sub(1).and_then(|i| heads.probabilities.get(i));
                let map = map.ok_or_else(|| Error::Argument(format!("no head {head}; there are {count}")))?;
                (map.clone(), format!("head {head} of {count}"))
            }
        };
        let turned = which == Which::VisionToLanguage;
        let [(row_kind, rows), (column_kind, columns)] = self.sides(which);
        let reading = if turned {
            "each column sums to 1, its largest weight is framed"
        } else {
            "each row sums to 1, its largest weight is framed"
        };
        let mut kind = which.layer_kind().to_string();
        kind[..1].make_ascii_uppercase();
        Ok(AttentionPicture {
            title: format!("{kind} {layer} of {} · {of} · {}", layers.len(), which.sentence()),
            subtitle: self.subtitle(reading),
            row_kind: row_kind.into(),
            column_kind: column_kind.into(),
            rows: rows.to_vec(),
            columns: columns.to_vec(),
            values: if turned { map.transposed().values } else { map.values },
            mark_columns: turned,
            ..AttentionPicture::default()
        })
    }

    /// Every head of every layer, or of one (counted from 1).
    ///
    /// # Errors
    /// [`Error::Argument`] when there is no such layer.
    pub fn heads(&self, which: Which, layer: Option<usize>) -> Result<HeadsPicture> {
        let layers = self.layers(which)?;
        if layer.is_some_and(|layer| layer == 0 || layer > layers.len()) {
            let layer = layer.unwrap_or(0);
            return Err(Error::Argument(format!("no {} {layer}; there are {}", which.layer_kind(), layers.len())));
        }
        let turned = which == Which::VisionToLanguage;
        let [(_, rows), (_, columns)] = self.sides(which);
        let numbers = |names: &[String]| (1..=names.len()).map(|i| i.to_string()).collect::<Vec<_>>();
        let regions_down = matches!(which, Which::Vision | Which::VisionSelf);
        let words_across = matches!(which, Which::Language | Which::LanguageSelf);
        let panels: Vec<HeadPanel> = layers
            .iter()
            .enumerate()
            .filter(|(i, _)| layer.is_none_or(|layer| layer == i + 1))
            .flat_map(|(i, heads)| {
                heads.probabilities.iter().enumerate().map(move |(head, map)| HeadPanel {
                    title: format!("layer {} · head {}", i + 1, head + 1),
                    values: if turned { map.transposed().values } else { map.values.clone() },
                })
            })
            .collect();
        let heads = layers.first().map_or(1, |heads| heads.probabilities.len());
        let reading = if turned { "each column sums to 1" } else { "each row sums to 1" };
        Ok(HeadsPicture {
            title: format!("All heads of the {}s · {}", which.layer_kind(), which.sentence()),
            subtitle: self.subtitle(&format!("{reading}; one colour scale for all")),
            rows: if regions_down { numbers(rows) } else { rows.to_vec() },
            columns: if words_across { columns.to_vec() } else { numbers(columns) },
            panels,
            // Wide rows of base-size models are broken in two or three.
            across: if heads > 6 { heads.div_ceil(heads.div_ceil(4)) } else { heads },
            colours: ColourScale::default(),
        })
    }

    /// How much each region matters to `pieces` of the sentence by `method`; `None` asks for the
    /// whole sentence, which attention answers with the mean over its words and the other methods with the
    /// row of `[CLS]`, where the score is read.
    ///
    /// # Errors
    /// [`Error::Shape`] when the maps, or the gradients that the method needs, were not asked for.
    pub fn region_weights(&self, method: Method, pieces: Option<&[usize]>) -> Result<Vec<f32>> {
        let matrix = method.words_to_regions(self.scored.maps()?)?;
        Ok(region_weights(&matrix, method, pieces, &self.words))
    }

    /// The photo with its regions tinted by `method`, for the chosen word or the whole sentence.
    /// `truth_normalised` is drawn dashed.
    ///
    /// # Errors
    /// [`Error::Argument`] when the sentence has no such word; [`Error::Shape`] as above.
    pub fn overlay(
        &self,
        photo: RgbImage,
        method: Method,
        word: Option<&str>,
        truth_normalised: Option<BoxXyxy>,
    ) -> Result<OverlayPicture> {
        let marked = word.map(|word| words::find(&self.words, word)).transpose()?;
        let pieces: Option<Vec<usize>> =
            marked.as_ref().map(|marked| marked.iter().flat_map(|i| self.words[*i].pieces.iter().copied()).collect());
        let weights = self.region_weights(method, pieces.as_deref())?;
        let chosen = marked.unwrap_or_default();
        let caption = (self.words.iter().enumerate())
            .map(|(i, word)| CaptionWord { text: word.text.clone(), marked: chosen.contains(&i) })
            .collect();
        let subject = match word {
            Some(_) => {
                let names: Vec<String> = chosen.iter().take(1).map(|i| self.words[*i].plain()).collect();
                format!("the word “{}”", names.join(" "))
            }
            None => "the whole sentence".into(),
        };
        let verb = match method {
            Method::Attention | Method::Rollout => "Where the model looks for",
            _ => "What the match rests on for",
        };
        Ok(OverlayPicture {
            title: format!("{verb} {subject}"),
            subtitle: format!("{} · {} · {}", self.image, self.score(), describe(method, word.is_some())),
            photo,
            boxes_normalised: self.regions.boxes.clone(),
            names: self.region_names.clone(),
            weights,
            weight_kind: method.weight_kind().into(),
            caption,
            top: 6,
            truth_normalised,
            colours: ColourScale::default(),
        })
    }

    /// The strongest links between a spoken word piece and a region in the last cross layer's
    /// attention, mean over heads: (piece, region, weight), strongest first.
    ///
    /// # Errors
    /// [`Error::Shape`] when the pair was scored without maps.
    pub fn strongest_links(&self, count: usize) -> Result<Vec<(usize, usize, f32)>> {
        let matrix = Method::Attention.words_to_regions(self.scored.maps()?)?;
        let mut links: Vec<(usize, usize, f32)> = words::spoken_pieces(&self.words)
            .into_iter()
            .flat_map(|piece| matrix.row(piece).iter().enumerate().map(move |(region, w)| (piece, region, *w)))
            .collect();
        links.sort_by(|a, b| b.2.total_cmp(&a.2));
        links.truncate(count);
        Ok(links)
    }
}

/// See [`Explained::region_weights`].
pub fn region_weights(matrix: &Matrix, method: Method, pieces: Option<&[usize]>, words: &[Word]) -> Vec<f32> {
    match (pieces, method) {
        (Some(pieces), _) => matrix.mean_of_rows(pieces),
        (None, Method::Attention | Method::GradientAttention) => matrix.mean_of_rows(&words::spoken_pieces(words)),
        (None, _) => matrix.mean_of_rows(&[0]),
    }
}

fn describe(method: Method, one_word: bool) -> String {
    let rows = match (one_word, method) {
        (true, _) => "the word's row",
        (false, Method::Attention | Method::GradientAttention) => "mean over the words",
        (false, _) => "the row of [CLS]",
    };
    format!("{}, {rows}", method.explanation())
}

/// "3 red circle": numbers from 1, best detection first, with the class; numbers alone when a name
/// is not known or there are very many.
pub fn region_names(regions: &Regions, label_names: &[String]) -> Vec<String> {
    let many = regions.boxes.len() > REGION_NAMES_UP_TO;
    (0..regions.boxes.len())
        .map(|i| {
            let label = regions.labels.get(i).and_then(|label| label_names.get(*label as usize));
            match label {
                Some(name) if !many && !name.is_empty() => format!("{} {name}", i + 1),
                _ => (i + 1).to_string(),
            }
        })
        .collect()
}
