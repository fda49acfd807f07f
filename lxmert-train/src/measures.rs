//! The results of an evaluation: named numbers in named sets.

use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Numbers by set and measure: `random` / `accuracy`. A measure with a name that ends with `loss` or `rank` is better
/// lower, every other one higher.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Measures(#[serde(deserialize_with = "numbers")] BTreeMap<String, BTreeMap<String, f64>>);

/// JSON has no NaN: it is written as null, and null is read as NaN.
pub(crate) fn nan_for_null<'de, D: Deserializer<'de>>(json: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(json)?.unwrap_or(f64::NAN))
}

fn numbers<'de, D: Deserializer<'de>>(
    json: D,
) -> std::result::Result<BTreeMap<String, BTreeMap<String, f64>>, D::Error> {
    #[derive(Deserialize)]
    struct Number(#[serde(deserialize_with = "nan_for_null")] f64);
    let sets: BTreeMap<String, BTreeMap<String, Number>> = Deserialize::deserialize(json)?;
    let plain = |values: BTreeMap<String, Number>| values.into_iter().map(|(name, Number(v))| (name, v)).collect();
    Ok(sets.into_iter().map(|(set, values)| (set, plain(values))).collect())
}

/// Decimals in tables; whole numbers have none.
const DECIMALS: usize = 4;

impl Measures {
    /// Adds a number.
    pub fn set(&mut self, set: &str, measure: &str, value: f64) {
        self.0.entry(set.to_string()).or_default().insert(measure.to_string(), value);
    }

    /// Adds several numbers of one set.
    pub fn extend<'a>(&mut self, set: &str, values: impl IntoIterator<Item = (&'a str, f64)>) {
        for (measure, value) in values {
            self.set(set, measure, value);
        }
    }

    /// The number of this set and measure.
    pub fn get(&self, set: &str, measure: &str) -> Option<f64> {
        self.0.get(set)?.get(measure).copied()
    }

    /// The sets, by name.
    pub fn sets(&self) -> impl Iterator<Item = (&str, &BTreeMap<String, f64>)> {
        self.0.iter().map(|(name, values)| (name.as_str(), values))
    }

    /// Every number as (`set/measure`, value), the form in which logs and `--metric` name it.
    pub fn flat(&self) -> impl Iterator<Item = (String, f64)> {
        self.0.iter().flat_map(|(set, values)| values.iter().map(move |(name, v)| (format!("{set}/{name}"), *v)))
    }

    /// The number called `set/measure`, negated if lower is better.
    ///
    /// # Errors
    /// Returns an error that lists the existing measures if there is none.
    pub fn watched(&self, name: &str) -> crate::Result<f64> {
        let value = name.split_once('/').and_then(|(set, measure)| self.get(set, measure));
        let value = value.ok_or_else(|| {
            let known = self.flat().map(|(name, _)| name).collect::<Vec<_>>().join(", ");
            crate::Error::Argument(format!("--metric {name}: not measured here; choose one of {known}"))
        })?;
        Ok(if lower_is_better(name) { -value } else { value })
    }

    /// Checks that the model's outputs were numbers: otherwise no measure means anything, though an accuracy looks like
    /// one.
    ///
    /// # Errors
    /// Names the first loss that is NaN or infinite.
    pub fn check_finite(self) -> crate::Result<Self> {
        let broken = self.flat().find(|(name, value)| name.ends_with("loss") && !value.is_finite());
        match broken {
            None => Ok(self),
            Some((name, value)) => Err(crate::Error::Argument(format!(
                "{name} is {value}: the model's outputs are not numbers; its weights or the features are too large \
                 (train again with a lower --learning-rate, or check the features)"
            ))),
        }
    }

    /// Markdown tables with a row per set; sets with the same measures share a table. `what` is the heading of the
    /// first column.
    pub fn tables(&self, what: &str) -> String {
        // Names of measures, and the sets that have exactly these.
        let mut groups: Vec<(Vec<&str>, Vec<&str>)> = Vec::new();
        for (set, values) in &self.0 {
            let names: Vec<&str> = values.keys().map(String::as_str).collect();
            match groups.iter_mut().find(|(known, _)| *known == names) {
                Some((_, sets)) => sets.push(set),
                None => groups.push((names, vec![set])),
            }
        }
        let mut text = String::new();
        for (names, sets) in groups {
            let first = sets.iter().map(|set| set.len()).chain([what.len()]).max().unwrap_or(0);
            let widths: Vec<usize> = names.iter().map(|name| name.len().max(DECIMALS + 2)).collect();
            // Writing to a String cannot fail.
            let _ = write!(text, "| {what:first$} |");
            names.iter().zip(&widths).for_each(|(name, w)| text.push_str(&format!(" {name:>w$} |")));
            let _ = write!(text, "\n| {} |", "-".repeat(first));
            widths.iter().for_each(|w| text.push_str(&format!(" {}: |", "-".repeat(w - 1))));
            text.push('\n');
            for set in sets {
                let _ = write!(text, "| {set:first$} |");
                for (value, w) in self.0[set].values().zip(&widths) {
                    text.push_str(&format!(" {:>w$} |", number(*value)));
                }
                text.push('\n');
            }
            text.push('\n');
        }
        text
    }

    /// One line: `random accuracy 0.966, loss 0.091; hard accuracy 0.825, loss 0.406`.
    pub fn line(&self) -> String {
        let sets: Vec<String> = self
            .0
            .iter()
            .map(|(set, values)| {
                let values: Vec<String> = values.iter().map(|(name, v)| format!("{name} {}", number(*v))).collect();
                format!("{set} {}", values.join(", "))
            })
            .collect();
        sets.join("; ")
    }
}

/// A number as tables show it.
pub(crate) fn number(value: f64) -> String {
    if value == value.trunc() && value.abs() >= 2.0 { format!("{value:.0}") } else { format!("{value:.DECIMALS$}") }
}

/// Whether lower is better for a measure of this name.
pub fn lower_is_better(name: &str) -> bool {
    name.ends_with("loss") || name.ends_with("rank")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measures() -> Measures {
        let mut m = Measures::default();
        m.extend("random", [("accuracy", 0.75), ("loss", 0.5)]);
        m.extend("hard", [("accuracy", 0.5), ("loss", 0.75)]);
        m.extend("retrieval", [("images", 200.0)]);
        m
    }

    #[test]
    fn nan_is_written_to_json_and_read_back() {
        let mut measures = measures();
        measures.set("hard", "loss", f64::NAN);
        let json = serde_json::to_string(&measures).unwrap();
        let read: Measures = serde_json::from_str(&json).unwrap();
        assert!(read.get("hard", "loss").unwrap().is_nan() && read.get("random", "loss") == Some(0.5), "{json}");
    }

    #[test]
    fn a_loss_that_is_no_number_is_an_error() {
        assert_eq!(measures().check_finite().unwrap(), measures());
        for value in [f64::NAN, f64::INFINITY] {
            let mut measures = measures();
            measures.set("hard", "loss", value);
            let error = measures.check_finite().unwrap_err().to_string();
            assert!(error.contains(&format!("hard/loss is {value}")), "{error}");
        }
    }

    #[test]
    fn sets_of_equal_measures_share_a_table() {
        let want = "\
| test   | accuracy |   loss |
| ------ | -------: | -----: |
| hard   |   0.5000 | 0.7500 |
| random |   0.7500 | 0.5000 |

| test      | images |
| --------- | -----: |
| retrieval |    200 |

";
        assert_eq!(measures().tables("test"), want);
    }

    #[test]
    fn watches_losses_downwards_and_names_unknown_measures() {
        assert_eq!(measures().watched("random/loss").unwrap(), -0.5);
        assert_eq!(measures().watched("hard/accuracy").unwrap(), 0.5);
        let error = measures().watched("hard/auc").unwrap_err().to_string();
        assert!(error.contains("random/accuracy") && error.contains("hard/auc"), "{error}");
    }
}
