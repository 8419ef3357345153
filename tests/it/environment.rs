//! The environment of a process, its settings file and its flags, by the real program; `config check`; SIGHUP.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Command, Output},
};

use futures_util::StreamExt as _;
use nix::sys::signal::Signal;
use tokio::task::block_in_place;
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1;
use yoink::grpc::pb::{ListProductsRequest, inventory_service_client::InventoryServiceClient};

use crate::harness::{
    Binary, PgBouncer, TestEnv, eventually, run_yoink, run_yoink_with, scratch_dir, shared,
};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `yoink` in a directory, with more in its environment.
fn run(dir: &Path, environment: &[(&str, &str)], args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_yoink"));
    command.args(args).envs(environment.iter().copied()).current_dir(dir);
    command.output().unwrap()
}

/// What `yoink config check` prints when it succeeds, and its warnings.
fn checked(dir: &Path, environment: &[(&str, &str)], args: &[&str]) -> (String, String) {
    let output = run(dir, environment, &[args, &["config", "check"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

/// Why `yoink config check` fails.
fn refused(dir: &Path, environment: &[(&str, &str)], args: &[&str]) -> String {
    let output = run(dir, environment, &[args, &["config", "check"]].concat());
    assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output.stdout));
    text(&output.stderr)
}

/// As Kubernetes sets them for the Services `yoink` and `yoink-redis`.
const KUBERNETES: [(&str, &str); 8] = [
    ("YOINK_SERVICE_HOST", "10.96.0.7"),
    ("YOINK_SERVICE_PORT", "50051"),
    ("YOINK_PORT_50051_TCP_ADDR", "10.96.0.7"),
    ("YOINK_REDIS_PORT", "tcp://10.96.0.8:6379"),
    ("YOINK_REDIS_SERVICE_HOST", "10.96.0.8"),
    ("YOINK_REDIS_SERVICE_PORT_REDIS", "6379"),
    ("YOINK_REDIS_PORT_6379_TCP", "tcp://10.96.0.8:6379"),
    ("YOINK_REDIS_PORT_6379_TCP_PROTO", "tcp"),
];

#[tokio::test(flavor = "multi_thread")]
async fn kubernetes_variables_are_ignored_and_unknown_variables_cause_a_warning() {
    let env = TestEnv::new().await;
    let unknown = [("YOINK_POSTGRE_URL", "postgres://ann:hunter2@db/yoink"), ("YOINK_NEW", "1")];
    let environment = [&KUBERNETES[..], &unknown].concat();
    let mut service = Binary::serve_with("all", &env, &[], &environment);
    service.channel().await;
    let message = service.log();
    let warnings: Vec<&str> =
        message.lines().filter(|line| line.contains("are not settings")).collect();
    let names = "YOINK_NEW, YOINK_POSTGRE_URL (did you mean YOINK_POSTGRES_URL?)";
    assert!(warnings.len() == 1 && warnings[0].contains(names), "{message}");
    assert!(warnings[0].contains("WARN") && !warnings[0].contains("YOINK_REDIS"), "{message}");
    let note = message.lines().find(|line| line.contains("that Kubernetes sets")).unwrap();
    assert!(note.contains("INFO") && note.contains("YOINK_REDIS_SERVICE_HOST"), "{message}");
    assert!(!message.contains("hunter2"), "{message}");

    let dir = scratch_dir("environment");
    let (printed, warned) = block_in_place(|| checked(&dir, &environment, &[]));
    assert!(warned.contains(names) && !warned.contains("hunter2"), "{warned}");
    assert!(printed.contains(
        "# ignored environment variables that Kubernetes sets for a Service: YOINK_PORT_50051"
    ));
    let (_, warned) = block_in_place(|| checked(&dir, &KUBERNETES, &[]));
    assert_eq!(warned, "", "no warning is given about these");
}

#[test]
fn unknown_settings_in_file_and_flags_are_refused_with_a_suggestion() {
    let dir = scratch_dir("environment");
    let flag = refused(&dir, &[], &["--set", "postgre_url=x"]);
    assert!(flag.contains("did you mean postgres_url?"), "{flag}");
    fs::write(dir.join("yoink.toml"), "key_prefx = \"a\"\nlog_filter = \"debug\"\n").unwrap();
    let file = refused(&dir, &[], &[]);
    assert!(file.contains("key_prefx") && file.contains("did you mean key_prefix?"), "{file}");
}

#[test]
fn text_settings_accept_numbers_and_values_are_kept_as_written() {
    let dir = scratch_dir("environment");
    let prefix = |environment: &[(&str, &str)], args: &[&str]| {
        let (printed, warned) = checked(&dir, environment, args);
        assert_eq!(warned, "");
        let line = printed.lines().find(|line| line.starts_with("key_prefix = ")).unwrap();
        line["key_prefix = \"".len()..line.len() - 1].to_owned()
    };
    for written in ["123", "1e3", "007", "true", "0x10", "1_000", "2026-11-27"] {
        assert_eq!(prefix(&[("YOINK_KEY_PREFIX", written)], &[]), written);
        assert_eq!(prefix(&[], &["--set", &format!("key_prefix={written}")]), written);
    }
    // Defaults, file, environment, flags: the last one applies.
    assert_eq!(prefix(&[], &[]), "yoink");
    fs::write(dir.join("yoink.toml"), "key_prefix = 1e3\npartitions = 4\n").unwrap();
    assert_eq!(prefix(&[], &[]), "1e3");
    let environment = [("YOINK_KEY_PREFIX", "42")];
    assert_eq!(prefix(&environment, &[]), "42");
    assert_eq!(prefix(&environment, &["--set", "key_prefix=43"]), "43");

    let span = [("YOINK_LOG_FILTER", "[call]=debug"), ("YOINK_REFLECTION", "true")];
    let (printed, _) = checked(&dir, &span, &[]);
    assert!(printed.contains("log_filter = \"[call]=debug\""), "{printed}");
    assert!(printed.contains("reflection = \"on\""), "{printed}");
    // A whole number is written with digits in every source.
    for written in ["1e1", "8.0", "8e0", "0x10"] {
        let value = [("YOINK_PARTITIONS", written)];
        let wrong = refused(&dir, &value, &[]);
        let why = format!("partitions must be a whole number, not \"{written}\"");
        assert!(wrong.contains(&why), "{wrong}");
        fs::write(dir.join("yoink.toml"), format!("partitions = {written}\n")).unwrap();
        let wrong = refused(&dir, &[], &[]);
        assert!(wrong.contains(&why) && wrong.contains("(in yoink.toml)"), "{wrong}");
    }
    fs::write(dir.join("yoink.toml"), "trace_sample_ratio = 1_0.5e-1_0\n").unwrap();
    checked(&dir, &[], &[]);
    let quoted = [("YOINK_REDIS_URL", "\"redis://:hunter2@cache\""), ("YOINK_PARTITIONS", "1e3")];
    let wrong = refused(&dir, &quoted, &[]);
    assert!(wrong.contains("redis_url begins with a quotation mark"), "{wrong}");
    assert!(wrong.contains("partitions must be a whole number, not \"1e3\""), "{wrong}");
    assert!(wrong.contains("in YOINK_PARTITIONS") && !wrong.contains("hunter2"), "{wrong}");
}

#[test]
fn sample_file_is_accepted_and_changes_no_setting() {
    let dir = scratch_dir("environment");
    let (defaults, _) = checked(&dir, &[], &[]);
    let sample = run(&dir, &[], &["config", "sample"]);
    assert_eq!(sample.status.code(), Some(0), "{}", text(&sample.stderr));
    // Lines that begin with # and no space are settings.
    let lines = text(&sample.stdout);
    let lines = lines.lines().map(|line| match line.strip_prefix('#') {
        Some(setting) if !setting.starts_with(' ') => setting,
        _ => line,
    });
    fs::write(dir.join("yoink.toml"), lines.collect::<Vec<_>>().join("\n")).unwrap();
    assert_eq!(checked(&dir, &[], &[]).0, defaults);
}

#[test]
fn config_check_refuses_what_a_start_refuses_without_connecting() {
    let dir = scratch_dir("environment");
    for (settings, why) in [
        (&["grpc_listen=:7", "http_listen=127.0.0.1:7"][..], "must differ"),
        (&["grpc_listen=db:7"], "not an IP address"),
        (&["redis_url=redis://cache/three"], "database that is not a number"),
        (&["redis_url=redis://0.0.0.0"], "not an address to connect to"),
        (&["postgres_url=postgres://ann@/yoink"], "names no host"),
        (&["postgres_url=host=a,b port=1,2,3"], "number of ports"),
        (&["postgres_url=postgres://ann@db/yoink?sslmode=verify"], "a wrong sslmode"),
        (&["postgres_url=postgres://ann:hunt#er2@db/yoink"], "write %23"),
        (&["otlp_endpoint=http://"], "otlp_endpoint"),
        (&["otlp_endpoint=http://col lector:4317"], "otlp_endpoint"),
        (&["log_filter=info=debug=warn"], "log_filter"),
        (&["trace_sample_ratio=NaN"], "trace_sample_ratio"),
        (&["key_prefix=a{b}"], "key_prefix"),
    ] {
        let flags: Vec<&str> = settings.iter().flat_map(|setting| ["--set", *setting]).collect();
        let message = refused(&dir, &[], &flags);
        assert!(message.contains(why), "{settings:?}: {message}");
        let start = run(&dir, &[], &[&flags[..], &["serve"]].concat());
        assert_eq!((start.status.code(), text(&start.stderr)), (Some(2), message), "{settings:?}");
    }
    // The descriptor limit refuses a start with these pools, and so does the check.
    let mut limited = Command::new("prlimit");
    limited.args(["--nofile=512:512", env!("CARGO_BIN_EXE_yoink"), "--set", "pool_workers=1000"]);
    let limited = limited.args(["config", "check"]).current_dir(&dir).output().unwrap();
    assert_eq!(limited.status.code(), Some(2), "{}", text(&limited.stdout));
    assert!(text(&limited.stderr).contains("ulimit -n"), "{}", text(&limited.stderr));

    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [redis, postgres] = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
    let settings = [
        format!("redis_url=redis://{redis}"),
        format!("postgres_url=postgres://ann@{postgres}/yoink"),
    ];
    let flags: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    checked(&dir, &[], &flags);
    for listener in listeners {
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "it has connected");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn config_check_connect_reports_both_stores_and_changes_nothing() {
    tokio::task::spawn_blocking(shared).await.unwrap();
    let env = TestEnv::with_own_redis().await;
    let check = |more: &[(&'static str, &str)]| {
        let args = ["config", "check", "--connect"];
        let output = block_in_place(|| run_yoink_with(&env, more, &args));
        (output.status.code().unwrap(), text(&output.stdout))
    };
    let (code, printed) = check(&[]);
    assert_eq!(code, 0, "{printed}");
    for found in ["# Redis ", "role master", "durability always", "# Postgres ", "accepts writes"] {
        assert!(printed.contains(found), "{found}: {printed}");
    }
    assert!(printed.contains("the first start does that"), "{printed}");
    assert_eq!(env.count("SELECT count(*) FROM deployment").await, 0, "nothing is changed");

    let empty = format!("{}_empty", env.database);
    env.sql().await.batch_execute(&format!("CREATE DATABASE {empty}")).await.unwrap();
    let url = shared().postgres.url(&empty);
    let (code, printed) = check(&[("postgres_url", &url)]);
    assert_eq!(code, 1, "{printed}");
    assert!(printed.contains("no schema") && printed.contains("run `yoink migrate`"), "{printed}");

    let pooler = PgBouncer::start(shared().postgres.port(), "transaction").await;
    let (code, printed) = check(&[("postgres_url", &pooler.url(&env.database))]);
    assert_eq!(code, 1, "{printed}");
    assert!(printed.contains("pool_mode = session"), "{printed}");

    let (code, printed) = check(&[("ack", "replica")]);
    assert_eq!(code, 1, "{printed}");
    assert!(printed.contains("a start is refused: ack = replica needs 1 replicas"), "{printed}");

    let mut cli = env.cli().await;
    let mut evict = redis::cmd("CONFIG");
    evict.arg("SET").arg("maxmemory-policy").arg("allkeys-lru");
    let () = evict.query_async(&mut cli).await.unwrap();
    let (code, printed) = check(&[]);
    assert_eq!(code, 1, "{printed}");
    assert!(printed.contains("allkeys-lru"), "{printed}");

    // Port 1 of loopback: no server listens there. The other store is checked all the same.
    let (code, printed) = check(&[("redis_url", "redis://127.0.0.1:1")]);
    assert_eq!(code, 2, "{printed}");
    assert!(printed.contains("cannot check: Redis (redis_url)"), "{printed}");
    assert!(printed.contains("# Postgres "), "{printed}");
    let (code, printed) = check(&[("postgres_url", "host=127.0.0.1 port=1 user=ann")]);
    assert_eq!(code, 2, "{printed}");
    assert!(printed.contains("cannot check: Postgres (postgres_url)"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn config_check_connect_reports_a_different_number_of_partitions() {
    let env = TestEnv::new().await;
    env.app(&[]).await;
    let args = ["config", "check", "--connect"];
    let same = block_in_place(|| run_yoink(&env, &args));
    assert_eq!(same.status.code(), Some(0), "{}", text(&same.stdout));
    let other = block_in_place(|| run_yoink_with(&env, &[("partitions", "3")], &args));
    assert_eq!(other.status.code(), Some(1), "{}", text(&other.stdout));
    assert!(text(&other.stdout).contains("set partitions = 2"), "{}", text(&other.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_is_logged_and_ends_no_role() {
    let env = TestEnv::new().await;
    for role in ["all", "api", "worker"] {
        let mut service = Binary::serve_as(role, &env, &[], None);
        service.channel().await;
        for times in 1..=2 {
            service.signal(Signal::SIGHUP);
            eventually("the signal is logged", async || {
                assert!(!service.has_ended(), "{role}: {}", service.log());
                let logged = service.log().matches("SIGHUP: nothing to reload").count();
                (logged == times).then_some(())
            })
            .await;
        }
        // It still answers, and still ends in order.
        service.channel().await;
        service.signal(Signal::SIGTERM);
        assert_eq!(service.ended().await.code(), Some(0), "{role}: {}", service.log());
    }
}

/// The services that reflection lists; none where it is off.
async fn reflected(channel: Channel) -> Option<Vec<String>> {
    use v1::{
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let request = v1::ServerReflectionRequest { host: String::new(), message_request };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel);
    let stream = futures_util::stream::iter([request]);
    let mut answers = match client.server_reflection_info(stream).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => {
            assert_eq!(status.code(), tonic::Code::Unimplemented, "{status:?}");
            return None;
        }
    };
    let answer = answers.next().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("another answer than a list")
    };
    Some(list.service.into_iter().map(|service| service.name).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_is_off_unless_set_and_health_is_open() {
    let env = TestEnv::new().await;
    // A port alone is every address; localhost is loopback.
    let on = ("reflection", "on");
    for (listen, more, lists) in
        [(":0", vec![on], true), (":0", vec![], false), ("localhost:0", vec![], false)]
    {
        let settings = [
            vec![
                ("grpc_listen", listen),
                ("http_listen", "localhost:0"),
                ("authentication", "off"),
            ],
            more,
        ];
        let mut service = Binary::serve(&env, &settings.concat(), None);
        let channel = service.channel().await;
        let address = service.address().unwrap();
        assert_eq!(address.ip().is_loopback(), listen == "localhost:0", "{address}");
        assert!(service.http_address().unwrap().ip().is_loopback());
        let mut buyers = InventoryServiceClient::new(channel.clone());
        buyers.list_products(ListProductsRequest::default()).await.unwrap();
        let mut health = HealthClient::new(channel.clone());
        health.check(HealthCheckRequest::default()).await.unwrap();
        let listed = reflected(channel).await;
        let named = listed.map(|names| names.contains(&"yoink.v1.InventoryService".to_owned()));
        assert_eq!(named.unwrap_or(false), lists, "{listen}");
    }
}
