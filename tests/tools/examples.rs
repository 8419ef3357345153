//! The clients of `examples/`, as `scripts/tools.sh examples` builds them. Redis loses the first reply of each: the
//! outcome is unclear, and the client resolves it.

use std::{
    path::Path,
    process::{Command, Output},
};

use yoink::app::Role;

use crate::harness::{Proxy, TestEnv, product};

/// Each client, and the command that runs it in the root of the repository.
const CLIENTS: [(&str, &[&str]); 4] = [
    ("go", &["examples/go/buy"]),
    ("python", &[".tools/examples-venv/bin/python", "examples/python/buy.py"]),
    ("typescript", &["node", "examples/typescript/build/buy.js"]),
    ("rust", &["target/debug/examples/buy"]),
];

async fn run(command: &[&str], args: [&str; 4]) -> (bool, String) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut process = Command::new(command[0]);
    process.args(&command[1..]).args(args).current_dir(root);
    process.env("YOINK_PROTO", root.join("proto"));
    let run = tokio::task::spawn_blocking(move || process.output().unwrap());
    let Output { status, stdout, stderr } = run.await.unwrap();
    (status.success(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn client_examples_resolve_a_lost_reply_by_the_same_request_id() {
    let env = TestEnv::with_own_redis().await;
    let proxy = Proxy::redis(env.redis.as_ref().unwrap().port()).await;
    let service = env.serve(Role::All, &[("redis_url", &proxy.redis_url())]).await;
    service.create(product("shoe", 4)).await;
    service.create(product("rare", 1)).await;
    service.buy("rare", "early", "r").await.unwrap();
    let script =
        concat!(include_str!("../../lua/fence.lua"), "\n", include_str!("../../lua/reserve.lua"));
    let reserve = redis::Script::new(script).get_hash().to_owned();
    // The script must be loaded: the proxy knows it by its hash.
    for (user, command) in CLIENTS {
        let address = match user {
            "rust" => format!("http://{}", service.grpc),
            _ => service.grpc.to_string(),
        };
        let lost = proxy.lose_reply(&[&reserve, user]);
        let (succeeded, printed) = run(command, [&address, "shoe", user, "order-1"]).await;
        assert!(succeeded, "{user}: {printed}");
        assert!(lost.reply().await.contains("accepted"), "{user}");
        let lines: Vec<&str> = printed.lines().collect();
        assert!(lines[0].starts_with("unclear: Redis did not answer"), "{user}: {printed}");
        assert!(printed.contains(" duplicate=true"), "{user}: {printed}");
        assert!(
            lines.last().unwrap().starts_with("state: RESERVATION_STATE_"),
            "{user}: {printed}"
        );

        let (succeeded, printed) = run(command, [&address, "rare", user, "order-1"]).await;
        assert!(!succeeded, "{user}: {printed}");
        // The reason SOLD_OUT or its message.
        let refusal = printed.lines().find(|line| line.contains("refused: ")).unwrap();
        assert!(refusal.to_lowercase().contains("sold"), "{user}: {printed}");
    }
    let report = env.assert_audit_holds().await;
    let units = report.products.iter().map(|product| product.confirmed).sum::<i64>();
    assert_eq!(units, 5, "one unit for each client and one for the first buyer");
}
