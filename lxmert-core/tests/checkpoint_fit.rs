//! Names, fit and saving: old keys are renamed, an error lists everything that does not fit, and a file is written
//! either whole, with the same bytes each time, or not at all.

use candle_core::{DType, Device, Tensor};
use lxmert_core::Error;
use lxmert_core::checkpoint::fit::glob;
use lxmert_core::checkpoint::{FitOptions, fit, names, read_tensors, save_safetensors};
use lxmert_core::files::atomic_write;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

type Tensors = BTreeMap<String, Tensor>;

fn tensor(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}

fn filled(value: f32) -> Tensor {
    Tensor::full(value, (2, 3), &Device::Cpu).unwrap()
}

fn tensors(entries: &[(&str, &[usize])]) -> Tensors {
    entries.iter().map(|(name, shape)| ((*name).to_string(), tensor(shape))).collect()
}

fn expected(entries: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>)> {
    entries.iter().map(|(name, shape)| ((*name).to_string(), shape.to_vec())).collect()
}

fn options(allow_missing: &[&str], ignore: &[&str]) -> FitOptions {
    let owned = |patterns: &[&str]| patterns.iter().map(|p| (*p).to_string()).collect();
    FitOptions { allow_missing: owned(allow_missing), ignore: owned(ignore) }
}

#[test]
fn returns_the_tensors_that_fit() {
    let entries: &[(&str, &[usize])] = &[("a.weight", &[2, 3]), ("a.bias", &[2])];
    let fitting = fit("f", &expected(entries), tensors(entries), &FitOptions::default()).unwrap();
    assert_eq!(fitting.len(), 2);
    assert_eq!((fitting["a.weight"].dims(), fitting["a.bias"].dims()), (&[2, 3][..], &[2][..]));
}

#[test]
fn one_error_lists_everything_that_does_not_fit() {
    let network = expected(&[("a.weight", &[2, 3]), ("b.weight", &[4]), ("c.weight", &[5]), ("d.weight", &[1])]);
    let file = tensors(&[("a.weight", &[3, 2]), ("b.weight", &[4, 1]), ("old.weight", &[5]), ("d.weight", &[1])]);
    let error = fit("weights.pth", &network, file, &FitOptions::default()).unwrap_err();
    let message = error.to_string();
    let Error::Checkpoint { path, missing, unexpected, misshapen } = error else { panic!("{error:?}") };
    assert_eq!(path, Path::new("weights.pth"));
    assert_eq!((missing, unexpected), (vec!["c.weight".to_string()], vec!["old.weight".to_string()]));
    let shapes: Vec<_> = misshapen.iter().map(|m| (m.name.as_str(), &m.found[..], &m.expected[..])).collect();
    assert_eq!(shapes, [("a.weight", &[3, 2][..], &[2, 3][..]), ("b.weight", &[4, 1], &[4])]);
    for part in ["weights.pth", "1 missing (c.weight)", "1 unexpected (old.weight)", "a.weight is [3, 2], needs [2, 3]"]
    {
        assert!(message.contains(part), "no '{part}' in: {message}");
    }
}

#[test]
fn message_shortens_a_long_list() {
    let names: Vec<(String, Vec<usize>)> = (0..20).map(|i| (format!("layer.{i}"), vec![1])).collect();
    let error = fit("f", &names, Tensors::new(), &FitOptions::default()).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("20 missing") && message.contains("and 12 more"), "{message}");
    assert!(message.contains("layer.7") && !message.contains("layer.8"), "{message}");
    assert!(matches!(error, Error::Checkpoint { missing, .. } if missing.len() == 20));
}

#[test]
fn allows_only_the_named_missing_and_unexpected_tensors() {
    let network = expected(&[("a", &[1]), ("answer_head.0.weight", &[2])]);
    let file = || tensors(&[("a", &[1]), ("bn.num_batches_tracked", &[])]);
    let both = options(&["answer_head.*"], &["*.num_batches_tracked"]);
    assert_eq!(fit("f", &network, file(), &both).unwrap().into_keys().collect::<Vec<_>>(), ["a"]);
    for (options, missing, unexpected) in
        [(options(&["answer_head.*"], &["*.num"]), 0, 1), (options(&["answer"], &["*.num_batches_tracked"]), 1, 0)]
    {
        let error = fit("f", &network, file(), &options).unwrap_err();
        assert!(
            matches!(&error, Error::Checkpoint { missing: m, unexpected: u, .. } if (m.len(), u.len()) == (missing, unexpected)),
            "{error}"
        );
    }
    // An allowed name must still have its shape if it is there.
    let wrong = tensors(&[("a", &[1]), ("answer_head.0.weight", &[3])]);
    let error = fit("f", &network, wrong, &both).unwrap_err();
    assert!(matches!(&error, Error::Checkpoint { misshapen, .. } if misshapen.len() == 1), "{error}");
}

#[test]
fn patterns_match_whole_names() {
    for (pattern, name, covered) in [
        ("*", "", true),
        ("a.*", "a.b.c", true),
        ("a.*", "a", false),
        ("*.bias", "x.bias", true),
        ("*.bias", "x.bias2", false),
        ("*a*b", "xaxbab", true),
        ("*a*b", "xaxba", false),
        ("layer.?.w", "layer.1.w", true),
        ("layer.?.w", "layer.10.w", false),
        ("a.b", "axb", false),
        ("", "a", false),
    ] {
        assert_eq!(glob(pattern, name), covered, "{pattern} on {name}");
    }
}

#[test]
fn renames_lxmerts_keys_to_the_hubs() {
    for (old, new) in [
        ("lxmert.encoder.layer.0.output.dense.weight", "lxmert.encoder.layer.0.output.dense.weight"),
        ("bert.encoder.layer.0.output.dense.weight", "lxmert.encoder.layer.0.output.dense.weight"),
        ("module.bert.encoder.x_layers.4.visn_inter.dense.bias", "lxmert.encoder.x_layers.4.visn_inter.dense.bias"),
        ("lxrt_encoder.model.bert.pooler.dense.weight", "lxmert.pooler.dense.weight"),
        ("lxrt_encoder.model.module.bert.pooler.dense.weight", "lxmert.pooler.dense.weight"),
        ("module.lxrt_encoder.model.bert.pooler.dense.weight", "lxmert.pooler.dense.weight"),
        ("logit_fc.3.weight", "answer_head.logit_fc.3.weight"),
        ("module.logit_fc.3.weight", "answer_head.logit_fc.3.weight"),
        ("answer_head.logit_fc.3.weight", "answer_head.logit_fc.3.weight"),
        ("bert.embeddings.LayerNorm.gamma", "lxmert.embeddings.LayerNorm.weight"),
        ("bert.embeddings.LayerNorm.beta", "lxmert.embeddings.LayerNorm.bias"),
        ("cls.predictions.transform.LayerNorm.gamma", "cls.predictions.transform.LayerNorm.weight"),
        ("cls.seq_relationship.bias", "cls.seq_relationship.bias"),
        ("obj_predict_head.decoder_dict.attr.weight", "obj_predict_head.decoder_dict.attr.weight"),
    ] {
        assert_eq!(names::lxmert_name(old), new, "{old}");
    }
    let renamed = names::lxmert("f", tensors(&[("module.bert.a.gamma", &[7]), ("logit_fc.0.bias", &[2])])).unwrap();
    assert_eq!(renamed["lxmert.a.weight"].dims(), [7]);
    assert_eq!(renamed["answer_head.logit_fc.0.bias"].dims(), [2]);
    assert_eq!(renamed.len(), 2);
}

#[test]
fn drops_a_decoder_that_equals_the_word_embeddings() {
    let words = "bert.embeddings.word_embeddings.weight";
    let decoder = "cls.predictions.decoder.weight";
    let with = |value| Tensors::from([(words.into(), filled(1.0)), (decoder.into(), filled(value))]);
    let kept = names::lxmert("f", with(1.0)).unwrap();
    assert_eq!(kept.into_keys().collect::<Vec<_>>(), ["lxmert.embeddings.word_embeddings.weight"]);
    let message = names::lxmert("w.pth", with(2.0)).unwrap_err().to_string();
    assert!(message.contains("w.pth") && message.contains(decoder), "{message}");
    let reshaped = Tensors::from([(words.into(), filled(1.0)), (decoder.into(), tensor(&[6]))]);
    assert!(matches!(names::lxmert("f", reshaped), Err(Error::Format { .. })));
    // Without the word embeddings it repeats nothing, so it stays.
    let alone = names::lxmert("f", Tensors::from([(decoder.into(), filled(1.0))])).unwrap();
    assert!(alone.contains_key(decoder));
}

#[test]
fn renames_the_detectors_old_keys() {
    for (old, new) in [
        ("backbone.fpn.inner_blocks.0.weight", "backbone.fpn.inner_blocks.0.0.weight"),
        ("backbone.fpn.layer_blocks.3.bias", "backbone.fpn.layer_blocks.3.0.bias"),
        ("backbone.fpn.layer_blocks.3.0.bias", "backbone.fpn.layer_blocks.3.0.bias"),
        ("rpn.head.conv.weight", "rpn.head.conv.0.0.weight"),
        ("rpn.head.conv.0.0.weight", "rpn.head.conv.0.0.weight"),
        ("rpn.head.cls_logits.weight", "rpn.head.cls_logits.weight"),
        ("module.backbone.body.conv1.weight", "backbone.body.conv1.weight"),
        ("scale", "scale"),
    ] {
        assert_eq!(names::detector_name(old), new, "{old}");
    }
}

#[test]
fn rejects_two_keys_that_get_one_name() {
    let check = |result: lxmert_core::Result<Tensors>, parts: [&str; 3]| {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Format { .. }), "{error:?}");
        let message = error.to_string();
        assert!(parts.iter().all(|part| message.contains(&format!("'{part}'"))), "{message}");
    };
    let both = ["bert.a.gamma", "lxmert.a.weight"];
    check(names::lxmert("f", tensors(&both.map(|n| (n, &[1][..])))), [both[0], both[1], "lxmert.a.weight"]);
    let both = ["rpn.head.conv.weight", "rpn.head.conv.0.0.weight"];
    check(names::detector("f", tensors(&both.map(|n| (n, &[1][..])))), [both[0], both[1], "rpn.head.conv.0.0.weight"]);
}

fn mixed() -> Vec<(String, Tensor)> {
    let values = |dtype| Tensor::arange(0f32, 5., &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
    [("z", DType::F64), ("b", DType::U8), ("a", DType::F32), ("c", DType::F32), ("h", DType::F16), ("i", DType::I64)]
        .map(|(name, dtype)| (name.to_string(), values(dtype)))
        .to_vec()
}

#[test]
fn same_tensors_give_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("1.safetensors"), folder.path().join("2.safetensors"));
    let metadata: BTreeMap<String, String> =
        [("format", "pt"), ("a", "b")].map(|(k, v)| (k.into(), v.into())).into_iter().collect();
    save_safetensors(&first, &mixed(), &metadata).unwrap();
    save_safetensors(&second, &mixed().into_iter().rev().collect::<Vec<_>>(), &metadata).unwrap();
    let bytes = std::fs::read(&first).unwrap();
    assert_eq!(bytes, std::fs::read(&second).unwrap());

    // The format's own reader accepts it, and every tensor is aligned.
    let (header_length, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header_length % 8, 0);
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
    assert_eq!(header.offset_keys(), ["i", "z", "a", "c", "h", "b"]);
    let back = read_tensors(&first).unwrap();
    for (name, tensor) in mixed() {
        assert_eq!(back[&name].dtype(), tensor.dtype(), "{name}");
        let values = |t: &Tensor| t.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(values(&back[&name]), values(&tensor), "{name}");
    }
}

#[test]
fn saves_the_values_of_a_view() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("view.safetensors");
    let base = Tensor::arange(0f32, 6., &Device::Cpu).unwrap().reshape((2, 3)).unwrap();
    save_safetensors(&path, &[("t".into(), base.t().unwrap())], &BTreeMap::new()).unwrap();
    assert_eq!(read_tensors(&path).unwrap()["t"].to_vec2::<f32>().unwrap(), [[0., 3.], [1., 4.], [2., 5.]]);
}

#[test]
fn rejects_a_repeated_name_before_writing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let twice = [("a".to_string(), filled(1.0)), ("a".to_string(), filled(2.0))];
    let error = save_safetensors(&path, &twice, &BTreeMap::new()).unwrap_err();
    assert!(matches!(&error, Error::Argument(message) if message.contains("'a'")), "{error:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn failed_write_leaves_the_old_file_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let fail = || {
        atomic_write(&path, |file| {
            file.write_all(&vec![1; 3 << 20])?; // more than the buffer holds
            Err::<(), _>(std::io::Error::other("the disk is full"))
        })
    };
    let names = || {
        let entries = std::fs::read_dir(folder.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    let message = fail().unwrap_err().to_string();
    assert!(message.contains("the disk is full") && message.contains("file"), "{message}");
    assert!(names().is_empty(), "{:?}", names());

    assert_eq!(atomic_write(&path, |file| file.write_all(b"old").map(|()| 3)).unwrap(), 3);
    assert!(fail().is_err());
    assert_eq!((std::fs::read(&path).unwrap(), names()), (b"old".to_vec(), vec!["file".to_string()]));
    atomic_write(&path, |file| file.write_all(b"new")).unwrap();
    assert_eq!((std::fs::read(&path).unwrap(), names()), (b"new".to_vec(), vec!["file".to_string()]));
}

#[test]
fn panic_while_writing_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    atomic_write(&path, |file| file.write_all(b"old")).unwrap();
    let panicked = std::panic::catch_unwind(|| {
        atomic_write(&path, |file| -> std::io::Result<()> {
            file.write_all(b"half")?;
            panic!("in the middle")
        })
    });
    assert!(panicked.is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn error_names_the_missing_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("absent/file");
    let error = atomic_write(&path, |_| Ok(())).unwrap_err();
    assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("absent"), "{error:?}");
}
