//! All heads beside each other: small heatmaps with one scale, so that a head that looks elsewhere
//! than the others shows at a glance.

use crate::canvas::{Align, Canvas, Rect};
use crate::font::Face;
use crate::legend::Scale;
use crate::palette::{ColourScale, INK, LINE};
use crate::sheet::{Heading, MARGIN};
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
    /// Says which attention this is.
    pub title: String,
    /// The sentence, or how to read it.
    pub subtitle: String,
    /// Names of the rows, drawn left of each line of panels.
    pub rows: Vec<String>,
    /// Names of the columns, drawn below each column of panels; only numbers are legible at this
    /// size, so give numbers when the columns are regions.
    pub columns: Vec<String>,
    /// The maps, layer by layer.
    pub panels: Vec<HeadPanel>,
    /// Panels in a line; the number of heads, or fewer.
    pub across: usize,
    /// The colours.
    pub colours: ColourScale,
}

const PANEL_TITLE: Face = Face::bold(12.5);
const NAMES: Face = Face::regular(11.0);
const GAP: i32 = 16;
const LONGEST_NAME: i32 = 120;

/// Where the panels lie.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The whole picture's width and height.
    pub size: (i32, i32),
    /// The tables of cells, one per panel.
    pub tables: Vec<Rect>,
    /// A cell's width and height.
    pub cell: (i32, i32),
    bar: Rect,
    heading: Heading,
    rows: Vec<String>,
    columns: Vec<String>,
}

impl HeadsPicture {
    /// The scale that all panels share.
    pub fn scale(&self) -> Scale {
        Scale::of(self.panels.iter().flat_map(|panel| &panel.values), self.colours)
    }

    /// Computes where everything goes.
    ///
    /// # Errors
    /// [`Error::Shape`] when there is no panel or one's values are not rows × columns.
    pub fn layout(&self) -> Result<Layout> {
        let (rows, columns) = (self.rows.len(), self.columns.len());
        for panel in &self.panels {
            if rows == 0 || columns == 0 || panel.values.len() != rows * columns {
                let (values, title) = (panel.values.len(), &panel.title);
                return Err(Error::Shape(format!("{title}: {values} values for {rows} rows and {columns} columns")));
            }
        }
        if self.panels.is_empty() {
            return Err(Error::Shape("no heads to draw".into()));
        }
        let across = self.across.clamp(1, self.panels.len()) as i32;
        let down = (self.panels.len() as i32 + across - 1) / across;
        let fit = |names: &[String]| names.iter().map(|n| NAMES.fit(n, LONGEST_NAME)).collect::<Vec<_>>();
        let widest = |names: &[String]| names.iter().map(|n| NAMES.width(n)).max().unwrap_or(0);
        let (row_names, column_names) = (fit(&self.rows), fit(&self.columns));
        let cell_width = (1560 / across / columns as i32).clamp(6, 20);
        let cell_height = (1100 / down / rows as i32).clamp(13, 20);
        let names_left = widest(&row_names) + 8;
        let names_below = widest(&column_names).max(12) + 6;
        let (table_width, table_height) = (cell_width * columns as i32, cell_height * rows as i32);
        let scale = self.scale();
        let panels_width = names_left + across * table_width + (across - 1) * GAP;
        let width = (2 * MARGIN + panels_width + 28 + scale.upright_width("attention")).max(620);
        let heading = Heading::new(&self.title, &self.subtitle, width);
        let head = heading.bottom();
        let line = PANEL_TITLE.line_height() + 4 + table_height + names_below + GAP;
        let tables: Vec<Rect> = (0..self.panels.len() as i32)
            .map(|i| {
                let x = MARGIN + names_left + (i % across) * (table_width + GAP);
                let y = head + (i / across) * line + PANEL_TITLE.line_height() + 4;
                Rect::sized(x, y, table_width, table_height)
            })
            .collect();
        let bar_top = head + PANEL_TITLE.line_height() + 4;
        let bar = Rect::sized(MARGIN + panels_width + 28, bar_top, 16, (down * line - GAP).clamp(120, 260) - 20);
        let height = (head + down * line).max(bar.y1 + GAP) + MARGIN - GAP;
        let cell = (cell_width, cell_height);
        Ok(Layout { size: (width, height), tables, cell, bar, heading, rows: row_names, columns: column_names })
    }

    /// Draws the picture.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::TooLarge`] or [`Error::Drawing`].
    pub fn draw(&self) -> Result<Canvas> {
        let layout = self.layout()?;
        let scale = self.scale();
        let mut sheet = Canvas::new(layout.size.0 as u32, layout.size.1 as u32)?;
        layout.heading.draw(&mut sheet)?;
        let (cell_width, cell_height) = layout.cell;
        let widest = layout.columns.iter().map(|name| NAMES.width(name)).max().unwrap_or(0);
        // Level names where one in at most three fits, else turned ones.
        let level = widest + 5 <= 3 * cell_width;
        let every = if level { (widest + 4) / cell_width + 1 } else { 12 / cell_width + 1 };
        let leftmost = layout.tables[0].x0;
        for (panel, table) in self.panels.iter().zip(&layout.tables) {
            let title = PANEL_TITLE.fit(&panel.title, table.width());
            sheet.text((table.x0, table.y0 - 7), Align::Left, PANEL_TITLE, INK, &title)?;
            for (at, value) in panel.values.iter().enumerate() {
                let (row, column) = ((at / self.columns.len()) as i32, (at % self.columns.len()) as i32);
                let cell =
                    Rect::sized(table.x0 + column * cell_width, table.y0 + row * cell_height, cell_width, cell_height);
                sheet.fill(cell, scale.colour(*value), 1.0)?;
            }
            sheet.frame(table.grown(1), LINE, 1)?;
            if table.x0 == leftmost {
                for (row, name) in layout.rows.iter().enumerate() {
                    let middle = table.y0 + row as i32 * cell_height + cell_height / 2;
                    sheet.text((table.x0 - 7, middle + 4), Align::Right, NAMES, INK, name)?;
                }
            }
            for (column, name) in layout.columns.iter().enumerate().step_by(every as usize) {
                let middle = table.x0 + column as i32 * cell_width + cell_width / 2;
                if level {
                    sheet.text((middle, table.y1 + 13), Align::Centre, NAMES, INK, name)?;
                } else {
                    sheet.text_up((middle + 4, table.y1 + 5), Align::Right, NAMES, INK, name)?;
                }
            }
        }
        scale.draw_upright(&mut sheet, layout.bar, "attention")?;
        Ok(sheet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(heads: usize, across: usize) -> HeadsPicture {
        HeadsPicture {
            title: "Words attend to regions".into(),
            rows: ["[CLS]", "a", "red", "circle", "[SEP]"].map(String::from).to_vec(),
            columns: (1..=9).map(|i| i.to_string()).collect(),
            panels: (0..heads)
                .map(|head| HeadPanel {
                    title: format!("head {}", head + 1),
                    values: (0..45).map(|i| ((i + head) % 10) as f32 / 10.0).collect(),
                })
                .collect(),
            across,
            ..HeadsPicture::default()
        }
    }

    #[test]
    fn panels_do_not_overlap_and_share_one_scale() {
        let picture = picture(7, 3);
        let (layout, sheet, scale) = (picture.layout().unwrap(), picture.draw().unwrap(), picture.scale());
        for (i, table) in layout.tables.iter().enumerate() {
            assert!(sheet.bounds().contains(table));
            assert!(layout.tables[i + 1..].iter().all(|other| !table.grown(7).overlaps(other)));
            let value = picture.panels[i].values[12];
            let (x, y) = (table.x0 + 3 * layout.cell.0 + 2, table.y0 + layout.cell.1 + 2);
            assert_eq!(sheet.pixel(x, y), Some(scale.colour(value)), "panel {i}");
        }
    }

    #[test]
    fn a_head_of_another_shape_is_named() {
        let mut picture = picture(2, 2);
        picture.panels[1].values.pop();
        assert_eq!(picture.draw().err().unwrap().to_string(), "head 2: 44 values for 5 rows and 9 columns");
        picture.panels.clear();
        assert!(picture.draw().is_err());
    }
}
