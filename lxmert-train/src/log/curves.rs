//! `curves.png`: losses, accuracies and the learning rate over the epochs.
//!
//! The font is bundled (DejaVu Sans, `assets/LICENSE_DEJAVU`), so a machine needs none of its own.

use super::jsonl::Record;
use crate::{Error, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

/// DejaVu Sans, the bundled font.
pub const FONT: &[u8] = include_bytes!("../../assets/DejaVuSans.ttf");
/// DejaVu Sans Bold.
pub const FONT_BOLD: &[u8] = include_bytes!("../../assets/DejaVuSans-Bold.ttf");

/// Okabe & Ito's palette, told apart by colour-blind readers: blue, orange, green, vermilion, purple, sky blue, black.
pub const PALETTE: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

/// Makes the bundled font known to plotters as `sans-serif`; call before drawing text.
pub fn register_fonts() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        for (style, bytes) in [
            (FontStyle::Normal, FONT),
            (FontStyle::Bold, FONT_BOLD),
            (FontStyle::Italic, FONT),
            (FontStyle::Oblique, FONT),
        ] {
            // The bytes are a valid font; were they not, drawing would say so.
            let _ = plotters::style::register_font("sans-serif", style, bytes);
        }
    });
}

/// One line of a panel.
struct Series {
    label: String,
    /// (epochs, value).
    points: Vec<(f64, f64)>,
    dotted: bool,
}

/// One panel: its title, its lines, and a fixed range of values where the measure has one.
struct Panel {
    title: &'static str,
    series: Vec<Series>,
    range: Option<(f64, f64)>,
}

fn panels(records: &[Record]) -> Vec<Panel> {
    let mut steps = [const { Vec::new() }; 3]; // loss, learning rate, gradient norm
    let mut train_accuracy = Vec::new();
    let mut measured: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for record in records {
        match record {
            Record::Step(s) => {
                for (points, value) in steps.iter_mut().zip([s.loss, s.learning_rate, s.gradient_norm]) {
                    points.push((s.epoch, value));
                }
            }
            Record::Epoch(e) => {
                let x = e.epoch as f64;
                train_accuracy.extend(e.train_accuracy.map(|accuracy| (x, accuracy)));
                for (name, value) in e.validation.flat() {
                    measured.entry(name).or_default().push((x, value));
                }
            }
            Record::Test(_) => {}
        }
    }
    let [loss, rate, norm] = steps;
    let line = |label: &str, points| Series { label: label.into(), points, dotted: false };
    let mut losses = vec![line("training", loss)];
    losses.extend(of(&measured, &["loss"]));
    // Where a set sums the others up, it stands for them beside the training loss, which does too.
    if measured.contains_key("all/loss") {
        losses.retain(|series| series.label == "training" || series.label == "validation, all");
    }
    let mut accuracies = vec![Series { label: "training".into(), points: train_accuracy, dotted: true }];
    accuracies.extend(of(&measured, &["accuracy"]));
    accuracies.retain(|series| !series.points.is_empty());
    let ranked = of(&measured, &["auc", "f1"]);
    vec![
        Panel { title: "Loss (nats)", series: losses, range: None },
        Panel { title: "Accuracy", series: accuracies, range: Some((0.4, 1.0)) },
        if ranked.is_empty() {
            Panel { title: "Gradient norm before clipping", series: vec![line("gradient norm", norm)], range: None }
        } else {
            Panel { title: "Validation: AUC and F1", series: ranked, range: Some((0.4, 1.0)) }
        },
        Panel { title: "Learning rate", series: vec![line("learning rate", rate)], range: None },
    ]
}

/// The series of these measures, one per set.
fn of(measured: &BTreeMap<String, Vec<(f64, f64)>>, measures: &[&str]) -> Vec<Series> {
    let series = measured.iter().filter_map(|(name, points)| {
        let (set, measure) = name.rsplit_once('/').filter(|(_, measure)| measures.contains(measure))?;
        let label = if measures.len() > 1 { format!("{set} {measure}") } else { format!("validation, {set}") };
        Some(Series { label, points: points.clone(), dotted: true })
    });
    series.collect()
}

/// Draws the curves of a run, 1200 × 840 pixels.
///
/// # Errors
/// When the picture cannot be drawn or written.
pub fn draw(path: &Path, records: &[Record]) -> Result<()> {
    register_fonts();
    let (width, height) = (1200u32, 840u32);
    let mut pixels = vec![0u8; (width * height * 3) as usize];
    let failed = |e: &dyn std::fmt::Display| Error::Drawing { path: path.to_path_buf(), reason: e.to_string() };
    {
        let root = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
        root.fill(&WHITE).map_err(|e| failed(&e))?;
        let panels = panels(records);
        let epochs = epochs_shown(&panels);
        for (panel, area) in panels.iter().zip(root.margin(8, 8, 8, 8).split_evenly((2, 2))) {
            draw_panel(panel, epochs, &area).map_err(|e| failed(&*e))?;
        }
        root.present().map_err(|e| failed(&e))?;
    }
    let png = encode_png(&pixels, width, height).map_err(|e| failed(&e))?;
    lxmert_core::files::atomic_write(path, |file| std::io::Write::write_all(file, &png))?;
    Ok(())
}

fn encode_png(pixels: &[u8], width: u32, height: u32) -> std::result::Result<Vec<u8>, image::ImageError> {
    let mut png = Vec::new();
    let encoder = image::codecs::png::PngEncoder::new(&mut png);
    image::ImageEncoder::write_image(encoder, pixels, width, height, image::ExtendedColorType::Rgb8)?;
    Ok(png)
}

/// The largest value, or twice the 98th percentile where a few values are far above it.
fn most(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let Some(last) = values.last() else { return 0.0 };
    last.min(2.0 * values[(values.len() - 1) * 98 / 100])
}

type DrawResult = std::result::Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Where the axis of epochs ends, in every panel alike: at the end of the last epoch that has begun. Steps are recorded now
/// and then, so that a panel of steps alone would end earlier.
fn epochs_shown(panels: &[Panel]) -> f64 {
    let points = panels.iter().flat_map(|panel| &panel.series).flat_map(|series| &series.points);
    points.map(|(epochs, _)| *epochs).fold(1.0, f64::max).ceil()
}

fn draw_panel(panel: &Panel, x_max: f64, area: &DrawingArea<BitMapBackend, Shift>) -> DrawResult {
    let points = || panel.series.iter().flat_map(|s| s.points.iter().copied()).filter(|p| p.1.is_finite());
    let (low, high) = match panel.range {
        // Many series have a tall legend at the bottom, which needs room below the lines.
        Some((low, high)) if panel.series.len() > 4 => {
            let lowest = points().map(|p| p.1).fold(low, f64::min);
            (lowest - 0.5 * (high - lowest), high)
        }
        Some((low, high)) => (points().map(|p| p.1).fold(low, f64::min), high),
        None => (0.0, most(points().map(|p| p.1).collect()) * 1.05),
    };
    let high = if high > low { high } else { low + 1.0 };
    let text = |size: u32| ("sans-serif", size).into_font().color(&RGBColor(40, 40, 40));
    let mut chart = ChartBuilder::on(area)
        .caption(panel.title, text(19))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..x_max, low..high)?;
    chart
        .configure_mesh()
        .x_desc("epochs")
        .label_style(text(14))
        .axis_desc_style(text(15))
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(225, 225, 225))
        .x_labels(11)
        .x_label_formatter(&|x| if (x - x.round()).abs() < 1e-9 { format!("{x:.0}") } else { format!("{x:.1}") })
        .y_label_formatter(&|y| {
            if y.abs() < 1e-12 {
                "0".to_string()
            } else if high < 0.01 {
                format!("{y:.1e}")
            } else {
                format!("{y:.2}")
            }
        })
        .draw()?;
    for (series, color) in panel.series.iter().zip(PALETTE) {
        if series.points.is_empty() {
            continue;
        }
        let style = color.stroke_width(2);
        let inside = series.points.iter().map(|&(x, y)| (x, y.min(high)));
        chart
            .draw_series(LineSeries::new(inside, style))?
            .label(series.label.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], style));
        if series.dotted {
            chart.draw_series(series.points.iter().map(|&p| Circle::new(p, 4, color.filled())))?;
        }
    }
    if panel.series.len() > 1 {
        chart
            .configure_series_labels()
            .position(emptiest_corner(&panel.series, x_max, (low, high)))
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(200, 200, 200))
            .label_font(text(14))
            .draw()?;
    }
    Ok(())
}

/// The corner where a legend of these series covers the least of their lines, over 0 to `x_max` and this range of values.
fn emptiest_corner(series: &[Series], x_max: f64, (low, high): (f64, f64)) -> SeriesLabelPosition {
    /// Points looked at between two of a line.
    const BETWEEN: usize = 8;
    // The legend's share of the panel: about 160 pixels of 510, and 18 a line of 330.
    let (wide, tall) = (0.34, 0.06 * series.len() as f64 + 0.05);
    let covered = |right: bool, top: bool| {
        let inside = |&(x, y): &(f64, f64)| {
            let (u, v) = (x / x_max, (y.min(high) - low) / (high - low));
            (if right { 1.0 - u } else { u }) < wide && (if top { 1.0 - v } else { v }) < tall
        };
        let along = |from: (f64, f64), to: (f64, f64)| {
            (0..=BETWEEN).map(move |i| {
                let t = i as f64 / BETWEEN as f64;
                (from.0 + t * (to.0 - from.0), from.1 + t * (to.1 - from.1))
            })
        };
        let lines = series.iter().flat_map(|line| line.points.windows(2));
        lines.flat_map(|ends| along(ends[0], ends[1])).filter(inside).count()
    };
    let corners = [
        (SeriesLabelPosition::UpperRight, covered(true, true)),
        (SeriesLabelPosition::LowerRight, covered(true, false)),
        (SeriesLabelPosition::LowerLeft, covered(false, false)),
        (SeriesLabelPosition::UpperLeft, covered(false, true)),
    ];
    // Never empty; the first of equals.
    corners
        .into_iter()
        .min_by_key(|(_, covered)| *covered)
        .map_or(SeriesLabelPosition::UpperRight, |(corner, _)| corner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::jsonl::{EpochRecord, StepRecord};
    use crate::measures::Measures;

    fn records(epochs: u64) -> Vec<Record> {
        let mut records = Vec::new();
        for e in 1..=epochs {
            for k in 1..=10 {
                let epoch = (e - 1) as f64 + f64::from(k) / 10.0;
                let learning_rate = 5e-4 * (1.0 - epoch / 11.0);
                records.push(Record::Step(StepRecord {
                    step: e * 10 + k as u64,
                    epoch,
                    loss: 0.7 / (1.0 + epoch),
                    learning_rate,
                    gradient_norm: 1.0,
                    examples_per_second: 100.0,
                    parts: BTreeMap::new(),
                    accuracies: BTreeMap::new(),
                }));
            }
            let x = e as f64 / 10.0;
            let mut validation = Measures::default();
            for (set, shift) in [("random", 0.45), ("hard", 0.3)] {
                let values = [
                    ("loss", 0.8 - x / 2.0 + shift),
                    ("accuracy", 0.5 + shift * x),
                    ("f1", 0.5 + 0.3 * x),
                    ("auc", 0.5 + 0.45 * x * shift),
                ];
                validation.extend(set, values);
            }
            records.push(Record::Epoch(EpochRecord {
                epoch: e,
                step: e * 10,
                train_loss: 0.6,
                train_accuracy: Some(0.5 + 0.4 * x),
                validation,
                best: true,
                seconds: 1.0,
            }));
        }
        records
    }

    #[test]
    fn places_the_legend_where_no_line_is() {
        let line = |from, to| Series { label: "a".into(), points: vec![(0.0, from), (1.0, to)], dotted: false };
        let corner = |lines: &[Series]| format!("{:?}", emptiest_corner(lines, 1.0, (0.0, 1.0)));
        assert_eq!(corner(&[line(1.0, 0.0)]), "UpperRight");
        assert_eq!(corner(&[line(0.4, 1.0)]), "LowerRight");
        assert_eq!(corner(&[line(1.0, 1.0), line(1.0, 0.0)]), "LowerLeft");
        assert_eq!(corner(&[]), "UpperRight");
    }

    #[test]
    fn every_panel_ends_with_the_last_epoch() {
        let mut records = records(10);
        // The last step's record lies somewhere in the tenth epoch.
        records.retain(|record| !matches!(record, Record::Step(step) if step.epoch > 9.3));
        let panels = panels(&records);
        let rate = panels.last().unwrap();
        assert!(rate.title == "Learning rate" && rate.series[0].points.iter().all(|point| point.0 < 9.5));
        assert_eq!(epochs_shown(&panels), 10.0);
        records.retain(|record| matches!(record, Record::Step(_)));
        assert_eq!(epochs_shown(&super::panels(&records)), 10.0);
        assert_eq!(epochs_shown(&super::panels(&[])), 1.0);
    }

    #[test]
    fn draws_curves_of_ten_epochs_of_one_and_of_none() {
        let folder = tempfile::tempdir().unwrap();
        let folder = std::env::var_os("LXMERT_KEEP_PICTURES").map_or(folder.path().to_path_buf(), Into::into);
        for epochs in [0, 1, 10] {
            let path = folder.join(format!("curves-{epochs}.png"));
            draw(&path, &records(epochs)).unwrap();
            let picture = image::open(&path).unwrap().to_rgb8();
            assert_eq!(picture.dimensions(), (1200, 840));
            let ink = |color: RGBColor| picture.pixels().filter(|p| p.0 == [color.0, color.1, color.2]).count();
            assert_eq!(ink(PALETTE[0]) > 100, epochs > 0, "{epochs} epochs, {} blue pixels", ink(PALETTE[0]));
        }
    }
}
