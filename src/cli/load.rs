//! `yoink load`: buys from a running service.

use std::{
    process::ExitCode,
    sync::{Arc, atomic::AtomicU64},
};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    buyers::{self, SaleRun},
    output, progress,
    tables::{Column, sale_table},
};
use crate::{domain::ProductId, grpc::pb};

/// What to buy, and with how many calls.
#[derive(Debug, clap::Args)]
pub(super) struct LoadArgs {
    /// The address of the service.
    #[arg(long, default_value = "http://127.0.0.1:50051")]
    target: String,
    /// The product to buy.
    #[arg(long)]
    product: ProductId,
    /// Calls in all.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    attempts: u64,
    /// Buyers at the same time.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    buyers: u64,
    /// Connections that they share.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    connections: u16,
    /// What each answer waits for: memory, disk, replica or ledger; the default is the setting of the service.
    #[arg(long, value_parser = ack, default_value = "unspecified", hide_default_value = true)]
    ack: pb::Ack,
}

fn ack(word: &str) -> Result<pb::Ack, String> {
    let name = format!("ACK_{}", word.to_uppercase());
    pb::Ack::from_str_name(&name)
        .ok_or_else(|| "must be memory, disk, replica or ledger".to_owned())
}

pub(super) async fn run(args: LoadArgs, stop: CancellationToken) -> anyhow::Result<ExitCode> {
    let clients = buyers::connect(&args.target, usize::from(args.connections)).await?;
    let mut run_id = Uuid::new_v4().simple().to_string();
    run_id.truncate(8);
    let product = args.product.to_string();
    let LoadArgs { attempts, buyers, ack, .. } = args;
    let sale = SaleRun { product: product.clone(), attempts, buyers, run_id, ack };
    let done = Arc::new(AtomicU64::new(0));
    let work = buyers::run(&sale, &clients, done.clone(), &stop);
    let answers = progress::show(&product, attempts, done, work).await??;
    let units = i64::try_from(answers.accepted.len())?;
    output::line(sale_table(&[Column { product, units, answers, stored: None }]))?;
    Ok(ExitCode::SUCCESS)
}
