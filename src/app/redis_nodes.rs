//! Reads of every master of Redis: one server, or the masters of a cluster. A master that does not answer is left out, as
//! long as another one answers: the partitions of the others are sold.

use anyhow::Context as _;
use futures_util::future::join_all;
use redis::{RedisError, RedisResult};

use crate::{
    ack::{AvailableAcks, MasterAcks},
    durability::{Assessment, RedisNodes, RedisState, setting_warnings},
    redis::{Commands, Partitions, retry_at_start},
};

/// What was read of each master, by its name.
pub(super) type OfEach<T> = Vec<(String, T)>;

/// The ack levels that the stores can give, with the mode of each master that counts.
pub(super) fn available_acks(
    nodes: &RedisNodes,
    mode: fn(&Assessment) -> &'static str,
    postgres: &Assessment,
) -> AvailableAcks {
    let masters = nodes.each().map(|(name, assessment, replicas)| {
        (name.to_owned(), MasterAcks { disk: mode(assessment) == "always", replicas })
    });
    AvailableAcks { masters: masters.collect(), ledger: postgres.mode == "synchronous" }
}

/// Runs a read on every master at the same time. Fails if none answers.
pub(super) async fn on_each<T, F: Future<Output = RedisResult<T>>>(
    partitions: &Partitions,
    read: impl Fn(Commands) -> F,
) -> RedisResult<OfEach<T>> {
    let reads = partitions.masters().into_iter().filter_map(|(name, of_master)| {
        let answer = read(partitions.connection(of_master.into_iter().next()?));
        Some(async move { (name, answer.await) })
    });
    let reads: Vec<_> = reads.collect();
    let (mut answers, mut failure) = (Vec::new(), None::<RedisError>);
    for (name, answer) in join_all(reads).await {
        match answer {
            Ok(answer) => answers.push((name, answer)),
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(error) if answers.is_empty() => Err(error),
        _ => Ok(answers),
    }
}

/// The version that each master reports.
pub(super) async fn versions(partitions: &Partitions) -> anyhow::Result<OfEach<String>> {
    let infos = retry_at_start(|| on_each(partitions, server_info)).await?;
    let version = |(name, info): (String, String)| {
        let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
        let version = version.context("Redis does not report its version")?.trim();
        Ok((name, version.to_owned()))
    };
    infos.into_iter().map(version).collect()
}

async fn server_info(mut commands: Commands) -> RedisResult<String> {
    redis::cmd("INFO").arg("server").query_async(&mut commands).await
}

/// The state and the settings of each master.
pub(super) async fn states(partitions: &Partitions) -> RedisResult<OfEach<RedisState>> {
    on_each(partitions, RedisState::read).await
}

/// Warnings about settings, each of them once.
pub(super) async fn warnings(partitions: &Partitions) -> RedisResult<Vec<String>> {
    let mut all: Vec<String> = Vec::new();
    for (_, warnings) in on_each(partitions, setting_warnings).await? {
        all.extend(warnings);
    }
    all.sort();
    all.dedup();
    Ok(all)
}
