//! One ttrpc frame: ten bytes of header, big endian (length of the payload
//! u32, stream id u32, type u8, flags u8), then the payload. Cuts a byte
//! stream into whole frames, and writes the one answer the relay gives by
//! itself. Must never set memory aside for bytes that have not come.

/// Bytes of a header.
pub const HEADER_LEN: usize = 10;
/// Longest payload in bytes (ttrpc's own limit, in Go and in Rust).
pub const PAYLOAD_MAX: usize = 4 << 20;
/// Longest frame in bytes.
pub const FRAME_MAX: usize = HEADER_LEN + PAYLOAD_MAX;

/// gRPC's RESOURCE_EXHAUSTED: what Go's ttrpc server answers to a frame that is too long.
pub const CODE_RESOURCE_EXHAUSTED: u8 = 8;
/// gRPC's INTERNAL.
pub const CODE_INTERNAL: u8 = 13;
/// gRPC's UNAVAILABLE: ask again later.
pub const CODE_UNAVAILABLE: u8 = 14;

pub(crate) const REQUEST: u8 = 1;
pub(crate) const RESPONSE: u8 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) len: u32,
    pub(crate) stream: u32,
    pub(crate) kind: u8,
}

impl Header {
    pub(crate) fn read(bytes: &[u8]) -> Option<Header> {
        let bytes = bytes.first_chunk::<HEADER_LEN>()?;
        let word = |at: usize| {
            let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_be_bytes(bytes))
        };
        Some(Header {
            len: word(0)?,
            stream: word(4)?,
            kind: bytes[8],
        })
    }

    /// Whether a frame is as long as its header says.
    pub(crate) fn fits(self, frame: &[u8]) -> bool {
        frame.len().checked_sub(HEADER_LEN) == Some(self.payload())
    }

    fn payload(self) -> usize {
        // No target of ours has a usize below 32 bits.
        usize::try_from(self.len).unwrap_or(usize::MAX)
    }
}

/// What a byte stream turned out to hold.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// A whole frame, header included.
    Frame(Header, Box<[u8]>),
    /// A header that promises more than [`PAYLOAD_MAX`], or than there is room
    /// for; told once, at the header. The payload is skipped as it comes.
    TooLong(Header),
    /// The end of a frame that was given up.
    GivenUp(Header),
}

/// Cuts frames out of a stream that comes in arbitrary pieces.
#[derive(Debug, Default)]
pub(crate) struct Cutter {
    /// The begin of a frame that is not whole yet.
    part: Vec<u8>,
    /// Bytes still to come of a payload that is too long, or was given up.
    skip: usize,
    given_up: Option<Header>,
}

impl Cutter {
    /// Takes bytes from the front of `bytes` until a piece is complete, or all
    /// of them.
    pub(crate) fn next(&mut self, bytes: &mut &[u8]) -> Option<Piece> {
        self.next_within(bytes, PAYLOAD_MAX)
    }

    /// The same, with room for a payload of at most `room` bytes that begins now.
    pub(crate) fn next_within(&mut self, bytes: &mut &[u8], room: usize) -> Option<Piece> {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        *bytes = &bytes[skipped..];
        if self.skip == 0
            && let Some(header) = self.given_up.take()
        {
            return Some(Piece::GivenUp(header));
        }
        let begins = self.part.len() < HEADER_LEN;
        if self.part.len() < HEADER_LEN {
            let wanted = HEADER_LEN - self.part.len();
            let Some((head, rest)) = bytes.split_at_checked(wanted) else {
                self.part.extend_from_slice(bytes);
                *bytes = &[];
                return None;
            };
            self.part.extend_from_slice(head);
            *bytes = rest;
        }
        let header = Header::read(&self.part)?;
        if header.payload() > PAYLOAD_MAX || begins && header.payload() > room {
            self.part = Vec::new();
            self.skip = header.payload();
            return Some(Piece::TooLong(header));
        }
        let wanted = HEADER_LEN + header.payload() - self.part.len();
        let (body, rest) = bytes.split_at(wanted.min(bytes.len()));
        // A frame that came in one piece is copied once, into its own size.
        if body.len() == wanted {
            self.part.reserve_exact(wanted);
        }
        self.part.extend_from_slice(body);
        *bytes = rest;
        (body.len() == wanted).then(|| {
            let frame = std::mem::take(&mut self.part).into_boxed_slice();
            Piece::Frame(header, frame)
        })
    }

    /// Bytes to the end of the frame that is under way, or that begins with
    /// `ahead`; `None` if its header is not whole.
    pub(crate) fn to_end(&self, ahead: &[u8]) -> Option<usize> {
        if self.skip > 0 {
            return Some(self.skip);
        }
        let mut head = [0; HEADER_LEN];
        let have = self.part.len().min(HEADER_LEN);
        let more = ahead.len().min(HEADER_LEN - have);
        head[..have].copy_from_slice(&self.part[..have]);
        head[have..have + more].copy_from_slice(&ahead[..more]);
        let header = Header::read(&head[..have + more])?;
        Some((HEADER_LEN + header.payload()).saturating_sub(self.part.len()))
    }

    /// The header and the memory of a frame of which a part has come.
    pub(crate) fn half(&self) -> Option<(Header, usize)> {
        Header::read(&self.part).map(|header| (header, self.part.capacity()))
    }

    /// The first byte of its body, if that has come.
    pub(crate) fn body(&self) -> Option<&u8> {
        self.part.get(HEADER_LEN)
    }

    /// Whether nothing is under way.
    pub(crate) fn between(&self) -> bool {
        self.part.is_empty() && self.skip == 0
    }

    /// Forgets the part that has come; the rest is skipped, and its end told.
    pub(crate) fn give_up(&mut self) {
        if let Some((header, _)) = self.half() {
            self.skip = HEADER_LEN + header.payload() - self.part.len();
            self.given_up = Some(header);
            self.part = Vec::new();
        }
    }

    /// Forgets what is not whole: the rest will never come.
    pub(crate) fn reset(&mut self) {
        *self = Cutter::default();
    }

    /// Bytes of memory held.
    pub(crate) fn held(&self) -> usize {
        self.part.capacity()
    }
}

fn field(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    let mut len = bytes.len();
    while len >= 0x80 {
        out.push(u8::try_from(len & 0x7f).unwrap_or(0) | 0x80);
        len >>= 7;
    }
    out.push(u8::try_from(len).unwrap_or(0));
    out.extend_from_slice(bytes);
}

/// A response frame with nothing but a status: ttrpc's `Response { status = 1 }`
/// around gRPC's `Status { code = 1, message = 2 }`. `code` is below 128.
pub(crate) fn refusal(stream: u32, code: u8, message: &str) -> Box<[u8]> {
    let mut status = vec![0x08, code & 0x7f];
    field(&mut status, 0x12, message.as_bytes());
    let mut frame = vec![0; HEADER_LEN];
    field(&mut frame, 0x0a, &status);
    let len = u32::try_from(frame.len() - HEADER_LEN).unwrap_or(0);
    frame[..4].copy_from_slice(&len.to_be_bytes());
    frame[4..8].copy_from_slice(&stream.to_be_bytes());
    frame[8] = RESPONSE;
    frame.into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_these_bytes() {
        assert_eq!(
            *refusal(0x0102_0304, CODE_RESOURCE_EXHAUSTED, "no"),
            [
                0, 0, 0, 8, 1, 2, 3, 4, 2, 0, // header
                0x0a, 6, 0x08, 8, 0x12, 2, b'n', b'o'
            ]
        );
        let long = refusal(1, CODE_INTERNAL, &"x".repeat(200));
        assert_eq!(
            long[HEADER_LEN..HEADER_LEN + 3],
            [0x0a, 0xcd, 0x01],
            "205 as varint"
        );
        assert_eq!(
            long[HEADER_LEN + 3..HEADER_LEN + 8],
            [0x08, 13, 0x12, 0xc8, 0x01]
        );
    }

    #[test]
    fn frames_come_whole_however_they_are_split() {
        let frame = refusal(7, CODE_INTERNAL, "text");
        for at in 0..frame.len() {
            let mut cutter = Cutter::default();
            let (mut head, mut tail) = frame.split_at(at);
            assert_eq!(cutter.next(&mut head), None, "{at}");
            assert!(head.is_empty());
            let Some(Piece::Frame(header, got)) = cutter.next(&mut tail) else {
                panic!("no frame, split at {at}");
            };
            assert_eq!(
                (header.stream, header.kind, got),
                (7, RESPONSE, frame.clone())
            );
            assert_eq!(cutter.held(), 0, "nothing is kept between frames");
        }
    }

    #[test]
    fn a_payload_too_long_is_told_once_and_skipped() {
        let len = PAYLOAD_MAX + 1;
        let mut bytes = u32::try_from(len).unwrap_or(0).to_be_bytes().to_vec();
        bytes.extend([0, 0, 0, 9, 1, 0]);
        bytes.resize(HEADER_LEN + len, 0xff);
        bytes.extend_from_slice(&refusal(3, 1, ""));
        let mut cutter = Cutter::default();
        let mut pieces = Vec::new();
        for mut chunk in bytes.chunks(4096) {
            while let Some(piece) = cutter.next(&mut chunk) {
                pieces.push(piece);
            }
            assert!(cutter.held() < 100);
        }
        assert!(matches!(
            pieces[0],
            Piece::TooLong(Header { stream: 9, .. })
        ));
        assert!(matches!(
            pieces[1],
            Piece::Frame(Header { stream: 3, .. }, _)
        ));
        assert_eq!(pieces.len(), 2);
    }
}
