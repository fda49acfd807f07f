//! torch's files: values that the real torch wrote (`fixtures/make_pth.py`) are read back exactly; files that could run
//! code, are damaged or hold something unrepresentable are refused. Likewise annotation files that Python's `pickle` wrote
//! (`fixtures/make_pickles.py`).

use candle_core::{DType, Tensor};
use lxmert_core::Error;
use lxmert_core::checkpoint::{read_pickle, read_tensors};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::PathBuf;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pth").join(name)
}

fn f32s(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
}

fn check_state(tensors: &BTreeMap<String, Tensor>) {
    let base: Vec<f32> = (0..24).map(|i| i as f32).collect();
    let get = |name: &str| &tensors[name];
    assert_eq!(tensors.len(), 20);
    assert_eq!((get("f32").dims(), f32s(get("f32"))), (&[4, 6][..], base));
    let transposed: Vec<f32> = (0..6).flat_map(|c| (0..4).map(move |r| (6 * r + c) as f32)).collect();
    assert_eq!((get("transposed").dims(), f32s(get("transposed"))), (&[6, 4][..], transposed));
    assert_eq!(f32s(get("columns")), [6., 8., 10., 12., 14., 16., 18., 20., 22.]);
    assert_eq!(f32s(get("channels_last")), (0..48).map(|i| i as f32).collect::<Vec<_>>());
    assert_eq!(f32s(get("tied_a")), f32s(get("tied_b")));
    assert_eq!(get("tied_a").id(), get("tied_b").id(), "tied weights are one tensor");
    assert_eq!(f32s(get("expanded")), [1.5, 1.5, 1.5, 2.5, 2.5, 2.5]);
    assert_eq!((get("scalar").rank(), get("scalar").to_scalar::<f32>().unwrap()), (0, 2.25));
    assert_eq!(get("empty").dims(), [0, 3]);
    assert_eq!(get("f64").to_vec1::<f64>().unwrap(), [1e300, -2.5]);
    assert_eq!((get("f16").dtype(), f32s(get("f16"))), (DType::F16, vec![0.5, -65504.0]));
    assert_eq!(get("bf16").dtype(), DType::BF16);
    assert_eq!(f32s(get("bf16")), [0.5, half::bf16::from_f32(-3e38).to_f32()]);
    assert_eq!(get("i64").to_vec1::<i64>().unwrap(), [-1, 1 << 40]);
    assert_eq!(get("i32").to_vec1::<i32>().unwrap(), [-1, 1 << 30]);
    assert_eq!(get("i16").to_vec1::<i16>().unwrap(), [-1, 300]);
    assert_eq!(get("i8").to_vec1::<i16>().unwrap(), [-128, 127]);
    assert_eq!(get("u8").to_vec1::<u8>().unwrap(), [0, 255]);
    assert_eq!(get("bool").to_vec1::<u8>().unwrap(), [1, 0, 1]);
    assert_eq!(get("bn.num_batches_tracked").to_scalar::<i64>().unwrap(), 7);
    assert_eq!(f32s(get("parameter")), [3.0]);
}

#[test]
fn zip_legacy_and_newer_pickle_protocols_hold_the_same_tensors() {
    for name in ["zip.pth", "legacy.pth", "zip_protocol4.pth"] {
        check_state(&read_tensors(fixture(name)).unwrap());
    }
}

#[test]
fn finds_the_state_dict_beside_epoch_and_optimizer() {
    for name in ["nested.pth", "nested_twice.pth"] {
        let tensors = read_tensors(fixture(name)).unwrap();
        assert_eq!(tensors.keys().collect::<Vec<_>>(), ["bias", "weight"], "{name}");
        assert_eq!(f32s(&tensors["weight"]), [0., 1., 2., 3., 4., 5.]);
        assert_eq!(f32s(&tensors["bias"]), [0.5, -0.5]);
    }
}

#[test]
fn rejects_a_pickle_that_would_run_a_command_without_running_it() {
    for name in ["evil_zip.pth", "evil_legacy.pth", "evil.pkl"] {
        match read_tensors(fixture(name)).unwrap_err() {
            Error::PickleClass { class, offset, .. } => {
                assert_eq!(class, "posix.system", "{name}");
                assert!(offset > 0);
            }
            other => panic!("{name}: {other}"),
        }
    }
    assert!(!std::path::Path::new("/tmp/lxmert-pickle-ran").exists());
}

#[test]
fn rejects_a_pickled_module_and_names_its_class() {
    let error = read_tensors(fixture("whole_module.pth")).unwrap_err().to_string();
    assert!(error.contains("torch.nn.modules.linear.Linear") && error.contains("state dict"), "{error}");
}

#[test]
fn error_says_why_a_value_is_not_a_tensor() {
    for (name, says) in [
        ("no_tensors.pth", "the keys epoch, note"),
        ("complex.pth", "complex64"),
        ("expanded_to_terabytes.pth", "several times the file's size"),
    ] {
        let error = read_tensors(fixture(name)).unwrap_err().to_string();
        assert!(error.contains(says), "{name}: {error}");
    }
}

#[test]
fn reads_numpy_arrays_of_every_pickle_protocol() {
    for name in ["protocol2.pkl", "protocol4.pkl", "protocol5.pkl", "python2.pkl"] {
        let tensors = read_tensors(fixture("../numpy").join(name)).unwrap();
        let get = |name: &str| &tensors[name];
        assert_eq!(tensors.len(), 7, "{name}: {:?}", tensors.keys());
        // Bytes from 0 to 255, to cover every way of writing them.
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!((get("u1").dims(), get("u1").flatten_all().unwrap().to_vec1::<u8>().unwrap()), (&[16, 16][..], all));
        assert_eq!((get("f4").dims(), f32s(get("f4"))), (&[2, 3][..], vec![0.5, -1.0, 2.0, 3.25, -4.0, 1e30]));
        assert_eq!((get("fortran").dims(), f32s(get("fortran"))), (&[2, 3][..], vec![0., 1., 2., 3., 4., 5.]));
        assert_eq!((get("f2").dtype(), f32s(get("f2"))), (DType::F16, vec![0.5, -65504.0]));
        assert_eq!(get("f8").to_vec1::<f64>().unwrap(), [1e300]);
        assert_eq!((get("i8").rank(), get("i8").to_scalar::<i64>().unwrap()), (0, -(1 << 40)));
        assert_eq!(get("empty").dims(), [0, 3]);
    }
}

#[test]
fn error_says_why_a_numpy_array_cannot_be_read() {
    for (name, says) in [
        ("big_endian.pkl", "big-endian"),
        ("objects.pkl", "numbers"),
        ("function.pkl", "numpy.core.multiarray.fromstring"),
        ("cut.pkl", "cut"),
        ("short.pkl", "lies outside its storage"),
    ] {
        let error = read_tensors(fixture("../numpy").join(name)).unwrap_err().to_string();
        assert!(error.contains(says), "{name}: {error}");
    }
}

#[test]
fn error_names_the_kind_of_a_file_that_is_not_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pth");
    for (content, says) in [
        (&b""[..], "empty"),
        (b"<!DOCTYPE html><html>", "HTML page"),
        (b"\n <html><body>404", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git-lfs pointer"),
        (b"{\"error\": 1}", "JSON"),
        (b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "no data.pkl"),
        (b"PK\x03\x04 and then nothing", "unreadable zip archive"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"some text without a format", "unknown format of weights"),
        (b"\x28\0\0\0\0\0\0\0{\"a\":", "safetensors"),
    ] {
        std::fs::write(&path, content).unwrap();
        let error = read_tensors(&path).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("model.pth"), "{says}: {error}");
    }
    assert!(read_tensors(folder.path()).unwrap_err().to_string().contains("folder"));
}

#[test]
fn deep_nesting_and_doubling_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep.pth");
    let legacy_start = {
        let whole = std::fs::read(fixture("legacy.pth")).unwrap();
        // Magic, protocol and machine description: three pickles, each ending in a stop.
        let facts = whole.windows(10).position(|w| w == b"type_sizes").unwrap();
        let end = facts + whole[facts..].windows(2).position(|w| w == b"u.").unwrap() + 2;
        whole[..end].to_vec()
    };
    // A million nested lists.
    let mut deep = legacy_start.clone();
    deep.extend([0x80, 2]);
    deep.extend(std::iter::repeat_n(b']', 1_000_000));
    deep.extend(std::iter::repeat_n(b'a', 999_999));
    deep.extend(b".\x80\x02]q\0.");
    std::fs::write(&path, &deep).unwrap();
    assert!(read_tensors(&path).unwrap_err().to_string().contains("no named tensors"));
    // A list made into an OrderedDict again and again: a few bytes copy all of it.
    let mut doubling = legacy_start;
    doubling.extend(b"\x80\x02](");
    doubling.extend(b"NN\x86".repeat(10_000));
    doubling.extend(b"eq\x01ccollections\nOrderedDict\nq\x02");
    doubling.extend(b"h\x02h\x01\x85R".repeat(10_000));
    doubling.extend(b".");
    std::fs::write(&path, &doubling).unwrap();
    assert!(read_tensors(&path).unwrap_err().to_string().contains("copies more values"));
}

/// A file with some bytes changed and perhaps its end cut off.
fn damaged(name: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let whole = std::fs::read(fixture(name)).unwrap();
    let length = whole.len();
    (prop::collection::vec((0..length, any::<u8>()), 0..6), prop_oneof![Just(length), 0..length]).prop_map(
        move |(changes, keep)| {
            let mut bytes = whole.clone();
            for (at, value) in changes {
                bytes[at] = value;
            }
            bytes.truncate(keep);
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn a_damaged_file_never_panics(
        bytes in prop_oneof![damaged("zip.pth"), damaged("legacy.pth"), damaged("nested.pth"), damaged("zip_protocol4.pth")]
    ) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let _ = read_tensors(file.path());
    }
}

#[test]
fn a_legacy_file_truncated_at_any_byte_is_an_error() {
    let whole = std::fs::read(fixture("legacy.pth")).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    for length in (0..whole.len()).step_by(7) {
        std::fs::write(file.path(), &whole[..length]).unwrap();
        assert!(read_tensors(file.path()).is_err(), "cut to {length} bytes");
    }
}

fn read_bytes(bytes: &[u8]) -> lxmert_core::Result<serde_json::Value> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    read_pickle(file.path())
}

#[test]
fn pickles_of_python_2_and_3_equal_the_json() {
    let text = std::fs::read_to_string(fixture("../pickle/refs.json")).unwrap();
    let want: serde_json::Value = serde_json::from_str(&text).unwrap();
    for name in ["refs_protocol0.p", "refs_protocol2.p", "refs_protocol4.p"] {
        assert_eq!(read_pickle(fixture("../pickle").join(name)).unwrap(), want, "{name}");
    }
}

#[test]
fn floats_and_latin_1_bytes_are_read() {
    // pickle.dumps([1.5, None, True], 2), and protocol 0's float and U's bytes that are not UTF-8.
    assert_eq!(read_bytes(b"\x80\x02](G\x3f\xf8\0\0\0\0\0\0N\x88e.").unwrap(), serde_json::json!([1.5, null, true]));
    assert_eq!(read_bytes(b"(lF-2.5\naU\x04caf\xe9a.").unwrap(), serde_json::json!([-2.5, "café"]));
}

#[test]
fn rejects_a_pickle_that_calls_a_function_by_name() {
    let error = read_pickle(fixture("evil.pkl")).unwrap_err();
    assert!(matches!(&error, Error::PickleClass { class, .. } if class == "posix.system"), "{error}");
}

#[test]
fn rejects_truncated_pickles_sets_tensors_and_exploding_lists() {
    let whole = std::fs::read(fixture("../pickle/refs_protocol2.p")).unwrap();
    assert!(matches!(read_bytes(&whole[..whole.len() / 2]).unwrap_err(), Error::Pickle { .. }));
    assert!(read_bytes(b"\x80\x04\x8f.").unwrap_err().to_string().contains("other than lists, dicts, text"));
    // Forty lists, each of which contains the previous one twice.
    let mut laughs = b"]q\0".to_vec();
    for level in 1..40 {
        laughs.extend([b'(', b'h', level - 1, b'h', level - 1, b'l', b'q', level]);
    }
    laughs.push(b'.');
    assert!(read_bytes(&laughs).unwrap_err().to_string().contains("repeat one another too often"));
    // A list that contains itself.
    assert!(read_bytes(b"]q\0h\0a.").unwrap_err().to_string().contains("nested more than"));
}
