//! When an accepted reservation is answered.

/// What must be true of an accepted reservation before its buyer is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// Redis has it.
    Memory,
    /// Redis has it on its disk.
    Disk,
    /// So many replicas of Redis have it.
    Replica,
    /// Its order is committed in Postgres.
    Ledger,
}

impl Ack {
    /// Every one of them, the weakest first.
    pub const ALL: [Self; 4] = [Self::Memory, Self::Disk, Self::Replica, Self::Ledger];

    /// The word in settings and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Replica => "replica",
            Self::Ledger => "ledger",
        }
    }

    /// From that word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|ack| ack.as_str() == word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ack_survives_its_word() {
        for ack in Ack::ALL {
            assert_eq!(Ack::from_word(ack.as_str()), Some(ack));
        }
        assert_eq!(Ack::from_word("fsync"), None);
    }
}
