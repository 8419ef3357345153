//! An action on a dead entry whose reply was lost: the record shows that its outcome is unknown.

use tonic::Status;
use yoink::{
    app::Role,
    domain::ReservationId,
    grpc::pb::ReleaseDeadEntriesRequest,
    ledger::{ActionBy, VoidRequest},
};

use crate::harness::{
    Proxy, Service, TestEnv, dead_entries, eventually, move_to_dead, product, reason, shared,
};

fn hash(body: &str) -> String {
    let fence = include_str!("../../../lua/fence.lua");
    redis::Script::new(&format!("{fence}\n{body}")).get_hash().to_owned()
}

/// Released entries, and those that were decided before or are gone.
async fn release(service: &Service, id: ReservationId, actor: &str) -> Result<(i32, i32), Status> {
    let request = ReleaseDeadEntriesRequest {
        selector: dead_entries::of([id]),
        actor: actor.to_owned(),
        ..Default::default()
    };
    let done = service.admin().release_dead_entries(request).await?.into_inner();
    Ok((done.released, done.decided + done.not_found))
}

/// `action actor`, oldest first.
async fn record(env: &TestEnv, id: ReservationId) -> Vec<String> {
    let done = env.stores().await.ledger.dead_actions(id).await.unwrap();
    done.into_iter().map(|done| format!("{} {}", done.action, done.actor)).collect()
}

/// Voids orders, or stores them, like a process that crashed before it updated Redis.
async fn settle_in_the_ledger(env: &TestEnv, voided: &[ReservationId], stored: &[ReservationId]) {
    let stores = env.stores().await;
    let by = ActionBy { actor: "dave".to_owned(), reason: String::new() };
    for id in voided {
        let dead = stores.dead_letters.find(*id).await.unwrap().unwrap();
        let void =
            VoidRequest { id: *id, reserved_at_ms: 0, reason: "x".to_owned(), entry: vec![] };
        stores.ledger.void(dead.partition, id.epoch(), &void, &by).await.unwrap();
    }
    for id in stored {
        let dead = stores.dead_letters.find(*id).await.unwrap().unwrap();
        let order = dead.order().unwrap();
        stores.ledger.store(dead.partition, id.epoch(), &[&order]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letter_action_with_lost_reply_is_recorded_as_unknown() {
    let env = TestEnv::new().await;
    let proxy = Proxy::redis(shared().redis.port()).await;
    let service = env.serve(Role::Api, &[("redis_url", &proxy.redis_url())]).await;
    service.create(product("shoe", 10)).await;
    let users = (0..6).map(|n| format!("user-{n}"));
    let ids = move_to_dead(&env, &service, ("shoe", Some("23514")), users).await;
    settle_in_the_ledger(&env, &ids[..3], &ids[3..]).await;
    // The scripts are known to Redis by then, so a call whose answer is lost below has run.
    assert_eq!(release(&service, ids[0], "early").await.unwrap(), (1, 0));
    assert_eq!(release(&service, ids[3], "early").await.unwrap(), (0, 1));
    assert_eq!(record(&env, ids[0]).await, ["release dave", "finish early"]);
    assert_eq!(record(&env, ids[3]).await, ["discard early"]);

    for (id, script, word, before) in [
        (ids[1], include_str!("../../../lua/release.lua"), "released", vec!["release dave"]),
        (ids[4], include_str!("../../../lua/discard.lua"), "discarded", vec![]),
    ] {
        let lost = proxy.lose_reply(&[&hash(script)]);
        let status = release(&service, id, "ann").await.unwrap_err();
        assert_eq!(reason(&status), "REDIS_UNAVAILABLE");
        let reply = lost.reply().await;
        assert!(reply.contains(word), "the script had its effect: {reply}");
        let recorded = [before, vec!["unknown ann"]].concat();
        assert_eq!(record(&env, id).await, recorded);
        // A later caller finds that the entry is gone, and has no effect.
        let late =
            eventually("Redis is asked again", async || release(&service, id, "late").await.ok());
        assert_eq!(late.await, (0, 1));
        assert_eq!(record(&env, id).await, recorded);
    }

    // What Redis refused was not done, and is not recorded.
    let partition = env.stores().await.deployment.partitions.of(&"shoe".parse().unwrap());
    let meta = format!("{}:{{{partition}}}:meta", env.prefix);
    let set = async |status: &str| {
        let mut set = redis::cmd("HSET");
        set.arg(&meta).arg("status").arg(status);
        let _: i64 = set.query_async(&mut env.cli().await).await.unwrap();
    };
    set("closed").await;
    for id in [ids[2], ids[5]] {
        assert_eq!(reason(&release(&service, id, "ann").await.unwrap_err()), "RECOVERING");
    }
    set("open").await;
    let bob = async |id| {
        eventually("it is open again", async || release(&service, id, "bob").await.ok()).await
    };
    assert_eq!(bob(ids[2]).await, (1, 0));
    assert_eq!(bob(ids[5]).await, (0, 1));
    assert_eq!(record(&env, ids[2]).await, ["release dave", "finish bob"]);
    assert_eq!(record(&env, ids[5]).await, ["discard bob"]);
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].stock, report.products[0].confirmed), (7, 3));
}
