//! `yoink load`: calls a running service and reports what was answered, and how fast.

use std::{fs::File, io::Write as _, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use jiff::SignedDuration;
use tokio_util::sync::CancellationToken;

use super::{output, progress::Progress, secret_arg::SecretArg, tables::load_table};
use crate::{
    domain::ProductId,
    grpc::pb,
    load::{self, Call, Choice, Credential, Pace, Plan, Report, Second, Users},
    tls::{ClientTls, Identity, PemFile, Verify},
};

/// What to call, how often, and for how long.
#[derive(Debug, clap::Args)]
pub(super) struct LoadArgs {
    /// The address of the service. With https:// in front, connections use TLS; with http:// they do not.
    #[arg(long, default_value = "127.0.0.1:50051", value_name = "HOST:PORT")]
    target: String,
    /// Connections use TLS, and the authorities in this PEM file sign the certificate of the service, in place of those
    /// of the system.
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Connections use TLS, and this certificate is presented to the service: a PEM file.
    #[arg(long, requires = "tls_key", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert.
    #[arg(long, requires = "tls_cert", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Each call has this JWT or API key in its header authorization. Other users of this machine can see it in the list
    /// of processes.
    #[arg(long, value_name = "TOKEN", conflicts_with = "api_key")]
    bearer: Option<SecretArg>,
    /// Each call has this API key in its header x-api-key, which is sent once for each connection.
    #[arg(long, value_name = "KEY")]
    api_key: Option<SecretArg>,
    /// The products to buy, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "ID,…", conflicts_with = "product_prefix")]
    products: Vec<ProductId>,
    /// Buys the products PREFIX0, PREFIX1, … up to --product-count.
    #[arg(long, requires = "product_count", value_name = "PREFIX")]
    product_prefix: Option<String>,
    /// How many products have the prefix.
    #[arg(long, requires = "product_prefix", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    product_count: Option<u32>,
    /// Which product a call buys: hot (the first), uniform, or zipf:EXPONENT.
    #[arg(long, default_value = "uniform", value_name = "CHOICE")]
    product_choice: Choice,
    /// How many users buy; without it, each call has a new user.
    #[arg(long, value_name = "N")]
    users: Option<usize>,
    /// Which of the users makes a call: hot, uniform, or zipf:EXPONENT.
    #[arg(long, default_value = "uniform", value_name = "CHOICE", requires = "users")]
    user_choice: Choice,
    /// Calls a health check, which does nothing, in place of ReserveUnit: the cost of an empty call.
    #[arg(long)]
    empty: bool,
    /// Starts this many calls a second, whether or not earlier ones are answered (open loop). Without it, each caller
    /// waits for its answer before its next call (closed loop).
    #[arg(long, value_name = "CALLS_PER_SECOND")]
    rate: Option<f64>,
    /// Connections to the service.
    #[arg(long, default_value_t = 8, value_name = "N")]
    connections: usize,
    /// Calls at the same time on each connection.
    #[arg(long, default_value_t = 50, value_name = "N")]
    streams: usize,
    /// How long calls are begun, such as 30s or 5m; without it and without --calls, 10 seconds.
    #[arg(long, value_parser = time, value_name = "TIME")]
    duration: Option<Duration>,
    /// The run ends after this many calls.
    #[arg(long, value_name = "N")]
    calls: Option<u64>,
    /// Calls are made for this time first, and not counted.
    #[arg(long, value_parser = time, default_value = "0s", value_name = "TIME")]
    warm_up: Duration,
    /// A call without an answer is given up after this time.
    #[arg(long, value_parser = time, default_value = "10s", value_name = "TIME")]
    timeout: Duration,
    /// Threads that make the calls; without it, one for every two processors.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Calls have no request id.
    #[arg(long)]
    no_request_ids: bool,
    /// What each answer waits for: memory, disk, replica or ledger; the default is the setting of the service.
    #[arg(long, value_parser = ack, default_value = "unspecified", hide_default_value = true)]
    ack: pb::Ack,
    /// The metrics of the service (http://HOST:PORT/metrics, or https:// with the files of --tls-ca, --tls-cert and
    /// --tls-key): the report then has the backlog.
    #[arg(long, value_name = "URL")]
    metrics_url: Option<String>,
    /// Writes the report as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes the report as an HTML page with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

fn ack(word: &str) -> Result<pb::Ack, String> {
    let name = format!("ACK_{}", word.to_uppercase());
    pb::Ack::from_str_name(&name)
        .ok_or_else(|| "must be memory, disk, replica or ledger".to_owned())
}

fn time(text: &str) -> Result<Duration, String> {
    let time = text.parse::<SignedDuration>().ok();
    time.and_then(|time| Duration::try_from(time).ok())
        .ok_or_else(|| "is not a time such as 500ms, 30s or 5m".to_owned())
}

impl LoadArgs {
    fn product_ids(&self) -> anyhow::Result<Vec<String>> {
        let (Some(prefix), Some(count)) = (&self.product_prefix, self.product_count) else {
            return Ok(self.products.iter().map(ToString::to_string).collect());
        };
        let id = |number: u32| format!("{prefix}{number}");
        let longest = id(count - 1).parse::<ProductId>();
        longest.with_context(|| format!("--product-prefix {prefix} does not make product ids"))?;
        Ok((0..count).map(id).collect())
    }

    /// With any of the files, or an address that asks for it. Fails if the address asks for none.
    fn tls(&self) -> anyhow::Result<Option<ClientTls>> {
        let authorities = self.tls_ca.as_ref().map(|path| PemFile::new("--tls-ca", path));
        let identity = self.tls_cert.as_ref().zip(self.tls_key.as_ref()).map(|(cert, key)| {
            Identity::new(PemFile::new("--tls-cert", cert), PemFile::new("--tls-key", key))
        });
        let has_files = authorities.is_some() || identity.is_some();
        if has_files && self.target.starts_with("http://") {
            bail!(
                "--target begins with http://, which is without TLS: write https://, or omit --tls-ca, --tls-cert and \
                 --tls-key"
            );
        }
        let is_used = has_files || self.target.starts_with("https://");
        Ok(is_used.then_some(ClientTls { verify: Verify::Name, authorities, identity }))
    }

    fn credential(&self) -> anyhow::Result<Option<Credential>> {
        let bearer =
            self.bearer.as_ref().map(|token| Credential::bearer(token.as_str())).transpose();
        let api_key =
            self.api_key.as_ref().map(|key| Credential::api_key(key.as_str())).transpose();
        let bearer = bearer.context("--bearer cannot be used")?;
        Ok(bearer.or(api_key.context("--api-key cannot be used")?))
    }

    fn plan(&self) -> anyhow::Result<Plan> {
        let mut plan = Plan::new(self.target.clone(), self.product_ids()?);
        plan.tls = self.tls()?;
        plan.credential = self.credential()?;
        if self.empty {
            plan.call = Call::HealthCheck;
        } else if plan.products.is_empty() {
            bail!("name what to buy: --products, or --product-prefix with --product-count");
        }
        if let Some(rate) = self.rate {
            plan.pace = Pace::Open { rate };
        }
        if let Some(count) = self.users {
            plan.users = Users::Of { count, choice: self.user_choice };
        }
        if self.duration.is_some() || self.calls.is_some() {
            plan.duration = self.duration;
        }
        plan.threads = self.threads.unwrap_or(plan.threads);
        plan.calls = self.calls;
        (plan.connections, plan.streams) = (self.connections, self.streams);
        (plan.warm_up, plan.timeout) = (self.warm_up, self.timeout);
        plan.product_choice = self.product_choice;
        plan.request_ids = !self.no_request_ids;
        plan.ack = self.ack;
        plan.metrics_url = self.metrics_url.clone();
        Ok(plan)
    }
}

/// Creates a file before the run, so that a run is not made in vain.
fn create(path: Option<&PathBuf>) -> anyhow::Result<Option<File>> {
    let create = |path: &PathBuf| {
        File::create(path).with_context(|| format!("cannot create {}", path.display()))
    };
    path.map(create).transpose()
}

pub(super) async fn run(args: LoadArgs, stop: CancellationToken) -> anyhow::Result<ExitCode> {
    let plan = args.plan()?;
    let (json, html) = (create(args.json.as_ref())?, create(args.html.as_ref())?);
    let report = run_with_progress(plan, stop).await?;
    if let Some(mut file) = json {
        serde_json::to_writer_pretty(&file, &report.to_json()).context("cannot write --json")?;
        file.write_all(b"\n").context("cannot write --json")?;
    }
    if let Some(mut file) = html {
        file.write_all(report.to_html().as_bytes()).context("cannot write --html")?;
    }
    output::line(load_table(&report))?;
    if report.interrupted {
        output::line("Interrupted: these are the calls until then.")?;
        return Ok(ExitCode::from(130));
    }
    Ok(ExitCode::SUCCESS)
}

async fn run_with_progress(plan: Plan, stop: CancellationToken) -> anyhow::Result<Report> {
    let seconds = plan.duration.map(|duration| duration.as_secs().max(1));
    let progress = Progress::new(seconds.or(plan.calls).unwrap_or(0))?;
    let mut calls = 0;
    let report = load::run(plan, stop, |second: &Second| {
        calls += second.outcomes.total();
        let done = if seconds.is_some() { second.number + 1 } else { calls };
        let errors = second.outcomes.errors();
        let (p50, p99) = (millis(second.p50), millis(second.p99));
        progress.set(
            done,
            &format!(
                "{} s: {}/s, p50 {p50:.1} ms, p99 {p99:.1} ms, {errors} errors",
                second.number + 1,
                second.answered,
            ),
        );
    });
    Ok(report.await?)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: LoadArgs,
    }

    fn plan(flags: &[&str]) -> anyhow::Result<Plan> {
        let flags = std::iter::once("load").chain(flags.iter().copied());
        Command::try_parse_from(flags)?.args.plan()
    }

    #[test]
    fn flags_make_a_plan() {
        let made = plan(&["--products", "hat,shoe", "--rate", "500", "--users", "7"]).unwrap();
        assert_eq!(made.products, ["hat", "shoe"]);
        assert_eq!(made.pace, Pace::Open { rate: 500.0 });
        assert_eq!(made.users, Users::Of { count: 7, choice: Choice::Uniform });
        assert_eq!((made.duration, made.calls), (Some(Duration::from_secs(10)), None));
        let flags = ["--product-prefix", "p-", "--product-count", "3", "--calls", "9"];
        let made = plan(&flags).unwrap();
        assert_eq!(made.products, ["p-0", "p-1", "p-2"]);
        assert_eq!((made.duration, made.calls), (None, Some(9)));
        assert_eq!(plan(&["--empty", "--ack", "ledger"]).unwrap().ack, pb::Ack::Ledger);
        let tls = |flags: &[&str]| plan(&[&["--empty"], flags].concat()).unwrap().tls;
        assert_eq!(tls(&["--target", "http://shop:1"]), None);
        assert!(tls(&["--target", "https://shop:1"]).unwrap().authorities.is_none());
        assert_eq!(tls(&["--tls-ca", "ca"]).unwrap().files(), [PemFile::new("--tls-ca", "ca")]);
        assert!(plan(&["--empty", "--tls-cert", "cert"]).is_err(), "without its key");
    }

    #[test]
    fn calls_have_one_credential_and_no_error_repeats_it() {
        let credential = |flags: &[&str]| plan(&[&["--empty"], flags].concat()).unwrap().credential;
        assert_eq!(credential(&[]), None);
        assert_eq!(credential(&["--bearer", "a.b.c"]), Credential::bearer("a.b.c").ok());
        assert_eq!(credential(&["--api-key", "yk_1"]), Credential::api_key("yk_1").ok());
        for (flags, why) in [
            (&["--bearer", "secret", "--api-key", "secret"][..], "cannot be used with"),
            (&["--bearer", "secret\n"], "--bearer cannot be used"),
            (&["--api-key", "secret\n"], "--api-key cannot be used"),
        ] {
            let error = plan(&[&["--empty"], flags].concat()).unwrap_err();
            let message = format!("{error:#}");
            assert!(message.contains(why) && !message.contains("secret"), "{message}");
        }
    }

    #[test]
    fn flags_that_make_no_plan_are_refused_with_a_reason() {
        let reason = |flags: &[&str]| format!("{:#}", plan(flags).unwrap_err());
        assert!(reason(&[]).contains("name what to buy"));
        assert!(reason(&["--products", "a b"]).contains("a b"));
        assert!(reason(&["--product-prefix", "p"]).contains("--product-count"));
        let prefix = ["--product-prefix", "a b", "--product-count", "2"];
        assert!(reason(&prefix).contains("does not make product ids"));
        assert!(reason(&["--products", "a", "--product-choice", "zipf"]).contains("zipf:1.1"));
        assert!(reason(&["--products", "a", "--duration", "soon"]).contains("30s"));
        assert!(reason(&["--products", "a", "--ack", "fast"]).contains("must be memory"));
        for files in [&["--tls-ca", "ca"][..], &["--tls-cert", "cert", "--tls-key", "key"]] {
            let flags = [&["--empty", "--target", "http://shop:1"], files].concat();
            assert!(reason(&flags).contains("without TLS"));
        }
    }
}
