//! All heads side by side, one row of small heatmaps per layer, on one scale: a head that differs from the others is
//! visible at a glance.

use super::canvas::Canvas;
use super::font::Face;
use super::legend::Scale;
use super::palette::{INK, LINE};
use super::shapes::{Align, Rect};
use super::sheet::{Look, Sheet};
use crate::{Error, Result};

/// One head's map.
#[derive(Debug, Clone)]
pub struct HeadPanel {
    /// "layer 1 · head 2".
    pub title: String,
    /// `rows × columns` weights, row by row.
    pub values: Vec<f32>,
}

/// Maps of the same rows and columns.
#[derive(Debug, Clone, Default)]
pub struct HeadsPicture {
    /// Which attention this is.
    pub title: String,
    /// The sentence, and how to read it.
    pub subtitle: String,
    /// Names of the rows, drawn to the left of each row of panels.
    pub rows: Vec<String>,
    /// Names of the columns, drawn below each panel. Only numbers are legible at this size, so use numbers if the
    /// columns are regions.
    pub columns: Vec<String>,
    /// The maps, layer by layer.
    pub panels: Vec<HeadPanel>,
    /// Panels per row: the heads of a layer.
    pub across: usize,
    /// Sizes and colours.
    pub look: Look,
}

const PANEL_TITLE: Face = Face::bold(12.5);
const NAMES: Face = Face::regular(11.0);
const GAP: i32 = 16;
const LONGEST_NAME: i32 = 120;
/// The total width of the panels in a row.
const WIDTH: i32 = 1660;

/// The positions of the panels.
struct Layout {
    size: (i32, i32),
    /// The tables of cells, one per panel.
    tables: Vec<Rect>,
    cell: (i32, i32),
    rows: Vec<String>,
    columns: Vec<String>,
    widest_column: i32,
}

impl HeadsPicture {
    /// The scale that all panels share.
    pub fn scale(&self) -> Scale {
        let values: Vec<f32> = self.panels.iter().flat_map(|panel| panel.values.iter().copied()).collect();
        Scale::of(&values, self.look.colours)
    }

    fn check(&self) -> Result<()> {
        let (rows, columns) = (self.rows.len(), self.columns.len());
        for panel in &self.panels {
            if rows == 0 || columns == 0 || panel.values.len() != rows * columns {
                let (values, title) = (panel.values.len(), &panel.title);
                return Err(Error::Shape(format!("{title}: {values} values for {rows} rows and {columns} columns")));
            }
        }
        if self.panels.is_empty() { Err(Error::Shape("no heads to draw".into())) } else { Ok(()) }
    }

    fn layout(&self) -> Layout {
        let (rows, columns) = (self.rows.len() as i32, self.columns.len() as i32);
        let across = self.across.clamp(1, self.panels.len()) as i32;
        let down = (self.panels.len() as i32 + across - 1) / across;
        let fit = |names: &[String]| names.iter().map(|n| NAMES.fit(n, LONGEST_NAME)).collect::<Vec<_>>();
        let widest = |names: &[String]| names.iter().map(|n| NAMES.width(n)).max().unwrap_or(0);
        let (row_names, column_names) = (fit(&self.rows), fit(&self.columns));
        let widest_column = widest(&column_names);
        let cell_width = self.look.px(((WIDTH / across - GAP) / columns).clamp(3, 20));
        let cell_height = self.look.px((1100 / down / rows).clamp(13, 20)).max(NAMES.line_height() - 2);
        let (left, below) = (widest(&row_names) + 8, widest_column.max(12) + 6);
        // Wide enough for its title, however narrow the cells are.
        let step = (cell_width * columns).max(PANEL_TITLE.width("layer 1 · head 12")) + GAP;
        let line = PANEL_TITLE.line_height() + 4 + cell_height * rows + below + GAP;
        let tables = (0..self.panels.len() as i32).map(|i| {
            let (x, y) = (left + i % across * step, i / across * line + PANEL_TITLE.line_height() + 4);
            Rect::sized(x, y, cell_width * columns, cell_height * rows)
        });
        let (size, tables) = ((left + across * step - GAP, down * line - GAP), tables.collect());
        let cell = (cell_width, cell_height);
        Layout { size, tables, cell, rows: row_names, columns: column_names, widest_column }
    }

    /// Draws the picture.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is no panel or a panel's values are not rows × columns.
    pub fn draw(&self) -> Result<Canvas> {
        Ok(self.draw_with_layout()?.0)
    }

    fn draw_with_layout(&self) -> Result<(Canvas, Layout)> {
        self.check()?;
        let mut layout = self.layout();
        let scale = self.scale();
        let legend = Some((&scale, "attention weight"));
        let (mut sheet, body) = Sheet { title: &self.title, subtitle: &self.subtitle, legend }.begin(layout.size);
        layout.tables.iter_mut().for_each(|table| *table = table.moved(body.x0, body.y0));
        let (cell_width, cell_height) = layout.cell;
        // Use horizontal names if at least one in three fits, otherwise rotated ones.
        let level = layout.widest_column + 5 <= 3 * cell_width;
        let every = if level { (layout.widest_column + 4) / cell_width + 1 } else { 12 / cell_width + 1 };
        let leftmost = layout.tables[0].x0;
        for (panel, table) in self.panels.iter().zip(&layout.tables) {
            sheet.text((table.x0, table.y0 - 7), Align::Left, PANEL_TITLE, INK, &panel.title);
            for (at, value) in panel.values.iter().enumerate() {
                let (row, column) = ((at / self.columns.len()) as i32, (at % self.columns.len()) as i32);
                let (x, y) = (table.x0 + column * cell_width, table.y0 + row * cell_height);
                sheet.fill(Rect::sized(x, y, cell_width, cell_height), scale.colour(*value), 1.0);
            }
            sheet.frame(table.grown(1), LINE, 1);
            if table.x0 == leftmost {
                for (row, name) in layout.rows.iter().enumerate() {
                    let middle = table.y0 + row as i32 * cell_height + cell_height / 2;
                    sheet.text((table.x0 - 7, middle + 4), Align::Right, NAMES, INK, name);
                }
            }
            for (column, name) in layout.columns.iter().enumerate().step_by(every as usize) {
                let middle = table.x0 + column as i32 * cell_width + cell_width / 2;
                if level {
                    sheet.text((middle, table.y1 + 13), Align::Centre, NAMES, INK, name);
                } else {
                    sheet.text_up((middle + 4, table.y1 + 5), Align::Right, NAMES, INK, name);
                }
            }
        }
        Ok((sheet, layout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(heads: usize, across: usize, columns: usize) -> HeadsPicture {
        HeadsPicture {
            title: "Words attend to regions".into(),
            rows: ["[CLS]", "a", "red", "circle", "[SEP]"].map(String::from).to_vec(),
            columns: (1..=columns).map(|i| i.to_string()).collect(),
            panels: (0..heads)
                .map(|head| HeadPanel {
                    title: format!("layer 1 · head {}", head + 1),
                    values: (0..5 * columns).map(|i| ((i + head) % 10) as f32 / 10.0).collect(),
                })
                .collect(),
            across,
            ..HeadsPicture::default()
        }
    }

    #[test]
    fn panels_do_not_overlap_and_share_one_scale() {
        let picture = picture(7, 3, 9);
        let (sheet, layout) = picture.draw_with_layout().unwrap();
        let (pixels, scale) = (sheet.pixels(1.0).unwrap(), picture.scale());
        for (i, table) in layout.tables.iter().enumerate() {
            assert!(sheet.bounds().contains(table));
            assert!(layout.tables[i + 1..].iter().all(|other| !table.grown(7).overlaps(other)));
            let value = picture.panels[i].values[12];
            let (x, y) = (table.x0 + 3 * layout.cell.0 + 2, table.y0 + layout.cell.1 + 2);
            assert_eq!(pixels.get_pixel(x as u32, y as u32).0, scale.colour(value), "panel {i}");
        }
    }

    #[test]
    fn the_base_models_heads_have_a_row_per_layer_and_fit_a_screen() {
        let picture = picture(60, 12, 36);
        let (sheet, layout) = picture.draw_with_layout().unwrap();
        let line = |i: usize| layout.tables[i].y0;
        assert!((0..60).all(|i| line(i) == line(i / 12 * 12)) && line(12) > line(11));
        assert!(sheet.width() < 2200 && sheet.height() < 1400, "{} × {}", sheet.width(), sheet.height());
    }

    #[test]
    fn the_error_names_a_head_of_another_shape() {
        let mut picture = picture(2, 2, 9);
        picture.panels[1].values.pop();
        let message = picture.draw().err().unwrap().to_string();
        assert_eq!(message, "layer 1 · head 2: 44 values for 5 rows and 9 columns");
        picture.panels.clear();
        assert_eq!(picture.draw().err().unwrap().to_string(), "no heads to draw");
    }
}
