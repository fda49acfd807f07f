//! Normalises answers as VQA's evaluation does (`vqaEval.py` of the VQA challenge): a person's "The 2 dogs." and a
//! model's "two dogs" are the same answer.
//!
//! The rules apply to every answer of every person, as in the soft scores that the published models were trained on
//! (bottom-up-attention-vqa's `compute_softscore.py`). The evaluation server skips questions for which all ten people
//! gave exactly the same answer; that does not change the score.

use lxmert_core::answers::digits;
use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

/// Punctuation that is removed from an answer or becomes a space.
const PUNCTUATION: [char; 21] =
    [';', '/', '[', ']', '"', '{', '}', '(', ')', '=', '+', '\\', '_', '-', '>', '<', '@', '`', ',', '?', '!'];

/// The evaluation passes Python's flag `re.UNICODE`, 32, to `re.sub` as the maximum number of replacements.
const MOST_FULL_STOPS: usize = 32;

/// Words that are also recognised with one apostrophe missing.
const CONTRACTIONS: &str = "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've \
    hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've \
    mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've \
    somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've \
    something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't \
    we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's \
    who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll \
    you're you've";

static CONTRACTED: LazyLock<HashMap<String, &'static str>> = LazyLock::new(|| {
    let mut known = HashMap::new();
    for word in CONTRACTIONS.split_whitespace() {
        for (at, _) in word.match_indices('\'') {
            known.insert(format!("{}{}", &word[..at], &word[at + 1..]), word);
        }
    }
    known.insert("somebody'd".into(), "somebodyd"); // the evaluation swaps this one
    known
});

/// An answer as the evaluation compares it: normalises punctuation, number words, articles and contractions.
pub fn process(answer: &str) -> String {
    let words = punctuation(answer.replace(['\n', '\t'], " ").trim()).to_lowercase();
    let words = words.split_whitespace().map(|word| match word {
        "none" | "zero" => "0",
        other => digits(other).unwrap_or(other),
    });
    let words = words
        .filter(|word| !["a", "an", "the"].contains(word))
        .map(|word| CONTRACTED.get(word).copied().unwrap_or(word));
    words.collect::<Vec<_>>().join(" ").replace(',', "")
}

fn punctuation(answer: &str) -> String {
    let characters: Vec<char> = answer.chars().collect();
    let thousands = characters.windows(3).any(|w| w[0].is_ascii_digit() && w[1] == ',' && w[2].is_ascii_digit());
    let mut text = answer.to_string();
    for mark in PUNCTUATION {
        let at_a_space = answer.contains(&format!("{mark} ")) || answer.contains(&format!(" {mark}"));
        text = text.replace(mark, if at_a_space || thousands { "" } else { " " });
    }
    let mut kept = String::with_capacity(text.len());
    let mut removed = 0;
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        if c == '.' && removed < MOST_FULL_STOPS && !characters.peek().is_some_and(char::is_ascii_digit) {
            removed += 1;
        } else {
            kept.push(c);
        }
    }
    kept
}

/// The score of each answer that people gave: the mean, over leaving out each person in turn, of min(1, others who said
/// it / 3). With ten people: 0.3 for one, 0.6 for two, 0.9 for three, 1 for more.
pub fn soft_scores<'a>(answers: impl IntoIterator<Item = &'a str>) -> Vec<(String, f32)> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for answer in answers {
        *counts.entry(process(answer)).or_default() += 1;
    }
    let people: usize = counts.values().sum();
    let share = |others: usize| (others as f64 / 3.0).min(1.0);
    let score = |count: usize| {
        let sum = count as f64 * share(count - 1) + (people - count) as f64 * share(count);
        (sum / people as f64) as f32
    };
    counts.into_iter().map(|(answer, count)| (answer, score(count))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each pair comes from running the evaluation's own functions.
    #[test]
    fn processes_answers_as_the_evaluation_does() {
        for (answer, processed) in [
            ("The 2 dogs.", "2 dogs"),
            ("two dogs", "2 dogs"),
            ("None", "0"),
            ("1,000", "1000"),
            ("red/white", "red white"),
            ("red / white", "red white"),
            ("t-shirt", "t shirt"),
            ("3.5 ft.", "3.5 ft"),
            ("10:30 a.m.", "10:30 am"),
            ("dont know", "don't know"),
            ("couldnt've", "couldn't've"),
            ("y'alld've", "y'all'd've"),
            ("It's a cat!", "it's cat"),
            ("a", ""),
        ] {
            assert_eq!(process(answer), processed, "{answer}");
        }
    }

    #[test]
    fn scores_leave_out_each_of_ten_people_in_turn() {
        let mut answers = vec!["Yes"; 4];
        answers.extend(["no", "no.", "The no"]);
        answers.extend(["two", "2"]);
        answers.push("maybe");
        let scores = soft_scores(answers);
        let want = [("2", 0.6), ("maybe", 0.3), ("no", 0.9), ("yes", 1.0)];
        assert_eq!(scores.len(), want.len());
        for ((answer, score), (want, wanted)) in scores.iter().zip(want) {
            assert!(answer == want && (score - wanted).abs() < 1e-6, "{answer} {score}");
        }
    }
}
