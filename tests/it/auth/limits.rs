//! The limit of each principal, and the token of `/metrics`.

use std::{fs, net::SocketAddr, time::Instant};

use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use yoink::{app::Role, domain::CallerRole, grpc::pb::AuditRequest};

use super::{REQUIRED, answer, create_key, list, with_token};
use crate::harness::{TestEnv, run_yoink_with, scratch_dir};

#[tokio::test(flavor = "multi_thread")]
async fn principal_over_its_rate_is_refused_with_each_of_its_keys_and_others_are_not() {
    let env = TestEnv::new().await;
    let keys = [(); 2].map(|()| create_key(&env, "busy", CallerRole::Service));
    let other = create_key(&env, "other", CallerRole::Service);
    let operator = create_key(&env, "carol", CallerRole::Operator);
    let settings = [REQUIRED, ("principal_calls_per_second", "5")];
    let service = env.serve(Role::Api, &settings).await;
    let started = Instant::now();
    let calls = keys.iter().cycle().take(100);
    let answers = join_all(calls.map(|key| list(service.channel(), Some(key)))).await;
    let most = 5.0 + 5.0 * started.elapsed().as_secs_f64();
    let answers: Vec<String> = answers.into_iter().map(answer).collect();
    let accepted = answers.iter().filter(|answer| *answer == "OK").count();
    assert!(accepted >= 5 && f64::from(u32::try_from(accepted).unwrap()) <= most, "{answers:?}");
    assert!(answers.iter().all(|answer| answer == "OK" || answer == "RATE_LIMITED"), "{answers:?}");
    list(service.channel(), Some(&other)).await.expect("another principal is not limited");
    for _ in 0..10 {
        let audit = with_token(AuditRequest::default(), Some(&operator));
        service.admin().audit(audit).await.expect("AdminService has no limit");
    }
}

/// The status line and the headers of a scrape with these headers.
pub(super) async fn scrape(address: SocketAddr, path: &str, headers: &str) -> String {
    let mut connection = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn scrape_needs_the_token_that_its_file_has_at_this_moment() {
    let env = TestEnv::new().await;
    let file = scratch_dir("metrics").join("token");
    fs::write(&file, "first-token\n").unwrap();
    let settings = [("metrics_token_file", file.to_str().unwrap())];
    let service = env.serve(Role::Api, &settings).await;
    let scraped_with = async |token: &str| {
        let headers = format!("Authorization: Bearer {token}\r\n");
        scrape(service.http, "/metrics", &headers).await
    };
    let accepted = scraped_with("first-token").await;
    assert!(accepted.starts_with("HTTP/1.1 200 ") && accepted.contains("yoink_"), "{accepted}");
    for headers in [
        "",
        "Authorization: Bearer\r\n",
        "Authorization: Bearer first-toke\r\n",
        "Authorization: Bearer first-token2\r\n",
        "Authorization: Basic first-token\r\n",
        "Authorization: Bearer first-token\r\nAuthorization: Bearer first-token\r\n",
        "x-api-key: first-token\r\n",
    ] {
        let refused = scrape(service.http, "/metrics", headers).await;
        assert!(refused.starts_with("HTTP/1.1 401 "), "{headers}: {refused}");
        assert!(refused.contains("www-authenticate: Bearer realm=\"yoink\""), "{refused}");
        assert!(!refused.contains("yoink_"), "{refused}");
    }
    for path in ["/healthz", "/readyz"] {
        let open = scrape(service.http, path, "").await;
        assert!(open.starts_with("HTTP/1.1 200 "), "{path}: {open}");
    }
    fs::write(&file, "second-token").unwrap();
    assert!(scraped_with("second-token").await.starts_with("HTTP/1.1 200 "));
    assert!(scraped_with("first-token").await.starts_with("HTTP/1.1 401 "));
    // A file that cannot be used opens nothing.
    fs::write(&file, "").unwrap();
    assert!(scraped_with("second-token").await.starts_with("HTTP/1.1 500 "));
    assert!(scraped_with("").await.starts_with("HTTP/1.1 401 "));
    let start = tokio::task::block_in_place(|| {
        run_yoink_with(&env, &settings, &["serve", "--role", "api"])
    });
    let message = String::from_utf8_lossy(&start.stderr).into_owned();
    assert!(!start.status.success() && message.contains("metrics_token_file"), "{message}");
}
