//! Warm-up, then a decay: linear to zero in the recipe of BERT and LXMERT.

use serde::{Deserialize, Serialize};

/// How the rate falls after its peak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// In a straight line to 0 at the end.
    #[default]
    Linear,
    /// Along half a cosine to 0 at the end (Loshchilov & Hutter 2017, without restarts).
    Cosine,
    /// Not at all.
    Constant,
}

impl Decay {
    /// The share of the peak when `left`, from 1 down to 0, of the steps after the warm-up are left.
    fn factor(self, left: f64) -> f64 {
        match self {
            Self::Linear => left,
            Self::Cosine => (1.0 - (std::f64::consts::PI * left).cos()) / 2.0,
            Self::Constant => 1.0,
        }
    }
}

/// The learning rate as a share of its peak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// Steps during which the rate rises linearly.
    pub warmup_steps: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Whether the first step has a rate of 0, as in BertAdam.
    pub idle_start: bool,
    /// How the rate falls after its peak.
    pub decay: Decay,
}

impl Schedule {
    /// The factor for step number `step`, counted from 0. It rises to 1 on the last warm-up step, then falls as
    /// [`Schedule::decay`] says; the first and the last step still learn (factor above 0). With [`Schedule::idle_start`]
    /// it is BertAdam's `warmup_linear` of step / total (airsplay/lxmert, `lxrt/optimization.py`), which wastes the first step on a rate
    /// of 0.
    pub fn factor(&self, step: u64) -> f64 {
        if self.idle_start {
            let (x, warmup) = (step as f64, self.warmup_steps as f64);
            let total = self.total_steps.max(1) as f64;
            let left = || ((x - total) / (warmup - total)).max(0.0);
            return if x < warmup { x / warmup } else { self.decay.factor(left()) };
        }
        if step < self.warmup_steps {
            return (step + 1) as f64 / self.warmup_steps as f64;
        }
        let decay_steps = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        self.decay.factor(self.total_steps.saturating_sub(step) as f64 / decay_steps as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_then_falls_and_is_never_zero() {
        let s = Schedule { warmup_steps: 4, total_steps: 14, idle_start: false, decay: Decay::Linear };
        let f: Vec<f64> = (0..14).map(|i| s.factor(i)).collect();
        assert_eq!(&f[..5], &[0.25, 0.5, 0.75, 1.0, 1.0]);
        assert!((f[13] - 0.1).abs() < 1e-12 && f[4..].windows(2).all(|w| w[1] < w[0]));
        assert_eq!(s.factor(14), 0.0);
        let none = Schedule { warmup_steps: 0, total_steps: 2, idle_start: false, decay: Decay::Linear };
        assert_eq!((none.factor(0), none.factor(1)), (1.0, 0.5));
        let only = Schedule { warmup_steps: 3, total_steps: 3, idle_start: false, decay: Decay::Linear };
        assert_eq!(only.factor(2), 1.0);
    }

    /// `warmup_linear(step / 20, warmup=0.25)` of the original, by hand.
    #[test]
    fn bert_adams_first_step_has_rate_zero() {
        let s = Schedule { warmup_steps: 5, total_steps: 20, idle_start: true, decay: Decay::Linear };
        let f: Vec<f64> = [0, 1, 4, 5, 10, 19].iter().map(|&step| s.factor(step)).collect();
        let want = [0.0, 0.2, 0.8, 1.0, 10.0 / 15.0, 1.0 / 15.0];
        assert!(f.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12), "{f:?}");
        let none = Schedule { warmup_steps: 0, total_steps: 4, idle_start: true, decay: Decay::Linear };
        assert_eq!((none.factor(0), none.factor(4)), (1.0, 0.0));
    }

    /// torch's `get_cosine_schedule_with_warmup` of transformers, 4 steps of warm-up and 10 after: 0.5 (1 + cos(π x)).
    #[test]
    fn cosine_falls_along_half_a_cosine_and_constant_stays() {
        let with = |decay| Schedule { warmup_steps: 4, total_steps: 14, idle_start: false, decay };
        let cosine: Vec<f64> = [0, 4, 5, 9, 13, 14].iter().map(|&step| with(Decay::Cosine).factor(step)).collect();
        let want = [0.25, 1.0, 0.975_528_258_147_576_8, 0.5, 0.024_471_741_852_423_234, 0.0];
        assert!(cosine.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12), "{cosine:?}");
        let constant = [0, 4, 13].map(|step| with(Decay::Constant).factor(step));
        assert_eq!(constant, [0.25, 1.0, 1.0]);
    }
}
