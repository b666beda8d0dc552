use super::*;

fn credential(require_auth: Option<&[LoginMethod]>, channel_binding: ChannelBinding) -> Credential {
    Credential {
        user: "app".to_owned(),
        password: Some(Secret::new("pw".to_owned())),
        require_auth: require_auth.map(|methods| methods.iter().copied().collect()),
        channel_binding,
        scram: std::sync::Mutex::default(),
    }
}

fn tls(end_point: bool) -> Channel {
    Channel::Tls {
        verified: true,
        end_point: end_point.then(|| vec![7; 32]),
    }
}

/// What the gateway says first, up to its nonce, or why it says nothing.
fn first(
    credential: &Credential,
    channel: &Channel,
    request: &Authentication<'_>,
) -> Result<String, LoginError> {
    let (_, next) = Login::new(credential, channel).next(request)?;
    Ok(match next {
        Next::In => "in".to_owned(),
        Next::Read => "read".to_owned(),
        Next::Answer(reply) => {
            let bytes = reply.expose().bytes().get(5..).unwrap_or_default();
            let text = String::from_utf8_lossy(bytes);
            text.split("n=,r=").next().unwrap_or_default().to_owned()
        }
    })
}

const PLUS: &[u8] = super::PLUS.as_bytes();
const PLAIN: &[u8] = super::PLAIN.as_bytes();

#[test]
fn which_scram_is_used() {
    use ChannelBinding::{Disable, Prefer, Require};
    let bound = "SCRAM-SHA-256-PLUS p=tls-server-end-point,,";
    type Row = (
        &'static str,
        ChannelBinding,
        Channel,
        &'static [&'static [u8]],
        Result<&'static str, LoginError>,
    );
    let table: [Row; 14] = [
        ("bound", Prefer, tls(true), &[PLUS, PLAIN], Ok(bound)),
        (
            "bound, in any order",
            Prefer,
            tls(true),
            &[PLAIN, PLUS],
            Ok(bound),
        ),
        (
            "the offer was taken away",
            Prefer,
            tls(true),
            &[PLAIN],
            Ok("SCRAM-SHA-256 y,,"),
        ),
        (
            "not wanted",
            Disable,
            tls(true),
            &[PLUS, PLAIN],
            Ok("SCRAM-SHA-256 n,,"),
        ),
        (
            "nothing to bind to",
            Prefer,
            tls(false),
            &[PLUS, PLAIN],
            Ok("SCRAM-SHA-256 n,,"),
        ),
        (
            "no TLS",
            Prefer,
            Channel::Plain,
            &[PLAIN],
            Ok("SCRAM-SHA-256 n,,"),
        ),
        ("required", Require, tls(true), &[PLUS, PLAIN], Ok(bound)),
        (
            "required, not offered",
            Require,
            tls(true),
            &[PLAIN],
            Err(LoginError::NotBound),
        ),
        (
            "required, no TLS",
            Require,
            Channel::Plain,
            &[PLAIN],
            Err(LoginError::NotBound),
        ),
        (
            "required, nothing to bind to",
            Require,
            tls(false),
            &[PLUS, PLAIN],
            Err(LoginError::NothingToBindTo),
        ),
        (
            "offered without TLS",
            Prefer,
            Channel::Plain,
            &[PLUS, PLAIN],
            Err(LoginError::PlusWithoutTls),
        ),
        ("only bound", Prefer, tls(true), &[PLUS], Ok(bound)),
        (
            "only bound, not wanted",
            Disable,
            tls(true),
            &[PLUS],
            Err(LoginError::NoMechanism),
        ),
        (
            "something else",
            Prefer,
            tls(true),
            &[b"OAUTHBEARER"],
            Err(LoginError::NoMechanism),
        ),
    ];
    for (name, channel_binding, channel, offered, expected) in table {
        let request = Authentication::Sasl {
            mechanisms: offered.to_vec(),
        };
        let got = first(&credential(None, channel_binding), &channel, &request);
        // The mechanism's name ends with NUL and is followed by the length of the rest.
        let got = got.map(|text| {
            let (mechanism, rest) = text.split_once('\0').expect(name);
            format!(
                "{mechanism} {}",
                rest.trim_start_matches(|c: char| !"pyn".contains(c))
            )
        });
        assert_eq!(got, expected.map(str::to_owned), "{name}");
    }
}

#[test]
fn what_is_not_accepted_is_not_answered() {
    use LoginMethod::{Md5, None as Nothing, Password, ScramSha256};
    let md5 = Authentication::Md5 { salt: [1, 2, 3, 4] };
    let scram = Authentication::Sasl {
        mechanisms: vec![PLAIN],
    };
    let clear = Authentication::Cleartext;
    let nothing = Authentication::Ok;
    let unverified = Channel::Tls {
        verified: false,
        end_point: None,
    };
    type Row<'a> = (
        &'a str,
        Option<&'a [LoginMethod]>,
        &'a Channel,
        &'a Authentication<'a>,
        bool,
    );
    let rows: [Row<'_>; 14] = [
        ("default, scram", None, &Channel::Plain, &scram, true),
        ("default, md5", None, &Channel::Plain, &md5, true),
        ("default, nothing", None, &Channel::Plain, &nothing, true),
        ("default, clear", None, &Channel::Plain, &clear, false),
        (
            "default, clear to anybody",
            None,
            &unverified,
            &clear,
            false,
        ),
        ("default, clear over TLS", None, &tls(true), &clear, true),
        (
            "listed, clear",
            Some(&[Password]),
            &Channel::Plain,
            &clear,
            true,
        ),
        (
            "scram only, scram",
            Some(&[ScramSha256]),
            &Channel::Plain,
            &scram,
            true,
        ),
        (
            "scram only, md5",
            Some(&[ScramSha256]),
            &tls(true),
            &md5,
            false,
        ),
        (
            "scram only, clear",
            Some(&[ScramSha256]),
            &tls(true),
            &clear,
            false,
        ),
        (
            "scram only, nothing",
            Some(&[ScramSha256]),
            &tls(true),
            &nothing,
            false,
        ),
        ("md5 only, md5", Some(&[Md5]), &Channel::Plain, &md5, true),
        (
            "none only, nothing",
            Some(&[Nothing]),
            &Channel::Plain,
            &nothing,
            true,
        ),
        (
            "none only, scram",
            Some(&[Nothing]),
            &Channel::Plain,
            &scram,
            false,
        ),
    ];
    for (name, require_auth, channel, request, accepted) in rows {
        let credential = credential(require_auth, ChannelBinding::Prefer);
        let answer = first(&credential, channel, request);
        assert_eq!(answer.is_ok(), accepted, "{name}: {answer:?}");
    }
}

/// A password in clear or hashed, and no password at all, are bound to nothing.
#[test]
fn required_binding_accepts_nothing_but_scram() {
    let credential = credential(None, ChannelBinding::Require);
    for request in [
        Authentication::Ok,
        Authentication::Cleartext,
        Authentication::Md5 { salt: [0; 4] },
    ] {
        assert_eq!(
            first(&credential, &tls(true), &request),
            Err(LoginError::NotBound),
            "{request:?}"
        );
    }
}

#[test]
fn a_credential_without_a_password_has_none_to_give() {
    let credential = Credential {
        password: None,
        ..credential(None, ChannelBinding::Prefer)
    };
    let scram = Authentication::Sasl {
        mechanisms: vec![PLAIN],
    };
    for request in [
        scram,
        Authentication::Cleartext,
        Authentication::Md5 { salt: [0; 4] },
    ] {
        assert_eq!(
            first(&credential, &tls(true), &request),
            Err(LoginError::NoPassword)
        );
    }
    assert_eq!(
        first(&credential, &tls(true), &Authentication::Ok),
        Ok("in".to_owned())
    );
}

#[test]
fn requests_out_of_order_end_the_login() {
    let credential = credential(None, ChannelBinding::Prefer);
    let channel = tls(true);
    let scram = || Authentication::Sasl {
        mechanisms: vec![PLAIN],
    };
    let rows: [(&str, Vec<Authentication<'_>>, LoginError); 7] = [
        (
            "scram, and in",
            vec![scram(), Authentication::Ok],
            LoginError::Unproven,
        ),
        ("scram twice", vec![scram(), scram()], LoginError::Order),
        (
            "scram, then clear",
            vec![scram(), Authentication::Cleartext],
            LoginError::Order,
        ),
        (
            "clear twice",
            vec![Authentication::Cleartext, Authentication::Cleartext],
            LoginError::Order,
        ),
        (
            "scram's end at once",
            vec![scram(), Authentication::SaslFinal { data: b"v=" }],
            LoginError::Order,
        ),
        (
            "too many rounds",
            vec![
                scram(),
                Authentication::SaslContinue {
                    data: b"r=x,s=AAAA,i=100001",
                },
            ],
            LoginError::Iterations,
        ),
        (
            "GSSAPI",
            vec![Authentication::Unsupported(7)],
            LoginError::Unsupported(7),
        ),
    ];
    for (name, requests, expected) in rows {
        let mut login = Login::new(&credential, &channel);
        let mut failed = None;
        for request in &requests {
            match login.next(request) {
                Ok((next, _)) => login = next,
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        assert_eq!(failed, Some(expected), "{name}");
    }
}
