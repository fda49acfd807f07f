//! One attention map as a table of colours, with names on both sides. The largest weight of each row is framed and
//! printed if it stands out.

use super::canvas::Canvas;
use super::font::Face;
use super::legend::Scale;
use super::palette::{GREY, INK, LINE, MARK, ink_on};
use super::shapes::{Align, Rect};
use super::sheet::{Look, Sheet};
use crate::{Error, Result};

/// Numbers with names, ready to draw.
#[derive(Debug, Clone, Default)]
pub struct Heatmap {
    /// Layer, head and direction.
    pub title: String,
    /// The sentence, and how to read the rows.
    pub subtitle: String,
    /// What a row stands for: "word", "region".
    pub row_kind: String,
    /// What a column stands for.
    pub column_kind: String,
    /// Names of the rows, top to bottom.
    pub rows: Vec<String>,
    /// Names of the columns, left to right.
    pub columns: Vec<String>,
    /// `rows × columns` weights, row by row.
    pub values: Vec<f32>,
    /// Whether each column sums to 1 instead of each row; the largest weight of each such line is framed.
    pub by_column: bool,
    /// Sizes and colours.
    pub look: Look,
}

const NAMES: Face = Face::regular(13.0);
const CELL_NUMBER: Face = Face::regular(10.5);
/// Maximum length of a row or column name, in pixels.
const LONGEST_NAME: i32 = 190;

/// The table's position within the picture.
struct Table {
    rect: Rect,
    cell: (i32, i32),
    rows: Vec<String>,
    columns: Vec<String>,
    /// Whether the columns' names fit over them horizontally.
    level_names: bool,
}

impl Table {
    fn cell_at(&self, row: usize, column: usize) -> Rect {
        let (w, h) = self.cell;
        Rect::sized(self.rect.x0 + column as i32 * w, self.rect.y0 + row as i32 * h, w, h)
    }
}

impl Heatmap {
    /// The scale of the picture.
    pub fn scale(&self) -> Scale {
        Scale::of(&self.values, self.look.colours)
    }

    /// The table if the picture's left and top are 0.
    fn table(&self) -> Table {
        let names = |names: &[String]| names.iter().map(|n| NAMES.fit(n, LONGEST_NAME)).collect::<Vec<_>>();
        let (rows, columns) = (names(&self.rows), names(&self.columns));
        let widest = |names: &[String]| names.iter().map(|n| NAMES.width(n)).max().unwrap_or(0);
        let left = widest(&rows).max(widest(&self.corner())) + 10;
        let width = self.look.px((1080 / columns.len() as i32).clamp(22, 60)).max(6);
        let height = self.look.px(width.clamp(24, 34).min((2400 / rows.len() as i32).max(22))).max(NAMES.line_height());
        let level_names = widest(&columns) + 6 <= width;
        let above = if level_names { 0 } else { widest(&columns) }.max(2 * NAMES.line_height()) + 8;
        let rect = Rect::sized(left, above, width * columns.len() as i32, height * rows.len() as i32);
        Table { rect, cell: (width, height), rows, columns, level_names }
    }

    fn corner(&self) -> [String; 2] {
        [format!("{} →", self.column_kind), format!("{} ↓", self.row_kind)]
    }

    /// Draws the picture.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are no rows or columns, or their product is not the number of values.
    pub fn draw(&self) -> Result<Canvas> {
        Ok(self.draw_with_table()?.0)
    }

    fn draw_with_table(&self) -> Result<(Canvas, Table)> {
        let (rows, columns) = (self.rows.len(), self.columns.len());
        if rows == 0 || columns == 0 || rows * columns != self.values.len() {
            let values = self.values.len();
            return Err(Error::Shape(format!("{values} values for {rows} rows and {columns} columns")));
        }
        let scale = self.scale();
        let mut table = self.table();
        let (title, subtitle) = (self.title.as_str(), self.subtitle.as_str());
        let (mut sheet, body) =
            Sheet { title, subtitle, legend: Some((&scale, "attention weight")) }.begin((table.rect.x1, table.rect.y1));
        table.rect = table.rect.moved(body.x0, body.y0);
        let Table { rect, cell: (cell_width, cell_height), .. } = table;
        let corner = (rect.x0 - 10, rect.y0 - 8);
        let [across, down] = self.corner();
        sheet.text((corner.0, corner.1 - NAMES.line_height()), Align::Right, NAMES, GREY, &across);
        sheet.text(corner, Align::Right, NAMES, GREY, &down);
        for (row, name) in table.rows.iter().enumerate() {
            let middle = rect.y0 + row as i32 * cell_height + cell_height / 2;
            sheet.text((rect.x0 - 10, middle + 5), Align::Right, NAMES, INK, name);
        }
        // Rotated names closer than a line would run into each other.
        let every = if table.level_names { 1 } else { (NAMES.line_height() - 1) / cell_width + 1 };
        for (column, name) in table.columns.iter().enumerate().step_by(every as usize) {
            let middle = rect.x0 + column as i32 * cell_width + cell_width / 2;
            if table.level_names {
                sheet.text((middle, rect.y0 - 8), Align::Centre, NAMES, INK, name);
            } else {
                sheet.text_up((middle + 5, rect.y0 - 8), Align::Left, NAMES, INK, name);
            }
        }
        for (at, value) in self.values.iter().enumerate() {
            sheet.fill(table.cell_at(at / columns, at % columns), scale.colour(*value), 1.0);
        }
        for at in self.largest(&scale) {
            let cell = table.cell_at(at / columns, at % columns);
            sheet.frame(cell, MARK, 2);
            let number = scale.number(self.values[at]);
            if CELL_NUMBER.width(&number) + 6 <= cell_width {
                let ink = ink_on(scale.colour(self.values[at]));
                let at = (cell.x0 + cell_width / 2, cell.y0 + cell_height / 2 + 4);
                sheet.text(at, Align::Centre, CELL_NUMBER, ink, &number);
            }
        }
        sheet.frame(rect.grown(1), LINE, 1);
        Ok((sheet, table))
    }

    /// The position of the largest value of each row (or column) where it stands out.
    fn largest(&self, scale: &Scale) -> Vec<usize> {
        let (rows, columns) = (self.rows.len(), self.columns.len());
        let lines: Vec<Vec<usize>> = if self.by_column {
            (0..columns).map(|c| (0..rows).map(|r| r * columns + c).collect()).collect()
        } else {
            (0..rows).map(|r| (r * columns..(r + 1) * columns).collect()).collect()
        };
        let best = |line: Vec<usize>| line.into_iter().max_by(|a, b| self.values[*a].total_cmp(&self.values[*b]));
        lines.into_iter().filter_map(best).filter(|at| scale.stands_out(self.values[*at])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(rows: usize, columns: usize) -> Heatmap {
        Heatmap {
            title: "Cross layer 2, head 1: words attend to regions".into(),
            subtitle: "“a red circle”".into(),
            row_kind: "word".into(),
            column_kind: "region".into(),
            rows: (0..rows).map(|i| format!("word{i}")).collect(),
            columns: (0..columns).map(|i| format!("{} red circle", i + 1)).collect(),
            values: (0..rows * columns).map(|i| ((i * 7919) % 101) as f32 / 100.0).collect(),
            ..Heatmap::default()
        }
    }

    #[test]
    fn cells_have_the_colours_of_their_values() {
        let picture = picture(5, 8);
        let (sheet, table) = picture.draw_with_table().unwrap();
        let (pixels, scale) = (sheet.pixels(1.0).unwrap(), picture.scale());
        for (at, value) in picture.values.iter().enumerate() {
            let cell = table.cell_at(at / 8, at % 8);
            // Inside the frame around a row's largest value, outside its number.
            let got = pixels.get_pixel(cell.x0 as u32 + 3, cell.y0 as u32 + 3).0;
            assert_eq!(got, scale.colour(*value), "cell {at}");
        }
    }

    #[test]
    fn the_largest_weight_of_each_row_is_framed_if_it_stands_out() {
        let mut picture = picture(3, 4);
        picture.values = vec![0.1, 0.7, 0.1, 0.1, 0.2, 0.2, 0.2, 0.4, 0.26, 0.25, 0.25, 0.24];
        assert_eq!(picture.largest(&picture.scale()), [1, 7]);
        let (sheet, table) = picture.draw_with_table().unwrap();
        let pixels = sheet.pixels(1.0).unwrap();
        let corner = |row, column| {
            let cell = table.cell_at(row, column);
            pixels.get_pixel(cell.x0 as u32 + 1, cell.y0 as u32 + 1).0
        };
        assert_eq!((corner(0, 1), corner(1, 3)), (MARK, MARK));
        assert_ne!(corner(2, 0), MARK, "a row that is nearly even has no largest weight");
    }

    #[test]
    fn rejects_names_and_numbers_that_disagree() {
        let mut picture = picture(3, 4);
        picture.values.pop();
        assert_eq!(picture.draw().err().unwrap().to_string(), "11 values for 3 rows and 4 columns");
        picture.rows.clear();
        assert!(matches!(picture.draw(), Err(Error::Shape(_))));
    }

    #[test]
    fn long_names_and_big_tables_stay_in_bounds_at_every_size() {
        let mut picture = picture(50, 100);
        picture.columns[3] = "a name of a region that goes on and on and on and on and on".repeat(3);
        picture.rows[3] = picture.columns[3].clone();
        for room in [0.3, 1.0, 2.0] {
            picture.look.room = room;
            let (sheet, table) = picture.draw_with_table().unwrap();
            assert!(table.rect.x0 <= super::super::canvas::MARGIN + LONGEST_NAME + 10);
            assert!(table.columns.iter().all(|name| NAMES.width(name) <= LONGEST_NAME));
            assert!(sheet.bounds().contains(&table.rect));
        }
    }
}
