//! Annotation files that Python's `pickle` wrote (`fixtures/make_pickles.py`), read as data.

use lxmert_core::Error;
use lxmert_core::checkpoint::read_pickle;
use std::path::PathBuf;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn read_bytes(bytes: &[u8]) -> lxmert_core::Result<serde_json::Value> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    read_pickle(file.path())
}

#[test]
fn pickles_of_python_2_and_3_equal_the_json() {
    let text = std::fs::read_to_string(fixture("pickle/refs.json")).unwrap();
    let want: serde_json::Value = serde_json::from_str(&text).unwrap();
    for name in ["refs_protocol0.p", "refs_protocol2.p", "refs_protocol4.p"] {
        assert_eq!(read_pickle(fixture("pickle").join(name)).unwrap(), want, "{name}");
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
    let error = read_pickle(fixture("pth/evil.pkl")).unwrap_err();
    assert!(matches!(&error, Error::PickleClass { class, .. } if class == "posix.system"), "{error}");
}

#[test]
fn rejects_truncated_pickles_sets_tensors_and_exploding_lists() {
    let whole = std::fs::read(fixture("pickle/refs_protocol2.p")).unwrap();
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
