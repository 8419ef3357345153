//! `scripts/scaling.py`: the plans of docs/scaling.md are what it prints, and its costs are those of docs/performance.md.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value as Json;

use crate::harness::scratch_dir;

const PAGE: &str = include_str!("../../docs/scaling.md");

fn scaling(args: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/scaling.py");
    Command::new("python3").arg(script).args(args).output().unwrap()
}

fn plan(args: &[&str]) -> Json {
    let output = scaling(&[args, &["--json", "--simulated", "2000"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn plans_of_the_page_are_what_the_script_prints() {
    let copy = scratch_dir("scaling").join("scaling.md");
    fs::write(&copy, PAGE).unwrap();
    let output = scaling(&["--document", copy.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read_to_string(&copy).unwrap(), PAGE, "run `make scaling`");
    assert!(PAGE.matches("<!-- scaling.py ").count() >= 5);
}

#[test]
fn plans_use_more_of_everything_for_a_higher_rate_and_keep_their_limits() {
    let (small, large) = (plan(&["--accepted", "100000"]), plan(&["--accepted", "1000000"]));
    for name in ["api_processes", "redis_masters", "partitions", "postgres_cores", "network_gbit_s"]
    {
        assert!(small[name].as_f64() < large[name].as_f64(), "{name}: {small} {large}");
    }
    for plan in [&small, &large] {
        assert!(plan["redis_used"].as_f64().unwrap() <= 0.6, "{plan}");
        assert!(plan["p50_ms"].as_f64() <= plan["p99_ms"].as_f64(), "{plan}");
    }
    // One master is not enough for this product, and the plan states so.
    let hot = plan(&["--accepted", "100000", "--hot"]);
    let problem = hot["problems"][0].as_str().unwrap();
    assert!(problem.starts_with("one master would be used to"), "{problem}");
    assert!(!scaling(&["--accepted", "1000", "--rtt-ms", "0"]).status.success());
}

#[test]
fn unit_costs_are_those_of_the_performance_page() {
    let page = include_str!("../../docs/performance.md");
    let script = include_str!("../../scripts/scaling.py");
    // The row of the script, and where the page has the same number.
    for (row, measured) in [
        ("\"service-accept-us\", 14.2", "An accepted call, 14.2 µs"),
        ("\"service-refuse-us\", 11.9", "| 12.9 → 11.9 |"),
        ("\"redis-batch-us\", 15.0", "A batch costs about 15 µs in addition to its orders"),
        ("\"redis-store-us\", 5.0", "| 4.9 | 5.0 | 10.9 | 20.8 |"),
        ("\"worker-store-us\", 4.9", "| 4.9 | 5.0 | 10.9 | 20.8 |"),
        // In transactions of 500: 10.9. The part of a transaction is from 8.7 µs in batches of 500 and 13.7 in batches of 20.
        ("\"postgres-store-us\", 10.7", "| 4.9 | 5.0 | 10.9 | 20.8 |"),
        ("\"postgres-transaction-us\", 104.0", "8.7. In batches of 20: 19.6 before, 13.7 after."),
        ("\"redis-claim-bytes\", 130.0", "claim 130 bytes"),
    ] {
        assert!(script.contains(row) && page.contains(measured), "{row}: {measured}");
    }
}
