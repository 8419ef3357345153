//! Faults on real processes. Every test ends in the audit.

mod abuse;
mod auditor;
mod browse;
mod clock;
mod consumers;
mod crash;
mod disk;
mod fence;
mod kills;
mod lookup;
mod loops;
mod lost;
mod malformed;
mod network;
mod opening;
mod outage;
mod postgres;
mod redis_log;
mod replica;
mod rush;
mod settings;
mod small_disk;
mod stall;
mod unanswered;
mod unlisted;
mod unseen;
