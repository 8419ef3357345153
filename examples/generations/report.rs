//! The report: the table that is printed, `report.json`, and the plots.

use std::{fs, path::Path};

use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde::{Serialize, Serializer};

use crate::{
    designs::Generation,
    measure::{
        number::{rounded, whole},
        plot::{self, Bar, Panel, Shade},
    },
    situation::{Measured, Second, Sizes},
};

/// The counts of one design in every situation.
#[derive(Debug, Serialize)]
pub(crate) struct Column {
    #[serde(rename = "design", serialize_with = "title")]
    pub(crate) generation: Generation,
    pub(crate) flash_sale: Measured,
    pub(crate) key_expires: Measured,
    pub(crate) plenty: Measured,
    pub(crate) postgres_down: Measured,
}

fn title<S: Serializer>(generation: &Generation, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(generation.title())
}

/// Selects one run of a design.
type Run = fn(&Column) -> &Measured;

/// The report of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Whether the program was built with optimization.
    pub(crate) optimized: bool,
    /// Processors that designs, stores and buyers share.
    pub(crate) processors: usize,
    pub(crate) sizes: Sizes,
    pub(crate) designs: Vec<Column>,
}

/// The runs in which Postgres is there all the time.
fn undisturbed(column: &Column) -> [&Measured; 3] {
    [&column.flash_sale, &column.key_expires, &column.plenty]
}

#[expect(clippy::cast_precision_loss, reason = "a rounded number for people")]
fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", part as f64 * 100.0 / whole.max(1) as f64)
}

fn error_rate(measured: &[&Measured]) -> String {
    let calls = measured.iter().map(|run| run.calls).sum();
    percent(measured.iter().map(|run| run.errors).sum(), calls)
}

impl Column {
    /// What contradicts the case study, which states that the first design oversells, the third loses units, the fourth
    /// oversells and loses accepted orders, and this program does none of these.
    fn contradictions(&self) -> Vec<&'static str> {
        let down = &self.postgres_down;
        let runs = [&self.flash_sale, &self.key_expires, &self.plenty, down];
        let shows_fault = match self.generation {
            Generation::ReadThenWrite => self.flash_sale.oversold > 0,
            Generation::SynchronousWrite => down.units_lost > 0,
            Generation::Queue => self.key_expires.oversold > 0 && down.accepted_lost > 0,
            Generation::OneStatement | Generation::ThisProgram => true,
        };
        let never_oversells = match self.generation {
            Generation::OneStatement | Generation::ThisProgram => true,
            Generation::ReadThenWrite | Generation::SynchronousWrite | Generation::Queue => false,
        };
        let mut found = Vec::new();
        if !shows_fault {
            found.push("its fault did not show in this run: more --buyers or --seconds may help");
        }
        if never_oversells && runs.iter().any(|run| run.oversold + run.accepted_lost > 0) {
            found.push("oversold, or lost an accepted order");
        }
        let loses_none = self.generation == Generation::ThisProgram;
        if loses_none && runs.iter().any(|run| run.units_lost > 0) {
            found.push("lost units");
        }
        found
    }
}

impl Report {
    /// What contradicts the case study; empty if all is as it states.
    pub(crate) fn contradictions(&self) -> Vec<String> {
        let of = |column: &Column| -> Vec<String> {
            let found = column.contradictions();
            found.iter().map(|found| format!("{}: {found}", column.generation.title())).collect()
        };
        self.designs.iter().flat_map(of).collect()
    }

    /// One column for each design; valid Markdown.
    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN);
        let header = self.designs.iter().map(|column| column.generation.title().to_owned());
        table.set_header(std::iter::once(String::new()).chain(header));
        let mut row = |name: String, cell: &dyn Fn(&Column) -> String| {
            table.add_row(std::iter::once(name).chain(self.designs.iter().map(cell)));
        };
        let Sizes { units, seconds, .. } = self.sizes;
        row(format!("{units} units: orders"), &|c| whole(c.flash_sale.orders));
        row(format!("{units} units: oversold"), &|c| whole(c.flash_sale.oversold));
        row(format!("{units} units: p95"), &|c| format!("{} ms", rounded(c.flash_sale.p95_ms)));
        let many = whole(self.sizes.units.unsigned_abs() * 10);
        row(format!("{many} units, the stock key expires: oversold"), &|c| {
            whole(c.key_expires.oversold)
        });
        row("accepted, peak rate".to_owned(), &|c| whole(c.plenty.peak_accepted));
        row("stored, per second".to_owned(), &|c| rounded(c.plenty.stored_per_second));
        row("connection errors".to_owned(), &|c| {
            whole(undisturbed(c).iter().map(|run| run.connection_errors).sum())
        });
        row("error rate".to_owned(), &|c| error_rate(&undisturbed(c)));
        let down = format!("Postgres down for {seconds} s");
        row(format!("{down}: accepted orders lost"), &|c| whole(c.postgres_down.accepted_lost));
        row(format!("{down}: units lost"), &|c| whole(c.postgres_down.units_lost));
        row(format!("{down}: error rate"), &|c| error_rate(&[&c.postgres_down]));
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    /// Writes everything into a directory.
    pub(crate) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("report.json"), serde_json::to_string(self)? + "\n")?;
        fs::write(dir.join("table.md"), format!("{}\n", self.table()))?;
        fs::write(dir.join("oversold.svg"), self.oversold_plot())?;
        fs::write(dir.join("rates.svg"), self.rates_plot())?;
        fs::write(dir.join("postgres-down.svg"), self.down_plot())?;
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "the length of a bar")]
    fn oversold_plot(&self) -> String {
        let sales: [(&str, Run); 2] = [
            ("flash sale", |column| &column.flash_sale),
            ("stock key expires", |column| &column.key_expires),
        ];
        let groups = sales.map(|(name, part)| {
            let supply = self.designs.first().map_or(0, |column| part(column).supply);
            let bars = self.designs.iter().map(|column| {
                let run = part(column);
                let within = run.orders - run.oversold;
                let text = match run.oversold {
                    0 => whole(run.orders),
                    oversold => format!("{} ({} too many)", whole(run.orders), whole(oversold)),
                };
                let parts = vec![(within as f64, "good"), (run.oversold as f64, "bad")];
                Bar { label: column.generation.title().to_owned(), parts, text }
            });
            (format!("{name}, {} units", whole(supply.unsigned_abs())), bars.collect())
        });
        let legend = [("good", "within the supply"), ("bad", "oversold")];
        plot::bars("Orders in Postgres", &legend, &groups)
    }

    #[expect(clippy::cast_precision_loss, reason = "the length of a bar")]
    fn rates_plot(&self) -> String {
        let mut bars = Vec::new();
        for column in &self.designs {
            let (accepted, stored) = (column.plenty.peak_accepted, column.plenty.stored_per_second);
            let parts = vec![(accepted as f64, "accepted")];
            let label = column.generation.title().to_owned();
            bars.push(Bar { label, parts, text: whole(accepted) });
            let parts = vec![(stored, "good")];
            bars.push(Bar { label: String::new(), parts, text: rounded(stored) });
        }
        let legend = [("accepted", "accepted, peak rate"), ("good", "stored, on average")];
        plot::bars("Orders per second", &legend, &[("plenty of units".to_owned(), bars)])
    }

    fn down_plot(&self) -> String {
        let panels = self.designs.iter().map(|column| {
            let run = &column.postgres_down;
            let sums = |count: fn(&Second) -> u64| -> Vec<u64> {
                let mut sum = 0;
                let counts = run.seconds.iter().map(count);
                let sums = counts.map(|count| {
                    sum += count;
                    sum
                });
                std::iter::once(0).chain(sums).collect()
            };
            let lines = vec![
                ("accepted", sums(|second| second.accepted)),
                ("good", sums(|second| second.stored)),
            ];
            let text = match (run.accepted_lost, run.units_lost) {
                (0, 0) => "nothing lost".to_owned(),
                (0, units) => format!("{} units lost", whole(units)),
                (orders, _) => format!("{} orders lost", whole(orders)),
            };
            Panel { title: column.generation.title().to_owned(), lines, text }
        });
        let shade = Shade {
            from: u64::from(self.sizes.seconds),
            to: 2 * u64::from(self.sizes.seconds),
            label: "Postgres is down",
        };
        let legend = [("accepted", "accepted"), ("good", "stored in Postgres")];
        let title = "Orders by the second since the start";
        plot::panels(title, &legend, &shade, &panels.collect::<Vec<_>>())
    }
}
