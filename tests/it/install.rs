//! `scripts/install.sh`, `scripts/tools.sh` and the Makefile, with programs that only print their version.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::harness::scratch_dir;

/// What the scripts themselves need of a system.
const BASICS: [&str; 15] = [
    "bash", "cat", "chmod", "dirname", "env", "head", "mkdir", "printf", "rm", "sed", "sh", "sort",
    "tee", "tr", "grep",
];

fn checkout(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

/// A system with the basics and the programs given, each a shell script.
struct System {
    dir: PathBuf,
}

impl System {
    fn with(programs: &[(&str, &str)]) -> Self {
        let system = Self { dir: scratch_dir("install") };
        fs::create_dir_all(system.dir.join("bin")).unwrap();
        fs::create_dir_all(system.dir.join("root/usr/sbin")).unwrap();
        for name in BASICS {
            let real = ["/usr/bin", "/bin"].map(|dir| Path::new(dir).join(name));
            let real = real.into_iter().find(|program| program.exists()).unwrap();
            symlink(real, system.dir.join("bin").join(name)).unwrap();
        }
        for name in ["cc", "setpriv", "strace", "patch", "openssl", "pgbouncer"] {
            system.add(name, "true");
        }
        for (name, script) in programs {
            system.add(name, script);
        }
        system
    }

    fn add(&self, name: &str, script: &str) {
        let file = self.dir.join("bin").join(name);
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn run(&self, script: &str, args: &[&str]) -> Output {
        let mut command = Command::new(checkout(script));
        command.args(args).env_clear().env("PATH", self.dir.join("bin"));
        command.env("INSTALL_ROOT", self.dir.join("root")).output().unwrap()
    }

    /// What the programs of this system were called with, line by line.
    fn calls(&self) -> String {
        fs::read_to_string(self.dir.join("calls")).unwrap_or_default()
    }

    /// An `apt-get` that writes down its calls and finds what `policy` forbids while it installs.
    fn with_apt(&self, candidate: &str) {
        let calls = self.dir.join("calls");
        let policy = self.dir.join("root/usr/sbin/policy-rc.d");
        let script = format!(
            "echo \"$@\" >> {calls}\ncase $1 in install) {policy}; echo \"starts are answered $?\" >> {calls};; esac",
            calls = calls.display(),
            policy = policy.display()
        );
        self.add("apt-get", &script);
        self.add("apt-cache", &format!("echo '  Candidate: {candidate}'"));
        self.add("id", "echo 0");
    }
}

fn shown(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

const REDIS_7: (&str, &str) = ("redis-server", "echo 'Redis server v=7.0.15 sha=00000000:0'");
const POSTGRES_15: (&str, &str) = ("postgres", "echo 'postgres (PostgreSQL) 15.6 (Debian 15.6-1)'");
const INITDB: (&str, &str) = ("initdb", "true");

#[test]
fn install_does_nothing_if_every_program_is_new_enough() {
    let system = System::with(&[REDIS_7, POSTGRES_15, INITDB]);
    let output = system.run("scripts/install.sh", &[]);
    assert_eq!(shown(&output), (String::new(), String::new()));
    assert!(output.status.success());
}

#[test]
fn install_refuses_unsupported_servers_and_states_what_to_do() {
    let old_redis = ("redis-server", "echo 'Redis server v=6.0.16 sha=00000000:0'");
    let old_postgres = ("postgres", "echo 'postgres (PostgreSQL) 12.22'");
    for (programs, found, needed) in [
        ([old_redis, POSTGRES_15, INITDB], "redis-server 6.0.16 (installed)", "redis-server 6.2"),
        ([REDIS_7, old_postgres, INITDB], "postgresql 12.22 (installed)", "postgresql 13"),
    ] {
        let system = System::with(&programs);
        let output = system.run("scripts/install.sh", &[]);
        let (_, error) = shown(&output);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.starts_with(&format!("{found} is too old: Yoink needs {needed}")), "{error}");
        assert!(error.contains("scripts/tools.sh servers && export PATH"), "{error}");
    }
}

#[test]
fn install_takes_no_packages_from_a_distribution_that_is_too_old() {
    // As Ubuntu 22.04 has it.
    let system = System::with(&[POSTGRES_15, INITDB]);
    system.with_apt("5:6.0.16-1ubuntu1");
    let output = system.run("scripts/install.sh", &[]);
    let (_, error) = shown(&output);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.starts_with("redis-server 6.0.16 (this distribution's) is too old"), "{error}");
    assert_eq!(system.calls(), "update -q\n");
    assert!(!system.dir.join("root/usr/sbin/policy-rc.d").exists());
}

#[test]
fn install_reports_the_files_it_leaves_and_removes_the_rest() {
    let system = System::with(&[]);
    // No epoch, and a version that is no version of Postgres itself: Debian's is 15+248.
    system.with_apt("15+248+deb12u1");
    system.add("systemctl", &format!("echo \"$@\" >> {}", system.dir.join("calls").display()));
    let output = system.run("scripts/install.sh", &[]);
    let (announced, error) = shown(&output);
    assert!(output.status.success(), "{error}");
    assert_eq!(
        system.calls(),
        "update -q\n\
         install -y -q --no-install-recommends redis-server postgresql\n\
         starts are answered 101\n\
         disable --quiet redis-server\n"
    );
    let root = system.dir.join("root");
    let policy = root.join("usr/sbin/policy-rc.d");
    assert!(!policy.exists(), "removed again");
    let cluster = root.join("etc/postgresql-common/createcluster.conf");
    assert_eq!(fs::read_to_string(&cluster).unwrap(), "create_main_cluster = false\n");
    for line in [
        format!("No server is started: {} forbids it", policy.display()),
        format!("Left behind: {}", cluster.display()),
        "Left behind: the service redis-server is installed and disabled".to_owned(),
    ] {
        assert!(announced.contains(&line), "{line}: {announced}");
    }
}

#[test]
fn versions_are_the_same_in_the_service_the_installer_and_the_documents() {
    let script = include_str!("../../scripts/install.sh");
    let needed = |name: &str| {
        let line = script.lines().find_map(|line| line.strip_prefix(&format!("{name}_needed=")));
        line.unwrap().to_owned()
    };
    let (redis, postgres) = (needed("redis"), needed("postgres"));
    let connect = include_str!("../../src/app/connect.rs");
    assert!(connect.contains(&format!("; {redis} or newer is needed")), "Redis {redis}");
    let source = include_str!("../../src/durability/postgres.rs");
    assert!(source.contains(&format!("; {postgres} or newer is needed")), "Postgres {postgres}");
    let operations = include_str!("../../docs/operations.md");
    assert!(operations.contains(&format!("| Redis version | before {redis} |")));
    assert!(operations.contains(&format!("| Postgres version | before {postgres} |")));
    let readme = include_str!("../../README.md");
    assert!(readme.contains(&format!("Redis {redis} and Postgres {postgres}")));
    let rust = include_str!("../../Cargo.toml");
    let rust = rust.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap();
    assert!(readme.contains(&format!("Rust {} or newer", rust.trim_matches('"'))));
    let tools = include_str!("../../scripts/tools.sh");
    let go = tools.lines().find_map(|line| line.strip_prefix("go_needed=")).unwrap();
    assert!(readme.contains(&format!("Go {go} or newer")));
}

#[test]
fn tools_report_the_required_go_version_if_go_is_missing_or_old() {
    let old = System::with(&[("go", "echo go1.22.1"), ("cmp", "false")]);
    let none = System::with(&[("cmp", "false")]);
    for (system, found) in [(&old, "found: go1.22.1."), (&none, "found: none.")] {
        let output = system.run("scripts/tools.sh", &["go"]);
        let (_, error) = shown(&output);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains("need Go 1.24 or newer") && error.contains(found), "{error}");
    }
}

#[test]
fn missing_tool_dependencies_are_installed_by_every_command_that_needs_them() {
    let system = System::with(&[]);
    system.with_apt("1");
    let output = system.run("scripts/install.sh", &["tools"]);
    assert!(output.status.success(), "{}", shown(&output).1);
    let installed = "install -y -q --no-install-recommends curl ca-certificates git python3-venv\n";
    assert!(system.calls().contains(installed), "{}", system.calls());
    let whole = System::with(&[("curl", "true"), ("git", "true"), ("python3", "true")]);
    assert_eq!(shown(&whole.run("scripts/install.sh", &["tools"])), Default::default());
    for target in
        ["tools", "lint", "deny", "openapi", "test-tools", "bugs", "bench", "bench-listing"]
    {
        let mut make = Command::new("make");
        let output = make.args(["-n", target]).current_dir(checkout("")).output().unwrap();
        let (commands, _) = shown(&output);
        assert!(commands.contains("scripts/install.sh tools\n"), "{target}: {commands}");
    }
}

#[test]
fn first_build_shows_progress() {
    for target in ["demo", "dev"] {
        let mut make = Command::new("make");
        let output = make.args(["-n", target]).current_dir(checkout("")).output().unwrap();
        let (commands, _) = shown(&output);
        assert!(commands.contains("run --locked"), "{commands}");
        assert!(!commands.contains("quiet") && !commands.contains(" -q"), "{commands}");
    }
    assert!(!include_str!("../../scripts/beside.sh").contains("--quiet"));
}
