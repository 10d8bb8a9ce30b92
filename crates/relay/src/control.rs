//! The control protocol between a shim and its reaper: how messages look as
//! bytes. One message is one datagram of a SEQPACKET socketpair, at most
//! [`MESSAGE_MAX`] bytes, little endian. It must never allocate by a length
//! the peer named without checking it, and never panic on what it reads: the
//! two ends may be different versions, and the shim may be corrupt.
//!
//! Every message begins with the same 8 bytes:
//!
//! ```text
//! 0  u8   type      shim to reaper 0x01…, reaper to shim 0x81…
//! 1  u8   zero
//! 2  u16  count     entries in the body of Deposit and Ended, else 0
//! 4  u32  call      number chosen by the shim, repeated in the Ack; 0 if none
//! 8  …    body      see each message
//! ```

/// What this build speaks; the shim says its own in [`ToReaper::Hello`], the
/// reaper its own in the answer. Each speaks what both know; `fixtures` beside
/// this crate's sources keeps every message of every version as bytes. 2: Retire. 3: Accept. 4: Taken.
pub const VERSION: u16 = 5;
/// The first in which a shim says that it has taken a connection.
pub const SAYS_TAKEN: u16 = 4;
/// The first whose program can become the reaper.
pub const REAPS: u16 = 5;
/// The oldest version this build can be spoken to in; a peer that is older is
/// refused by its name before anything is done.
pub const OLDEST: u16 = 1;
/// Longest message in bytes.
pub const MESSAGE_MAX: usize = 4096;
/// Most descriptors (and so slots) in one [`ToReaper::Deposit`].
pub const DEPOSIT_MAX: usize = 16;
/// Most slots given back for one [`ToReaper::Adopt`].
pub const ADOPT_MAX: usize = 32;
/// Most slots in one [`ToReaper::Ended`].
pub const ENDED_MAX: usize = (MESSAGE_MAX - HEADER) / 4;

const HEADER: usize = 8;

const HELLO: u8 = 0x01;
const READY: u8 = 0x02;
const DEPOSIT: u8 = 0x03;
const ENDED: u8 = 0x04;
const REGISTER: u8 = 0x05;
const UNREGISTER: u8 = 0x06;
const END: u8 = 0x07;
const ADOPT: u8 = 0x08;
const ACCEPT: u8 = 0x09;
const TAKEN: u8 = 0x0a;
const ACK: u8 = 0x81;
const CONN: u8 = 0x82;
const SLOT: u8 = 0x83;
const LEAVE: u8 = 0x84;
const RETIRE: u8 = 0x85;

/// One deposited descriptor: its place in the reaper's table, and what it is
/// for. The kind means something to shims only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot {
    /// Number chosen by the shim, unique while the slot is held.
    pub slot: u32,
    /// Opaque to the reaper; given back at takeover.
    pub kind: u8,
}

/// What a shim says, and the number its [`ToShim::Ack`] will carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Number of the call, not 0.
    pub call: u32,
    /// What is asked.
    pub request: ToReaper,
}

/// A request of the shim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToReaper {
    /// First message of every shim. Body: version u16. Ack value: [`VERSION`] of the reaper.
    Hello {
        /// The shim's [`VERSION`].
        version: u16,
    },
    /// The journal is open and connections are served. No body.
    Ready,
    /// Hold these descriptors, attached in the same order. Body: count × (slot u32, kind u8).
    Deposit {
        /// 1 to [`DEPOSIT_MAX`] slots that are not held yet.
        slots: Vec<Slot>,
    },
    /// The copies through these slots have ended: close them; released when
    /// acknowledged. A slot that is not held is no error (the Ack of an
    /// earlier release may have been lost). Body: count × slot u32.
    Ended {
        /// 1 to [`ENDED_MAX`] slots.
        slots: Vec<u32>,
    },
    /// Pin the exit record of a process, looking into the ring of deaths
    /// first. Body: pid u32, start ticks u64, since u64. Ack value: the pinned index.
    Register {
        /// The process, in the reaper's pid namespace.
        pid: u32,
        /// Field 22 of its `/proc/PID/stat` in clock ticks, or 0 if it was gone when asked.
        start_ticks: u64,
        /// Sequence number of the ring of deaths, read before the process was
        /// started: what was recorded earlier is of another with the same pid.
        since: u64,
    },
    /// Give a pinned index back. Body: index u32.
    Unregister {
        /// From the Ack of [`ToReaper::Register`].
        index: u32,
    },
    /// This is the end: a shim that dies after it is never restarted. No body.
    End,
    /// Give back what earlier shims deposited: the next [`ADOPT_MAX`] slots, in
    /// the order of their numbers. Each comes as a [`ToShim::Slot`] before the
    /// Ack. Body: after u32. Ack value: how many came; fewer are the last.
    Adopt {
        /// Only slots with higher numbers; 0 for all.
        after: u32,
    },
    /// A connection and both its descriptors have come; until then it is offered again. Body:
    /// conn u32. Since version 4.
    Taken {
        /// Its number.
        conn: u32,
    },
    /// Accept who calls on a listener that is held, and hold that connection; it
    /// comes as a [`ToShim::Slot`] before the Ack. Body: listener u32, slot u32,
    /// kind u8. Ack value: 1, or 0 if nobody calls now or no such listener is held. Since version 3.
    Accept {
        /// The listener's slot.
        listener: u32,
        /// The connection's, which is not held yet.
        slot: Slot,
    },
}

/// What a reaper says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToShim {
    /// The answer to a [`Call`]. Body: error u8 (0 = done), value u64.
    Ack {
        /// The call answered.
        call: u32,
        /// Its value (0 unless the request says otherwise), or why not.
        answer: Result<u64, Denied>,
    },
    /// A connection. Two descriptors: the shim's end of the socketpair that
    /// carries its frames, then containerd's own connection, to be used only
    /// after the reaper's death. Body: conn u32.
    Conn {
        /// Number of the connection, never used twice by one reaper.
        conn: u32,
    },
    /// A descriptor an earlier shim deposited, attached. Body: slot u32, kind u8.
    Slot(Slot),
    /// The reaper was told to go: flush for at most one second and exit. No body.
    Leave,
    /// Another shim is to take over: finish the turn and exit, leaving
    /// everything as it is. No body. Since version 2.
    Retire,
}

/// Why the reaper did not do what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Denied {
    /// The shim's version is not spoken here.
    #[error("version not spoken by the reaper")]
    Version,
    /// The reaper does not know this type of message.
    #[error("message not known to the reaper")]
    UnknownMessage,
    /// The message is not as long as it says, or the attached descriptors are
    /// not as many as the slots.
    #[error("message malformed")]
    Malformed,
    /// A slot in the deposit is held already; nothing of it was taken.
    #[error("slot already held")]
    SlotHeld,
    /// The table of slots is full; nothing of the deposit was taken.
    #[error("no slot free")]
    SlotsFull,
    /// Every pinned exit record is in use.
    #[error("no pinned exit record free")]
    PinsFull,
    /// The index is not one that is pinned.
    #[error("index not pinned")]
    NotPinned,
    /// The call number is 0.
    #[error("call number is zero")]
    ZeroCall,
    /// Several processes with this pid have died, and without its start time
    /// nobody can say which of them was meant: its exit is unknown.
    #[error("several deaths of this pid and no start time")]
    Ambiguous,
    /// A reason this build has no name for.
    #[error("denied with code {0}")]
    Other(u8),
}

impl Denied {
    const fn code(self) -> u8 {
        match self {
            Denied::Version => 1,
            Denied::UnknownMessage => 2,
            Denied::Malformed => 3,
            Denied::SlotHeld => 4,
            Denied::SlotsFull => 5,
            Denied::PinsFull => 6,
            Denied::NotPinned => 7,
            Denied::ZeroCall => 8,
            Denied::Ambiguous => 9,
            // 0 is "done" on the wire, so it cannot be a reason.
            Denied::Other(0) => u8::MAX,
            Denied::Other(code) => code,
        }
    }

    const fn from_code(code: u8) -> Denied {
        match code {
            1 => Denied::Version,
            2 => Denied::UnknownMessage,
            3 => Denied::Malformed,
            4 => Denied::SlotHeld,
            5 => Denied::SlotsFull,
            6 => Denied::PinsFull,
            7 => Denied::NotPinned,
            8 => Denied::ZeroCall,
            9 => Denied::Ambiguous,
            other => Denied::Other(other),
        }
    }
}

/// Why bytes are not a message, or a message does not become bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Fewer bytes than a header.
    #[error("control message of {len} bytes has no whole header")]
    NoHeader {
        /// How many came.
        len: usize,
    },
    /// A type this build does not know: the peer is newer, or corrupt.
    #[error("control message of unknown type {kind:#04x} (call {call})")]
    UnknownType {
        /// The type byte.
        kind: u8,
        /// The call number, so that it can be answered.
        call: u32,
    },
    /// The body is not what type and count say.
    #[error("control message of type {kind:#04x} has {len} bytes, {want} expected (call {call})")]
    WrongLength {
        /// The type byte.
        kind: u8,
        /// The call number, so that it can be answered.
        call: u32,
        /// Whole length of the message in bytes.
        len: usize,
        /// What type and count ask for.
        want: usize,
    },
    /// None, or more entries than one message may carry.
    #[error(
        "control message of type {kind:#04x} has {count} entries, 1 to {max} allowed (call {call})"
    )]
    WrongCount {
        /// The type byte.
        kind: u8,
        /// The call number, so that it can be answered.
        call: u32,
        /// Entries found.
        count: usize,
        /// Most entries allowed.
        max: usize,
    },
}

impl ControlError {
    /// What a shim that sent this is answered.
    pub const fn denied(&self) -> Denied {
        match self {
            ControlError::UnknownType { .. } => Denied::UnknownMessage,
            ControlError::NoHeader { .. }
            | ControlError::WrongLength { .. }
            | ControlError::WrongCount { .. } => Denied::Malformed,
        }
    }
}

struct Header {
    kind: u8,
    count: usize,
    call: u32,
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    array(bytes, at).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    array(bytes, at).map_or(0, u64::from_le_bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    array(bytes, at).map_or(0, u16::from_le_bytes)
}

fn u8_at(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

fn header(bytes: &[u8]) -> Result<Header, ControlError> {
    if bytes.len() < HEADER {
        return Err(ControlError::NoHeader { len: bytes.len() });
    }
    Ok(Header {
        kind: u8_at(bytes, 0),
        count: usize::from(u16_at(bytes, 2)),
        call: u32_at(bytes, 4),
    })
}

impl Header {
    /// Bytes 1 and 2 are free for later versions in messages without
    /// entries, so they are not checked there.
    fn body<'a>(&self, bytes: &'a [u8], len: usize) -> Result<&'a [u8], ControlError> {
        let want = HEADER + len;
        if bytes.len() != want {
            return Err(ControlError::WrongLength {
                kind: self.kind,
                call: self.call,
                len: bytes.len(),
                want,
            });
        }
        Ok(&bytes[HEADER..])
    }

    fn entries<'a>(
        &self,
        bytes: &'a [u8],
        size: usize,
        max: usize,
    ) -> Result<std::slice::ChunksExact<'a, u8>, ControlError> {
        check_count(self.kind, self.call, self.count, max)?;
        Ok(self.body(bytes, self.count * size)?.chunks_exact(size))
    }
}

fn check_count(kind: u8, call: u32, count: usize, max: usize) -> Result<(), ControlError> {
    if count == 0 || count > max {
        return Err(ControlError::WrongCount {
            kind,
            call,
            count,
            max,
        });
    }
    Ok(())
}

fn begin(kind: u8, count: usize, call: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + 20);
    out.extend([kind, 0]);
    out.extend(u16::try_from(count).unwrap_or(u16::MAX).to_le_bytes());
    out.extend(call.to_le_bytes());
    out
}

/// The call number of a message, also of one whose rest is not to be had; 0 if
/// there is none.
pub fn number_of(bytes: &[u8]) -> u32 {
    u32_at(bytes, 4)
}

impl Call {
    /// The datagram. Fails only on a list of slots that is empty or too long.
    pub fn encode(&self) -> Result<Vec<u8>, ControlError> {
        let call = self.call;
        Ok(match &self.request {
            ToReaper::Hello { version } => {
                let mut out = begin(HELLO, 0, call);
                out.extend(version.to_le_bytes());
                out
            }
            ToReaper::Ready => begin(READY, 0, call),
            ToReaper::Deposit { slots } => {
                check_count(DEPOSIT, call, slots.len(), DEPOSIT_MAX)?;
                let mut out = begin(DEPOSIT, slots.len(), call);
                for Slot { slot, kind } in slots {
                    out.extend(slot.to_le_bytes());
                    out.push(*kind);
                }
                out
            }
            ToReaper::Ended { slots } => {
                check_count(ENDED, call, slots.len(), ENDED_MAX)?;
                let mut out = begin(ENDED, slots.len(), call);
                for slot in slots {
                    out.extend(slot.to_le_bytes());
                }
                out
            }
            ToReaper::Register {
                pid,
                start_ticks,
                since,
            } => {
                let mut out = begin(REGISTER, 0, call);
                out.extend(pid.to_le_bytes());
                out.extend(start_ticks.to_le_bytes());
                out.extend(since.to_le_bytes());
                out
            }
            ToReaper::Unregister { index } => {
                let mut out = begin(UNREGISTER, 0, call);
                out.extend(index.to_le_bytes());
                out
            }
            ToReaper::End => begin(END, 0, call),
            ToReaper::Adopt { after } => {
                let mut out = begin(ADOPT, 0, call);
                out.extend(after.to_le_bytes());
                out
            }
            ToReaper::Taken { conn } => {
                let mut out = begin(TAKEN, 0, call);
                out.extend(conn.to_le_bytes());
                out
            }
            ToReaper::Accept { listener, slot } => {
                let mut out = begin(ACCEPT, 0, call);
                out.extend(listener.to_le_bytes());
                out.extend(slot.slot.to_le_bytes());
                out.push(slot.kind);
                out
            }
        })
    }

    /// Reads one datagram that a shim sent.
    pub fn decode(bytes: &[u8]) -> Result<Call, ControlError> {
        let head = header(bytes)?;
        let request = match head.kind {
            HELLO => ToReaper::Hello {
                version: u16_at(head.body(bytes, 2)?, 0),
            },
            READY => {
                head.body(bytes, 0)?;
                ToReaper::Ready
            }
            DEPOSIT => ToReaper::Deposit {
                slots: head
                    .entries(bytes, 5, DEPOSIT_MAX)?
                    .map(|entry| Slot {
                        slot: u32_at(entry, 0),
                        kind: u8_at(entry, 4),
                    })
                    .collect(),
            },
            ENDED => ToReaper::Ended {
                slots: head
                    .entries(bytes, 4, ENDED_MAX)?
                    .map(|entry| u32_at(entry, 0))
                    .collect(),
            },
            REGISTER => {
                let body = head.body(bytes, 20)?;
                ToReaper::Register {
                    pid: u32_at(body, 0),
                    start_ticks: u64_at(body, 4),
                    since: u64_at(body, 12),
                }
            }
            UNREGISTER => ToReaper::Unregister {
                index: u32_at(head.body(bytes, 4)?, 0),
            },
            END => {
                head.body(bytes, 0)?;
                ToReaper::End
            }
            ADOPT => ToReaper::Adopt {
                after: u32_at(head.body(bytes, 4)?, 0),
            },
            TAKEN => ToReaper::Taken {
                conn: u32_at(head.body(bytes, 4)?, 0),
            },
            ACCEPT => {
                let body = head.body(bytes, 9)?;
                ToReaper::Accept {
                    listener: u32_at(body, 0),
                    slot: Slot {
                        slot: u32_at(body, 4),
                        kind: u8_at(body, 8),
                    },
                }
            }
            kind => {
                return Err(ControlError::UnknownType {
                    kind,
                    call: head.call,
                });
            }
        };
        Ok(Call {
            call: head.call,
            request,
        })
    }
}

impl ToShim {
    /// The datagram.
    pub fn encode(&self) -> Vec<u8> {
        match *self {
            ToShim::Ack { call, answer } => {
                let mut out = begin(ACK, 0, call);
                let (error, value) = match answer {
                    Ok(value) => (0, value),
                    Err(denied) => (denied.code(), 0),
                };
                out.push(error);
                out.extend(value.to_le_bytes());
                out
            }
            ToShim::Conn { conn } => {
                let mut out = begin(CONN, 0, 0);
                out.extend(conn.to_le_bytes());
                out
            }
            ToShim::Slot(Slot { slot, kind }) => {
                let mut out = begin(SLOT, 0, 0);
                out.extend(slot.to_le_bytes());
                out.push(kind);
                out
            }
            ToShim::Leave => begin(LEAVE, 0, 0),
            ToShim::Retire => begin(RETIRE, 0, 0),
        }
    }

    /// Reads one datagram that a reaper sent.
    pub fn decode(bytes: &[u8]) -> Result<ToShim, ControlError> {
        let head = header(bytes)?;
        Ok(match head.kind {
            ACK => {
                let body = head.body(bytes, 9)?;
                ToShim::Ack {
                    call: head.call,
                    answer: match u8_at(body, 0) {
                        0 => Ok(u64_at(body, 1)),
                        code => Err(Denied::from_code(code)),
                    },
                }
            }
            CONN => ToShim::Conn {
                conn: u32_at(head.body(bytes, 4)?, 0),
            },
            SLOT => {
                let body = head.body(bytes, 5)?;
                ToShim::Slot(Slot {
                    slot: u32_at(body, 0),
                    kind: u8_at(body, 4),
                })
            }
            LEAVE => {
                head.body(bytes, 0)?;
                ToShim::Leave
            }
            RETIRE => {
                head.body(bytes, 0)?;
                ToShim::Retire
            }
            kind => {
                return Err(ControlError::UnknownType {
                    kind,
                    call: head.call,
                });
            }
        })
    }
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
