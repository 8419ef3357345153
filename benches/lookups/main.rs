//! What a flood of look-ups costs: the rate at which orders are stored, and the time until a stop is applied.
//!
//! `make bench-lookups` prints a table. Each round sells and stores the same number of orders three times: without a flood, under one whose
//! callers wait for the delay of `RetryInfo`, and under one whose callers ask again at once. The service, the flood and this program
//! (buyers, and a proxy that puts Postgres 5 ms away) are three processes; that of the flood has the lowest priority, since callers are on machines
//! of their own. It ends in the audit.
#![expect(clippy::print_stdout, reason = "it prints a table")]
#![expect(clippy::unwrap_used, reason = "a benchmark stops at the first error, as a test does")]
#![expect(unreachable_pub, reason = "a benchmark exports nothing")]

#[path = "../../tests/it/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the tests; each uses its part")]
mod harness;

mod flood;
mod sale;

use std::time::Duration;

use tokio::task::block_in_place;

use flood::{Flood, Retry};
use harness::{Binary, Proxy, TestEnv, run_yoink};
use sale::Sale;

/// Between the service and Postgres, each way: 5 ms there and back.
const DELAY_EACH_WAY: Duration = Duration::from_micros(2_500);

/// A size from the environment.
fn size(name: &str, default: u32) -> u32 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// The results of one run.
struct Run {
    stored_per_second: f64,
    stop_seconds: f64,
    /// Look-ups that were answered, refused as OVERLOADED, and ended otherwise: per second.
    lookups: [f64; 3],
}

async fn run(sale: &Sale, lookups: u32, retry: Option<Retry>) -> Run {
    let flood = retry.map(|retry| block_in_place(|| Flood::start(sale.service, lookups, retry)));
    let stored_per_second = sale.store().await;
    let stop_seconds = sale.stop().await.as_secs_f64();
    let lookups = flood.map_or([0.0; 3], |flood| block_in_place(|| flood.end()));
    Run { stored_per_second, stop_seconds, lookups }
}

/// The median, the least and the greatest.
fn spread(values: impl Iterator<Item = f64>) -> (f64, f64, f64) {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0], values[values.len() - 1])
}

const KINDS: [(&str, Option<Retry>); 3] =
    [("none", None), ("delay", Some(Retry::AfterDelay)), ("at once", Some(Retry::AtOnce))];

fn print_row(round: &str, kind: &str, run: &Run, ratio: f64) {
    let [answered, refused, other] = run.lookups;
    println!(
        "{round:>6} {kind:>8} {:>10.0} {ratio:>7.2} {:>8.0} ms {answered:>11.0} {refused:>11.0} {other:>8.0}",
        run.stored_per_second,
        run.stop_seconds * 1000.0,
    );
}

/// Medians and spread over all rounds; each ratio is that of a run to the run without a flood of its round.
fn print_medians(rounds: &[Vec<Run>]) {
    println!("medians (least to greatest):");
    for (at, (kind, _)) in KINDS.iter().enumerate() {
        let runs = || rounds.iter().map(|round| &round[at]);
        let (rate, low, high) = spread(runs().map(|run| run.stored_per_second));
        let ratios =
            rounds.iter().map(|round| round[at].stored_per_second / round[0].stored_per_second);
        let (ratio, worst, best) = spread(ratios);
        let (stop, soonest, latest) = spread(runs().map(|run| run.stop_seconds * 1000.0));
        println!(
            "{kind:>8}: stored {rate:.0}/s ({low:.0} to {high:.0}), ratio {ratio:.2} ({worst:.2} to {best:.2}), \
             stop applied after {stop:.0} ms ({soonest:.0} to {latest:.0})"
        );
    }
}

async fn bench() {
    let (orders, lookups) = (size("ORDERS", 20_000), size("LOOKUPS", 8_000));
    let env = TestEnv::with_durable_postgres().await;
    let proxy = Proxy::postgres(env.postgres.as_ref().unwrap().port()).await;
    let url = proxy.postgres_url(&env.database);
    let mut service = Binary::serve(&env, &[("postgres_url", &url)], None);
    service.channel().await;
    proxy.delay(DELAY_EACH_WAY, DELAY_EACH_WAY);
    println!(
        "{orders} orders a run; {lookups} look-ups in progress in a flood; Postgres 5 ms away"
    );
    println!(
        "{:>6} {:>8} {:>10} {:>7} {:>11} {:>11} {:>11} {:>8}",
        "round", "flood", "stored/s", "ratio", "stop", "answered/s", "refused/s", "other/s"
    );
    let address = service.address().unwrap();
    // Not counted: connections are opened and statements prepared.
    let warm = Sale::open(&env, address, "warm", orders.min(2_000)).await;
    run(&warm, lookups, None).await;
    let mut rounds = Vec::new();
    for round in 1..=size("ROUNDS", 3) {
        let mut runs: Vec<Run> = Vec::new();
        for (kind, retry) in KINDS {
            let product = format!("shoe-{round}-{}", runs.len());
            let sale = Sale::open(&env, address, &product, orders).await;
            let run = run(&sale, lookups, retry).await;
            let without = runs.first().map_or(run.stored_per_second, |run| run.stored_per_second);
            print_row(&round.to_string(), kind, &run, run.stored_per_second / without);
            runs.push(run);
        }
        rounds.push(runs);
    }
    print_medians(&rounds);
    env.assert_audit_holds().await;
    let audit = block_in_place(|| run_yoink(&env, &["audit"]));
    assert!(audit.status.success(), "{}", String::from_utf8_lossy(&audit.stderr));
    println!("The audit holds.");
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.as_slice() {
        [word, address, lookups, retry] if word == "flood" => {
            let (address, lookups) = (address.parse().unwrap(), lookups.parse().unwrap());
            runtime.block_on(flood::look_up_until_end(address, lookups, retry.parse().unwrap()));
        }
        _ => runtime.block_on(bench()),
    }
}
