//! The slots of a Redis Cluster: which one a key has, and what a node reports of them. Pure.

use std::collections::BTreeMap;

use ::redis::{FromRedisValue as _, Value};

use super::views::Member;

const SLOTS: u16 = 16_384;
/// What a cluster that prefers host names reports of a node that has none.
const UNKNOWN_HOST: &str = "?";

/// The slot of a key, by its hash tag.
pub(super) fn slot_of(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    crc16(tag.filter(|tag| !tag.is_empty()).unwrap_or(key).as_bytes()) % SLOTS
}

/// CRC-16/XMODEM, as Redis Cluster specifies it.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    })
}

/// The address of a node. The host is empty where a node reports that it does not know it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Node {
    pub(super) host: String,
    pub(super) port: u16,
}

impl Node {
    /// Reads `host:port`, where an IPv6 host has no brackets; `None` also if the host is not known.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        (host != UNKNOWN_HOST).then_some(Self { host: host.to_owned(), port: port.parse().ok()? })
    }

    /// The same address, with the host of the node that reported it where it has none.
    pub(super) fn or_host(self, host: &str) -> Self {
        if self.host.is_empty() { Self { host: host.to_owned(), ..self } } else { self }
    }
}

/// Reads the addresses in the answer to CLUSTER SLOTS of the node with this host, by the ids of the nodes; `None` if it is
/// no such answer. A node whose address is not known is left out.
pub(super) fn parse_addresses(answer: &Value, asked: &str) -> Option<BTreeMap<String, Node>> {
    let Value::Array(ranges) = answer else { return None };
    let mut addresses = BTreeMap::new();
    for range in ranges {
        let Value::Array(parts) = range else { return None };
        let [Value::Int(_), Value::Int(_), nodes @ ..] = parts.as_slice() else { return None };
        for node in nodes {
            addresses.extend(parse_node(node, asked)?);
        }
    }
    Some(addresses)
}

/// A node of that answer, with its id. Outer `None`: it is no node. Inner `None`: the cluster does not know its address.
fn parse_node(node: &Value, asked: &str) -> Option<Option<(String, Node)>> {
    let Value::Array(parts) = node else { return None };
    let [endpoint, Value::Int(port), id, ..] = parts.as_slice() else { return None };
    let host: Option<String> = Option::from_redis_value_ref(endpoint).ok()?;
    let host = host.unwrap_or_default();
    if host == UNKNOWN_HOST {
        return Some(None);
    }
    let node = Node { host, port: u16::try_from(*port).ok()? };
    Some(Some((String::from_redis_value_ref(id).ok()?, node.or_host(asked))))
}

/// Reads the answer to CLUSTER NODES: the id of the node that was asked, and every node by its id.
pub(super) fn parse_members(answer: &str) -> Option<(String, BTreeMap<String, Member>)> {
    let (mut me, mut members) = (None, BTreeMap::new());
    for line in answer.lines() {
        let mut words = line.split(' ');
        let (id, flags) = (words.next()?, words.nth(1)?);
        let epoch = words.nth(3)?.parse().ok()?;
        // After the state of the link. A slot that is moving is in brackets, and belongs to its range until it has moved.
        let slots = words.skip(1).filter(|range| !range.is_empty() && !range.starts_with('['));
        let slots = slots.map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some((first.parse().ok()?, last.parse().ok()?))
        });
        if flags.split(',').any(|flag| flag == "myself") {
            me = Some(id.to_owned());
        }
        members.insert(id.to_owned(), Member { epoch, slots: slots.collect::<Option<_>>()? });
    }
    Some((me?, members))
}

/// Whether the cluster is up for a node, from its answer to CLUSTER INFO.
pub(super) fn is_ok(info: &str) -> bool {
    info.lines().any(|line| line.trim() == "cluster_state:ok")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn node(host: Value, port: i64) -> Value {
        let id = text(&format!("id-{port}"));
        Value::Array(vec![host, Value::Int(port), id, Value::Array(vec![])])
    }

    fn range(first: i64, last: i64, nodes: Vec<Value>) -> Value {
        let ends = vec![Value::Int(first), Value::Int(last)];
        Value::Array(ends.into_iter().chain(nodes).collect())
    }

    #[test]
    fn slot_of_a_key_is_that_of_its_hash_tag() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        // As CLUSTER KEYSLOT reports them.
        for (key, slot) in [("foo", 12_182), ("bar", 5061), ("yoink:{foo}:meta", 12_182)] {
            assert_eq!(slot_of(key), slot, "{key}");
        }
        assert_eq!(slot_of("yoink:{3}:meta"), slot_of("other:{3}:orders"));
        assert_eq!(slot_of("{}foo"), crc16(b"{}foo") % SLOTS, "an empty tag is not used");
    }

    #[test]
    fn address_of_a_redirection_is_read() {
        let node = |host: &str, port| Some(Node { host: host.to_owned(), port });
        for (text, read) in [
            ("10.0.0.1:7001", node("10.0.0.1", 7001)),
            ("redis-1.example.com:1", node("redis-1.example.com", 1)),
            ("2001:db8::1:7001", node("2001:db8::1", 7001)),
            ("[::1]:7001", node("::1", 7001)),
            (":7001", node("", 7001)),
            ("host", None),
            ("host:x", None),
            ("host:70000", None),
            ("?:7001", None),
        ] {
            assert_eq!(Node::parse(text), read, "{text}");
        }
        assert_eq!(node("", 1).unwrap().or_host("a"), node("a", 1).unwrap());
        assert_eq!(node("b", 1).unwrap().or_host("a"), node("b", 1).unwrap());
    }

    #[test]
    fn addresses_are_read_by_the_ids_of_the_nodes() {
        let answer = Value::Array(vec![
            range(0, 99, vec![node(text("a"), 1), node(text("b"), 2)]),
            range(100, 100, vec![node(Value::Nil, 3)]),
            range(101, 16_383, vec![node(text("?"), 4), node(text("c"), 5)]),
        ]);
        let read = parse_addresses(&answer, "asked").unwrap();
        let read: Vec<String> =
            read.iter().map(|(id, node)| format!("{id} {}:{}", node.host, node.port)).collect();
        assert_eq!(read, ["id-1 a:1", "id-2 b:2", "id-3 asked:3", "id-5 c:5"]);
        assert_eq!(parse_addresses(&Value::Array(vec![]), "asked"), Some(BTreeMap::new()));
    }

    #[test]
    fn answer_of_another_form_is_refused() {
        for bad in [
            Value::Nil,
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![Value::Array(vec![Value::Int(0)])]),
            Value::Array(vec![range(0, 1, vec![node(text("a"), 70_000)])]),
            Value::Array(vec![range(0, 1, vec![node(text("a"), 1), Value::Nil])]),
        ] {
            assert_eq!(parse_addresses(&bad, "asked"), None, "{bad:?}");
        }
        let me = "m h:1@2 myself,master - 0 0 1 connected";
        for bad in ["", "m h:1@2 master - 0 0 1 connected", &format!("{me} x"), &format!("{me}\nx")]
        {
            assert_eq!(parse_members(bad), None, "{bad}");
        }
    }

    #[test]
    fn nodes_are_read_with_their_epochs_and_slots() {
        let answer = "a 10.0.0.1:1@11,host myself,master - 0 0 7 connected 0-5 9 [10->-b]\n\
                      b :0@0 master,fail,noaddr - 1 1 3 disconnected 10-16383\n\
                      c 10.0.0.3:1@11 slave a 0 1 7 connected\n";
        let (me, members) = parse_members(answer).unwrap();
        assert_eq!((me.as_str(), members.len()), ("a", 3));
        for (id, epoch, slots) in
            [("a", 7, vec![(0, 5), (9, 9)]), ("b", 3, vec![(10, 16_383)]), ("c", 7, vec![])]
        {
            assert_eq!(members[id], Member { epoch, slots }, "{id}");
        }
    }

    #[test]
    fn state_of_a_cluster_is_read() {
        assert!(is_ok("cluster_enabled:1\r\ncluster_state:ok\r\n"));
        assert!(!is_ok("cluster_state:fail\r\n") && !is_ok(""));
    }
}
