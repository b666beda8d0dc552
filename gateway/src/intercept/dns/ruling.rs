//! What a question gets, before anything is resolved: pure, from configuration and the question alone.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{DNSClass, RecordType};

use super::names::{Names, Standing};
use super::query::Question;
use crate::config::Agent;

/// What is to be done about a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ruling {
    /// The name is for this agent, and it wants addresses of one family.
    Addresses { name: String, family: Family },
    /// The name exists and has nothing of the kind that was asked for.
    Nothing,
    Refused {
        rcode: ResponseCode,
        rule: &'static str,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// Questions by processes of no registered agent get nothing (`agent` is `None`).
///
/// A name that is not the agent's does not exist (NXDOMAIN, whether others may use it or not): with
/// REFUSED, glibc would not go on to the next domain of a search list. A kind that is not served does not exist
/// for a name that does (NOERROR without answers), so that nobody concludes from HTTPS that there is no A.
pub fn rule(names: &Names, agent: Option<&Agent>, max_label: usize, question: &Question) -> Ruling {
    let refused = |rcode, rule| Ruling::Refused { rcode, rule };
    let Some(agent) = agent else {
        return refused(ResponseCode::Refused, "agent:unknown");
    };
    if question.edns.is_some_and(|edns| edns.version > 0) {
        return refused(ResponseCode::BADVERS, "dns:edns-version");
    }
    if question.class != DNSClass::IN {
        return refused(ResponseCode::Refused, "dns:class");
    }
    if question.longest_label() > max_label {
        return refused(ResponseCode::Refused, "dns:label-too-long");
    }
    let name = question.text();
    match (names.standing(agent, &name), question.kind) {
        (Standing::Known, RecordType::A) => Ruling::Addresses {
            name,
            family: Family::V4,
        },
        (Standing::Known, RecordType::AAAA) => Ruling::Addresses {
            name,
            family: Family::V6,
        },
        (Standing::Known | Standing::Above, _) => Ruling::Nothing,
        (Standing::NotForAgent, _) => refused(ResponseCode::NXDomain, "target:not-for-agent"),
        (Standing::Unknown, _) => refused(ResponseCode::NXDomain, "dns:unknown-name"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intercept::dns::query::Edns;
    use crate::intercept::dns::tests::{agent, question, target};

    #[test]
    fn rulings() {
        let names = Names::new(&[
            target("shop", &["db.internal:5432"]),
            target(
                "stock",
                &["a-name-with-a-label-of-forty-one-characters.example:1"],
            ),
            target("other", &["other.example:1"]),
        ]);
        let bot = agent("bot", Some(&["shop", "stock"]));
        let addresses = |family| Ruling::Addresses {
            name: "db.internal".to_owned(),
            family,
        };
        let refused = |rcode, rule| Ruling::Refused { rcode, rule };
        let unknown = refused(ResponseCode::NXDomain, "dns:unknown-name");
        let label = refused(ResponseCode::Refused, "dns:label-too-long");
        for (name, kind, expected) in [
            ("db.internal", RecordType::A, addresses(Family::V4)),
            ("DB.Internal.", RecordType::AAAA, addresses(Family::V6)),
            ("db.internal", RecordType::HTTPS, Ruling::Nothing),
            ("db.internal", RecordType::TXT, Ruling::Nothing),
            ("db.internal", RecordType::ANY, Ruling::Nothing),
            ("db.internal", RecordType::Unknown(65280), Ruling::Nothing),
            ("internal", RecordType::A, Ruling::Nothing),
            (".", RecordType::NS, Ruling::Nothing),
            ("db.internal.corp.example", RecordType::A, unknown.clone()),
            ("elsewhere", RecordType::A, unknown.clone()),
            ("1.3.18.198.in-addr.arpa", RecordType::PTR, unknown.clone()),
            (
                "other.example",
                RecordType::A,
                refused(ResponseCode::NXDomain, "target:not-for-agent"),
            ),
            (
                "a-name-with-a-label-of-forty-one-characters.example",
                RecordType::A,
                label.clone(),
            ),
            (
                "aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeee.x",
                RecordType::TXT,
                label,
            ),
            (
                "aaaaaaaaaabbbbbbbbbbccccccccccdddddddddd.x",
                RecordType::TXT,
                unknown,
            ),
        ] {
            let question = question(name, kind);
            assert_eq!(
                rule(&names, Some(&bot), 40, &question),
                expected,
                "{name} {kind}"
            );
            assert_eq!(
                rule(&names, None, 40, &question),
                refused(ResponseCode::Refused, "agent:unknown"),
                "{name} {kind}"
            );
        }

        let mut chaos = question("version.bind", RecordType::TXT);
        chaos.class = DNSClass::CH;
        let expected = refused(ResponseCode::Refused, "dns:class");
        assert_eq!(rule(&names, Some(&bot), 40, &chaos), expected);
        let mut future = question("db.internal", RecordType::A);
        future.edns = Some(Edns {
            version: 1,
            payload: 512,
        });
        let expected = refused(ResponseCode::BADVERS, "dns:edns-version");
        assert_eq!(rule(&names, Some(&bot), 40, &future), expected);
    }
}
