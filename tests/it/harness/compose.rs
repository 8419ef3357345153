//! What `docker compose up` starts, without Docker: the same scripts, configuration, commands and settings; only addresses,
//! ports and paths are others.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use serde_yaml_ng::Value;
use yoink::servers::PostgresServer;

use super::{Binary, eventually, scratch_dir, try_redis_cli};

fn checkout(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

/// The compose file.
pub fn compose() -> Value {
    let text = include_str!("../../../docker-compose.yml");
    let mut value: Value = serde_yaml_ng::from_str(text).unwrap();
    value.apply_merge().unwrap();
    // A merged mapping may have a merge of its own, three deep.
    for _ in 0..3 {
        value.apply_merge().unwrap();
    }
    value
}

/// A text of it, with the default of a variable (`${NAME:-default}`) in its place.
pub fn text(value: &Value) -> String {
    let text = value.as_str().unwrap().to_owned();
    match (text.find("${"), text.find('}')) {
        (Some(start), Some(end)) => {
            let default = text[start..end].split(":-").nth(1).unwrap_or_default();
            format!("{}{default}{}", &text[..start], &text[end + 1..])
        }
        _ => text,
    }
}

/// The texts of a list.
pub fn words(value: &Value) -> Vec<String> {
    value.as_sequence().unwrap().iter().map(text).collect()
}

fn assert_succeeds(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs what the service `passwords` runs, with the users of Redis in a file. As root it has the capabilities of its container.
pub fn make_passwords(dir: &Path, users: &Path) {
    let script = checkout("deploy/compose/passwords.sh");
    let mut make = Command::new(&script);
    if nix::unistd::geteuid().is_root() {
        let kept = words(&compose()["services"]["passwords"]["cap_add"]).join(",+").to_lowercase();
        make = Command::new("setpriv");
        make.arg(format!("--bounding-set=-all,+{kept}")).arg(&script);
    }
    assert_succeeds(make.arg(dir).env("USERS", users));
}

/// Both stores, with the passwords of a deployment, and the programs that use them.
pub struct Deployment {
    /// As the volume `passwords`.
    pub passwords: PathBuf,
    /// As the volume `certificates`.
    pub certificates: PathBuf,
    pub postgres: PostgresServer,
    redis: Child,
}

impl Deployment {
    /// On new volumes.
    pub async fn start() -> Self {
        let dir = scratch_dir("deployment");
        let passwords = dir.join("passwords");
        fs::create_dir(&passwords).unwrap();
        make_passwords(&passwords, &checkout("deploy/redis.acl"));
        let postgres = Self::start_postgres(&dir);
        Self::start_on(&dir, postgres).await
    }

    /// On the volumes in a directory: makes the passwords that are missing, starts Redis, and makes the roles of Postgres.
    pub async fn start_on(dir: &Path, postgres: PostgresServer) -> Self {
        let passwords = dir.join("passwords");
        make_passwords(&passwords, &checkout("deploy/redis.acl"));
        let certificates = dir.join("certificates");
        let mut make = Command::new(checkout("deploy/compose/certificates.sh"));
        let arguments = words(&compose()["services"]["certificates"]["command"]);
        let place = |word: &String| word.replace("/run/tls", certificates.to_str().unwrap());
        assert_succeeds(make.args(arguments.iter().map(place)));
        let (redis, redis_port) = start_redis(dir, &passwords).await;
        for name in ["yoink.toml", "owner.toml", "read.toml"] {
            let toml = passwords.join(name);
            let settings = fs::read_to_string(&toml).unwrap();
            let settings = settings.replace("redis:6379", &format!("127.0.0.1:{redis_port}"));
            let port = postgres.port();
            let settings = settings.replace("postgres:5432", &format!("127.0.0.1:{port}"));
            fs::write(&toml, settings).unwrap();
        }
        let deployment = Self { passwords, certificates, postgres, redis };
        let made = deployment.make_roles();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        deployment
    }

    /// A Postgres with an empty database, as its image sets it up: the superuser has the password of the volume `passwords`, and
    /// everyone is asked for one.
    pub fn start_postgres(dir: &Path) -> PostgresServer {
        let password = fs::read_to_string(dir.join("passwords/postgres-superuser")).unwrap();
        let dir = dir.join("postgres");
        let mut postgres = PostgresServer::start(&dir, &[]).unwrap();
        for sql in
            [format!("ALTER ROLE postgres PASSWORD '{password}'"), "CREATE DATABASE yoink".into()]
        {
            let url = postgres.superuser_url("postgres");
            assert_succeeds(postgres_program("psql").args(["-X", "-q", &url, "-c", &sql]));
        }
        let rules = dir.join("data/pg_hba.conf");
        let trusting = fs::read_to_string(&rules).unwrap();
        let with_password = "host all all 127.0.0.1/32 scram-sha-256\n";
        fs::write(&rules, format!("{with_password}{trusting}")).unwrap();
        postgres.restart().unwrap();
        postgres
    }

    /// Runs what the service `roles` runs.
    pub fn make_roles(&self) -> Output {
        let service = compose()["services"]["roles"].clone();
        let script = words(&service["entrypoint"]).remove(0);
        let mut roles = Command::new(checkout("deploy/compose").join(script));
        let path = std::env::var("PATH").unwrap();
        let psql = PostgresServer::program("psql").unwrap();
        roles.env("PATH", format!("{}:{path}", psql.parent().unwrap().display()));
        roles.env("ROLES", checkout("deploy/postgres/roles.sql"));
        roles.env("PASSWORDS", &self.passwords).env("PGPORT", self.postgres.port().to_string());
        for (name, value) in service["environment"].as_mapping().unwrap() {
            roles.env(text(name), text(value).replace("postgres", "127.0.0.1"));
        }
        roles.output().unwrap()
    }

    /// What a statement of the superuser returns.
    pub fn ask(&self, sql: &str) -> String {
        let password = fs::read_to_string(self.passwords.join("postgres-superuser")).unwrap();
        let mut psql = postgres_program("psql");
        psql.env("PGPASSWORD", password);
        psql.args(["-X", "-A", "-t", &self.postgres.superuser_url("yoink"), "-c", sql]);
        let output = psql.output().unwrap();
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A service of the compose file that runs `yoink`.
    fn command(&self, service: &str) -> Command {
        let service = compose()["services"][service].clone();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", env!("CARGO_BIN_EXE_yoink")]);
        for word in words(&service["command"]) {
            let word = word.replace("/usr/share/yoink", checkout("deploy").to_str().unwrap());
            command.arg(word.replace("/etc/yoink", self.passwords.to_str().unwrap()));
        }
        for (name, value) in service["environment"].as_mapping().into_iter().flatten() {
            let value = if text(name).ends_with("_LISTEN") {
                "127.0.0.1:0".to_owned()
            } else {
                text(value).replace("/run/tls", self.certificates.to_str().unwrap())
            };
            command.env(text(name), value);
        }
        command.current_dir(&self.passwords).stdin(Stdio::null());
        command
    }

    /// Runs one that ends by itself.
    pub fn run(&self, service: &str) -> Output {
        self.command(service).output().unwrap()
    }

    /// Starts one that serves.
    pub fn serve(&self, service: &str) -> Binary {
        Binary::from_command(self.command(service))
    }

    /// Audits it, as a reader of both stores.
    pub fn audit(&self) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_yoink"));
        let args = ["--config", "read.toml", "audit"];
        command.args(args).current_dir(&self.passwords).output().unwrap()
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        drop(self.redis.kill());
        drop(self.redis.wait());
    }
}

fn postgres_program(name: &str) -> Command {
    Command::new(PostgresServer::program(name).unwrap())
}

/// Redis as the compose file starts it. A server that accepts the new password is this one.
async fn start_redis(dir: &Path, passwords: &Path) -> (Child, u16) {
    let data = dir.join("redis");
    fs::create_dir(&data).unwrap();
    let password = fs::read_to_string(passwords.join("redis-admin")).unwrap();
    let place = |word: String| {
        let word = word.replace("/usr/local/etc/redis", checkout("deploy").to_str().unwrap());
        word.replace("/run/yoink", passwords.to_str().unwrap())
    };
    eventually("Redis answers", async || {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        command.args(words(&compose()["services"]["redis"]["command"]).into_iter().map(place));
        command.args(["--bind", "127.0.0.1", "--port", &free.to_string()]);
        command.arg("--dir").arg(&data).stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        let url = format!("redis://admin:{password}@127.0.0.1:{free}");
        eventually("Redis answers or has ended", async || {
            if child.try_wait().unwrap().is_some() {
                return Some(None);
            }
            let mut connection = try_redis_cli(&url).await.ok()?;
            let pong: String = redis::cmd("PING").query_async(&mut connection).await.ok()?;
            (pong == "PONG").then_some(Some(()))
        })
        .await
        .map(|()| (child, free))
    })
    .await
}

/// The permissions of a file.
pub fn mode(file: &Path) -> u32 {
    fs::metadata(file).unwrap().permissions().mode() & 0o777
}
