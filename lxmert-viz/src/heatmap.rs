//! One attention map as a table of colours: queries or words down, keys or regions across, names on
//! both sides, a colour bar with numbers, and each row's largest value framed and written out.

use crate::canvas::{Align, Canvas, Rect};
use crate::font::Face;
use crate::legend::Scale;
use crate::palette::{ColourScale, GREY, INK, LINE, MARK, ink_on};
use crate::sheet::{Heading, MARGIN};
use crate::{Error, Result};

/// Numbers with names, ready to draw.
#[derive(Debug, Clone, Default)]
pub struct AttentionPicture {
    /// Says layer, head and direction.
    pub title: String,
    /// The sentence, or how to read the rows.
    pub subtitle: String,
    /// What a row is: "word", "region".
    pub row_kind: String,
    /// What a column is.
    pub column_kind: String,
    /// Names of the rows, top to bottom.
    pub rows: Vec<String>,
    /// Names of the columns, left to right.
    pub columns: Vec<String>,
    /// `rows × columns` weights, row by row.
    pub values: Vec<f32>,
    /// The value that the colour scale must reach; the largest one present when `None`. Set it to
    /// compare pictures.
    pub max: Option<f32>,
    /// The colours.
    pub colours: ColourScale,
    /// Frame the largest value of each row, else of each column (the side that sums to 1).
    pub mark_columns: bool,
}

const NAMES: Face = Face::regular(13.0);
const CELL_NUMBER: Face = Face::regular(10.5);
/// The longest name of a row or column, in pixels.
const LONGEST_NAME: i32 = 190;

/// Where the parts of a heatmap lie.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The whole picture's width and height.
    pub size: (i32, i32),
    /// The table of cells.
    pub table: Rect,
    /// A cell's width and height.
    pub cell: (i32, i32),
    /// The colour bar.
    pub bar: Rect,
    heading: Heading,
    rows: Vec<String>,
    columns: Vec<String>,
    /// Whether the columns' names fit over them without being turned.
    level_names: bool,
}

impl Layout {
    /// The cell of `row` and `column`.
    pub fn cell_at(&self, row: usize, column: usize) -> Rect {
        let (w, h) = self.cell;
        Rect::sized(self.table.x0 + column as i32 * w, self.table.y0 + row as i32 * h, w, h)
    }
}

impl AttentionPicture {
    /// Checks that names and numbers agree.
    ///
    /// # Errors
    /// [`Error::Shape`] when there are no rows or columns, or their product is not the number of
    /// values.
    pub fn check(&self) -> Result<()> {
        let (rows, columns) = (self.rows.len(), self.columns.len());
        if rows == 0 || columns == 0 || rows * columns != self.values.len() {
            let values = self.values.len();
            return Err(Error::Shape(format!("{values} values for {rows} rows and {columns} columns")));
        }
        Ok(())
    }

    /// The scale of the picture.
    pub fn scale(&self) -> Scale {
        self.max.map_or_else(|| Scale::of(&self.values, self.colours), |max| Scale::up_to(max, self.colours))
    }

    /// Computes where everything goes.
    ///
    /// # Errors
    /// As [`AttentionPicture::check`].
    pub fn layout(&self) -> Result<Layout> {
        self.check()?;
        let scale = self.scale();
        let names = |names: &[String]| names.iter().map(|n| NAMES.fit(n, LONGEST_NAME)).collect::<Vec<_>>();
        let (rows, columns) = (names(&self.rows), names(&self.columns));
        let widest = |names: &[String]| names.iter().map(|n| NAMES.width(n)).max().unwrap_or(0);
        let corner = [self.corner_across(), self.corner_down()];
        let left = MARGIN + widest(&rows).max(widest(&corner)) + 10;
        let cell_width = (1080 / columns.len() as i32).clamp(22, 60);
        let cell_height = cell_width.clamp(24, 34).min((2400 / rows.len() as i32).max(22));
        let table_width = cell_width * columns.len() as i32;
        let bar_title = "attention weight";
        let width = (left + table_width + 32 + scale.upright_width(bar_title) + MARGIN).max(620);
        let heading = Heading::new(&self.title, &self.subtitle, width);
        let head = heading.bottom() + 4;
        let level_names = widest(&columns) + 6 <= cell_width;
        let names_above = if level_names { 0 } else { widest(&columns) };
        let top = head + names_above.max(2 * NAMES.line_height()) + 8;
        let table = Rect::sized(left, top, table_width, cell_height * rows.len() as i32);
        let bar_height = table.height().clamp(120, 260);
        let bar = Rect::sized(table.x1 + 32, top, 16, bar_height);
        let height = table.y1.max(bar.y1 + 8) + MARGIN;
        let (size, cell) = ((width, height), (cell_width, cell_height));
        Ok(Layout { size, table, cell, bar, heading, rows, columns, level_names })
    }

    fn corner_across(&self) -> String {
        format!("{} →", self.column_kind)
    }

    fn corner_down(&self) -> String {
        format!("{} ↓", self.row_kind)
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
        let Layout { table, cell: (cell_width, cell_height), .. } = layout;
        let corner = (table.x0 - 10, table.y0 - 8);
        sheet.text((corner.0, corner.1 - NAMES.line_height()), Align::Right, NAMES, GREY, &self.corner_across())?;
        sheet.text(corner, Align::Right, NAMES, GREY, &self.corner_down())?;
        for (row, name) in layout.rows.iter().enumerate() {
            let middle = table.y0 + row as i32 * cell_height + cell_height / 2;
            sheet.text((table.x0 - 10, middle + 5), Align::Right, NAMES, INK, name)?;
        }
        for (column, name) in layout.columns.iter().enumerate() {
            let middle = table.x0 + column as i32 * cell_width + cell_width / 2;
            if layout.level_names {
                sheet.text((middle, table.y0 - 8), Align::Centre, NAMES, INK, name)?;
            } else {
                sheet.text_up((middle + 5, table.y0 - 8), Align::Left, NAMES, INK, name)?;
            }
        }
        for (at, value) in self.values.iter().enumerate() {
            let cell = layout.cell_at(at / self.columns.len(), at % self.columns.len());
            sheet.fill(cell, scale.colour(*value), 1.0)?;
        }
        for at in self.largest() {
            let cell = layout.cell_at(at / self.columns.len(), at % self.columns.len());
            sheet.frame(cell, MARK, 2)?;
            let number = short_number(self.values[at], scale.max());
            if CELL_NUMBER.width(&number) + 6 <= cell_width {
                let ink = ink_on(scale.colour(self.values[at]));
                let x = cell.x0 + cell_width / 2;
                sheet.text((x, cell.y0 + cell_height / 2 + 4), Align::Centre, CELL_NUMBER, ink, &number)?;
            }
        }
        sheet.frame(table.grown(1), LINE, 1)?;
        scale.draw_upright(&mut sheet, layout.bar, "attention weight")?;
        Ok(sheet)
    }

    /// The place of the largest value of each row (or column), where there is one.
    fn largest(&self) -> Vec<usize> {
        let (rows, columns) = (self.rows.len(), self.columns.len());
        let lines: Vec<Vec<usize>> = if self.mark_columns {
            (0..columns).map(|c| (0..rows).map(|r| r * columns + c).collect()).collect()
        } else {
            (0..rows).map(|r| (r * columns..(r + 1) * columns).collect()).collect()
        };
        let best = |line: Vec<usize>| line.into_iter().max_by(|a, b| self.values[*a].total_cmp(&self.values[*b]));
        lines.into_iter().filter_map(best).filter(|at| self.values[*at] > 0.0).collect()
    }
}

/// A weight in as few characters as tell it: ".43", "1.0", "0.012" on small scales.
fn short_number(value: f32, max: f32) -> String {
    if max < 0.1 {
        return format!("{value:.3}").trim_start_matches('0').to_string();
    }
    let text = format!("{value:.2}");
    match text.strip_prefix('0') {
        Some(fraction) => fraction.to_string(),
        None => format!("{value:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(rows: usize, columns: usize) -> AttentionPicture {
        AttentionPicture {
            title: "Cross layer 2, head 1: words attend to regions".into(),
            subtitle: "“a red circle”".into(),
            row_kind: "word".into(),
            column_kind: "region".into(),
            rows: (0..rows).map(|i| format!("word{i}")).collect(),
            columns: (0..columns).map(|i| format!("{} red circle", i + 1)).collect(),
            values: (0..rows * columns).map(|i| ((i * 7919) % 101) as f32 / 100.0).collect(),
            ..AttentionPicture::default()
        }
    }

    #[test]
    fn cells_have_the_colours_of_their_values() {
        let picture = picture(5, 8);
        let (sheet, layout, scale) = (picture.draw().unwrap(), picture.layout().unwrap(), picture.scale());
        for (at, value) in picture.values.iter().enumerate() {
            let cell = layout.cell_at(at / 8, at % 8);
            // Inside the frame that the largest of a row has, outside its number.
            assert_eq!(sheet.pixel(cell.x0 + 3, cell.y0 + 3), Some(scale.colour(*value)), "cell {at}");
        }
        assert_eq!((sheet.width() as i32, sheet.height() as i32), layout.size);
    }

    #[test]
    fn the_largest_weight_of_each_row_is_framed() {
        let mut picture = picture(3, 4);
        picture.values = vec![0.1, 0.7, 0.1, 0.1, 0.2, 0.2, 0.2, 0.4, 0.0, 0.0, 0.0, 0.0];
        assert_eq!(picture.largest(), [1, 7]);
        let (sheet, layout) = (picture.draw().unwrap(), picture.layout().unwrap());
        let corner = |row, column| sheet.pixel(layout.cell_at(row, column).x0 + 1, layout.cell_at(row, column).y0 + 1);
        assert_eq!(corner(0, 1), Some(MARK));
        assert_eq!(corner(1, 3), Some(MARK));
        assert_ne!(corner(2, 0), Some(MARK));
    }

    #[test]
    fn names_and_numbers_that_disagree_are_refused() {
        let mut picture = picture(3, 4);
        picture.values.pop();
        assert_eq!(picture.draw().err().unwrap().to_string(), "11 values for 3 rows and 4 columns");
        picture.rows.clear();
        assert!(matches!(picture.draw(), Err(Error::Shape(_))));
    }

    #[test]
    fn long_names_leave_room_and_big_tables_stay_in_bounds() {
        let mut picture = picture(50, 100);
        picture.columns[3] = "a name of a region that goes on and on and on and on and on".repeat(3);
        picture.rows[3] = picture.columns[3].clone();
        let layout = picture.layout().unwrap();
        assert!(layout.table.x0 <= MARGIN + LONGEST_NAME + 10 && layout.table.x1 < layout.size.0);
        assert!(layout.columns.iter().all(|name| NAMES.width(name) <= LONGEST_NAME));
        assert!(layout.table.y1 < layout.size.1 && layout.bar.x1 < layout.size.0);
    }

    #[test]
    fn short_numbers() {
        assert_eq!(short_number(0.434, 0.6), ".43");
        assert_eq!(short_number(1.0, 1.0), "1.0");
        assert_eq!(short_number(0.0123, 0.05), ".012");
    }
}
