//! Caption files that are tables.

use super::columns::{Columns, WANTED};
use super::{Reader, short};
use crate::image_names::is_image_name;
use crate::{Error, Result};

const DELIMITERS: [char; 4] = ['|', '\t', ',', ';'];
/// Longest quoted cell in bytes: how far to search for the closing mark.
const LONGEST_CELL: usize = 1 << 14;

/// How a file's rows are laid out.
struct Layout {
    delimiter: char,
    has_header: bool,
    /// Whether cells may be quoted.
    quotes: bool,
    /// Cells per row.
    width: usize,
    columns: Columns,
}

/// Whether a text's first line is that of a caption table.
pub(super) fn is_table(text: &str) -> bool {
    Layout::of(text).is_some()
}

/// Reads every row.
pub(super) fn read(reader: &mut Reader, text: &str) -> Result<()> {
    let Some(layout) = Layout::of(text) else {
        let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let reason = format!(
            "not a caption file: the first line is '{}'; expected a header with {WANTED}, or Flickr30k's \
             'image_name| comment_number| comment', Flickr8k's 'image,caption', 'image#0<TAB>caption', Karpathy's or \
             COCO's JSON",
            short(first.trim())
        );
        return Err(Error::format(&reader.captions.path, reason));
    };
    let mut records = Records { text, row: 1, layout: &layout, image: None };
    let mut is_header = layout.has_header;
    while let Some(Record { row, cells, unclosed }) = records.next() {
        if is_header {
            is_header = false;
            continue;
        }
        if unclosed {
            reader.captions.repairs.push(format!("row {row}: a quotation mark that never closes is taken as text"));
        }
        let taken = layout.take(reader, row, cells);
        let image = taken.map_err(|reason| Error::row(&reader.captions.path, row, reason))?;
        records.image.get_or_insert_with(|| reader.captions.images[image].clone());
    }
    Ok(())
}

impl Layout {
    fn of(text: &str) -> Option<Self> {
        let first = text.lines().find(|line| !line.trim().is_empty())?.trim_end();
        let split = |delimiter| first.split(delimiter).collect::<Vec<&str>>();
        for delimiter in DELIMITERS {
            let cells = split(delimiter);
            if let Some(columns) = Columns::of(cells.iter().copied()) {
                return Some(Self { delimiter, has_header: true, quotes: true, width: cells.len(), columns });
            }
        }
        for delimiter in DELIMITERS {
            let cells = split(delimiter);
            let (Some(image), Some(second)) = (cells.first(), cells.get(1)) else { continue };
            let numbered = cells.len() > 2 && number(second).is_some();
            let is_row = is_image_name(image.trim()) || key_number(image).is_some() || (numbered && delimiter == '|');
            if is_row {
                let number = numbered.then_some(1);
                let caption = 1 + usize::from(numbered);
                let columns = Columns { image: 0, captions: vec![caption], number, split: None };
                let quotes = key_number(image).is_none();
                return Some(Self { delimiter, has_header: false, quotes, width: caption + 1, columns });
            }
        }
        None
    }

    /// Adds a row's captions and returns its image.
    fn take(&self, reader: &mut Reader, row: usize, mut cells: Vec<String>) -> std::result::Result<usize, String> {
        let columns = &self.columns;
        while cells.len() > self.width && cells.last().is_some_and(|cell| cell.trim().is_empty()) {
            cells.pop();
        }
        if let Some(repair) = self.mend(&mut cells) {
            reader.captions.repairs.push(format!("row {row} {repair}"));
        }
        if cells.len() < self.width {
            let (found, row) = (cells.len(), short(&cells.join(&self.delimiter.to_string())));
            return Err(format!("{found} columns where {} are expected: '{row}'", self.width));
        }
        let surplus = cells.len() - self.width;
        if surplus > 0 {
            // The caption contains an unquoted delimiter: every remaining cell belongs to the caption.
            let &[caption] = columns.captions.as_slice() else {
                return Err(format!(
                    "{} columns where {} are expected; put captions that contain a '{}' in quotation marks",
                    cells.len(),
                    self.width,
                    self.delimiter
                ));
            };
            let whole = cells[caption..=caption + surplus].join(&self.delimiter.to_string());
            cells.splice(caption..=caption + surplus, [whole]);
        }
        let number = match columns.number.map(|i| cells[i].trim()) {
            Some(text) => Some(number(text).ok_or_else(|| format!("the caption's number is '{}'", short(text)))?),
            None => None,
        };
        let (image, number) = match key_number(&cells[columns.image]) {
            Some((image, of_key)) if number.is_none() => (image, Some(of_key)),
            _ => (cells[columns.image].as_str(), number),
        };
        let mut texts = Vec::new();
        for &i in &columns.captions {
            // Tables made from JSON hold lists of sentences.
            match serde_json::from_str::<Vec<String>>(&cells[i]) {
                Ok(list) => texts.extend(list),
                Err(_) => texts.push(cells[i].clone()),
            }
        }
        let image = reader.push(row, image, number, &texts)?;
        if let Some(split) = columns.split {
            reader.set_split(image, cells[split].trim())?;
        }
        Ok(image)
    }

    /// Repairs a row that lacks the delimiter between number and caption, as one does in Flickr30k's file. In a table
    /// derived from that file the caption is empty.
    fn mend(&self, cells: &mut Vec<String>) -> Option<String> {
        let (number_column, &[caption]) = (self.columns.number?, self.columns.captions.as_slice()) else {
            return None;
        };
        let is_missing = cells.len() + 1 == self.width && caption + 1 == self.width;
        if caption != number_column + 1 || !(is_missing || cells.get(caption).is_some_and(|c| c.trim().is_empty())) {
            return None;
        }
        let (number_text, text) = cells.get(number_column)?.trim().split_once(char::is_whitespace)?;
        number(number_text)?;
        let (number_text, text) = (number_text.to_string(), text.trim().to_string());
        let repair = format!("lacks the '{}' after its number; read as {number_text} and '{text}'", self.delimiter);
        cells[number_column] = number_text;
        cells.truncate(if is_missing { caption } else { cells.len() });
        match cells.get_mut(caption) {
            Some(cell) => *cell = text,
            None => cells.push(text),
        }
        Some(repair)
    }
}

/// A caption's number; pandas may have written it with a decimal point.
fn number(text: &str) -> Option<u32> {
    let text = text.trim();
    text.strip_suffix(".0").unwrap_or(text).parse().ok()
}

/// The name and number in a token file's key, `1000092795.jpg#0`.
fn key_number(key: &str) -> Option<(&str, u32)> {
    let (image, number) = key.trim().rsplit_once('#')?;
    Some((image, number.parse().ok()?))
}

struct Record {
    /// The number of the record's first line.
    row: usize,
    cells: Vec<String>,
    /// Whether a quotation mark opens one of its cells and never closes.
    unclosed: bool,
}

/// The rows of a table, without empty lines.
struct Records<'a> {
    text: &'a str,
    row: usize,
    layout: &'a Layout,
    /// The first row's image, once it is known.
    image: Option<String>,
}

impl Records<'_> {
    fn next(&mut self) -> Option<Record> {
        loop {
            let line_end = self.text.find('\n').unwrap_or(self.text.len());
            if self.text.is_empty() {
                return None;
            }
            if !self.text[..line_end].trim().is_empty() {
                break;
            }
            self.text = self.text.get(line_end + 1..).unwrap_or_default();
            self.row += 1;
        }
        let mut record = Record { row: self.row, cells: Vec::new(), unclosed: false };
        loop {
            let (cell, length) = match self.quoted(&mut record.unclosed) {
                Some(found) => found,
                None => {
                    let end = self.text.find([self.layout.delimiter, '\n']).unwrap_or(self.text.len());
                    (self.text[..end].trim_end_matches('\r').to_string(), end)
                }
            };
            self.row += self.text[..length].matches('\n').count();
            let after = self.text[length..].chars().next();
            self.text = self.text[length..].get(after.map_or(0, char::len_utf8)..).unwrap_or_default();
            record.cells.push(cell);
            if after != Some(self.layout.delimiter) {
                self.row += usize::from(after == Some('\n'));
                return Some(record);
            }
        }
    }

    /// The quoted cell at the start of the text, and its length with the marks; `None` if there is none or the marks
    /// belong to the text.
    fn quoted(&self, unclosed: &mut bool) -> Option<(String, usize)> {
        let rest = self.text.strip_prefix('"').filter(|_| self.layout.quotes)?;
        let mut cell = String::new();
        let mut at = 0;
        loop {
            let Some(end) = rest[at..].find('"').map(|found| at + found).filter(|end| *end < LONGEST_CELL) else {
                *unclosed = true;
                return None;
            };
            // If a line between the marks is a row of its own, the second mark belongs to another row.
            if rest[at..end].split('\n').skip(1).any(|line| self.is_row(line)) {
                *unclosed = true;
                return None;
            }
            cell.push_str(&rest[at..end]);
            let after = &rest[end + 1..];
            if after.starts_with('"') {
                cell.push('"');
                at = end + 2;
                continue;
            }
            let line_ends = after.is_empty() || after.starts_with('\n') || after.starts_with("\r\n");
            let length = 1 + end + 1 + usize::from(after.starts_with('\r') && line_ends);
            return (line_ends || after.starts_with(self.layout.delimiter)).then_some((cell, length));
        }
    }

    /// Whether a line's image column holds an image of the same kind as the first row's.
    fn is_row(&self, line: &str) -> bool {
        let is_number = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
        let mut cells = line.split(self.layout.delimiter);
        let Some(cell) = cells.nth(self.layout.columns.image).map(|cell| cell.trim().trim_matches('"')) else {
            return false;
        };
        (cells.next().is_some() || self.layout.columns.image > 0)
            && (is_image_name(cell) || (is_number(cell) && self.image.as_deref().is_some_and(is_number)))
    }
}
