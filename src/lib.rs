//! Yoink sells a limited number of units to far more buyers than there are units, and stays exact.
//!
//! The modules, from the lowest to the highest (`docs/ARCHITECTURE.md` describes the whole):
//!
//! - [`domain`]: data types and decisions, without effects
//! - [`config`], [`telemetry`], [`tasks`], [`tls`]: settings; logs, metrics and traces; background tasks; certificates
//! - [`redis`]: connections, every key, and the one way to call a script that begins with the fence
//! - [`stock`]: takes units and gives them back; [`stream`]: carries accepted orders; [`ledger`]: stores
//!   them in Postgres. These three do not import one another
//! - [`lifecycle`]: opens, probes, closes and fills a partition in Redis
//! - [`ack`]: when an accepted reservation is answered
//! - [`catalogue`], [`recovery`], [`dead_letters`]: products, opening and rebuilding partitions, dead entries
//! - [`audit`]: checks that nothing is lost and nothing is sold twice
//! - [`auth`]: who makes a call
//! - `durability`: what the settings of both stores promise
//! - [`worker`]: stores orders; [`grpc`]: answers calls
//! - [`load`]: calls a running service and reports what was answered, and how fast
//! - [`servers`]: private Redis and Postgres for `dev`, `demo` and the tests
//! - [`app`]: connects, builds and runs the service; [`cli`]: the commands
//!
//! # Examples
//!
//! A product belongs to one partition, and a reservation id names the partition, the epoch and the entry of its order:
//!
//! ```
//! use yoink::domain::{Epoch, PartitionCount, ProductId, ReservationId};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let partitions = PartitionCount::try_from(8)?;
//! let product: ProductId = "sneaker-42".parse()?;
//! let partition = partitions.of(&product);
//! assert_eq!(partition.number(), 2);
//!
//! let seq = 17;
//! let id = ReservationId::new(partition.number(), Epoch(1), seq, ReservationId::draw_random())?;
//! assert_eq!(id.to_string().parse::<ReservationId>()?, id);
//! assert_eq!(id.entry_id(), "1-17");
//! # Ok(())
//! # }
//! ```
//!
//! A client buys one unit from a running service (`examples/` has whole programs in four languages):
//!
//! ```no_run
//! use yoink::grpc::pb::{ReserveUnitRequest, inventory_service_client::InventoryServiceClient};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut client = InventoryServiceClient::connect("http://127.0.0.1:50051").await?;
//! let request = ReserveUnitRequest {
//!     product_id: "sneaker-42".into(),
//!     user_id: "ann".into(),
//!     // The same request id again returns the same reservation and takes no second unit.
//!     request_id: "order-1".into(),
//!     ..Default::default()
//! };
//! let answer = client.reserve_unit(request).await?.into_inner();
//! println!("{:?}, {} units are left", answer.reservation, answer.remaining);
//! # Ok(())
//! # }
//! ```

pub mod ack;
pub mod app;
pub mod audit;
pub mod auth;
pub mod catalogue;
pub mod cli;
pub mod config;
mod crash_point;
pub mod dead_letters;
pub mod domain;
mod durability;
pub mod grpc;
pub mod ledger;
pub mod lifecycle;
pub mod load;
#[cfg(test)]
mod mutated;
pub mod recovery;
pub mod redis;
pub mod servers;
pub mod stock;
pub mod stream;
pub mod tasks;
pub mod telemetry;
pub mod tls;
pub mod worker;
