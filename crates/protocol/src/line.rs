//! One connection: over a socketpair to a relay, or directly.
//!
//! Answers leave whole or not at all, so that a relay that dies has none by half without our
//! knowing. The end of the pair is the connection's end only if the client's own connection has
//! ended: otherwise the relay is dead, and whoever serves becomes the relay. Until then nothing
//! is read or sent here any more, and nobody is told of an end.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

use crate::story::Shared;

/// A registered socket.
pub(crate) type Socket = AsyncFd<Arc<UnixStream>>;

/// Registers a socket; one for which there is no room comes back.
#[expect(
    deprecated,
    reason = "its successor is unsafe for the sake of types that lie about their descriptor; a socket cannot"
)]
pub(crate) fn register(
    socket: Arc<UnixStream>,
    interest: Interest,
) -> Result<Socket, (io::Error, Arc<UnixStream>)> {
    AsyncFd::try_with_interest(socket, interest).map_err(|refused| {
        let (socket, error) = refused.into_parts();
        (error, socket)
    })
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Line {
    stream: Socket,
    story: Option<Shared>,
    /// The relay is dead or the connection over: the client's own is waited for, whose end is ours.
    own: Option<Socket>,
}

impl Line {
    /// A connection that is spoken on directly; its end is its end.
    pub(crate) fn direct(stream: Socket) -> Self {
        let (story, own) = (None, None);
        Self { stream, story, own }
    }

    /// A connection behind a relay. Whoever ends `pair` and lives has shut
    /// the client's own down before.
    pub(crate) fn relayed(pair: Socket, story: Shared) -> Self {
        Self {
            stream: pair,
            story: Some(story),
            own: None,
        }
    }

    /// The pair has ended. Ready when it is the connection's end.
    fn over(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(story) = &self.story else {
            return Poll::Ready(Ok(()));
        };
        if self.own.is_none() {
            let own = Arc::clone(story.get().own());
            // Without room for it nobody is told of its end: the next relay will be.
            self.own = register(own, Interest::READABLE).ok();
        }
        let Some(own) = &self.own else {
            return Poll::Pending;
        };
        loop {
            let mut guard = ready!(own.poll_read_ready(cx))?;
            if guard.ready().is_read_closed() {
                return Poll::Ready(Ok(()));
            }
            guard.clear_ready();
        }
    }

    fn write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.stream.poll_write_ready(cx))?;
            if let Ok(outcome) = guard.try_io(|stream| (&**stream.get_ref()).write(bytes)) {
                return Poll::Ready(outcome);
            }
        }
    }

    /// Sends the answer that is whole, if one is.
    fn send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(story) = self.story.clone() else {
            return Poll::Ready(Ok(()));
        };
        loop {
            let rest = story.get().to_leave().to_vec();
            if rest.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let outcome = if self.own.is_none() {
                ready!(self.write(cx, &rest))
            } else {
                Err(io::ErrorKind::BrokenPipe.into())
            };
            match outcome {
                Ok(count) => story.get().left(count),
                Err(error) => {
                    ready!(self.over(cx))?;
                    return Poll::Ready(Err(error));
                }
            }
        }
    }
}

impl AsyncRead for Line {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if out.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if this.own.is_some() {
            return this.over(cx);
        }
        let outcome = loop {
            let mut guard = ready!(this.stream.poll_read_ready(cx))?;
            let free = out.initialize_unfilled();
            if let Ok(outcome) = guard.try_io(|stream| (&**stream.get_ref()).read(free)) {
                break outcome;
            }
        };
        match (outcome, &this.story) {
            (Ok(count), story) if count > 0 => {
                let bytes = &out.initialize_unfilled()[..count];
                if let Some(story) = story {
                    story.get().came(bytes);
                }
                out.advance(count);
                Poll::Ready(Ok(()))
            }
            // However it came: a relay that dies with bytes of ours unread resets.
            (_, Some(_)) => this.over(cx),
            (outcome, None) => Poll::Ready(outcome.map(drop)),
        }
    }
}

impl AsyncWrite for Line {
    /// Takes an answer piece by piece; it leaves when it is whole.
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let Some(story) = this.story.clone() else {
            return this.write(cx, bytes);
        };
        ready!(this.send(cx))?;
        let count = story.get().says(bytes);
        match this.send(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // What has no room yet leaves with the flush.
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(count)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream.get_ref().shutdown(Shutdown::Write))
    }
}
