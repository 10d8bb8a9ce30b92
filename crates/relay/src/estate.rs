//! What one process leaves to the one that is the reaper after it: how it looks as bytes. The
//! next may be of another version and finds nothing else, so everything that cannot be made
//! again is here, and descriptors by their numbers, which an exec keeps. It must never set memory
//! aside by a length it did not check, and never panic on what it reads.
//!
//! ```text
//! 0   8 bytes  "VIGILES\n"
//! 8   u16      version, little endian as everything
//! 10  u16      zero
//! 12  u32      bytes of all that follows
//! 16  …        parts: u16 kind, u16 zero, u32 bytes of the body, body
//! ```
//!
//! A part of an unknown kind is passed over if its kind has [`OPTIONAL`] set, and refused
//! otherwise.

use crate::control::Slot;

/// What this build writes; `fixtures` beside this crate's sources keeps those of every version.
pub const VERSION: u16 = 1;
/// Set in the kind of a part that a reader may do without.
pub const OPTIONAL: u16 = 0x8000;

const MAGIC: &[u8; 8] = b"VIGILES\n";
const HEADER: usize = 16;
const PART: usize = 8;

const WHOSE: u16 = 1;
const HELD: u16 = 2;
const CONN: u16 = 3;
const SLOT: u16 = 4;
const END: u16 = 5;
const STORY: u16 = 6;
const SHIM: u16 = 7;

/// No descriptor.
const NONE: u32 = u32::MAX;

/// A descriptor's number, of the process that is to be the reaper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fd(pub u32);

/// What a reaper cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The listening socket.
    pub listener: Fd,
    /// The pair's lock.
    pub lock: Fd,
    /// Memory of the exit records.
    pub exits: Fd,
    /// Memory of the journal's second copy.
    pub memory: Fd,
    /// Rung after each recorded death.
    pub bell: Fd,
    /// What shims are started from.
    pub program: Fd,
    /// What they were started from before, for when that does not do.
    pub before: Option<Fd>,
    /// Number of the next connection.
    pub next_conn: u32,
}

/// A request that was not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// How long ago it came, in milliseconds.
    pub age_ms: u32,
    /// Shims that died by their own fault with it in hand.
    pub attempts: u8,
    /// A shim has lived with it.
    pub proven: bool,
    /// The whole frame.
    pub frame: Box<[u8]>,
}

/// A connection of containerd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conn {
    /// Its number.
    pub number: u32,
    /// Its own descriptor.
    pub own: Fd,
    /// The stream of the request that was passed on last. It may stand in the socket still: it
    /// is looked at, passed on, and only then taken.
    pub passed: Option<u32>,
    /// Of the request on this stream a part was passed on and nothing more: it stands in the socket
    /// still, or is lost. 0: nobody knows on which stream.
    pub half: Option<u32>,
    /// Not answered yet, in the order in which they came.
    pub requests: Vec<Request>,
    /// Answers that containerd may not have, whole frames.
    pub answers: Vec<Box<[u8]>>,
    /// Of the first of them so many bytes have left.
    pub left: u32,
    /// What the shim that lives has of it.
    pub pair: Option<Pair>,
}

/// What a shim that lives has of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// The socketpair to it.
    pub fd: Fd,
    /// So many of the requests it has whole …
    pub sent: u32,
    /// … and so many bytes of the next.
    pub part: u32,
    /// It is known to have the connection.
    pub taken: bool,
}

/// A shim that lives on while its reaper becomes another program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shim {
    /// Its number: it is a child, and not reaped.
    pub pid: u32,
    /// The reaper's end of the control socket.
    pub control: Fd,
    /// It has said that it serves.
    pub serving: bool,
    /// It does not say what it has taken.
    pub silent: bool,
    /// Its program is new, and has to do for so many milliseconds still.
    pub proving_ms: u32,
}

/// A registered process that is no child of the next reaper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Its pinned exit record.
    pub pin: u32,
    /// It, held since its start.
    pub pidfd: Fd,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Estate {
    /// Whose it is: the line that every file of the pair bears.
    pub whose: String,
    /// What everything needs.
    pub held: Held,
    /// In the order of their numbers.
    pub conns: Vec<Conn>,
    /// What shims have deposited.
    pub slots: Vec<(Slot, Fd)>,
    /// Whose end nobody would be told of.
    pub ends: Vec<End>,
    /// The file of takeovers, as bytes.
    pub story: Vec<u8>,
    /// `None`: another is to be started.
    pub shim: Option<Shim>,
}

/// Why bytes are no estate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EstateError {
    /// They do not begin as one.
    #[error("not what a reaper leaves to the next")]
    Foreign,
    /// Written by a later version.
    #[error("left in version {version}, versions up to {VERSION} are known here")]
    Newer {
        /// That version.
        version: u16,
    },
    /// A part that must be understood is not known here.
    #[error("it has a part of kind {kind}, which is not known here")]
    Unknown {
        /// The kind.
        kind: u16,
    },
    /// A part, or all of it, is not as long as it says, or a value makes no sense.
    #[error("it is damaged at byte {at}")]
    Damaged {
        /// Where.
        at: usize,
    },
    /// A part is not there.
    #[error("it does not say {0}")]
    Missing(&'static str),
}

/// Reads what lies behind `at`.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], EstateError> {
        let damaged = EstateError::Damaged { at: self.at };
        let end = self.at.checked_add(count).ok_or(damaged)?;
        let taken = self.bytes.get(self.at..end).ok_or(damaged)?;
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], EstateError> {
        let damaged = EstateError::Damaged { at: self.at };
        self.take(N)?.try_into().map_err(|_| damaged)
    }

    fn byte(&mut self) -> Result<u8, EstateError> {
        Ok(self.array::<1>()?[0])
    }

    fn short(&mut self) -> Result<u16, EstateError> {
        self.array().map(u16::from_le_bytes)
    }

    fn word(&mut self) -> Result<u32, EstateError> {
        self.array().map(u32::from_le_bytes)
    }

    fn fd(&mut self) -> Result<Fd, EstateError> {
        self.word().map(Fd)
    }

    fn some_fd(&mut self) -> Result<Option<Fd>, EstateError> {
        Ok(Some(self.fd()?).filter(|fd| fd.0 != NONE))
    }

    /// A length, and so many bytes.
    fn chunk(&mut self) -> Result<&'a [u8], EstateError> {
        let count = usize::try_from(self.word()?).unwrap_or(usize::MAX);
        self.take(count)
    }

    fn flag(&mut self) -> Result<bool, EstateError> {
        let at = self.at;
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(EstateError::Damaged { at }),
        }
    }

    /// As many as `one` finds before the end. Each takes a byte at least.
    fn all<T>(
        &mut self,
        mut one: impl FnMut(&mut Self) -> Result<T, EstateError>,
    ) -> Result<Vec<T>, EstateError> {
        let mut all = Vec::new();
        while !self.is_over() {
            all.push(one(self)?);
        }
        Ok(all)
    }

    fn is_over(&self) -> bool {
        self.at >= self.bytes.len()
    }

    fn ends(&self) -> Result<(), EstateError> {
        if self.is_over() {
            return Ok(());
        }
        Err(EstateError::Damaged { at: self.at })
    }
}

fn length(bytes: usize) -> [u8; 4] {
    // What is held is bounded far below.
    u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes()
}

fn chunk(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(length(bytes.len()));
    out.extend(bytes);
}

fn part(out: &mut Vec<u8>, kind: u16, body: &[u8]) {
    out.extend(kind.to_le_bytes());
    out.extend([0, 0]);
    chunk(out, body);
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

impl Held {
    fn encode(&self) -> Vec<u8> {
        words(&[
            self.listener.0,
            self.lock.0,
            self.exits.0,
            self.memory.0,
            self.bell.0,
            self.program.0,
            self.before.map_or(NONE, |fd| fd.0),
            self.next_conn,
        ])
    }

    fn decode(from: &mut Reader<'_>) -> Result<Held, EstateError> {
        Ok(Held {
            listener: from.fd()?,
            lock: from.fd()?,
            exits: from.fd()?,
            memory: from.fd()?,
            bell: from.fd()?,
            program: from.fd()?,
            before: from.some_fd()?,
            next_conn: from.word()?,
        })
    }
}

impl Conn {
    fn encode(&self) -> Vec<u8> {
        let mut out = words(&[self.number, self.own.0, self.left]);
        for stream in [self.passed, self.half] {
            out.push(u8::from(stream.is_some()));
            out.extend(stream.unwrap_or(0).to_le_bytes());
        }
        let pair = self
            .pair
            .map_or([NONE, 0, 0], |pair| [pair.fd.0, pair.sent, pair.part]);
        out.extend(words(&pair));
        out.push(u8::from(self.pair.is_some_and(|pair| pair.taken)));
        out.extend(length(self.answers.len()));
        for answer in &self.answers {
            chunk(&mut out, answer);
        }
        for request in &self.requests {
            out.extend(request.age_ms.to_le_bytes());
            out.extend([request.attempts, u8::from(request.proven)]);
            chunk(&mut out, &request.frame);
        }
        out
    }

    fn decode(from: &mut Reader<'_>) -> Result<Conn, EstateError> {
        let (number, own) = (from.word()?, from.fd()?);
        let left = from.word()?;
        let mut stream = || Ok(from.flag()?.then_some(from.word()?));
        let (passed, half) = (stream()?, stream()?);
        let (fd, sent, part, taken) = (from.some_fd()?, from.word()?, from.word()?, from.flag()?);
        let pair = fd.map(|fd| Pair {
            fd,
            sent,
            part,
            taken,
        });
        let mut answers = Vec::new();
        for _ in 0..from.word()? {
            answers.push(from.chunk()?.into());
        }
        let requests = from.all(|from| {
            Ok(Request {
                age_ms: from.word()?,
                attempts: from.byte()?,
                proven: from.flag()?,
                frame: from.chunk()?.into(),
            })
        })?;
        Ok(Conn {
            number,
            own,
            passed,
            half,
            requests,
            answers,
            left,
            pair,
        })
    }
}

impl Shim {
    fn encode(&self) -> Vec<u8> {
        let mut out = words(&[self.pid, self.control.0, self.proving_ms]);
        out.extend([u8::from(self.serving), u8::from(self.silent)]);
        out
    }

    fn decode(from: &mut Reader<'_>) -> Result<Shim, EstateError> {
        Ok(Shim {
            pid: from.word()?,
            control: from.fd()?,
            proving_ms: from.word()?,
            serving: from.flag()?,
            silent: from.flag()?,
        })
    }
}

impl Estate {
    /// The bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut parts = Vec::new();
        part(&mut parts, WHOSE, self.whose.as_bytes());
        part(&mut parts, HELD, &self.held.encode());
        for conn in &self.conns {
            part(&mut parts, CONN, &conn.encode());
        }
        for (Slot { slot, kind }, fd) in &self.slots {
            part(&mut parts, SLOT, &words(&[*slot, u32::from(*kind), fd.0]));
        }
        for end in &self.ends {
            part(&mut parts, END, &words(&[end.pin, end.pidfd.0]));
        }
        part(&mut parts, STORY, &self.story);
        if let Some(shim) = &self.shim {
            part(&mut parts, SHIM, &shim.encode());
        }
        let mut out = Vec::with_capacity(HEADER + parts.len());
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend([0, 0]);
        chunk(&mut out, &parts);
        out
    }

    /// Reads them.
    pub fn decode(bytes: &[u8]) -> Result<Estate, EstateError> {
        let mut from = Reader { bytes, at: 0 };
        if from.take(MAGIC.len()).ok() != Some(MAGIC) {
            return Err(EstateError::Foreign);
        }
        match from.short()? {
            0 => return Err(EstateError::Damaged { at: MAGIC.len() }),
            version if version > VERSION => return Err(EstateError::Newer { version }),
            _ => {}
        }
        from.short()?;
        let length = from.word()?;
        if usize::try_from(length) != Ok(bytes.len() - from.at) {
            return Err(EstateError::Damaged { at: from.at });
        }
        let (mut whose, mut held, mut story, mut shim) = (None, None, Vec::new(), None);
        let (mut conns, mut slots, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        while !from.is_over() {
            let kind = from.short()?;
            from.short()?;
            let at = from.at + PART / 2;
            let end = at + from.chunk()?.len();
            let mut body = Reader {
                bytes: bytes.get(..end).unwrap_or_default(),
                at,
            };
            match kind {
                WHOSE => {
                    let text = body.take(end - at)?;
                    let text = std::str::from_utf8(text);
                    let text = text.map_err(|_| EstateError::Damaged { at })?;
                    whose = Some(text.to_owned());
                }
                HELD => held = Some(Held::decode(&mut body)?),
                CONN => conns.push(Conn::decode(&mut body)?),
                SLOT => {
                    let (slot, kind, fd) = (body.word()?, body.word()?, body.fd()?);
                    let kind = u8::try_from(kind).map_err(|_| EstateError::Damaged { at })?;
                    slots.push((Slot { slot, kind }, fd));
                }
                END => ends.push(End {
                    pin: body.word()?,
                    pidfd: body.fd()?,
                }),
                STORY => story = body.take(end - at)?.to_vec(),
                SHIM => shim = Some(Shim::decode(&mut body)?),
                kind if kind & OPTIONAL != 0 => continue,
                kind => return Err(EstateError::Unknown { kind }),
            }
            body.ends()?;
        }
        if !conns.is_sorted_by(|a: &Conn, b| a.number < b.number) {
            return Err(EstateError::Damaged { at: HEADER });
        }
        Ok(Estate {
            whose: whose.ok_or(EstateError::Missing("whose it is"))?,
            held: held.ok_or(EstateError::Missing("what it holds"))?,
            conns,
            slots,
            ends,
            story,
            shim,
        })
    }

    /// Every descriptor it names.
    pub fn fds(&self) -> impl Iterator<Item = Fd> {
        let Held {
            listener,
            lock,
            exits,
            memory,
            bell,
            program,
            before,
            next_conn: _,
        } = self.held;
        let conns = self.conns.iter();
        let conns = conns.flat_map(|conn| [Some(conn.own), conn.pair.map(|pair| pair.fd)]);
        let slots = self.slots.iter().map(|(_, fd)| *fd);
        let ends = self.ends.iter().map(|end| end.pidfd);
        let held = [listener, lock, exits, memory, bell, program];
        let held = held.into_iter().chain(slots).chain(ends);
        let control = self.shim.map(|shim| shim.control);
        held.chain(before.into_iter().chain(control))
            .chain(conns.flatten())
    }
}

#[cfg(test)]
#[path = "estate_tests.rs"]
mod tests;
