//! Plots as SVG, readable in a light and in a dark page.

use std::fmt::Write as _;

const WIDTH: f64 = 760.0;
const LABELS: f64 = 170.0;
const BARS: f64 = 400.0;
const ROW: f64 = 22.0;
const TOP: f64 = 56.0;

const STYLE: &str = "<style>
text { font: 12px system-ui, sans-serif; fill: #24292f } .title { font-weight: 600; font-size: 14px }
.good { fill: #2da44e } .bad { fill: #cf222e } .accepted { fill: #0969da } .shade { fill: #8c959f33 }
.line { fill: none; stroke-width: 2 } .line.good { stroke: #2da44e }
.line.accepted { stroke: #0969da; stroke-width: 5; stroke-opacity: 0.6 }
.axis { stroke: #8c959f } .end { text-anchor: end } .middle { text-anchor: middle }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } }
</style>";

/// A row of a bar chart: parts with their classes, and a text behind them.
pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) parts: Vec<(f64, &'static str)>,
    pub(crate) text: String,
}

impl Bar {
    fn length(&self) -> f64 {
        self.parts.iter().map(|(length, _)| length).sum()
    }
}

/// One of several line charts side by side. Each line has a value at each second.
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) lines: Vec<(&'static str, Vec<u64>)>,
    pub(crate) text: String,
}

/// A median and the values around it, as multiples of a goal.
pub(crate) struct Interval {
    pub(crate) label: String,
    pub(crate) text: String,
    /// The least and the greatest value.
    pub(crate) ends: [f64; 2],
    pub(crate) median: f64,
    /// Whether a value above the goal meets it.
    pub(crate) more_is_better: bool,
    pub(crate) class: &'static str,
}

/// A marked time, in seconds.
pub(crate) struct Shade {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) label: &'static str,
}

/// Classes and what they mean.
type Legend = [(&'static str, &'static str)];

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

fn text(svg: &mut String, class: &str, (x, y): (f64, f64), text: &str) {
    if text.is_empty() {
        return;
    }
    let text = escaped(text);
    // Writing to a String cannot fail.
    let _ok = writeln!(svg, r#"<text class="{class}" x="{x:.1}" y="{y:.1}">{text}</text>"#);
}

fn rect(svg: &mut String, class: &str, (x, y): (f64, f64), (width, height): (f64, f64)) {
    let _ok = writeln!(
        svg,
        r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}"/>"#
    );
}

fn open(title: &str, legend: &Legend, height: f64) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\" aria-label=\"{}\">\n{STYLE}\n",
        escaped(title)
    );
    text(&mut svg, "title", (8.0, 20.0), title);
    let mut x = 8.0;
    for (class, meaning) in legend {
        rect(&mut svg, class, (x, 31.0), (10.0, 10.0));
        text(&mut svg, "start", (x + 15.0, 40.0), meaning);
        x += 200.0;
    }
    svg
}

/// Horizontal bars. Those below one heading are on one scale.
pub(crate) fn bars(title: &str, legend: &Legend, groups: &[(String, Vec<Bar>)]) -> String {
    let rows =
        groups.iter().fold(0.0, |rows, (_, bars)| bars.iter().fold(rows + 1.0, |n, _| n + 1.0));
    let mut svg = open(title, legend, TOP + rows * ROW + 8.0);
    let mut y = TOP;
    for (heading, bars) in groups {
        text(&mut svg, "title", (8.0, y + 15.0), heading);
        y += ROW;
        let longest = bars.iter().map(Bar::length).fold(1.0, f64::max);
        for bar in bars {
            text(&mut svg, "end", (LABELS, y + 14.0), &bar.label);
            let mut x = LABELS + 8.0;
            for (length, class) in bar.parts.iter().filter(|(length, _)| *length > 0.0) {
                let width = length / longest * BARS;
                rect(&mut svg, class, (x, y + 3.0), (width, ROW - 6.0));
                x += width;
            }
            text(&mut svg, "start", (x + 6.0, y + 14.0), &bar.text);
            y += ROW;
        }
    }
    svg + "</svg>\n"
}

/// Line charts side by side, on the same scales.
#[expect(clippy::cast_precision_loss, reason = "coordinates")]
pub(crate) fn panels(title: &str, legend: &Legend, shade: &Shade, panels: &[Panel]) -> String {
    const HEIGHT: f64 = 130.0;
    let width = WIDTH / panels.len().max(1) as f64;
    let (inner, bottom) = (width - 16.0, TOP + 20.0 + HEIGHT);
    let lines = || panels.iter().flat_map(|panel| &panel.lines);
    let highest = lines().flat_map(|(_, values)| values).copied().max().unwrap_or(0).max(1) as f64;
    let last = lines().map(|(_, values)| values.len()).max().unwrap_or(0).max(2) as f64 - 1.0;
    let mut svg = open(title, legend, bottom + 44.0);
    for (number, panel) in panels.iter().enumerate() {
        let left = number as f64 * width + 8.0;
        let x = |second: f64| left + second / last * inner;
        text(&mut svg, "start", (left, TOP + 12.0), &panel.title);
        let (from, to) = (shade.from as f64, shade.to as f64);
        rect(&mut svg, "shade", (x(from), TOP + 20.0), (x(to) - x(from), HEIGHT));
        for (class, values) in &panel.lines {
            // A line ends at its last value; the others go on.
            let points = values.iter().enumerate().map(|(second, value)| {
                let y = bottom - *value as f64 / highest * HEIGHT;
                format!("{:.1},{y:.1}", x(second as f64))
            });
            let points = points.collect::<Vec<_>>().join(" ");
            let _ok = writeln!(svg, r#"<polyline class="line {class}" points="{points}"/>"#);
        }
        let (axis_from, axis_to) = (x(0.0), x(last));
        let _ok = writeln!(
            svg,
            r#"<line class="axis" x1="{axis_from:.1}" x2="{axis_to:.1}" y1="{bottom:.1}" y2="{bottom:.1}"/>"#
        );
        for (second, class) in [(0.0, "start"), (from, "middle"), (to, "middle"), (last, "end")] {
            text(&mut svg, class, (x(second), bottom + 15.0), &format!("{second}"));
        }
        text(&mut svg, "start", (left, bottom + 34.0), &panel.text);
    }
    rect(&mut svg, "shade", (448.0, 31.0), (10.0, 10.0));
    text(&mut svg, "start", (463.0, 40.0), shade.label);
    svg + "</svg>\n"
}

/// Medians and spreads on one scale, on which every goal is 1. Values above 2 are drawn at 2.
pub(crate) fn intervals(title: &str, intervals: &[Interval]) -> String {
    const LEFT: f64 = 430.0;
    const SCALE: f64 = 100.0;
    let rows = intervals.iter().fold(0.0, |rows, _| rows + 1.0);
    let legend = [("good", "goal met, with spread"), ("bad", "goal missed, with spread")];
    let mut svg = open(title, &legend, TOP + rows * ROW + 8.0);
    let x = |value: f64| LEFT + value.clamp(0.0, 2.0) * SCALE;
    let mut y = TOP;
    for interval in intervals {
        let Interval { label, text: value, ends: [least, greatest], median, class, .. } = interval;
        // The side of the goal on which values meet it.
        let side = if interval.more_is_better { 1.0 } else { 0.0 };
        rect(&mut svg, "shade", (x(side), y), (SCALE, ROW));
        text(&mut svg, "end", (LEFT - 8.0, y + 15.0), label);
        text(&mut svg, "start", (x(2.0) + 8.0, y + 15.0), value);
        let (width, height) = ((x(*greatest) - x(*least)).max(2.0), 4.0);
        rect(&mut svg, class, (x(*least), y + (ROW - height) / 2.0), (width, height));
        rect(&mut svg, class, (x(*median) - 3.0, y + 4.0), (6.0, ROW - 8.0));
        y += ROW;
    }
    svg + "</svg>\n"
}
