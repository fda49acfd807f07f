//! The readers, each with its seeds.

use crate::harness::Target;
use base64::Engine;
use candle_core::{Device, Tensor};
use image::{DynamicImage, ImageFormat};
use lxmert_core::answers::AnswerTable;
use lxmert_core::captions::{Captions, read_hard_negatives};
use lxmert_core::checkpoint::{Hub, HubOptions, read_pickle, read_tensors, save_safetensors, verify_safetensors};
use lxmert_core::config::LxmertConfig;
use lxmert_core::features::{Attributes, FeatureStore, Regions, StoreDtype, StoreInfo, StoreWriter};
use lxmert_core::files::read_text;
use lxmert_core::model::MatchingModel;
use lxmert_core::pretrained::Pretrained;
use lxmert_core::procedural;
use lxmert_core::text::WordPiece;
use lxmert_extract::detector::{DetectorConfig, expected_tensors};
use lxmert_extract::images::decode_file;
use lxmert_extract::import::{pt::import_pt, tsv::TsvOptions, tsv::import_tsv};
use lxmert_extract::inputs::find_images;
use lxmert_extract::regions::Dinov2Config;
use lxmert_train::data::image_examples::ImageExample;
use lxmert_train::data::pretraining::{PretrainingSentences, ReadOptions};
use lxmert_train::data::questions::Question;
use lxmert_train::data::refcoco::{Expression, INSTANCES};
use lxmert_train::data::snli_ve::Hypothesis;
use lxmert_train::data::splits::{Split, Splits};
use lxmert_train::data::statements::Statement;
use lxmert_train::job::RunSettings;
use lxmert_train::log::read_records;
use lxmert_train::resume;
use lxmert_train::run_folder::{Report, RunFolder};
use lxmert_viz::explain::entities;
use std::collections::BTreeMap;
use std::io::{Cursor, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Every target, made in a folder.
pub const TARGETS: &[fn(&Path) -> Target] = &[
    pickle,
    torch,
    student,
    safetensors,
    index,
    shard,
    names,
    journal,
    tsv,
    captions,
    list,
    questions,
    vqa,
    refcoco,
    instances,
    entities,
    images,
    config,
    checkpoint,
    vocabulary,
    tokenizer,
    splits,
    answers,
    run,
    hub,
];

const MB: usize = 1 << 20;

fn text<E: ToString>(error: E) -> String {
    error.to_string()
}

/// Whether any of these accepts the file; otherwise all their messages.
fn any<const N: usize>(results: [Result<(), String>; N]) -> Result<(), String> {
    match results.iter().any(Result::is_ok) {
        true => Ok(()),
        false => Err(results.into_iter().filter_map(Result::err).collect::<Vec<_>>().join("; ")),
    }
}

/// Every file of a folder of fixtures whose name ends so.
fn fixtures(folder: &str, endings: &[&str]) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| endings.iter().any(|ending| path.to_string_lossy().ends_with(ending)));
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn texts(seeds: &[&str]) -> Vec<Vec<u8>> {
    seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect()
}

/// A new folder below `root`.
fn folder(root: &Path, name: &str) -> PathBuf {
    let folder = root.join(name);
    std::fs::create_dir(&folder).unwrap();
    folder
}

/// A target whose file is `file` in a new folder.
fn target(
    root: &Path,
    name: &'static str,
    file: &str,
    seeds: Vec<Vec<u8>>,
    words: &'static [&'static str],
    read: impl Fn(&Path) -> Result<(), String> + 'static,
) -> Target {
    let path = folder(root, name).join(file);
    let at = path.clone();
    Target { name, path, seeds, words, repair: None, spare: 4 * MB, per_byte: 200, read: Box::new(move || read(&at)) }
}

const JSON: &[&str] =
    &["{", "}", "[", "]", "\"", ":", ",", "null", "\\u0000", "\\ud800", "\u{feff}", "\n", "é", "1e400"];

fn pickle(root: &Path) -> Target {
    let seeds = [
        fixtures("lxmert-core/tests/fixtures/pickle", &[".p"]),
        fixtures("lxmert-core/tests/fixtures/numpy", &[".pkl"]),
        fixtures("lxmert-core/tests/fixtures/pth", &[".pkl"]),
    ];
    target(root, "pickle", "refs.p", seeds.concat(), PICKLE, |path| {
        any([read_pickle(path).map(drop).map_err(text), read_tensors(path).map(drop).map_err(text)])
    })
}

const PICKLE: &[&str] = &[
    "\u{1}",
    "(",
    ".",
    "N",
    "]",
    "}",
    "a",
    "e",
    "s",
    "u",
    "t",
    "l",
    "d",
    "h\u{1}",
    "q\u{1}",
    "R",
    "b",
    "Q",
    "X\u{4}\0\0\0name",
    "ccollections\nOrderedDict\n",
    "ctorch\nFloatStorage\n",
    "ctorch._utils\n_rebuild_tensor_v2\n",
    "cnumpy\ndtype\n",
    "cnumpy.core.multiarray\n_reconstruct\n",
    "c_codecs\nencode\n",
    "L9999999999999999999L\n",
    "storage",
    "cpu",
    "f4",
];

fn torch(root: &Path) -> Target {
    let seeds = [
        fixtures("lxmert-core/tests/fixtures/pth", &[".pth"]),
        fixtures("lxmert-extract/tests/fixtures/student_pt", &[".pt"]),
    ];
    target(root, "torch", "weights.pth", seeds.concat(), PICKLE, |path| read_tensors(path).map(drop).map_err(text))
}

fn student(root: &Path) -> Target {
    let seeds = fixtures("lxmert-extract/tests/fixtures/student_pt", &[".pt"]);
    target(root, "student", "1.pt", seeds, PICKLE, |path| {
        let (files, output) = (path.parent().unwrap(), path.with_extension("store"));
        let imported = import_pt(files, &output, StoreDtype::F32, false).map_err(text);
        let read = imported.map(drop).and_then(|()| read_store(&output));
        remove(&output);
        read
    })
}

fn remove(folder: &Path) {
    if folder.exists() {
        std::fs::remove_dir_all(folder).unwrap();
    }
}

fn safetensors(root: &Path) -> Target {
    let place = tempfile::NamedTempFile::new().unwrap();
    let full = |shape: &[usize], value: f32| Tensor::full(value, shape, &Device::Cpu).unwrap();
    let tensors = vec![("model.a".to_string(), full(&[2, 3], 0.5)), ("b".to_string(), full(&[], 1.0))];
    let metadata = BTreeMap::from([("position".to_string(), "{\"step\": 3}".to_string())]);
    save_safetensors(place.path(), &tensors, &metadata).unwrap();
    let plain = std::fs::read(place.path()).unwrap();
    lxmert_core::checkpoint::save_verifiable_safetensors(place.path(), &tensors, &metadata).unwrap();
    let seeds = vec![plain, std::fs::read(place.path()).unwrap()];
    let words = &[
        "\"dtype\":\"F32\"",
        "F64",
        "BF16",
        "I64",
        "BOOL",
        "F8_E4M3",
        "\"shape\":[",
        "\"data_offsets\":[0,",
        "__metadata__",
    ];
    target(root, "safetensors", "model.safetensors", seeds, words, |path| {
        let _ = verify_safetensors(path);
        let _ = resume::position(path);
        read_tensors(path).map(drop).map_err(text)
    })
}

/// A store of three images, with attributes.
fn store(folder: &Path) -> StoreInfo {
    let info = StoreInfo {
        detector: "test".into(),
        settings: [("select".to_string(), "detections".to_string())].into(),
        regions: 3,
        feature_dim: 4,
        dtype: StoreDtype::F16,
        label_names: vec!["cat".into(), "dog".into()],
        attribute_names: vec!["red".into()],
    };
    let mut writer = StoreWriter::open(folder, info.clone()).unwrap();
    for (n, name) in [(1, "1.jpg"), (2, "2.jpg"), (3, "3.jpg")] {
        let attributes = Some(Attributes { labels: vec![0; n], scores: vec![0.5; n] });
        let regions = Regions {
            image_width: 64,
            image_height: 48,
            feature_dim: 4,
            features: vec![0.25; 4 * n],
            boxes: vec![[0.0, 0.0, 0.5, 1.0]; n],
            labels: vec![1; n],
            scores: vec![0.5; n],
            attributes,
        };
        writer.push(name, &regions).unwrap();
    }
    writer.finish().unwrap();
    info
}

/// Reads all of a store.
fn read_store(folder: &Path) -> Result<(), String> {
    let store = FeatureStore::open(folder).map_err(text)?;
    assert!(store.names().filter(|name| store.index_of(name).is_some()).count() <= store.len());
    let _ = store.index_of("2.jpg");
    let all: Vec<usize> = (0..store.len()).collect();
    for &image in &all {
        let regions = store.regions(image).map_err(text)?;
        (0..regions.num_regions()).for_each(|region| drop(store.info().region_name(&regions, region)));
    }
    let (mut features, mut boxes, mut mask, mut labels, mut scores) = (vec![], vec![], vec![], vec![], vec![]);
    store.read_batch(&all, &mut features, &mut boxes, &mut mask).map_err(text)?;
    store.read_labels(&all, &mut labels, &mut scores).map_err(text)?;
    store.read_attributes(&all, &mut labels, &mut scores).map_err(text)?;
    assert!([features, boxes, mask, scores].iter().flatten().all(|number| number.is_finite()));
    Ok(())
}

/// A target for one file of a store.
fn of_store(
    root: &Path,
    name: &'static str,
    file: &str,
    words: &'static [&'static str],
    read: impl Fn(&Path) -> Result<(), String> + 'static,
) -> Target {
    let target = target(root, name, file, Vec::new(), words, move |path| read(path.parent().unwrap()));
    store(target.path.parent().unwrap());
    Target { seeds: vec![std::fs::read(&target.path).unwrap()], ..target }
}

fn index(root: &Path) -> Target {
    let words = &[
        "\"regions\": 1048576",
        "\"feature_dim\": 1048576",
        "\"images\": 18446744073709551615",
        "../",
        "\"f32\"",
        "bf16",
    ];
    of_store(root, "index", "index.json", words, read_store)
}

fn shard(root: &Path) -> Target {
    let words = &[
        "\"dtype\":\"F16\"",
        "\"shape\":[",
        "\"data_offsets\":[",
        "features",
        "num_regions",
        "names",
        "\n",
        "U32",
        "U8",
    ];
    of_store(root, "shard", "shard-00000.safetensors", words, read_store)
}

fn names(root: &Path) -> Target {
    let words = &[
        "\"dtype\":\"U8\"",
        "\"shape\":[",
        "\"data_offsets\":[",
        "names",
        "order",
        "ends",
        "shard_bytes",
        "\n",
        "U32",
        "U64",
    ];
    of_store(root, "names", "names.safetensors", words, read_store)
}

fn journal(root: &Path) -> Target {
    let target = target(root, "journal", "pending.journal", Vec::new(), &[], |_| Ok(()));
    let folder = target.path.parent().unwrap().to_path_buf();
    let info = store(&folder);
    // A writer that did not finish.
    let mut writer = StoreWriter::open(&folder, info.clone()).unwrap();
    let regions = FeatureStore::open(&folder).unwrap().regions(2).unwrap();
    ["4.jpg", "5.jpg"].iter().for_each(|name| writer.push(name, &regions).unwrap());
    drop(writer);
    let seeds = vec![std::fs::read(&target.path).unwrap()];
    let open = move || StoreWriter::open(&folder, info.clone()).map(drop).map_err(text);
    Target { seeds, read: Box::new(open), ..target }
}

/// A row of bottom-up attention's TSV, in LXMERT's form or Anderson's.
fn row(name: &str, n: usize, lxmerts: bool, wrap: fn(String) -> String) -> String {
    let encode = |bytes: Vec<u8>| wrap(base64::engine::general_purpose::STANDARD.encode(bytes));
    let floats = |count: usize| encode((0..count).flat_map(|i| (i as f32).to_le_bytes()).collect());
    let ids = || encode((0..n).flat_map(|i| (i as i64).to_le_bytes()).collect());
    let boxes = floats(4 * n);
    let features = floats(3 * n);
    match lxmerts {
        true => {
            let (ids, scores) = (ids(), floats(n));
            format!("{name}\t200\t100\t{ids}\t{scores}\t{ids}\t{scores}\t{n}\t{boxes}\t{features}\n")
        }
        false => format!("{name}\t100\t200\t{n}\t{boxes}\t{features}\n"),
    }
}

fn tsv(root: &Path) -> Target {
    let plain = |text: String| text;
    let bytes = |text: String| format!("b'{text}'");
    let seeds = [
        row("1", 1, true, plain) + &row("2", 2, true, plain),
        "image_id\timage_w\timage_h\tnum_boxes\tboxes\tfeatures\n".to_string() + &row("1", 2, false, plain),
        row("1", 1, true, bytes),
    ];
    let seeds = seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect();
    let words = &["\t", "\n", "\r\n", "b'", "'", "=", "AAAA", "AADAfw==", "////", "\u{feff}", "img_id\timg_h\timg_w\t"];
    target(root, "tsv", "boxes.tsv", seeds, words, |path| {
        let options = TsvOptions::new(StoreDtype::F32, None, None).map_err(text)?;
        let output = path.with_extension("store");
        let imported = import_tsv(path, &output, &options, false).map_err(text);
        let read = imported.map(drop).and_then(|()| read_store(&output));
        remove(&output);
        read
    })
}

fn captions(root: &Path) -> Target {
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

fn list(root: &Path) -> Target {
    let seeds = texts(&["1.jpg\nsub/2.png\n", "/elsewhere/3.jpeg\r\n\u{feff}4.webp\n"]);
    let words = &["\n", "/", "..", "\\", "\0", ".jpg", ".tif", "\u{feff}", "é", "e\u{301}"];
    target(root, "list", "list.txt", seeds, words, |path| find_images(path, None).map(drop).map_err(text))
}

fn questions(root: &Path) -> Target {
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
fn vqa(root: &Path) -> Target {
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

fn refcoco(root: &Path) -> Target {
    let seeds = fixtures("lxmert-core/tests/fixtures/pickle", &[".p", ".json"]);
    let target = target(root, "refcoco", "refs.p", seeds, PICKLE, |path| {
        any([Split::Train, Split::Test].map(|split| Expression::read(path, split).map(drop).map_err(text)))
    });
    std::fs::write(target.path.with_file_name(INSTANCES), BOXES).unwrap();
    target
}

fn instances(root: &Path) -> Target {
    let target = target(root, "instances", INSTANCES, texts(&[BOXES]), JSON, |path| {
        Expression::read(&path.with_file_name("refs.json"), Split::Test).map(drop).map_err(text)
    });
    let refs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lxmert-core/tests/fixtures/pickle/refs.json");
    std::fs::copy(refs, target.path.with_file_name("refs.json")).unwrap();
    target
}

fn entities(root: &Path) -> Target {
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

fn images(root: &Path) -> Target {
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

/// A small LXMERT.
fn small() -> LxmertConfig {
    LxmertConfig {
        vocab_size: ENTRIES.len(),
        hidden_size: 8,
        num_attention_heads: 2,
        intermediate_size: 8,
        max_position_embeddings: 10,
        l_layers: 1,
        r_layers: 1,
        x_layers: 1,
        visual_feat_dim: 4,
        num_object_labels: 0,
        num_attr_labels: 0,
        num_qa_labels: 0,
        ..LxmertConfig::default()
    }
}

const ENTRIES: [&str; 8] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "##s"];

const KEYS: &[&str] = &[
    "{",
    "}",
    "\"",
    ":",
    ",",
    "\"l_layers\": 1",
    "\"hidden_size\": 1048576",
    "\"vocab_size\": 1048576",
    "\"num_attention_heads\": 1",
    "\"model_type\": \"bert\"",
    "\"num_hidden_layers\": 3",
    "\"hidden_act\": \"relu\"",
    "\"id2label\": {\"0\": \"a\"}",
    "gelu_new",
    "\"visual_feat_dim\": 0",
    "\"regions\": 18446744073709551615",
    "\"max_length\": 3",
    "\"do_lower_case\": false",
];

fn config(root: &Path) -> Target {
    let lxmert = small().to_json("LxmertForPreTraining", &["yes".to_string()]).into_bytes();
    let detectors = fixtures("lxmert-extract/tests/fixtures/dinov2", &["config.json"]);
    let tiny = r#"{"transform": {"min_size": 64, "max_size": 96}, "backbone": {"block": "basic", "stem_width": 4, "blocks": [1, 1, 1, 1], "stage_widths": [4, 4, 4, 4], "batch_norm_eps": 1e-5}, "fpn": {"channels": 4}, "rpn": {"pre_nms_top_n": 50}, "roi_heads": {"representation_size": 8}, "label_names": ["background", "cat"], "attributes": [{"name": "colour", "classes": ["red", "blue"]}]}"#;
    let seeds = [vec![lxmert], detectors, texts(&[tiny])].concat();
    let target = target(root, "config", "config.json", seeds, KEYS, |path| {
        let network = |config: &LxmertConfig| MatchingModel::expected(config).map(drop).map_err(text);
        let detector = |config: &DetectorConfig| expected_tensors(config).map(drop).map_err(text);
        any([
            LxmertConfig::from_file(path).map_err(text).and_then(|config| network(&config)),
            DetectorConfig::from_json_file(path).map_err(text).and_then(|config| detector(&config)),
            Dinov2Config::from_json_file(path).map(drop).map_err(text),
        ])
    });
    Target { spare: 64 * MB, ..target }
}

/// A whole checkpoint, of which one of the small files changes.
fn checkpoint(root: &Path) -> Target {
    let config = small().to_json("LxmertForPreTraining", &[]);
    let seeds = texts(&[
        &config,
        r#"{"max_length": 8, "regions": 3, "detector": "test", "select": "grid:2"}"#,
        r#"{"tokenizer_class": "LxmertTokenizer", "do_lower_case": true}"#,
    ]);
    let target = target(root, "checkpoint", "any.json", seeds, KEYS, |_| Ok(()));
    let folder = target.path.parent().unwrap().to_path_buf();
    let shapes = MatchingModel::expected(&small()).unwrap();
    let weights =
        shapes.iter().map(|(name, shape)| (name.clone(), procedural::tensor(name, shape, -0.4, 0.4, 0).unwrap()));
    save_safetensors(folder.join("model.safetensors"), &weights.collect::<Vec<_>>(), &BTreeMap::new()).unwrap();
    std::fs::write(folder.join("vocab.txt"), ENTRIES.join("\n")).unwrap();
    let any_file = target.path.clone();
    let read = move || {
        let mut results = Vec::new();
        for name in ["config.json", "preprocessor_config.json", "tokenizer_config.json"] {
            std::fs::write(folder.join("config.json"), &config).unwrap();
            std::fs::copy(&any_file, folder.join(name)).unwrap();
            let opened = Pretrained::open(&folder).map_err(text);
            results.push(opened.and_then(|checkpoint| checkpoint.matching(&Device::Cpu).map(drop).map_err(text)));
            if name != "config.json" {
                std::fs::remove_file(folder.join(name)).unwrap();
            }
        }
        let results: [_; 3] = results.try_into().map_err(|_| String::new())?;
        any(results)
    };
    Target { spare: 16 * MB, read: Box::new(read), ..target }
}

fn vocabulary(root: &Path) -> Target {
    let seeds = texts(&[&ENTRIES.join("\n"), &ENTRIES.join("\r\n"), &format!("\u{feff}{}\n", ENTRIES.join("\n"))]);
    let words = &["[PAD]", "[UNK]", "##", "\n", "\r", "\0", "é", "e\u{301}", "\u{feff}", " "];
    let target = target(root, "vocabulary", "vocab.txt", seeds, words, |path| {
        let words = WordPiece::from_vocab(path).map_err(text)?;
        let encoded = words.encode("A dog's dogs — 犬 🐕\u{301} …", 8).map_err(text)?;
        assert!(encoded.ids.len() <= 8 && encoded.ids.iter().all(|id| (*id as usize) < words.vocabulary().len()));
        words.tokenizer_json().map(drop).map_err(text)
    });
    Target { per_byte: 1000, ..target }
}

fn tokenizer(root: &Path) -> Target {
    let place = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(place.path(), ENTRIES.join("\n")).unwrap();
    let seeds = texts(&[&WordPiece::from_vocab(place.path()).unwrap().tokenizer_json().unwrap()]);
    let words = &[
        "\"model\": {",
        "\"vocab\": {",
        "\"type\": \"BPE\"",
        "\"type\": \"Unigram\"",
        "\"[PAD]\": 0",
        "\"lowercase\": true",
        "{",
        "}",
    ];
    let target = target(root, "tokenizer", "tokenizer.json", seeds, words, |path| {
        let words = WordPiece::from_tokenizer_json(path).map_err(text)?;
        words.encode("A dog's dogs", 8).map(drop).map_err(text)
    });
    Target { per_byte: 1000, ..target }
}

fn splits(root: &Path) -> Target {
    let seeds = texts(&[
        r#"{"train": ["1.jpg", "2.jpg"], "val": ["3.jpg"], "test": []}"#,
        r#"{"images": [{"filename": "1.jpg", "split": "restval"}, {"filename": "3.jpg", "split": "test"}]}"#,
    ]);
    let images: Vec<String> = (1..4).map(|i| format!("{i}.jpg")).collect();
    target(root, "splits", "splits.json", seeds, JSON, move |path| Splits::read(path, &images).map(drop).map_err(text))
}

fn answers(root: &Path) -> Target {
    let seeds = texts(&[
        r#"["yes", "no", "2"]"#,
        r#"{"yes": 0, "no": 1}"#,
        r#"[{"ans": "yes", "dsets": ["vqa"]}, {"ans": "no"}]"#,
    ]);
    target(root, "answers", "answers.json", seeds, JSON, |path| AnswerTable::read(path).map(drop).map_err(text))
}

/// What a run writes, and reads again.
fn run(root: &Path) -> Target {
    let seeds = texts(&[
        "{\"kind\":\"step\",\"step\":20,\"epoch\":0.5,\"loss\":0.7,\"accuracy\":0.5,\"gradient_norm\":1.0,\"learning_rate\":0.001,\"examples_per_second\":10.0}\n",
        r#"{"data":"x","task":"matching","steps":3,"epochs":1,"parameters":5,"training_seconds":1.0,"epoch":1,"test":{"random":{"accuracy":0.5,"loss":null}}}"#,
        r#"{"recipe":{"task":"matching"},"data":{"captions":{"name":"x","captions":"x.csv","features":"f"}},"files":{}}"#,
    ]);
    target(root, "run", "run.json", seeds, JSON, |path| {
        any([
            read_records(path).map(drop).map_err(text),
            Report::read(path).map(drop).map_err(text),
            RunSettings::read(&RunFolder::new(path.parent().unwrap())).map(drop).map_err(text),
        ])
    })
}

/// What a hub answers.
fn hub(root: &Path) -> Target {
    let good = "HTTP/1.1 200 OK\r\nX-Repo-Commit: 0123456789abcdef0123456789abcdef01234567\r\n\
                ETag: \"fedcba9876543210fedcba9876543210fedcba98\"\r\nContent-Length: 5\r\nAccept-Ranges: bytes\r\n\r\nhello";
    let large = "HTTP/1.1 302 Found\r\nX-Repo-Commit: 0123456789abcdef\r\nX-Linked-ETag: \"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824\"\r\n\
                 X-Linked-Size: 5\r\nLocation: /storage\r\nContent-Length: 0\r\n\r\n";
    let missing = "HTTP/1.1 404 Not Found\r\nX-Error-Code: EntryNotFound\r\nContent-Length: 0\r\n\r\n";
    let chunked = "HTTP/1.1 200 OK\r\nX-Repo-Commit: 01\r\nETag: W/\"02\"\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let words = &[
        "\r\n",
        ": ",
        "ETag: ",
        "X-Linked-Size: 18446744073709551615\r\n",
        "X-Repo-Commit: ../x\r\n",
        "HTTP/1.1 206 P\r\n",
        "Content-Range: bytes 0-4/5\r\n",
        "Content-Length: 4\r\n",
        "Connection: close\r\n",
        "Content-Encoding: gzip\r\n",
        "\0",
        "..",
        "/",
    ];
    let target = target(root, "hub", "answer", texts(&[good, large, missing, chunked]), words, |_| Ok(()));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let answer = Arc::new(Mutex::new(Vec::new()));
    let given = Arc::clone(&answer);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let (mut request, mut block) = (Vec::new(), [0; 2048]);
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                match stream.read(&mut block) {
                    Ok(n) if n > 0 => request.extend_from_slice(&block[..n]),
                    _ => break,
                }
            }
            let _ = stream.write_all(&given.lock().unwrap());
        }
    });
    let (path, cache) = (target.path.clone(), target.path.with_extension("cache"));
    let read = move || {
        let bytes = std::fs::read(&path).unwrap();
        // A redirect must not lead to another host.
        if bytes.windows(2).any(|pair| pair == b"//") {
            return Err("left out".into());
        }
        *answer.lock().unwrap() = bytes;
        let options = HubOptions {
            endpoint: Some(endpoint.clone()),
            attempts: 1,
            retry_delay: Duration::ZERO,
            patience: Duration::from_secs(2),
            ..HubOptions::new(&cache)
        };
        let fetched = Hub::new(options).and_then(|hub| hub.fetch(&"owner/repo/file".parse().unwrap(), None, false));
        if let Ok(path) = &fetched {
            assert!(path.starts_with(&cache), "{}", path.display());
        }
        remove(&cache);
        fetched.map(drop).map_err(text)
    };
    Target { spare: 16 * MB, read: Box::new(read), ..target }
}
