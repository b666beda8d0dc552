use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::issue::{Signer, encode, issue_token, key_set};
use super::*;
use crate::config::{Algorithm, Issuer, JwksSource};

const NOW: u64 = 1_800_000_000;

/// The issuer's keys, and one that is nobody's. RSA keys take a while to find, so all tests share them.
static RSA: LazyLock<Signer> = LazyLock::new(|| Signer::generate(Algorithm::Rs256, "rsa"));
static EC: LazyLock<Signer> = LazyLock::new(|| Signer::generate(Algorithm::Es256, "ec"));
static ED: LazyLock<Signer> = LazyLock::new(|| Signer::generate(Algorithm::EdDsa, "ed"));
/// Another key with the name of the issuer's.
static FORGER: LazyLock<Signer> = LazyLock::new(|| Signer::generate(Algorithm::Es256, "ec"));

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn issuer() -> Issuer {
    Issuer {
        name: "corp".to_owned(),
        issuer: "https://issuer.example".to_owned(),
        audience: "sluice".to_owned(),
        jwks: JwksSource::File(PathBuf::from("/nowhere")),
        algorithms: vec![Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa],
        groups_claim: "groups".to_owned(),
        leeway: Duration::from_secs(30),
    }
}

fn keyring() -> Keyring {
    Keyring::with_jwks(Arc::new(issuer()), &key_set(&[&RSA, &EC, &ED])).unwrap()
}

fn good_claims() -> Value {
    json!({
        "iss": "https://issuer.example",
        "aud": "sluice",
        "sub": "report-bot@corp",
        "exp": NOW + 60,
        "nbf": NOW - 60,
        "iat": NOW - 60,
        "jti": "t-1",
        "groups": ["reporting", "eu"],
    })
}

/// Good claims with one changed, or removed by `null`.
fn with(claim: &str, value: Value) -> Value {
    let mut claims = good_claims();
    claims.as_object_mut().unwrap().remove(claim);
    if !value.is_null() {
        claims[claim] = value;
    }
    claims
}

fn reason(result: &Result<Claims, TokenError>) -> &'static str {
    result.as_ref().map_or_else(TokenError::reason, |_| "ok")
}

#[test]
fn good_tokens_of_every_algorithm() {
    for signer in [&*RSA, &*EC, &*ED] {
        let claims = keyring().verify(&issue_token(signer, &good_claims()), at(NOW));
        assert_eq!(
            claims,
            Ok(Claims {
                issuer: "https://issuer.example".to_owned(),
                subject: "report-bot@corp".to_owned(),
                groups: vec!["reporting".to_owned(), "eu".to_owned()],
                expires_at: NOW + 60,
                token_id: Some("t-1".to_owned()),
            }),
            "{}",
            signer.header()
        );
    }
}

#[test]
fn claims_decide() {
    for (name, claims, expected) in [
        ("as issued", good_claims(), "ok"),
        ("expired", with("exp", json!(NOW - 31)), "token:expired"),
        (
            "expired to the second",
            with("exp", json!(NOW - 30)),
            "token:expired",
        ),
        (
            "expired within the leeway",
            with("exp", json!(NOW - 29)),
            "ok",
        ),
        ("expired long ago", with("exp", json!(0)), "token:expired"),
        (
            "exp with a fraction",
            with("exp", json!(NOW as f64 + 0.5)),
            "ok",
        ),
        ("exp beyond all numbers", with("exp", json!(u64::MAX)), "ok"),
        ("exp as a large float", with("exp", json!(1e300)), "ok"),
        ("exp negative", with("exp", json!(-1)), "token:malformed"),
        (
            "exp as a string",
            with("exp", json!("1900000000")),
            "token:malformed",
        ),
        (
            "exp missing",
            with("exp", Value::Null),
            "token:missing-claim",
        ),
        (
            "not yet valid",
            with("nbf", json!(NOW + 31)),
            "token:not-yet-valid",
        ),
        (
            "not yet valid within the leeway",
            with("nbf", json!(NOW + 30)),
            "ok",
        ),
        ("nbf missing", with("nbf", Value::Null), "ok"),
        (
            "nbf as a string",
            with("nbf", json!("x")),
            "token:malformed",
        ),
        (
            "other audience",
            with("aud", json!("payroll")),
            "token:wrong-audience",
        ),
        (
            "audience that starts like ours",
            with("aud", json!("sluice2")),
            "token:wrong-audience",
        ),
        (
            "audience list with ours",
            with("aud", json!(["payroll", "sluice"])),
            "ok",
        ),
        (
            "audience list without ours",
            with("aud", json!(["payroll"])),
            "token:wrong-audience",
        ),
        (
            "audience list empty",
            with("aud", json!([])),
            "token:wrong-audience",
        ),
        (
            "audience list with a number",
            with("aud", json!(["sluice", 1])),
            "token:malformed",
        ),
        (
            "audience as an object",
            with("aud", json!({"sluice": 1})),
            "token:malformed",
        ),
        (
            "audience missing",
            with("aud", Value::Null),
            "token:missing-claim",
        ),
        (
            "other issuer",
            with("iss", json!("https://evil.example")),
            "token:wrong-issuer",
        ),
        (
            "issuer with a slash more",
            with("iss", json!("https://issuer.example/")),
            "token:wrong-issuer",
        ),
        (
            "issuer as a list",
            with("iss", json!(["https://issuer.example"])),
            "token:malformed",
        ),
        (
            "issuer missing",
            with("iss", Value::Null),
            "token:missing-claim",
        ),
        (
            "subject missing",
            with("sub", Value::Null),
            "token:missing-claim",
        ),
        ("subject empty", with("sub", json!("")), "token:malformed"),
        ("subject a number", with("sub", json!(7)), "token:malformed"),
        ("token id missing", with("jti", Value::Null), "ok"),
        (
            "token id a number",
            with("jti", json!(7)),
            "token:malformed",
        ),
    ] {
        let result = keyring().verify(&issue_token(&EC, &claims), at(NOW));
        assert_eq!(reason(&result), expected, "{name}: {result:?}");
    }
}

#[test]
fn groups_from_the_configured_claim() {
    let none: &[&str] = &[];
    for (name, claim, value, expected) in [
        (
            "list",
            "groups",
            json!({"groups": ["a", "b"]}),
            Some(&["a", "b"][..]),
        ),
        (
            "one string",
            "groups",
            json!({"groups": "a b"}),
            Some(&["a b"][..]),
        ),
        (
            "nested",
            "realm_access.roles",
            json!({"realm_access": {"roles": ["a"]}}),
            Some(&["a"][..]),
        ),
        (
            "claim named by a URL",
            "https://x.example/groups",
            json!({"https://x.example/groups": ["a"]}),
            Some(&["a"][..]),
        ),
        (
            "the plain name goes first",
            "a.b",
            json!({"a.b": "plain", "a": {"b": "nested"}}),
            Some(&["plain"][..]),
        ),
        ("missing", "groups", json!({}), Some(none)),
        ("null", "groups", json!({"groups": null}), Some(none)),
        ("empty", "groups", json!({"groups": []}), Some(none)),
        (
            "nested, missing half-way",
            "a.b.c",
            json!({"a": {"x": 1}}),
            Some(none),
        ),
        (
            "nested through a list",
            "a.0",
            json!({"a": ["x"]}),
            Some(none),
        ),
        ("number", "groups", json!({"groups": 7}), None),
        (
            "list with a number",
            "groups",
            json!({"groups": ["a", 7]}),
            None,
        ),
        (
            "list with an empty name",
            "groups",
            json!({"groups": [""]}),
            None,
        ),
        ("object", "groups", json!({"groups": {"admin": true}}), None),
    ] {
        let mut claims = with("groups", Value::Null);
        claims
            .as_object_mut()
            .unwrap()
            .append(&mut value.as_object().unwrap().clone());
        let issuer = Issuer {
            groups_claim: claim.to_owned(),
            ..issuer()
        };
        let keyring = Keyring::with_jwks(Arc::new(issuer), &key_set(&[&EC])).unwrap();
        let result = keyring.verify(&issue_token(&EC, &claims), at(NOW));
        match expected {
            Some(groups) => assert_eq!(result.unwrap().groups, groups, "{name}"),
            None => assert_eq!(reason(&result), "token:malformed", "{name}"),
        }
    }
}

#[test]
fn headers_decide() {
    let header = |change: &dyn Fn(&mut Value)| {
        let mut header = EC.header();
        change(&mut header);
        EC.sign(&header.to_string(), &good_claims().to_string())
    };
    for (name, token, expected) in [
        ("as issued", header(&|_| ()), "ok"),
        (
            "without typ",
            header(&|h| drop(h.as_object_mut().unwrap().remove("typ"))),
            "ok",
        ),
        (
            "without kid, one key fits",
            header(&|h| drop(h.as_object_mut().unwrap().remove("kid"))),
            "ok",
        ),
        (
            "unknown kid",
            header(&|h| h["kid"] = json!("other")),
            "token:unknown-key",
        ),
        (
            "kid of a key of another type",
            header(&|h| h["kid"] = json!("rsa")),
            "token:unknown-key",
        ),
        (
            "empty kid",
            header(&|h| h["kid"] = json!("")),
            "token:unknown-key",
        ),
        (
            "kid a number",
            header(&|h| h["kid"] = json!(1)),
            "token:malformed",
        ),
        (
            "kid that injects",
            header(&|h| h["kid"] = json!("../../dev/null\u{1b}[31m")),
            "token:unknown-key",
        ),
        (
            "alg missing",
            header(&|h| drop(h.as_object_mut().unwrap().remove("alg"))),
            "token:malformed",
        ),
        (
            "alg in another case",
            header(&|h| h["alg"] = json!("es256")),
            "token:algorithm-refused",
        ),
        (
            "alg a list",
            header(&|h| h["alg"] = json!(["ES256"])),
            "token:malformed",
        ),
        (
            "alg of another family",
            header(&|h| h["alg"] = json!("EdDSA")),
            "token:unknown-key",
        ),
        (
            "alg not in our list",
            header(&|h| h["alg"] = json!("ES384")),
            "token:algorithm-refused",
        ),
        (
            "crit",
            header(&|h| h["crit"] = json!(["exp"])),
            "token:malformed",
        ),
        (
            "crit that is empty",
            header(&|h| h["crit"] = json!([])),
            "token:malformed",
        ),
        (
            "crit with b64",
            header(&|h| {
                h["crit"] = json!(["b64"]);
                h["b64"] = json!(false);
            }),
            "token:malformed",
        ),
        (
            "headers that name keys, over a good signature",
            header(&|h| {
                h["jwk"] = FORGER.jwk();
                h["jku"] = json!("https://evil.example/jwks");
                h["x5u"] = json!("https://evil.example/cert");
                h["x5c"] = json!(["AAAA"]);
            }),
            "ok",
        ),
    ] {
        let result = keyring().verify(&token, at(NOW));
        assert_eq!(reason(&result), expected, "{name}: {result:?}");
        if let Err(error) = result {
            assert!(
                !error.to_string().contains(char::is_control),
                "{name}: {error}"
            );
        }
    }
}

#[test]
fn forgeries() {
    let claims = good_claims().to_string();
    let good = issue_token(&EC, &good_claims());
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let hmac = |header: Value, secret: &[u8]| {
        let signed = format!("{}.{}", encode(header.to_string()), encode(&claims));
        let key = jsonwebtoken::EncodingKey::from_secret(secret);
        let algorithm = jsonwebtoken::Algorithm::HS256;
        let mac = jsonwebtoken::crypto::sign(signed.as_bytes(), &key, algorithm).unwrap();
        format!("{signed}.{mac}")
    };
    let other_payload = encode(with("sub", json!("admin")).to_string());
    let header = signed.split_once('.').unwrap().0;
    let unsigned = |alg: &str| {
        format!(
            "{}.{}.",
            encode(json!({"alg": alg}).to_string()),
            encode(&claims)
        )
    };
    let modulus = RSA.jwk()["n"].as_str().unwrap().to_owned();
    for (name, token, expected) in [
        (
            "another key of the same name",
            issue_token(&FORGER, &good_claims()),
            "token:bad-signature",
        ),
        (
            "its own key in the header",
            FORGER.sign(
                &json!({"alg": "ES256", "kid": "ec", "jwk": FORGER.jwk()}).to_string(),
                &claims,
            ),
            "token:bad-signature",
        ),
        (
            "its own key set in the header",
            FORGER.sign(
                &json!({"alg": "ES256", "kid": "mine", "jku": "http://127.0.0.1:1/"}).to_string(),
                &claims,
            ),
            "token:unknown-key",
        ),
        ("alg none", unsigned("none"), "token:algorithm-refused"),
        ("alg None", unsigned("None"), "token:algorithm-refused"),
        ("alg nOnE", unsigned("nOnE"), "token:algorithm-refused"),
        ("alg empty", unsigned(""), "token:algorithm-refused"),
        (
            "alg none with a signature",
            format!(
                "{}.{}.{signature}",
                encode("{\"alg\":\"none\"}"),
                encode(&claims)
            ),
            "token:algorithm-refused",
        ),
        ("no signature", format!("{signed}."), "token:bad-signature"),
        (
            "HS256 with the public key in PEM as its secret",
            hmac(
                json!({"alg": "HS256", "kid": "rsa"}),
                RSA.public_pem.as_bytes(),
            ),
            "token:algorithm-refused",
        ),
        (
            "HS256 with the modulus as its secret",
            hmac(json!({"alg": "HS256", "kid": "rsa"}), modulus.as_bytes()),
            "token:algorithm-refused",
        ),
        (
            "an HMAC called RS256",
            hmac(
                json!({"alg": "RS256", "kid": "rsa"}),
                RSA.public_pem.as_bytes(),
            ),
            "token:bad-signature",
        ),
        (
            "an HMAC called ES256",
            hmac(json!({"alg": "ES256", "kid": "ec"}), b""),
            "token:bad-signature",
        ),
        (
            "other claims under the signature",
            format!("{header}.{other_payload}.{signature}"),
            "token:bad-signature",
        ),
        (
            "signature of zeros (CVE-2022-21449)",
            format!("{signed}.{}", encode([0; 64])),
            "token:bad-signature",
        ),
        (
            "signature cut short",
            format!("{signed}.{}", &signature[..80]),
            "token:bad-signature",
        ),
        (
            "signature twice",
            format!("{signed}.{signature}{signature}"),
            "token:bad-signature",
        ),
        (
            "signature with padding",
            format!("{signed}.{signature}=="),
            "token:bad-signature",
        ),
        (
            "signature in DER",
            format!("{signed}.{}", encode([0x30, 6, 2, 1, 1, 2, 1, 1])),
            "token:bad-signature",
        ),
    ] {
        let result = keyring().verify(&token, at(NOW));
        assert_eq!(reason(&result), expected, "{name}: {result:?}");
    }
}

#[test]
fn malformed_tokens() {
    let sign = |header: &str, claims: &str| EC.sign(header, claims);
    let header = EC.header().to_string();
    let twice = format!(
        "{},\"sub\":\"admin\"}}",
        good_claims().to_string().trim_end_matches('}')
    );
    let fits = "x".repeat(MAX_TOKEN);
    for (name, token, expected) in [
        ("empty", String::new(), "token:malformed"),
        ("one part", "abc".to_owned(), "token:malformed"),
        ("two parts", "a.b".to_owned(), "token:malformed"),
        (
            "four parts",
            format!("{}.x", issue_token(&EC, &good_claims())),
            "token:malformed",
        ),
        ("dots", "..".to_owned(), "token:malformed"),
        (
            "header not base64",
            "a*b.e30.e30".to_owned(),
            "token:malformed",
        ),
        (
            "header with padding",
            "e30=.e30.e30".to_owned(),
            "token:malformed",
        ),
        (
            "header not JSON",
            format!("{}.e30.e30", encode("{")),
            "token:malformed",
        ),
        (
            "header a list",
            format!("{}.e30.e30", encode("[]")),
            "token:malformed",
        ),
        (
            "header with alg twice",
            sign(r#"{"alg":"ES256","alg":"none","kid":"ec"}"#, "{}"),
            "token:malformed",
        ),
        (
            "encrypted (five parts)",
            "a.b.c.d.e".to_owned(),
            "token:malformed",
        ),
        ("claims not JSON", sign(&header, "x"), "token:malformed"),
        ("claims a list", sign(&header, "[]"), "token:malformed"),
        ("claims empty", sign(&header, "{}"), "token:missing-claim"),
        ("a claim twice", sign(&header, &twice), "token:malformed"),
        (
            "claims nested too deep",
            sign(&header, &format!("{{\"a\":{}", "[".repeat(4000))),
            "token:malformed",
        ),
        (
            "space around",
            format!(" {}", issue_token(&EC, &good_claims())),
            "token:malformed",
        ),
        ("as large as allowed", fits.clone(), "token:malformed"),
        ("one byte more", fits + "x", "token:too-large"),
    ] {
        let result = keyring().verify(&token, at(NOW));
        assert_eq!(reason(&result), expected, "{name}: {result:?}");
    }
}

#[test]
fn only_algorithms_of_the_issuer_pass() {
    let issuer = Issuer {
        algorithms: vec![Algorithm::EdDsa],
        ..issuer()
    };
    let keyring = Keyring::with_jwks(Arc::new(issuer), &key_set(&[&RSA, &EC, &ED])).unwrap();
    for (signer, expected) in [
        (&*ED, "ok"),
        (&*EC, "token:algorithm-refused"),
        (&*RSA, "token:algorithm-refused"),
    ] {
        let result = keyring.verify(&issue_token(signer, &good_claims()), at(NOW));
        assert_eq!(reason(&result), expected, "{}", signer.header());
    }
}

#[test]
fn key_sets() {
    let change = |name: &str, value: Value| {
        let mut jwk = EC.jwk();
        match value.is_null() {
            true => drop(jwk.as_object_mut().unwrap().remove(name)),
            false => jwk[name] = value,
        }
        jwk
    };
    let second = Signer::generate(Algorithm::Es256, "second").jwk();
    let no_kid = EC.sign(r#"{"alg":"ES256"}"#, &good_claims().to_string());
    let with_kid = issue_token(&EC, &good_claims());
    for (name, keys, token, expected) in [
        ("one key", json!([EC.jwk()]), &with_kid, "ok"),
        (
            "no use, no alg",
            json!([{"kty": "EC", "crv": "P-256", "kid": "ec",
            "x": EC.jwk()["x"], "y": EC.jwk()["y"]}]),
            &with_kid,
            "ok",
        ),
        ("no kid, one key", json!([EC.jwk()]), &no_kid, "ok"),
        (
            "no kid, key without kid",
            json!([change("kid", Value::Null)]),
            &no_kid,
            "ok",
        ),
        (
            "kid, but the key has none",
            json!([change("kid", Value::Null)]),
            &with_kid,
            "token:unknown-key",
        ),
        (
            "no kid, several keys",
            json!([EC.jwk(), second]),
            &no_kid,
            "token:unknown-key",
        ),
        (
            "one kid for keys of two types",
            json!([
            {"kty": "RSA", "kid": "ec", "n": RSA.jwk()["n"], "e": "AQAB"}, EC.jwk()]),
            &with_kid,
            "ok",
        ),
        (
            "one kid twice, the second is right",
            json!([FORGER.jwk(), EC.jwk()]),
            &with_kid,
            "ok",
        ),
        (
            "keys we cannot use are skipped",
            json!([
            {"kty": "oct", "k": "AAAA"}, {"kty": "EC", "crv": "P-384", "x": "AA", "y": "AA"},
            {"kty": "new"}, {}, 7, EC.jwk()]),
            &with_kid,
            "ok",
        ),
        (
            "key for encryption",
            json!([change("use", json!("enc")), second]),
            &with_kid,
            "token:unknown-key",
        ),
        (
            "key for other operations",
            json!([change("key_ops", json!(["deriveKey"])), second]),
            &with_kid,
            "token:unknown-key",
        ),
        (
            "key for verifying",
            json!([change("key_ops", json!(["verify"]))]),
            &with_kid,
            "ok",
        ),
        (
            "key for another algorithm",
            json!([change("alg", json!("ES384")), second]),
            &with_kid,
            "token:unknown-key",
        ),
        (
            "point not on the curve",
            json!([change("x", EC.jwk()["y"].clone())]),
            &with_kid,
            "token:bad-signature",
        ),
    ] {
        let keyring = Keyring::with_jwks(Arc::new(issuer()), &json!({ "keys": keys }).to_string());
        let result = keyring.unwrap().verify(token, at(NOW));
        assert_eq!(reason(&result), expected, "{name}: {result:?}");
    }
}

#[test]
fn key_sets_that_are_refused() {
    let small = json!({"keys": [{"kty": "RSA", "n": encode([0xff; 128]), "e": "AQAB"}]});
    let mut private = EC.jwk();
    private["d"] = json!("AAAA");
    for (name, text, expected) in [
        ("empty", String::new(), "is not JSON (line 1)"),
        ("a list", "[]".to_owned(), "with a list \"keys\""),
        (
            "no keys",
            r#"{"keys": []}"#.to_owned(),
            "has no key for RS256",
        ),
        (
            "only a symmetric key",
            r#"{"keys": [{"kty": "oct", "k": "AAAA"}]}"#.to_owned(),
            "has no key for RS256",
        ),
        (
            "only a 1024 bit RSA key",
            small.to_string(),
            "has no key for RS256",
        ),
        (
            "a private key",
            json!({"keys": [private]}).to_string(),
            "contains a private key",
        ),
    ] {
        let error = Keyring::with_jwks(Arc::new(issuer()), &text).unwrap_err();
        assert_eq!(error.reason(), "token:jwks", "{name}");
        assert!(error.to_string().contains(expected), "{name}: {error}");
    }
}

#[test]
fn keys_from_a_file_follow_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("jwks.json");
    let issuer = Issuer {
        jwks: JwksSource::File(file.clone()),
        ..issuer()
    };
    let keyring = Keyring::new(Arc::new(issuer));
    let verify = |signer: &Signer, seconds: u64| {
        let claims = with("exp", json!(NOW + 100_000));
        keyring.verify(&issue_token(signer, &claims), at(NOW + seconds))
    };
    let missing = verify(&EC, 0);
    assert_eq!(reason(&missing), "token:jwks");
    let text = missing.unwrap_err().to_string();
    assert!(
        text.contains(file.to_str().unwrap()) && text.contains("No such file"),
        "{text}"
    );

    fs::write(&file, key_set(&[&EC])).unwrap();
    assert_eq!(reason(&verify(&EC, 0)), "ok");
    fs::write(&file, key_set(&[&ED])).unwrap();
    assert_eq!(reason(&verify(&ED, 0)), "ok", "a new key works at once");
    assert_eq!(
        reason(&verify(&EC, 0)),
        "token:unknown-key",
        "a removed key stops at once"
    );

    fs::write(&file, "half a fi").unwrap();
    assert_eq!(
        reason(&verify(&ED, 3599)),
        "ok",
        "the last good set serves for an hour"
    );
    assert_eq!(reason(&verify(&ED, 3600)), "token:jwks", "and not longer");
    fs::write(&file, format!("{}{}", key_set(&[&EC]), " ".repeat(1 << 20))).unwrap();
    let text = verify(&EC, 7200).unwrap_err().to_string();
    assert!(text.contains("larger than 1048576 bytes"), "{text}");
}

/// An issuer's HTTP server on loopback, whose answer a test can change.
struct Server {
    url: String,
    answer: Arc<Mutex<Vec<u8>>>,
    requests: Arc<AtomicUsize>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            url: format!("http://{}/jwks", listener.local_addr().unwrap()),
            answer: Arc::default(),
            requests: Arc::default(),
        };
        let (answer, requests) = (Arc::clone(&server.answer), Arc::clone(&server.requests));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                requests.fetch_add(1, Ordering::SeqCst);
                let _ = stream.read(&mut [0; 4096]);
                let answer = answer.lock().unwrap().clone();
                if answer.is_empty() {
                    // Never answers, and keeps the connection.
                    std::mem::forget(stream);
                    continue;
                }
                let _ = stream.write_all(&answer);
            }
        });
        server
    }

    fn answers(&self, status: &str, body: &str) {
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        *self.answer.lock().unwrap() = (head + body).into_bytes();
    }

    fn keyring(&self) -> Keyring {
        let jwks = JwksSource::Url(self.url.clone());
        Keyring::new(Arc::new(Issuer { jwks, ..issuer() }))
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

fn long_lived(signer: &Signer) -> String {
    issue_token(signer, &with("exp", json!(NOW + 100_000)))
}

#[test]
fn keys_from_a_url_are_kept_and_rotate() {
    let server = Server::start();
    let keyring = server.keyring();
    let verify = |signer: &Signer, seconds| {
        let result = keyring.verify(&long_lived(signer), at(NOW + seconds));
        (reason(&result), server.requests())
    };
    server.answers("200 OK", &key_set(&[&EC]));
    for (name, signer, seconds, expected) in [
        ("the first token loads the keys", &*EC, 0, ("ok", 1)),
        ("the second does not", &EC, 299, ("ok", 1)),
        (
            "after five minutes they are loaded again",
            &EC,
            300,
            ("ok", 2),
        ),
        (
            "an unknown key loads them early",
            &ED,
            301,
            ("token:unknown-key", 3),
        ),
        (
            "but not again and again",
            &ED,
            302,
            ("token:unknown-key", 3),
        ),
        ("nor does it disturb known keys", &EC, 302, ("ok", 3)),
        (
            "until half a minute has passed",
            &ED,
            331,
            ("token:unknown-key", 4),
        ),
    ] {
        assert_eq!(verify(signer, seconds), expected, "{name}");
    }
    server.answers("200 OK", &key_set(&[&ED]));
    assert_eq!(
        verify(&EC, 340),
        ("ok", 4),
        "the old set is kept for its time"
    );
    assert_eq!(verify(&ED, 361), ("ok", 5), "a rotated key is found");
    assert_eq!(
        verify(&EC, 362),
        ("token:unknown-key", 5),
        "and the old one is gone"
    );
}

#[test]
fn keys_survive_an_outage_of_the_issuer_for_an_hour() {
    let server = Server::start();
    let keyring = server.keyring();
    let verify = |seconds| {
        let result = keyring.verify(&long_lived(&EC), at(NOW + seconds));
        (reason(&result), server.requests())
    };
    server.answers("200 OK", &key_set(&[&EC]));
    assert_eq!(verify(0), ("ok", 1));
    server.answers("503 Service Unavailable", "");
    for (name, seconds, expected) in [
        ("renewing fails, the old keys serve", 300, ("ok", 2)),
        ("the failure is not retried at once", 304, ("ok", 2)),
        ("but soon", 305, ("ok", 3)),
        ("up to an hour after they were loaded", 3599, ("ok", 4)),
        ("then no longer", 3604, ("token:jwks", 5)),
        (
            "and no request is made for each session",
            3608,
            ("token:jwks", 5),
        ),
    ] {
        assert_eq!(verify(seconds), expected, "{name}");
    }
    server.answers("200 OK", &key_set(&[&EC]));
    assert_eq!(verify(3610), ("ok", 6), "back again");
}

#[test]
fn what_a_server_can_do_wrong() {
    let server = Server::start();
    let huge = format!("{}{}", key_set(&[&EC]), " ".repeat(1 << 20));
    for (name, status, body, expected) in [
        ("not found", "404 Not Found", "no", "404"),
        (
            "redirect",
            "302 Found\r\nlocation: http://127.0.0.1:1/",
            "",
            "302",
        ),
        ("a page", "200 OK", "<html>", "not JSON"),
        ("too large", "200 OK", huge.as_str(), "limit"),
        ("no content", "204 No Content", "", "204"),
    ] {
        server.answers(status, body);
        let error = server
            .keyring()
            .verify(&long_lived(&EC), at(NOW))
            .unwrap_err();
        assert_eq!(error.reason(), "token:jwks", "{name}");
        assert!(error.to_string().contains(expected), "{name}: {error}");
    }
}

#[test]
fn a_silent_server_costs_each_session_the_deadline_at_most() {
    let server = Server::start();
    let keyring = server.keyring();
    let token = long_lived(&EC);
    let started = Instant::now();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let result = keyring.verify(&token, at(NOW));
                assert_eq!(reason(&result), "token:jwks", "{result:?}");
            });
        }
    });
    let waited = started.elapsed();
    assert!(waited < Duration::from_secs(8), "{waited:?}");
    assert_eq!(server.requests(), 1, "one asks for all");
}

/// A server whose certificate no system root signed must not be believed.
#[test]
fn https_needs_a_trusted_certificate() {
    let (listener, roots, join) = https_server();
    let url = format!("https://localhost:{}/jwks", listener);
    let trusted = fetch::tests_fetch(&url, roots);
    assert_eq!(trusted.unwrap(), key_set(&[&EC]));
    let error = fetch::load(&JwksSource::Url(url)).unwrap_err();
    assert!(
        error.contains("UnknownIssuer") || error.contains("certificate"),
        "{error}"
    );
    join.join().unwrap();
}

/// Serves one good answer and one failing handshake; returns its port and its certificate.
fn https_server() -> (u16, Vec<u8>, thread::JoinHandle<()>) {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let der = certified.cert.der().clone();
    let key =
        rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![der.clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("localhost:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let join = thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut tls = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut tls = rustls::Stream::new(&mut tls, &mut stream);
            let body = key_set(&[&EC]);
            let _ = tls.read(&mut [0; 4096]).and_then(|_| {
                write!(
                    tls,
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                )?;
                tls.flush()
            });
        }
    });
    (port, der.to_vec(), join)
}

#[test]
fn the_agents_token_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bot.jwt");
    let agent = |subject: Option<&str>| Agent {
        name: "bot".to_owned(),
        cgroup: "agents.slice/bot".to_owned(),
        issuer: Arc::new(issuer()),
        token_file: file.clone(),
        subject: subject.map(str::to_owned),
        run_as: "nobody".to_owned(),
        postgres_password_file: None,
        targets: None,
    };
    let good = issue_token(&EC, &good_claims());
    let same = Some("report-bot@corp");
    for (name, content, subject, expected) in [
        ("no file", None, None, "token:missing"),
        ("empty", Some(String::new()), None, "token:malformed"),
        ("good", Some(good.clone()), None, "ok"),
        (
            "good with a line break",
            Some(format!("{good}\n")),
            None,
            "ok",
        ),
        (
            "good with two",
            Some(format!("{good}\n\n")),
            None,
            "token:bad-signature",
        ),
        (
            "the subject that is demanded",
            Some(good.clone()),
            same,
            "ok",
        ),
        (
            "another subject",
            Some(good.clone()),
            Some("other@corp"),
            "token:wrong-subject",
        ),
        (
            "too large",
            Some("x".repeat(MAX_TOKEN + 3)),
            None,
            "token:too-large",
        ),
    ] {
        let _ = fs::remove_file(&file);
        if let Some(content) = content {
            fs::write(&file, content).unwrap();
        }
        let result = authenticate(&agent(subject), &keyring(), at(NOW));
        assert_eq!(reason(&result), expected, "{name}: {result:?}");
        if let Err(error) = result {
            assert!(!error.to_string().contains(&good[..20]), "{name}: {error}");
        }
    }
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    let result = authenticate(&agent(None), &keyring(), at(NOW));
    assert_eq!(reason(&result), "token:unreadable", "{result:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

    #[test]
    fn verify_never_panics_or_accepts_noise(token in "\\PC{0,200}", seconds in 0..u64::from(u32::MAX)) {
        prop_assert!(keyring().verify(&token, at(seconds)).is_err());
    }

    /// Any one change to a good token, header and payload included, makes it bad.
    #[test]
    fn verify_refuses_every_changed_token(place in 0..400usize, replacement in "[A-Za-z0-9_.=-]{0,2}") {
        let good = issue_token(&EC, &good_claims());
        let place = place % good.len();
        let changed = format!("{}{replacement}{}", &good[..place], &good[place + 1..]);
        let result = keyring().verify(&changed, at(NOW));
        prop_assert_eq!(result.is_ok(), changed == good, "{}", changed);
    }

    /// Header and claims of any shape, properly signed: the deepest that hostile bytes get.
    #[test]
    fn verify_never_panics_on_signed_noise(
        header in "\\{\"alg\":\"ES256\"(,\"(kid|crit|typ)\":(\"ec\"|1|null|\\[\\]))?\\}",
        name in "iss|aud|sub|exp|nbf|jti|groups",
        value in "-?[0-9]{1,25}(\\.[0-9]{1,3})?(e-?[0-9]{1,3})?|\"\\PC{0,10}\"|null|true|\\[\\]|\\{\\}|\\[\\[1\\]\\]",
        seconds in any::<u32>(),
    ) {
        let mut claims = good_claims();
        claims.as_object_mut().unwrap().remove(&name);
        let claims = format!("{{\"{name}\":{value},{}", claims.to_string().trim_start_matches('{'));
        let _ = keyring().verify(&EC.sign(&header, &claims), at(u64::from(seconds)));
    }

    #[test]
    fn key_sets_never_panic(text in "\\{\"keys\":\\[(\\{\"kty\":\"(RSA|EC|OKP)\",\"crv\":\"(P-256|Ed25519)\",\"[nxe]\":\"[A-Za-z0-9_=-]{0,90}\",\"[yed]\":\"[A-Za-z0-9_-]{0,50}\"\\},?){0,3}\\]\\}|\\PC*") {
        let _ = Keyring::with_jwks(Arc::new(issuer()), &text);
    }
}
