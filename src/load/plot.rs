//! Plots as SVG, for a page that has the colours `--c0` to `--c7`, `--ink` and `--grid`.

use std::fmt::Write as _;

/// The size of a plot, and of its parts, in units of its view.
const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 28.0;
/// Colours of the page.
const COLORS: usize = 8;
/// Labels beside and below a plot, at most about.
const LABELS: usize = 5;

/// One value for each second; a second without a value interrupts the line.
pub(super) struct Series {
    pub(super) name: String,
    pub(super) values: Vec<Option<f64>>,
}

/// How values are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// A line for each series, from 0 up.
    Lines,
    /// A line for each series on a logarithmic scale; values of 0 are left out.
    Logarithmic,
    /// Areas on top of one another.
    Stacked,
}

/// Draws series over the seconds of a run; `label` writes a value.
pub(super) fn plot(series: &[Series], style: Style, label: impl Fn(f64) -> String) -> String {
    let seconds = series.iter().map(|series| series.values.len()).max().unwrap_or(0);
    let bands = if style == Style::Stacked { stacked(series, seconds) } else { Vec::new() };
    let tops = bands.iter().flat_map(|band| band.iter().map(|(_, top)| Some(*top)));
    let values = series.iter().flat_map(|series| series.values.iter().copied());
    let values: Vec<f64> = tops.chain(values).flatten().filter(|value| value.is_finite()).collect();
    let scale = Scale::of(&values, style, seconds);

    let mut svg = format!(r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">"#);
    for tick in scale.ticks() {
        let (y, text) = (scale.y(tick), escape(&label(tick)));
        add(
            &mut svg,
            format_args!(
                r#"<line class="grid" x1="{LEFT}" x2="{}" y1="{y:.1}" y2="{y:.1}"/><text x="{}" y="{:.1}" text-anchor="end">{text}</text>"#,
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 4.0
            ),
        );
    }
    for second in second_labels(seconds) {
        let x = scale.x(second);
        add(
            &mut svg,
            format_args!(
                r#"<text x="{x:.1}" y="{}" text-anchor="middle">{second} s</text>"#,
                HEIGHT - 8.0
            ),
        );
    }
    if style == Style::Stacked {
        for (number, band) in bands.iter().enumerate() {
            add_area(&mut svg, &scale, band, number);
        }
    } else {
        for (number, series) in series.iter().enumerate() {
            add_line(&mut svg, &scale, series, number);
        }
    }
    add_tooltips(&mut svg, &scale, series, &label);
    svg.push_str("</svg>");
    svg
}

/// The names of series beside their colours.
pub(super) fn legend(series: &[Series]) -> String {
    series.iter().enumerate().fold(String::new(), |mut html, (number, series)| {
        let (color, name) = (number % COLORS, escape(&series.name));
        add(
            &mut html,
            format_args!(r#"<span><i style="background:var(--c{color})"></i>{name}</span> "#),
        );
        html
    })
}

/// Text in HTML or SVG.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Writing to a string does not fail.
fn add(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    let written = text.write_fmt(arguments);
    debug_assert!(written.is_ok());
}

/// The positions of values and seconds.
struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
    seconds: usize,
}

impl Scale {
    fn of(values: &[f64], style: Style, seconds: usize) -> Self {
        let logarithmic = style == Style::Logarithmic;
        let largest = values.iter().copied().fold(0.0, f64::max);
        let positive = values.iter().copied().filter(|value| *value > 0.0);
        let smallest = positive.fold(f64::INFINITY, f64::min);
        if !logarithmic || largest <= 0.0 {
            let high = if largest > 0.0 { largest * 1.05 } else { 1.0 };
            return Self { low: 0.0, high, logarithmic: false, seconds };
        }
        let steps = one_two_five(smallest, largest);
        let (low, high) = (steps[0], steps[steps.len() - 1]);
        Self { low, high, logarithmic, seconds }
    }

    fn ticks(&self) -> Vec<f64> {
        if self.logarithmic {
            let all = one_two_five(self.low, self.high);
            let every = all.len().div_ceil(2 * LABELS);
            return all.into_iter().step_by(every).collect();
        }
        let step = nice_step(self.high / LABELS as f64);
        let ticks = (0..=2 * LABELS).scan(0.0, |next, _| {
            let tick = *next;
            *next += step;
            Some(tick)
        });
        ticks.take_while(|tick| *tick <= self.high).collect()
    }

    fn y(&self, value: f64) -> f64 {
        let part = if self.logarithmic {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            value / self.high
        };
        HEIGHT - BOTTOM - part * (HEIGHT - BOTTOM - TOP)
    }

    fn x(&self, second: usize) -> f64 {
        let last = self.seconds.saturating_sub(1).max(1);
        LEFT + second as f64 / last as f64 * (WIDTH - LEFT - RIGHT)
    }
}

/// The numbers 1, 2 and 5 times a power of ten, from the last one not above `low` to the first one not below `high`.
fn one_two_five(low: f64, high: f64) -> Vec<f64> {
    let mut power = 10_f64.powf(low.log10().floor());
    let mut steps: Vec<f64> = Vec::new();
    loop {
        for factor in [1.0, 2.0, 5.0] {
            let step = factor * power;
            if step <= low {
                steps.clear();
            }
            steps.push(step);
            if step >= high && steps.len() > 1 {
                return steps;
            }
        }
        power *= 10.0;
    }
}

/// The first of 1, 2 and 5 times a power of ten that is not below `step`.
fn nice_step(step: f64) -> f64 {
    let steps = one_two_five(step, step);
    steps.into_iter().find(|nice| *nice >= step).unwrap_or(step)
}

/// Some seconds, evenly spaced.
fn second_labels(seconds: usize) -> impl Iterator<Item = usize> {
    (0..seconds).step_by(seconds.div_ceil(2 * LABELS).max(1))
}

/// The bottom and the top of each series in each second.
fn stacked(series: &[Series], seconds: usize) -> Vec<Vec<(f64, f64)>> {
    let mut bottoms = vec![0.0; seconds];
    let bands = series.iter().map(|series| {
        let heights = series.values.iter().map(|value| value.unwrap_or(0.0));
        let band = bottoms.iter_mut().zip(heights).map(|(bottom, height)| {
            let band = (*bottom, *bottom + height);
            *bottom = band.1;
            band
        });
        band.collect()
    });
    bands.collect()
}

fn add_area(svg: &mut String, scale: &Scale, band: &[(f64, f64)], number: usize) {
    let seconds = || (0..).zip(band.iter());
    let over = seconds().map(|(second, (_, top))| point(scale, second, *top));
    let back = seconds().map(|(second, (bottom, _))| point(scale, second, *bottom));
    let back: Vec<String> = back.collect();
    let points: Vec<String> = over.chain(back.into_iter().rev()).collect();
    let (points, color) = (points.join(" "), number % COLORS);
    // A single second has no area, so the outline is drawn as well.
    add(
        svg,
        format_args!(
            r#"<polygon points="{points}" style="fill:var(--c{color});stroke:var(--c{color})"/>"#
        ),
    );
}

fn add_line(svg: &mut String, scale: &Scale, series: &Series, number: usize) {
    let color = number % COLORS;
    let drawn = |value: &Option<f64>| value.filter(|value| *value > 0.0 || !scale.logarithmic);
    let points: Vec<Option<String>> = (0..)
        .zip(&series.values)
        .map(|(second, value)| Some(point(scale, second, drawn(value)?)))
        .collect();
    for part in points.split(Option::is_none).filter(|part| !part.is_empty()) {
        let points: Vec<&str> = part.iter().flatten().map(String::as_str).collect();
        // A single point is drawn by its round ends.
        let points = if points.len() == 1 { [points[0]; 2].join(" ") } else { points.join(" ") };
        add(svg, format_args!(r#"<polyline points="{points}" style="stroke:var(--c{color})"/>"#));
    }
}

fn point(scale: &Scale, second: usize, value: f64) -> String {
    format!("{:.1},{:.1}", scale.x(second), scale.y(value))
}

/// An invisible column for each second, which shows its values under the pointer.
fn add_tooltips(svg: &mut String, scale: &Scale, series: &[Series], label: impl Fn(f64) -> String) {
    let width = scale.x(1) - scale.x(0);
    for second in 0..scale.seconds {
        let values = series.iter().filter_map(|series| {
            let value = series.values.get(second).copied().flatten()?;
            Some(format!("\n{}: {}", escape(&series.name), escape(&label(value))))
        });
        let values: String = values.collect();
        let (x, height) = (scale.x(second) - width / 2.0, HEIGHT - BOTTOM - TOP);
        add(
            svg,
            format_args!(
                r#"<rect class="hover" x="{x:.1}" y="{TOP}" width="{width:.1}" height="{height}"><title>second {second}{values}</title></rect>"#
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str, values: &[Option<f64>]) -> Series {
        Series { name: name.to_owned(), values: values.to_vec() }
    }

    fn number(value: f64) -> String {
        format!("{value}")
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(escape(r#"<a href="x">'&"#), "&lt;a href=&quot;x&quot;&gt;&#39;&amp;");
        let svg = plot(&[series("<b>", &[Some(1.0)])], Style::Lines, number);
        assert!(svg.contains("&lt;b&gt;: 1") && !svg.contains("<b>"), "{svg}");
        assert!(legend(&[series("<b>", &[])]).contains("&lt;b&gt;"));
    }

    #[test]
    fn second_without_a_value_interrupts_the_line() {
        let values = [Some(1.0), Some(2.0), None, Some(3.0)];
        let svg = plot(&[series("rate", &values)], Style::Lines, number);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert_eq!(svg.matches("<rect").count(), 4);
    }

    #[test]
    fn stacked_areas_lie_on_top_of_one_another() {
        let all = [series("a", &[Some(1.0), Some(2.0)]), series("b", &[Some(3.0), None])];
        assert_eq!(stacked(&all, 2), [[(0.0, 1.0), (0.0, 2.0)], [(1.0, 4.0), (2.0, 2.0)]]);
        let svg = plot(&all, Style::Stacked, number);
        assert_eq!(svg.matches("<polygon").count(), 2);
    }

    #[test]
    fn scale_covers_every_value() {
        for style in [Style::Lines, Style::Logarithmic] {
            for values in [&[1.0][..], &[0.0], &[0.003, 70.0], &[999.0, 1000.0, 1001.0], &[]] {
                let scale = Scale::of(values, style, 1);
                for value in values.iter().copied().filter(|value| *value > 0.0) {
                    let y = scale.y(value);
                    assert!((TOP..=HEIGHT - BOTTOM).contains(&y), "{values:?}: {y}");
                }
                let ticks = scale.ticks();
                assert!((1..=2 * LABELS + 1).contains(&ticks.len()), "{values:?}: {ticks:?}");
            }
        }
    }

    #[test]
    fn steps_are_one_two_or_five_times_a_power_of_ten() {
        let near = |found: Vec<f64>, expected: &[f64]| {
            let pairs = found.iter().zip(expected);
            found.len() == expected.len()
                && pairs.into_iter().all(|(a, b)| (a / b - 1.0).abs() < 1e-9)
        };
        assert!(near(one_two_five(3.0, 40.0), &[2.0, 5.0, 10.0, 20.0, 50.0]));
        assert!(near(one_two_five(1.0, 1.0), &[1.0, 2.0]));
        assert!((nice_step(0.3) - 0.5).abs() < 1e-9 && (nice_step(1000.0) - 1000.0).abs() < 1e-6);
    }

    #[test]
    fn plot_without_seconds_is_empty_and_valid() {
        let svg = plot(&[], Style::Logarithmic, number);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>"));
    }
}
