//! A Redis of several servers: a Redis Cluster, and a master that Sentinels watch.

mod cluster;
mod failover;
mod load;
mod moved;
mod sentinel;
mod tls;
