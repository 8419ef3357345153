//! `scripts/beside.sh`, up to the program that it starts: what it refuses, and the configuration that it writes.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output},
};

use serde_yaml_ng::Value;

use crate::harness::scratch_dir;

/// `beside.sh` with these variables. `true` is in place of this program.
fn beside(program: &str, dir: &Path, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new("scripts/beside.sh");
    command.arg(program).current_dir(env!("CARGO_MANIFEST_DIR"));
    command.env("DIR", dir).env("YOINK", "true").envs(variables.iter().copied());
    command.output().unwrap()
}

#[test]
fn calls_of_operators_are_not_served_beyond_loopback_by_mistake() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:8081", "shop.example:8081", "8081"] {
        let done = beside("edge", &scratch_dir("beside"), &[("OPERATORS", address)]);
        let printed = String::from_utf8_lossy(&done.stderr);
        assert!(printed.contains("is not a loopback address"), "{address}: {printed}");
        assert_eq!(done.status.code(), Some(2), "{address}");
    }
}

#[test]
fn watch_scrapes_with_tls_if_an_authority_is_named() {
    let dir = scratch_dir("beside");
    // In place of Prometheus.
    symlink("/bin/true", dir.join("prometheus")).unwrap();
    let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
    let job = |variables: &[(&str, &str)]| {
        let more = [("PATH", path.as_str()), ("HTTP", "127.0.0.1:1,127.0.0.1:2")];
        let done = beside("watch", &dir, &[&more, variables].concat());
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let text = fs::read_to_string(dir.join("prometheus.yml")).unwrap();
        let config: Value = serde_yaml_ng::from_str(&text).unwrap();
        config["scrape_configs"][0].clone()
    };
    let (plain, secure) = (job(&[]), job(&[("TLS_CA", "/run/tls/ca.pem")]));
    assert_eq!(plain.get("scheme"), None);
    assert_eq!(secure["scheme"], "https");
    assert_eq!(secure["tls_config"]["ca_file"], "/run/tls/ca.pem");
    for job in [plain, secure] {
        assert_eq!(job["static_configs"][0]["targets"][1], "127.0.0.1:2");
    }
}
