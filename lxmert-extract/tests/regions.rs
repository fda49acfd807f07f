//! The choice of regions: against the student project's own output, and what the default promises.

mod common;

use anyhow::Result;
use candle_core::{Device, Tensor};
use common::{box_error, boxes, photo, reference_detector, relative_error, tensors};
use lxmert_extract::regions::{Selection, select_from};

#[test]
fn the_student_rule_gives_the_student_project_s_regions() -> Result<()> {
    let detector = reference_detector(0)?;
    for stem in ["chelsea", "coffee"] {
        let reference = tensors(&format!("student/{stem}.safetensors"))?;
        let analysis = detector.analyse(&photo(&format!("{stem}.png"))?)?;
        let regions = select_from(&detector, &analysis, 36, Selection::Student)?;
        let expected = boxes(&reference["visual_pos"])?;
        assert_eq!(regions.boxes_normalised.len(), expected.len());
        let (height, width) = regions.image_size;
        let px = |b: &[f32; 4]| [b[0] * width as f32, b[1] * height as f32, b[2] * width as f32, b[3] * height as f32];
        let errors = regions.boxes_normalised.iter().zip(&expected).map(|(a, b)| box_error(&px(a), &px(b)));
        let box_px = errors.fold(0.0, f32::max);
        let features = Tensor::from_vec(regions.features, (36, regions.feature_dim), &Device::Cpu)?;
        let feature_error = relative_error(&features, &reference["visual_feats"])?;
        println!("{stem}: boxes {box_px:.1e} px, features {feature_error:.1e}");
        assert!(box_px < 0.01, "{stem}: boxes {box_px} px");
        assert!(feature_error < 1e-3, "{stem}: features {feature_error}");
    }
    Ok(())
}
