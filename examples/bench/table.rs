//! The table of figures beside their goals, and the report.

use std::{fs, path::Path};

use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde::Serialize;

use crate::{
    figure::{Figure, Goal},
    load::Phase,
    measure::{
        number::rounded,
        plot::{self, Interval},
    },
    parts::{Measured, Part, Setup, Sizes},
    spread::Spread,
};

/// One part of one run. Its audit was clean: otherwise there is no report.
#[derive(Debug, Serialize)]
struct Done {
    run: u32,
    part: Part,
    phases: Vec<Phase>,
    audit: &'static str,
}

/// A figure, with the values of all runs.
#[derive(Debug, Serialize)]
struct Row {
    figure: Figure,
    #[serde(flatten)]
    spread: Spread,
    goal: Option<f64>,
    /// Whether the median meets the goal.
    met: Option<bool>,
}

/// The report of a bench.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// What `yoink --version` prints.
    version: String,
    /// Processors that the service, its stores and the callers share.
    processors: usize,
    sizes: Sizes,
    rows: Vec<Row>,
    parts: Vec<Done>,
    /// Whether no part failed.
    is_complete: bool,
}

/// Measures the parts this many times. If a part fails, the others of this run and later runs are not measured: the report has
/// what was measured before, and the failure.
pub(crate) async fn measure(
    setup: &Setup,
    parts: &[Part],
    runs: u32,
) -> anyhow::Result<(Report, anyhow::Result<()>)> {
    let (mut done, mut figures, mut outcome) = (Vec::new(), Vec::new(), Ok(()));
    let of_run = |run: u32| parts.iter().filter(move |part| run == 1 || part.is_repeated());
    for (run, &part) in (1..=runs).flat_map(|run| of_run(run).map(move |part| (run, part))) {
        crate::progress(&format!("run {run} of {runs}: {part:?}").to_lowercase());
        match part.measure(setup).await {
            Ok(Measured { figures: measured, phases }) => {
                figures.extend(measured);
                done.push(Done { run, part, phases, audit: "clean" });
            }
            Err(error) => {
                outcome = Err(error.context(format!("run {run}, part {part:?}")));
                break;
            }
        }
    }
    let row = |&figure: &Figure| {
        let values = figures.iter().filter(|(of, _)| *of == figure).map(|(_, value)| *value);
        let spread = Spread::of(values.collect())?;
        let (goal, met) = (figure.goal().value(), figure.goal().is_met(spread.median));
        Some(Row { figure, spread, goal, met })
    };
    let report = Report {
        version: setup.programs.version()?,
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        sizes: setup.sizes.clone(),
        rows: Figure::ALL.iter().filter_map(row).collect(),
        parts: done,
        is_complete: outcome.is_ok(),
    };
    Ok((report, outcome))
}

impl Report {
    /// One row for each figure; valid Markdown.
    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN);
        table.set_header(["", "median", "least to greatest", "goal", ""]);
        for Row { figure, spread, met, .. } in &self.rows {
            let written = |value: f64| figure.written(value);
            table.add_row([
                figure.title().to_owned(),
                written(spread.median),
                format!("{} to {}", written(spread.least), written(spread.greatest)),
                figure.written_goal(),
                met.map_or("", word).to_owned(),
            ]);
        }
        for column in table.column_iter_mut().skip(1).take(3) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    /// What a call costs in each phase: medians of all runs, in the order of the phases; valid Markdown.
    pub(crate) fn costs(&self) -> Table {
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN);
        table.set_header(["", "calls", "service", "Redis", "load generator", "sum", "p99"]);
        let mut phases: Vec<(Part, &str, Vec<&Phase>)> = Vec::new();
        for (part, phase) in self
            .parts
            .iter()
            .flat_map(|done| done.phases.iter().map(move |phase| (done.part, phase)))
        {
            match phases.iter_mut().find(|(of, name, _)| (*of, *name) == (part, &phase.name)) {
                Some((_, _, same)) => same.push(phase),
                None => phases.push((part, &phase.name, vec![phase])),
            }
        }
        for (part, name, same) in phases {
            let median = |value: fn(&Phase) -> f64| {
                let spread = Spread::of(same.iter().map(|phase| value(phase)).collect());
                spread.map_or(f64::NAN, |spread| spread.median)
            };
            table.add_row([
                format!("{part:?}: {name}").to_lowercase(),
                format!("{}/s", rounded(median(|phase| phase.rate))),
                format!("{:.1}", median(|phase| phase.service_us)),
                format!("{:.1}", median(|phase| phase.redis_us)),
                format!("{:.1}", median(|phase| phase.load_us)),
                format!("{:.1}", median(Phase::cost_us)),
                rounded(median(|phase| phase.p99_us)),
            ]);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    /// Each figure that has a goal, as a multiple of the goal.
    fn plot(&self) -> String {
        let interval = |row: &Row| {
            let (goal, met) = (row.goal?, row.met?);
            let text = format!("{} ({})", row.figure.written(row.spread.median), word(met));
            let at = |value: f64| value / goal;
            Some(Interval {
                label: format!("{} {}", row.figure.title(), row.figure.written_goal()),
                text,
                ends: [at(row.spread.least), at(row.spread.greatest)],
                median: at(row.spread.median),
                more_is_better: matches!(row.figure.goal(), Goal::AtLeast(_)),
                class: if met { "good" } else { "bad" },
            })
        };
        let intervals: Vec<Interval> = self.rows.iter().filter_map(interval).collect();
        plot::intervals("Figures as multiples of their goals", &intervals)
    }

    /// Writes everything into a directory.
    pub(crate) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("report.json"), serde_json::to_string_pretty(self)? + "\n")?;
        fs::write(dir.join("table.md"), format!("{}\n", self.table()))?;
        fs::write(dir.join("costs.md"), format!("{}\n", self.costs()))?;
        fs::write(dir.join("goals.svg"), self.plot())?;
        Ok(())
    }
}

fn word(met: bool) -> &'static str {
    if met { "met" } else { "missed" }
}
