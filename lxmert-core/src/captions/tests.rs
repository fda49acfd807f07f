use super::*;

fn read(text: &str) -> Result<Captions> {
    Captions::of_text(Path::new("captions"), text)
}

/// Image, number and text of every caption.
fn rows(text: &str) -> Vec<(String, u32, String)> {
    let read = read(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let row = |c: Caption| (read.images[c.image].clone(), c.number, c.text);
    read.captions.clone().into_iter().map(row).collect()
}

fn row(image: &str, number: u32, text: &str) -> (String, u32, String) {
    (image.into(), number, text.into())
}

fn error(text: &str) -> String {
    read(text).unwrap_err().to_string()
}

#[test]
fn every_format_gives_the_same_captions() {
    let wanted =
        [row("a.jpg", 0, "A dog , red ."), row("a.jpg", 1, "Two \"dogs\" ."), row("b.jpg", 0, "A cat .")].to_vec();
    for text in [
        // Flickr30k's own, with and without its header, and with a missing bar.
        "image_name| comment_number| comment\na.jpg| 0| A dog , red .\na.jpg| 1| Two \"dogs\" .\nb.jpg| 0| A cat .\n",
        "a.jpg| 0| A dog , red .\r\na.jpg| 1| Two \"dogs\" .\r\n\r\nb.jpg| 0| A cat .",
        "image_name| comment_number| comment\na.jpg| 0   A dog , red .\na.jpg| 1| Two \"dogs\" .\nb.jpg| 0| A cat .\n",
        // Kaggle's other Flickr30k.
        "image_name,comment_number,comment\na.jpg,0,\"A dog , red .\"\na.jpg,1,\"Two \"\"dogs\"\" .\"\nb.jpg,0,A cat .\n",
        // Saved again by pandas, with its index, and numbers with a point.
        ",image_name, comment_number, comment\n0,a.jpg, 0.0,\" A dog , red .\"\n1,a.jpg, 1.0,\"Two \"\"dogs\"\" .\"\n2,b.jpg, 0.0, A cat .\n",
        // The captions.csv of CLIP's tutorial; pandas read the broken row without its comment.
        "image,caption_number,caption,id\na.jpg, 0,\" A dog , red .\",0\na.jpg, 1,\" Two \"\"dogs\"\" .\",0\nb.jpg, 0, A cat .,1\n",
        "image,caption_number,caption\na.jpg,\" 0   A dog , red .\",\na.jpg, 1,\" Two \"\"dogs\"\" .\"\nb.jpg, 0, A cat .\n",
        // Flickr8k's, with quotes and without.
        "image,caption\na.jpg,\"A dog , red .\"\na.jpg,\"Two \"\"dogs\"\" .\"\nb.jpg,A cat .\n",
        "image,caption\na.jpg,A dog , red .\na.jpg,Two \"dogs\" .\nb.jpg,A cat .\n",
        "a.jpg,A dog , red .\na.jpg,Two \"dogs\" .\nb.jpg,A cat .\n",
        // Other column orders, names, delimiters and line endings.
        "caption\tsplit_id\tfile_name\nA dog , red .\t7\ta.jpg\n\"Two \"\"dogs\"\" .\"\t8\ta.jpg\nA cat .\t9\tb.jpg\n",
        "id;Image;Sentence\r\n1;a.jpg;A dog , red .\r\n2;a.jpg;Two \"dogs\" .\r\n3;b.jpg;A cat .\r\n",
        "filename,caption_1,caption_2\na.jpg,\"A dog , red .\",\"Two \"\"dogs\"\" .\"\nb.jpg,A cat .,\n",
        "raw,sentids,filename\n\"[\"\"A dog , red .\"\", \"\"Two \\\"\"dogs\\\"\" .\"\"]\",\"[0, 1]\",a.jpg\n\"[\"\"A cat .\"\"]\",[2],b.jpg\n",
        // Flickr's token file.
        "a.jpg#0\tA dog , red .\na.jpg#1\tTwo \"dogs\" .\nb.jpg#0\tA cat .\n",
        // JSON.
        r#"[{"image": "a.jpg", "caption": ["A dog , red .", "Two \"dogs\" ."]}, {"image": "b.jpg", "caption": "A cat ."}]"#,
        "{\"file_name\": \"a.jpg\", \"text\": \"A dog , red .\"}\n{\"file_name\": \"a.jpg\", \"text\": \"Two \\\"dogs\\\" .\"}\n\n{\"file_name\": \"b.jpg\", \"text\": \"A cat .\"}\n",
        r#"{"a.jpg": ["A dog , red .", "Two \"dogs\" ."], "b.jpg": "A cat ."}"#,
        r#"{"dataset": "x", "images": [{"filename": "a.jpg", "sentences": [{"raw": "A dog , red .", "tokens": []}, {"raw": "Two \"dogs\" ."}]},
                                       {"filename": "b.jpg", "sentences": [{"raw": "A cat ."}]}]}"#,
        r#"{"info": {}, "images": [{"id": "9", "file_name": "b.jpg"}, {"id": 7, "file_name": "a.jpg", "height": 480}],
            "annotations": [{"image_id": 7, "id": 1, "caption": "A dog , red .\n"}, {"image_id": 7, "caption": "Two \"dogs\" ."},
                            {"image_id": 9, "caption": "A cat ."}]}"#,
    ] {
        assert_eq!(rows(text), wanted, "{text}");
    }
}

#[test]
fn flickr30ks_broken_row_is_repaired_with_a_note() {
    let c = read("image_name| comment_number| comment\n1.jpg| 3| A dog .\n1.jpg| 4   A dog runs .\n").unwrap();
    assert_eq!(c.captions[1], Caption { image: 0, number: 4, text: "A dog runs .".into(), row: 3 });
    assert_eq!(c.repairs.len(), 1);
    assert!(c.repairs[0].starts_with("row 3 lacks the '|'"), "{:?}", c.repairs);
}

#[test]
fn an_unpaired_quotation_mark_is_text_and_swallows_no_row() {
    let text = "image,caption\na.jpg,One .\nb.jpg,\"Look , a shape .\nb.jpg,\"Two , shapes .\"\nc.jpg,\"Last .";
    let c = read(text).unwrap();
    let texts: Vec<&str> = c.captions.iter().map(|c| c.text.as_str()).collect();
    assert_eq!(texts, ["One .", "\"Look , a shape .", "Two , shapes .", "\"Last ."]);
    assert_eq!(c.captions.iter().map(|c| c.row).collect::<Vec<_>>(), [2, 3, 4, 5]);
    assert!(c.repairs.len() == 2 && c.repairs[0].starts_with("row 3:"), "{:?}", c.repairs);
    // Also where the images are numbers, and the index comes first.
    let c = read(",image_id,caption\n0,12,One .\n1,13,\"Look\n2,14,\"Two\" .\n").unwrap();
    assert_eq!((c.images.len(), c.captions[1].text.as_str()), (3, "\"Look"));
    // Quotation marks within a caption, and around single words.
    assert_eq!(rows("image,caption\na.jpg,\"Stop\" sign near \"go\"\n")[0].2, "\"Stop\" sign near \"go\"");
}

#[test]
fn a_line_break_between_quotation_marks_is_part_of_the_caption() {
    let text =
        "image,caption\n0.jpg,\"A red shape\nbeside a blue one .\"\r\n1.jpg,\"Two\r\n\r\nshapes .\"\n2.jpg,Three .\n";
    let c = read(text).unwrap();
    let texts: Vec<&str> = c.captions.iter().map(|c| c.text.as_str()).collect();
    assert_eq!(texts, ["A red shape beside a blue one .", "Two shapes .", "Three ."]);
    assert_eq!(c.captions.iter().map(|c| c.row).collect::<Vec<_>>(), [2, 4, 7]);
    assert!(c.repairs.is_empty());
}

#[test]
fn names_that_differ_by_unicode_form_are_one_image() {
    assert_eq!(read("caf\u{e9}.jpg,One .\ncafe\u{301}.jpg,Two .\n").unwrap().images, ["caf\u{e9}.jpg"]);
}

#[test]
fn bad_rows_are_named() {
    for (text, parts) in [
        ("image_name| comment_number| comment\na.jpg| 0| x\na.jpg| one| y\n", ["row 3", "'one'"]),
        ("image_name| comment_number| comment\na.jpg| 0|   \n", ["row 2", "the caption is empty"]),
        ("image,caption\n,x\n", ["row 2", "the image name is empty"]),
        ("image,caption\na.jpg\n", ["row 2", "1 columns where 2 are expected"]),
        ("image,caption_1,caption_2\na.jpg,x,y,z\n", ["row 2", "quotation marks"]),
        ("[{\"image\": \"a.jpg\", \"caption\": \"x\"}, {\"image\": \"b.jpg\"}]", ["row 2", "expected"]),
        ("[{\"image\": \"a.jpg\", \"caption\": 7}]", ["row 1", "'caption' is not a sentence"]),
        ("{\"image\": \"a\", \"text\": \"x\"}\n{\"image\": \"b\", \"te", ["row 2", "JSON object per line"]),
        ("image,caption,split\na.jpg,x,dev\n", ["row 2", "'dev'"]),
    ] {
        let error = error(text);
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}

#[test]
fn other_files_are_refused_with_the_forms_named() {
    let unknown = error("hello world\n");
    assert!(unknown.contains("image_name| comment_number| comment") && unknown.contains("hello world"), "{unknown}");
    let header = error("id,number\n1,2\n");
    assert!(header.contains("'id,number'") && header.contains("file_name"), "{header}");
    assert!(error("").contains("empty"));
    assert!(error("image_name| comment_number| comment\n").contains("no caption"));
    for json in ["{\"a\": 1}", "[1, 2]", "{\"images\": [1]}", "{\"images\": [{\"id\": 1}], \"annotations\": []}"] {
        let error = error(json);
        assert!(error.contains("expected Karpathy's"), "{json}: {error}");
        assert!(!error.contains("expected a map") && !error.contains("missing field"), "{error}");
    }
    assert!(error("[{\"image\": \"a.jp").contains("truncated"), "{}", error("[{\"image\": \"a.jp"));
}

#[test]
fn lists_of_paths_are_not_captions() {
    for (text, are) in [
        ("a.jpg\nb.jpg\n", false),
        ("x/a b, c.png\n", false),
        ("image,caption\n", true),
        ("a.jpg#0\tx\n", true),
        ("{}", true),
    ] {
        assert_eq!(Captions::are_in(text), are, "{text}");
    }
}

#[test]
fn splits_are_read_and_restval_trains() {
    let c = read(
        r#"{"images":[{"filename":"a.jpg","split":"restval","sentences":[{"raw":"one"},{"raw":"two"}]},
                      {"filepath":"val2014","filename":"b.jpg","split":"test","sentences":[{"raw":"three"}]}]}"#,
    )
    .unwrap();
    assert_eq!(c.splits, Some(vec![Split::Train, Split::Test]));
    assert_eq!(c.images, ["a.jpg", "val2014/b.jpg"]);
    let table = read("filename,raw,split\na.jpg,\"[\"\"x\"\"]\",val\nb.jpg,y,train\n").unwrap();
    assert_eq!(table.splits, Some(vec![Split::Val, Split::Train]));
    assert!(
        error("{\"images\":[{\"filename\":\"a\",\"split\":\"dev\",\"sentences\":[{\"raw\":\"x\"}]}]}")
            .contains("'dev'")
    );
    let both = error("image,caption,split\na.jpg,x,val\na.jpg,y,test\n");
    assert!(both.contains("row 3") && both.contains("both val and test"), "{both}");
}

#[test]
fn rejects_a_coco_annotation_of_an_unknown_image() {
    let error = error(r#"{"images": [], "annotations": [{"image_id": 7, "caption": "x"}]}"#);
    assert!(error.contains("annotations[0]: no image has id 7"), "{error}");
}

#[test]
fn hard_negatives_find_their_captions() {
    let c = read("a.jpg| 0| a red dog\na.jpg| 1| a dog\n").unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let negatives = |text: &str| {
        std::fs::write(file.path(), text).unwrap();
        read_hard_negatives(file.path(), &c)
    };
    let found = negatives("image_name|comment_number|comment\na.jpg|0|a blue dog\n").unwrap();
    assert_eq!(found, [Some("a blue dog".to_string()), None]);
    assert!(negatives("a.jpg| 7| a blue dog\n").unwrap_err().to_string().contains("row 1: captions has no caption 7"));
    assert!(negatives("a.jpg| 1| a dog\n").unwrap_err().to_string().contains("the same as the true one"));
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tables_that_a_csv_writer_quoted_read_back(
            texts in proptest::collection::vec("[a-c\",|\t;. ]{0,12}x[a\", .\n]{0,4}", 1..12),
            delimiter in proptest::sample::select(vec!['|', '\t', ',', ';']),
        ) {
            let mut table = format!("image{delimiter}caption\n");
            for (i, text) in texts.iter().enumerate() {
                table += &format!("{i}.jpg{delimiter}\"{}\"\n", text.replace('"', "\"\""));
            }
            let read = read(&table).unwrap();
            let found: Vec<&str> = read.captions.iter().map(|c| c.text.as_str()).collect();
            let wanted: Vec<String> = texts.iter().map(|text| one_line(text)).collect();
            prop_assert_eq!(found, wanted);
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "(image,caption|a.jpg|[\"|\t,;#\n\r{}\\[\\]0-9a-c.: ]){0,40}") {
            let _ = read(&text);
            let _ = Captions::are_in(&text);
        }
    }
}
