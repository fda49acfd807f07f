//! `curves.png`: losses, accuracies, the gradient norm and the learning rate over the epochs. A colour means the same
//! set or task in every panel. No value is clipped: if a few are far above the others, the axis is logarithmic.
//!
//! The font is bundled (DejaVu Sans, `assets/LICENSE_DEJAVU`), so no system font is needed.

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

/// Okabe & Ito's palette, which colour-blind readers can distinguish: blue, orange, green, vermilion, purple, sky blue,
/// grey, black.
pub const PALETTE: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(130, 130, 130),
    RGBColor(0, 0, 0),
];

/// Registers the bundled font with plotters as `sans-serif`; call this before drawing text.
pub fn register_fonts() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        for (style, bytes) in [
            (FontStyle::Normal, FONT),
            (FontStyle::Bold, FONT_BOLD),
            (FontStyle::Italic, FONT),
            (FontStyle::Oblique, FONT),
        ] {
            // The bytes are a valid font; if they were not, drawing would fail.
            let _ = plotters::style::register_font("sans-serif", style, bytes);
        }
    });
}

/// One line of a panel.
struct Series {
    label: String,
    /// What it shows, which determines its colour: "training", a validation set, or a task.
    of: String,
    /// (epochs, value).
    points: Vec<(f64, f64)>,
    /// Whether and how each point is marked.
    mark: Option<Mark>,
}

/// How points are marked; distinguishes measures of one set.
#[derive(Clone, Copy)]
enum Mark {
    Disc,
    Triangle,
}

/// One panel: its title, its lines, and a fixed range of values if the measure has one.
struct Panel {
    title: String,
    series: Vec<Series>,
    range: Option<(f64, f64)>,
}

impl Panel {
    fn values(&self) -> impl Iterator<Item = f64> + '_ {
        self.series.iter().flat_map(|series| &series.points).map(|point| point.1).filter(|value| value.is_finite())
    }

    /// Whether a few values are so far above the others that the others would look flat.
    fn is_logarithmic(&self) -> bool {
        const FAR: f64 = 20.0;
        let mut values: Vec<f64> = self.values().collect();
        values.sort_by(f64::total_cmp);
        let (Some(least), Some(most)) = (values.first(), values.last()) else { return false };
        self.range.is_none() && *least > 0.0 && *most > FAR * values[values.len() / 2]
    }
}

/// Points of many lines by name.
type Named = BTreeMap<String, Vec<(f64, f64)>>;

fn panels(records: &[Record]) -> Vec<Panel> {
    let mut steps = [const { Vec::new() }; 3]; // loss, learning rate, gradient norm
    let mut train_accuracy = Vec::new();
    let (mut parts, mut measured) = (Named::new(), Named::new());
    for record in records {
        match record {
            Record::Step(s) => {
                for (points, value) in steps.iter_mut().zip([s.loss, s.learning_rate, s.gradient_norm]) {
                    points.push((s.epoch, value));
                }
                for (name, loss) in &s.parts {
                    parts.entry(name.clone()).or_default().push((s.epoch, *loss));
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
    let line = |of: &str, points| Series { label: of.into(), of: of.into(), points, mark: None };
    let training = |points, mark| Series { mark, ..line("training", points) };
    let mut losses = vec![training(loss, None)];
    losses.extend(of(&measured, &["loss"]));
    // If one set combines the others, show only it beside the training loss, which combines them too.
    if measured.contains_key("all/loss") {
        losses.retain(|series| series.of == "training" || series.of == "all");
    }
    let mut accuracies = vec![training(train_accuracy, Some(Mark::Disc))];
    accuracies.extend(of(&measured, &["accuracy"]));
    let judged = if measured.contains_key("random/accuracy") { "pairs judged right" } else { "right answers" };
    let panel = |title: &str, series, range| Panel { title: title.into(), series, range };
    let of_tasks = parts.into_iter().map(|(of, points)| line(&of, points)).collect();
    let share = Some((0.4, 1.0));
    let mut panels = vec![
        panel("Loss (nats)", losses, None),
        panel("Training loss of each task (nats)", of_tasks, None),
        panel(&format!("Accuracy: share of {judged}"), accuracies, share),
        panel("Validation: AUC and F1", of(&measured, &["auc", "f1"]), share),
        panel("Gradient norm before clipping", vec![training(norm, None)], None),
        panel("Learning rate", vec![training(rate, None)], None),
    ];
    for panel in &mut panels {
        panel.series.retain(|series| !series.points.is_empty());
    }
    panels.retain(|panel| !panel.series.is_empty());
    panels
}

/// The series of these measures, one per set.
fn of(measured: &Named, measures: &[&str]) -> Vec<Series> {
    let series = measured.iter().filter_map(|(name, points)| {
        let (set, measure) = name.rsplit_once('/')?;
        let which = measures.iter().position(|known| *known == measure)?;
        let label = if measures.len() > 1 { format!("{set} {measure}") } else { format!("validation, {set}") };
        let mark = Some(if which == 0 { Mark::Disc } else { Mark::Triangle });
        Some(Series { label, of: set.into(), points: points.clone(), mark })
    });
    series.collect()
}

/// The colour of each set and task, the same in every panel.
fn colours(panels: &[Panel]) -> BTreeMap<String, RGBColor> {
    let mut names: Vec<&str> = Vec::new();
    for series in panels.iter().flat_map(|panel| &panel.series) {
        if !names.contains(&series.of.as_str()) {
            names.push(&series.of);
        }
    }
    names.into_iter().zip(PALETTE.into_iter().cycle()).map(|(name, colour)| (name.to_string(), colour)).collect()
}

/// Draws the curves of a run, two panels per row, 1200 pixels wide.
///
/// # Errors
/// Returns an error if the picture cannot be drawn or written.
pub fn draw(path: &Path, records: &[Record]) -> Result<()> {
    draw_panels(path, &panels(records), 2)
}

/// Draws the training losses of several runs, and their validation `measure` (`set/measure`), one line per run.
///
/// # Errors
/// As [`draw`].
pub fn draw_together(path: &Path, runs: &[(&str, &[Record])], measure: &str) -> Result<()> {
    let series = |points: &dyn Fn(&Record) -> Option<(f64, f64)>, mark| {
        let line = |(name, records): &(&str, &[Record])| Series {
            label: name.to_string(),
            of: name.to_string(),
            points: records.iter().filter_map(points).collect(),
            mark,
        };
        runs.iter().map(line).filter(|series| !series.points.is_empty()).collect::<Vec<_>>()
    };
    let losses = series(
        &|record| match record {
            Record::Step(step) => Some((step.epoch, step.loss)),
            _ => None,
        },
        None,
    );
    let measured = series(
        &|record| match record {
            Record::Epoch(epoch) => {
                let (set, name) = measure.split_once('/')?;
                Some((epoch.epoch as f64, epoch.validation.get(set, name)?))
            }
            _ => None,
        },
        Some(Mark::Disc),
    );
    let share = (!crate::measures::lower_is_better(measure)).then_some((0.4, 1.0));
    let mut panels = vec![
        Panel { title: "Training loss (nats)".into(), series: losses, range: None },
        Panel { title: format!("Validation: {measure}"), series: measured, range: share },
    ];
    panels.retain(|panel| !panel.series.is_empty());
    draw_panels(path, &panels, 1)
}

/// `least`: lines of panels that the picture has room for at least.
fn draw_panels(path: &Path, panels: &[Panel], least: usize) -> Result<()> {
    register_fonts();
    let lines = panels.len().div_ceil(2).max(least);
    let (width, height) = (1200u32, 420 * lines as u32);
    let mut pixels = vec![0u8; (width * height * 3) as usize];
    let failed = |e: &dyn std::fmt::Display| Error::Drawing { path: path.to_path_buf(), reason: e.to_string() };
    {
        let root = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
        root.fill(&WHITE).map_err(|e| failed(&e))?;
        let (epochs, colours) = (epochs_shown(panels), colours(panels));
        for (panel, area) in panels.iter().zip(root.margin(8, 8, 8, 8).split_evenly((lines, 2))) {
            draw_panel(panel, epochs, &colours, &area).map_err(|e| failed(&*e))?;
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

type DrawResult = std::result::Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// The end of the epoch axis, the same in every panel: the end of the last epoch that has begun. Steps are recorded
/// only now and then, so a panel with only steps would otherwise end earlier.
fn epochs_shown(panels: &[Panel]) -> f64 {
    let points = panels.iter().flat_map(|panel| &panel.series).flat_map(|series| &series.points);
    points.map(|(epochs, _)| *epochs).fold(1.0, f64::max).ceil()
}

fn draw_panel(
    panel: &Panel,
    x_max: f64,
    colours: &BTreeMap<String, RGBColor>,
    area: &DrawingArea<BitMapBackend, Shift>,
) -> DrawResult {
    let logarithmic = panel.is_logarithmic();
    let place = |value: f64| if logarithmic { value.log10() } else { value };
    let values = || panel.values().map(place);
    let lowest = |from: f64| values().fold(from, f64::min);
    let highest = values().fold(f64::NEG_INFINITY, f64::max);
    let (low, high) = match panel.range {
        // Many series have a tall legend at the bottom, which needs room below the lines.
        Some((low, high)) if panel.series.len() > 4 => (lowest(low) - 0.5 * (high - lowest(low)), high),
        Some((low, high)) => (lowest(low), high),
        None if logarithmic => (lowest(f64::INFINITY) - 0.1, highest + 0.1),
        None => (0.0, highest * 1.05),
    };
    let high = if high > low { high } else { low + 1.0 };
    let text = |size: u32| ("sans-serif", size).into_font().color(&RGBColor(40, 40, 40));
    let alone = match panel.series.as_slice() {
        [only] if only.of != "training" => format!(": {}", only.label), // it has no legend
        _ => String::new(),
    };
    let title = format!("{}{alone}{}", panel.title, if logarithmic { ", logarithmic" } else { "" });
    let mut chart = ChartBuilder::on(area)
        .caption(title, text(19))
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
            let value = if logarithmic { 10f64.powf(*y) } else { *y };
            match value {
                _ if value.abs() < 1e-12 => "0".to_string(),
                _ if high < 0.01 && !logarithmic => format!("{value:.1e}"),
                _ if value >= 100.0 => format!("{value:.0}"),
                _ => format!("{value:.2}"),
            }
        })
        .draw()?;
    for series in &panel.series {
        let color = colours.get(&series.of).copied().unwrap_or(BLACK);
        let style = color.stroke_width(2);
        let points = || series.points.iter().filter(|point| point.1.is_finite()).map(|&(x, y)| (x, place(y)));
        let mark = series.mark;
        chart.draw_series(LineSeries::new(points(), style))?.label(series.label.as_str()).legend(move |(x, y)| {
            let size = |wanted: bool, size: i32| if wanted { size } else { 0 };
            EmptyElement::at((x, y))
                + PathElement::new([(0, 0), (22, 0)], style)
                + Circle::new((11, 0), size(matches!(mark, Some(Mark::Disc)), 4), color.filled())
                + TriangleMarker::new((11, 0), size(matches!(mark, Some(Mark::Triangle)), 6), color.filled())
        });
        match mark {
            Some(Mark::Triangle) => {
                chart.draw_series(points().map(|p| TriangleMarker::new(p, 6, color.filled())))?;
            }
            Some(Mark::Disc) => {
                chart.draw_series(points().map(|p| Circle::new(p, 4, color.filled())))?;
            }
            // A single first point is drawn as a dot until there is a second.
            None => {
                chart.draw_series(points().take(1).map(|p| Circle::new(p, 3, color.filled())))?;
            }
        }
    }
    if panel.series.len() > 1 {
        let placed: Vec<Vec<(f64, f64)>> =
            panel.series.iter().map(|series| series.points.iter().map(|&(x, y)| (x, place(y))).collect()).collect();
        chart
            .configure_series_labels()
            .position(emptiest_corner(&placed, x_max, (low, high)))
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(200, 200, 200))
            .label_font(text(14))
            .draw()?;
    }
    Ok(())
}

/// The corner where the legend hides the least of these lines, over 0 to `x_max` and this range of values.
fn emptiest_corner(series: &[Vec<(f64, f64)>], x_max: f64, (low, high): (f64, f64)) -> SeriesLabelPosition {
    /// How many points to sample between two points of a line.
    const BETWEEN: usize = 8;
    // The legend's share of the panel: about 160 of 510 pixels, and 18 of 330 per line.
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
        let lines = series.iter().flat_map(|line| line.windows(2));
        lines.flat_map(|ends| along(ends[0], ends[1])).filter(inside).count()
    };
    let corners = [
        (SeriesLabelPosition::UpperRight, covered(true, true)),
        (SeriesLabelPosition::LowerRight, covered(true, false)),
        (SeriesLabelPosition::LowerLeft, covered(false, false)),
        (SeriesLabelPosition::UpperLeft, covered(false, true)),
    ];
    // Never empty; of equals, the first.
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
    fn places_the_legend_away_from_the_lines() {
        let line = |from, to| vec![(0.0, from), (1.0, to)];
        let corner = |lines: &[Vec<(f64, f64)>]| format!("{:?}", emptiest_corner(lines, 1.0, (0.0, 1.0)));
        assert_eq!(corner(&[line(1.0, 0.0)]), "UpperRight");
        assert_eq!(corner(&[line(0.4, 1.0)]), "LowerRight");
        assert_eq!(corner(&[line(1.0, 1.0), line(1.0, 0.0)]), "LowerLeft");
        assert_eq!(corner(&[]), "UpperRight");
    }

    #[test]
    fn every_panel_ends_at_the_last_epoch() {
        let mut records = records(10);
        // The last step's record is somewhere in the tenth epoch.
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
    fn outliers_make_the_axis_logarithmic() {
        let mut records = records(3);
        let is_logarithmic = |records: &[Record], title: &str| {
            let panels = panels(records);
            panels.iter().find(|panel| panel.title.starts_with(title)).unwrap().is_logarithmic()
        };
        assert!(!is_logarithmic(&records, "Gradient norm"));
        if let Record::Step(step) = &mut records[0] {
            step.gradient_norm = 6248.0;
        }
        assert!(is_logarithmic(&records, "Gradient norm"));
        assert!(!is_logarithmic(&records, "Loss") && !is_logarithmic(&records, "Accuracy"));
    }

    #[test]
    fn a_colour_means_the_same_in_every_panel_and_tasks_have_their_losses() {
        let mut records = records(2);
        for record in &mut records {
            if let Record::Step(step) = record {
                step.parts = BTreeMap::from([("words".into(), 2.0), ("matching".into(), 0.5)]);
            }
        }
        let panels = panels(&records);
        let titles: Vec<&str> = panels.iter().map(|panel| panel.title.as_str()).collect();
        assert_eq!(titles[1], "Training loss of each task (nats)");
        assert_eq!(titles[2], "Accuracy: share of pairs judged right");
        let colours = colours(&panels);
        let of: std::collections::BTreeSet<_> = colours.values().map(|colour| (colour.0, colour.1, colour.2)).collect();
        assert_eq!((colours.len(), of.len()), (5, 5), "training, random, hard, words, matching");
        assert_eq!(colours["training"], PALETTE[0]);
    }

    #[test]
    fn draws_curves_of_ten_one_and_no_epochs() {
        let folder = tempfile::tempdir().unwrap();
        let folder = std::env::var_os("LXMERT_KEEP_PICTURES").map_or(folder.path().to_path_buf(), Into::into);
        for epochs in [0, 1, 10] {
            let path = folder.join(format!("curves-{epochs}.png"));
            draw(&path, &records(epochs)).unwrap();
            let picture = image::open(&path).unwrap().to_rgb8();
            // Loss, accuracy, AUC and F1, gradient norm, rate.
            assert_eq!(picture.dimensions(), (1200, if epochs == 0 { 840 } else { 1260 }));
            let ink = |color: RGBColor| picture.pixels().filter(|p| p.0 == [color.0, color.1, color.2]).count();
            assert_eq!(ink(PALETTE[0]) > 100, epochs > 0, "{epochs} epochs, {} blue pixels", ink(PALETTE[0]));
        }
    }
}
