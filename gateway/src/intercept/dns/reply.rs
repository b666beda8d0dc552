//! The answer to a question: what was decided → bytes.

use std::net::IpAddr;

use hickory_proto::op::{
    Edns as OutgoingEdns, Message, MessageType, Metadata, OpCode, Query, ResponseCode,
};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{RData, Record};

use super::query::{Edns, MAX_PAYLOAD, Question};

/// What a question is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub rcode: ResponseCode,
    pub addresses: Vec<IpAddr>,
}

impl Reply {
    pub fn addresses(addresses: Vec<IpAddr>) -> Self {
        Self {
            rcode: ResponseCode::NoError,
            addresses,
        }
    }

    /// The name exists, but has nothing of the kind asked for.
    pub fn nothing() -> Self {
        Self::code(ResponseCode::NoError)
    }

    pub fn code(rcode: ResponseCode) -> Self {
        Self {
            rcode,
            addresses: Vec::new(),
        }
    }

    /// The answers as they are sent, whole, or with TC set and no answers where they do not fit `limit`
    /// bytes: the client comes back over TCP. Half an answer would be taken for a whole one.
    pub fn encode(&self, question: &Question, ttl: u32, limit: usize) -> Option<Vec<u8>> {
        let mut message = self.message(question, ttl);
        let whole = message.to_vec().ok()?;
        if whole.len() <= limit {
            return Some(whole);
        }
        message.metadata.truncation = true;
        message.answers.clear();
        message.to_vec().ok()
    }

    fn message(&self, question: &Question, ttl: u32) -> Message {
        let mut message = answer_to(question.id, OpCode::Query, self.rcode);
        message.metadata.recursion_desired = question.recursion_desired;
        message.metadata.checking_disabled = question.checking_disabled;
        let mut query = Query::query(question.name.clone(), question.kind);
        query.set_query_class(question.class);
        message.add_query(query);
        for address in &self.addresses {
            let data = match *address {
                IpAddr::V4(v4) => RData::A(A(v4)),
                IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
            };
            message.add_answer(Record::from_rdata(question.name.clone(), ttl, data));
        }
        if let Some(Edns { .. }) = question.edns {
            let mut edns = OutgoingEdns::new();
            edns.set_max_payload(MAX_PAYLOAD);
            message.set_edns(edns);
        }
        message
    }
}

/// A bare refusal of something that could not be read.
pub fn refusal(id: u16, op_code: OpCode, rcode: ResponseCode) -> Option<Vec<u8>> {
    answer_to(id, op_code, rcode).to_vec().ok()
}

/// Recursion is said to be available although there is none: stub resolvers take an empty answer without
/// it for a referral to nowhere, and ask the next server (glibc, Go).
fn answer_to(id: u16, op_code: OpCode, rcode: ResponseCode) -> Message {
    let mut message = Message::new(id, MessageType::Response, op_code);
    message.metadata = Metadata::new(id, MessageType::Response, op_code);
    message.metadata.recursion_available = true;
    message.metadata.response_code = rcode;
    message
}

/// The code's name in the protocol documents.
pub fn rcode_name(rcode: ResponseCode) -> String {
    match rcode {
        ResponseCode::NoError => "NOERROR".to_owned(),
        ResponseCode::FormErr => "FORMERR".to_owned(),
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::NXDomain => "NXDOMAIN".to_owned(),
        ResponseCode::NotImp => "NOTIMP".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        ResponseCode::BADVERS => "BADVERS".to_owned(),
        other => format!("RCODE{}", u16::from(other)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::intercept::dns::query::parse;

    fn question(edns: bool) -> Question {
        let mut bytes =
            b"\0\x07\x01\x10\0\x01\0\0\0\0\0\0\x02Db\x08Internal\0\0\x01\0\x01".to_vec();
        if edns {
            bytes[11] = 1;
            bytes.extend_from_slice(b"\0\0\x29\x04\xd0\0\0\0\0\0\0");
        }
        parse(&bytes).unwrap()
    }

    #[test]
    fn bytes_on_the_wire() {
        let reply = Reply::addresses(vec![Ipv4Addr::new(198, 18, 3, 4).into()]);
        let expected = b"\0\x07\x81\x90\0\x01\0\x01\0\0\0\0\x02Db\x08Internal\0\0\x01\0\x01\
            \xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\xc6\x12\x03\x04";
        assert_eq!(reply.encode(&question(false), 60, 512).unwrap(), expected);
    }

    #[test]
    fn what_does_not_fit_is_asked_for_again_over_tcp() {
        let many = Reply::addresses(vec![Ipv6Addr::LOCALHOST.into(); 40]);
        let question = question(true);
        let cut = Message::from_vec(&many.encode(&question, 60, 512).unwrap()).unwrap();
        assert!(cut.truncation && cut.answers.is_empty() && cut.edns.is_some());
        assert_eq!(cut.queries.len(), 1);
        let whole = Message::from_vec(&many.encode(&question, 60, 65_535).unwrap()).unwrap();
        assert!(!whole.truncation);
        assert_eq!(whole.answers.len(), 40);
    }

    #[test]
    fn codes() {
        for (rcode, name) in [
            (ResponseCode::NoError, "NOERROR"),
            (ResponseCode::NXDomain, "NXDOMAIN"),
            (ResponseCode::Refused, "REFUSED"),
            (ResponseCode::ServFail, "SERVFAIL"),
            // The upper bits travel in the OPT pseudo-record.
            (ResponseCode::BADVERS, "BADVERS"),
        ] {
            assert_eq!(rcode_name(rcode), name);
            let bytes = Reply::code(rcode).encode(&question(true), 1, 512).unwrap();
            let read = Message::from_vec(&bytes).unwrap();
            assert_eq!(u16::from(read.response_code), u16::from(rcode), "{name}");
            assert!(read.recursion_available && !read.authoritative && read.recursion_desired);
            assert!(read.answers.is_empty());
        }
        assert_eq!(
            refusal(0x0102, OpCode::Query, ResponseCode::FormErr).unwrap(),
            [1, 2, 0x80, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]
        );
    }
}
