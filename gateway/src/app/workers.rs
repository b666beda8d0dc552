//! Workers: the threads that run sessions. A session stays on the one that it began on.
//!
//! A scheduler that moves tasks about wakes one thread to help another, which costs a statement more than
//! the statement's own work. Sessions are many and short of work each, so giving a new one to whoever has the
//! fewest keeps them even.

use std::io;
use std::num::NonZero;
use std::sync::Arc;
use std::thread;

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinSet;

/// One for each processor.
#[derive(Debug)]
pub struct Workers(Vec<Worker>);

#[derive(Debug)]
struct Worker {
    runtime: Handle,
    /// Each of its sessions holds one.
    sessions: Arc<()>,
}

impl Workers {
    pub fn start() -> io::Result<Self> {
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        let workers = (0..processors).map(|_| Worker::start());
        Ok(Self(workers.collect::<io::Result<_>>()?))
    }

    /// Runs a session on the worker that has the fewest. `tasks` learns how it ended.
    pub fn run<S>(
        &self,
        socket: TcpStream,
        tasks: &mut JoinSet<()>,
        session: impl FnOnce(TcpStream) -> S + Send + 'static,
    ) -> io::Result<()>
    where
        S: Future<Output = ()> + Send + 'static,
    {
        let fewest = self
            .0
            .iter()
            .min_by_key(|worker| Arc::strong_count(&worker.sessions));
        // There is one for each processor.
        let worker = fewest.ok_or(io::ErrorKind::NotFound)?;
        let counted = Arc::clone(&worker.sessions);
        // Its readiness is from now on told to that thread, by its own epoll.
        let socket = socket.into_std()?;
        let entered = worker.runtime.enter();
        let socket = TcpStream::from_std(socket)?;
        drop(entered);
        let session = session(socket);
        let it = async move {
            session.await;
            drop(counted);
        };
        tasks.spawn_on(it, &worker.runtime);
        Ok(())
    }
}

impl Worker {
    fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        // Ends with the process: whoever ends the gateway has waited for its sessions.
        thread::Builder::new()
            .name("session".to_owned())
            .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
        Ok(Self {
            runtime: handle,
            sessions: Arc::default(),
        })
    }
}
