//! What single scripts and connections must never do.

use redis::AsyncCommands as _;
use yoink::app::Role;

use crate::harness::{Cli, TestEnv, eventually, product};

/// The partition of a product with 10 units.
struct Shoes {
    /// What its keys begin with.
    prefix: String,
    /// As each script is called.
    caller: String,
}

impl Shoes {
    async fn on(env: &TestEnv) -> Self {
        let app = env.app(&[]).await;
        let stores = app.stores();
        app.create_products(&[product("shoe", 10)]).await.unwrap();
        let partition = stores.deployment.partitions.of(&"shoe".parse().unwrap());
        Self {
            prefix: format!("{}:{{{partition}}}", env.prefix),
            caller: format!("1 {}", stores.deployment.id),
        }
    }

    fn key(&self, name: &str) -> String {
        format!("{}:{name}", self.prefix)
    }

    /// Calls `reserve.lua` for one batch, each user with the request id `r`; returns its answers.
    async fn reserve(&self, cli: &mut Cli, users: &[&str]) -> Vec<String> {
        let (status, answers) = self.call(cli, users).await;
        assert_eq!(status, "ok");
        answers.lines().map(str::to_owned).collect()
    }

    /// The same; returns its reply.
    async fn call(&self, cli: &mut Cli, users: &[&str]) -> (String, String) {
        let script = concat!(
            include_str!("../../lua/fence.lua"),
            "\n",
            include_str!("../../lua/reserve.lua")
        );
        let mut call = redis::cmd("EVAL");
        call.arg(script).arg(7);
        for name in ["meta", "stock", "catalogue", "idempotency", "bought", "orders", "lost"] {
            call.arg(self.key(name));
        }
        call.arg(&self.caller).arg(43_200_000).arg(1000);
        for user in users {
            call.arg("shoe").arg(*user).arg("r").arg("ab").arg("").arg("1");
        }
        call.query_async(cli).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_before_a_refused_entry_succeed_and_none_after_it_are_applied() {
    let env = TestEnv::new().await;
    let partition = Shoes::on(&env).await;
    let mut cli = env.cli().await;
    // A reservation id holds no higher seq than the next one.
    let meta = partition.key("meta");
    let () = cli.hset(&meta, "seq", (1_u64 << 36) - 2).await.unwrap();
    let answers = partition.reserve(&mut cli, &["ann", "bob", "cid"]).await;
    assert!(
        answers[0].starts_with("accepted 68719476735 9 "),
        "the accepted call gets its answer: {answers:?}"
    );
    let refused = "not_applied the partition has used the last seq of its epoch";
    assert_eq!(answers[1..], [refused, refused]);
    let stock: i64 = cli.hget(partition.key("stock"), "shoe").await.unwrap();
    let entries: i64 = cli.xlen(partition.key("orders")).await.unwrap();
    assert_eq!((stock, entries), (9, 1), "one was taken, and it has its entry");
    // The next call closes the partition; its rebuild begins with seq 0.
    let (status, reason) = partition.call(&mut cli, &["ann"]).await;
    assert_eq!((status.as_str(), reason.as_str()), ("fenced", "closed"));
    let status: String = cli.hget(&meta, "status").await.unwrap();
    assert_eq!(status, "closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn entry_that_redis_refuses_takes_no_unit() {
    let env = TestEnv::new().await;
    let partition = Shoes::on(&env).await;
    let mut cli = env.cli().await;
    // Another program has added an entry with a higher id.
    let _: String = cli.xadd(partition.key("orders"), "1-5", &[("x", "y")]).await.unwrap();
    let answers = partition.reserve(&mut cli, &["ann", "bob"]).await;
    assert_eq!(answers.len(), 2);
    for refused in &answers {
        assert!(refused.starts_with("not_applied "), "{answers:?}");
        assert!(refused.contains("equal or smaller"), "{refused}");
    }
    let stock: i64 = cli.hget(partition.key("stock"), "shoe").await.unwrap();
    assert_eq!(stock, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn control_character_of_another_program_spoils_only_the_answer_to_its_request() {
    let env = TestEnv::new().await;
    let partition = Shoes::on(&env).await;
    let mut cli = env.cli().await;
    let answers = partition.reserve(&mut cli, &["ann"]).await;
    assert!(answers[0].starts_with("accepted 1 9 "), "{answers:?}");
    let buckets: Vec<String> =
        cli.keys(format!("{}:*", partition.key("idempotency"))).await.unwrap();
    let _: () = cli.hset(&buckets[0], "ann/shoe/r", "1-1\nab").await.unwrap();
    let _: () = cli.hset(partition.key("lost"), "bob/shoe/r", "1-5\r\nab").await.unwrap();
    let answers = partition.reserve(&mut cli, &["ann", "bob", "cid"]).await;
    assert_eq!(answers[..2], ["duplicate 1-1?ab 9", "lost_or_unknown 1-5??ab"]);
    assert!(answers[2].starts_with("accepted 2 8 "), "{answers:?}");
    assert_eq!(answers.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_blocking_reader_has_its_own_connection() {
    let env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::All, &[("partitions", "8")]).await;
    let blocked = eventually("every partition is read", async || {
        let list: String =
            redis::cmd("CLIENT").arg("LIST").query_async(&mut env.cli().await).await.unwrap();
        let reading = list.lines().filter(|line| line.contains(" cmd=xreadgroup "));
        (reading.clone().count() >= 8).then_some(reading.count())
    })
    .await;
    assert_eq!(blocked, 8);
    service.stop().await;
}
