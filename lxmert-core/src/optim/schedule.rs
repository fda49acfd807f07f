//! Warm-up, then linear decay to zero (the recipe of BERT and LXMERT).

/// The learning rate as a share of its peak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// Steps during which the rate rises linearly.
    pub warmup_steps: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Whether the first step has a rate of 0, as in BertAdam.
    pub idle_start: bool,
}

impl Schedule {
    /// The factor for step number `step`, counted from 0. It rises to 1 on the last warm-up step, then falls linearly;
    /// the first and the last step still learn (factor above 0). With [`Schedule::idle_start`] it is BertAdam's
    /// `warmup_linear` of step / total (airsplay/lxmert, `lxrt/optimization.py`), which wastes the first step on a rate
    /// of 0.
    pub fn factor(&self, step: u64) -> f64 {
        if self.idle_start {
            let (x, warmup) = (step as f64, self.warmup_steps as f64);
            let total = self.total_steps.max(1) as f64;
            return if x < warmup { x / warmup } else { ((x - total) / (warmup - total)).max(0.0) };
        }
        if step < self.warmup_steps {
            return (step + 1) as f64 / self.warmup_steps as f64;
        }
        let decay_steps = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        self.total_steps.saturating_sub(step) as f64 / decay_steps as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_then_falls_and_is_never_zero() {
        let s = Schedule { warmup_steps: 4, total_steps: 14, idle_start: false };
        let f: Vec<f64> = (0..14).map(|i| s.factor(i)).collect();
        assert_eq!(&f[..5], &[0.25, 0.5, 0.75, 1.0, 1.0]);
        assert!((f[13] - 0.1).abs() < 1e-12 && f[4..].windows(2).all(|w| w[1] < w[0]));
        assert_eq!(s.factor(14), 0.0);
        let none = Schedule { warmup_steps: 0, total_steps: 2, idle_start: false };
        assert_eq!((none.factor(0), none.factor(1)), (1.0, 0.5));
        let only = Schedule { warmup_steps: 3, total_steps: 3, idle_start: false };
        assert_eq!(only.factor(2), 1.0);
    }

    /// `warmup_linear(step / 20, warmup=0.25)` of the original, by hand.
    #[test]
    fn bert_adams_first_step_has_rate_zero() {
        let s = Schedule { warmup_steps: 5, total_steps: 20, idle_start: true };
        let f: Vec<f64> = [0, 1, 4, 5, 10, 19].iter().map(|&step| s.factor(step)).collect();
        let want = [0.0, 0.2, 0.8, 1.0, 10.0 / 15.0, 1.0 / 15.0];
        assert!(f.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12), "{f:?}");
        let none = Schedule { warmup_steps: 0, total_steps: 4, idle_start: true };
        assert_eq!((none.factor(0), none.factor(4)), (1.0, 0.0));
    }
}
