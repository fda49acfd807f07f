//! Does the photo entail the sentence? SNLI-VE (Xie et al. 2019).
//!
//! The answer head with three classes: contradiction, neutral, entailment. The loss is their cross entropy. (volta trains
//! three yes-or-no scores by binary cross entropy; exactly one class is right here, which cross entropy says.) Examples whose
//! annotators did not agree have no label: they are not learnt from and not counted.

use super::losses::cross_entropy;
use crate::Result;
use crate::data::snli_ve::{Hypothesis, LABELS};
use crate::measures::Measures;
use candle_core::Tensor;

/// The loss of each hypothesis, `[batch]`; 0 where there is no label. `logits`: `[batch, 3]`.
fn losses(logits: &Tensor, labels: &[Option<u32>]) -> Result<Tensor> {
    let classes: Vec<u32> = labels.iter().map(|label| label.unwrap_or(0)).collect();
    let weights: Vec<f32> = labels.iter().map(|label| if label.is_some() { 1.0 } else { 0.0 }).collect();
    Ok((cross_entropy(logits, &classes)? * Tensor::from_vec(weights, labels.len(), logits.device())?)?)
}

/// Accuracy over all hypotheses that have a label, and over those of each class.
fn measures<'a>(judged: impl IntoIterator<Item = (&'a Hypothesis, u32, f32)>) -> Measures {
    // Of each class: hypotheses, right ones, and the sum of losses.
    let mut sums = [[0f64; 3]; LABELS.len()];
    let mut all = 0.0;
    for (hypothesis, judgement, loss) in judged {
        all += 1.0;
        if let Some(label) = hypothesis.label {
            let right = if label == judgement { 1.0 } else { 0.0 };
            sums[label as usize].iter_mut().zip([1.0, right, f64::from(loss)]).for_each(|(sum, value)| *sum += value);
        }
    }
    let mut measures = Measures::default();
    measures.set("all", "hypotheses", all);
    let total = [0, 1, 2].map(|i| sums.iter().map(|class| class[i]).sum::<f64>());
    if total[0] > 0.0 {
        measures.extend("all", [("accuracy", total[1] / total[0]), ("loss", total[2] / total[0])]);
    }
    for (name, [count, right, loss]) in LABELS.into_iter().zip(sums) {
        if count > 0.0 {
            measures.extend(name, [("hypotheses", count), ("accuracy", right / count), ("loss", loss / count)]);
        }
    }
    measures
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn the_loss_is_cross_entropy_and_none_without_a_label() {
        let logits = Var::new(&[[1f32, 2.0, 3.0], [0.5, -1.0, 4.0]], &Device::Cpu).unwrap();
        let loss = losses(&logits, &[Some(0), None]).unwrap();
        let z: f64 = [1f64, 2.0, 3.0].iter().map(|x| x.exp()).sum();
        let got: Vec<f32> = loss.to_vec1().unwrap();
        assert!((f64::from(got[0]) - (z.ln() - 1.0)).abs() < 2e-6 && got[1] == 0.0, "{got:?}");
        // The gradient is the softmax less one at the label, and nothing without one.
        let gradients = loss.sum_all().unwrap().backward().unwrap();
        let got: Vec<f32> = gradients.get(&logits).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let want = [1f64.exp() / z - 1.0, 2f64.exp() / z, 3f64.exp() / z, 0.0, 0.0, 0.0];
        assert!(got.iter().zip(want).all(|(g, w)| (f64::from(*g) - w).abs() < 2e-6), "{got:?}, not {want:?}");
    }

    #[test]
    fn accuracy_is_over_labelled_hypotheses_in_all_and_by_class() {
        let hypothesis = |label: Option<u32>| Hypothesis {
            pair_id: "a".into(),
            image: 0,
            sentence: "x".into(),
            label,
        };
        let examples = [Some(0), Some(2), Some(2), None, Some(2)].map(hypothesis);
        let judged = examples.iter().zip([0, 2, 1, 1, 0]).map(|(example, judgement)| (example, judgement, 0.5));
        let found = measures(judged);
        let get = |set: &str| [found.get(set, "hypotheses"), found.get(set, "accuracy"), found.get(set, "loss")];
        assert_eq!(get("all"), [Some(5.0), Some(0.5), Some(0.5)]);
        assert_eq!(get("contradiction"), [Some(1.0), Some(1.0), Some(0.5)]);
        assert_eq!(get("neutral"), [None, None, None]);
        assert_eq!(get("entailment"), [Some(3.0), Some(1.0 / 3.0), Some(0.5)]);
    }
}
