//! The slots of a Redis Cluster: which one a key has, and what a node reports of them. Pure.

use ::redis::{FromRedisValue as _, Value};

const SLOTS: u16 = 16_384;

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
    /// Reads `host:port`, where an IPv6 host has no brackets.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        Some(Self { host: host.to_owned(), port: port.parse().ok()? })
    }

    /// The same address, with the host of the node that reported it where it has none.
    pub(super) fn or_host(self, host: &str) -> Self {
        if self.host.is_empty() { Self { host: host.to_owned(), ..self } } else { self }
    }
}

/// A range of slots, and its nodes: the master first, then its replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SlotRange {
    first: u16,
    last: u16,
    pub(super) nodes: Vec<Node>,
}

impl SlotRange {
    pub(super) fn contains(&self, slot: u16) -> bool {
        (self.first..=self.last).contains(&slot)
    }
}

/// Reads the answer to CLUSTER SLOTS of the node with this host; `None` if it is no such answer. A node whose address is
/// not known is left out, and a range without its master has no node.
pub(super) fn parse_slots(answer: &Value, asked: &str) -> Option<Vec<SlotRange>> {
    let Value::Array(ranges) = answer else { return None };
    let range = |range: &Value| {
        let Value::Array(parts) = range else { return None };
        let [Value::Int(first), Value::Int(last), master, replicas @ ..] = parts.as_slice() else {
            return None;
        };
        let master = parse_node(master, asked)?;
        let mut nodes = Vec::new();
        if let Some(master) = master {
            nodes.push(master);
            for replica in replicas {
                nodes.extend(parse_node(replica, asked)?);
            }
        }
        let (first, last) = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
        Some(SlotRange { first, last, nodes })
    };
    ranges.iter().map(range).collect()
}

/// A node of that answer. Outer `None`: it is no node. Inner `None`: the cluster does not know its address.
fn parse_node(node: &Value, asked: &str) -> Option<Option<Node>> {
    let Value::Array(parts) = node else { return None };
    let [endpoint, Value::Int(port), ..] = parts.as_slice() else { return None };
    let host: Option<String> = Option::from_redis_value_ref(endpoint).ok()?;
    let host = host.unwrap_or_default();
    // A cluster that prefers host names reports this of a node that has none.
    if host == "?" {
        return Some(None);
    }
    let node = Node { host, port: u16::try_from(*port).ok()? };
    Some(Some(node.or_host(asked)))
}

/// The epoch of a node's view of its cluster, from the answer to CLUSTER INFO. Each failover and each move of a slot
/// raises it, so of two views the one with the higher epoch is the newer one.
pub(super) fn epoch_of(info: &str) -> Option<u64> {
    let line = info.lines().find_map(|line| line.strip_prefix("cluster_current_epoch:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn node(host: Value, port: i64) -> Value {
        Value::Array(vec![host, Value::Int(port), text("id"), Value::Array(vec![])])
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
        assert_eq!(slot_of("{}foo"), crc16(b"{}foo") % SLOTS, "an empty tag is none");
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
        ] {
            assert_eq!(Node::parse(text), read, "{text}");
        }
        assert_eq!(node("", 1).unwrap().or_host("a"), node("a", 1).unwrap());
        assert_eq!(node("b", 1).unwrap().or_host("a"), node("b", 1).unwrap());
    }

    #[test]
    fn slots_are_read_with_their_masters_and_replicas() {
        let answer = Value::Array(vec![
            range(0, 99, vec![node(text("a"), 1), node(text("b"), 2)]),
            range(100, 100, vec![node(Value::Nil, 3)]),
            range(101, 16_383, vec![node(text("?"), 4), node(text("c"), 5)]),
        ]);
        let read = parse_slots(&answer, "asked").unwrap();
        let nodes: Vec<String> = read
            .iter()
            .map(|range| {
                let nodes = range.nodes.iter().map(|node| format!("{}:{}", node.host, node.port));
                nodes.collect::<Vec<_>>().join(" ")
            })
            .collect();
        assert_eq!(nodes, ["a:1 b:2", "asked:3", ""]);
        assert!(read[0].contains(0) && read[0].contains(99) && !read[0].contains(100));
    }

    #[test]
    fn answer_of_another_form_is_refused() {
        for bad in [
            Value::Nil,
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![range(0, 1, vec![])]),
            Value::Array(vec![range(-1, 1, vec![node(text("a"), 1)])]),
            Value::Array(vec![range(0, 1, vec![node(text("a"), 70_000)])]),
            Value::Array(vec![range(0, 1, vec![node(text("a"), 1), Value::Nil])]),
        ] {
            assert_eq!(parse_slots(&bad, "asked"), None, "{bad:?}");
        }
    }

    #[test]
    fn epoch_of_a_view_is_read() {
        let info = "cluster_state:ok\r\ncluster_current_epoch:12\r\ncluster_my_epoch:3\r\n";
        assert_eq!(epoch_of(info), Some(12));
        assert_eq!(epoch_of("cluster_state:ok\r\n"), None);
    }
}
