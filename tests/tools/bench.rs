//! `make bench`, `make bench-growth`, `make bench-idle` and `make bench-check`, small: the form of their reports, that every audit was clean, and
//! that nothing is left. The figures mean nothing here.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value as Json;

use crate::harness::{eventually, processes_under, scratch_dir};

/// The figures of the part that is not repeated.
const ONCE: [&str; 2] =
    ["memory of the service, 1,000 connections, peak", "its growth in the second half"];

/// A run of the bench, with directories of its own for its servers and its reports.
struct Bench {
    command: Command,
    servers: PathBuf,
    reports: PathBuf,
}

impl Bench {
    fn new(args: &str) -> Self {
        let (servers, reports) = (scratch_dir("bench-servers"), scratch_dir("bench-reports"));
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM"]).arg(root.join("target/debug/examples/bench"));
        command.args(args.split(' ')).arg("--out").arg(&reports).env("TMPDIR", &servers);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { command, servers, reports }
    }

    /// Runs it to its end; returns the report of this name.
    async fn report(mut self, name: &str) -> Json {
        let output = tokio::task::spawn_blocking(move || {
            let output = self.command.output().unwrap();
            assert_nothing_left(&self.servers);
            (output, self.reports)
        });
        let (output, reports) = output.await.unwrap();
        let log = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{log}");
        for entry in fs::read_dir(&reports).unwrap().flatten() {
            let text = fs::read_to_string(entry.path()).unwrap();
            let is_svg = entry.path().extension().is_some_and(|ending| ending == "svg");
            assert!(!is_svg || text.ends_with("</svg>\n"), "{text}");
        }
        serde_json::from_str(&fs::read_to_string(reports.join(name)).unwrap()).unwrap()
    }
}

pub(crate) fn assert_nothing_left(servers: &Path) {
    assert_eq!(processes_under(servers), [""; 0]);
    let left: Vec<_> = fs::read_dir(servers).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bench_measures_every_figure_and_each_audit_is_clean() {
    let sizes = "table --runs 2 --rounds 1 --seconds 0.3 --orders 500 --products 20 --connections 20 \
                 --streams 2 --rest-connections 10 --away-seconds 0.5 --memory-seconds 1";
    let report = Bench::new(sizes).report("report.json").await;
    let parts: Vec<&str> =
        report["parts"].as_array().unwrap().iter().map(|it| it["part"].as_str().unwrap()).collect();
    let repeated = ["api", "credentials", "edge", "stored", "spread", "cluster", "away"];
    assert_eq!(parts, [&repeated[..], &["memory"], &repeated].concat());
    for part in report["parts"].as_array().unwrap() {
        assert_eq!(part["audit"], "clean");
        let phases = part["phases"].as_array().unwrap();
        assert!(!phases.is_empty(), "{part}");
        assert!(phases.iter().all(|phase| phase["others"] == 0), "{part}");
    }
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 31);
    for row in rows {
        let runs = if ONCE.contains(&row["figure"].as_str().unwrap()) { 1 } else { 2 };
        assert_eq!(row["values"].as_array().unwrap().len(), runs, "{row}");
        assert_eq!(row["goal"].is_null(), row["met"].is_null(), "{row}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bench_growth_measures_each_point() {
    let sizes =
        "growth --runs 1 --seconds 0.3 --streams 2 --divide 10000 --dimensions ledger,backlog";
    let report = Bench::new(sizes).report("growth.json").await;
    let points = report["points"].as_array().unwrap().iter();
    let points = points.map(|point| (point["dimension"].as_str().unwrap(), &point["size"]));
    let expected =
        [("ledger", 0), ("ledger", 100), ("backlog", 0), ("backlog", 10), ("backlog", 50)];
    let expected = expected.map(|(dimension, size)| (dimension, Json::from(size)));
    let found: Vec<_> = points.map(|(dimension, size)| (dimension, size.clone())).collect();
    assert_eq!(found, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn bench_idle_measures_one_redis_and_a_cluster() {
    let report = Bench::new("idle --partitions 2 --seconds 0.1").report("idle.json").await;
    let points = report["points"].as_array().unwrap().iter();
    let points: Vec<_> =
        points.map(|point| (point["redis"].as_str().unwrap(), &point["partitions"])).collect();
    let partitions = Json::from(2);
    assert_eq!(points, [("one", &partitions), ("cluster", &partitions)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn bench_check_compares_a_program_with_another() {
    let program = env!("CARGO_BIN_EXE_yoink");
    // One pair is too few for a regression, whatever it measures.
    let sizes =
        format!("check --base-program {program} --pairs 1 --seconds 0.3 --streams 2 --orders 500");
    let report = Bench::new(&sizes).report("check.json").await;
    assert_eq!(report["base"], report["this"]);
    let rows = report["rows"].as_array().unwrap();
    assert!(rows.iter().any(|row| row["figure"] == "accepted, per second"), "{rows:?}");
    for row in rows {
        assert_eq!(row["ratio"]["values"].as_array().unwrap().len(), 1, "{row}");
        assert_eq!(row["is_regression"], false, "{row}");
    }
}

/// The load generator of a bench, once it runs.
async fn load_runs(bench: &mut Child, servers: &Path) {
    eventually("the load runs", async || {
        assert!(bench.try_wait().unwrap().is_none(), "the bench ended");
        processes_under(servers).iter().any(|line| line.contains(" load ")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_bench_leaves_nothing() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut bench = Bench::new("table --parts memory --memory-seconds 3600 --connections 20");
        let mut child = bench.command.spawn().unwrap();
        load_runs(&mut child, &bench.servers).await;
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        let status = eventually("the bench ends", async || child.try_wait().unwrap()).await;
        assert_eq!(status.code(), Some(130));
        assert_nothing_left(&bench.servers);
    }
}
