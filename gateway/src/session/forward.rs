//! Forward: the only way out, and it takes only what is recorded.

use std::io;

use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::record::Recorded;

/// Sends recorded bytes to their peer, however long it takes to read them: that is how back-pressure
/// reaches the other side. A peer that is gone is known by its socket's keep-alive.
pub async fn forward<W>(peer: &mut W, recorded: Recorded) -> io::Result<()>
where
    W: AsyncWrite + Unpin,
{
    let mut bytes = recorded.into_bytes();
    if bytes.is_empty() {
        return Ok(());
    }
    peer.write_all_buf(&mut bytes).await?;
    peer.flush().await
}
