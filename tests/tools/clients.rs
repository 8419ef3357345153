//! Clients in Go whose code is generated from the proto files and from docs/openapi.yaml.

use std::{
    collections::HashSet,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use nix::sys::signal::Signal;
use yoink::app::Role;

use crate::{
    envoy::Envoy,
    harness::{Binary, TestEnv, eventually, product, scratch_dir},
};

const GENERATED_GRPC: &str = r#"{"version": "v2",
    "inputs": [{"directory": "proto", "paths": ["proto/yoink"]}],
    "plugins": [
        {"local": ".tools/bin/protoc-gen-go", "out": "."},
        {"local": ".tools/bin/protoc-gen-go-grpc", "out": "."}]}"#;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn succeeds(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Generates the clients and builds their programs, once; returns where they are.
fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let (dir, source) = (scratch_dir("go"), root().join("tests/tools/go"));
        succeeds(Command::new("cp").arg("-r").arg(source.join(".")).arg(&dir));
        let mut buf = Command::new(".tools/venv/bin/buf");
        buf.current_dir(root()).args(["generate", "--template", GENERATED_GRPC, "-o"]).arg(&dir);
        succeeds(&mut buf);
        fs::create_dir(dir.join("rest")).unwrap();
        let mut oapi = Command::new(root().join(".tools/bin/oapi-codegen"));
        oapi.args(["-generate", "types,client", "-package", "rest", "-o"]);
        succeeds(oapi.arg(dir.join("rest/rest.go")).arg(root().join("docs/openapi.yaml")));
        let mut go = Command::new("go");
        go.current_dir(&dir).args(["build", "-mod=readonly", "-o", "bin/", "./cmd/..."]);
        succeeds(&mut go);
        dir.join("bin")
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_generated_from_the_openapi_document_has_typed_lists_answers_and_errors() {
    let program = tokio::task::spawn_blocking(|| programs().join("rest")).await.unwrap();
    let env = TestEnv::with_durable_postgres().await;
    let service = env.serve(Role::All, &[]).await;
    let envoy = Envoy::in_front_of(service.grpc).await;
    service.create(product("shoe", 5)).await;
    let url = format!("http://{}", envoy.address);
    let run = move || succeeds(Command::new(program).arg(url));
    tokio::task::spawn_blocking(run).await.unwrap();
    env.assert_audit_holds().await;
}

/// A port below those that the kernel gives to others, so that it is free again after its service was killed.
fn free_port() -> u16 {
    let first = 20_000 + u16::try_from(std::process::id() % 5000).unwrap();
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (first..32_000).find(free).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_go_client_with_the_service_config_gets_no_error_across_a_kill_and_a_restart() {
    let program = tokio::task::spawn_blocking(|| programs().join("buyers")).await.unwrap();
    let env = TestEnv::new().await;
    let listen = format!("127.0.0.1:{}", free_port());
    // Connections also end at their age all the time.
    let settings = [("grpc_listen", listen.as_str()), ("connection_max_age_ms", "1000")];
    let operators = env.serve(Role::All, &[]).await;
    operators.create(product("shoe", 1_000_000)).await;
    operators.stop().await;
    let mut service = Binary::serve(&env, &settings, None);
    let answers = scratch_dir("buyers").join("answers");
    let mut buyers = Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(program)
        .args([&listen, "docs/service_config.json", "shoe"])
        .current_dir(root())
        .stdin(std::process::Stdio::piped())
        .stdout(fs::File::create(&answers).unwrap())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let sold = || fs::read_to_string(&answers).unwrap().lines().count();
    let sells = async |more: usize| {
        let goal = sold() + more;
        eventually("it sells", async || (sold() >= goal).then_some(())).await;
    };
    sells(500).await;
    service.signal(Signal::SIGKILL);
    service.ended().await;
    let _service = Binary::serve(&env, &settings, None);
    sells(500).await;
    drop(buyers.stdin.take());
    let ended = tokio::task::spawn_blocking(|| buyers.wait_with_output().unwrap()).await.unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let ids = fs::read_to_string(&answers).unwrap();
    let distinct: HashSet<_> = ids.lines().collect();
    assert_eq!(distinct.len(), ids.lines().count(), "each request has a reservation of its own");
    let report = env.assert_audit_holds().await;
    assert_eq!(report.products[0].confirmed, i64::try_from(distinct.len()).unwrap());
}
