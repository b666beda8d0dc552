//! Bound: the parameter values of a Bind, as evidence shows them and as policies compare them.
//!
//! Decoded once, when they come; kept with the portal until it is executed. How much is kept is bounded
//! per portal and per session. Evidence shows what fits; a policy is not asked with less than all.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sha2::{Digest, Sha256};

use crate::audit::event::Parameter;
use crate::protocol::postgres::frontend::Parameters;
use crate::protocol::postgres::values::{self, Format};
use crate::session::record::Bindings;
use crate::sql;

/// A longer value is shown up to here, and compared by its digest.
const SHOWN: usize = 1 << 10;

/// A card number that begins within [`SHOWN`] is seen whole.
const BEYOND: usize = 64;

/// What a leaf takes of one statement's parameters, in bytes of text.
const EVIDENCE: usize = 64 << 10;

/// What is kept of one statement's parameters for policies.
const FACTS: usize = 1 << 20;

/// What one session keeps of all its portals' parameters.
const SESSION: usize = 8 << 20;

/// Memory that one value takes besides its text.
const EACH: usize = 64;

/// Digits that make a card number.
const FEWEST_DIGITS: usize = 13;

/// The type whose digits are no number.
const UUID: u32 = 2950;

/// How one Bind's parameters are to be kept.
#[derive(Debug, Clone)]
pub struct Keeping {
    /// The OIDs of their types, as far as they are known.
    pub types: Arc<[u32]>,
    /// They may be values of masked columns.
    pub withheld: bool,
    /// What the session keeps already.
    pub held: Held,
}

/// The parameters of one portal.
#[derive(Debug, Default)]
pub struct Bound {
    count: usize,
    shown: Vec<Parameter>,
    facts: Facts,
    _share: Option<Share>,
}

#[derive(Debug, Default)]
enum Facts {
    /// No policy asks for them.
    #[default]
    Unasked,
    All(Vec<String>),
    TooMany,
}

impl Bound {
    pub fn read(parameters: &Parameters<'_>, keeping: &Keeping, for_policies: bool) -> Self {
        let mut shown = Vec::new();
        let mut facts = BTreeSet::new();
        let (mut evidence, mut compared) = (0, 0);
        let room = keeping.held.room();
        for (index, (code, bytes)) in parameters.iter().enumerate() {
            let value = Value {
                type_oid: keeping.types.get(index).copied().unwrap_or(0),
                format: Format::of(code),
                bytes,
            };
            if evidence < EVIDENCE.min(room) {
                let parameter = value.shown(keeping.withheld);
                evidence += EACH + parameter.value.as_ref().map_or(0, String::len);
                shown.push(parameter);
            }
            if for_policies
                && compared < FACTS
                && let Some(fact) = value.fact()
            {
                let size = EACH + fact.len();
                compared += if facts.insert(fact) { size } else { 0 };
            }
        }
        let facts = match for_policies {
            false => Facts::Unasked,
            true if compared < FACTS && evidence + compared < room => {
                Facts::All(facts.into_iter().collect())
            }
            true => Facts::TooMany,
        };
        let kept = match facts {
            Facts::All(_) => evidence + compared,
            _ => evidence,
        };
        Self {
            count: parameters.values.len(),
            shown,
            facts,
            _share: Some(keeping.held.share(kept)),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn bindings(&self) -> Bindings<'_> {
        Bindings {
            count: self.count,
            shown: &self.shown,
        }
    }

    /// Their texts, for policies; `None` when not all of them are kept.
    pub fn facts(&self) -> Option<&[String]> {
        match &self.facts {
            Facts::All(facts) => Some(facts),
            // Nothing was bound.
            Facts::Unasked if self.count == 0 => Some(&[]),
            Facts::Unasked | Facts::TooMany => None,
        }
    }
}

/// Which of the parameters evidence may not show: all, or those that hold card numbers.
pub fn secrets(parameters: &Parameters<'_>, keeping: &Keeping) -> Vec<bool> {
    let holds_card = |(index, (code, bytes)): (usize, (i16, Option<&[u8]>))| {
        let value = Value {
            type_oid: keeping.types.get(index).copied().unwrap_or(0),
            format: Format::of(code),
            bytes,
        };
        keeping.withheld || value.holds_card()
    };
    parameters.iter().enumerate().map(holds_card).collect()
}

/// One of them.
struct Value<'a> {
    type_oid: u32,
    /// `None`: a code that the server refuses.
    format: Option<Format>,
    bytes: Option<&'a [u8]>,
}

impl Value<'_> {
    fn shown(&self, withheld: bool) -> Parameter {
        let mut parameter = Parameter {
            of_type: values::name(self.type_oid),
            value: None,
            hex: false,
            length: None,
            sha256: None,
            withheld,
        };
        let Some(bytes) = self.bytes.filter(|_| !withheld) else {
            return parameter;
        };
        let decoded = values::decode(self.oid(), self.format(), bytes, SHOWN + BEYOND);
        let holds_card = self.holds_card();
        // Its digits would stand there in hexadecimal.
        if self.bytes_hold_card() && matches!(decoded.text, Cow::Owned(_)) {
            parameter.withheld = true;
            return parameter;
        }
        let mut text = match holds_card {
            true => sql::without_cards(&decoded.text),
            false => decoded.text.into_owned(),
        };
        let whole = decoded.whole && text.len() <= SHOWN;
        if !whole {
            let end = (0..=SHOWN).rev().find(|end| text.is_char_boundary(*end));
            text.truncate(end.unwrap_or(0));
            parameter.length = u64::try_from(bytes.len()).ok();
            // From the digest of a known text with a card number in it the number could be guessed.
            parameter.sha256 = (!holds_card).then(|| digest(bytes));
        }
        parameter.hex = decoded.hex;
        parameter.value = Some(text);
        parameter
    }

    /// What a policy compares.
    fn fact(&self) -> Option<String> {
        let bytes = self.bytes?;
        let decoded = values::decode(self.oid(), self.format(), bytes, SHOWN);
        Some(match decoded.whole {
            true => decoded.text.into_owned(),
            false => format!("sha256:{}", digest(bytes)),
        })
    }

    /// Card numbers stand in no evidence, as literals and as parameters alike.
    fn holds_card(&self) -> bool {
        let Some(bytes) = self.bytes else {
            return false;
        };
        // Text is its bytes; a uuid's groups of digits are a number by chance only.
        let is_text = self.format() == Format::Text || self.oid() == UUID;
        let mut look = text_holds_card;
        self.bytes_hold_card()
            || (!is_text && values::any_scalar(self.oid(), self.format(), bytes, &mut look))
    }

    fn bytes_hold_card(&self) -> bool {
        self.bytes.is_some_and(|bytes| {
            has_digits(bytes) && text_holds_card(&String::from_utf8_lossy(bytes))
        })
    }

    fn oid(&self) -> u32 {
        match self.format {
            Some(_) => self.type_oid,
            None => 0,
        }
    }

    fn format(&self) -> Format {
        self.format.unwrap_or(Format::Binary)
    }
}

fn text_holds_card(text: &str) -> bool {
    has_digits(text.as_bytes()) && sql::without_cards(text) != text
}

fn has_digits(bytes: &[u8]) -> bool {
    let digits = bytes.iter().filter(|byte| byte.is_ascii_digit());
    digits.take(FEWEST_DIGITS).count() == FEWEST_DIGITS
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// How much one session keeps.
#[derive(Debug, Clone, Default)]
pub struct Held(Arc<AtomicUsize>);

impl Held {
    fn room(&self) -> usize {
        SESSION.saturating_sub(self.0.load(Ordering::Relaxed))
    }

    fn share(&self, bytes: usize) -> Share {
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Share {
            held: self.clone(),
            bytes,
        }
    }
}

/// One portal's part of it, given back when it is dropped.
#[derive(Debug)]
struct Share {
    held: Held,
    bytes: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.held.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut, BytesMut};

    use super::*;
    use crate::protocol::postgres::frontend::Frontend;
    use crate::protocol::postgres::{Message, Sender, decode};

    const CARD: &str = "4111111111111111";

    /// A Bind of values in binary (or NULL), or in text.
    fn message(format: i16, values: &[Option<&[u8]>]) -> Message {
        let mut body = BytesMut::new();
        body.put_slice(b"\0\0");
        body.put_u16(1);
        body.put_i16(format);
        body.put_u16(u16::try_from(values.len()).expect("few"));
        for value in values {
            match value {
                None => body.put_i32(-1),
                Some(value) => {
                    body.put_i32(i32::try_from(value.len()).expect("short"));
                    body.put_slice(value);
                }
            }
        }
        body.put_u16(0);
        let mut bytes = BytesMut::from(&b"B"[..]);
        bytes.put_u32(u32::try_from(body.len() + 4).expect("short"));
        bytes.put_slice(&body);
        decode(&mut bytes, Sender::Frontend, 1 << 20)
            .expect("in order")
            .expect("whole")
    }

    fn keeping(types: &[u32], withheld: bool) -> Keeping {
        Keeping {
            types: types.into(),
            withheld,
            held: Held::default(),
        }
    }

    fn read<R>(message: &Message, read: impl FnOnce(&Parameters<'_>) -> R) -> R {
        let Ok(Frontend::Bind(bind)) = Frontend::parse(message) else {
            panic!("not a Bind");
        };
        read(&bind.parameters)
    }

    fn bound(format: i16, values: &[Option<&[u8]>], keeping: &Keeping) -> Bound {
        read(&message(format, values), |parameters| {
            Bound::read(parameters, keeping, true)
        })
    }

    fn json(bound: &Bound) -> serde_json::Value {
        serde_json::to_value(bound.bindings().shown).expect("JSON")
    }

    #[test]
    fn a_leaf_shows_types_and_values() {
        let bound = bound(
            1,
            &[Some(&[0, 0, 0, 42]), None, Some(b"x"), Some(&[1])],
            &keeping(&[23, 25, 0], false),
        );
        assert_eq!(
            json(&bound),
            serde_json::json!([
                {"type": "int4", "value": "42"},
                {"type": "text", "value": null},
                {"value": "\\x78", "hex": true},
                {"value": "\\x01", "hex": true},
            ])
        );
        let facts: Vec<&str> = bound
            .facts()
            .expect("all")
            .iter()
            .map(String::as_str)
            .collect();
        assert_eq!(facts, ["42", "\\x01", "\\x78"]);
    }

    #[test]
    fn what_may_be_a_masked_value_is_withheld_and_still_decided_by() {
        let bound = bound(0, &[Some(b"secret"), None], &keeping(&[25], true));
        assert_eq!(
            json(&bound),
            serde_json::json!([
                {"type": "text", "value": null, "withheld": true},
                {"value": null, "withheld": true},
            ])
        );
        assert_eq!(bound.facts(), Some(&["secret".to_owned()][..]));
    }

    #[test]
    fn a_long_value_is_its_beginning_and_its_digest() {
        let long = "ä".repeat(600);
        let bound = bound(0, &[Some(long.as_bytes())], &keeping(&[25], false));
        let shown = &bound.bindings().shown[0];
        assert_eq!(shown.value.as_deref(), Some(&*"ä".repeat(512)));
        assert_eq!(shown.length, Some(1200));
        let sha = digest(long.as_bytes());
        assert_eq!(shown.sha256, Some(sha.clone()));
        assert_eq!(bound.facts(), Some(&[format!("sha256:{sha}")][..]));
    }

    #[test]
    fn card_numbers_are_found_in_every_format() {
        let number: i64 = CARD.parse().expect("a number");
        let jsonb = [b"\x01{\"card\": \"", CARD.as_bytes(), b"\"}"].concat();
        let mut array = vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0, 1];
        array.extend([0, 0, 0, 8]);
        array.extend(number.to_be_bytes());
        let numeric = [
            0, 4, 0, 3, 0, 0, 0, 0, 0x10, 0x0f, 4, 0x57, 4, 0x57, 4, 0x57,
        ];
        let grouped = b"4111-1111 1111-1111".as_slice();
        for (name, oid, format, bytes) in [
            ("text", 25, 0, CARD.as_bytes()),
            ("text in binary", 25, 1, grouped),
            ("of no type", 0, 1, CARD.as_bytes()),
            ("int8", 20, 1, &number.to_be_bytes()),
            ("numeric", 1700, 1, &numeric),
            ("jsonb", 3802, 1, &jsonb),
            ("int8[]", 1016, 1, &array),
            ("bytea", 17, 1, CARD.as_bytes()),
            ("not UTF-8", 17, 1, b"\xff4111111111111111\xff"),
        ] {
            let message = message(format, &[Some(bytes), Some(b"free")]);
            let keeping = keeping(&[oid], false);
            let secret = read(&message, |parameters| secrets(parameters, &keeping));
            assert_eq!(secret, [true, false], "{name}");
            let shown = read(&message, |it| json(&Bound::read(it, &keeping, false)));
            let shown = shown.to_string();
            assert!(!shown.contains(CARD), "{name}: {shown}");
            assert!(!shown.contains(&hex::encode(CARD)), "{name}: {shown}");
        }
        let uuid = hex::decode("c2f0e1a4000040008000000000000001").expect("hexadecimal");
        let none = read(&message(1, &[Some(&uuid)]), |it| {
            secrets(it, &keeping(&[UUID], false))
        });
        assert_eq!(none, [false]);
    }

    #[test]
    fn a_card_number_across_the_end_of_what_is_shown_is_not_shown_in_part() {
        for before in SHOWN - 20..SHOWN + 4 {
            let text = format!("{}.{CARD}.{}", "a".repeat(before), "b".repeat(90));
            let bound = bound(0, &[Some(text.as_bytes())], &keeping(&[25], false));
            let shown = bound.bindings().shown[0].clone();
            let value = shown.value.expect("shown");
            assert!(!value.contains("411"), "{before}: {value}");
            assert_eq!((shown.length.is_some(), shown.sha256), (true, None));
        }
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let text = [b'x'; 900];
        let many = vec![Some(&text[..]); 5000];
        let keeping = keeping(&[], false);
        let kept = bound(0, &many, &keeping);
        assert!(kept.bindings().shown.len() < 80);
        assert_eq!(kept.bindings().count, 5000);
        // The same value over and over is one fact.
        assert_eq!(kept.facts().map(<[String]>::len), Some(1));
        drop(kept);
        let different: Vec<Vec<u8>> = (0..5000_u32)
            .map(|n| [n.to_string().as_bytes(), &text].concat())
            .collect();
        let different: Vec<Option<&[u8]>> = different.iter().map(|it| Some(&it[..])).collect();
        assert_eq!(bound(0, &different, &keeping).facts(), None);
        assert_eq!(keeping.held.room(), SESSION);
        let portals: Vec<Bound> = (0..2000).map(|_| bound(0, &many, &keeping)).collect();
        assert!(keeping.held.0.load(Ordering::Relaxed) < SESSION + FACTS);
        assert!(portals.last().is_some_and(|last| last.facts().is_none()));
    }
}
