//! An identity provider: its keys, and the tokens that it signs.

use std::{
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    hmac,
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
        RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaKeyPair, RsaPublicKeyComponents,
    },
};
use serde_json::{Value, json};

/// The setting `jwt_algorithms` for [`wrong_tokens`].
pub const ALGORITHMS: &str = "RS256,PS256,ES256,EdDSA";

pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A pair of keys of an identity provider.
pub enum Signer {
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
    Rsa(RsaKeyPair),
}

impl Signer {
    pub fn ec() -> Self {
        let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Self::Ec(EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).unwrap())
    }

    pub fn ed() -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self::Ed(Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap())
    }

    pub fn rsa() -> Self {
        let mut openssl = Command::new("openssl");
        openssl.args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]);
        let output = openssl.args(["-outform", "DER"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // Which form openssl writes depends on its version.
        let pair = RsaKeyPair::from_pkcs8(&output.stdout);
        Self::Rsa(pair.or_else(|_| RsaKeyPair::from_der(&output.stdout)).unwrap())
    }

    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Ec(_) => "ES256",
            Self::Ed(_) => "EdDSA",
            Self::Rsa(_) => "RS256",
        }
    }

    /// The public key, as identity providers publish it.
    pub fn jwk(&self, id: &str) -> Value {
        match self {
            Self::Ec(pair) => {
                let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
                json!({"kty": "EC", "crv": "P-256", "kid": id, "use": "sig",
                       "x": encode(x), "y": encode(y)})
            }
            Self::Ed(pair) => {
                let x = encode(pair.public_key());
                json!({"kty": "OKP", "crv": "Ed25519", "kid": id, "x": x})
            }
            Self::Rsa(pair) => {
                let RsaPublicKeyComponents { n, e } =
                    RsaPublicKeyComponents::<Vec<u8>>::from(pair.public());
                json!({"kty": "RSA", "kid": id, "alg": "RS256", "n": encode(n), "e": encode(e)})
            }
        }
    }

    fn sign(&self, message: &str, pss: bool) -> Vec<u8> {
        let (random, message) = (SystemRandom::new(), message.as_bytes());
        match self {
            Self::Ec(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Ed(pair) => pair.sign(message).as_ref().to_vec(),
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                let padding: &'static dyn ring::signature::RsaEncoding =
                    if pss { &RSA_PSS_SHA256 } else { &RSA_PKCS1_SHA256 };
                pair.sign(padding, &random, message, &mut signature).unwrap();
                signature
            }
        }
    }

    /// A token of the key `a` with these claims.
    pub fn token(&self, claims: &Value) -> String {
        self.token_with(&json!({"alg": self.algorithm(), "kid": "a", "typ": "JWT"}), claims)
    }

    pub fn token_with(&self, header: &Value, claims: &Value) -> String {
        let message = unsigned(header, claims);
        let signature = self.sign(&message, header["alg"] == "PS256");
        format!("{message}.{}", encode(signature))
    }
}

pub fn unsigned(header: &Value, claims: &Value) -> String {
    format!("{}.{}", encode(header.to_string()), encode(claims.to_string()))
}

pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().cast_signed()
}

/// Claims that are accepted, changed by `change`; `null` removes a claim.
pub fn claims(change: Value) -> Value {
    let mut claims = json!({"iss": "https://id.example", "aud": ["other", "yoink"], "sub": "ann",
                            "exp": now() + 3600, "nbf": now() - 60});
    for (name, value) in change.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

/// Tokens that are refused, each with its cause, where the key `a` is that of `ec`, the key `r` that of `rsa`, and the
/// algorithms are [`ALGORITHMS`].
pub fn wrong_tokens(ec: &Signer, rsa: &Signer) -> Vec<(&'static str, String)> {
    let header = |change: &str, value: Value| {
        let mut header = json!({"alg": "ES256", "kid": "a"});
        header[change] = value;
        header
    };
    let good = claims(json!({}));
    let none = format!("{}.", unsigned(&header("alg", json!("none")), &good));
    // A verifier that takes the algorithm from the token would use the public key as a shared secret.
    let hs256 = unsigned(&json!({"alg": "HS256", "kid": "r"}), &good);
    let Signer::Rsa(pair) = rsa else { panic!("a pair of RSA keys") };
    let shared = hmac::Key::new(hmac::HMAC_SHA256, pair.public().as_ref());
    let hs256 = format!("{hs256}.{}", encode(hmac::sign(&shared, hs256.as_bytes())));
    let valid = ec.token(&good);
    let (message, signature) = valid.rsplit_once('.').unwrap();
    let changed = message.replace(
        message.split('.').nth(1).unwrap(),
        &encode(claims(json!({"sub": "bob"})).to_string()),
    );
    vec![
        ("jwt_malformed", "a.b.c".to_owned()),
        ("jwt_malformed", "garbage".to_owned()),
        ("jwt_malformed", message.to_owned()),
        ("jwt_malformed", none),
        ("jwt_malformed", ec.token_with(&header("crit", json!(["b64"])), &good)),
        ("jwt_malformed", "a".repeat(8193)),
        ("jwt_algorithm", hs256),
        // The algorithm is accepted, but not of this key.
        ("jwt_algorithm", rsa.token_with(&json!({"alg": "PS256", "kid": "r"}), &good)),
        ("jwt_algorithm", ec.token_with(&json!({"alg": "ES256", "kid": "r"}), &good)),
        ("jwt_key_unknown", ec.token_with(&header("kid", json!("b")), &good)),
        ("jwt_key_unknown", ec.token_with(&json!({"alg": "ES256"}), &good)),
        ("jwt_signature", Signer::ec().token(&good)),
        ("jwt_signature", format!("{changed}.{signature}")),
        ("jwt_signature", format!("{message}.")),
        ("jwt_expired", ec.token(&claims(json!({"exp": now() - 31})))),
        ("jwt_expired", ec.token(&claims(json!({"exp": null})))),
        ("jwt_expired", ec.token(&claims(json!({"exp": "never"})))),
        ("jwt_not_yet_valid", ec.token(&claims(json!({"nbf": now() + 3600})))),
        ("jwt_issuer", ec.token(&claims(json!({"iss": "https://other.example"})))),
        ("jwt_issuer", ec.token(&claims(json!({"iss": null})))),
        ("jwt_audience", ec.token(&claims(json!({"aud": ["other"]})))),
        ("jwt_audience", ec.token(&claims(json!({"aud": null})))),
        ("jwt_user", ec.token(&claims(json!({"sub": null})))),
        ("jwt_user", ec.token(&claims(json!({"sub": "a b"})))),
        ("jwt_user", ec.token(&claims(json!({"sub": 7})))),
    ]
}
