//! Flickr30k Entities (Plummer et al., ICCV 2015): which phrases of a caption refer to which boxes in its photo.
//!
//! ```text
//! Sentences/1000092795.txt     one caption per line, phrases marked:
//!     [/EN#1/people Two young guys] with [/EN#2/bodyparts shaggy hair] look at [/EN#3/bodyparts their hands] .
//! Annotations/1000092795.xml   boxes by the phrases' numbers:
//!     <annotation>
//!       <size><width>333</width><height>500</height></size>
//!       <object><name>1</name><name>3</name>
//!         <bndbox><xmin>10</xmin><ymin>20</ymin><xmax>110</xmax><ymax>120</ymax></bndbox></object>
//!       <object><name>2</name><scene>0</scene><nobndbox>1</nobndbox></object>
//!     </annotation>
//! ```
//!
//! A number may have several boxes, a box several numbers, and a phrase several types (`clothing/other`). Number 0
//! (`notvisual`) refers to nothing visible; scenes mostly have no box. Pixels count from 1; both ends are inside.

use super::grounding::{Case, Target};
use crate::{Error, Result};
use lxmert_core::boxes::{BoxXyxy, normalise};
use lxmert_core::files::read_text;
use roxmltree::{Document, Node};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// A marked phrase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phrase {
    /// Its number in the annotations; 0 for nothing visible.
    pub id: u64,
    /// Its types: "people", "clothing".
    pub kinds: Vec<String>,
    /// Its byte range in the sentence.
    pub range: Range<usize>,
}

/// A caption without its markup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sentence {
    /// The plain sentence.
    pub text: String,
    /// The phrases, in order.
    pub phrases: Vec<Phrase>,
}

/// Reads one line of a sentence file. The error is only the reason.
///
/// # Errors
/// Returns an error if a mark is not closed or does not have the form `[/EN#number/type words]`.
pub fn sentence(line: &str) -> std::result::Result<Sentence, String> {
    let (mut text, mut phrases) = (String::new(), Vec::new());
    let mut rest = line.trim();
    while let Some(start) = rest.find("[/EN#") {
        text.push_str(&rest[..start]);
        let marked = &rest[start..];
        let end = marked.find(']').ok_or_else(|| format!("no ']' after '{marked}'"))?;
        let fault = || format!("'{}' does not have the form [/EN#number/type words]", &marked[..=end]);
        let (head, words) = marked["[/EN#".len()..end].split_once(' ').ok_or_else(fault)?;
        let mut parts = head.split('/');
        let id = parts.next().and_then(|id| id.parse().ok()).ok_or_else(fault)?;
        let kinds: Vec<String> = parts.filter(|kind| !kind.is_empty()).map(String::from).collect();
        if kinds.is_empty() || words.trim().is_empty() {
            return Err(fault());
        }
        let from = text.len();
        text.push_str(words.trim());
        phrases.push(Phrase { id, kinds, range: from..text.len() });
        rest = &marked[end + 1..];
    }
    text.push_str(rest);
    Ok(Sentence { text, phrases })
}

/// Reads one annotation file: the normalised boxes of each number that has any. The error is only the reason.
///
/// # Errors
/// Returns an error if it is not XML, has no size, or a box is not four numbers.
pub fn annotation(xml: &str) -> std::result::Result<BTreeMap<u64, Vec<BoxXyxy>>, String> {
    let document = Document::parse(xml).map_err(|e| e.to_string())?;
    let root = document.root_element();
    let size = child(root, "size").ok_or("no <size>")?;
    let (width, height) = (number(size, "width")?, number(size, "height")?);
    if width < 1.0 || height < 1.0 {
        return Err(format!("a photo of {width} × {height} pixels"));
    }
    let mut boxes: BTreeMap<u64, Vec<BoxXyxy>> = BTreeMap::new();
    for object in root.children().filter(|node| node.has_tag_name("object")) {
        for bounds in object.children().filter(|node| node.has_tag_name("bndbox")) {
            let [x0, y0, x1, y1] = ["xmin", "ymin", "xmax", "ymax"].map(|side| number(bounds, side));
            let corners = normalise(&[x0? - 1.0, y0? - 1.0, x1?, y1?], width, height);
            for name in object.children().filter(|node| node.has_tag_name("name")) {
                let id = text(name).parse().map_err(|_| format!("<name>{}</name> is not a number", text(name)))?;
                boxes.entry(id).or_default().push(corners);
            }
        }
    }
    Ok(boxes)
}

fn child<'a>(node: Node<'a, 'a>, name: &str) -> Option<Node<'a, 'a>> {
    node.children().find(|child| child.has_tag_name(name))
}

fn text<'a>(node: Node<'a, 'a>) -> &'a str {
    node.text().unwrap_or_default().trim()
}

fn number(node: Node, name: &str) -> std::result::Result<f32, String> {
    let value = child(node, name).map(text).unwrap_or_default();
    let parsed = value.parse::<f32>().ok().filter(|value| value.is_finite());
    parsed.ok_or_else(|| format!("<{}>: '{value}' as <{name}> is not a number", node.tag_name().name()))
}

/// The annotations of some images in a folder.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Entities {
    /// The captions, with their phrases that have a box.
    pub cases: Vec<Case>,
    /// Phrases left out because nothing is visible (number 0).
    pub not_visual: usize,
    /// Phrases left out because they have no box.
    pub without_box: usize,
    /// Images without a file in the folder.
    pub missing: usize,
}

/// Reads `Sentences/` and `Annotations/` below `folder` for the images with these names.
///
/// # Errors
/// [`Error::Missing`] if the folder lacks either, or contains none of the images; [`Error::Format`] with the file and
/// row if one does not have the form above; [`Error::Core`].
pub fn read(folder: &Path, images: &[&str]) -> Result<Entities> {
    let [sentences, annotations] = ["Sentences", "Annotations"].map(|part| folder.join(part));
    let advice = "unpack Flickr30k Entities' annotations.zip and pass the folder that holds Sentences and Annotations";
    for part in [&sentences, &annotations] {
        if !part.is_dir() {
            return Err(Error::Missing {
                what: "a part of the annotations",
                path: part.clone(),
                advice: advice.into(),
            });
        }
    }
    let mut found = Entities::default();
    for image in images {
        let stem = Path::new(image).file_stem().unwrap_or_default().to_string_lossy();
        let files = [sentences.join(format!("{stem}.txt")), annotations.join(format!("{stem}.xml"))];
        if !files.iter().all(|file| file.is_file()) {
            found.missing += 1;
            continue;
        }
        let boxes =
            annotation(&read_text(&files[1])?).map_err(|reason| Error::Format { path: files[1].clone(), reason })?;
        for (row, line) in read_text(&files[0])?.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let fault = |reason| Error::Format { path: files[0].clone(), reason: format!("row {}: {reason}", row + 1) };
            let Sentence { text, phrases } = sentence(line).map_err(fault)?;
            let mut targets = Vec::new();
            for Phrase { id, kinds, range } in phrases {
                match boxes.get(&id) {
                    _ if id == 0 => found.not_visual += 1,
                    None => found.without_box += 1,
                    Some(boxes) => targets.push(Target { range, kinds, boxes_normalised: boxes.clone() }),
                }
            }
            if !targets.is_empty() {
                found.cases.push(Case { image: (*image).to_string(), text, targets });
            }
        }
    }
    if found.missing == images.len() {
        let path = sentences;
        return Err(Error::Missing { what: "the annotation of every test image", path, advice: advice.into() });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const XML: &str = "<annotation><filename>7.jpg</filename>\
        <size><width>200</width><height>100</height><depth>3</depth></size>\
        <object><name>1</name><name>4</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>100</xmax><ymax>50</ymax></bndbox></object>\
        <object><name>1</name><bndbox><xmin>151</xmin><ymin>26</ymin><xmax>200</xmax><ymax>100</ymax></bndbox></object>\
        <object><name>5</name><scene>1</scene><nobndbox>0</nobndbox></object>\
        <object><name>6</name><scene>0</scene><nobndbox>1</nobndbox></object></annotation>";

    const TEXT: &str = "[/EN#1/people Two men] in [/EN#4/clothing/other red hats] wait at [/EN#5/scene a station] .\n\
        [/EN#0/notvisual It] is [/EN#6/other late] .\n\nNothing is marked here .\n";

    fn folder(text: &str, xml: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (part, file, content) in [("Sentences", "7.txt", text), ("Annotations", "7.xml", xml)] {
            std::fs::create_dir(folder.path().join(part)).unwrap();
            std::fs::write(folder.path().join(part).join(file), content).unwrap();
        }
        folder
    }

    #[test]
    fn marks_become_ranges_of_the_plain_sentence() {
        let found = sentence(TEXT.lines().next().unwrap()).unwrap();
        assert_eq!(found.text, "Two men in red hats wait at a station .");
        let phrases: Vec<&str> = found.phrases.iter().map(|p| &found.text[p.range.clone()]).collect();
        assert_eq!(phrases, ["Two men", "red hats", "a station"]);
        assert_eq!(found.phrases[1].kinds, ["clothing", "other"]);
        assert_eq!(sentence("No mark at all .").unwrap().phrases, []);
        for wrong in ["[/EN#1/people Two", "[/EN#x/people Two]", "[/EN#1 Two]", "[/EN#1/people]", "[/EN#1/people  ]"] {
            assert!(sentence(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn boxes_are_found_by_number_and_count_from_one() {
        let found = annotation(XML).unwrap();
        assert_eq!(found[&1], [[0.0, 0.0, 0.5, 0.5], [0.75, 0.25, 1.0, 1.0]]);
        assert_eq!(found[&4], [[0.0, 0.0, 0.5, 0.5]]);
        assert!(!found.contains_key(&5) && !found.contains_key(&6));
        assert!(annotation("<annotation>").is_err());
        assert_eq!(annotation("<annotation/>").unwrap_err(), "no <size>");
        let wrong = XML.replace("<xmin>151</xmin>", "<xmin>left</xmin>");
        assert_eq!(annotation(&wrong).unwrap_err(), "<bndbox>: 'left' as <xmin> is not a number");
        assert!(annotation(&XML.replace("<width>200", "<width>0")).is_err());
    }

    #[test]
    fn phrases_without_a_box_are_counted_and_left_out() {
        let folder = folder(&format!("\u{feff}{TEXT}"), &format!("\u{feff}{XML}"));
        let found = read(folder.path(), &["photos/7.jpg", "8.jpg"]).unwrap();
        assert_eq!((found.not_visual, found.without_box, found.missing), (1, 2, 1));
        let [case] = found.cases.as_slice() else { panic!("{found:?}") };
        assert_eq!((case.image.as_str(), case.targets.len()), ("photos/7.jpg", 2));
        assert_eq!(case.targets[0].boxes_normalised.len(), 2);
        let message = read(folder.path(), &["8.jpg"]).unwrap_err().to_string();
        assert!(message.contains("annotation of every test image"), "{message}");
        assert!(
            read(&folder.path().join("Sentences"), &["7.jpg"]).unwrap_err().to_string().contains("annotations.zip")
        );
    }

    #[test]
    fn a_fault_names_its_file_and_row() {
        let broken = folder("Fine .\n[/EN#1/people Two men\n", XML);
        let message = read(broken.path(), &["7.jpg"]).unwrap_err().to_string();
        assert!(message.contains("7.txt: row 2: no ']'"), "{message}");
        let broken = folder(TEXT, "no xml");
        assert!(read(broken.path(), &["7.jpg"]).unwrap_err().to_string().contains("7.xml: "));
    }
}
