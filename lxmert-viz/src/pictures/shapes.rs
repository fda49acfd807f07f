//! The parts of a sheet, in pixels.

use super::font::Face;
use super::palette::Rgb;
use image::RgbImage;

/// A rectangle in pixels: left and top are inside, right and bottom outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rect {
    /// Left edge.
    pub x0: i32,
    /// Top edge.
    pub y0: i32,
    /// One past the right edge.
    pub x1: i32,
    /// One past the bottom edge.
    pub y1: i32,
}

impl Rect {
    /// The rectangle at `(x, y)` of this width and height.
    pub const fn sized(x: i32, y: i32, width: i32, height: i32) -> Self {
        Self { x0: x, y0: y, x1: x + width, y1: y + height }
    }

    /// Width in pixels.
    pub const fn width(&self) -> i32 {
        self.x1 - self.x0
    }

    /// Height in pixels.
    pub const fn height(&self) -> i32 {
        self.y1 - self.y0
    }

    /// Whether the two share a pixel.
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.x0 < other.x1 && other.x0 < self.x1 && self.y0 < other.y1 && other.y0 < self.y1
    }

    /// Whether `other` is inside.
    pub const fn contains(&self, other: &Self) -> bool {
        self.x0 <= other.x0 && self.y0 <= other.y0 && self.x1 >= other.x1 && self.y1 >= other.y1
    }

    /// Grown by `margin` on every side (shrunk if negative).
    pub const fn grown(&self, margin: i32) -> Self {
        Self { x0: self.x0 - margin, y0: self.y0 - margin, x1: self.x1 + margin, y1: self.y1 + margin }
    }

    /// The same size, moved.
    pub const fn moved(&self, dx: i32, dy: i32) -> Self {
        Self { x0: self.x0 + dx, y0: self.y0 + dy, x1: self.x1 + dx, y1: self.y1 + dy }
    }
}

/// Where text is relative to its point, horizontally. Vertically the point is on the baseline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// The text starts there.
    Left,
    /// Its middle is there.
    Centre,
    /// It ends there.
    Right,
}

/// One thing drawn on a sheet.
#[derive(Debug, Clone)]
pub(super) enum Shape {
    Fill { rect: Rect, colour: Rgb, opacity: f32 },
    Line { points: Vec<(i32, i32)>, colour: Rgb, width: f32 },
    Polygon { points: Vec<(i32, i32)>, colour: Rgb, opacity: f32 },
    Disc { centre: (i32, i32), radius: i32, colour: Rgb },
    Text { at: (i32, i32), align: Align, upwards: bool, face: Face, colour: Rgb, text: String },
    Photo { rect: Rect, photo: RgbImage },
}
