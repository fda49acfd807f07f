//! Pixels of a scene: outlines filled with anti-aliased textures over a cluttered background.

use super::scene::{Colour, Object, Scene, Shape, Texture};
use image::{Rgb, RgbImage};
use lxmert_core::boxes::BoxXyxy;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::f32::consts::{PI, TAU};

/// Samples per pixel and axis.
const SAMPLES: usize = 3;

/// A shape at its position, in pixels.
pub struct Outline {
    polygon: Vec<[f32; 2]>,
    /// Centre and squared radius of the hole of a ring.
    hole: Option<([f32; 2], f32)>,
}

impl Outline {
    /// The outline of `shape` around `centre_px`, turned by `rotation` radians.
    pub fn new(shape: Shape, centre_px: [f32; 2], radius_px: f32, rotation: f32) -> Self {
        // In units of the radius, y down.
        let unit: Vec<[f32; 2]> = match shape {
            Shape::Circle | Shape::Ring => (0..40).map(|i| polar(1.0, i as f32 / 40.0 * TAU)).collect(),
            Shape::Square => vec![[-0.86, -0.86], [0.86, -0.86], [0.86, 0.86], [-0.86, 0.86]],
            Shape::Triangle => vec![[0.0, -1.0], [1.0, 0.85], [-1.0, 0.85]],
            Shape::Star => {
                (0..10).map(|i| polar(if i % 2 == 0 { 1.08 } else { 0.46 }, i as f32 / 10.0 * TAU - PI / 2.0)).collect()
            }
            Shape::Cross => {
                let (l, w) = (1.0, 0.34);
                vec![
                    [-w, -l],
                    [w, -l],
                    [w, -w],
                    [l, -w],
                    [l, w],
                    [w, w],
                    [w, l],
                    [-w, l],
                    [-w, w],
                    [-l, w],
                    [-l, -w],
                    [-w, -w],
                ]
            }
            Shape::Diamond => vec![[0.0, -1.1], [0.7, 0.0], [0.0, 1.1], [-0.7, 0.0]],
            // The usual heart curve, 16 sin³ t and 13 cos t − 5 cos 2t − 2 cos 3t − cos 4t.
            Shape::Heart => (0..40)
                .map(|i| {
                    let t = i as f32 / 40.0 * TAU;
                    let y = 13.0 * t.cos() - 5.0 * (2.0 * t).cos() - 2.0 * (3.0 * t).cos() - (4.0 * t).cos();
                    [t.sin().powi(3), -(y + 2.5) / 16.0]
                })
                .collect(),
        };
        let (sin, cos) = rotation.sin_cos();
        let place = |[x, y]: [f32; 2]| {
            [centre_px[0] + radius_px * (cos * x - sin * y), centre_px[1] + radius_px * (sin * x + cos * y)]
        };
        let hole = (shape == Shape::Ring).then_some((centre_px, (0.52 * radius_px).powi(2)));
        Self { polygon: unit.into_iter().map(place).collect(), hole }
    }

    /// The tight box: x0 y0 x1 y1.
    pub fn bounds_px(&self) -> BoxXyxy {
        self.polygon.iter().fold([f32::MAX, f32::MAX, f32::MIN, f32::MIN], |b, p| {
            [b[0].min(p[0]), b[1].min(p[1]), b[2].max(p[0]), b[3].max(p[1])]
        })
    }

    /// Whether a point lies inside (even-odd rule).
    pub fn contains(&self, x: f32, y: f32) -> bool {
        if let Some(([cx, cy], squared)) = self.hole
            && (x - cx).powi(2) + (y - cy).powi(2) < squared
        {
            return false;
        }
        let mut inside = false;
        let mut previous = self.polygon[self.polygon.len() - 1];
        for &corner in &self.polygon {
            if (corner[1] > y) != (previous[1] > y) {
                let at = corner[0] + (y - corner[1]) / (previous[1] - corner[1]) * (previous[0] - corner[0]);
                inside ^= x < at;
            }
            previous = corner;
        }
        inside
    }
}

fn polar(radius: f32, angle: f32) -> [f32; 2] {
    [radius * angle.cos(), radius * angle.sin()]
}

/// Draws a scene. The same scene gives the same bytes.
pub fn draw(scene: &Scene) -> RgbImage {
    let mut rng = ChaCha8Rng::seed_from_u64(scene.pixel_seed);
    let mut canvas = Canvas::new(scene.width as usize, scene.height as usize);
    canvas.background(&mut rng);
    for object in &scene.objects {
        canvas.object(object, &mut rng);
    }
    canvas.finish(&mut rng)
}

/// RGB in 0..255, not yet rounded.
struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<[f32; 3]>,
}

impl Canvas {
    fn new(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![[0.0; 3]; width * height] }
    }

    /// A gradient between two muted colours, smooth noise, soft blobs, and thin lines.
    fn background(&mut self, rng: &mut ChaCha8Rng) {
        let (from, to) = (muted(rng), muted(rng));
        let [dx, dy] = polar(1.0, rng.random_range(0.0..TAU));
        let coarse = Lattice::new(self.width, self.height, 24, rng);
        let fine = Lattice::new(self.width, self.height, 7, rng);
        let (w, h) = (self.width as f32, self.height as f32);
        for y in 0..self.height {
            for x in 0..self.width {
                let along = 0.5 + 0.7 * (dx * (x as f32 / w - 0.5) + dy * (y as f32 / h - 0.5));
                let shade = 26.0 * coarse.at(x, y) + 16.0 * fine.at(x, y);
                self.pixels[y * self.width + x] = mix(from, to, along.clamp(0.0, 1.0)).map(|v| v + shade);
            }
        }
        // Scale the clutter with the area, so that it is as dense as in a picture of 128 × 128.
        let share = (self.width * self.height) as f32 / (128.0 * 128.0);
        for _ in 0..(rng.random_range(3.0..8.0) * share) as usize {
            self.blob(rng);
        }
        for _ in 0..(rng.random_range(5.0..13.0) * share) as usize {
            self.line(rng);
        }
    }

    /// A blurred, muted spot: without an edge it is not an object.
    fn blob(&mut self, rng: &mut ChaCha8Rng) {
        let (cx, cy) = (rng.random_range(0.0..self.width as f32), rng.random_range(0.0..self.height as f32));
        let (sx, sy) = (rng.random_range(4.0..14.0f32), rng.random_range(4.0..14.0f32));
        let colour = muted(rng);
        let opacity = rng.random_range(0.3..0.7);
        self.paint([cx - 3.0 * sx, cy - 3.0 * sy, cx + 3.0 * sx, cy + 3.0 * sy], |x, y| {
            let distance = ((x - cx) / sx).powi(2) + ((y - cy) / sy).powi(2);
            (colour, opacity * (-0.5 * distance).exp())
        });
    }

    /// A thin line of any colour.
    fn line(&mut self, rng: &mut ChaCha8Rng) {
        let (ax, ay) = (rng.random_range(0.0..self.width as f32), rng.random_range(0.0..self.height as f32));
        let [dx, dy] = polar(1.0, rng.random_range(0.0..TAU));
        let length = rng.random_range(8.0..70.0f32);
        let half_width = rng.random_range(0.3..0.9f32);
        let colour = if rng.random_bool(0.5) { muted(rng) } else { base_colour(Colour::draw(rng)) };
        let (bx, by) = (ax + dx * length, ay + dy * length);
        let rim = half_width + 1.0;
        self.paint([ax.min(bx) - rim, ay.min(by) - rim, ax.max(bx) + rim, ay.max(by) + rim], |x, y| {
            let along = ((x - ax) * dx + (y - ay) * dy).clamp(0.0, length);
            let distance = (x - ax - along * dx).hypot(y - ay - along * dy);
            (colour, 0.85 * (half_width + 0.5 - distance).clamp(0.0, 1.0))
        });
    }

    fn object(&mut self, object: &Object, rng: &mut ChaCha8Rng) {
        let outline = Outline::new(object.shape, object.centre_px, object.radius_px, object.rotation);
        let bright = base_colour(object.colour).map(|v| v + rng.random_range(-8.0..8.0));
        let dark = bright.map(|v| 0.38 * v);
        let [sx, sy] = polar(1.0, rng.random_range(0.0..TAU));
        let (phase_a, phase_b) = (rng.random_range(0.0..1.0f32), rng.random_range(0.0..1.0f32));
        // Large objects have a wider pattern, as if the same thing were nearer.
        let period = 4.4 + 0.08 * object.radius_px;
        let ink = |x: f32, y: f32| {
            let (u, v) = ((x * sx + y * sy) / period + phase_a, (y * sx - x * sy) / period + phase_b);
            match object.texture {
                Texture::Plain => false,
                Texture::Striped => u.rem_euclid(1.0) < 0.44,
                Texture::Dotted => (u.rem_euclid(1.0) - 0.5).hypot(v.rem_euclid(1.0) - 0.5) < 0.32,
            }
        };
        let bounds = outline.bounds_px();
        self.paint(bounds, |x, y| {
            let (mut colour, mut hits) = ([0.0f32; 3], 0usize);
            for i in 0..SAMPLES * SAMPLES {
                let offset = |k: usize| (k as f32 + 0.5) / SAMPLES as f32 - 0.5;
                let (px, py) = (x + offset(i % SAMPLES), y + offset(i / SAMPLES));
                if outline.contains(px, py) {
                    let sample = if ink(px, py) { dark } else { bright };
                    (0..3).for_each(|c| colour[c] += sample[c]);
                    hits += 1;
                }
            }
            (colour.map(|v| v / hits.max(1) as f32), hits as f32 / (SAMPLES * SAMPLES) as f32)
        });
    }

    /// Blends `(colour, opacity)` at every pixel centre inside `bounds`.
    fn paint(&mut self, bounds: BoxXyxy, at: impl Fn(f32, f32) -> ([f32; 3], f32)) {
        let clip = |v: f32, end: usize| (v.max(0.0) as usize).min(end);
        for y in clip(bounds[1].floor(), self.height)..clip(bounds[3].ceil() + 1.0, self.height) {
            for x in clip(bounds[0].floor(), self.width)..clip(bounds[2].ceil() + 1.0, self.width) {
                let (colour, opacity) = at(x as f32 + 0.5, y as f32 + 0.5);
                if opacity > 0.0 {
                    let pixel = &mut self.pixels[y * self.width + x];
                    *pixel = mix(*pixel, colour, opacity);
                }
            }
        }
    }

    /// Uneven light and sensor noise over everything, then bytes.
    fn finish(self, rng: &mut ChaCha8Rng) -> RgbImage {
        let [dx, dy] = polar(rng.random_range(0.0..0.16), rng.random_range(0.0..TAU));
        let (w, h) = (self.width as f32, self.height as f32);
        RgbImage::from_fn(self.width as u32, self.height as u32, |x, y| {
            let light = 1.0 + dx * (x as f32 / w - 0.5) + dy * (y as f32 / h - 0.5);
            let noise = rng.random_range(-7.0..7.0f32);
            let pixel = self.pixels[y as usize * self.width + x as usize];
            Rgb(pixel.map(|v| (v * light + noise).round().clamp(0.0, 255.0) as u8))
        })
    }
}

/// Values in −1..1 at the corners of a coarse grid, interpolated smoothly.
struct Lattice {
    cell: usize,
    columns: usize,
    values: Vec<f32>,
}

impl Lattice {
    fn new(width: usize, height: usize, cell: usize, rng: &mut ChaCha8Rng) -> Self {
        let (columns, rows) = (width / cell + 2, height / cell + 2);
        Self { cell, columns, values: (0..columns * rows).map(|_| rng.random_range(-1.0..1.0)).collect() }
    }

    fn at(&self, x: usize, y: usize) -> f32 {
        let smooth = |v: usize| {
            let t = (v % self.cell) as f32 / self.cell as f32;
            t * t * (3.0 - 2.0 * t)
        };
        let first = y / self.cell * self.columns + x / self.cell;
        let (u, v) = (smooth(x), smooth(y));
        let row = |i: usize| self.values[i] + u * (self.values[i + 1] - self.values[i]);
        row(first) + v * (row(first + self.columns) - row(first))
    }
}

/// A colour of the background: neither saturated nor bright.
fn muted(rng: &mut ChaCha8Rng) -> [f32; 3] {
    let grey = rng.random_range(50.0..150.0f32);
    [0; 3].map(|_| grey + rng.random_range(-22.0..22.0))
}

fn base_colour(colour: Colour) -> [f32; 3] {
    match colour {
        Colour::Red => [222.0, 36.0, 40.0],
        Colour::Orange => [247.0, 140.0, 18.0],
        Colour::Yellow => [246.0, 228.0, 48.0],
        Colour::Green => [34.0, 172.0, 56.0],
        Colour::Blue => [36.0, 76.0, 226.0],
        Colour::Purple => [140.0, 44.0, 196.0],
        Colour::Pink => [255.0, 150.0, 196.0],
        Colour::White => [244.0, 244.0, 244.0],
    }
}

fn mix(from: [f32; 3], to: [f32; 3], share: f32) -> [f32; 3] {
    [0, 1, 2].map(|c| from[c] + share * (to[c] - from[c]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenes::ScenesConfig;

    #[test]
    fn an_object_fills_its_box_and_nothing_outside() {
        for shape in Shape::ALL {
            let outline = Outline::new(shape, [40.3, 37.9], 15.0, 0.13);
            let b = outline.bounds_px();
            let (mut seen, mut count) = ([f32::MAX, f32::MAX, f32::MIN, f32::MIN], 0);
            for i in 0..800 {
                for j in 0..800 {
                    let (x, y) = (i as f32 / 10.0, j as f32 / 10.0);
                    if outline.contains(x, y) {
                        seen = [seen[0].min(x), seen[1].min(y), seen[2].max(x), seen[3].max(y)];
                        count += 1;
                    }
                }
            }
            for side in 0..4 {
                assert!((seen[side] - b[side]).abs() < 0.5, "{shape:?}: drawn {seen:?}, box {b:?}");
            }
            assert!(count > 15_000, "{shape:?} covers only {} px", count / 100);
        }
    }

    #[test]
    fn the_same_scene_gives_the_same_bytes() {
        let scene = Scene::generate(&ScenesConfig::default(), 3);
        assert_eq!(draw(&scene), draw(&scene.clone()));
        let other = Scene::generate(&ScenesConfig { seed: 1, ..ScenesConfig::default() }, 3);
        assert_ne!(draw(&scene), draw(&other));
    }
}
