//! One connection: over a relay while there is one, then over the client's own.
//!
//! The relay passes whole frames and may be killed at any instant. What it had
//! passed on is read to its end first; then the client's own connection is
//! spoken on, at the same place of both streams. Frames leave whole or not at
//! all, and where nobody can say what the client has seen the connection is
//! ended: half a frame or a wrong answer is worse than none.

use std::{
    collections::VecDeque,
    io::{self, Write},
    net::Shutdown,
    os::unix::net::UnixStream as StdUnixStream,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};
use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MESSAGE_TYPE_REQUEST};

use crate::follow::{Follow, Header};

/// An answer may be with the relay still for so long; it is said again, which
/// a client that has it takes for an answer to nobody.
const SAID_AGAIN: Duration = Duration::from_secs(1);
/// Longest answer that the kernel takes whole or not at all.
const WHOLE_MAX: usize = 32 << 10;
/// A longer one may have left by half if it was given to the relay so recently.
const HALF_LEFT: Duration = Duration::from_secs(10);
/// Answers kept to be said again, and their bytes.
const KEPT_MAX: usize = 16;
const KEPT_BYTES: usize = 16 << 10;
/// Longest request.
const REQUEST_MAX: u32 = 4 << 20;
/// Every encoder begins a request with the name of the service.
const REQUEST_BEGINS: u8 = 0x0a;

/// See the module.
#[derive(Debug)]
pub(crate) struct Line {
    /// To the relay, until it is read to its end.
    pair: Option<UnixStream>,
    /// The client's own connection.
    own: Option<Arc<StdUnixStream>>,
    /// The same, once it is spoken on.
    heir: Option<UnixStream>,
    inward: Inward,
    outward: Outward,
}

#[derive(Debug, Default)]
struct Inward {
    follow: Follow,
    /// The request the relay passed on last.
    last: Option<u32>,
    /// What the client's own connection begins with, until it is judged.
    first: Vec<u8>,
    /// Of `first`, what was handed on.
    given: usize,
    /// So many bytes of it are known already.
    skip: usize,
    judged: bool,
}

#[derive(Debug, Default)]
struct Outward {
    follow: Follow,
    /// The frame under way, of which `sent` bytes have left.
    frame: Vec<u8>,
    sent: usize,
    /// Answers the relay was given, and when.
    kept: VecDeque<(Instant, Vec<u8>)>,
    /// When it was given one that does not leave in one piece.
    long_at: Option<Instant>,
    /// What is to be said again, and how much of the first has left.
    again: VecDeque<Vec<u8>>,
    again_sent: usize,
}

impl Line {
    /// A connection that is spoken on directly; its end is its end.
    pub(crate) fn direct(stream: UnixStream) -> Self {
        Self::new(Some(stream), None)
    }

    /// A connection behind a relay. Whoever ends `pair` and lives has shut
    /// `own` down before. Without a pair it never was behind one.
    pub(crate) fn relayed(pair: Option<UnixStream>, own: Arc<StdUnixStream>) -> Self {
        Self::new(pair, Some(own))
    }

    fn new(pair: Option<UnixStream>, own: Option<Arc<StdUnixStream>>) -> Self {
        Self {
            inward: Inward {
                judged: pair.is_none(),
                ..Inward::default()
            },
            pair,
            own,
            heir: None,
            outward: Outward::default(),
        }
    }

    /// Speaks on the client's own connection from now on.
    fn inherit(&mut self) -> io::Result<&mut UnixStream> {
        if self.heir.is_none() {
            let own = self.own.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
            let copy = own.try_clone()?;
            copy.set_nonblocking(true)?;
            self.heir = Some(UnixStream::from_std(copy)?);
            // Of a frame the relay had a part of nothing was passed on.
            self.outward.sent = 0;
            if self.outward.half_left() {
                self.end("an answer may have left by half");
            }
            self.outward.say_again();
        }
        self.heir
            .as_mut()
            .ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }

    /// For everybody who holds it.
    fn end(&self, why: &str) {
        log::warn!("a connection is ended: {why} when its relay died");
        if let Some(own) = &self.own {
            // It may be over already.
            let _ = own.shutdown(Shutdown::Both);
        }
    }

    /// Reads from the relay; `None`: it is read to its end.
    fn read_pair(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<Option<io::Result<()>>> {
        let Some(pair) = &mut self.pair else {
            return Poll::Ready(None);
        };
        let before = out.filled().len();
        let outcome = ready!(Pin::new(pair).poll_read(cx, out));
        let inward = &mut self.inward;
        let bytes = &out.filled()[before..];
        if self.own.is_none() || outcome.is_ok() && !bytes.is_empty() {
            if self.own.is_some() {
                inward
                    .follow
                    .take_all(bytes, |header| inward.last = Some(header.stream));
            }
            return Poll::Ready(Some(outcome));
        }
        // Its end, however it came: a relay that dies with bytes of ours
        // unread resets.
        self.pair = None;
        if !inward.follow.between() {
            self.end("a request had come by half");
            return Poll::Ready(Some(Ok(())));
        }
        Poll::Ready(None)
    }

    /// Reads from the client's own connection.
    fn read_own(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.inherit()?;
        // What the other half could not send is not waited for here.
        let _ = self.send_again(None);
        while !self.inward.judged {
            let mut piece = [0; 256];
            let mut piece = ReadBuf::new(&mut piece);
            ready!(Pin::new(self.inherit()?).poll_read(cx, &mut piece))?;
            if piece.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.inward.first.extend_from_slice(piece.filled());
            if !self.inward.judge() {
                self.end("the relay had taken a part of a request");
                return Poll::Ready(Ok(()));
            }
        }
        let rest = &self.inward.first[self.inward.given..];
        if !rest.is_empty() {
            let count = rest.len().min(out.remaining());
            out.put_slice(&rest[..count]);
            self.inward.given += count;
            return Poll::Ready(Ok(()));
        }
        self.inward.first = Vec::new();
        self.inward.given = 0;
        Pin::new(self.inherit()?).poll_read(cx, out)
    }

    /// Sends what is to be said again as far as there is room, or until it is
    /// done. Frames so short leave whole or not at all.
    fn send_again(&mut self, mut cx: Option<&mut Context<'_>>) -> Poll<io::Result<()>> {
        while let Some(frame) = self.outward.again.front() {
            let rest = frame[self.outward.again_sent..].to_vec();
            let sent = match (&mut cx, &self.own) {
                (Some(cx), _) => ready!(Pin::new(self.inherit()?).poll_write(cx, &rest))?,
                // The runtime does not know yet whether there is room.
                (None, Some(own)) => match (&**own).write(&rest) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return Poll::Pending;
                    }
                    sent => sent?,
                },
                (None, None) => return Poll::Ready(Ok(())),
            };
            self.outward.again_sent += sent;
            if sent == rest.len() {
                self.outward.again.pop_front();
                self.outward.again_sent = 0;
            }
        }
        self.outward.again = VecDeque::new();
        Poll::Ready(Ok(()))
    }

    /// Sends the frame that is whole, if one is.
    fn send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.outward.follow.between() {
            return Poll::Ready(Ok(()));
        }
        while self.outward.sent < self.outward.frame.len() {
            if self.heir.is_some() {
                ready!(self.send_again(Some(cx)))?;
            }
            let rest = &self.outward.frame[self.outward.sent..];
            let outcome = match (&mut self.heir, &mut self.pair) {
                (Some(to), _) | (None, Some(to)) => ready!(Pin::new(to).poll_write(cx, rest)),
                (None, None) => Err(io::ErrorKind::BrokenPipe.into()),
            };
            match outcome {
                Ok(count) => self.outward.sent += count,
                // A part of an answer was with the relay, which passes on whole ones.
                Err(_) if self.heir.is_none() && self.own.is_some() => {
                    self.inherit()?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        let relayed = self.own.is_some() && self.heir.is_none();
        self.outward.sent_whole(relayed);
        Poll::Ready(Ok(()))
    }
}

impl Inward {
    /// Judges what the client's own connection begins with, as soon as enough
    /// of it has come: a request, or the rest of one the relay had begun to take.
    fn judge(&mut self) -> bool {
        let known = self.first.len().min(self.skip);
        self.first.drain(..known);
        self.skip -= known;
        if self.skip > 0 {
            return true;
        }
        let Some(header) = Header::read(&self.first) else {
            return true;
        };
        if self.last.take_if(|last| *last == header.stream).is_some() {
            // The relay looks at a request, passes it on, and only then takes it.
            let body = usize::try_from(header.length).unwrap_or(usize::MAX);
            self.skip = body.saturating_add(MESSAGE_HEADER_LENGTH);
            return self.judge();
        }
        let begins = self.first.get(MESSAGE_HEADER_LENGTH);
        self.judged = begins.is_some() || header.length == 0;
        header.kind == MESSAGE_TYPE_REQUEST
            && header.flags & !0x03 == 0
            && header.stream % 2 == 1
            && header.length <= REQUEST_MAX
            && begins.is_none_or(|byte| *byte == REQUEST_BEGINS)
    }
}

impl Outward {
    /// Takes bytes up to the end of the frame under way.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let (count, _) = self.follow.take(bytes);
        self.frame.extend_from_slice(&bytes[..count]);
        count
    }

    /// The frame has left whole.
    fn sent_whole(&mut self, relayed: bool) {
        let frame = std::mem::take(&mut self.frame);
        self.sent = 0;
        if frame.is_empty() || !relayed {
            return;
        }
        let now = Instant::now();
        if frame.len() > WHOLE_MAX {
            self.long_at = Some(now);
        } else {
            self.kept.push_back((now, frame));
        }
        let mut bytes: usize = self.kept.iter().map(|(_, frame)| frame.len()).sum();
        while let Some((at, frame)) = self.kept.front()
            && (now.duration_since(*at) > SAID_AGAIN
                || bytes > KEPT_BYTES
                || self.kept.len() > KEPT_MAX)
        {
            bytes -= frame.len();
            self.kept.pop_front();
        }
    }

    fn half_left(&self) -> bool {
        self.long_at.is_some_and(|at| at.elapsed() < HALF_LEFT)
    }

    fn say_again(&mut self) {
        let kept = std::mem::take(&mut self.kept).into_iter();
        let recent = kept.filter(|(at, _)| at.elapsed() < SAID_AGAIN);
        self.again = recent.map(|(_, frame)| frame).collect();
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
        match ready!(this.read_pair(cx, out)) {
            Some(outcome) => Poll::Ready(outcome),
            None => this.read_own(cx, out),
        }
    }
}

impl AsyncWrite for Line {
    /// Takes a frame piece by piece; it leaves when it is whole.
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.send(cx))?;
        let count = this.outward.take(bytes);
        match this.send(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // What has no room yet leaves with the flush.
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(count)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match (&mut this.heir, &mut this.pair) {
            (Some(to), _) | (None, Some(to)) => Pin::new(to).poll_shutdown(cx),
            (None, None) => Poll::Ready(Ok(())),
        }
    }
}

/// The client sees the end although others hold a duplicate.
impl Drop for Line {
    fn drop(&mut self) {
        let alone = self.heir.is_some() || self.pair.is_none();
        if let (Some(own), true) = (&self.own, alone) {
            let _ = own.shutdown(Shutdown::Both);
        }
    }
}
