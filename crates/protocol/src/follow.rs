//! Where a stream of ttrpc frames stands: between two of them, or within one.
//! Sees the bytes as they pass and keeps ten of them at most.

use ttrpc::proto::MESSAGE_HEADER_LENGTH;

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Bytes of the body.
    pub(crate) length: u32,
    /// The request it belongs to.
    pub(crate) stream: u32,
    /// `MESSAGE_TYPE_REQUEST`, …
    pub(crate) kind: u8,
    pub(crate) flags: u8,
}

impl Header {
    /// As it stands before a body.
    pub(crate) fn bytes(self) -> [u8; MESSAGE_HEADER_LENGTH] {
        let mut bytes = [0; MESSAGE_HEADER_LENGTH];
        bytes[..4].copy_from_slice(&self.length.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.stream.to_be_bytes());
        bytes[8..].copy_from_slice(&[self.kind, self.flags]);
        bytes
    }

    /// The header at the start of `bytes`, if all of it is there.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, flags] =
            *bytes.first_chunk::<MESSAGE_HEADER_LENGTH>()?;
        Some(Self {
            length: u32::from_be_bytes([l0, l1, l2, l3]),
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            kind,
            flags,
        })
    }
}

/// See the module.
#[derive(Debug, Default, Clone)]
pub(crate) struct Follow {
    seen: [u8; MESSAGE_HEADER_LENGTH],
    at: usize,
    /// Of the body, when the header is whole.
    left: usize,
}

impl Follow {
    /// Whether no frame is under way.
    pub(crate) fn between(&self) -> bool {
        self.at == 0
    }

    /// Takes bytes up to the end of the frame under way: how many, and the
    /// frame's header if that was its end.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> (usize, Option<Header>) {
        let head = bytes.len().min(MESSAGE_HEADER_LENGTH - self.at);
        self.seen[self.at..self.at + head].copy_from_slice(&bytes[..head]);
        self.at += head;
        let Some(header) = Header::read(&self.seen[..self.at]) else {
            return (head, None);
        };
        if head > 0 {
            self.left = usize::try_from(header.length).unwrap_or(usize::MAX);
        }
        let body = self.left.min(bytes.len() - head);
        self.left -= body;
        let ended = self.left == 0;
        if ended {
            self.at = 0;
        }
        (head + body, ended.then_some(header))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(stream: u8, kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u8::try_from(body.len()).unwrap_or(0);
        let mut frame = vec![0, 0, 0, length, 0, 0, 0, stream, kind, 0];
        frame.extend_from_slice(body);
        frame
    }

    #[test]
    fn frames_end_where_they_end_however_they_are_cut() {
        let bytes = [frame(1, 1, b"abc"), frame(3, 2, b""), frame(5, 1, b"x")].concat();
        for size in 1..=bytes.len() {
            let mut follow = Follow::default();
            let mut ends = Vec::new();
            let mut at = 0;
            for piece in bytes.chunks(size) {
                let mut rest = piece;
                while !rest.is_empty() {
                    let (count, end) = follow.take(rest);
                    ends.extend(end.map(|header| (header.stream, header.kind)));
                    rest = &rest[count..];
                }
                at += piece.len();
                assert_eq!(follow.between(), [13, 23, 34].contains(&at), "{size} {at}");
            }
            assert_eq!(ends, [(1, 1), (3, 2), (5, 1)], "{size}");
        }
        let (count, end) = Follow::default().take(&bytes);
        assert_eq!((count, end.map(|header| header.stream)), (13, Some(1)));
    }
}
