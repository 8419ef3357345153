//! The streams between Redis and the ledger: `orders` with its consumer group, and `dead`.
//!
//! Must never: trim a stream, spend a delivery on a read of history or a takeover (R4), acknowledge
//! without deleting, or hold a shared connection with a blocking read.

mod adopt;
mod cut;
mod dead;
mod depth;
mod drain;
mod entry;
mod find;
mod group;
mod move_to_dead;

use std::sync::Arc;

pub use cut::{ClaimsCut, Cut, CutError, ProductCut};
pub use dead::{DeadEntry, DeadPage};
pub use depth::Depth;
pub use drain::{Source, Surviving};
pub use entry::{Entry, EntryError, FORMAT};
pub use find::Found;
pub use group::Delivery;
pub use move_to_dead::Rejection;

use crate::redis::{Partitions, Script};

/// A handle on the streams of every partition.
#[derive(Clone)]
pub struct Streams {
    partitions: Partitions,
    scripts: Arc<Scripts>,
}

struct Scripts {
    adopt: Script,
    settle: Script,
    move_to_dead: Script,
    discard: Script,
    retire: Script,
    cut: Script,
    drained: Script,
    find: Script,
    dead: Script,
}

impl Streams {
    /// The streams of these partitions.
    pub fn new(partitions: Partitions) -> Self {
        let scripts = Scripts {
            adopt: Script::new("adopt", include_str!("../../lua/adopt.lua")),
            settle: Script::new("settle", include_str!("../../lua/settle.lua")),
            move_to_dead: Script::new("move_to_dead", include_str!("../../lua/move_to_dead.lua")),
            discard: Script::new("discard", include_str!("../../lua/discard.lua")),
            retire: Script::new("retire", include_str!("../../lua/retire.lua")),
            cut: Script::new("cut", include_str!("../../lua/cut.lua")),
            drained: Script::new("drained", include_str!("../../lua/drained.lua")),
            find: Script::new("find", include_str!("../../lua/find.lua")),
            dead: Script::new("dead", include_str!("../../lua/dead.lua")),
        };
        Self { partitions, scripts: Arc::new(scripts) }
    }

    /// The partitions behind these streams.
    pub fn partitions(&self) -> &Partitions {
        &self.partitions
    }
}
