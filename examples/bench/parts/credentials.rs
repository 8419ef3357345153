//! What it costs that callers authenticate, and that they use TLS.

use std::fs;

use anyhow::Context as _;
use serde_json::json;

use super::{Measured, Setup, api::ACCEPTED};
use crate::{
    deployment::{Deployment, Products, Service},
    figure::Figure,
    load::{self, Pace, Phase},
    signer::{Signer, claims},
};

/// Every caller has the role `service`, which buys for any user.
const ROLE: &str = "service";

/// Settings with which callers must authenticate, and a JWT that is accepted.
fn authentication(deployment: &Deployment) -> anyhow::Result<(Vec<String>, String)> {
    let (provider, file) = (Signer::ec(), deployment.file("json"));
    fs::write(&file, json!({"keys": [provider.jwk("a")]}).to_string())?;
    let settings = vec![
        "authentication=required".to_owned(),
        format!("jwt_jwks_file={}", file.display()),
        "jwt_issuer=https://id.example".to_owned(),
        "jwt_audience=yoink".to_owned(),
        "jwt_role_claim=role".to_owned(),
    ];
    Ok((settings, provider.token(&claims(json!({"role": ROLE})))))
}

/// Settings with which `grpc_listen` uses TLS, and flags of `yoink load` for it.
fn tls(deployment: &Deployment) -> anyhow::Result<(Vec<String>, Vec<String>)> {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
    let (certificate, key) = (deployment.file("pem"), deployment.file("key"));
    fs::write(&certificate, made.cert.pem())?;
    fs::write(&key, made.signing_key.serialize_pem())?;
    let settings = vec![
        format!("tls_cert_file={}", certificate.display()),
        format!("tls_key_file={}", key.display()),
        "http_tls=off".to_owned(),
    ];
    let file = certificate.to_str().context("the path is not UTF-8")?;
    Ok((settings, vec!["--tls-ca".to_owned(), file.to_owned()]))
}

pub(super) async fn measure(setup: &Setup) -> anyhow::Result<Measured> {
    let products = [Products::plenty("hot-", 1)];
    let settings = ["backlog_max_entries=1000000000"];
    let deployment = Deployment::create(&setup.programs, &products, &settings).await?;
    let printed = deployment.run(&["keys", "create", "bench", "--role", ROLE]).await?;
    let key = printed.lines().find(|line| line.starts_with("yk_"));
    let key = key.context("`yoink keys create` printed no key")?;
    let plain = deployment.serve("api").await?;
    let (settings, jwt) = authentication(&deployment)?;
    let mut authenticated = deployment.serve_beside("api", &settings).await?;
    let (settings, flags) = tls(&deployment)?;
    let mut encrypted = deployment.serve_beside("api", &settings).await?;
    encrypted.caller_flags = flags;

    let paced = (setup.sizes.callers(), Pace::Closed(setup.sizes.time()));
    let accepted = async |service: &Service, name: &str| -> anyhow::Result<Phase> {
        load::run(&deployment, service, name, ACCEPTED, paced).await?.all_accepted()
    };
    let mut measured = Measured::default();
    for _ in 0..setup.sizes.rounds {
        let without = measured.keep(accepted(&plain, "no authentication").await?);
        authenticated.caller_flags = vec!["--api-key".to_owned(), key.to_owned()];
        let phase = measured.keep(accepted(&authenticated, "API key").await?);
        measured.add(Figure::ApiKeys, phase.rate / without.rate);
        authenticated.caller_flags = vec!["--bearer".to_owned(), jwt.clone()];
        let phase = measured.keep(accepted(&authenticated, "JWT").await?);
        measured.add(Figure::Jwts, phase.rate / without.rate);
        let phase = measured.keep(accepted(&encrypted, "TLS").await?);
        measured.add(Figure::Tls, phase.rate / without.rate);
    }
    authenticated.stop().await?;
    encrypted.stop().await?;
    deployment.finish(plain).await?;
    Ok(measured)
}
