//! Target to agent: every message is matched with what it answers, masked, put on record, and sent.

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use super::{READ, RelayError, Session};
use crate::protocol::postgres::{Sender, decode};
use crate::session::forward::forward;
use crate::session::mask::Delivery;

/// Target to agent, until the target closes.
pub async fn responses<R, W>(
    session: &Session,
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
        {
            let mut conversation = session.conversation();
            while let Some(message) =
                decode(&mut buffer, Sender::Backend).map_err(RelayError::Target)?
            {
                conversation
                    .answer(&message, &mut delivery, &mut done)
                    .map_err(RelayError::Target)?;
            }
        }
        session.answered.notify_one();
        for outcome in done.drain(..) {
            session.recorder.result(&outcome)?;
        }
        let recorded = session.recorder.response(delivery.finish())?;
        forward(agent, recorded)
            .await
            .map_err(RelayError::AgentIo)?;
        buffer.reserve(READ);
        let read = target
            .read_buf(&mut buffer)
            .await
            .map_err(RelayError::TargetIo)?;
        if read == 0 {
            return Ok(());
        }
    }
}
