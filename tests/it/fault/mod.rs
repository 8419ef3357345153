//! Faults on real processes. Every test ends in the audit.

mod abuse;
mod auditor;
mod clock;
mod consumers;
mod crash;
mod disk;
mod fence;
mod kills;
mod long_reads;
mod lookups;
mod loops;
mod lost;
mod network;
mod opening;
mod outage;
mod postgres;
mod redis_log;
mod replica;
mod rush;
mod schema_change;
mod settings;
mod small_disk;
mod stall;
