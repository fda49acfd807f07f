//! Captions, examples, annotations and photos.

use super::stores::store;
use super::{JSON, MB, PICKLE, any, fixtures, folder, target, text, texts};
use crate::harness::Target;
use image::DynamicImage;
use image::ImageFormat;
use lxmert_core::answers::AnswerTable;
use lxmert_core::captions::Captions;
use lxmert_core::captions::read_hard_negatives;
use lxmert_core::features::FeatureStore;
use lxmert_core::files::read_text;
use lxmert_core::text::WordPiece;
use lxmert_extract::images::decode_file;
use lxmert_extract::inputs::find_images;
use lxmert_train::data::image_examples::ImageExample;
use lxmert_train::data::pretraining::PretrainingSentences;
use lxmert_train::data::pretraining::ReadOptions;
use lxmert_train::data::questions::Question;
use lxmert_train::data::refcoco::Expression;
use lxmert_train::data::refcoco::INSTANCES;
use lxmert_train::data::snli_ve::Hypothesis;
use lxmert_train::data::splits::Split;
use lxmert_train::data::splits::Splits;
use lxmert_train::data::statements::Statement;
use lxmert_viz::explain::entities;
use std::io::Cursor;
use std::path::Path;

pub fn captions(root: &Path) -> Target {
    let seeds = texts(&[
        "image_name| comment_number| comment\n1.jpg| 0| A dog .\n1.jpg| 1| A red dog .\n2.jpg| 0| A cat .\n",
        "image_name,comment_number,comment\n1.jpg,0,\"A dog, red .\"\n2.jpg,0,\"A \"\"cat\"\" .\"\n",
        "filepath\ttitle\n1.jpg\tA dog .\n",
        ",image,caption_0,caption_1\n0,1.jpg,A dog .,\"A line\nbreak .\"\n",
        "1.jpg#0\tA dog .\n1.jpg#1\tA cat .\n",
        r#"{"info": {}, "images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "id": 2, "caption": "A dog ."}]}"#,
        r#"{"images": [{"filename": "1.jpg", "split": "train", "sentences": [{"raw": "A dog ."}, {"raw": "A cat ."}]}], "dataset": "x"}"#,
        r#"[{"image": "1.jpg", "caption": ["A dog .", "A cat ."]}, {"image": "2.jpg", "caption": "A bird ."}]"#,
    ]);
    let words = &[
        "\"",
        "\"\"",
        ",",
        "|",
        "\t",
        ";",
        "#0",
        "#18446744073709551615",
        "\n",
        "\r",
        "image",
        "caption",
        "comment_number",
        "raw",
        "sentids",
        "{",
        "}",
        "[",
        "]",
        "\u{feff}",
        "é",
        "e\u{301}",
        "\0",
        ".JPG",
    ];
    let known = Captions::of_text(Path::new("x"), "1.jpg| 0| A dog .\n2.jpg| 0| A cat .\n").unwrap();
    target(root, "captions", "captions.txt", seeds, words, move |path| {
        let _ = find_images(path, None);
        let _ = read_hard_negatives(path, &known);
        let read = Captions::read(path).map_err(text)?;
        assert!(
            read.captions.iter().all(|caption| caption.image < read.images.len() && !caption.text.trim().is_empty())
        );
        let _ = Splits::choose(&read, None, 0, &Split::ALL);
        Ok(())
    })
}

pub fn list(root: &Path) -> Target {
    let seeds = texts(&["1.jpg\nsub/2.png\n", "/elsewhere/3.jpeg\r\n\u{feff}4.webp\n"]);
    let words = &["\n", "/", "..", "\\", "\0", ".jpg", ".tif", "\u{feff}", "é", "e\u{301}"];
    target(root, "list", "list.txt", seeds, words, |path| find_images(path, None).map(drop).map_err(text))
}

pub fn questions(root: &Path) -> Target {
    let seeds = texts(&[
        r#"[{"question_id": 1, "img_id": "1", "sent": "What?", "label": {"cat": 1.0, "dog": 0.3}, "answer_type": "other", "question_type": "what"}]"#,
        r#"{"201": {"imageId": "1", "question": "What?", "answer": "cat", "types": {"structural": "query"}}, "7": {"imageId": 2, "question": "Is it?"}}"#,
        r#"[{"image": "1.jpg", "question": "What?", "answers": [{"answer": "a cat"}, {"answer": "cat"}], "answer_type": "other", "answerable": 1}]"#,
        r#"[{"identifier": "dev-1-0-0", "img0": "1", "img1": "2", "sent": "Both are red.", "label": 1, "uid": "nlvr2_1"}]"#,
        "{\"identifier\": \"dev-1-0-0\", \"left_url\": \"x\", \"sentence\": \"Both.\", \"label\": \"True\"}\n{\"identifier\": \"dev-1-1-0\", \"sentence\": \"One.\", \"label\": \"False\"}\n",
        "{\"Flickr30K_ID\": \"1\", \"pairID\": \"1.jpg#0r1n\", \"sentence2\": \"A dog .\", \"gold_label\": \"neutral\"}\n",
        r#"[{"img_id": "1", "sentf": {"mscoco": ["A dog ."], "vqa": ["What?"]}, "labelf": {"vqa": [{"yes": 1.0}]}}]"#,
    ]);
    let target = target(root, "questions", "questions.json", seeds, JSON, |_| Ok(()));
    let images = folder(root, "questions-store");
    store(&images);
    let (store, words) = (FeatureStore::open(&images).unwrap(), WordPiece::bundled().unwrap());
    let answers = AnswerTable::new(vec!["yes".into(), "cat".into()]).unwrap();
    let path = target.path.clone();
    let read = move || {
        let options = ReadOptions { text: &words, max_length: 8, answers: Some(&answers), allow_missing_images: true };
        any([
            Question::read(&path, Split::Test).map(drop).map_err(text),
            Statement::read(&path, Split::Test).map(drop).map_err(text),
            Hypothesis::read(&path, Split::Test).map(drop).map_err(text),
            PretrainingSentences::read(std::slice::from_ref(&path), &store, options).map(drop).map_err(text),
        ])
    };
    Target { read: Box::new(read), ..target }
}

/// VQA's own pair of files: the annotations change.
pub fn vqa(root: &Path) -> Target {
    let seeds = texts(&[
        r#"{"data_subtype": "val2014", "annotations": [{"question_id": 1, "image_id": 2, "question_type": "what", "answer_type": "other", "answers": [{"answer": "cat", "answer_id": 1}, {"answer": "two"}]}]}"#,
    ]);
    let target = target(root, "vqa", "v2_mscoco_val2014_annotations.json", seeds, JSON, |path| {
        let questions = path.with_file_name("v2_OpenEnded_mscoco_val2014_questions.json");
        Question::read(&questions, Split::Test).map(drop).map_err(text)
    });
    let questions =
        r#"{"data_subtype": "val2014", "questions": [{"question_id": 1, "image_id": 2, "question": "What?"}]}"#;
    let path = target.path.with_file_name("v2_OpenEnded_mscoco_val2014_questions.json");
    std::fs::write(path, questions).unwrap();
    target
}

/// RefCOCO's boxes, for the refs of the fixtures.
const BOXES: &str = r#"{"images": [{"id": 12, "file_name": "12.jpg", "width": 640, "height": 480},
    {"id": 581857, "file_name": "5.jpg", "width": 427, "height": 640}], "annotations": [
    {"id": 5000000000, "bbox": [1.5, 2, 10, 20.25]}, {"id": 489209, "bbox": [0, 0, 5, 5]}, {"id": 1719310, "bbox": [3, 4, 50, 60]}]}"#;

pub fn refcoco(root: &Path) -> Target {
    let seeds = fixtures("lxmert-core/tests/fixtures/pickle", &[".p", ".json"]);
    let target = target(root, "refcoco", "refs.p", seeds, PICKLE, |path| {
        any([Split::Train, Split::Test].map(|split| Expression::read(path, split).map(drop).map_err(text)))
    });
    std::fs::write(target.path.with_file_name(INSTANCES), BOXES).unwrap();
    target
}

pub fn instances(root: &Path) -> Target {
    let target = target(root, "instances", INSTANCES, texts(&[BOXES]), JSON, |path| {
        Expression::read(&path.with_file_name("refs.json"), Split::Test).map(drop).map_err(text)
    });
    let refs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lxmert-core/tests/fixtures/pickle/refs.json");
    std::fs::copy(refs, target.path.with_file_name("refs.json")).unwrap();
    target
}

pub fn entities(root: &Path) -> Target {
    let seeds = texts(&[
        "<annotation><filename>7.jpg</filename><size><width>200</width><height>100</height></size><object><name>1</name><name>4</name>\
         <bndbox><xmin>1</xmin><ymin>1</ymin><xmax>100</xmax><ymax>50</ymax></bndbox></object>\
         <object><name>5</name><scene>1</scene><nobndbox>0</nobndbox></object></annotation>",
        "<!DOCTYPE a [<!ENTITY b \"12\"><!ENTITY c \"&b;&b;\">]><annotation><size><width>&c;</width><height>&b;</height></size></annotation>",
        "[/EN#1/people Two men] in [/EN#4/clothing/other red hats] wait .\n[/EN#0/notvisual It] is late .\n",
    ]);
    let words = &[
        "<",
        ">",
        "/",
        "&b;",
        "&#x0;",
        "<![CDATA[",
        "]]>",
        "<!--",
        "xmlns:a=\"b\"",
        "[/EN#",
        "]",
        " ",
        "<object>",
        "<name>",
    ];
    target(root, "entities", "7.xml", seeds, words, |path| {
        let read = read_text(path).map_err(text)?;
        let sentences = read.lines().try_for_each(|line| {
            let found = entities::sentence(line)?;
            found.phrases.iter().for_each(|phrase| assert!(!found.text[phrase.range.clone()].is_empty()));
            Ok::<_, String>(())
        });
        any([entities::annotation(&read).map(drop), sentences.and(Err("only sentences".into()))])
    })
}

pub fn images(root: &Path) -> Target {
    let picture =
        DynamicImage::from(image::RgbaImage::from_fn(9, 7, |x, y| image::Rgba([x as u8 * 25, y as u8 * 30, 9, 200])));
    let mut seeds = fixtures("lxmert-extract/tests/fixtures/images", &[".jpg", ".png"]);
    for (format, alpha) in [
        (ImageFormat::Png, true),
        (ImageFormat::Png, false),
        (ImageFormat::Jpeg, false),
        (ImageFormat::Bmp, false),
        (ImageFormat::Gif, true),
        (ImageFormat::WebP, true),
    ] {
        let mut bytes = Cursor::new(Vec::new());
        let picture = if alpha { picture.clone() } else { DynamicImage::from(picture.to_rgb8()) };
        picture.write_to(&mut bytes, format).unwrap();
        seeds.push(bytes.into_inner());
    }
    let words =
        &["IHDR", "IDAT", "PLTE", "tRNS", "IEND", "Exif\0\0", "VP8 ", "VP8L", "VP8X", "ALPH", "ANIM", "GIF89a", "BM"];
    let target = target(root, "images", "picture", seeds, words, |path| decode_file(path).map(drop).map_err(text));
    // A hundred million pixels are allowed: as decoded, and while they are converted.
    Target { repair: Some(png_sums), spare: 1200 * MB, ..target }
}

/// Sets the checksum of each chunk of a PNG.
fn png_sums(bytes: &mut [u8]) {
    let mut at = 8;
    while bytes.starts_with(b"\x89PNG") && bytes.len() >= at + 12 {
        let length = u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize;
        let end = at + 8 + length;
        if end + 4 > bytes.len() {
            return;
        }
        let sum = crc32(&bytes[at + 4..end]);
        bytes[end..end + 4].copy_from_slice(&sum.to_be_bytes());
        at = end + 4;
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg()))
    })
}

pub fn splits(root: &Path) -> Target {
    let seeds = texts(&[
        r#"{"train": ["1.jpg", "2.jpg"], "val": ["3.jpg"], "test": []}"#,
        r#"{"images": [{"filename": "1.jpg", "split": "restval"}, {"filename": "3.jpg", "split": "test"}]}"#,
    ]);
    let images: Vec<String> = (1..4).map(|i| format!("{i}.jpg")).collect();
    target(root, "splits", "splits.json", seeds, JSON, move |path| Splits::read(path, &images).map(drop).map_err(text))
}

pub fn answers(root: &Path) -> Target {
    let seeds = texts(&[
        r#"["yes", "no", "2"]"#,
        r#"{"yes": 0, "no": 1}"#,
        r#"[{"ans": "yes", "dsets": ["vqa"]}, {"ans": "no"}]"#,
    ]);
    target(root, "answers", "answers.json", seeds, JSON, |path| AnswerTable::read(path).map(drop).map_err(text))
}
