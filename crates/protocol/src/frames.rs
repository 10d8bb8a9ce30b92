//! A stream of ttrpc frames that mends what the ttrpc crate gets wrong.
//!
//! The crate answers a service it does not know with INVALID_ARGUMENT;
//! containerd's downgrade from v3 to v2 waits for UNIMPLEMENTED. So a request
//! for a foreign service is replaced, on its way in, by one for a method that
//! our own service does not have. And a request is told which connection it
//! came by, as one more entry of its metadata: the crate does not say, and a
//! request given to a second shim must be known again. Of Waits that ask the
//! same one passes, and its answer is repeated for the others; see `waits`.
//! Everything else passes untouched. It keeps about a kilobyte a connection, and
//! no message but the answer that is leaving.

use std::{
    collections::{HashMap, VecDeque},
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MESSAGE_TYPE_REQUEST, MESSAGE_TYPE_RESPONSE};

use crate::{
    follow::{Follow, Header},
    service::SERVICES,
    transport::Traffic,
    waits::{self, Waits},
};

/// Bytes read ahead at a frame's start: most requests are shorter.
const AHEAD: usize = 512;
/// Bytes of a request's body that are looked at.
const LOOK: usize = 96;
/// Bytes of a foreign service's name that are repeated in the answer.
const NAME_MAX: usize = 64;

/// Key of the metadata that names the connection.
const CONN: &str = "vigil-conn";
/// Longest request the crate takes; one that would grow over it is not told.
const REQUEST_MAX: usize = 4 << 20;

/// One entry of a request's metadata, as it stands at the request's end: a
/// repeated field may be anywhere.
fn trailer(conn: u32) -> Vec<u8> {
    let value = conn.to_string();
    let mut entry = Vec::with_capacity(32);
    for (tag, text) in [(0x0a, CONN), (0x12, value.as_str())] {
        // Both are below 128 bytes: the length is one byte.
        entry.extend([tag, text.len().to_le_bytes()[0]]);
        entry.extend(text.as_bytes());
    }
    let mut field = vec![0x2a, entry.len().to_le_bytes()[0]];
    field.append(&mut entry);
    field
}

/// The connection a request came by, if it was told.
pub(crate) fn conn_of(metadata: &HashMap<String, Vec<String>>) -> Option<u32> {
    // Ours is the last: a client may send what it likes.
    metadata.get(CONN)?.last()?.parse().ok()
}

/// What to do with a frame of which the start is there.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Look again when more is there.
    More,
    /// Let this many bytes through.
    Pass(u64),
    /// Drop this many bytes and give the crate this frame.
    Replace { length: u64, with: Vec<u8> },
}

/// Judges the frame at the start of `bytes`; the second value says whether it
/// is a request, that is, whether there will be an answer.
fn judge(bytes: &[u8]) -> (Verdict, bool) {
    let Some(header) = Header::read(bytes) else {
        return (Verdict::More, false);
    };
    let length = u64::from(header.length) + MESSAGE_HEADER_LENGTH as u64;
    if header.kind != MESSAGE_TYPE_REQUEST {
        return (Verdict::Pass(length), false);
    }
    let whole = usize::try_from(header.length).unwrap_or(usize::MAX);
    let look = whole.min(LOOK);
    let Some(body) = bytes[MESSAGE_HEADER_LENGTH..].get(..look) else {
        return (Verdict::More, false);
    };
    let frame = MESSAGE_HEADER_LENGTH.saturating_add(whole);
    let verdict = match foreign(body) {
        // All of a Wait is looked at, if there is room for it.
        None if waits::begins_one(body) && bytes.len() < frame && frame <= AHEAD => {
            return (Verdict::More, false);
        }
        None => Verdict::Pass(length),
        Some(name) => Verdict::Replace {
            length,
            with: replacement(header.stream.to_be_bytes(), name),
        },
    };
    (verdict, true)
}

/// The start of the name of the service asked, if it is not ours.
///
/// The service is field 1 and every encoder writes it first; a body that
/// starts otherwise is left to the crate.
fn foreign(body: &[u8]) -> Option<&[u8]> {
    let rest = body.strip_prefix(b"\x0a")?;
    // A length of two bytes or more is longer than our names.
    let (&length, name) = rest.split_first()?;
    if length < 0x80 {
        let length = usize::from(length);
        let name = &name[..length.min(name.len())];
        let ours = SERVICES.iter().any(|ours| ours.as_bytes() == name);
        return (!ours).then_some(name);
    }
    Some(name.get(1..).unwrap_or_default())
}

/// A request, on the same stream, for a method nobody has. Its name becomes a
/// part of the crate's answer.
fn replacement(stream: [u8; 4], service: &[u8]) -> Vec<u8> {
    let mut method = b"service ".to_vec();
    method.extend(
        service
            .iter()
            .take(NAME_MAX)
            .map(|byte| if byte.is_ascii_graphic() { *byte } else { b'?' }),
    );
    method.extend_from_slice(b" is not served, nor is its");
    let ours = SERVICES[0].as_bytes();
    let mut body = Vec::with_capacity(4 + ours.len() + method.len());
    for (tag, text) in [(0x0a, ours), (0x12, method.as_slice())] {
        // Both are below 128 bytes: the length is one byte.
        body.extend_from_slice(&[tag, text.len().to_le_bytes()[0]]);
        body.extend_from_slice(text);
    }
    let mut frame = Vec::with_capacity(MESSAGE_HEADER_LENGTH + body.len());
    frame.extend_from_slice(&[0, 0, 0, body.len().to_le_bytes()[0]]);
    frame.extend_from_slice(&stream);
    frame.extend_from_slice(&[MESSAGE_TYPE_REQUEST, 0]);
    frame.extend_from_slice(&body);
    frame
}

/// Where the inbound side stands.
#[derive(Debug)]
enum Inbound {
    /// At a frame's start.
    Start,
    /// Inside a frame that passes, this many bytes before its end, and what
    /// follows it.
    Pass { left: u64, then: Vec<u8> },
    /// Dropping this many bytes, then giving the replacement: a client that is
    /// answered while it still writes takes the connection for broken.
    Drop { left: u64, then: Vec<u8> },
    /// Giving the replacement, or what follows a request.
    Give { frame: Vec<u8>, at: usize },
}

/// An answer that is given to several.
#[derive(Debug)]
struct Repeat {
    frame: Vec<u8>,
    /// Who gets it still, the next one last.
    streams: Vec<u32>,
    /// Of the frame, what has left for the one it is being given to.
    at: usize,
}

/// A connection, mended.
#[derive(Debug)]
pub(crate) struct Mended<S> {
    inner: S,
    traffic: Arc<Traffic>,
    conn: u32,
    /// Requests let in and not yet answered on this connection.
    open: usize,
    ahead: [u8; AHEAD],
    from: usize,
    to: usize,
    inbound: Inbound,
    outbound: Follow,
    waits: Waits,
    /// The answer the crate is giving, while it may be that of several.
    answer: Vec<u8>,
    repeats: VecDeque<Repeat>,
    /// Answers that were taken from the crate and have not left yet.
    leaving: usize,
}

impl<S> Mended<S> {
    pub(crate) fn new(inner: S, conn: u32, traffic: Arc<Traffic>) -> Self {
        Self {
            inner,
            traffic,
            conn,
            open: 0,
            ahead: [0; AHEAD],
            from: 0,
            to: 0,
            inbound: Inbound::Start,
            outbound: Follow::default(),
            waits: Waits::default(),
            answer: Vec::new(),
            repeats: VecDeque::new(),
            leaving: 0,
        }
    }
}

impl<S> Drop for Mended<S> {
    fn drop(&mut self) {
        self.traffic.answered(self.open);
    }
}

impl<S: AsyncRead + Unpin> Mended<S> {
    /// Reads into what is free of `ahead`; the number of bytes, 0 at the end.
    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.from > 0 {
            self.ahead.copy_within(self.from..self.to, 0);
            self.to -= self.from;
            self.from = 0;
        }
        let mut free = ReadBuf::new(&mut self.ahead[self.to..]);
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut free))?;
        let read = free.filled().len();
        self.to += read;
        Poll::Ready(Ok(read))
    }

    /// Has the request at the start of `ahead` grow by the name of its
    /// connection; what is to follow it.
    fn tell(&mut self) -> Vec<u8> {
        let Some(length) = self.ahead[self.from..self.to].first_chunk_mut::<4>() else {
            return Vec::new();
        };
        let trailer = trailer(self.conn);
        let announced = u32::from_be_bytes(*length) as usize + trailer.len();
        match u32::try_from(announced) {
            Ok(grown) if announced <= REQUEST_MAX => {
                *length = grown.to_be_bytes();
                trailer
            }
            Ok(_) | Err(_) => Vec::new(),
        }
    }

    /// Whether the request at the start of `ahead`, of so many bytes, waits for
    /// an answer that is coming anyway.
    fn joins(&mut self, length: u64) -> bool {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(frame) = self.ahead[self.from..self.to].get(..length) else {
            return false;
        };
        Header::read(frame).is_some_and(|header| {
            let body = &frame[MESSAGE_HEADER_LENGTH..];
            self.waits.joins(header.stream, body)
        })
    }

    /// Hands on at most `left` bytes; how many, 0 at the end.
    fn pass(
        &mut self,
        left: u64,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<u64>> {
        let most = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(out.remaining());
        if self.from < self.to {
            let take = most.min(self.to - self.from);
            out.put_slice(&self.ahead[self.from..self.from + take]);
            self.from += take;
            return Poll::Ready(Ok(take as u64));
        }
        // No further than this frame's end: the next one has to be judged.
        let mut part = ReadBuf::new(out.initialize_unfilled_to(most));
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        out.advance(read);
        Poll::Ready(Ok(read as u64))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Mended<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if out.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            match &mut this.inbound {
                Inbound::Start => {
                    let (verdict, request) = judge(&this.ahead[this.from..this.to]);
                    if request {
                        if let Verdict::Pass(length) = verdict
                            && this.joins(length)
                        {
                            this.inbound = Inbound::Drop {
                                left: length,
                                then: Vec::new(),
                            };
                            continue;
                        }
                        this.open += 1;
                        this.traffic.asked(1);
                    }
                    this.inbound = match verdict {
                        Verdict::Pass(length) => Inbound::Pass {
                            left: length,
                            then: if request { this.tell() } else { Vec::new() },
                        },
                        Verdict::Replace { length, with } => Inbound::Drop {
                            left: length,
                            then: with,
                        },
                        Verdict::More => {
                            if ready!(this.fill(cx))? > 0 {
                                continue;
                            }
                            // The peer left: the crate sees what there is, and the end.
                            if this.from == this.to {
                                return Poll::Ready(Ok(()));
                            }
                            Inbound::Pass {
                                left: (this.to - this.from) as u64,
                                then: Vec::new(),
                            }
                        }
                    };
                }
                Inbound::Pass { left: 0, then } | Inbound::Drop { left: 0, then }
                    if then.is_empty() =>
                {
                    this.inbound = Inbound::Start;
                }
                Inbound::Pass { left: 0, then } | Inbound::Drop { left: 0, then } => {
                    this.inbound = Inbound::Give {
                        frame: std::mem::take(then),
                        at: 0,
                    };
                }
                Inbound::Pass { left, .. } => {
                    let left = *left;
                    let passed = ready!(this.pass(left, cx, out))?;
                    if let Inbound::Pass { left, .. } = &mut this.inbound {
                        *left -= passed;
                    }
                    return Poll::Ready(Ok(()));
                }
                Inbound::Drop { left, .. } => {
                    let left = *left;
                    if this.from == this.to && ready!(this.fill(cx))? == 0 {
                        return Poll::Ready(Ok(()));
                    }
                    let held = this.to - this.from;
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(held);
                    this.from += take;
                    if let Inbound::Drop { left, .. } = &mut this.inbound {
                        *left -= take as u64;
                    }
                }
                Inbound::Give { frame, at } => {
                    let take = out.remaining().min(frame.len() - *at);
                    out.put_slice(&frame[*at..*at + take]);
                    *at += take;
                    if *at == frame.len() {
                        this.inbound = Inbound::Start;
                    }
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl<S> Mended<S> {
    /// Looks at what leaves: whose answer ends in it, and whose it is as well.
    fn leaves(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (count, ended) = self.outbound.take(bytes);
            if self.waits.any() {
                self.answer.extend_from_slice(&bytes[..count]);
            }
            bytes = &bytes[count..];
            let Some(header) = ended else {
                continue;
            };
            let frame = std::mem::take(&mut self.answer);
            if header.kind != MESSAGE_TYPE_RESPONSE {
                continue;
            }
            self.leaving += 1;
            let mut streams = self.waits.answered(header.stream);
            if !streams.is_empty() {
                self.open += streams.len();
                self.traffic.asked(streams.len());
                streams.reverse();
                self.repeats.push_back(Repeat {
                    frame,
                    streams,
                    at: 0,
                });
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> Mended<S> {
    /// Gives what is to be said to several to those who have not got it.
    fn repeat(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(repeat) = self.repeats.front_mut() {
            while let Some(stream) = repeat.streams.last() {
                if let Some(field) = repeat.frame.get_mut(4..8) {
                    field.copy_from_slice(&stream.to_be_bytes());
                }
                while repeat.at < repeat.frame.len() {
                    let rest = &repeat.frame[repeat.at..];
                    match ready!(Pin::new(&mut self.inner).poll_write(cx, rest))? {
                        0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                        count => repeat.at += count,
                    }
                }
                repeat.at = 0;
                repeat.streams.pop();
                self.leaving += 1;
            }
            self.repeats.pop_front();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Mended<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.repeat(cx))?;
        // No further than this answer's end, if it may have to be repeated.
        let most = if this.waits.any() {
            this.outbound.clone().take(bytes).0
        } else {
            bytes.len()
        };
        let written = ready!(Pin::new(&mut this.inner).poll_write(cx, &bytes[..most]))?;
        this.leaves(&bytes[..written.min(bytes.len())]);
        Poll::Ready(Ok(written))
    }

    /// The crate flushes after each message.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.repeat(cx))?;
        ready!(Pin::new(&mut this.inner).poll_flush(cx))?;
        let ended = std::mem::take(&mut this.leaving).min(this.open);
        this.open -= ended;
        this.traffic.answered(ended);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
