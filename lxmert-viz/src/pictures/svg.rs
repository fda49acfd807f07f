//! A sheet's shapes as SVG. Text stays text, so that it can be searched and edited; `textLength` keeps the layout if
//! DejaVu Sans is not installed.

use super::font::Weight;
use super::palette::Rgb;
use super::raster;
use super::shapes::{Align, Shape};
use crate::Result;
use base64::Engine as _;
use std::fmt::Write as _;

/// The SVG file of a sheet of this size, displayed `scale` times as large.
pub(super) fn write((width, height): (i32, i32), shapes: &[Shape], scale: f32) -> Result<String> {
    let shown = |side: i32| (side as f32 * scale).round();
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"DejaVu Sans, Verdana, sans-serif\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n",
        shown(width),
        shown(height)
    );
    for shape in shapes {
        shape_to_svg(&mut out, shape)?;
    }
    out.push_str("</svg>\n");
    Ok(out)
}

fn shape_to_svg(out: &mut String, shape: &Shape) -> Result<()> {
    let _ = match shape {
        Shape::Fill { rect, colour, opacity } => {
            let (x, y, width, height, fill) = (rect.x0, rect.y0, rect.width(), rect.height(), hex(*colour));
            // Use crisp edges, so that no seam shows between neighbours.
            writeln!(
                out,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"{fill}\"{} \
                 shape-rendering=\"crispEdges\"/>",
                fill_opacity(*opacity)
            )
        }
        Shape::Line { points, colour, width } => writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{width}\" stroke-linecap=\"round\" \
             stroke-linejoin=\"round\"/>",
            corners(points),
            hex(*colour)
        ),
        Shape::Polygon { points, colour, opacity } => {
            let (points, fill) = (corners(points), hex(*colour));
            writeln!(out, "<polygon points=\"{points}\" fill=\"{fill}\"{}/>", fill_opacity(*opacity))
        }
        Shape::Disc { centre: (x, y), radius, colour } => {
            let (x, y) = (*x as f32 + 0.5, *y as f32 + 0.5);
            writeln!(out, "<circle cx=\"{x}\" cy=\"{y}\" r=\"{radius}\" fill=\"{}\"/>", hex(*colour))
        }
        Shape::Text { at: (x, y), align, upwards, face, colour, text } => {
            let anchor = match align {
                Align::Left => "",
                Align::Centre => " text-anchor=\"middle\"",
                Align::Right => " text-anchor=\"end\"",
            };
            let bold = if face.weight == Weight::Bold { " font-weight=\"bold\"" } else { "" };
            let turned = if *upwards { format!(" transform=\"rotate(-90 {x} {y})\"") } else { String::new() };
            // For characters that the bundled font lacks, only the viewer knows the width.
            let length = if text.is_empty() || text.chars().any(|c| face.lacks(c)) {
                String::new()
            } else {
                format!(" textLength=\"{}\" lengthAdjust=\"spacingAndGlyphs\"", face.width(text))
            };
            let (size, fill, text) = (face.size, hex(*colour), escaped(text));
            writeln!(
                out,
                "<text x=\"{x}\" y=\"{y}\" font-size=\"{size}\"{bold}{anchor}{turned} fill=\"{fill}\"{length}>{text}</text>"
            )
        }
        Shape::Photo { rect, photo } => {
            let (x, y, width, height) = (rect.x0, rect.y0, rect.width(), rect.height());
            let data = base64::engine::general_purpose::STANDARD.encode(raster::png(photo)?);
            writeln!(
                out,
                "<image x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" preserveAspectRatio=\"none\" \
                 href=\"data:image/png;base64,{data}\"/>"
            )
        }
    };
    Ok(())
}

fn hex([red, green, blue]: Rgb) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

fn fill_opacity(opacity: f32) -> String {
    if opacity < 1.0 { format!(" fill-opacity=\"{opacity}\"") } else { String::new() }
}

fn corners(points: &[(i32, i32)]) -> String {
    let points: Vec<String> = points.iter().map(|(x, y)| format!("{x}.5,{y}.5")).collect();
    points.join(" ")
}

fn escaped(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
    clean.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pictures::font::Face;
    use crate::pictures::shapes::Rect;
    use image::RgbImage;

    fn text(text: &str, upwards: bool) -> Shape {
        let (at, face, text) = ((60, 40), Face::bold(12.0), text.to_string());
        Shape::Text { at, align: Align::Right, upwards, face, colour: [0, 0, 0], text }
    }

    #[test]
    fn the_file_is_xml_with_every_shape_and_the_text_as_text() {
        let photo = RgbImage::new(3, 2);
        let shapes = [
            Shape::Fill { rect: Rect::sized(1, 2, 3, 4), colour: [1, 2, 3], opacity: 0.5 },
            Shape::Line { points: vec![(0, 0), (9, 9)], colour: [0, 0, 0], width: 2.0 },
            Shape::Polygon { points: vec![(0, 0), (9, 0), (9, 9)], colour: [255, 0, 0], opacity: 1.0 },
            Shape::Disc { centre: (5, 5), radius: 3, colour: [0, 255, 0] },
            Shape::Photo { rect: Rect::sized(10, 10, 30, 20), photo },
            text("a <red> & \"blue\"\u{7} star", false),
            text("up", true),
            text("猫", false),
        ];
        let file = write((120, 80), &shapes, 2.0).unwrap();
        let document = roxmltree::Document::parse(&file).unwrap();
        let root = document.root_element();
        assert_eq!((root.attribute("width"), root.attribute("viewBox")), (Some("240"), Some("0 0 120 80")));
        let names: Vec<&str> = root.children().filter(|n| n.is_element()).map(|n| n.tag_name().name()).collect();
        assert_eq!(names, ["rect", "rect", "polyline", "polygon", "circle", "image", "text", "text", "text"]);
        let texts: Vec<_> = root.children().filter(|n| n.has_tag_name("text")).collect();
        assert_eq!(texts[0].text(), Some("a <red> & \"blue\"  star"));
        assert_eq!(texts[1].attribute("transform"), Some("rotate(-90 60 40)"));
        assert!(texts[0].attribute("textLength").is_some() && texts[2].attribute("textLength").is_none());
    }
}
