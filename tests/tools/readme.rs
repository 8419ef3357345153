//! The README's lines, run as written: only addresses, ids and times may differ.

use std::{net::SocketAddr, path::Path, process::Command};

use serde_json::Value as Json;

use crate::{
    envoy::Envoy,
    harness::{Deployment, Dev, eventually, get, scratch_dir},
    prometheus::Prometheus,
};

/// A command of the README and what it shows below it.
#[derive(Debug)]
struct Shown {
    command: String,
    output: String,
}

/// Every `$ grpcurl …` and `$ curl …`, in order.
fn shown() -> Vec<Shown> {
    let mut found: Vec<Shown> = Vec::new();
    let (mut open, mut continues) = (false, false);
    for line in include_str!("../../README.md").lines() {
        let Some(code) = line.strip_prefix("    ") else {
            open = false;
            continue;
        };
        if let Some(command) = code.strip_prefix("$ ") {
            found.push(Shown { command: String::new(), output: String::new() });
            continues = add_command(&mut found, command);
            open = true;
        } else if open && continues {
            continues = add_command(&mut found, code);
        } else if open {
            let last = found.last_mut().unwrap();
            last.output += code;
            last.output += "\n";
        }
    }
    found
}

/// Whether the command goes on in the next line.
fn add_command(found: &mut [Shown], text: &str) -> bool {
    let command = &mut found.last_mut().unwrap().command;
    let (part, continues) = text.strip_suffix('\\').map_or((text, false), |part| (part, true));
    *command += part.trim();
    *command += " ";
    continues
}

/// JSON without what differs from run to run; other text without its spacing.
fn comparable(text: &str) -> String {
    fn mask(value: &mut Json) {
        match value {
            Json::String(text) => {
                let id = uuid::Uuid::try_parse(text).is_ok();
                if id || text.parse::<jiff::Timestamp>().is_ok() {
                    *text = "*".to_owned();
                }
            }
            Json::Array(values) => values.iter_mut().for_each(mask),
            Json::Object(fields) => fields.values_mut().for_each(mask),
            // A time in seconds since 1970, as Prometheus has it.
            Json::Number(number) if number.as_f64().is_some_and(|number| number > 1e9) => {
                *value = Json::Null;
            }
            Json::Null | Json::Bool(_) | Json::Number(_) => {}
        }
    }
    match serde_json::from_str::<Json>(text) {
        Ok(mut value) => {
            mask(&mut value);
            value.to_string()
        }
        Err(_) => text.split_whitespace().collect::<Vec<_>>().join(" "),
    }
}

fn ids(text: &str) -> Option<&str> {
    text.split('"').find(|word| word.len() == 36 && uuid::Uuid::try_parse(word).is_ok())
}

/// Runs every line against a service, and compares what it shows.
async fn assert_lines_hold(grpc: SocketAddr, edge: SocketAddr, watch: &Prometheus) {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/bin");
    let (mut ran, mut renamed) = (0, Vec::<(String, String)>::new());
    for Shown { command, output } in shown() {
        let mut line = command.replace("127.0.0.1:50051", &grpc.to_string());
        line = line.replace("localhost:8080", &edge.to_string());
        line = line.replace("localhost:9090", &watch.address.to_string());
        for (shown, real) in &renamed {
            line = line.replace(shown, real);
        }
        line = line.replacen("grpcurl ", &format!("{}/grpcurl ", tools.display()), 1);
        let last = eventually(&format!("{command} shows {output}"), async || {
            let run = Command::new("sh").args(["-c", &line]).output().unwrap();
            let reported = String::from_utf8_lossy(&run.stdout).into_owned()
                + &String::from_utf8_lossy(&run.stderr);
            if output.is_empty() {
                assert!(run.status.success(), "{line}: {reported}");
                return Some(reported);
            }
            (comparable(&reported) == comparable(&output)).then_some(reported)
        })
        .await;
        if let (Some(shown), Some(real)) = (ids(&output), ids(&last)) {
            renamed.push((shown.to_owned(), real.to_owned()));
        }
        ran += 1;
    }
    assert!(ran >= 8, "only {ran} commands were found");
}

#[tokio::test(flavor = "multi_thread")]
async fn readme_commands_print_what_the_readme_shows() {
    let mut dev = Dev::start(&scratch_dir("readme"));
    dev.ready().await;
    let (grpc, http) = dev.addresses().await;
    let envoy = Envoy::in_front_of(grpc).await;
    let watch = Prometheus::beside(http).await;
    assert_lines_hold(grpc, envoy.address, &watch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readme_commands_print_the_same_against_the_compose_deployment() {
    let deployment = Deployment::start().await;
    for service in ["migrate", "import"] {
        let output = deployment.run(service);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let (mut yoink, mut admin) = (deployment.serve("yoink"), deployment.serve("admin"));
    let mut served = Vec::new();
    for process in [&mut yoink, &mut admin] {
        process.channel().await;
        served.push((process.address().unwrap(), process.http_address().unwrap()));
        let http = served.last().unwrap().1;
        eventually("it can sell", async || {
            get(http, "/readyz").await.starts_with("HTTP/1.1 200").then_some(())
        })
        .await;
    }
    // Buyers through Envoy reach one process, grpcurl the other.
    let authority = deployment.certificates.join("ca.pem");
    let envoy = Envoy::in_front_of_tls(served[0].0, &authority).await;
    let watch = Prometheus::beside_all(&[served[0].1, served[1].1]).await;
    assert_lines_hold(served[1].0, envoy.address, &watch).await;
    eventually("the audit holds", async || deployment.audit().status.success().then_some(())).await;
}
