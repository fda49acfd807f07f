//! Runs side by side: the settings in which they differ, and what they reached. Runs that differ in their seed alone also
//! have their mean, worst and best.

use crate::job::RunSettings;
use crate::log::curves;
use crate::log::jsonl::{Record, read_records};
use crate::measures::{lower_is_better, number};
use crate::run_folder::{Report, RunFolder};
use crate::{Error, Result};
use clap::Args;
use lxmert_core::files::atomic_write;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Compare runs: the settings that differ, their measures, and the mean and the worst over seeds
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Run folders
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Order by this measure, best first, such as random/accuracy [default: what chose the best epoch of the first run]
    #[arg(long, value_name = "SET/MEASURE")]
    sort: Option<String>,
    /// Show these measures alone; may be given several times [default: all]
    #[arg(long, value_name = "SET/MEASURE")]
    measure: Vec<String>,
    /// Draw the training losses, and the validation measure that --sort names, of all runs into this PNG
    #[arg(long, value_name = "FILE.png")]
    curves: Option<PathBuf>,
    /// Write the table to this file, too
    #[arg(long, value_name = "FILE.csv")]
    csv: Option<PathBuf>,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
}

/// One run.
#[derive(Debug, Serialize)]
struct Run {
    /// Its folder, and its name if that is another.
    run: String,
    /// Whether it has finished: its measures are of the test split; otherwise of the validation split so far.
    finished: bool,
    epochs: u64,
    steps: u64,
    /// Time that was spent training and validating, where the run has finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
    settings: BTreeMap<String, Value>,
    measures: BTreeMap<String, f64>,
    #[serde(skip)]
    records: Vec<Record>,
}

/// Runs that differ in their seed alone.
#[derive(Debug, PartialEq, Serialize)]
struct OverSeeds {
    runs: Vec<String>,
    /// By measure: mean, worst, best.
    measures: BTreeMap<String, [f64; 3]>,
}

impl CompareArgs {
    /// What is printed.
    ///
    /// # Errors
    /// When a folder holds no run, a measure is not there, or a file cannot be written.
    pub fn run(&self) -> Result<String> {
        let mut runs = self.runs.iter().map(|folder| Run::read(folder)).collect::<Result<Vec<_>>>()?;
        let sort = match (&self.sort, runs.first()) {
            (Some(measure), _) => measure.clone(),
            (None, first) => first.map_or_else(String::new, |run| run.watched()),
        };
        let known: BTreeSet<&String> = runs.iter().flat_map(|run| run.measures.keys()).collect();
        for name in self.measure.iter().chain(&self.sort) {
            if !known.contains(name) {
                let known = known.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
                return Err(Error::Argument(format!("no run has the measure {name}; there are {known}")));
            }
        }
        if !self.measure.is_empty() {
            for run in &mut runs {
                run.measures.retain(|name, _| self.measure.contains(name) || *name == sort);
            }
        }
        // The best first; runs without the measure, or with NaN, last.
        let rank = |run: &Run| {
            let value = run.measures.get(&sort).copied().filter(|value| !value.is_nan());
            value.map_or(f64::INFINITY, |value| if lower_is_better(&sort) { value } else { -value })
        };
        runs.sort_by(|a, b| rank(a).total_cmp(&rank(b)));
        let seeds = over_seeds(&runs);
        if let Some(path) = &self.curves {
            let lines: Vec<(&str, &[Record])> = runs.iter().map(|run| (run.run.as_str(), &*run.records)).collect();
            curves::draw_together(path, &lines, &sort)?;
        }
        if let Some(path) = &self.csv {
            write_csv(path, &runs)?;
        }
        if self.json {
            let all = serde_json::json!({"runs": runs, "over_seeds": seeds});
            return serde_json::to_string_pretty(&all).map(|text| text + "\n").map_err(Error::json("runs"));
        }
        Ok(tables(&runs, &seeds))
    }
}

impl Run {
    fn read(path: &Path) -> Result<Self> {
        let folder = RunFolder::new(path);
        let Some(settings) = RunSettings::read(&folder)? else {
            return Err(Error::file(path, "no run here (it has no run.json); name run folders"));
        };
        let records = if folder.metrics().is_file() { read_records(&folder.metrics())? } else { Vec::new() };
        let report = folder.report().is_file().then(|| Report::read(&folder.report())).transpose()?;
        let mut measures = BTreeMap::new();
        let best = records.iter().rev().find_map(|record| match record {
            Record::Epoch(epoch) if epoch.best => Some(&epoch.validation),
            _ => None,
        });
        if let Some(found) = report.as_ref().map(|report| &report.test.test).or(best) {
            measures.extend(found.flat());
        }
        let last = records.iter().rev().find_map(|record| match record {
            Record::Step(step) => Some((step.epoch as u64, step.step)),
            Record::Epoch(epoch) => Some((epoch.epoch, epoch.step)),
            Record::Test(_) => None,
        });
        let (epochs, steps) = report.as_ref().map(|r| (r.epochs, r.steps)).or(last).unwrap_or_default();
        let seconds = report.as_ref().map(|report| report.seconds.training + report.seconds.validation);
        let finished = report.is_some();
        Ok(Self {
            run: title(path, &settings),
            finished,
            epochs,
            steps,
            seconds,
            settings: settings.flat(),
            measures,
            records,
        })
    }

    /// The measure that chose the run's best epoch.
    fn watched(&self) -> String {
        self.settings.get("metric").and_then(Value::as_str).unwrap_or_default().to_string()
    }
}

/// How a run is called: by its folder as given, and by its name if that is another.
fn title(path: &Path, settings: &RunSettings) -> String {
    let (folder, name) = (path.display().to_string(), &settings.name);
    let same = name.is_empty() || path.file_name().is_some_and(|own| own == name.as_str());
    if same { folder } else { format!("{name} ({folder})") }
}

/// The names of settings in which runs differ.
fn differing(runs: &[Run]) -> Vec<&str> {
    let names: BTreeSet<&str> = runs.iter().flat_map(|run| run.settings.keys().map(String::as_str)).collect();
    let values = |name: &str| runs.iter().map(|run| run.settings.get(name).cloned()).collect::<Vec<_>>();
    names.into_iter().filter(|name| values(name).windows(2).any(|two| two[0] != two[1])).collect()
}

fn over_seeds(runs: &[Run]) -> Vec<OverSeeds> {
    let mut groups: Vec<(BTreeMap<String, Value>, Vec<&Run>)> = Vec::new();
    for run in runs.iter().filter(|run| run.finished) {
        let mut settings = run.settings.clone();
        settings.remove("seed");
        match groups.iter_mut().find(|(known, _)| *known == settings) {
            Some((_, group)) => group.push(run),
            None => groups.push((settings, vec![run])),
        }
    }
    let several = groups.into_iter().filter(|(_, group)| group.len() > 1);
    several
        .map(|(_, group)| {
            let shared =
                group[0].measures.keys().filter(|name| group.iter().all(|run| run.measures.contains_key(*name)));
            let summary = |name: &String| {
                let values: Vec<f64> = group.iter().filter_map(|run| run.measures.get(name).copied()).collect();
                let least = values.iter().copied().fold(f64::INFINITY, f64::min);
                let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let mean = values.iter().sum::<f64>() / values.len() as f64;
                if lower_is_better(name) { [mean, most, least] } else { [mean, least, most] }
            };
            OverSeeds {
                runs: group.iter().map(|run| run.run.clone()).collect(),
                measures: shared.map(|name| (name.clone(), summary(name))).collect(),
            }
        })
        .collect()
}

fn text(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "–".into(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// The header and one row per run: settings that differ, time, measures.
fn rows(runs: &[Run]) -> Vec<Vec<String>> {
    let settings = differing(runs);
    let measures: BTreeSet<&str> = runs.iter().flat_map(|run| run.measures.keys().map(String::as_str)).collect();
    let mut header = vec!["run".to_string()];
    header.extend(settings.iter().map(ToString::to_string));
    header.extend(["epochs", "steps", "seconds", "measured on"].map(String::from));
    header.extend(measures.iter().map(ToString::to_string));
    let row = |run: &Run| {
        let mut row = vec![run.run.clone()];
        row.extend(settings.iter().map(|name| text(run.settings.get(*name))));
        row.extend([run.epochs.to_string(), run.steps.to_string()]);
        row.push(run.seconds.map_or("–".into(), |seconds| format!("{seconds:.0}")));
        row.push(if run.finished { "test" } else { "validation, unfinished" }.into());
        row.extend(measures.iter().map(|name| run.measures.get(*name).map_or("–".into(), |value| number(*value))));
        row
    };
    std::iter::once(header).chain(runs.iter().map(row)).collect()
}

fn tables(runs: &[Run], seeds: &[OverSeeds]) -> String {
    // A run a column: there are few runs and many measures.
    let rows = rows(runs);
    let columns: Vec<Vec<String>> =
        (0..rows[0].len()).map(|i| rows.iter().map(|row| row[i].clone()).collect()).collect();
    let mut text = markdown(&columns);
    for OverSeeds { runs, measures } in seeds {
        text.push_str(&format!("\n{} seeds: {}\n\n", runs.len(), runs.join(", ")));
        let head = ["measure", "mean", "worst", "best"].map(String::from).to_vec();
        let row = |(name, values): (&String, &[f64; 3])| [vec![name.clone()], values.map(number).to_vec()].concat();
        text.push_str(&markdown(&std::iter::once(head).chain(measures.iter().map(row)).collect::<Vec<_>>()));
    }
    text
}

/// A Markdown table whose first row is its header; the first column is aligned to the left.
fn markdown(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(3);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let line = |row: &[String]| {
        let cell = |(i, cell): (usize, &String)| match i {
            0 => format!(" {cell:<0$} |", widths[i]),
            _ => format!(" {cell:>0$} |", widths[i]),
        };
        format!("|{}\n", row.iter().enumerate().map(cell).collect::<String>())
    };
    let rule = |(i, width): (usize, &usize)| {
        if i == 0 { format!(" {} |", "-".repeat(*width)) } else { format!(" {}: |", "-".repeat(width - 1)) }
    };
    let rule = format!("|{}\n", widths.iter().enumerate().map(rule).collect::<String>());
    line(&rows[0]) + &rule + &rows[1..].iter().map(|row| line(row)).collect::<String>()
}

fn write_csv(path: &Path, runs: &[Run]) -> Result<()> {
    Ok(atomic_write(path, |file| {
        let mut table = csv::Writer::from_writer(file);
        rows(runs).into_iter().try_for_each(|row| table.write_record(row))?;
        table.flush()
    })?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(name: &str, seed: u64, rate: f64, accuracy: f64) -> Run {
        Run {
            run: name.into(),
            finished: true,
            epochs: 3,
            steps: 60,
            seconds: Some(12.3),
            settings: BTreeMap::from([
                ("seed".into(), json!(seed)),
                ("learning-rate".into(), json!(rate)),
                ("batch-size".into(), json!(32)),
            ]),
            measures: BTreeMap::from([("random/accuracy".into(), accuracy), ("random/loss".into(), 1.0 - accuracy)]),
            records: Vec::new(),
        }
    }

    #[test]
    fn runs_that_differ_in_their_seed_are_summed_up() {
        let runs = [run("a", 0, 1e-3, 0.9), run("b", 1, 1e-3, 0.7), run("c", 0, 1e-4, 0.5)];
        let found = over_seeds(&runs);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].runs, ["a", "b"]);
        let close = |got: [f64; 3], want: [f64; 3]| got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-12);
        assert!(close(found[0].measures["random/accuracy"], [0.8, 0.7, 0.9]), "{found:?}");
        assert!(close(found[0].measures["random/loss"], [0.2, 0.3, 0.1]), "the worst loss is the largest: {found:?}");
    }

    #[test]
    fn the_table_has_the_settings_that_differ() {
        let runs = [run("a", 0, 1e-3, 0.9), run("b", 1, 1e-4, 0.7)];
        assert_eq!(differing(&runs), ["learning-rate", "seed"]);
        let want = "\
| run             |      a |      b |
| --------------- | -----: | -----: |
| learning-rate   |  0.001 | 0.0001 |
| seed            |      0 |      1 |
| epochs          |      3 |      3 |
| steps           |     60 |     60 |
| seconds         |     12 |     12 |
| measured on     |   test |   test |
| random/accuracy | 0.9000 | 0.7000 |
| random/loss     | 0.1000 | 0.3000 |
";
        assert_eq!(tables(&runs, &over_seeds(&runs)), want);
    }
}
