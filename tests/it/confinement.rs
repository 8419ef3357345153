//! What confines a process of a deployment: its container, and its systemd unit.

use std::{collections::BTreeSet, fs, process::Command};

use nix::sys::signal::Signal;
use tokio::task::block_in_place;
use yoink::grpc::pb::ListProductsRequest;

use crate::harness::{
    Binary, TestEnv, can_trace, compose, eventually, first_sale, get, not_tried, scratch_dir, text,
    words,
};

#[test]
fn every_container_is_read_only_without_capabilities_and_runs_as_a_number() {
    // These two give files to other users.
    let makers = ["passwords", "certificates"];
    for (name, service) in compose()["services"].as_mapping().unwrap() {
        let name = text(name);
        assert_eq!(service["read_only"].as_bool(), Some(true), "{name}");
        assert_eq!(words(&service["cap_drop"]), ["ALL"], "{name}");
        assert_eq!(words(&service["security_opt"]), ["no-new-privileges:true"], "{name}");
        if makers.contains(&name.as_str()) {
            // The passwords are read again by the same script.
            let capabilities = ["CHOWN", "DAC_READ_SEARCH"];
            let needed = if name == "passwords" { &capabilities[..] } else { &capabilities[..1] };
            assert_eq!(words(&service["cap_add"]), needed, "{name}");
            assert_eq!(text(&service["network_mode"]), "none", "{name}");
        } else {
            assert!(service["cap_add"].is_null(), "{name}");
            let user = text(&service["user"]);
            let number = user.split(':').next().unwrap().parse::<u32>().unwrap();
            assert!(number > 0, "{name}");
        }
        // A container that is read-only keeps nothing but in volumes, which `docker compose down -v` lists.
        assert!(service["privileged"].is_null() && service["devices"].is_null(), "{name}");
    }
}

const UNIT: &str = include_str!("../../deploy/systemd/yoink.service");

/// What a command of systemd-analyze prints; `None` where it is not installed.
fn systemd_analyze(args: &[&str]) -> Option<(bool, String)> {
    let Ok(output) = Command::new("systemd-analyze").args(args).output() else {
        not_tried("the systemd unit (systemd-analyze is missing: scripts/install.sh systemd)");
        return None;
    };
    let printed = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&printed).into_owned()))
}

#[test]
fn systemd_accepts_the_unit_and_rates_its_exposure_low() {
    let unit = scratch_dir("systemd").join("yoink.service");
    // The program must exist.
    fs::write(&unit, UNIT.replace("/usr/local/bin/yoink", env!("CARGO_BIN_EXE_yoink"))).unwrap();
    let unit = unit.to_str().unwrap();
    let Some((valid, printed)) = systemd_analyze(&["verify", unit]) else { return };
    assert!(valid && !printed.contains(unit), "{printed}");
    // Tenths: 0 is the least exposed, 100 the most. The unit has 12, and 14 without any one of its protections of files.
    let args = ["security", "--offline=true", "--threshold=13", unit];
    let (low, printed) = systemd_analyze(&args).unwrap();
    assert!(low, "{printed}");
}

/// The system calls of a filter, with those of the groups in it.
fn system_calls(filter: &str) -> BTreeSet<String> {
    let mut calls = BTreeSet::new();
    for group in filter.split_whitespace() {
        let (known, printed) = systemd_analyze(&["syscall-filter", group]).unwrap();
        assert!(known, "{printed}");
        let lines = printed.lines().map(str::trim).filter(|line| !line.starts_with(['#']));
        for line in lines.filter(|line| !line.is_empty() && *line != group) {
            if line.starts_with('@') {
                calls.extend(system_calls(line));
            } else {
                calls.insert(line.to_owned());
            }
        }
    }
    calls
}

#[tokio::test(flavor = "multi_thread")]
async fn system_calls_of_the_service_are_those_that_its_systemd_unit_permits() {
    let can_analyze = block_in_place(|| systemd_analyze(&["--version"])).is_some();
    if !can_analyze || !block_in_place(|| can_trace("the system calls of the systemd unit")) {
        return;
    }
    let env = TestEnv::new().await;
    let summary = scratch_dir("strace").join("summary");
    // -D: the service is our child, and strace is not its parent.
    let strace = ["strace", "-D", "-f", "-c", "-o", summary.to_str().unwrap()];
    let mut service = Binary::serve_under(&strace, "all", &env, &[]);
    let mut buyers = first_sale(&env, &mut service).await;
    buyers.list_products(ListProductsRequest::default()).await.unwrap();
    get(service.http_address().unwrap(), "/metrics").await;
    env.assert_audit_holds().await;
    service.signal(Signal::SIGTERM);
    assert!(service.ended().await.success(), "{}", service.log());
    let made = eventually("strace has written what was called", async || {
        let summary = fs::read_to_string(&summary).ok()?;
        summary.contains(" total").then_some(summary)
    })
    .await;
    let rows = made.lines().skip_while(|line| !line.starts_with('-')).skip(1);
    let rows = rows.take_while(|line| !line.starts_with('-'));
    let made: BTreeSet<String> =
        rows.filter_map(|row| row.split_whitespace().last()).map(str::to_owned).collect();
    assert!(made.contains("epoll_wait") || made.contains("epoll_pwait"), "{made:?}");
    let filters = UNIT.lines().filter_map(|line| line.strip_prefix("SystemCallFilter="));
    let (refused, permitted): (Vec<&str>, Vec<&str>) =
        filters.partition(|filter| filter.starts_with('~'));
    let (refused, permitted) = block_in_place(|| {
        let refused: Vec<&str> = refused.iter().map(|filter| &filter[1..]).collect();
        (system_calls(&refused.join(" ")), system_calls(&permitted.join(" ")))
    });
    assert!(!refused.is_empty() && !permitted.is_empty(), "the unit has filters of both kinds");
    let missing: Vec<&String> =
        made.iter().filter(|call| refused.contains(*call) || !permitted.contains(*call)).collect();
    assert!(missing.is_empty(), "the unit does not permit {missing:?}");
}
