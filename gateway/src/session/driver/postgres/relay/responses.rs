//! Target to agent: every message is matched with what it answers, masked, put on record, and sent.

use std::sync::atomic::Ordering;

use tokio::io::{AsyncRead, AsyncWrite};

use super::{Incoming, RelayError, Session};
use crate::protocol::postgres::{Frame, Message, ProtocolError, backend};
use crate::session::driver::postgres::catalogue::Catalogues;
use crate::session::forward::forward;
use crate::session::mask::Delivery;
use crate::session::record::Outcome;

/// The target's side has come to its end.
#[derive(Debug, Default)]
pub struct TargetClosed {
    /// The SQLSTATE of the fatal error that it gave as the reason, if it gave one.
    pub fatal: Option<String>,
}

/// Target to agent, until the target closes.
pub async fn responses<R, W>(
    session: &Session,
    catalogues: &Catalogues,
    target: &mut R,
    agent: &mut W,
    mut said: Incoming,
) -> Result<TargetClosed, RelayError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut answers = Answers::default();
    loop {
        while let Some(outdated) = answers.take(session, &mut said)? {
            let renewed = Box::pin(catalogues.renewed()).await?;
            session.conversation().update_catalogue(&renewed);
            answers.message(session, &outdated)?;
        }
        session.answered.notify_one();
        session.recorder.results(answers.done.drain(..))?;
        let recorded = session.recorder.response(answers.delivery.finish())?;
        session.delivering.store(true, Ordering::Relaxed);
        forward(agent, recorded)
            .await
            .map_err(RelayError::AgentIo)?;
        session
            .delivering
            .store(said.is_within(), Ordering::Relaxed);
        session.answered.notify_one();
        let read = match said.read(target).await {
            Ok(read) => read,
            // It has said why it closes; how it does says nothing more.
            Err(_) if answers.closed.fatal.is_some() => 0,
            Err(error) => return Err(RelayError::TargetIo(error)),
        };
        if read == 0 {
            return Ok(answers.closed);
        }
    }
}

/// What one read from the target amounts to.
#[derive(Debug, Default)]
struct Answers {
    delivery: Delivery,
    done: Vec<Outcome>,
    closed: TargetClosed,
}

impl Answers {
    /// Works off what has been read, up to a message that needs a newer catalogue first.
    fn take(
        &mut self,
        session: &Session,
        said: &mut Incoming,
    ) -> Result<Option<Message>, RelayError> {
        let mut conversation = session.conversation();
        loop {
            let may_pass = |tag| conversation.passes_unread(tag);
            let message = match said.next(may_pass).map_err(RelayError::Target)? {
                None => return Ok(None),
                Some(Frame::Whole(message)) => message,
                Some(Frame::Piece(piece)) => {
                    conversation
                        .piece(&piece, &mut self.delivery)
                        .map_err(RelayError::Target)?;
                    continue;
                }
            };
            let outdates = conversation.outdates_catalogue(&message);
            if outdates.map_err(RelayError::Target)? {
                return Ok(Some(message));
            }
            conversation
                .answer(&message, &mut self.delivery, &mut self.done)
                .and_then(|()| self.closed.note(&message))
                .map_err(RelayError::Target)?;
        }
    }

    fn message(&mut self, session: &Session, message: &Message) -> Result<(), RelayError> {
        session
            .conversation()
            .answer(message, &mut self.delivery, &mut self.done)
            .map_err(RelayError::Target)
    }
}

impl TargetClosed {
    fn note(&mut self, message: &Message) -> Result<(), ProtocolError> {
        if message.tag() == b'E' {
            let fields = backend::error_fields(message)?;
            if backend::is_fatal(&fields) {
                self.fatal = Some(backend::sqlstate(&fields));
            }
        }
        Ok(())
    }
}
