//! Text in a bundled font (DejaVu Sans), set with sub-pixel positions and exact measures, so that a layout looks the
//! same on every machine. `ab_glyph` draws the glyphs.

use crate::{Error, Result};
use ab_glyph::{Font as _, FontRef, Glyph, PxScale, ScaleFont as _, point};
use std::sync::OnceLock;

/// A text's weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Weight {
    /// Running text.
    #[default]
    Regular,
    /// Titles and marked words.
    Bold,
}

/// Size in pixels per em, and weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Face {
    /// Pixels per em, > 0; a capital's height is about 0.73 of it.
    pub size: f32,
    /// Regular or bold.
    pub weight: Weight,
}

impl Face {
    /// Regular text, `size` pixels per em.
    pub const fn regular(size: f32) -> Self {
        Self { size, weight: Weight::Regular }
    }

    /// Bold text, `size` pixels per em.
    pub const fn bold(size: f32) -> Self {
        Self { size, weight: Weight::Bold }
    }

    /// Pixels from one baseline to the next.
    pub fn line_height(&self) -> i32 {
        (self.size * 1.32).ceil() as i32
    }

    /// Pixels from the top of a capital to the baseline.
    pub fn cap_height(&self) -> f32 {
        // 1493 of DejaVu Sans's 2048 units per em.
        self.size * 0.729
    }

    /// The width of `text` in pixels, rounded up.
    pub fn width(&self, text: &str) -> i32 {
        let Ok(font) = self.font() else { return 0 };
        self.set(font, text).1.ceil() as i32
    }

    /// `text` if it fits into `width` pixels, otherwise its longest prefix that fits with a `…`; empty if not even that
    /// fits.
    pub fn fit(&self, text: &str, width: i32) -> String {
        if self.width(text) <= width {
            return text.to_string();
        }
        let ends: Vec<usize> = text.char_indices().map(|(i, _)| i).collect();
        // The width grows with the length, so bisection finds the longest prefix that fits.
        let count = ends.partition_point(|end| self.width(&format!("{}…", text[..*end].trim_end())) <= width);
        if count == 0 { String::new() } else { format!("{}…", text[..ends[count - 1]].trim_end()) }
    }

    /// `text` broken at spaces into at most `lines` lines of at most `width` pixels. If text is left over, the last
    /// line ends in `…`; a single word that is too long is truncated.
    pub fn wrap(&self, text: &str, width: i32, lines: usize) -> Vec<String> {
        let mut out: Vec<String> = Vec::new();
        let mut words = text.split_whitespace().peekable();
        while words.peek().is_some() && out.len() < lines {
            let mut line = String::new();
            while let Some(word) = words.peek() {
                let longer = if line.is_empty() { (*word).to_string() } else { format!("{line} {word}") };
                if self.width(&longer) > width && !line.is_empty() {
                    break;
                }
                line = longer;
                words.next();
            }
            if out.len() + 1 == lines && words.peek().is_some() {
                line.push('…');
                while self.width(&line) > width && line.contains(' ') {
                    line = format!("{}…", line.rsplit_once(' ').map_or("", |(head, _)| head));
                }
            }
            out.push(self.fit(&line, width));
        }
        out
    }

    fn font(&self) -> Result<&'static FontRef<'static>> {
        font(self.weight)
    }

    fn set(&self, font: &FontRef<'static>, text: &str) -> (Vec<Glyph>, f32) {
        let units = font.units_per_em().unwrap_or(2048.0);
        // `PxScale` is the pixels of ascent + descent, not of the em.
        let scale = PxScale::from(self.size * font.height_unscaled() / units);
        let scaled = font.as_scaled(scale);
        let (mut x, mut previous, mut glyphs) = (0.0, None, Vec::with_capacity(text.len()));
        for character in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
            let id = scaled.glyph_id(character);
            if let Some(before) = previous {
                x += scaled.kern(before, id);
            }
            glyphs.push(id.with_scale_and_position(scale, point(x, 0.0)));
            x += scaled.h_advance(id);
            previous = Some(id);
        }
        (glyphs, x)
    }

    /// Whether the bundled font has no glyph for `character`.
    pub fn lacks(&self, character: char) -> bool {
        !character.is_control() && self.font().is_ok_and(|font| font.glyph_id(character).0 == 0)
    }

    /// Calls `pixel(x, y, coverage)` for every pixel that `text` touches, with the start of its baseline at `(start,
    /// 0)` and `y` growing downwards.
    ///
    /// # Errors
    /// [`Error::Drawing`] if the bundled font is damaged.
    pub fn rasterise(&self, text: &str, start: f32, mut pixel: impl FnMut(i32, i32, f32)) -> Result<()> {
        let font = self.font()?;
        for mut glyph in self.set(font, text).0 {
            glyph.position.x += start;
            if let Some(outline) = font.outline_glyph(glyph) {
                let bounds = outline.px_bounds();
                let (left, top) = (bounds.min.x as i32, bounds.min.y as i32);
                outline.draw(|x, y, coverage| pixel(left + x as i32, top + y as i32, coverage.min(1.0)));
            }
        }
        Ok(())
    }
}

fn font(weight: Weight) -> Result<&'static FontRef<'static>> {
    static FONTS: OnceLock<Option<[FontRef<'static>; 2]>> = OnceLock::new();
    let fonts = FONTS.get_or_init(|| {
        let regular = FontRef::try_from_slice(lxmert_train::log::curves::FONT).ok()?;
        let bold = FontRef::try_from_slice(lxmert_train::log::curves::FONT_BOLD).ok()?;
        Some([regular, bold])
    });
    fonts
        .as_ref()
        .map(|fonts| &fonts[usize::from(weight == Weight::Bold)])
        .ok_or_else(|| Error::Drawing("the bundled font cannot be read".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_pixels_stay_within_the_measured_width() {
        let face = Face::regular(14.0);
        for text in ["fish bike", "A woman (left), 36 ✓", "ÄÖÜ ##ing", "lllll", "WWW"] {
            let (mut right, mut left) = (i32::MIN, i32::MAX);
            face.rasterise(text, 0.0, |x, _, coverage| {
                if coverage > 0.5 {
                    right = right.max(x);
                    left = left.min(x);
                }
            })
            .unwrap();
            assert!(left >= -1 && right <= face.width(text), "{text}: {left}..{right} of {}", face.width(text));
            // A glyph may end up to a third of an em before its advance does.
            assert!(right >= face.width(text) - 5, "{text}: {right} of {}", face.width(text));
        }
    }

    #[test]
    fn long_text_is_truncated_with_an_ellipsis_that_fits() {
        let face = Face::bold(13.0);
        let text = "a very long region label of a photo";
        for width in [0, 5, 20, 60, 150, 1000] {
            let cut = face.fit(text, width);
            assert!(face.width(&cut) <= width, "{width}: {cut}");
            assert!(cut == text || cut.is_empty() || cut.ends_with('…'));
        }
        assert_eq!(face.fit(text, 1000), text);
    }

    #[test]
    fn wrapped_lines_fit_and_keep_every_word_within_the_line_limit() {
        let face = Face::regular(13.0);
        let text = "a small red circle is to the left of a very large blue square with stripes";
        let lines = face.wrap(text, 160, 20);
        assert!(lines.len() > 2 && lines.iter().all(|line| face.width(line) <= 160), "{lines:?}");
        assert_eq!(lines.join(" "), text);
        let two = face.wrap(text, 160, 2);
        assert_eq!(two.len(), 2);
        assert!(two[1].ends_with('…') && face.width(&two[1]) <= 160, "{two:?}");
        let cut = face.wrap("Donaudampfschifffahrtsgesellschaft", 60, 3);
        assert!(cut.len() == 1 && face.width(&cut[0]) <= 60, "{cut:?}");
    }
}
