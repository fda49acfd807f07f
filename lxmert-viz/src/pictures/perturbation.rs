//! The perturbation test's curves: one panel per test, one line per method with its own colour and mark, and a band of
//! one standard error.

use super::canvas::Canvas;
use super::font::Face;
use super::palette::{GREY, INK, LINE, LINES, Rgb};
use super::shapes::{Align, Rect};
use super::sheet::{Look, Sheet};
use crate::explain::perturbation::{Order, Perturbation, Side, TESTS, ranking_name, rankings};

const PANEL_TITLE: Face = Face::bold(14.0);
const TEXT: Face = Face::regular(12.5);
const PLOT: (i32, i32) = (400, 270);
/// Space to the left of a plot for its numbers, to the right for its list of lines, and below for its axis.
const LEFT: i32 = 44;
const RIGHT: i32 = 230;
const BELOW: i32 = 56;
const ABOVE: i32 = 36;

/// Draws the four tests; `name` is the data set's.
pub fn draw(found: &Perturbation, name: &str, look: Look) -> Canvas {
    let plot = (look.px(PLOT.0).max(200), look.px(PLOT.1).max(6 * 38 + 10));
    let (width, height) = (LEFT + plot.0 + RIGHT, ABOVE + plot.1 + BELOW);
    let subtitle = format!(
        "{} true captions of test images of {name}: share that the model still calls a match against the fraction \
         removed, with a band of one standard error; beside each line its area ± standard error, best first",
        found.examples
    );
    let title = "Perturbation test: the match when relevant parts are removed";
    let (mut sheet, body) = Sheet { title, subtitle: &subtitle, legend: None }.begin((2 * width + 16, 2 * height));
    for (i, test) in TESTS.into_iter().enumerate() {
        let (x, y) = (body.x0 + (i as i32 % 2) * (width + 16), body.y0 + (i as i32 / 2) * height);
        panel(&mut sheet, found, test, Rect::sized(x + LEFT, y + ABOVE, plot.0, plot.1));
    }
    sheet
}

fn panel(sheet: &mut Canvas, found: &Perturbation, test: (Side, Order), plot: Rect) {
    let title = match test.1 {
        Order::Positive => format!("{}: most relevant removed first (low is good)", test.0.name()),
        Order::Negative => format!("{}: least relevant removed first (high is good)", test.0.name()),
    };
    sheet.text((plot.x0 - LEFT, plot.y0 - 14), Align::Left, PANEL_TITLE, INK, &title);
    for i in 0..=4 {
        let share = i as f64 / 4.0;
        let (x, y) = at(plot, share, share);
        sheet.fill(Rect::sized(plot.x0, y, plot.width(), 1), LINE, 1.0);
        sheet.text((plot.x0 - 8, y + 4), Align::Right, TEXT, GREY, &format!("{share:.2}"));
        sheet.fill(Rect::sized(x, plot.y1, 1, 5), GREY, 1.0);
        sheet.text((x, plot.y1 + 19), Align::Centre, TEXT, GREY, &format!("{share:.2}"));
    }
    let middle = plot.x0 + plot.width() / 2;
    sheet.text((middle, plot.y1 + 37), Align::Centre, TEXT, GREY, &format!("fraction of {} removed", test.0.name()));
    let mut lines: Vec<_> =
        rankings().enumerate().filter_map(|(i, ranking)| Some((i, found.curve(test, ranking)?))).collect();
    // Draw the first methods on top of the random line.
    for (i, curve) in lines.iter().rev() {
        let colour = LINES[i % LINES.len()];
        let errors = curve.score_errors(found.examples);
        let points = |share: f64| -> Vec<(i32, i32)> {
            let scores = curve.scores.iter().zip(&errors).map(|(score, error)| (score + share * error).clamp(0.0, 1.0));
            curve.steps.iter().zip(scores).map(|(step, score)| at(plot, *step, score)).collect()
        };
        let band: Vec<(i32, i32)> = points(1.0).into_iter().chain(points(-1.0).into_iter().rev()).collect();
        sheet.polygon(&band, colour, 0.18);
        sheet.line(&points(0.0), colour, 2.0);
        points(0.0).into_iter().for_each(|point| mark(sheet, *i, point, colour));
    }
    sheet.frame(plot.grown(1), LINE, 1);
    lines.sort_by(|(_, a), (_, b)| match test.1 {
        Order::Positive => a.area.total_cmp(&b.area),
        Order::Negative => b.area.total_cmp(&a.area),
    });
    for (row, (i, curve)) in lines.iter().enumerate() {
        let (x, y) = (plot.x1 + 18, plot.y0 + 18 + row as i32 * 38);
        sheet.line(&[(x, y), (x + 26, y)], LINES[i % LINES.len()], 2.0);
        mark(sheet, *i, (x + 13, y), LINES[i % LINES.len()]);
        sheet.text((x + 36, y + 4), Align::Left, TEXT, INK, ranking_name(curve.ranking));
        sheet.text((x + 36, y + 19), Align::Left, TEXT, GREY, &format!("{:.3} ± {:.3}", curve.area, curve.error));
    }
}

fn at(plot: Rect, removed: f64, score: f64) -> (i32, i32) {
    let x = plot.x0 + (removed * f64::from(plot.width() - 1)).round() as i32;
    (x, plot.y1 - 1 - (score * f64::from(plot.height() - 1)).round() as i32)
}

/// Draws a mark per line, so that the plot can be read without colour; none for the last.
fn mark(sheet: &mut Canvas, line: usize, (x, y): (i32, i32), colour: Rgb) {
    match line % 6 {
        0 => sheet.disc((x, y), 4, colour),
        1 => sheet.fill(Rect::sized(x - 4, y - 4, 8, 8), colour, 1.0),
        2 => sheet.polygon(&[(x - 6, y), (x, y - 6), (x + 6, y), (x, y + 6)], colour, 1.0),
        3 => sheet.polygon(&[(x - 5, y + 4), (x, y - 6), (x + 5, y + 4)], colour, 1.0),
        4 => {
            sheet.line(&[(x - 4, y - 4), (x + 4, y + 4)], colour, 2.0);
            sheet.line(&[(x - 4, y + 4), (x + 4, y - 4)], colour, 2.0);
        }
        _ => {}
    }
}
