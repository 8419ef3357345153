//! The address of a tool that binds port 0 and does not print the port it got.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
};

/// Where a process listens, once it does.
pub fn listening(pid: u32) -> Option<SocketAddr> {
    listening_at(pid, Ipv4Addr::LOCALHOST)
}

/// Where a process listens on this address, once it does.
pub fn listening_at(pid: u32, ip: Ipv4Addr) -> Option<SocketAddr> {
    let opened = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
    let opened = opened.filter_map(|entry| fs::read_link(entry.path()).ok());
    let sockets: Vec<String> = opened
        .filter_map(|target| {
            let target = target.to_str()?;
            Some(target.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect();
    // Number, local address, remote address, state, …, and tenth the socket's number.
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let listens = *fields.get(3)? == "0A" && sockets.iter().any(|own| own == fields[9]);
        let (address, port) = fields[1].split_once(':')?;
        let address = Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?.swap_bytes());
        let port = u16::from_str_radix(port, 16).ok()?;
        (listens && address == ip).then(|| SocketAddr::from((address, port)))
    })
}
