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
    /// Each of its sessions holds one ([`Seat`]).
    sessions: Arc<()>,
}

/// A session's place on its worker, which counts it as long as this lives.
#[derive(Debug)]
pub struct Seat(#[expect(dead_code, reason = "it is counted, not read")] Arc<()>);

impl Workers {
    pub fn start() -> io::Result<Self> {
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        let workers = (0..processors).map(|_| Worker::start());
        Ok(Self(workers.collect::<io::Result<_>>()?))
    }

    /// Runs a session on the worker that has the fewest. `tasks` learns how it ended. The session keeps its
    /// [`Seat`] to its end.
    pub fn run<S>(
        &self,
        socket: TcpStream,
        tasks: &mut JoinSet<()>,
        session: impl FnOnce(TcpStream, Seat) -> S,
    ) -> io::Result<()>
    where
        S: Future<Output = ()> + Send + 'static,
    {
        let by_sessions = |worker: &&Worker| Arc::strong_count(&worker.sessions);
        // There is one for each processor.
        let worker = self
            .0
            .iter()
            .min_by_key(by_sessions)
            .ok_or(io::ErrorKind::NotFound)?;
        let seat = Seat(Arc::clone(&worker.sessions));
        // Its readiness is from now on told to that thread, by its own epoll.
        let socket = socket.into_std()?;
        let entered = worker.runtime.enter();
        let socket = TcpStream::from_std(socket)?;
        drop(entered);
        // As it is: in another future around it, it would lie in memory twice.
        tasks.spawn_on(session(socket, seat), &worker.runtime);
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
