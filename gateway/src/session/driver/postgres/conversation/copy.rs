//! COPY: whose data passes, and where it ends.
//!
//! A server that waits for data ignores Sync and Flush, and one whose COPY has failed answers the next Sync:
//! of a Sync amid the data it cannot be told which will happen to it. So no Sync is sent behind a COPY
//! before the server has said what comes of that, and while it waits for data, Syncs are kept here: they
//! are forgotten when data goes on or ends, which is what the server would do, and one is sent when the
//! COPY fails.

use super::Conversation;
use super::pending::{Operation, Pending};
use crate::protocol::postgres::backend::{self, CopyResponse};
use crate::protocol::postgres::copy::Blanker;
use crate::protocol::postgres::{HEADER, Message, ProtocolError};
use crate::session::decide::{AllowedStatement, Copying, REPLICATION};
use crate::session::mask::{Copied, Delivery};
use crate::sql::{Verb, without_cards};

/// Where COPY stands.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// The server waits for data whose end has not been sent.
    reading: bool,
    /// A Sync is kept.
    kept: bool,
    /// Both sides send data until both have ended it.
    both: bool,
    /// Masks the data that comes.
    masked: Option<Copied>,
}

impl Copies {
    /// Whether data may be on its way to the server.
    pub(super) fn under_way(&self) -> bool {
        self.reading || self.kept || self.both
    }
}

/// Whether a statement asks for data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AsksForData {
    No,
    Once,
    /// What it is could not be read, or is not known any more.
    Perhaps,
}

impl AsksForData {
    pub(super) fn of(statement: &AllowedStatement) -> Self {
        let unread = [
            Verb::Unknown.action(),
            Verb::Execute.action(),
            Verb::CopyFrom.action(),
        ];
        match &statement.copying {
            Some(Copying::In(_)) => AsksForData::Once,
            Some(Copying::Out(_)) => AsksForData::No,
            None if statement
                .verbs
                .iter()
                .any(|verb| unread.contains(&verb.as_str())) =>
            {
                AsksForData::Perhaps
            }
            None => AsksForData::No,
        }
    }
}

/// What becomes of a Sync.
#[derive(Debug, PartialEq, Eq)]
pub enum Synced {
    Sent,
    /// The server would ignore it.
    Kept,
}

/// What evidence shows of an agent's COPY data.
#[derive(Debug, PartialEq, Eq)]
pub enum Data {
    AsSent,
    /// The message's body with what is secret blanked.
    Blanked(Vec<u8>),
    Withheld,
}

impl Conversation {
    /// Whether the server has not said yet if it waits for data: it must, before a Sync may be sent.
    /// `Some(true)`: nothing but a Flush makes it say so.
    pub fn awaits_copy(&mut self) -> Option<bool> {
        if self.copies.reading {
            return None;
        }
        let asking = self
            .asking()
            .filter(|operation| operation.ends == 0)
            .map(|operation| operation.asks);
        asking
            .map(|asks| asks == AsksForData::Perhaps)
            .reduce(|flush, other| flush || other)
    }

    /// # Errors
    /// While [`Conversation::awaits_copy`].
    pub fn sync(&mut self) -> Result<Synced, ProtocolError> {
        if self.copies.reading {
            self.copies.kept = true;
            return Ok(Synced::Kept);
        }
        if self.awaits_copy().is_some() {
            return Err(ProtocolError::Refused(
                "a Sync before it is known whether COPY data is asked for",
            ));
        }
        self.send_sync();
        Ok(Synced::Sent)
    }

    fn send_sync(&mut self) {
        self.syncs += 1;
        self.segment += 1;
        self.pending.push_back(Pending::Sync);
    }

    /// Whether a Sync is kept.
    pub fn keeps_sync(&self) -> bool {
        self.copies.kept
    }

    /// Whether the Sync that is kept must be sent now: the COPY has failed, or what the agent sends next
    /// (not data, nor its end) makes it fail.
    pub fn owes_sync(&mut self, next_is_data: bool) -> bool {
        if self.copies.reading && next_is_data || !self.copies.kept {
            return false;
        }
        self.copies.kept = false;
        self.send_sync();
        true
    }

    /// Data on its way to the server: what evidence shows of it.
    pub fn copy_data(&mut self, body: &[u8]) -> Data {
        self.copies.kept = false;
        if self.copies.both {
            return Data::AsSent;
        }
        let masks = self.catalogue.masks_anything();
        let mut blanker = None;
        let mut sensitive = true;
        if let Some((operation, of_masked)) = self.asking_for_data() {
            operation.bytes += u64::try_from(body.len()).unwrap_or(u64::MAX);
            blanker = operation.blanker.as_mut();
            sensitive = of_masked;
        }
        if masks && sensitive {
            return Data::Withheld;
        }
        let mut shown = body.to_vec();
        // Nobody asked for it: the server discards it.
        let mut unknown = Blanker::new(None);
        let holds_card = |value: &[u8]| {
            let digits = value.iter().filter(|byte| byte.is_ascii_digit()).count();
            digits >= SHORTEST_CARD
                && std::str::from_utf8(value).is_ok_and(|text| without_cards(text) != text)
        };
        blanker
            .unwrap_or(&mut unknown)
            .blank(&mut shown, holds_card);
        match shown == body {
            true => Data::AsSent,
            false => Data::Blanked(shown),
        }
    }

    /// CopyDone or CopyFail: neither is answered by itself.
    pub fn copy_end(&mut self) {
        self.copies.kept = false;
        if std::mem::take(&mut self.copies.reading) {
            return;
        }
        if let Some((operation, _)) = self.asking_for_data() {
            operation.ends += 1;
        }
    }

    /// What is to be answered, in order, without what the server skips.
    fn unskipped(&mut self) -> impl Iterator<Item = &mut Pending> {
        let mut skips = self.failed;
        self.pending.iter_mut().filter(move |pending| {
            match pending {
                Pending::Sync => skips = false,
                // Is made to fail.
                Pending::Denied { refused, .. } if !refused.ends_with_ready() => skips = true,
                _ => {}
            }
            !skips
        })
    }

    /// The statements that may ask for data and have not been answered.
    fn asking(&mut self) -> impl Iterator<Item = &mut Operation> {
        self.unskipped()
            .flat_map(Pending::operations)
            .filter(|operation| operation.asks != AsksForData::No)
    }

    /// The statement that takes the data which is sent now, and whether it concerns masked columns.
    fn asking_for_data(&mut self) -> Option<(&mut Operation, bool)> {
        let reading = self.copies.reading;
        self.unskipped().find_map(|pending| {
            let sensitive = pending.is_sensitive();
            let taker = pending.operations().find(|operation| match operation.asks {
                AsksForData::No => reading,
                AsksForData::Once => operation.ends == 0,
                AsksForData::Perhaps => true,
            });
            Some((taker?, sensitive))
        })
    }

    /// CopyInResponse: the server waits for data, unless it has been sent already.
    pub(super) fn copy_in(
        &mut self,
        message: &Message,
        delivery: &mut Delivery,
    ) -> Result<(), ProtocolError> {
        backend::copy_response(message)?;
        let operation = self.running().ok_or_else(|| out_of_step(message))?;
        let ended = operation.ends > 0;
        match operation.asks {
            AsksForData::No => return Err(out_of_step(message)),
            AsksForData::Once => operation.asks = AsksForData::No,
            AsksForData::Perhaps => operation.ends = operation.ends.saturating_sub(1),
        }
        self.copies.reading = !ended;
        delivery.unchanged(message);
        Ok(())
    }

    /// CopyOutResponse: data follows.
    pub(super) fn copy_out(
        &mut self,
        message: &Message,
        delivery: &mut Delivery,
    ) -> Result<(), ProtocolError> {
        let response: CopyResponse = backend::copy_response(message)?;
        let masks = self.catalogue.masks_anything();
        let operation = self.running().ok_or_else(|| out_of_step(message))?;
        let masked = match operation.copying.as_ref() {
            Some(Copying::Out(Some(plan))) => Some(Copied::begin(plan.clone(), &response)?),
            Some(Copying::Out(None)) => None,
            // Which of its columns are masked was known once, of a statement under another name.
            _ if masks => {
                return Err(ProtocolError::Refused(
                    "the target sends COPY data of a statement that is not known as a COPY, so it cannot be masked",
                ));
            }
            _ => None,
        };
        self.copies.masked = masked;
        delivery.unchanged(message);
        Ok(())
    }

    /// CopyBothResponse: the log is streamed.
    pub(super) fn copy_both(
        &mut self,
        message: &Message,
        delivery: &mut Delivery,
    ) -> Result<(), ProtocolError> {
        backend::copy_response(message)?;
        let operation = self.running().ok_or_else(|| out_of_step(message))?;
        if !operation.replicates {
            return Err(out_of_step(message));
        }
        self.copies.both = true;
        delivery.unchanged(message);
        Ok(())
    }

    /// CopyData from the server.
    pub(super) fn copied(
        &mut self,
        message: &Message,
        delivery: &mut Delivery,
    ) -> Result<(), ProtocolError> {
        let mut masked = self.copies.masked.take();
        let operation = self.running().ok_or_else(|| out_of_step(message))?;
        let before = delivery.len();
        match &mut masked {
            Some(copied) => {
                operation.masked += delivery.copied(message, copied)?;
                operation.rows = copied.rows();
            }
            None => {
                delivery.unchanged(message);
                // The server sends each row in a message of its own; its command tag corrects the number.
                operation.rows += u64::from(!operation.replicates);
            }
        }
        let payload = (delivery.len() - before).saturating_sub(HEADER);
        operation.bytes += u64::try_from(payload).unwrap_or(u64::MAX);
        self.copies.masked = masked;
        Ok(())
    }

    /// CopyDone from the server.
    pub(super) fn copied_all(
        &mut self,
        message: &Message,
        delivery: &mut Delivery,
    ) -> Result<(), ProtocolError> {
        if let Some(copied) = self.copies.masked.take() {
            copied.finish()?;
        }
        self.running().ok_or_else(|| out_of_step(message))?;
        delivery.unchanged(message);
        Ok(())
    }

    /// Whether data on its way to the agent is changed.
    pub(super) fn masks_copy(&self) -> bool {
        self.copies.masked.is_some()
    }

    /// Whatever was copied has ended.
    pub(super) fn no_copy(&mut self) {
        self.copies.reading = false;
        self.copies.both = false;
        self.copies.masked = None;
    }

    /// The statement that the server is at.
    pub(super) fn running(&mut self) -> Option<&mut Operation> {
        self.pending.front_mut()?.operations().next()
    }
}

/// 13 digits.
const SHORTEST_CARD: usize = 13;

/// Whether a statement is a command of the replication protocol.
pub(super) fn replicates(statement: &AllowedStatement) -> bool {
    statement.verbs.iter().any(|verb| verb == REPLICATION)
}

fn out_of_step(message: &Message) -> ProtocolError {
    ProtocolError::Unexpected { tag: message.tag() }
}
