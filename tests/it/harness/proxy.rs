//! A proxy between the service and a store, which fails on demand.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::task::TaskTracker;
use yoink::servers::RedisServer;

use super::{
    WAIT_MAX,
    wire::{Requests, Wire, contains},
};

/// What the proxy does with connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Open,
    /// Connections are closed, also new ones as soon as they are made.
    Cut,
    /// Connections stay, and carry nothing.
    Frozen,
}

#[derive(Debug, Clone)]
struct State {
    flow: Flow,
    /// The delays of requests and of answers.
    delays: [Duration; 2],
    server: SocketAddr,
    /// Whether connections that were made to another server stay.
    keeps_old: bool,
    /// Connections up to this one that carry one of its commands (all of them, if it is empty) are silent.
    silenced: (u64, &'static str),
    /// Requests that carry this text are held.
    held: Option<&'static str>,
}

/// A request whose reply is to be lost.
struct Armed {
    texts: Vec<String>,
    reply: oneshot::Sender<Vec<u8>>,
}

/// What the connections share.
struct Shared {
    wire: Wire,
    state: watch::Receiver<State>,
    armed: Mutex<Option<Armed>>,
    /// Connections that a cut, or a lost answer, ended.
    broken: AtomicU64,
    /// Connections ever made.
    made: AtomicU64,
    /// Connections that a cut closed as soon as they were made.
    turned_away: AtomicU64,
    /// Postgres: requests that the client waits for.
    round_trips: AtomicU64,
    /// Requests that were held.
    held: AtomicU64,
}

/// A TCP proxy on a free port of loopback; ends with the test.
pub struct Proxy {
    port: u16,
    state: watch::Sender<State>,
    shared: Arc<Shared>,
}

/// An answer that the proxy loses.
pub struct Lost(oneshot::Receiver<Vec<u8>>);

impl Lost {
    /// Waits until the answer was dropped, and returns it: proof that the server did the work.
    pub async fn reply(self) -> String {
        let reply = timeout(WAIT_MAX, self.0).await;
        let Ok(Ok(reply)) = reply else { panic!("no answer was lost") };
        String::from_utf8_lossy(&reply).into_owned()
    }
}

impl Proxy {
    /// In front of the Redis on this port.
    pub async fn redis(port: u16) -> Self {
        Self::start(Wire::Redis, port).await
    }

    /// In front of the Postgres on this port.
    pub async fn postgres(port: u16) -> Self {
        Self::start(Wire::Postgres, port).await
    }

    async fn start(wire: Wire, port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let server = SocketAddr::from(([127, 0, 0, 1], port));
        let (state, seen) = watch::channel(State {
            flow: Flow::Open,
            delays: [Duration::ZERO; 2],
            server,
            keeps_old: false,
            silenced: (0, ""),
            held: None,
        });
        let shared = Shared {
            wire,
            state: seen.clone(),
            armed: Mutex::new(None),
            broken: AtomicU64::new(0),
            made: AtomicU64::new(0),
            turned_away: AtomicU64::new(0),
            round_trips: AtomicU64::new(0),
            held: AtomicU64::new(0),
        };
        let shared = Arc::new(shared);
        // It ends when the proxy is dropped, and all its connections with it.
        TaskTracker::new().spawn(accept(listener, shared.clone()));
        Self { port: own, state, shared }
    }

    /// As an address of Redis, for the user of the service.
    pub fn redis_url(&self) -> String {
        RedisServer::url_at(self.port)
    }

    /// As an address of a database, for the role of the service.
    pub fn postgres_url(&self, database: &str) -> String {
        format!("postgres://yoink_serve@127.0.0.1:{}/{database}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends every fault: everything passes without delay.
    pub fn pass(&self) {
        self.state.send_modify(|state| {
            state.flow = Flow::Open;
            state.delays = [Duration::ZERO; 2];
            state.held = None;
        });
    }

    /// Holds every request that carries this text, and what its connection sends after it, until everything passes.
    pub fn hold(&self, text: &'static str) {
        self.state.send_modify(|state| state.held = Some(text));
    }

    /// How many requests were held so far.
    pub fn held(&self) -> u64 {
        self.shared.held.load(Ordering::SeqCst)
    }

    /// Delays requests and answers.
    pub fn delay(&self, to_server: Duration, back: Duration) {
        self.state.send_modify(|state| state.delays = [to_server, back]);
    }

    /// Closes every connection, and each new one as soon as it is made.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.flow = Flow::Cut);
    }

    /// Keeps the connections open and forwards nothing.
    pub fn freeze(&self) {
        self.state.send_modify(|state| state.flow = Flow::Frozen);
    }

    /// Forwards to another server from now on; connections to the old one are closed.
    pub fn point_at(&self, port: u16) {
        let server = SocketAddr::from(([127, 0, 0, 1], port));
        self.state.send_modify(|state| state.server = server);
    }

    /// Forwards new connections to another server from now on; open ones stay.
    pub fn lead_new_to(&self, port: u16) {
        let server = SocketAddr::from(([127, 0, 0, 1], port));
        self.state.send_modify(|state| (state.server, state.keeps_old) = (server, true));
    }

    /// Keeps the connections that are open now and forwards nothing on them; new ones work. With a command's name,
    /// only those that have carried it.
    pub fn silence_open(&self, command: &'static str) {
        let made = self.shared.made.load(Ordering::SeqCst);
        self.state.send_modify(|state| state.silenced = (made, command));
    }

    /// How many connections were ever made.
    pub fn made(&self) -> u64 {
        self.shared.made.load(Ordering::SeqCst)
    }

    /// How many connections a cut has closed as soon as they were made.
    pub fn turned_away(&self) -> u64 {
        self.shared.turned_away.load(Ordering::SeqCst)
    }

    /// How many requests to Postgres clients have waited for.
    pub fn round_trips(&self) -> u64 {
        self.shared.round_trips.load(Ordering::SeqCst)
    }

    /// Loses the answer of the next script call that carries all these texts (of Postgres: the COMMIT of
    /// the next transaction that does), and the connection with it; the server does its work.
    pub fn lose_reply(&self, texts: &[&str]) -> Lost {
        let (reply, lost) = oneshot::channel();
        let texts = texts.iter().map(|text| (*text).to_owned()).collect();
        *self.shared.armed.lock().unwrap() = Some(Armed { texts, reply });
        Lost(lost)
    }

    /// How many connections it has broken.
    pub fn broken(&self) -> u64 {
        self.shared.broken.load(Ordering::SeqCst)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let (connections, mut state) = (TaskTracker::new(), shared.state.clone());
    loop {
        let client = tokio::select! {
            accepted = listener.accept() => accepted.unwrap().0,
            gone = state.changed() => if gone.is_ok() { continue } else { return },
        };
        connections.spawn(connect(client, shared.clone()));
    }
}

async fn connect(client: TcpStream, shared: Arc<Shared>) {
    let State { flow, server, .. } = shared.state.borrow().clone();
    if flow == Flow::Cut {
        shared.turned_away.fetch_add(1, Ordering::SeqCst);
        return;
    }
    // A server that is down refuses, as without a proxy.
    let Ok(upstream) = TcpStream::connect(server).await else { return };
    client.set_nodelay(true).unwrap();
    upstream.set_nodelay(true).unwrap();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = upstream.into_split();
    let number = shared.made.fetch_add(1, Ordering::SeqCst) + 1;
    let line = Line {
        shared: shared.clone(),
        number,
        carried: Mutex::default(),
        losing: Mutex::new(None),
    };
    let mut state = shared.state.clone();
    let cut =
        state.wait_for(|now| now.flow == Flow::Cut || (now.server != server && !now.keeps_old));
    let carry = async {
        requests(&line, from_client, to_server).await;
        // The client has closed; the server sees that and closes as well.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = carry => {}
        () = answers(&line, from_server, to_client) => {}
        _ = cut => { shared.broken.fetch_add(1, Ordering::SeqCst); }
    }
}

/// One connection.
struct Line {
    shared: Arc<Shared>,
    /// In the order in which they were made, from one.
    number: u64,
    /// The commands of Redis that it has carried.
    carried: Mutex<BTreeSet<String>>,
    /// Set once a request was sent whose answer is to be lost; the client gets no answer from then on.
    losing: Mutex<Option<oneshot::Sender<Vec<u8>>>>,
}

impl Line {
    fn delay(&self, way: usize) -> Duration {
        self.shared.state.borrow().delays[way]
    }

    /// Waits while the line is frozen, or silent.
    async fn until_it_carries(&self) {
        let mut state = self.shared.state.clone();
        let carries = |now: &State| now.flow != Flow::Frozen && !self.is_silent(now);
        // If the proxy was dropped, `cut` ends this connection.
        drop(state.wait_for(carries).await);
    }

    /// Waits while this request is held.
    async fn released(&self, request: &[u8]) {
        let mut state = self.shared.state.clone();
        let is_held = |now: &State| now.held.is_some_and(|text| contains(request, text.as_bytes()));
        if is_held(&self.shared.state.borrow()) {
            self.shared.held.fetch_add(1, Ordering::SeqCst);
            drop(state.wait_for(|now| !is_held(now)).await);
        }
    }

    fn is_silent(&self, now: &State) -> bool {
        let (last, command) = now.silenced;
        let carried = || self.carried.lock().unwrap().contains(command);
        self.number <= last && (command.is_empty() || carried())
    }

    fn note(&self, requests: &Requests, request: &[u8]) {
        self.carried.lock().unwrap().extend(requests.command(request));
    }

    /// Whether this is the request whose answer is to be lost.
    fn loses(&self, requests: &Requests, request: &[u8]) -> bool {
        let mut armed = self.shared.armed.lock().unwrap();
        let hit = armed.take_if(|armed| requests.carries(request, &armed.texts));
        let Some(hit) = hit else { return false };
        *self.losing.lock().unwrap() = Some(hit.reply);
        true
    }
}

/// Chunks in transit, each with the time when it arrives.
const UNDER_WAY: usize = 256;

/// Reads until the end; each chunk arrives after the delay of its direction.
async fn read(line: &Line, way: usize, mut from: OwnedReadHalf, to: mpsc::Sender<Chunk>) {
    let mut buffer = vec![0; 16_384];
    // A connection that breaks has ended.
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let at = Instant::now() + line.delay(way);
        if to.send((at, buffer[..read].to_vec())).await.is_err() {
            return;
        }
    }
}

type Chunk = (Instant, Vec<u8>);

async fn requests(line: &Line, from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let (queue, mut due) = mpsc::channel::<Chunk>(UNDER_WAY);
    let write = async move {
        let mut requests = Requests::new(line.shared.wire);
        while let Some((at, chunk)) = due.recv().await {
            sleep_until(at).await;
            line.until_it_carries().await;
            requests.push(&chunk);
            while let Some(request) = requests.next() {
                line.released(&request).await;
                line.note(&requests, &request);
                // A simple query, or the end of an extended one.
                if matches!(request.first(), Some(b'Q' | b'S')) {
                    line.shared.round_trips.fetch_add(1, Ordering::SeqCst);
                }
                let last = line.loses(&requests, &request);
                if to.write_all(&request).await.is_err() || last {
                    // Dropping the writer closes the connection; the server has the whole request and answers it.
                    return;
                }
            }
        }
    };
    tokio::join!(read(line, 0, from, queue), write);
}

async fn answers(line: &Line, from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let (queue, mut due) = mpsc::channel::<Chunk>(UNDER_WAY);
    let write = async move {
        let mut dropped = Vec::new();
        while let Some((at, chunk)) = due.recv().await {
            sleep_until(at).await;
            line.until_it_carries().await;
            if line.losing.lock().unwrap().is_some() {
                dropped.extend(chunk);
            } else if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
        // The server has closed: its last reply is kept here and not forwarded.
        if let Some(reply) = line.losing.lock().unwrap().take() {
            line.shared.broken.fetch_add(1, Ordering::SeqCst);
            drop(reply.send(dropped));
        }
    };
    tokio::join!(read(line, 1, from, queue), write);
}
