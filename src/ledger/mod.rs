//! Postgres: what was granted and what was sold. Its CHECK (sold <= supply) is the
//! final guard against overselling.
//!
//! Must never: write orders outside the gate (R2), or decide by itself that an order is lost.

mod actions;
mod address;
mod api_keys;
mod audit;
mod catalogue;
mod checkpoint;
mod covered;
mod error;
mod marks;
mod migrate;
mod new_products;
mod partitions;
mod pool;
mod pooler;
mod pools;
mod privileges;
mod rebuild;
mod reservations;
mod seqs;
mod settings;
mod store;
mod timeline;
mod tls;
mod void;
mod workers;

pub use actions::{ActionBy, ActionRecord, RecordedAction, UnfinishedRecord};
pub use address::Address;
pub use api_keys::{ApiKeyRecord, NewApiKey, Revoked, UsableApiKey, UsableApiKeys};
pub use audit::{AuditCut, AuditRead, AuditRows, Keep, LedgerUnits};
pub use catalogue::{Changes, Restock, Restocked, SaleChange, UpdateError};
pub use checkpoint::{Blocked, Buckets, Checkpoint, CheckpointSums};
pub use covered::Covered;
pub use error::{Cause, LedgerError, Sqlstate, code_of};
pub use marks::Mark;
pub use migrate::{Migrated, SchemaVersions, check_schema, migrate, schema_versions};
pub use new_products::{Created, Imported};
pub use partitions::{Deployment, PartitionRow, PartitionStatus};
pub use pool::Ledger;
pub use pooler::{PoolerError, check_pooler};
pub use pools::{Lookup, Lookups, PoolSizes, Pools};
pub use privileges::MissingPrivileges;
pub use rebuild::{ClosedForRebuild, LockGuard};
pub use reservations::{ExportRow, LookedUp};
pub use settings::LedgerSettings;
pub use store::{Mismatch, Stored};
pub use timeline::Timeline;
pub use void::{VoidOutcome, VoidRequest};
pub use workers::Beat;
