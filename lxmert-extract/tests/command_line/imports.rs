//! Features of other programs: bottom-up attention's TSV in its forms, and the student project's files.

use super::*;

/// The first of the synonyms on a line of the vocabularies that ship.
const NAME_7: &str = "ceiling fan";
const NAME_1599: &str = "buoy";
const NAME_0: &str = "gray";
const NAME_399: &str = "leaning";

/// A row of LXMERT's form with `n` boxes.
pub fn tsv_line(name: &str, seed: u8, n: usize) -> String {
    let encode = |bytes: Vec<u8>| base64::engine::general_purpose::STANDARD.encode(bytes);
    let floats = |values: Vec<f32>| encode(values.iter().flat_map(|v| v.to_le_bytes()).collect());
    let ids = |values: Vec<i64>| encode(values.iter().flat_map(|v| v.to_le_bytes()).collect());
    let boxes = floats([0.0, 0.0, 50.0, 100.0, 25.0, 10.0, 100.0, 200.0].into_iter().cycle().take(4 * n).collect());
    let features = floats((0..3 * n).map(|i| f32::from(seed) + i as f32).collect());
    let ids = |first, last| ids((0..n).map(|i| if i == 0 { first } else { last }).collect());
    let (objects, attributes, scores) = (ids(7, 1599), ids(0, 399), floats(vec![0.9; n]));
    format!("{name}\t200\t100\t{objects}\t{scores}\t{attributes}\t{scores}\t{n}\t{boxes}\t{features}\n")
}

#[test]
fn imports_bottom_up_features_with_any_number_of_boxes() {
    let place = Place::new(0);
    let import = || {
        let mut command = program();
        command.args(["import", "bottom-up"]).arg(place.at("a.tsv")).arg("--output").arg(place.at("store"));
        command
    };
    std::fs::write(place.at("a.tsv"), tsv_line("one", 1, 3) + &tsv_line("two", 2, 2) + &tsv_line("five", 3, 5))
        .unwrap();
    import().assert().success().stdout(contains("3 of 3 images imported"));
    let store = FeatureStore::open(place.at("store")).unwrap();
    let counts: Vec<usize> = (0..3).map(|i| store.num_regions(i).unwrap()).collect();
    assert_eq!((counts, store.info().regions), (vec![3, 2, 5], 5));
    let regions = store.regions(1).unwrap();
    assert_eq!((regions.image_width, regions.image_height), (100, 200));
    assert_eq!(regions.boxes, [[0.0, 0.0, 0.5, 0.5], [0.25, 0.05, 1.0, 1.0]]);
    assert_eq!((regions.features[0], regions.labels[1], regions.scores[0]), (2.0, 1599, 0.9));
    assert_eq!(regions.attributes.unwrap().labels, [0, 399]);
    // Without files of names, Visual Genome's: the vocabularies' lines 8 and 1600, and 1 and 400.
    let inspect = program().arg("inspect").arg(place.at("store")).args(["--image", "two"]).assert().success();
    inspect.stdout(contains(format!(" {NAME_0} {NAME_7} ")).and(contains(format!(" {NAME_399} {NAME_1599} "))));
    // A second file, of images with fewer boxes, is added to the same store.
    std::fs::write(place.at("a.tsv"), tsv_line("six", 6, 1)).unwrap();
    import().assert().success().stdout(contains("4 images"));

    let names = |count: usize| "gray,grey\n".repeat(count - 1) + "tall";
    std::fs::write(place.at("objects"), names(1600)).unwrap();
    std::fs::write(place.at("attributes"), names(400)).unwrap();
    let mut named = import();
    named.arg("--objects").arg(place.at("objects")).arg("--attributes").arg(place.at("attributes"));
    named.assert().code(1).stderr(contains("label names"));
    std::fs::remove_dir_all(place.at("store")).unwrap();
    std::fs::write(place.at("a.tsv"), tsv_line("one", 1, 3)).unwrap();
    named.assert().success();
    let inspect = program().arg("inspect").arg(place.at("store")).args(["--image", "one"]).assert();
    inspect.success().stdout(contains(" gray gray ")).stdout(contains(" tall tall "));
}

#[test]
fn bad_rows_of_a_tsv_are_listed_and_the_others_imported() {
    let place = Place::new(0);
    let import = |file: &str, store: &str| {
        let mut command = program();
        command.args(["import", "bottom-up"]).arg(place.at(file)).arg("--output").arg(place.at(store)).assert()
    };
    let good = tsv_line("good", 1, 2);
    let cut = &tsv_line("cut", 5, 2)[..60];
    let damaged = tsv_line("damaged", 3, 2).replace("\t2\t", "\t4000000000\t");
    let text = [&good, "two\t1\t2\n", &damaged, &good, &tsv_line("last", 4, 3), cut].concat();
    std::fs::write(place.at("a.tsv"), &text).unwrap();
    let failed = [
        "two,\"row 2: 3 columns",
        "damaged,\"row 3: boxes has 32 bytes",
        "good,another record has an image of this name",
        "cut,\"row 6: ",
    ];
    for extracted in ["2 of 6", "0 of 6"] {
        import("a.tsv", "store").code(1).stdout(contains(extracted)).stdout(contains("4 failed"));
        let failures = std::fs::read_to_string(place.at("store/failures.csv")).unwrap();
        for start in failed {
            assert!(failures.contains(start) || failures.contains(&start.replace('"', "")), "{start}: {failures}");
        }
    }
    let store = FeatureStore::open(place.at("store")).unwrap();
    assert_eq!((store.names().collect::<Vec<_>>(), store.info().regions), (vec!["good", "last"], 3));
    let numbers = |value: f32| [value.to_le_bytes(); 6].concat();
    let encode = |value| base64::engine::general_purpose::STANDARD.encode(numbers(value));
    let line = tsv_line("nan", 1, 2);
    let (rest, _) = line.rsplit_once('\t').unwrap();
    std::fs::write(place.at("nan.tsv"), format!("{good}{rest}\t{}\n", encode(f32::NAN))).unwrap();
    import("nan.tsv", "nan").code(1).stdout(contains("1 of 2"));
    let failures = std::fs::read_to_string(place.at("nan/failures.csv")).unwrap();
    assert!(failures.contains("feature value NaN"), "{failures}");
    std::fs::write(place.at("none.tsv"), "a\tb\n").unwrap();
    import("none.tsv", "none").code(1).stderr(contains("none of its 1 rows can be read; the first: row 1: 2 columns"));
    assert!(!place.at("none").exists());
}

#[test]
fn bottom_up_features_are_imported_in_parts() {
    let place = Place::new(0);
    let line = |i: u8| tsv_line(&format!("image {i}"), i, usize::from(i) + 1);
    // The last row gives an image that another part has.
    std::fs::write(place.at("a.tsv"), (0..5).map(line).collect::<String>() + &line(1)).unwrap();
    let import = |output: &str, part: &[&str]| {
        let mut command = program();
        command.args(["import", "bottom-up"]).arg(place.at("a.tsv")).arg("--output").arg(place.at(output)).args(part);
        command.assert()
    };
    import("single", &[]).code(1).stdout(contains("5 of 6 images imported"));
    import("store", &["--part", "1/2"]).success().stdout(contains("3 of 3 images imported"));
    import("store", &["--part", "2/2"]).code(1).stdout(contains("2 of 3 images imported"));
    program().arg("merge").arg(place.at("store")).assert().code(1).stdout(contains("merged 2 parts; 5 images"));
    assert_same_images(&place.at("store"), &place.at("single"));
}

#[test]
fn reads_andersons_columns_and_python_3s_bytes() {
    let place = Place::new(0);
    let line = tsv_line("x", 2, 2);
    let columns: Vec<&str> = line.trim_end().split('\t').collect();
    let six = ["image_id\timage_w\timage_h\tnum_boxes\tboxes\tfeatures".to_string(), {
        [columns[0], columns[2], columns[1], columns[7], columns[8], columns[9]].join("\t")
    }];
    let is_array = |i: usize| !matches!(i, 0..=2 | 7);
    let bytes = |(i, text): (usize, &&str)| if is_array(i) { format!("b'{text}'") } else { text.to_string() };
    let bytes: Vec<String> = columns.iter().enumerate().map(bytes).collect();
    for (file, text) in [("six.tsv", six.join("\r\n")), ("bytes.tsv", bytes.join("\t"))] {
        std::fs::write(place.at(file), text).unwrap();
        let store = place.at(file).with_extension("store");
        program().args(["import", "bottom-up"]).arg(place.at(file)).arg("--output").arg(&store).assert().success();
        let store = FeatureStore::open(store).unwrap();
        let regions = store.regions(0).unwrap();
        assert_eq!((regions.image_width, regions.image_height, regions.boxes[1][2]), (100, 200, 1.0), "{file}");
        assert_eq!(regions.features, [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        if file == "six.tsv" {
            assert_eq!(
                (store.info().label_names[0].as_str(), regions.labels, regions.attributes),
                ("region", vec![0, 0], None)
            );
        }
    }
}

#[test]
fn imports_the_student_projects_files_without_padding() {
    let place = Place::new(0);
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/student_pt");
    for (name, bytes) in files(&fixtures) {
        std::fs::write(place.at("photos").join(name), bytes).unwrap();
    }
    let import = || {
        let mut command = program();
        command.args(["import", "student"]).arg(place.at("photos")).arg("--output").arg(place.at("store"));
        command
    };
    import().assert().success().stdout(contains("3 of 3 images imported"));
    let store = FeatureStore::open(place.at("store")).unwrap();
    assert_eq!(store.names().collect::<Vec<_>>(), ["1000092795.jpg", "10002456.jpg", "1000268201.jpg"]);
    assert_eq!((store.info().regions, store.info().feature_dim), (4, 6));
    let regions = |i| store.regions(i).unwrap();
    let boxes = [[0.0, 0.0, 0.5, 1.0], [0.25, 0.125, 0.75, 0.5], [0.0, 0.5, 1.0, 1.0], [0.5, 0.5, 1.0, 1.0]];
    for (i, real) in [4, 2, 3].into_iter().enumerate() {
        assert_eq!(regions(i).boxes, boxes[..real]);
    }
    let counted = |from: u32, n: u32| (from..from + n).map(|v| v as f32).collect::<Vec<_>>();
    assert_eq!(regions(0).features, counted(0, 24));
    assert_eq!(regions(1).features, counted(100, 12));
    assert_eq!(regions(2).features, counted(200, 18));
    let inspect = program().arg("inspect").arg(place.at("store")).args(["--image", "10002456.jpg"]).assert();
    inspect.success().stdout(contains("size unknown, 2 regions")).stdout(contains("0.2500  0.1250  0.7500  0.5000"));

    // A truncated file is listed and skipped, and imported once it is complete; existing images stay.
    let whole = std::fs::read(place.at("photos/1000092795.pt")).unwrap();
    std::fs::write(place.at("photos/late.pt"), &whole[..whole.len() / 2]).unwrap();
    std::fs::write(place.at("photos/1000092795.jpg.pt"), &whole).unwrap();
    import().assert().code(1).stdout(contains("0 of 5 images imported")).stdout(contains("3 already there, 2 failed"));
    let failures = std::fs::read_to_string(place.at("store/failures.csv")).unwrap();
    assert!(failures.contains("late.jpg,") && failures.contains("1000092795.jpg,another record"), "{failures}");
    std::fs::write(place.at("photos/late.pt"), &whole).unwrap();
    std::fs::remove_file(place.at("photos/1000092795.jpg.pt")).unwrap();
    import().assert().success().stdout(contains("1 of 4 images imported"));
    assert!(!place.at("store/failures.csv").exists());

    std::fs::create_dir(place.at("empty")).unwrap();
    let nothing = program().args(["import", "student"]).arg(place.at("empty")).args(["--output", "x"]).assert();
    nothing.code(1).stderr(contains("no .pt files here"));
}
