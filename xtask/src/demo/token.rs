//! A throw-away token issuer: an RSA key, its public half as a key set, and one signed token, by openssl.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};

pub const ISSUER: &str = "https://issuer.demo";
pub const AUDIENCE: &str = "sluice";

const LIFETIME_SECONDS: u64 = 12 * 3600;

pub struct Issued {
    /// The issuer's published keys (RFC 7517).
    pub jwks: String,
    /// A signed token (RFC 7519).
    pub token: String,
}

/// Makes a key in `folder`, which nobody else should read, and a token for `subject`.
pub fn issue(folder: &Path, subject: &str) -> Result<Issued> {
    let key = folder.join("issuer.pem");
    openssl(&["genrsa", "-out", path(&key)?, "2048"], b"")?;
    let modulus = openssl(&["rsa", "-in", path(&key)?, "-noout", "-modulus"], b"")?;
    let modulus = String::from_utf8(modulus)?;
    let modulus = modulus
        .trim()
        .strip_prefix("Modulus=")
        .context("openssl prints Modulus=…")?;
    let jwks = format!(
        r#"{{"keys":[{{"kty":"RSA","kid":"demo","alg":"RS256","use":"sig","n":"{}","e":"AQAB"}}]}}"#,
        base64url(&from_hex(modulus)?)
    );
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let claims = format!(
        r#"{{"iss":"{ISSUER}","aud":"{AUDIENCE}","sub":"{subject}","groups":["reporting"],"iat":{now},"nbf":{now},"exp":{}}}"#,
        now + LIFETIME_SECONDS
    );
    let signed = format!(
        "{}.{}",
        base64url(br#"{"alg":"RS256","kid":"demo","typ":"JWT"}"#),
        base64url(claims.as_bytes())
    );
    let signature = openssl(
        &["dgst", "-sha256", "-sign", path(&key)?],
        signed.as_bytes(),
    )?;
    let token = format!("{signed}.{}", base64url(&signature));
    Ok(Issued { jwks, token })
}

fn openssl(arguments: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("running openssl")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input)?;
    }
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "openssl {} failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

fn path(path: &Path) -> Result<&str> {
    path.to_str()
        .context("the temporary folder's name is not UTF-8")
}

fn from_hex(text: &str) -> Result<Vec<u8>> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?))
        .collect()
}

/// RFC 4648 §5, without padding, as RFC 7515 wants it.
fn base64url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let [a, b, c] = [0, 1, 2].map(|at| chunk.get(at).copied().unwrap_or(0));
        let group = u32::from_be_bytes([0, a, b, c]);
        for sextet in 0..=chunk.len() {
            let value = (group >> (18 - 6 * sextet)) & 0x3f;
            text.push(char::from(ALPHABET[value as usize]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4648 §10, less the padding, and the two letters that differ from plain base64.
    #[test]
    fn base64url_is_the_rfcs() {
        for (bytes, text) in [
            (&b""[..], ""),
            (b"f", "Zg"),
            (b"fo", "Zm8"),
            (b"foo", "Zm9v"),
            (b"foobar", "Zm9vYmFy"),
            (b"\xfb\xff", "-_8"),
        ] {
            assert_eq!(base64url(bytes), text);
        }
    }
}
