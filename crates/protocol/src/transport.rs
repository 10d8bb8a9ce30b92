//! The Task service over connections that arrive one by one.
//!
//! Owns the ttrpc server and the count of what is still unsaid. There is no
//! listener here, so no accept that could fail in a loop: connections are
//! handed in by whoever has them.

use std::{
    io,
    os::unix::net::UnixStream as StdUnixStream,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use tokio::{
    io::Interest,
    sync::{Notify, mpsc},
};
use ttrpc::r#async::transport::Listener;

use crate::{
    Error,
    frames::Mended,
    line::{Line, Socket, register},
    service::{Ask, services},
    story::{Left, Shared, Stories},
};

/// Connections that may wait to be taken up.
const WAITING_MAX: usize = 16;

/// How long a connection waits for which there is no room.
const AGAIN: Duration = Duration::from_secs(1);

/// What is under way on all connections together.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// Requests that came in and whose answers have not gone out.
    unanswered: AtomicUsize,
    /// Requests somebody is being asked about.
    asking: AtomicUsize,
    changed: Notify,
}

impl Traffic {
    /// Requests came in.
    pub(crate) fn asked(&self, count: usize) {
        self.unanswered.fetch_add(count, Ordering::Relaxed);
    }

    /// Answers went out, or will never.
    pub(crate) fn answered(&self, count: usize) {
        if count > 0 {
            self.unanswered.fetch_sub(count, Ordering::Relaxed);
            self.changed.notify_waiters();
        }
    }

    /// Marks a request as being asked about until the value is dropped.
    pub(crate) fn asking(self: &Arc<Self>) -> Asking {
        self.asking.fetch_add(1, Ordering::Relaxed);
        Asking(Arc::clone(self))
    }

    /// Whether each answer that was given has gone out.
    pub(crate) fn quiet(&self) -> bool {
        self.unanswered.load(Ordering::Relaxed) <= self.asking.load(Ordering::Relaxed)
    }
}

/// A request somebody is being asked about.
pub(crate) struct Asking(Arc<Traffic>);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.asking.fetch_sub(1, Ordering::Relaxed);
        self.0.changed.notify_waiters();
    }
}

/// The connections handed in, as the ttrpc crate wants them.
struct Arrivals {
    waiting: mpsc::Receiver<(u32, Line)>,
    traffic: Arc<Traffic>,
}

impl Stream for Arrivals {
    type Item = io::Result<Mended<Line>>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        this.waiting.poll_recv(cx).map(|next| {
            next.map(|(conn, line)| Ok(Mended::new(line, conn, Arc::clone(&this.traffic))))
        })
    }
}

/// The Task service, serving until it is dropped.
///
/// Must be made and used inside a tokio runtime with I/O and time.
pub struct Server {
    /// Ends its connections when it is dropped.
    _inner: ttrpc::r#async::Server,
    waiting: mpsc::Sender<(u32, Line)>,
    traffic: Arc<Traffic>,
    stories: Stories,
}

impl Server {
    /// Starts to serve, so far on no connection.
    pub async fn start<A: Ask + 'static>(ask: Arc<A>) -> Result<Self, Error> {
        let traffic = Arc::new(Traffic::default());
        let (waiting, arrivals) = mpsc::channel(WAITING_MAX);
        let mut inner = ttrpc::r#async::Server::new()
            .register_service(services(&ask, &traffic))
            .add_listener(Listener::new(Arrivals {
                waiting: arrivals,
                traffic: Arc::clone(&traffic),
            }));
        inner
            .start()
            .await
            .map_err(|source| Error::ServerStart { source })?;
        Ok(Self {
            _inner: inner,
            waiting,
            traffic,
            stories: Stories::default(),
        })
    }

    /// Serves one more connection until its peer ends it; `conn` is its number,
    /// by which its requests are known again.
    pub async fn add(&self, conn: u32, stream: StdUnixStream) -> Result<(), Error> {
        let stream = ours(Arc::new(stream)).map_err(|(source, _)| Error::ServerAdd { source })?;
        self.wait_with(conn, Line::direct(stream)).await
    }

    /// Serves one more connection behind a relay, over the socketpair to it; `own` is the
    /// client's, on which nobody here speaks.
    pub async fn add_relayed(
        &self,
        conn: u32,
        pair: StdUnixStream,
        own: Arc<StdUnixStream>,
    ) -> Result<(), Error> {
        let pair = Arc::new(pair);
        let story = Shared::new(conn, Arc::clone(&pair), own);
        self.stories.add(&story);
        match ours(pair) {
            Ok(pair) => self.wait_with(conn, Line::relayed(pair, story)).await,
            Err((error, pair)) => {
                log::warn!("connection {conn} is not served yet: {error}");
                tokio::spawn(later(self.waiting.clone(), conn, pair, story));
                Ok(())
            }
        }
    }

    async fn wait_with(&self, conn: u32, line: Line) -> Result<(), Error> {
        let waiting = self.waiting.send((conn, line)).await;
        waiting.map_err(|_| Error::ServerEnded)
    }

    /// The relay of all connections is dead, and this process is to be the next: what it must
    /// know of each. Nothing is served after this.
    pub fn end(&self) -> Vec<Left> {
        self.stories.end()
    }

    /// Waits, at most for `limit`, until every answer that was given has been
    /// written to its connection; requests nobody has answered yet (a Wait)
    /// do not count. Returns whether it is so. To be called before leaving.
    pub async fn flushed(&self, limit: Duration) -> bool {
        let quiet = async {
            // Who was answered in this very turn has not heard of it yet.
            tokio::task::yield_now().await;
            loop {
                let changed = self.traffic.changed.notified();
                let mut changed = pin!(changed);
                changed.as_mut().enable();
                if self.traffic.quiet() {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(limit, quiet).await.is_ok()
    }
}

/// Registers a connection; one for which there is no room comes back.
fn ours(stream: Arc<StdUnixStream>) -> Result<Socket, (io::Error, Arc<StdUnixStream>)> {
    if let Err(error) = stream.set_nonblocking(true) {
        return Err((error, stream));
    }
    register(stream, Interest::READABLE | Interest::WRITABLE)
}

/// Serves a connection as soon as there is room for it: to close it would be its end.
async fn later(
    waiting: mpsc::Sender<(u32, Line)>,
    conn: u32,
    mut pair: Arc<StdUnixStream>,
    story: Shared,
) {
    let pair = loop {
        tokio::time::sleep(AGAIN).await;
        match ours(pair) {
            Ok(pair) => break pair,
            Err((_, back)) => pair = back,
        }
    };
    // The server is gone only when we leave.
    let _ = waiting.send((conn, Line::relayed(pair, story))).await;
}
