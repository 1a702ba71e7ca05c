//! Bar charts as SVG. The drawing has its own background, and colours for light and dark pages.

use std::fmt::Write;

use super::stats;

const NAMES: f64 = 270.0;
const WIDTH: f64 = 860.0;
/// Room for the value at the end of a bar.
const VALUES: f64 = 70.0;
const BAR: f64 = 16.0;
const GAP: f64 = 10.0;
const TOP: f64 = 66.0;
const BOTTOM: f64 = 52.0;

const STYLE: &str = "\
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.title { font-size: 16px; font-weight: 600; }
.page { fill: #ffffff; }
.line { stroke: #d1d9e0; stroke-width: 1; }
.s0 { fill: #0969da; } .s1 { fill: #bc4c00; } .s2 { fill: #1a7f37; } .s3 { fill: #8250df; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .page { fill: #0d1117; }
  .line { stroke: #3d444d; }
  .s0 { fill: #4493f8; } .s1 { fill: #f0883e; } .s2 { fill: #3fb950; } .s3 { fill: #ab7df8; }
}";

/// A horizontal bar chart: for each row one bar of each series.
pub struct Chart {
    pub title: String,
    /// What the horizontal axis shows, with its unit.
    pub axis: String,
    /// At most four.
    pub series: Vec<String>,
    /// A name, and one value for each series; `None` was not measured.
    pub rows: Vec<(String, Vec<Option<f64>>)>,
}

impl Chart {
    pub fn svg(&self) -> String {
        let height = TOP + self.rows.len() as f64 * self.band() + BOTTOM;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
             height=\"{height}\" role=\"img\" aria-label=\"{0}\">\n<style>{STYLE}</style>\n\
             <rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\" rx=\"6\"/>\n\
             <text class=\"title\" x=\"16\" y=\"28\">{0}</text>\n",
            escape(&self.title)
        );
        self.legend(&mut out);
        self.scale(&mut out, height - BOTTOM);
        for (i, (name, values)) in self.rows.iter().enumerate() {
            self.row(&mut out, TOP + i as f64 * self.band(), name, values);
        }
        out.push_str("</svg>\n");
        out
    }

    /// The height of a row.
    fn band(&self) -> f64 {
        self.series.len() as f64 * BAR + GAP
    }

    fn legend(&self, out: &mut String) {
        if self.series.len() < 2 {
            return;
        }
        for (i, name) in self.series.iter().enumerate() {
            let x = NAMES + i as f64 * 140.0;
            line(
                out,
                &format!("<rect class=\"s{i}\" x=\"{x}\" y=\"42\" width=\"12\" height=\"12\"/>"),
            );
            line(out, &format!("<text x=\"{}\" y=\"53\">{}</text>", x + 18.0, escape(name)));
        }
    }

    /// Vertical lines with their values, and the name of the axis.
    fn scale(&self, out: &mut String, bottom: f64) {
        let step = step(self.largest());
        let mut value = 0.0;
        while value <= self.end() + step / 2.0 {
            let x = NAMES + self.length(value);
            line(
                out,
                &format!(
                    "<line class=\"line\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\"/>"
                ),
            );
            line(
                out,
                &format!(
                    "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                    bottom + 18.0,
                    number(value)
                ),
            );
            value += step;
        }
        let middle = NAMES + (WIDTH - NAMES - VALUES) / 2.0;
        line(
            out,
            &format!(
                "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                bottom + 40.0,
                escape(&self.axis)
            ),
        );
    }

    fn row(&self, out: &mut String, top: f64, name: &str, values: &[Option<f64>]) {
        let middle = top + self.series.len() as f64 * BAR / 2.0 + 4.0;
        line(
            out,
            &format!(
                "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{}</text>",
                NAMES - 10.0,
                escape(name)
            ),
        );
        for (i, value) in values.iter().enumerate() {
            let Some(value) = value else { continue };
            let (y, length) = (top + i as f64 * BAR, self.length(*value));
            line(
                out,
                &format!(
                    "<rect class=\"s{i}\" x=\"{NAMES}\" y=\"{y}\" width=\"{length:.1}\" height=\"{}\"/>",
                    BAR - 2.0
                ),
            );
            line(
                out,
                &format!(
                    "<text x=\"{:.1}\" y=\"{}\">{}</text>",
                    NAMES + length + 6.0,
                    y + 12.0,
                    // A bar that was cut.
                    if *value > self.end() { "… " } else { "" }.to_owned() + &number(*value)
                ),
            );
        }
    }

    /// The largest value that the axis has room for. Values of another order of magnitude are cut, so
    /// that one row does not make the others unreadable.
    fn largest(&self) -> f64 {
        /// How many times the third quartile is another order of magnitude.
        const FAR: f64 = 5.0;
        let values = self.rows.iter().flat_map(|(_, values)| values).flatten().copied();
        let values = stats::sorted(values.collect());
        let usual = stats::percentile(&values, 0.75).unwrap_or(0.0);
        values.into_iter().take_while(|value| *value <= usual * FAR).last().unwrap_or(0.0)
    }

    /// The value at the end of the axis.
    fn end(&self) -> f64 {
        let step = step(self.largest());
        (self.largest() / step).ceil().max(1.0) * step
    }

    fn length(&self, value: f64) -> f64 {
        (value / self.end()).clamp(0.0, 1.0) * (WIDTH - NAMES - VALUES)
    }
}

fn line(out: &mut String, text: &str) {
    writeln!(out, "{text}").ok();
}

/// A round distance between the lines of a scale: three to seven of them.
fn step(largest: f64) -> f64 {
    if largest <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf((largest / 3.0).log10().floor());
    let of = |n: f64| n * power;
    [5.0, 2.0, 1.0].into_iter().map(of).find(|step| largest / step >= 3.0).unwrap_or(power)
}

fn number(value: f64) -> String {
    let digits = if value.fract() == 0.0 || value.abs() >= 100.0 { 0 } else { 1 };
    let text = format!("{value:.digits$}");
    if value.abs() < 10_000.0 {
        return text;
    }
    // Thousands are easier to read in groups.
    let mut grouped = String::new();
    for (i, c) in text.chars().enumerate() {
        if i > 0 && c.is_ascii_digit() && (text.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(c);
    }
    grouped
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
