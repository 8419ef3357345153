//! The real program as a process.

use std::{
    fs::{self, File},
    io::Read as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use yoink::grpc::pb::{
    AuditRequest, AuditVerdict, ListProductsRequest, ReserveUnitRequest,
    admin_service_client::AdminServiceClient, inventory_service_client::InventoryServiceClient,
};

use super::{Bought, TestEnv, eventually, product, scratch_dir};

fn yoink(env: &TestEnv, more: &[(&'static str, &str)], wrapper: &[&str]) -> Command {
    program(Path::new(env!("CARGO_BIN_EXE_yoink")), env, more, wrapper)
}

fn program(
    program: &Path,
    env: &TestEnv,
    more: &[(&'static str, &str)],
    wrapper: &[&str],
) -> Command {
    // The kernel ends it with this test, however that ends.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).args(wrapper).arg(program);
    for (name, value) in env.settings(more) {
        command.arg("--set").arg(format!("{name}={value}"));
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a command to its end.
pub fn run_yoink(env: &TestEnv, args: &[&str]) -> Output {
    run_yoink_with(env, &[], args)
}

/// Runs a command to its end, with more settings.
pub fn run_yoink_with(env: &TestEnv, more: &[(&'static str, &str)], args: &[&str]) -> Output {
    yoink(env, more, &[]).args(args).output().unwrap()
}

/// Runs a command to its end, with more settings and more in its environment.
pub fn run_yoink_in(
    env: &TestEnv,
    more: &[(&'static str, &str)],
    environment: &[(&str, &str)],
    args: &[&str],
) -> Output {
    yoink(env, more, &[]).args(args).envs(environment.iter().copied()).output().unwrap()
}

/// Starts a command, with more settings. The caller waits for its end.
pub fn spawn_yoink(env: &TestEnv, more: &[(&'static str, &str)], args: &[&str]) -> Child {
    yoink(env, more, &[]).args(args).spawn().unwrap()
}

/// Runs a command to its end on a terminal; returns what the terminal shows.
pub fn run_yoink_on_terminal(env: &TestEnv, args: &[&str]) -> String {
    let plain = yoink(env, &[], &[]);
    let words = std::iter::once(plain.get_program()).chain(plain.get_args());
    let words = words.map(|word| word.to_str().unwrap()).chain(args.iter().copied());
    let line: Vec<_> = words.map(|word| format!("'{word}'")).collect();
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line.join(" "), "/dev/null"]);
    let done = script.stdin(Stdio::null()).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// A running `yoink serve`.
pub struct Binary {
    child: Child,
    log: PathBuf,
}

impl Binary {
    /// Starts it; with a crash point, it ends itself there.
    pub fn serve(env: &TestEnv, more: &[(&'static str, &str)], crash_point: Option<&str>) -> Self {
        Self::serve_as("all", env, more, crash_point)
    }

    /// In a role.
    pub fn serve_as(
        role: &str,
        env: &TestEnv,
        more: &[(&'static str, &str)],
        crash_point: Option<&str>,
    ) -> Self {
        let point = crash_point.map(|point| ("YOINK_CRASH_POINT", point));
        Self::start(role, env, more, point.as_slice(), &[])
    }

    /// In a role, with more in its environment.
    pub fn serve_with(
        role: &str,
        env: &TestEnv,
        more: &[(&'static str, &str)],
        environment: &[(&str, &str)],
    ) -> Self {
        Self::start(role, env, more, environment, &[])
    }

    /// In a role, run by another program that becomes it, as `prlimit` does.
    pub fn serve_under(
        wrapper: &[&str],
        role: &str,
        env: &TestEnv,
        more: &[(&'static str, &str)],
    ) -> Self {
        Self::start(role, env, more, &[], wrapper)
    }

    /// In a role, by the program of another version.
    pub fn serve_program(
        other: &Path,
        role: &str,
        env: &TestEnv,
        more: &[(&'static str, &str)],
    ) -> Self {
        let settings = [&[("log_filter", "info")], more].concat();
        let mut command = program(other, env, &settings, &[]);
        command.args(["serve", "--role", role]);
        Self::from_command(command)
    }

    fn start(
        role: &str,
        env: &TestEnv,
        more: &[(&'static str, &str)],
        environment: &[(&str, &str)],
        wrapper: &[&str],
    ) -> Self {
        // The settings let the system choose the ports, which it logs.
        let mut settings = vec![("log_filter", "info")];
        settings.extend_from_slice(more);
        let mut command = yoink(env, &settings, wrapper);
        command.args(["serve", "--role", role]).envs(environment.iter().copied());
        Self::from_command(command)
    }

    /// Any command that serves. Its log has everything that it prints.
    pub fn from_command(mut command: Command) -> Self {
        let log = scratch_dir("serve").join("log");
        let file = File::create(&log).unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file);
        Self { child: command.spawn().unwrap(), log }
    }

    /// A connection, as soon as it answers.
    pub async fn channel(&mut self) -> Channel {
        self.connect("http", |endpoint| endpoint).await
    }

    /// A connection with TLS, as soon as it answers.
    pub async fn channel_with(&mut self, tls: ClientTlsConfig) -> Channel {
        self.connect("https", |endpoint| endpoint.tls_config(tls.clone()).unwrap()).await
    }

    async fn connect(&mut self, scheme: &str, prepare: impl Fn(Endpoint) -> Endpoint) -> Channel {
        eventually("the program answers", async || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("it ended with {status}: {}", self.log());
            }
            let address = self.address()?;
            let endpoint = Channel::from_shared(format!("{scheme}://{address}")).ok()?;
            prepare(endpoint).connect().await.ok()
        })
        .await
    }

    /// Its gRPC address, once it has logged it.
    pub fn address(&self) -> Option<SocketAddr> {
        let message = self.log();
        let (_, address) = message
            .split_once("this process listens grpc=")
            .or_else(|| message.split_once("\"grpc\":\""))?;
        address.split([' ', '"']).next()?.parse().ok()
    }

    /// Its HTTP address, once it has logged it.
    pub fn http_address(&self) -> Option<SocketAddr> {
        let message = self.log();
        message.split_once(" http=")?.1.split(' ').next()?.parse().ok()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for its end; returns how it ended.
    pub async fn ended(&mut self) -> ExitStatus {
        eventually("the program ends", async || self.child.try_wait().unwrap()).await
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

/// Creates a product and waits until a service that has just started has sold its first unit.
pub async fn first_sale(env: &TestEnv, service: &mut Binary) -> InventoryServiceClient<Channel> {
    let stores = env.stores().await;
    let shoe = [product("shoe", 10)];
    stores.ledger.create_products(&shoe, stores.deployment.partitions, "test").await.unwrap();
    let mut buyers = InventoryServiceClient::new(service.channel().await);
    eventually("it sells", async || {
        let request = ReserveUnitRequest {
            product_id: "shoe".to_owned(),
            user_id: "ann".to_owned(),
            request_id: "r".to_owned(),
            ..Default::default()
        };
        buyers.reserve_unit(request).await.ok()
    })
    .await;
    buyers
}

impl Drop for Binary {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A running `yoink dev`.
pub struct Dev {
    child: Child,
    output: PathBuf,
}

impl Dev {
    /// Starts it in a directory, on ports that the system chooses.
    pub fn start(here: &Path) -> Self {
        let output = scratch_dir("output").join("stdout");
        let mut command = Command::new(env!("CARGO_BIN_EXE_yoink"));
        for name in ["grpc_listen", "http_listen"] {
            command.args(["--set", &format!("{name}=127.0.0.1:0")]);
        }
        command.args(["--set", "log_filter=warn", "dev"]).current_dir(here);
        command.stdin(Stdio::null()).stdout(File::create(&output).unwrap()).stderr(Stdio::piped());
        Self { child: command.spawn().unwrap(), output }
    }

    /// Its gRPC and HTTP addresses, once it prints them.
    pub async fn addresses(&mut self) -> (SocketAddr, SocketAddr) {
        eventually("it prints its addresses", async || {
            assert!(self.child.try_wait().unwrap().is_none(), "it ended");
            let output = fs::read_to_string(&self.output).unwrap();
            let after = |word: &str| {
                let (line, _) = output.split_once(word)?.1.split_once('\n')?;
                let line = line.trim().trim_start_matches("http://");
                line.trim_end_matches("/readyz").parse::<SocketAddr>().ok()
            };
            Some((after("gRPC ")?, after("HTTP ")?))
        })
        .await
    }

    async fn endpoint(&mut self) -> Endpoint {
        let (grpc, _) = self.addresses().await;
        Channel::from_shared(format!("http://{grpc}")).unwrap()
    }

    /// Buys a unit of the demo catalogue, always by the same request.
    pub async fn buy(&mut self) -> Bought {
        let endpoint = self.endpoint().await;
        eventually("it sells", async || {
            assert!(self.child.try_wait().unwrap().is_none(), "it ended");
            let request = ReserveUnitRequest {
                product_id: "sneaker-42".to_owned(),
                user_id: "ann".to_owned(),
                request_id: "r".to_owned(),
                ..Default::default()
            };
            let mut client = InventoryServiceClient::new(endpoint.connect().await.ok()?);
            Some(client.reserve_unit(request).await.ok()?.into_inner().into())
        })
        .await
    }

    /// Waits until it lists its products.
    pub async fn ready(&mut self) {
        let endpoint = self.endpoint().await;
        eventually("it answers", async || {
            let mut client = InventoryServiceClient::new(endpoint.connect().await.ok()?);
            let listed = client.list_products(ListProductsRequest::default()).await.ok()?;
            let stocked =
                listed.into_inner().products.iter().all(|product| product.stock.is_some());
            stocked.then_some(())
        })
        .await;
    }

    /// Waits until all orders are stored, and its audit holds.
    pub async fn assert_audit_holds(&mut self) {
        let endpoint = self.endpoint().await;
        eventually("all is stored, and the audit holds", async || {
            let mut admin = AdminServiceClient::new(endpoint.connect().await.ok()?);
            let report = admin.audit(AuditRequest::default()).await.ok()?.into_inner();
            assert_ne!(report.verdict(), AuditVerdict::Violated, "{report:?}");
            let waits = report.products.iter().any(|units| units.in_orders + units.in_dead > 0);
            (!waits && report.verdict() == AuditVerdict::Holds).then_some(())
        })
        .await;
    }

    pub fn interrupt(&self) {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT).unwrap();
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end; returns its status and what it printed to stderr.
    pub async fn ended(&mut self) -> (ExitStatus, String) {
        let status = eventually("it ends", async || self.child.try_wait().unwrap()).await;
        let mut message = String::new();
        self.child.stderr.as_mut().unwrap().read_to_string(&mut message).unwrap();
        (status, message)
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Whether an argument of a command line is or contains the path of a directory or of something in it. `dir-12` is not in
/// `dir-1`.
fn names(line: &str, dir: &str) -> bool {
    line.match_indices(dir)
        .any(|(at, _)| matches!(line.as_bytes().get(at + dir.len()), None | Some(b'/' | b'\0')))
}

/// Processes that work in a directory, or name it on their command line.
pub fn processes_under(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        // One that has ended meanwhile is no longer there.
        let Ok(line) = std::fs::read(process.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line);
        let works_there = std::fs::read_link(process.path().join("cwd"))
            .is_ok_and(|cwd| cwd.starts_with(dir) && cwd != dir);
        if works_there || names(&line, dir.to_str().unwrap()) {
            found.push(line.replace('\0', " "));
        }
    }
    found
}
