//! What single scripts and connections must never do.

use redis::AsyncCommands as _;
use yoink::app::Role;

use crate::harness::{TestEnv, eventually, product};

#[tokio::test(flavor = "multi_thread")]
async fn calls_before_a_refused_entry_succeed_and_none_after_it_are_applied() {
    let env = TestEnv::new().await;
    let app = env.app(&[]).await;
    let stores = app.stores();
    app.create_products(&[product("shoe", 10)]).await.unwrap();
    let partition = stores.deployment.partitions.of(&"shoe".parse().unwrap());
    let key = |name: &str| format!("{}:{{{partition}}}:{name}", env.prefix);
    let mut cli = env.cli().await;
    // Between two numbers: the second order of a batch gets the id of the first, which Redis refuses.
    let _: () = cli.hset(key("meta"), "seq", "0.5").await.unwrap();
    let script =
        concat!(include_str!("../../lua/fence.lua"), "\n", include_str!("../../lua/reserve.lua"));
    let mut call = redis::cmd("EVAL");
    call.arg(script).arg(7);
    for name in ["meta", "stock", "catalogue", "idempotency", "bought", "orders", "lost"] {
        call.arg(key(name));
    }
    call.arg(format!("1 {}", stores.deployment.id)).arg(43_200_000).arg(1000);
    for user in ["ann", "bob", "cid"] {
        call.arg("shoe").arg(user).arg("r").arg("ab").arg("").arg("1");
    }
    let (status, answers): (String, String) = call.query_async(&mut cli).await.unwrap();
    assert_eq!(status, "ok");
    let answers: Vec<&str> = answers.lines().collect();
    assert!(
        answers[0].starts_with("accepted 2 9 "),
        "the accepted call gets its answer: {answers:?}"
    );
    for refused in &answers[1..] {
        assert!(refused.starts_with("not_applied "), "{answers:?}");
        assert!(refused.contains("equal or smaller"), "{refused}");
    }
    assert_eq!(answers.len(), 3);
    let stock: i64 = cli.hget(key("stock"), "shoe").await.unwrap();
    let entries: i64 = cli.xlen(key("orders")).await.unwrap();
    assert_eq!((stock, entries), (9, 1), "one was taken, and it has its entry");
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
