//! `scripts/matrix.sh`: a row that was not run, or that ran no test, is never reported as passed.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::harness::scratch_dir;

/// A directory with programs that print one line each.
fn programs(printed: &[(&str, &str)]) -> PathBuf {
    let dir = scratch_dir("matrix");
    for (name, line) in printed {
        let program = dir.join(name);
        fs::write(&program, format!("#!/bin/sh\necho '{line}'\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    dir
}

/// Runs the first row with these programs in front of all others.
fn first_row(programs: &Path, strict: &str) -> Output {
    row("redis-7.0", programs, strict)
}

fn row(name: &str, programs: &Path, strict: &str) -> Output {
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let mut matrix = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/matrix.sh"));
    matrix.env("PATH", path).env("ROWS", name).env("STRICT", strict);
    matrix.env("CARGO", programs.join("cargo")).env("LOGS", programs.join("logs"));
    matrix.output().unwrap()
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

const REDIS: (&str, &str) = ("redis-server", "Redis server v=7.0.15 sha=0 malloc=libc");
const POSTGRES: (&str, &str) = ("postgres", "postgres (PostgreSQL) 15.18 (Debian)");
const PASSED: (&str, &str) = ("cargo", "test result: ok. 5 passed; 0 failed; 0 ignored");

#[test]
fn row_whose_servers_are_present_is_run_and_its_tests_are_counted() {
    let output = first_row(&programs(&[REDIS, POSTGRES, PASSED]), "1");
    let shown = printed(&output);
    assert!(output.status.success(), "{shown}");
    assert!(shown.contains("| Redis 7.0.15 | Postgres 15.18 | 5 passed |"), "{shown}");
}

#[test]
fn row_whose_servers_are_missing_is_not_tried_and_fails_if_strict() {
    let newer = ("redis-server", "Redis server v=7.2.4 sha=0 malloc=libc");
    let programs = programs(&[newer, POSTGRES, PASSED]);
    let output = first_row(&programs, "");
    assert!(output.status.success() && printed(&output).contains("| NOT TRIED |"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("needs Redis 7.0 and Postgres 15; found: Redis 7.2.4"), "{error}");
    assert!(!first_row(&programs, "1").status.success());
}

#[test]
fn row_that_ran_no_test_fails() {
    for line in ["test result: ok. 0 passed; 0 failed; 9 ignored", "nothing"] {
        let output = first_row(&programs(&[REDIS, POSTGRES, ("cargo", line)]), "");
        assert!(!output.status.success() && printed(&output).contains("FAILED"), "{line}");
    }
}

#[test]
fn row_with_a_cluster_runs_its_own_tests_on_a_cluster() {
    let line = "on '$TEST_REDIS': '$*'; test result: ok. 5 passed; 0 failed; 0 ignored";
    let programs = programs(&[REDIS, POSTGRES, ("cargo", line)]);
    let shown = printed(&row("cluster", &programs, "1"));
    assert!(shown.contains("on cluster: test --locked --test it -- sale:: "), "{shown}");
    let shown = printed(&first_row(&programs, "1"));
    assert!(shown.contains("on one: test --locked --test it --;"), "{shown}");
}
