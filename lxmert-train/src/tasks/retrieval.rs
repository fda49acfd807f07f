//! Retrieval: which of four pairs is the true one?
//!
//! Each caption gives a group of four: its own image; the image with another image's caption; another image with the
//! caption; and the image with a caption that is hard to distinguish from the true one. The loss is the cross entropy
//! of the four match logits (Lu et al. 2019, §4, ViLBERT). The hard caption is the false variant in
//! `hard_negatives.csv` if the data has one; otherwise, of 32 captions of other images, the one that shares the most
//! words.
//!
//! It is evaluated like [`Matching`]: pairs, hard pairs, and recalls over the whole test split.

use super::losses::{cross_entropy, right};
use super::matching::{Matching, PairBatch};
use super::{Exam, Reads, Step, Task, Tested};
use crate::Result;
use crate::data::batches;
use crate::data::pairs::{Pair, PairKind};
use crate::data::splits::Split;
use crate::job::Job;
use crate::log::card::Description;
use crate::measures::Measures;
use crate::origin::Origin;
use crate::readings::BatchLoss;
use crate::recipe::{NamedRecipe, Optimiser, Recipe, Suits};
use crate::run_folder::CheckpointParts;
use candle_core::Tensor;
use candle_nn::VarMap;
use indicatif::ProgressBar;
use lxmert_core::pretrained::Pretrained;
use lxmert_core::procedural::splitmix64;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

/// How many captions to search for a hard one.
const CANDIDATES: usize = 32;

/// A true pair, then the three false ones.
pub type Group = [Pair; 4];

/// Retrieval on captioned images.
pub struct Retrieval {
    matching: Matching,
    /// Captions of the training split; they belong to at least two images.
    captions: Vec<usize>,
}

impl Task for Retrieval {
    const NAME: &'static str = "retrieval";
    const ABOUT: &'static str = "Which of four pairs is the true one? Measured like matching";
    const READS: Reads = Reads::Captions;
    const RECIPES: &'static [NamedRecipe] = &[NamedRecipe {
        name: "paper-retrieval",
        about: "ViLBERT's four-way retrieval: 20 epochs of 64 groups of four pairs at 2e-5",
        recipe: || Recipe {
            epochs: 20,
            batch_size: 64,
            learning_rate: 2e-5,
            optimiser: Optimiser::AdamW,
            decay_all: false,
            clip: 1.0,
            max_length: 36,
            ..Self::recipe(Suits::Benchmark)
        },
    }];

    type Example = Group;
    type Batch = PairBatch;

    fn recipe(suits: Suits) -> Recipe {
        Recipe { task: Self::NAME.into(), masked_words: 0.0, alignment: 0.0, ..Recipe::fine_tuning_for(suits) }
    }

    fn evaluate(exam: &Exam) -> Result<Measures> {
        Matching::evaluate(exam)
    }

    fn new(job: &Job, origin: &Origin, variables: &VarMap) -> Result<Self> {
        let matching = Matching::new(job, origin, variables)?;
        let captions = matching.dataset.splits.captions(&matching.dataset.captions, Split::Train);
        let images: HashSet<usize> = captions.iter().map(|&c| matching.dataset.captions.captions[c].image).collect();
        if images.len() < 2 {
            return Err(crate::Error::Argument("retrieval needs captions of at least two training images".into()));
        }
        Ok(Self { matching, captions })
    }

    fn starting_weights(&self, checkpoint: &Pretrained) -> Result<BTreeMap<String, Tensor>> {
        self.matching.starting_weights(checkpoint)
    }

    fn introduction(&self) -> Vec<String> {
        let mut lines = self.matching.introduction();
        lines.push("each caption with its image, another's caption, another image and a hard caption".into());
        lines
    }

    fn batches_per_epoch(&self) -> usize {
        self.captions.len().div_ceil(self.matching.recipe.batch_size)
    }

    fn epoch(&self, epoch: u64) -> Vec<Vec<Group>> {
        let (seed, batch_size) = (self.matching.recipe.seed, self.matching.recipe.batch_size);
        let mut rng = ChaCha8Rng::seed_from_u64(splitmix64(seed ^ splitmix64(epoch.wrapping_add(0x0067_726f_7570))));
        let order = batches::shuffled(&self.captions, seed, epoch);
        let groups: Vec<Group> = order.iter().map(|&caption| self.group(caption, &mut rng)).collect();
        let length =
            |group: &Group| group.iter().map(|pair| self.matching.dataset.tokens(pair).len()).max().unwrap_or(0);
        batches::plan(&groups, length, batch_size, seed, epoch)
    }

    fn read(&self, groups: Vec<Group>) -> Result<PairBatch> {
        self.matching.read(groups.concat())
    }

    fn loss(&self, batch: PairBatch, step: &Step) -> Result<BatchLoss<'_>> {
        let groups = batch.pairs.len() / 4;
        let output = self.matching.model.forward(&batch.inputs.inputs(step.device)?, &step.forward())?;
        let logits = output.logits.reshape((groups, 4))?;
        let first = vec![0u32; groups];
        let sum = cross_entropy(&logits, &first)?.sum_all()?;
        step.loss(&sum, groups, &right(&logits, &first, None)?, |right| right[0] as usize)
    }

    fn validate(&self) -> Result<Measures> {
        self.matching.validate()
    }

    fn test(&self, folder: &Path, predictions: &Path, bar: &ProgressBar) -> Result<Tested> {
        self.matching.test(folder, predictions, bar)
    }

    fn checkpoint(&self) -> CheckpointParts {
        self.matching.checkpoint()
    }

    fn description(&self) -> Description {
        Description {
            title: "image-text retrieval".into(),
            losses:
                "Four-way cross entropy: the true pair against a wrong caption, a wrong image and a hard wrong caption."
                    .into(),
            ..self.matching.description()
        }
    }
}

impl Retrieval {
    fn group(&self, caption: usize, rng: &mut ChaCha8Rng) -> Group {
        let dataset = &self.matching.dataset;
        let image = |caption: usize| dataset.captions.captions[caption].image;
        let own = image(caption);
        let pair = |image, caption, kind| Pair { image, caption, kind };
        // There are at least two images; with few, the first caption of another one ends the search.
        let mut other = || {
            let draw = |_| self.captions[rng.random_range(0..self.captions.len())];
            let found = (0..64).map(draw).find(|&other| image(other) != own);
            found.or_else(|| self.captions.iter().copied().find(|&other| image(other) != own)).unwrap_or(caption)
        };
        let (wrong_caption, wrong_image) = (other(), image(other()));
        let hard = match dataset.hard_negatives[caption] {
            Some(_) => pair(own, caption, PairKind::Hard),
            None => {
                let words: HashSet<u32> =
                    dataset.tokens(&pair(own, caption, PairKind::Matched)).iter().copied().collect();
                let shared = |&other: &usize| {
                    let tokens = dataset.tokens(&pair(own, other, PairKind::Matched));
                    let both = tokens.iter().filter(|word| words.contains(word)).count();
                    1000 * both / (tokens.len() + words.len() - both).max(1)
                };
                let candidates: Vec<usize> = (0..CANDIDATES).map(|_| other()).collect();
                let hard = candidates.into_iter().max_by_key(shared).unwrap_or(wrong_caption);
                pair(own, hard, PairKind::Random)
            }
        };
        [
            pair(own, caption, PairKind::Matched),
            pair(own, wrong_caption, PairKind::Random),
            pair(wrong_image, caption, PairKind::Random),
            hard,
        ]
    }
}
