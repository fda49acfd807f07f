//! The perturbation test's curves: one panel per test, a line per method, told by colour and by mark.

use crate::Result;
use crate::canvas::{Align, Canvas, Rect};
use crate::font::Face;
use crate::palette::{GREY, INK, LINE, LINES, Rgb};
use crate::perturbation::{Order, Perturbation, STEPS, Side, TESTS, ranking_name, rankings};
use crate::sheet::{Heading, MARGIN};

const PANEL_TITLE: Face = Face::bold(14.0);
const TEXT: Face = Face::regular(12.5);
const PLOT: (i32, i32) = (400, 270);
/// Room left of a plot for its numbers, right of it for its list of lines, and below it for its axis.
const LEFT: i32 = 44;
const RIGHT: i32 = 230;
const BELOW: i32 = 56;
const PANEL: (i32, i32) = (LEFT + PLOT.0 + RIGHT, 36 + PLOT.1 + BELOW);

/// Draws the four tests; `name` is the data set's.
///
/// # Errors
/// [`crate::Error::Drawing`].
pub fn draw(found: &Perturbation, name: &str) -> Result<Canvas> {
    let width = 2 * MARGIN + 2 * PANEL.0 + 16;
    let reading = format!(
        "{} true captions of the test images of {name}; the share that the model still calls a match against the fraction \
         removed; beside each line its area ± standard error, the best first",
        found.examples
    );
    let heading = Heading::new("What goes when the relevant goes: perturbation test", &reading, width);
    let head = heading.bottom() + 8;
    let mut sheet = Canvas::new(width as u32, (head + 2 * PANEL.1 + MARGIN) as u32)?;
    heading.draw(&mut sheet)?;
    for (i, test) in TESTS.into_iter().enumerate() {
        let (x, y) = (MARGIN + (i as i32 % 2) * (PANEL.0 + 16), head + (i as i32 / 2) * PANEL.1);
        panel(&mut sheet, found, test, Rect::sized(x + LEFT, y + 36, PLOT.0, PLOT.1))?;
    }
    Ok(sheet)
}

fn panel(sheet: &mut Canvas, found: &Perturbation, test: (Side, Order), plot: Rect) -> Result<()> {
    let title = match test.1 {
        Order::Positive => format!("{}: the most relevant first (low is good)", test.0.name()),
        Order::Negative => format!("{}: the least relevant first (high is good)", test.0.name()),
    };
    sheet.text((plot.x0 - LEFT, plot.y0 - 14), Align::Left, PANEL_TITLE, INK, &title)?;
    for i in 0..=4 {
        let share = i as f64 / 4.0;
        let (x, y) = at(plot, share, share);
        sheet.fill(Rect::sized(plot.x0, y, plot.width(), 1), LINE, 1.0)?;
        sheet.text((plot.x0 - 8, y + 4), Align::Right, TEXT, GREY, &format!("{share:.2}"))?;
        sheet.fill(Rect::sized(x, plot.y1, 1, 5), GREY, 1.0)?;
        sheet.text((x, plot.y1 + 19), Align::Centre, TEXT, GREY, &format!("{share:.2}"))?;
    }
    let middle = plot.x0 + plot.width() / 2;
    sheet.text((middle, plot.y1 + 37), Align::Centre, TEXT, GREY, &format!("fraction of {} removed", test.0.name()))?;
    let mut lines: Vec<_> =
        rankings().enumerate().filter_map(|(i, ranking)| Some((i, found.curve(test, ranking)?))).collect();
    // The first methods lie on top of the random line.
    for (i, curve) in lines.iter().rev() {
        let points: Vec<(i32, i32)> =
            STEPS.iter().zip(&curve.scores).map(|(step, score)| at(plot, *step, *score)).collect();
        sheet.line(&points, LINES[i % LINES.len()], 2)?;
        for point in points {
            mark(sheet, *i, point, LINES[i % LINES.len()])?;
        }
    }
    sheet.frame(plot.grown(1), LINE, 1)?;
    lines.sort_by(|(_, a), (_, b)| match test.1 {
        Order::Positive => a.area.total_cmp(&b.area),
        Order::Negative => b.area.total_cmp(&a.area),
    });
    for (row, (i, curve)) in lines.iter().enumerate() {
        let (x, y) = (plot.x1 + 18, plot.y0 + 18 + row as i32 * 38);
        sheet.line(&[(x, y), (x + 26, y)], LINES[i % LINES.len()], 2)?;
        mark(sheet, *i, (x + 13, y), LINES[i % LINES.len()])?;
        sheet.text((x + 36, y + 4), Align::Left, TEXT, INK, ranking_name(curve.ranking))?;
        sheet.text((x + 36, y + 19), Align::Left, TEXT, GREY, &format!("{:.3} ± {:.3}", curve.area, curve.error))?;
    }
    Ok(())
}

fn at(plot: Rect, removed: f64, score: f64) -> (i32, i32) {
    let x = plot.x0 + (removed * f64::from(plot.width() - 1)).round() as i32;
    (x, plot.y1 - 1 - (score * f64::from(plot.height() - 1)).round() as i32)
}

/// A shape for each line, so that colour alone tells nothing.
fn mark(sheet: &mut Canvas, line: usize, (x, y): (i32, i32), colour: Rgb) -> Result<()> {
    match line % 6 {
        0 => sheet.disc((x, y), 4, colour),
        1 => sheet.fill(Rect::sized(x - 4, y - 4, 8, 8), colour, 1.0),
        2 => (0..=5).try_for_each(|d| sheet.fill(Rect::sized(x - 5 + d, y - d, 11 - 2 * d, 1 + 2 * d), colour, 1.0)),
        3 => (0..9).try_for_each(|d| sheet.fill(Rect::sized(x - d / 2, y - 5 + d, 1 + 2 * (d / 2), 1), colour, 1.0)),
        4 => {
            sheet.line(&[(x - 4, y - 4), (x + 4, y + 4)], colour, 2)?;
            sheet.line(&[(x - 4, y + 4), (x + 4, y - 4)], colour, 2)
        }
        _ => Ok(()),
    }
}
