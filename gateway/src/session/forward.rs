//! Forward: the only way out, and it takes only what is recorded.

use std::io;

use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::record::Recorded;
use super::watch::{self, within};

/// Sends recorded bytes to their peer.
pub async fn forward<W>(peer: &mut W, recorded: Recorded) -> io::Result<()>
where
    W: AsyncWrite + Unpin,
{
    let bytes = recorded.into_bytes();
    if bytes.is_empty() {
        return Ok(());
    }
    within(
        watch::WRITE,
        "a write to a peer that does not read",
        async {
            peer.write_all(&bytes).await?;
            peer.flush().await
        },
    )
    .await
}
