//! What the benchmark makes of its measurements: percentiles, tables, blocks of a page, plots.

#[path = "../../benches/gateway/figures/mod.rs"]
mod of_benchmarks;

use proptest::prelude::*;
use serde_json::{Value, json};

use self::of_benchmarks::{
    markers, stats,
    svg::Chart,
    table::{Column, Outcome, Row, Table},
};

#[test]
fn percentiles_are_values_that_were_measured() {
    let hundred = stats::sorted((1..=100).rev().map(f64::from).collect());
    for (share, value) in [(0.0, 1.0), (0.01, 1.0), (0.5, 50.0), (0.99, 99.0), (1.0, 100.0)] {
        assert_eq!(stats::percentile(&hundred, share), Some(value), "{share}");
    }
    assert_eq!(stats::percentile(&[7.0], 0.99), Some(7.0));
    assert_eq!(stats::percentile(&[], 0.5), None);
    assert_eq!(stats::median([3.0, 1.0, 2.0]), Some(2.0));
    assert_eq!(stats::median([]), None);
}

#[test]
fn only_the_named_block_of_a_page_changes() {
    let page = "a\n<!-- bench:x -->\nold\n<!-- /bench -->\nb\n<!-- bench:y -->\n<!-- /bench -->\n";
    let new = markers::replace(page, "x", "new\n").unwrap();
    assert_eq!(new, page.replace("old", "new"));
    // A second run with the same results changes nothing.
    assert_eq!(markers::replace(&new, "x", "new\n").unwrap(), new);
    assert!(markers::replace(page, "z", "").unwrap_err().contains("bench:z"));
    let open = "<!-- bench:x -->\n<!-- bench:y -->\n<!-- /bench -->\n";
    assert!(markers::replace(open, "x", "").unwrap_err().contains("bench:x"));
    assert!(markers::replace("<!-- bench:x -->", "x", "").is_err());
}

/// The page holds every block that the benchmark fills.
#[test]
fn the_page_has_a_block_for_each_table_and_plot() {
    let root = env!("CARGO_MANIFEST_DIR");
    let page = std::fs::read_to_string(format!("{root}/docs/benchmarks.md")).unwrap();
    for name in of_benchmarks::BLOCKS {
        markers::replace(&page, name, "").unwrap();
    }
    assert_eq!(page.matches("<!-- bench:").count(), of_benchmarks::BLOCKS.len());
}

fn table() -> Table {
    let row = |name: &str, outcome| Row { name: name.to_owned(), outcome, raw: json!([1, 2]) };
    Table {
        name: "requests".to_owned(),
        caption: "How.".to_owned(),
        columns: vec![Column::new("requests/s", 0), Column::difference("added µs", 1)],
        rows: vec![
            row("bare", Outcome::Measured(vec![Some(10.4), Some(0.25)])),
            row("a|b", Outcome::Measured(vec![None, Some(-3.0)])),
            row("broken", Outcome::Failed("status\n500".to_owned())),
            row("envoy", Outcome::Skipped("not installed".to_owned())),
            row("smg", Outcome::Skipped("not installed".to_owned())),
        ],
    }
}

#[test]
fn a_table_shows_numbers_only_for_rows_that_were_measured() {
    let text = table().markdown();
    for line in [
        "| configuration | requests/s | added µs |",
        "| bare | 10 | 0.2 |",
        "| a\\|b | - | below resolution |",
        "| broken | failed | |",
        "Failed: broken: status 500",
        "Skipped: envoy (not installed), smg (not installed).",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
    let failures: Vec<_> = table().failures().map(|(name, _)| name.to_owned()).collect();
    assert_eq!(failures, ["broken"]);
}

#[test]
fn a_table_can_be_read_back() {
    let table = table();
    assert_eq!(table.value("bare", "requests/s"), Some(10.4));
    for (row, column) in [("a|b", "requests/s"), ("broken", "requests/s"), ("bare", "none")] {
        assert_eq!(table.value(row, column), None);
    }
    let json = table.json();
    assert_eq!(json["name"], "requests");
    assert_eq!(json["rows"][0]["values"], json!({"requests/s": 10.4, "added µs": 0.25}));
    assert_eq!(json["rows"][0]["raw"], json!([1, 2]));
    assert_eq!(json["rows"][1]["values"]["requests/s"], Value::Null);
    assert_eq!(json["rows"][2], json!({"name": "broken", "failed": "status\n500"}));
    assert_eq!(json["rows"][3], json!({"name": "envoy", "skipped": "not installed"}));
}

fn chart(rows: Vec<(String, Vec<Option<f64>>)>) -> String {
    let series = vec!["p50".to_owned(), "p99 <x>".to_owned()];
    Chart { title: "A & B".to_owned(), axis: "\"µs\"".to_owned(), series, rows }.svg()
}

#[test]
fn a_bar_of_another_order_of_magnitude_is_cut() {
    let row = |value| (String::new(), vec![Some(value), None]);
    let svg = chart(vec![row(90.0), row(100.0), row(110.0), row(50_000.0)]);
    assert!(svg.contains(">… 50,000<") && svg.contains(">120<"), "{svg}");
    assert!(!svg.contains(">140<"), "{svg}");
}

#[test]
fn a_plot_names_its_axis_series_and_rows() {
    let svg = chart(vec![("a<b".to_owned(), vec![Some(12.34), None])]);
    for part in ["A &amp; B", "&quot;µs&quot;", "p99 &lt;x&gt;", "a&lt;b", ">12.3<", "dark"] {
        assert!(svg.contains(part), "{part}\n{svg}");
    }
    // The page, two squares of the legend, and one bar: what was not measured has none.
    assert_eq!(svg.matches("<rect").count(), 4, "{svg}");
    assert!(chart(vec![("x".to_owned(), vec![Some(123_456.0), None])]).contains(">123,456<"));
}

proptest! {
    #[test]
    fn bars_stay_inside_the_plot(values in prop::collection::vec(0.0..1e7f64, 0..12)) {
        let rows = values.iter().map(|v| (v.to_string(), vec![Some(*v), None])).collect();
        let svg = chart(rows);
        prop_assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        for width in svg.split(" width=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
            let width: f64 = width.parse().unwrap();
            prop_assert!((0.0..=860.0).contains(&width), "{width}");
        }
        let lines = svg.matches("<line").count();
        prop_assert!((2..=12).contains(&lines), "{lines} lines of the scale");
    }
}
