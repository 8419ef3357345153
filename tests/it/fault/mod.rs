//! Faults on real processes. Every test ends in the audit.

mod abuse;
mod auditor;
mod clock;
mod consumers;
mod crash;
mod disk;
mod fence;
mod kills;
mod ledger_failover;
mod ledger_lost;
mod loops;
mod lost;
mod network;
mod opening;
mod outage;
mod postgres;
mod rebuilds;
mod redis_log;
mod replica;
mod rush;
mod settings;
mod small_disk;
mod stall;
