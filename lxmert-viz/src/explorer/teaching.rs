//! The most instructive examples: those on which a checkpoint is confident and right, confident and wrong, hard ones,
//! and those it cannot decide. A dozen easy ones would teach nothing.

use crate::dataset::Example;
use lxmert_core::answering::Answer;
use lxmert_train::data::pairs::PairKind;
use lxmert_train::data::questions::Question;
use std::collections::HashSet;

/// An example, and a checkpoint's probability for it.
pub type Judged = (Example, f32);

/// A question, its image, and a checkpoint's best answers.
pub struct Answered {
    /// The image's name.
    pub image: String,
    /// The question with its true answers.
    pub question: Question,
    /// The best answers, best first.
    pub best: Vec<Answer>,
}

impl Answered {
    /// Whether an annotator gave the best answer, if known.
    pub fn right(&self) -> Option<bool> {
        self.question.scores.as_ref()?;
        Some(self.best.first().is_some_and(|best| self.question.score(&best.answer) > 0.0))
    }

    fn probability(&self) -> f32 {
        self.best.first().map_or(0.0, |best| best.probability)
    }
}

/// `count` of `judged`: captions and false captions alternate, right and wrong, each kind's most confident first, and
/// the least confident. An image is repeated only if there are no others.
pub fn pairs(judged: &[Judged], count: usize) -> Vec<&Judged> {
    let sure = |pair: &&Judged| (pair.1 - 0.5).abs();
    let of = |kind: PairKind, right: bool| -> Vec<&Judged> {
        let mut found: Vec<&Judged> =
            judged.iter().filter(|(example, p)| example.kind == kind && example.agrees(*p) == right).collect();
        found.sort_by(|a, b| sure(b).total_cmp(&sure(a)));
        found
    };
    let mut undecided: Vec<&Judged> = judged.iter().collect();
    undecided.sort_by(|a, b| sure(a).total_cmp(&sure(b)));
    let kinds = [
        of(PairKind::Matched, true),
        of(PairKind::Hard, true),
        of(PairKind::Hard, false),
        of(PairKind::Matched, false),
        of(PairKind::Random, true),
        undecided,
        of(PairKind::Random, false),
    ];
    by_turns(&kinds, count, |pair| (&pair.0.image, &pair.0.text))
}

/// `count` of `answered`: right and wrong alternate, the most confident of each kind of question first.
pub fn questions(answered: &[Answered], count: usize) -> Vec<&Answered> {
    let of = |right: Option<bool>| -> Vec<&Answered> {
        let mut found: Vec<&Answered> = answered.iter().filter(|one| one.right() == right).collect();
        found.sort_by(|a, b| b.probability().total_cmp(&a.probability()));
        // Another kind of question each time, while there are any.
        let mut seen = HashSet::new();
        let (first, rest): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|one| seen.insert(one.question.question_type.as_deref()));
        first.into_iter().chain(rest).collect()
    };
    by_turns(&[of(Some(true)), of(Some(false)), of(None)], count, |one| (&one.image, &one.question.sentence))
}

/// `count` of several lists, one of each in turn; first those with a new image, then those with a new text.
fn by_turns<'a, T>(lists: &[Vec<&'a T>], count: usize, key: impl Fn(&'a T) -> (&'a String, &'a String)) -> Vec<&'a T> {
    let (mut images, mut texts) = (HashSet::new(), HashSet::new());
    let mut chosen = Vec::new();
    for new_image in [true, false] {
        let mut rest: Vec<_> = lists.iter().map(|list| list.iter().copied()).collect();
        let mut found = true;
        while found && chosen.len() < count {
            found = false;
            for list in &mut rest {
                let is_new = |one: &&'a T| {
                    let (image, text) = key(one);
                    !texts.contains(&(image, text)) && (!new_image || !images.contains(image))
                };
                if let Some(one) = list.find(is_new).filter(|_| chosen.len() < count) {
                    let (image, text) = key(one);
                    images.insert(image);
                    texts.insert((image, text));
                    chosen.push(one);
                    found = true;
                }
            }
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use lxmert_train::data::questions::QuestionId;

    fn judged(image: &str, kind: PairKind, probability: f32) -> Judged {
        (Example { image: image.into(), text: format!("{image} {probability}"), kind }, probability)
    }

    #[test]
    fn kinds_alternate_with_the_most_confident_first_and_images_once() {
        let all = [
            judged("a", PairKind::Matched, 0.9),
            judged("b", PairKind::Matched, 0.99),
            judged("b", PairKind::Hard, 0.01),
            judged("c", PairKind::Hard, 0.2),
            judged("d", PairKind::Hard, 0.97),
            judged("e", PairKind::Matched, 0.1),
            judged("f", PairKind::Random, 0.02),
            judged("g", PairKind::Random, 0.52),
        ];
        let images = |count| pairs(&all, count).iter().map(|(e, _)| e.image.clone()).collect::<Vec<_>>().join("");
        assert_eq!(images(6), "bcdefg");
        assert_eq!(images(7), "bcdefga");
        assert_eq!(images(8).len(), 8, "an image is repeated only if there is no other");
        assert_eq!(images(100).len(), 8);
        assert!(pairs(&[], 3).is_empty());
    }

    #[test]
    fn questions_are_right_and_wrong_and_of_several_kinds() {
        let one = |image: &str, kind: &str, probability: f32, right: bool| Answered {
            image: image.into(),
            question: Question {
                id: QuestionId::Number(0),
                image: 0,
                sentence: image.into(),
                scores: Some(vec![(if right { "yes" } else { "no" }.into(), 1.0)]),
                answer_type: None,
                question_type: Some(kind.into()),
            },
            best: vec![Answer { answer: "yes".into(), probability }],
        };
        let all = [
            one("a", "how many", 0.9, true),
            one("b", "how many", 0.8, true),
            one("c", "what color", 0.7, true),
            one("d", "where", 0.6, false),
        ];
        let images: String = questions(&all, 4).iter().map(|one| one.image.as_str()).collect();
        assert_eq!(images, "adcb");
    }
}
