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

    /// From that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|ack| ack.as_str() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ack_is_parsed_from_its_own_name() {
        for ack in Ack::ALL {
            assert_eq!(Ack::from_name(ack.as_str()), Some(ack));
        }
        assert_eq!(Ack::from_name("fsync"), None);
    }
}
