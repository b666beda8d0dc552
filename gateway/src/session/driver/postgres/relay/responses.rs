//! Target to agent: every message is matched with what it answers, masked, put on record, and sent.

use std::sync::atomic::Ordering;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use super::{READ, RelayError, Session};
use crate::protocol::postgres::{Message, Sender, decode};
use crate::session::driver::postgres::catalogue::Catalogues;
use crate::session::forward::forward;
use crate::session::mask::Delivery;
use crate::session::record::Outcome;

/// Target to agent, until the target closes.
pub async fn responses<R, W>(
    session: &Session,
    catalogues: &Catalogues,
    target: &mut R,
    agent: &mut W,
    mut buffer: BytesMut,
) -> Result<(), RelayError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut delivery = Delivery::default();
    let mut done = Vec::new();
    loop {
        while let Some(outdated) = answers(session, &mut buffer, &mut delivery, &mut done)? {
            let renewed = catalogues.renewed().await?;
            let mut conversation = session.conversation();
            conversation.update_catalogue(renewed);
            conversation
                .answer(&outdated, &mut delivery, &mut done)
                .map_err(RelayError::Target)?;
        }
        session.answered.notify_one();
        for outcome in done.drain(..) {
            session.recorder.result(&outcome)?;
        }
        let recorded = session.recorder.response(delivery.finish())?;
        session.delivering.store(true, Ordering::Relaxed);
        forward(agent, recorded)
            .await
            .map_err(RelayError::AgentIo)?;
        session.delivering.store(false, Ordering::Relaxed);
        buffer.reserve(READ);
        match target.read_buf(&mut buffer).await {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(_) if session.conversation().is_over() => return Ok(()),
            Err(error) => return Err(RelayError::TargetIo(error)),
        }
    }
}

/// Works off what has been read, up to a message that needs a newer catalogue first.
fn answers(
    session: &Session,
    buffer: &mut BytesMut,
    delivery: &mut Delivery,
    done: &mut Vec<Outcome>,
) -> Result<Option<Message>, RelayError> {
    let mut conversation = session.conversation();
    while let Some(message) = decode(buffer, Sender::Backend).map_err(RelayError::Target)? {
        if conversation
            .outdates_catalogue(&message)
            .map_err(RelayError::Target)?
        {
            return Ok(Some(message));
        }
        conversation
            .answer(&message, delivery, done)
            .map_err(RelayError::Target)?;
    }
    Ok(None)
}
