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
    io::{Interest, unix::AsyncFd},
    net::UnixStream,
    sync::{Notify, mpsc},
};
use ttrpc::r#async::transport::Listener;

use crate::{
    Error,
    frames::Mended,
    line::Line,
    service::{Ask, services},
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
        })
    }

    /// Serves one more connection until its peer ends it; `conn` is its number,
    /// by which its requests are known again.
    pub async fn add(&self, conn: u32, stream: StdUnixStream) -> Result<(), Error> {
        let stream = ours(stream).map_err(|(source, _)| Error::ServerAdd { source })?;
        let line = Line::direct(stream);
        self.wait_with(conn, line).await
    }

    /// Serves one more connection behind a relay, over the socketpair to it;
    /// when the relay has died, over the client's `own`, on which nobody else
    /// speaks from then on. Without a pair the relay is dead already.
    pub async fn add_relayed(
        &self,
        conn: u32,
        pair: Option<StdUnixStream>,
        own: Arc<StdUnixStream>,
    ) -> Result<(), Error> {
        let pair = match pair.map(ours).transpose() {
            Ok(pair) => pair,
            Err((error, Some(pair))) => {
                log::warn!("connection {conn} is not served yet: {error}");
                tokio::spawn(later(self.waiting.clone(), conn, pair, own));
                return Ok(());
            }
            Err((source, None)) => return Err(Error::ServerAdd { source }),
        };
        self.wait_with(conn, Line::relayed(pair, own)).await
    }

    async fn wait_with(&self, conn: u32, line: Line) -> Result<(), Error> {
        let waiting = self.waiting.send((conn, line)).await;
        waiting.map_err(|_| Error::ServerEnded)
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
#[expect(
    deprecated,
    reason = "its successor is unsafe for the sake of types that lie about their descriptor; a socket cannot"
)]
fn ours(stream: StdUnixStream) -> Result<UnixStream, (io::Error, Option<StdUnixStream>)> {
    if let Err(error) = stream.set_nonblocking(true) {
        return Err((error, Some(stream)));
    }
    // What the runtime itself refuses it closes: so it is asked like this first.
    let tried = AsyncFd::try_with_interest(stream, Interest::READABLE);
    let stream = tried.map_err(|refused| {
        let (stream, error) = refused.into_parts();
        (error, Some(stream))
    })?;
    UnixStream::from_std(stream.into_inner()).map_err(|error| (error, None))
}

/// Serves a connection as soon as there is room for it: to close it would be its end.
async fn later(
    waiting: mpsc::Sender<(u32, Line)>,
    conn: u32,
    mut pair: StdUnixStream,
    own: Arc<StdUnixStream>,
) {
    let pair = loop {
        tokio::time::sleep(AGAIN).await;
        match ours(pair) {
            Ok(pair) => break pair,
            Err((_, Some(back))) => pair = back,
            Err((error, None)) => return log::error!("connection {conn} not served: {error}"),
        }
    };
    // The server is gone only when we leave.
    let _ = waiting.send((conn, Line::relayed(Some(pair), own))).await;
}
