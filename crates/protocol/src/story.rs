//! What nobody else knows of one connection when its relay has died: the requests that were
//! passed on and not answered, and the answers that the client may not have. Sees the frames as
//! they pass; knows the meaning of none. It holds each request until its answer is given, those
//! that ask the same once, and answers for a second.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MESSAGE_TYPE_REQUEST, MESSAGE_TYPE_RESPONSE};
use vigil_sys::listen;

use crate::follow::{Follow, Header};

/// An answer that the relay has read may be with it still for so long; it is said again, which
/// a client that has it takes for an answer to nobody. One that a stopped relay never read is
/// kept for as long as that lasts.
const SAID_AGAIN: Duration = Duration::from_secs(1);
/// Longest answer that the kernel takes whole or not at all.
const WHOLE_MAX: usize = 32 << 10;
/// A longer one may have left by half if it was given to the relay so recently.
const HALF_LEFT: Duration = Duration::from_secs(10);
/// Answers that were read, kept to be said again, and their bytes: as much as a relay queues for a
/// client that takes nothing. Of those that were not, the socket takes some hundreds.
const KEPT_MAX: usize = 2048;
const KEPT_BYTES: usize = 256 << 10;

/// A connection as the next relay is to have it.
#[derive(Debug)]
pub struct Left {
    /// Its number.
    pub conn: u32,
    /// The client's own connection.
    pub own: Arc<UnixStream>,
    /// The stream of the request that was passed on last; it may stand in `own` still.
    pub passed: Option<u32>,
    /// Of this request a part was passed on: it stands in `own`, or is lost and the connection
    /// with it. 0: nobody knows which.
    pub half: Option<u32>,
    /// Whole frames that were not answered, in the order in which they came.
    pub requests: Vec<Vec<u8>>,
    /// Whole frames that the client may not have.
    pub answers: Vec<Vec<u8>>,
    /// Half of an answer may have left: the connection is of no use.
    pub broken: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Story {
    conn: u32,
    pair: Arc<UnixStream>,
    own: Arc<UnixStream>,
    inward: Follow,
    /// What has come of the request that is coming.
    coming: Vec<u8>,
    passed: Option<u32>,
    unanswered: Unanswered,
    outward: Follow,
    /// The answer under way, of which `sent` bytes have left.
    leaving: Vec<u8>,
    sent: usize,
    /// Answers the relay was given, and may not have passed on.
    kept: VecDeque<Given>,
    kept_bytes: usize,
    /// Bytes it was given in all.
    given: u64,
    /// The last that does not leave in one piece: when it was given, or known to be read, and where
    /// it ends; 0 when it was read.
    long: Option<(Instant, u64)>,
}

/// An answer that the relay was given.
#[derive(Debug)]
struct Given {
    frame: Vec<u8>,
    /// Where it ends in all that was given.
    end: u64,
    /// By when it was read, as far as is known.
    read: Option<Instant>,
}

/// Requests by their streams, in the order of which they come. Of Waits there are thousands
/// that differ in nothing else.
#[derive(Debug, Default)]
struct Unanswered {
    by_stream: BTreeMap<u32, (Header, Arc<[u8]>)>,
    bodies: BTreeSet<Arc<[u8]>>,
}

impl Unanswered {
    fn add(&mut self, header: Header, body: &[u8]) {
        // A client that uses a stream again has given the request before it up.
        self.answered(header.stream);
        let body = if let Some(known) = self.bodies.get(body) {
            Arc::clone(known)
        } else {
            let body: Arc<[u8]> = body.into();
            self.bodies.insert(Arc::clone(&body));
            body
        };
        self.by_stream.insert(header.stream, (header, body));
    }

    fn answered(&mut self, stream: u32) {
        let Some((_, body)) = self.by_stream.remove(&stream) else {
            return;
        };
        // The set's and this one.
        if Arc::strong_count(&body) == 2 {
            self.bodies.remove(&body);
        }
    }

    fn frames(&self) -> impl Iterator<Item = Vec<u8>> {
        let all = self.by_stream.values();
        all.map(|(header, body)| [&header.bytes()[..], body].concat())
    }
}

/// A story that is told and read from several places; bookkeeping, never lifecycle state.
#[derive(Debug, Clone)]
pub(crate) struct Shared(Arc<Mutex<Story>>);

impl Shared {
    /// Of a connection behind a relay.
    pub(crate) fn new(conn: u32, pair: Arc<UnixStream>, own: Arc<UnixStream>) -> Self {
        Self(Arc::new(Mutex::new(Story {
            conn,
            pair,
            own,
            inward: Follow::default(),
            coming: Vec::new(),
            passed: None,
            unanswered: Unanswered::default(),
            outward: Follow::default(),
            leaving: Vec::new(),
            sent: 0,
            kept: VecDeque::new(),
            kept_bytes: 0,
            given: 0,
            long: None,
        })))
    }

    pub(crate) fn get(&self) -> MutexGuard<'_, Story> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn downgrade(&self) -> Weak<Mutex<Story>> {
        Arc::downgrade(&self.0)
    }
}

/// Those of all connections that are served, or wait to be.
#[derive(Debug, Default)]
pub(crate) struct Stories(Mutex<Vec<Weak<Mutex<Story>>>>);

impl Stories {
    /// One more.
    pub(crate) fn add(&self, story: &Shared) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Thousands may come at once: only before more room is made.
        if all.len() == all.capacity() {
            all.retain(|story| story.strong_count() > 0);
        }
        all.push(story.downgrade());
    }

    /// The relay is dead: all that is left of them, by number.
    pub(crate) fn end(&self) -> Vec<Left> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all = all.iter().filter_map(Weak::upgrade);
        let mut left: Vec<Left> = all.map(|story| Shared(story).get().end()).collect();
        left.sort_by_key(|left| left.conn);
        left
    }
}

impl Story {
    pub(crate) fn own(&self) -> &Arc<UnixStream> {
        &self.own
    }

    /// Bytes have come.
    pub(crate) fn came(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (count, ended) = self.inward.take(bytes);
            let whole = ended.filter(|_| self.coming.is_empty());
            if let Some(header) = whole {
                self.request(header, &bytes[MESSAGE_HEADER_LENGTH.min(count)..count]);
            } else {
                self.coming.extend_from_slice(&bytes[..count]);
                if let Some(header) = ended {
                    let frame = std::mem::take(&mut self.coming);
                    self.request(header, &frame[MESSAGE_HEADER_LENGTH..]);
                }
            }
            bytes = &bytes[count..];
        }
    }

    fn request(&mut self, header: Header, body: &[u8]) {
        if header.kind == MESSAGE_TYPE_REQUEST {
            self.passed = Some(header.stream);
            self.unanswered.add(header, body);
        }
    }

    /// Takes bytes of an answer, up to its end; how many.
    pub(crate) fn says(&mut self, bytes: &[u8]) -> usize {
        if self.leaving.is_empty() {
            self.forget(Instant::now());
        }
        let (count, ended) = self.outward.take(bytes);
        self.leaving.extend_from_slice(&bytes[..count]);
        if let Some(header) = ended.filter(|header| header.kind == MESSAGE_TYPE_RESPONSE) {
            self.unanswered.answered(header.stream);
        }
        count
    }

    /// What of an answer is to leave now: it leaves when it is whole.
    pub(crate) fn to_leave(&self) -> &[u8] {
        if self.outward.between() {
            &self.leaving[self.sent..]
        } else {
            &[]
        }
    }

    /// So many bytes of it have left.
    pub(crate) fn left(&mut self, count: usize) {
        self.sent += count;
        if self.sent < self.leaving.len() {
            return;
        }
        let frame = std::mem::take(&mut self.leaving);
        self.sent = 0;
        self.given += frame.len() as u64;
        if frame.len() > WHOLE_MAX {
            self.long = Some((Instant::now(), self.given));
        } else {
            let (end, read) = (self.given, None);
            self.kept_bytes += frame.len();
            self.kept.push_back(Given { frame, end, read });
        }
    }

    /// Those the relay has read long ago, and the first of too many that it has read.
    fn forget(&mut self, now: Instant) {
        // What is not read counts whole buffers: more may be held than need be, never less.
        let unread = listen::unread_by_peer(&*self.pair).unwrap_or(usize::MAX);
        let read = self.given.saturating_sub(unread as u64);
        // In the order in which they were given: who is known to have been read comes first.
        let unknown = self.kept.iter_mut().rev();
        let unknown = unknown.take_while(|given| given.read.is_none());
        for given in unknown.filter(|given| given.end <= read) {
            given.read = Some(now);
        }
        if let Some(long) = self
            .long
            .as_mut()
            .filter(|(_, end)| (1..=read).contains(end))
        {
            *long = (now, 0);
        }
        while let Some(given) = self.kept.front()
            && given.read.is_some_and(|at| {
                let old = now.duration_since(at) > SAID_AGAIN;
                old || self.kept_bytes > KEPT_BYTES || self.kept.len() > KEPT_MAX
            })
        {
            self.kept_bytes -= given.frame.len();
            self.kept.pop_front();
        }
    }

    /// The relay is dead: what it had passed on is read to its end, and everything told.
    pub(crate) fn end(&mut self) -> Left {
        let mut bytes = [0; 4096];
        let pair = Arc::clone(&self.pair);
        let reset = loop {
            match (&*pair).read(&mut bytes) {
                Ok(0) => break false,
                Ok(count) => self.came(&bytes[..count]),
                // An end too: bytes of ours were unread.
                Err(_) => break true,
            }
        };
        let half = Header::read(&self.coming).map_or(0, |header| header.stream);
        let passed_on = |given: &Given| given.read.is_some_and(|at| at.elapsed() >= SAID_AGAIN);
        let recent = self.kept.iter().filter(|given| !passed_on(given));
        let mut answers: Vec<Vec<u8>> = recent.map(|given| given.frame.clone()).collect();
        // Of one that was with the relay by half nothing was passed on.
        if !self.leaving.is_empty() && self.outward.between() {
            answers.push(self.leaving.clone());
        }
        Left {
            conn: self.conn,
            own: Arc::clone(&self.own),
            passed: self.passed,
            half: (!self.inward.between()).then_some(half),
            requests: self.unanswered.frames().collect(),
            answers,
            broken: self
                .long
                .is_some_and(|(at, end)| reset && end > 0 || at.elapsed() < HALF_LEFT),
        }
    }
}
