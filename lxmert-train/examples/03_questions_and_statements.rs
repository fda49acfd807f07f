//! Questions and statements: what VQA, GQA and NLVR2 ask of a model, shown on the generated scenes.
//! `cargo run -p lxmert-train --example 03_questions_and_statements`

use lxmert_core::answers::{AnswerTable, normalise};
use lxmert_core::workspace::Workspace;
use lxmert_train::data::image_examples::ImageExample;
use lxmert_train::data::questions::Question;
use lxmert_train::data::splits::Split;
use lxmert_train::data::statements::Statement;
use lxmert_train::data::vqa_answers::soft_scores;

fn main() -> anyhow::Result<()> {
    let workspace = Workspace::locate()?;
    let scenes = workspace.data("scenes");

    // %% The questions about one scene: every object that a question names is the only match for its description.
    let (images, questions) = Question::read(&scenes.join("questions_val.json"), Split::Val)?;
    println!("{}", images[0]);
    for question in questions.iter().filter(|question| question.image == 0) {
        let answers: Vec<&str> = question.scores.iter().flatten().map(|(answer, _)| answer.as_str()).collect();
        println!("  {:70} {}", question.sentence, answers.join(", "));
    }

    // %% A statement is true of one pair and false of another that shares a picture, so the words alone do not give the
    // answer.
    let (images, statements) = Statement::read(&scenes.join("statements_val.json"), Split::Val)?;
    for statement in &statements[..6] {
        let [left, right] = statement.images.map(|image| images[image].as_str());
        println!("{left} {right}  {:5}  {}", statement.label == Some(true), statement.sentence);
    }

    // %% VQA's questions have ten people's answers; an answer counts in full if at least three of the other people gave
    // it.
    let people = ["red", "red", "Red.", "the red", "maroon", "maroon", "dark red", "two", "red", "red"];
    for (answer, score) in soft_scores(people) {
        println!("{score:.1}  {answer}");
    }

    // %% Which answers of a task have a row in the head of LXMERT's pre-training? They are matched by their words.
    let table = |name: &str| AnswerTable::read(&workspace.data("answers").join(name));
    let pretraining = table("pretraining.json")?;
    for name in ["vqa.json", "gqa.json"] {
        let task = table(name)?;
        let rows = task.match_rows(&pretraining);
        let without: Vec<&str> = (task.answers().iter().zip(&rows))
            .filter(|(_, row)| row.is_none())
            .map(|(answer, _)| answer.as_str())
            .take(4)
            .collect();
        let found = rows.iter().flatten().count();
        println!("{name}: {found} of {} answers; not among them {without:?}, …", task.len());
    }
    println!("\"The grey.\" is looked up as \"{}\"", normalise("The grey."));
    Ok(())
}
