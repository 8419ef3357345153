//! A report as one HTML page, which needs nothing else: styles and plots are part of it, and there is no script.

use std::{collections::BTreeSet, time::Duration};

use super::{
    outcome::Outcome,
    plan::{Call, Pace, Plan, Users},
    plot::{Series, Style, escape, legend, plot},
    report::{Report, Second, time_text},
};

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1f2328; --paper: #ffffff; --grid: #d8dee4; --soft: #59636e;
  --c0: #0969da; --c1: #bc4c00; --c2: #1a7f37; --c3: #8250df; --c4: #bf3989; --c5: #9a6700; --c6: #0a7d8c; --c7: #cf222e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --grid: #30363d; --soft: #9198a1;
  --c0: #58a6ff; --c1: #f0883e; --c2: #3fb950; --c3: #bc8cff; --c4: #f778ba; --c5: #d29922; --c6: #39c5cf; --c7: #ff7b72; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 960px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.1em; margin: 2em 0 0.3em; }
p { color: var(--soft); margin: 0.2em 0; }
table { border-collapse: collapse; } td { padding: 0.15em 1.5em 0.15em 0; border-bottom: 1px solid var(--grid); }
td:last-child { text-align: right; font-variant-numeric: tabular-nums; padding-right: 0; }
svg { width: 100%; height: auto; } text { font-size: 12px; fill: var(--soft); }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
polygon { stroke-width: 1; } .grid { stroke: var(--grid); } .hover { fill: transparent; } .hover:hover { fill: var(--grid); opacity: 0.4; }
.legend i { display: inline-block; width: 0.8em; height: 0.8em; border-radius: 2px; margin: 0 0.4em 0 0.8em; }
";

impl Report {
    /// The report as an HTML page.
    pub fn to_html(&self) -> String {
        let target = escape(&self.plan.target);
        let lines = self.lines().into_iter().map(|(name, value)| {
            format!("<tr><td>{}</td><td>{}</td></tr>\n", escape(&name), escape(&value))
        });
        let lines: String = lines.collect();
        let (plan, style) = (escape(&describe(&self.plan)), STYLE);
        let stopped =
            if self.interrupted { "<p>The run was stopped before its end.</p>" } else { "" };
        let (rate, latency) = (self.rate_plot(), self.latency_plot());
        let (outcomes, backlog) = (self.outcome_plot(), self.backlog_plot());
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>Load on {target}</title>\n<style>{style}</style>\n</head>\n<body>\n\
             <h1>Load on {target}</h1>\n<p>{plan}</p>\n{stopped}\n<table>\n{lines}</table>\n\
             {rate}{latency}{outcomes}{backlog}</body>\n</html>\n"
        )
    }

    fn series(&self, name: &str, value: impl Fn(&Second) -> Option<f64>) -> Series {
        Series { name: name.to_owned(), values: self.plotted().iter().map(value).collect() }
    }

    /// The seconds without the last one if that is shorter than the others: it would look like a slow one.
    fn plotted(&self) -> &[Second] {
        let whole = usize::try_from(self.elapsed.as_secs()).unwrap_or(usize::MAX).max(1);
        &self.seconds[..whole.min(self.seconds.len())]
    }

    fn rate_plot(&self) -> String {
        let mut series = vec![self.series("answers", |second| Some(number(second.answered)))];
        if let Pace::Open { rate } = self.plan.pace {
            series.push(self.series("intended rate", |_| Some(rate)));
        }
        section("Answers per second", &series, Style::Lines, count_text)
    }

    fn latency_plot(&self) -> String {
        let latency = |time: Duration| (!time.is_zero()).then_some(time.as_secs_f64());
        let series = [
            self.series("p50", |second| latency(second.p50)),
            self.series("p99", |second| latency(second.p99)),
        ];
        let text = |seconds: f64| time_text(Duration::from_secs_f64(seconds));
        section("Latency (logarithmic)", &series, Style::Logarithmic, text)
    }

    fn outcome_plot(&self) -> String {
        let all = self.plotted().iter().flat_map(|second| second.outcomes.iter());
        let names: BTreeSet<&Outcome> = all.map(|(outcome, _)| outcome).collect();
        let series: Vec<Series> = names
            .into_iter()
            .map(|outcome| {
                let name = &outcome.name;
                self.series(name, |second| Some(number(second.outcomes.named(name))))
            })
            .collect();
        section("Outcomes per second", &series, Style::Stacked, count_text)
    }

    fn backlog_plot(&self) -> String {
        if self.plotted().iter().all(|second| second.backlog.is_none()) {
            return String::new();
        }
        let series =
            [self.series("accepted orders not stored yet", |second| second.backlog.map(number))];
        section("Backlog", &series, Style::Lines, count_text)
    }
}

fn section(title: &str, series: &[Series], style: Style, label: fn(f64) -> String) -> String {
    let (legend, plot) = (legend(series), plot(series, style, label));
    format!("<h2>{title}</h2>\n<p class=\"legend\">{legend}</p>\n{plot}\n")
}

fn number(count: u64) -> f64 {
    count as f64
}

/// A count with a comma before each three digits.
fn count_text(count: f64) -> String {
    let digits = format!("{count:.0}");
    let mut text = String::new();
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    // Small values have digits after the point.
    if count.fract() > 0.0 && count < 10.0 { format!("{count:.1}") } else { text }
}

/// The plan in one sentence.
fn describe(plan: &Plan) -> String {
    let callers = plan.connections * plan.streams;
    let pace = match plan.pace {
        Pace::Closed => format!("Closed loop: {callers} callers"),
        Pace::Open { rate } => {
            format!("Open loop: {rate} calls per second, at most {callers} at once")
        }
    };
    let call = match plan.call {
        Call::HealthCheck => "empty calls".to_owned(),
        Call::ReserveUnit => {
            let products = match plan.products.as_slice() {
                [product] => product.clone(),
                products => format!("{} products ({})", products.len(), plan.product_choice),
            };
            let users = match plan.users {
                Users::New => "a new user for each call".to_owned(),
                Users::Of { count, choice } => format!("{count} users ({choice})"),
            };
            let ids = if plan.request_ids { "with" } else { "without" };
            format!("reservations of {products}, {users}, {ids} request ids")
        }
    };
    format!("{pace} on {} connections; {call}.", plan.connections)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::report::tests::example;

    #[test]
    fn page_has_every_line_and_plot_and_is_escaped() {
        let page = example().to_html();
        for part in ["a&lt;b", "&lt;OVERLOADED&gt;", "p99.9", "<h2>Backlog</h2>", "</html>"] {
            assert!(page.contains(part), "{part} is missing: {page}");
        }
        assert_eq!(page.matches("<svg").count(), 4);
        assert!(!page.contains("<OVERLOADED>") && !page.contains("a<b"));
    }

    #[test]
    fn page_needs_nothing_from_elsewhere_and_has_no_script() {
        let page = example().to_html();
        for part in ["<script", "http://", "https://", "url(", "@import", "src=", "<link"] {
            assert!(!page.contains(part), "{part}");
        }
    }

    #[test]
    fn page_has_no_plot_of_a_backlog_that_was_not_read() {
        let mut report = example();
        report.seconds.iter_mut().for_each(|second| second.backlog = None);
        assert!(!report.to_html().contains("Backlog"));
    }

    #[test]
    fn last_second_is_plotted_only_if_it_is_whole_or_the_only_one() {
        let mut report = example();
        assert_eq!(report.plotted().len(), 2);
        report.elapsed = Duration::from_secs(3);
        assert_eq!(report.plotted().len(), 3);
        report.elapsed = Duration::from_millis(10);
        assert_eq!(report.plotted().len(), 1);
    }

    #[test]
    fn counts_have_commas() {
        let texts = [(0.0, "0"), (999.0, "999"), (1000.0, "1,000"), (1_234_567.0, "1,234,567")];
        for (count, text) in texts {
            assert_eq!(count_text(count), text);
        }
        assert_eq!(count_text(0.5), "0.5");
    }
}
