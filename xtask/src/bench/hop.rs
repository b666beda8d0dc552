//! The baseline: a plain user-space hop that looks at nothing. No proxy that copies through user space can be much
//! faster than this, so it is what the gateway is held against.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

/// As many as the machines that the figures are made for have, and as the gateway gets.
const WORKERS: usize = 2;

/// Relays every connection on `listen` to `target`, until it is ended.
pub fn run(listen: SocketAddr, target: SocketAddr) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_io()
        .build()?
        .block_on(serve(listen, target))
}

async fn serve(listen: SocketAddr, target: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("listening on {listen}"))?;
    println!("hop: ready on {listen}");
    loop {
        let (client, _) = listener.accept().await?;
        tokio::spawn(async move {
            if let Err(error) = relay(client, target).await {
                eprintln!("hop: {error}");
            }
        });
    }
}

async fn relay(mut client: TcpStream, target: SocketAddr) -> std::io::Result<()> {
    let mut server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

/// Accepts every connection and closes it: what connecting itself costs is measured against it.
pub fn sink(listen: SocketAddr) -> Result<()> {
    let listener = std::net::TcpListener::bind(listen)?;
    println!("sink: ready on {listen}");
    loop {
        drop(listener.accept()?);
    }
}
