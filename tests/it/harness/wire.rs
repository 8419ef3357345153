//! Splits a byte stream into requests, for the two protocols that the proxy forwards.

/// The protocol of the server behind a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    Redis,
    Postgres,
}

/// Most bytes of a transaction that are kept to be looked through.
const KEPT: usize = 4 << 20;

/// Cuts what a client sends into requests, however it was split over reads.
pub struct Requests {
    wire: Wire,
    bytes: Vec<u8>,
    /// Postgres: the start-up message has been seen; it alone has no type.
    started: bool,
    /// Postgres: everything sent since the transaction began.
    transaction: Vec<u8>,
}

impl Requests {
    pub fn new(wire: Wire) -> Self {
        Self { wire, bytes: Vec::new(), started: false, transaction: Vec::new() }
    }

    pub fn push(&mut self, read: &[u8]) {
        self.bytes.extend_from_slice(read);
    }

    /// The next whole request.
    pub fn next(&mut self) -> Option<Vec<u8>> {
        let length = match self.wire {
            Wire::Redis => command_length(&self.bytes)?,
            Wire::Postgres => message_length(&self.bytes, self.started)?,
        };
        if self.bytes.len() < length {
            return None;
        }
        let rest = self.bytes.split_off(length);
        let request = std::mem::replace(&mut self.bytes, rest);
        // A request for encryption (eight bytes) comes before the start-up message.
        self.started |= length > 8;
        if is_query(&request, b"START TRANSACTION") || is_query(&request, b"BEGIN") {
            self.transaction.clear();
        }
        if self.wire == Wire::Postgres && self.transaction.len() < KEPT {
            self.transaction.extend_from_slice(&request);
        }
        Some(request)
    }

    /// The name of a command of Redis.
    pub fn command(&self, request: &[u8]) -> Option<String> {
        if self.wire == Wire::Postgres {
            return None;
        }
        let name = request.split(|byte| *byte == b'\n').nth(2)?;
        Some(String::from_utf8_lossy(name).trim().to_owned())
    }

    /// Whether a request is the one whose answer is to be lost: a call of a script that carries all these
    /// texts, or the COMMIT of a transaction that did.
    pub fn carries(&self, request: &[u8], texts: &[String]) -> bool {
        let (decides, carried) = match self.wire {
            Wire::Redis => (contains(request, b"EVALSHA"), request),
            Wire::Postgres => (is_query(request, b"COMMIT"), self.transaction.as_slice()),
        };
        decides && texts.iter().all(|text| contains(carried, text.as_bytes()))
    }
}

/// Whether bytes contain a text.
pub fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

fn is_query(request: &[u8], text: &[u8]) -> bool {
    request.first() == Some(&b'Q') && request.get(5..).is_some_and(|sql| sql.starts_with(text))
}

/// A command is an array of bulk strings: `*2\r\n$3\r\nGET\r\n$1\r\nx\r\n`.
/// A replica that is busy sends empty lines.
fn command_length(bytes: &[u8]) -> Option<usize> {
    if bytes.first() == Some(&b'\n') {
        return Some(1);
    }
    let (words, mut at) = number(bytes, 0, b'*')?;
    for _ in 0..words {
        let (length, begins) = number(bytes, at, b'$')?;
        at = begins + length + 2;
    }
    Some(at)
}

/// The number behind a mark, and where the next line begins.
fn number(bytes: &[u8], at: usize, mark: u8) -> Option<(usize, usize)> {
    let line = bytes.get(at..)?;
    assert!(line.first().is_none_or(|first| *first == mark), "not a command of Redis");
    let end = line.iter().position(|byte| *byte == b'\n')?;
    let digits = std::str::from_utf8(&line[1..end]).unwrap();
    Some((digits.trim().parse().unwrap(), at + end + 1))
}

/// A message is a type and a length that counts itself; the first one has no type.
fn message_length(bytes: &[u8], started: bool) -> Option<usize> {
    let kind = usize::from(started);
    let length = bytes.get(kind..kind + 4)?.try_into().unwrap();
    Some(kind + usize::try_from(u32::from_be_bytes(length)).unwrap())
}

#[test]
fn requests_are_parsed_at_every_split() {
    let command = b"*2\r\n$7\r\nEVALSHA\r\n$4\r\nab\r\n\r\n";
    let mut requests = Requests::new(Wire::Redis);
    for byte in &command[..command.len() - 1] {
        requests.push(&[*byte]);
        assert_eq!(requests.next(), None);
    }
    requests.push(&[b"\n".as_slice(), command].concat());
    for _ in 0..2 {
        let request = requests.next().unwrap();
        assert_eq!(request, command);
        assert_eq!(requests.command(&request).as_deref(), Some("EVALSHA"));
        assert!(requests.carries(&request, &["ab".to_owned()]));
        assert!(!requests.carries(&request, &["ab".to_owned(), "cd".to_owned()]));
    }
    assert_eq!(requests.next(), None);
}

#[test]
fn commit_is_attributed_only_to_its_own_transaction() {
    let query = |sql: &str| {
        let length = u32::try_from(sql.len() + 5).unwrap().to_be_bytes();
        [b"Q".as_slice(), &length, sql.as_bytes(), b"\0"].concat()
    };
    let mut requests = Requests::new(Wire::Postgres);
    requests.push(&[0, 0, 0, 9, 0, 3, 0, 0, 0]);
    for sql in ["BEGIN", "INSERT 'ann'", "COMMIT", "BEGIN", "INSERT 'bob'", "COMMIT"] {
        requests.push(&query(sql));
    }
    let mut lost = Vec::new();
    while let Some(request) = requests.next() {
        lost.push(requests.carries(&request, &["ann".to_owned()]));
    }
    assert_eq!(lost, [false, false, false, true, false, false, false]);
}
