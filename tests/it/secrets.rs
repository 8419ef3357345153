//! No secret is in anything that the program prints, at the most detailed level: those of the settings, wherever they are
//! written, and those of callers.

use std::{
    fs::{self, Permissions},
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use nix::sys::signal::Signal;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{block_in_place, spawn_blocking},
};
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;
use yoink::{
    domain::CallerRole,
    grpc::pb::{ReserveUnitRequest, inventory_service_client::InventoryServiceClient},
    servers::PostgresServer,
};

use crate::{
    auth::{id_of, with_token},
    harness::{Authority, Binary, TestEnv, Validity, eventually, redis_command, scratch_dir},
};

const REDIS: &str = "redisSecret7Kq2vX9f";
const POSTGRES: &str = "postgresSecret4Tz8mL1c";
const COLLECTOR: &str = "collectorSecret3Wn6bR5j";
const METRICS: &str = "metricsSecret6Yf1gD4k";
/// What a caller or an operator sends by mistake.
const WRONG: &str = "wrongSecret8Hd5sP2y";

/// The role `keeper` has a password, and everything else is as in other tests.
const HBA: &str = "\
host all keeper 127.0.0.1/32 scram-sha-256
host all postgres,yoink_serve,yoink_owner,yoink_read 127.0.0.1/32 trust
";

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Where the secrets of a command are written.
#[derive(Debug, Clone, Copy)]
enum In {
    Flags,
    Environment,
    /// Files that the environment names.
    Files,
    SettingsFile,
}

/// Servers that ask for passwords, and everything that the program prints.
struct Run {
    env: TestEnv,
    dir: PathBuf,
    authority: Authority,
    /// The settings that hold secrets.
    secret_settings: [(&'static str, String); 3],
    settings: Vec<(&'static str, String)>,
    /// What must not be printed, with what it is.
    secrets: Vec<(&'static str, String)>,
    /// What was printed, with what printed it.
    outputs: Vec<(String, String)>,
    received: Arc<AtomicU64>,
}

/// A collector that accepts connections and answers nothing; and how many bytes it has received.
async fn silent_collector() -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let received = Arc::new(AtomicU64::new(0));
    let (tasks, count) = (TaskTracker::new(), received.clone());
    // They end with the test.
    tasks.clone().spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let count = count.clone();
            tasks.spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                    count.fetch_add(read as u64, Ordering::Relaxed);
                }
            });
        }
    });
    (address, received)
}

/// A Postgres with a role that needs a password.
async fn postgres(database: &str) -> PostgresServer {
    let dir = scratch_dir("postgres");
    let database = database.to_owned();
    let start = move || {
        let postgres = PostgresServer::start(&dir, &["fsync=off", "max_connections=200"]).unwrap();
        fs::write(dir.join("data/pg_hba.conf"), HBA).unwrap();
        postgres.create_database(&database).unwrap();
        postgres
    };
    spawn_blocking(start).await.unwrap()
}

impl Run {
    async fn start() -> Self {
        let mut env = TestEnv::with_own_redis().await;
        env.postgres = Some(postgres(&env.database).await);
        let sql = format!(
            "SET password_encryption = 'scram-sha-256';
             CREATE ROLE keeper LOGIN SUPERUSER PASSWORD '{POSTGRES}'; SELECT pg_reload_conf()"
        );
        env.sql().await.batch_execute(&sql).await.unwrap();
        eventually("the role needs its password", async || {
            let url = env.superuser_url().replace("postgres@", "keeper@");
            tokio_postgres::connect(&url, tokio_postgres::NoTls).await.err()
        })
        .await;
        let user = ["ACL", "SETUSER", "seller", "on", &format!(">{REDIS}"), "~*", "&*", "+@all"];
        redis_command::<()>(&env.redis.as_ref().unwrap().admin_url(), &user).await;

        let (collector, received) = silent_collector().await;
        let authority = Authority::new();
        let server = authority.issue("server", &["127.0.0.1", "shop.example"], Validity::Now);
        let (certificate, key) = server.texts();
        let login = |url: String, user: &str, secret: &str| {
            let (scheme, rest) = url.split_once("://").unwrap();
            let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
            format!("{scheme}://{user}:{secret}@{host}")
        };
        let secret_settings = [
            ("redis_url", login(env.redis_url(), "seller", REDIS)),
            ("postgres_url", login(env.postgres_url(), "keeper", POSTGRES)),
            ("otlp_headers", format!("authorization=Bearer {COLLECTOR}")),
        ];
        let dir = scratch_dir("secrets");
        let own = ["redis_url", "postgres_url", "log_filter"];
        let mut settings = env.settings(&[
            ("log_filter", "trace"),
            ("otlp_endpoint", &collector),
            ("trace_sample_ratio", "1"),
            ("otlp_metrics_interval_ms", "1000"),
            ("authentication", "required"),
            ("tls_cert_file", certificate),
            ("tls_key_file", key),
            ("http_tls", "off"),
            ("metrics_token_file", dir.join("metrics_token").to_str().unwrap()),
        ]);
        // The last one applies, so the first ones are left out.
        let later = settings.split_off(7);
        settings.retain(|(name, _)| !own.contains(name));
        settings.extend(later);
        fs::write(dir.join("metrics_token"), METRICS).unwrap();
        let mut toml = String::new();
        for (name, value) in &secret_settings {
            fs::write(dir.join(name), format!("{value}\n")).unwrap();
            fs::set_permissions(dir.join(name), Permissions::from_mode(0o600)).unwrap();
            toml.push_str(&format!("{name} = \"{value}\"\n"));
        }
        fs::write(dir.join("secrets.toml"), toml).unwrap();
        fs::write(dir.join("wrong.toml"), format!("redis_url = {WRONG}\n")).unwrap();
        let mut secrets: Vec<_> = [
            ("the password of Redis", REDIS),
            ("the password of Postgres", POSTGRES),
            ("the token of the collector", COLLECTOR),
            ("the token of the metrics", METRICS),
            ("a secret that was sent by mistake", WRONG),
        ]
        .map(|(what, secret)| (what, secret.to_owned()))
        .into();
        let key = fs::read_to_string(key).unwrap();
        let lines = key.lines().filter(|line| !line.starts_with('-'));
        secrets.extend(lines.map(|line| ("a line of the private key", line.to_owned())));
        let outputs = Vec::new();
        Self { env, dir, authority, secret_settings, settings, secrets, outputs, received }
    }

    fn command(&self, secrets: In, args: &[&str]) -> Command {
        // The kernel ends it with this test, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", env!("CARGO_BIN_EXE_yoink")]);
        command.current_dir(&self.dir).env("RUST_BACKTRACE", "full").stdin(Stdio::null());
        for (name, value) in &self.settings {
            command.arg("--set").arg(format!("{name}={value}"));
        }
        for (name, value) in &self.secret_settings {
            let variable = format!("YOINK_{}", name.to_ascii_uppercase());
            match secrets {
                In::Flags => command.arg("--set").arg(format!("{name}={value}")),
                In::Environment => command.env(variable, value),
                In::Files => command.env(format!("{variable}_FILE"), self.dir.join(name)),
                In::SettingsFile => &mut command,
            };
        }
        if matches!(secrets, In::SettingsFile) {
            command.arg("--config").arg(self.dir.join("secrets.toml"));
        }
        command.args(args);
        command
    }

    /// Runs a command to its end, and keeps what it printed.
    fn run(&mut self, secrets: In, args: &[&str]) -> Output {
        let done = block_in_place(|| self.command(secrets, args).output().unwrap());
        let what = format!("{args:?}, secrets in {secrets:?}");
        self.outputs.push((what, text(&done.stdout) + &text(&done.stderr)));
        done
    }

    fn run_successfully(&mut self, secrets: In, args: &[&str]) {
        let done = self.run(secrets, args);
        assert!(done.status.success(), "{args:?}: {}", text(&done.stderr));
    }

    /// Creates an API key; only its standard output, which is the key, is not kept.
    fn create_key(&mut self, role: CallerRole) -> String {
        let args = ["keys", "create", "backend", "--role", role.as_str()];
        let done = block_in_place(|| self.command(In::SettingsFile, &args).output().unwrap());
        assert!(done.status.success(), "{}", text(&done.stderr));
        self.outputs.push(("keys create".to_owned(), text(&done.stderr)));
        let key = text(&done.stdout).trim_end().to_owned();
        self.secrets.push(("an API key", key.rsplit('_').next().unwrap().to_owned()));
        key
    }

    fn serve(&self, role: &str, secrets: In, environment: &[(&str, &str)]) -> Binary {
        let mut command = self.command(secrets, &["serve", "--role", role]);
        command.envs(environment.iter().copied());
        Binary::from_command(command)
    }

    async fn channel(&self, service: &mut Binary) -> Channel {
        service.channel_with(self.authority.trusted_by_client("shop.example")).await
    }

    fn keep_log(&mut self, what: &str, service: &Binary) {
        let log = service.log();
        assert!(log.contains("TRACE"), "{what} does not log at level trace");
        self.outputs.push((what.to_owned(), log));
    }

    /// What operators print, and what they print by mistake.
    fn run_commands(&mut self, target: &str, key: &str) {
        for secrets in [In::Flags, In::Environment, In::Files, In::SettingsFile] {
            self.run_successfully(secrets, &["config", "check"]);
            self.run_successfully(secrets, &["config", "check", "--connect"]);
        }
        self.run_successfully(In::Files, &["export"]);
        self.run_successfully(In::Environment, &["dead", "list"]);
        self.run_successfully(In::Flags, &["keys", "list"]);
        self.run_successfully(In::Flags, &["rebuild"]);
        let authority = self.authority.file();
        let load = ["load", "--target", target, "--tls-ca", &authority, "--calls", "20"];
        let load = [&load[..], &["--products", "shoe"]].concat();
        self.run_successfully(In::Files, &[&load[..], &["--api-key", key]].concat());
        self.run_successfully(In::Files, &[&load[..], &["--bearer", key]].concat());
        self.run_successfully(In::Files, &[&load[..], &["--bearer", WRONG]].concat());
        let wrong = |name: &str| format!("{name}={WRONG}");
        let wrong_login = self.secret_settings[0].1.replace(REDIS, WRONG);
        let wrong_password = self.secret_settings[1].1.replace(POSTGRES, WRONG);
        for args in [
            vec!["--set", &wrong("redis_ur"), "config", "check"],
            vec!["--set", &wrong("redis_url"), "config", "check"],
            vec!["--set", &wrong("postgres_url"), "config", "check"],
            vec!["--set", &wrong("otlp_headers"), "config", "check"],
            vec!["--set", &format!("redis_url_file={wrong_login}"), "config", "check"],
            vec!["--set", &format!("postgres_url_file={wrong_password}"), "config", "check"],
            vec!["--set", &format!("otlp_headers_file={}", wrong("a")), "config", "check"],
            vec!["--set", &wrong_login, "config", "check"],
            vec![
                "--set",
                &format!("otlp_endpoint=http://ann:{WRONG}@collector"),
                "config",
                "check",
            ],
            vec!["--config", "wrong.toml", "config", "check"],
            vec!["--set", &format!("redis_url={wrong_login}"), "config", "check", "--connect"],
            vec!["--set", &format!("postgres_url={wrong_password}"), "migrate"],
            vec!["--set", &format!("postgres_url={wrong_password}"), "serve"],
            vec!["--set", &format!("redis_url={wrong_login}"), "serve"],
        ] {
            // `--config` has the other secrets, except where a command names another file.
            let secrets = if args[0] == "--config" { In::Files } else { In::SettingsFile };
            let done = self.run(secrets, &args);
            assert!(!done.status.success(), "{args:?} succeeds: {}", text(&done.stdout));
        }
        let help = self.run(In::Environment, &["--help"]);
        let commands = text(&help.stdout);
        let commands =
            commands.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
        let names = commands.lines().filter_map(|line| line.split_whitespace().next());
        for name in names.filter(|name| *name != "help").collect::<Vec<_>>() {
            self.run_successfully(In::Environment, &[name, "--help"]);
        }
    }

    fn assert_no_secret_is_printed(&self) {
        for (source, output) in &self.outputs {
            for (what, secret) in &self.secrets {
                let form = forms(secret).into_iter().find(|form| output.contains(form));
                let Some(form) = form else { continue };
                let line = output.lines().find(|line| line.contains(&form)).unwrap();
                panic!("{what} is printed by {source}: {line}");
            }
        }
    }
}

/// The forms in which a library might print a text: itself, its bytes as Rust shows them, and in hexadecimal.
fn forms(secret: &str) -> [String; 3] {
    let bytes = secret.bytes();
    let numbers = bytes.clone().map(|byte| byte.to_string()).collect::<Vec<_>>().join(", ");
    let hexadecimal = bytes.map(|byte| format!("{byte:02x}")).collect();
    [secret.to_owned(), numbers, hexadecimal]
}

/// A page of HTTP, asked for with this bearer token.
async fn page(address: SocketAddr, path: &str, token: &str) -> String {
    let mut connection = TcpStream::connect(address).await.unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
    let request = format!("{head}Authorization: Bearer {token}\r\n\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Buys a unit; `None` until the service knows the product and has opened its partition.
async fn buy(channel: &Channel, key: &str, user: &str) -> Option<()> {
    let request = ReserveUnitRequest {
        product_id: "shoe".to_owned(),
        user_id: user.to_owned(),
        request_id: "r".to_owned(),
        ..Default::default()
    };
    let mut client = InventoryServiceClient::new(channel.clone());
    client.reserve_unit(with_token(request, Some(key))).await.ok().map(drop)
}

#[test]
fn secret_is_found_in_each_form() {
    let bytes = b"a secret";
    for shown in [format!("x{bytes:?}"), "6120736563726574".to_owned(), "no, a secret!".to_owned()]
    {
        assert!(forms("a secret").iter().any(|form| shown.contains(form)), "{shown}");
    }
    assert!(!forms("a secret").iter().any(|form| "another".contains(form)));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_output_of_any_command_has_a_secret_at_the_most_detailed_level() {
    let mut run = Run::start().await;
    run.run_successfully(In::Files, &["migrate"]);
    let catalogue = "product_id,name,price,currency,units\nshoe,Shoe,199.99,EUR,1000\n";
    fs::write(run.dir.join("catalogue.csv"), catalogue).unwrap();
    run.run_successfully(In::Flags, &["import", "catalogue.csv"]);
    let (key, other) = (run.create_key(CallerRole::Service), run.create_key(CallerRole::Operator));

    let mut api = run.serve("api", In::Files, &[]);
    let worker = run.serve("worker", In::Environment, &[("YOINK_LOG_FORMAT", "json")]);
    let channel = run.channel(&mut api).await;
    eventually("a unit is sold", async || buy(&channel, &key, "ann").await).await;
    let mut client = InventoryServiceClient::new(channel.clone());
    let wrong = with_token(ReserveUnitRequest::default(), Some(WRONG));
    client.reserve_unit(wrong).await.unwrap_err();
    run.run_commands(&format!("https://{}", api.address().unwrap()), &key);
    run.run_successfully(In::Environment, &["keys", "revoke", id_of(&other)]);
    run.env.assert_audit_holds().await;
    for (path, token) in
        [("/metrics", METRICS), ("/metrics", WRONG), ("/readyz", WRONG), ("/healthz", WRONG)]
    {
        let page = page(api.http_address().unwrap(), path, token).await;
        assert_eq!(page.contains("yoink_"), token == METRICS, "{path}: {page}");
        run.outputs.push((path.to_owned(), page));
    }
    eventually("the collector receives exports", async || {
        (run.received.load(Ordering::Relaxed) > 1000).then_some(())
    })
    .await;
    drop((client, channel));
    for (what, mut service) in [("serve --role api", api), ("serve --role worker", worker)] {
        service.signal(Signal::SIGTERM);
        service.ended().await;
        run.keep_log(what, &service);
    }

    // A process that panics prints where, and a process that crashes prints nothing more.
    for (point, printed) in [("after_commit:panic", "panicked at"), ("after_commit", "")] {
        let environment = [("YOINK_CRASH_POINT", point)];
        let mut service = run.serve("all", In::SettingsFile, &environment);
        let channel = run.channel(&mut service).await;
        // It may end before it has answered.
        eventually("a unit is sold, and the process ends", async || {
            buy(&channel, &key, point).await;
            service.has_ended().then_some(())
        })
        .await;
        assert!(service.log().contains(printed), "{}", service.log());
        run.keep_log(point, &service);
    }
    run.assert_no_secret_is_printed();
    // The orders of the processes that ended are stored by the next one.
    let mut last = run.serve("all", In::Flags, &[]);
    run.channel(&mut last).await;
    run.env.assert_audit_holds().await;
}
