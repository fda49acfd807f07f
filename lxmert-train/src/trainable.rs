//! Which weights learn, and at which share of the learning rate: `--freeze` and `--lr-scale`.

use crate::recipe::Recipe;
use crate::{Error, Result};
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::init::Init;
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{VarBuilder, VarMap};
use lxmert_core::checkpoint::fit::glob;
use lxmert_core::nearby;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A factor on the learning rate of the weights whose names match a pattern.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RateScale {
    /// `*` is any characters, `?` one character.
    pub pattern: String,
    /// The factor.
    pub factor: f64,
}

impl std::str::FromStr for RateScale {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (pattern, factor) = text.rsplit_once('=').ok_or("expected PATTERN=FACTOR")?;
        let factor: f64 = factor.parse().map_err(|_| format!("'{factor}' is not a number"))?;
        match factor.is_finite() && factor >= 0.0 {
            true => Ok(Self { pattern: pattern.into(), factor }),
            false => Err(format!("the factor {factor} is not a number of at least 0")),
        }
    }
}

/// Whether a weight stays as it is: no gradient, no decay.
pub fn is_frozen(recipe: &Recipe, name: &str) -> bool {
    recipe.freeze.iter().any(|pattern| glob(pattern, name))
}

/// The factor on a weight's learning rate: that of the last pattern that matches, otherwise 1.
pub fn rate(recipe: &Recipe, name: &str) -> f64 {
    recipe.lr_scale.iter().rev().find(|scale| glob(&scale.pattern, name)).map_or(1.0, |scale| scale.factor)
}

/// Checks that each pattern matches a weight, and that weights are left to train.
///
/// # Errors
/// Returns an error with the pattern and similar names.
pub fn check(recipe: &Recipe, names: &[&str]) -> Result<()> {
    let scaled = recipe.lr_scale.iter().map(|scale| ("--lr-scale", &scale.pattern));
    for (flag, pattern) in recipe.freeze.iter().map(|pattern| ("--freeze", pattern)).chain(scaled) {
        if !names.iter().any(|name| glob(pattern, name)) {
            let similar = similar(pattern, names);
            let advice = match similar.is_empty() {
                false => format!("did you mean {}?", similar.join(" or ")),
                true => format!("there are {} names such as '{}'", names.len(), names.first().unwrap_or(&"")),
            };
            return Err(Error::Argument(format!("{flag} '{pattern}': no weight has such a name; {advice}")));
        }
    }
    if names.iter().all(|name| is_frozen(recipe, name)) {
        let patterns = recipe.freeze.join("', '");
        return Err(Error::Argument(format!("--freeze '{patterns}': no weight is left to train; freeze fewer")));
    }
    Ok(())
}

/// Patterns that match weights and are a few typing errors away from `pattern`.
fn similar(pattern: &str, names: &[&str]) -> Vec<String> {
    let mut known = BTreeSet::new();
    for name in names {
        known.insert((*name).to_string());
        for (dot, _) in name.match_indices('.') {
            known.extend([format!("{}.*", &name[..dot]), format!("*{}", &name[dot..])]);
        }
    }
    let most = (pattern.chars().count() / 4).max(1);
    nearby::near(pattern, known.iter().map(String::as_str), most).into_iter().map(|p| format!("'{p}'")).collect()
}

/// What a model is built of: `variables`, of which those that the recipe freezes are plain tensors, so that no gradient is
/// computed for them.
pub fn builder<'a>(recipe: &Recipe, variables: &VarMap, device: &Device) -> VarBuilder<'a> {
    let source = Source { variables: variables.clone(), freeze: recipe.freeze.clone() };
    VarBuilder::from_backend(Box::new(source), DType::F32, device.clone())
}

struct Source {
    variables: VarMap,
    freeze: Vec<String>,
}

impl SimpleBackend for Source {
    fn get(&self, s: Shape, name: &str, h: Init, dtype: DType, dev: &Device) -> candle_core::Result<Tensor> {
        let tensor = self.variables.get(s, name, h, dtype, dev)?;
        // It shares its storage with the variable, so it has the values that the variable is given later.
        Ok(if self.freeze.iter().any(|pattern| glob(pattern, name)) { tensor.detach() } else { tensor })
    }

    fn get_unchecked(&self, name: &str, dtype: DType, dev: &Device) -> candle_core::Result<Tensor> {
        SimpleBackend::get_unchecked(&self.variables, name, dtype, dev)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.variables.contains_tensor(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 4] = [
        "cls.seq_relationship.bias",
        "lxmert.embeddings.word_embeddings.weight",
        "lxmert.encoder.layer.0.output.dense.bias",
        "lxmert.encoder.layer.1.output.dense.bias",
    ];

    fn recipe(freeze: &[&str], scales: &[&str]) -> Recipe {
        let lr_scale = scales.iter().map(|scale| scale.parse().unwrap()).collect();
        Recipe { freeze: freeze.iter().map(ToString::to_string).collect(), lr_scale, ..Recipe::scenes() }
    }

    #[test]
    fn the_last_matching_scale_counts() {
        let recipe = recipe(&["lxmert.embeddings.*"], &["lxmert.encoder.*=0.5", "*.layer.0.*=0.25"]);
        assert_eq!(NAMES.map(|name| rate(&recipe, name)), [1.0, 1.0, 0.25, 0.5]);
        assert_eq!(NAMES.map(|name| is_frozen(&recipe, name)), [false, true, false, false]);
        assert!(check(&recipe, &NAMES).is_ok());
        for (text, said) in [("a", "PATTERN=FACTOR"), ("a=b", "'b' is not a number"), ("a=-1", "at least 0")] {
            assert!(text.parse::<RateScale>().unwrap_err().contains(said));
        }
    }

    #[test]
    fn a_pattern_without_a_weight_is_refused_with_similar_ones() {
        let said = |freeze: &[&str], scales: &[&str]| check(&recipe(freeze, scales), &NAMES).unwrap_err().to_string();
        let typing = said(&["lxmert.embedings.*"], &[]);
        assert!(
            typing.contains("--freeze 'lxmert.embedings.*'") && typing.contains("'lxmert.embeddings.*'"),
            "{typing}"
        );
        let end = said(&[], &["*.dense.bais=0.1"]);
        assert!(end.contains("--lr-scale '*.dense.bais'") && end.contains("'*.dense.bias'"), "{end}");
        assert!(said(&["poetry"], &[]).contains("4 names such as 'cls.seq_relationship.bias'"));
        assert!(said(&["*"], &[]).contains("no weight is left to train"));
    }
}
