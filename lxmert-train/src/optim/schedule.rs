//! Warm-up, then linear decay to zero (the recipe of BERT and LXMERT).

/// The learning rate as a share of its peak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// Optimiser steps over which the rate rises linearly.
    pub warmup_steps: u64,
    /// Optimiser steps of the whole run.
    pub total_steps: u64,
}

impl Schedule {
    /// The factor of the step with this number, from 0. It rises to 1 on the last warm-up step,
    /// then falls linearly; the last step still learns (its factor is above 0), and so does the
    /// first (airsplay's BertAdam and transformers' schedule waste it on a rate of 0).
    pub fn factor(&self, step: u64) -> f64 {
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
    fn rises_then_falls_and_never_idles() {
        let s = Schedule { warmup_steps: 4, total_steps: 14 };
        let f: Vec<f64> = (0..14).map(|i| s.factor(i)).collect();
        assert_eq!(&f[..5], &[0.25, 0.5, 0.75, 1.0, 1.0]);
        assert!((f[13] - 0.1).abs() < 1e-12 && f[4..].windows(2).all(|w| w[1] < w[0]));
        assert_eq!(s.factor(14), 0.0);
        let none = Schedule { warmup_steps: 0, total_steps: 2 };
        assert_eq!((none.factor(0), none.factor(1)), (1.0, 0.5));
        let only = Schedule { warmup_steps: 3, total_steps: 3 };
        assert_eq!(only.factor(2), 1.0);
    }
}
