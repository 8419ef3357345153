//! When the call of an accepted reservation is answered.

/// What must be done with an accepted reservation before its call is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// Redis has it.
    Memory,
    /// Redis has it on its disk.
    Disk,
    /// The configured number of replicas of Redis have it.
    Replica,
    /// Its order is committed in Postgres.
    Ledger,
}

impl Ack {
    /// Every level, the weakest first.
    pub const ALL: [Self; 4] = [Self::Memory, Self::Disk, Self::Replica, Self::Ledger];

    /// The name in settings and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Replica => "replica",
            Self::Ledger => "ledger",
        }
    }
}
