//! What single scripts and connections must never do.

use redis::{AsyncCommands as _, aio::MultiplexedConnection};
use yoink::app::Role;

use crate::harness::{TestEnv, eventually, product};

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
    async fn reserve(&self, cli: &mut MultiplexedConnection, users: &[&str]) -> Vec<String> {
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
        let (status, answers): (String, String) = call.query_async(cli).await.unwrap();
        assert_eq!(status, "ok");
        answers.lines().map(str::to_owned).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_before_a_refused_entry_succeed_and_none_after_it_are_applied() {
    let env = TestEnv::new().await;
    let partition = Shoes::on(&env).await;
    let mut cli = env.cli().await;
    // Above this number, Lua cannot add 1: the second order of a batch gets the id of the first, which Redis refuses.
    let _: () = cli.hset(partition.key("meta"), "seq", "9007199254740992").await.unwrap();
    let answers = partition.reserve(&mut cli, &["ann", "bob", "cid"]).await;
    assert!(
        answers[0].starts_with("accepted 9007199254740992 9 "),
        "the accepted call gets its answer: {answers:?}"
    );
    for refused in &answers[1..] {
        assert!(refused.starts_with("not_applied "), "{answers:?}");
        assert!(refused.contains("equal or smaller"), "{refused}");
    }
    assert_eq!(answers.len(), 3);
    let stock: i64 = cli.hget(partition.key("stock"), "shoe").await.unwrap();
    let entries: i64 = cli.xlen(partition.key("orders")).await.unwrap();
    assert_eq!((stock, entries), (9, 1), "one was taken, and it has its entry");
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
