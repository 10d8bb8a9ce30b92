//! Waits of one connection that ask the same.
//!
//! ttrpc has no cancel: whoever gives up waiting leaves its Wait behind, and a
//! client that watches a container for weeks leaves thousands. They are one
//! thing to remember: the first goes on to whoever answers, and of those that
//! ask the same only the stream is kept, four bytes each, until its answer
//! comes, which is theirs too. Knows nothing of bytes on their way.

use std::collections::BTreeMap;

use protobuf::Message;
use ttrpc::Request;

/// Streams that may be kept; the next Wait goes on by itself.
const KEPT_MAX: usize = 1 << 20;

/// The method, as every encoder writes it: field 2 of a request, after the service.
const WAIT: &[u8] = b"\x12\x04Wait";

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    /// By what is asked: the stream of the Wait that went on.
    first: BTreeMap<Box<[u8]>, u32>,
    /// By that stream.
    groups: BTreeMap<u32, Group>,
    kept: usize,
}

#[derive(Debug)]
struct Group {
    asked: Box<[u8]>,
    others: Vec<u32>,
}

/// Whether this beginning of a request's body is that of a Wait.
pub(crate) fn begins_one(body: &[u8]) -> bool {
    let service = body.get(1).map_or(0, |length| usize::from(*length));
    let method = body.get(2 + service..);
    method.is_some_and(|method| method.starts_with(WAIT))
}

/// What a Wait with this body asks; none if it is no Wait, or has a time limit:
/// then its answer is its own.
fn asked(body: &[u8]) -> Option<Vec<u8>> {
    if !begins_one(body) {
        return None;
    }
    let request = Request::parse_from_bytes(body).ok()?;
    (request.method == "Wait" && request.timeout_nano == 0).then_some(request.payload)
}

impl Waits {
    /// Takes up the request with this body on this stream; whether it waits for
    /// an answer that is coming anyway, and need not go on.
    pub(crate) fn joins(&mut self, stream: u32, body: &[u8]) -> bool {
        // Streams of a client are odd; another is refused by the crate.
        if stream.is_multiple_of(2) {
            return false;
        }
        let Some(asked) = asked(body) else {
            return false;
        };
        let first = self.first.get(asked.as_slice());
        if let Some(group) = first.and_then(|first| self.groups.get_mut(first)) {
            if self.kept >= KEPT_MAX {
                return false;
            }
            self.kept += 1;
            group.others.push(stream);
            return true;
        }
        // A stream that is in use already is the client's fault, and no first.
        if !self.groups.contains_key(&stream) {
            let asked = asked.into_boxed_slice();
            self.first.insert(asked.clone(), stream);
            let others = Vec::new();
            self.groups.insert(stream, Group { asked, others });
        }
        false
    }

    /// Whether an answer may be that of several.
    pub(crate) fn any(&self) -> bool {
        !self.groups.is_empty()
    }

    /// The request on this stream is answered: the streams that are answered
    /// the same.
    pub(crate) fn answered(&mut self, stream: u32) -> Vec<u32> {
        let Some(Group { asked, others }) = self.groups.remove(&stream) else {
            return Vec::new();
        };
        self.first.remove(&asked);
        self.kept -= others.len();
        others
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn wait(payload: &[u8], timeout_nano: i64) -> Vec<u8> {
        let request = Request {
            service: "containerd.task.v2.Task".to_owned(),
            method: "Wait".to_owned(),
            payload: payload.to_vec(),
            timeout_nano,
            ..Request::default()
        };
        request.write_to_bytes().unwrap()
    }

    #[test]
    fn those_that_ask_the_same_are_answered_with_the_first() {
        let mut waits = Waits::default();
        assert!(!waits.joins(1, &wait(b"\x0a\x01c", 0)));
        assert!(waits.joins(3, &wait(b"\x0a\x01c", 0)));
        assert!(!waits.joins(5, &wait(b"\x0a\x01c\x12\x01e", 0)));
        assert!(waits.joins(7, &wait(b"\x0a\x01c", 0)));
        assert!(waits.answered(5).is_empty());
        assert_eq!(waits.answered(1), [3, 7]);
        assert!(waits.answered(1).is_empty());
        assert!(!waits.any());
        // What is asked after the answer is asked anew.
        assert!(!waits.joins(9, &wait(b"\x0a\x01c", 0)));
        assert!(waits.answered(9).is_empty());
    }

    #[test]
    fn one_with_a_time_limit_or_on_a_wrong_stream_is_alone() {
        let mut waits = Waits::default();
        assert!(!waits.joins(1, &wait(b"\x0a\x01c", 0)));
        assert!(!waits.joins(3, &wait(b"\x0a\x01c", 5)));
        assert!(!waits.joins(4, &wait(b"\x0a\x01c", 0)));
        assert!(!waits.joins(5, b"\x0a\x01x\x12\x05State"));
        assert!(!waits.joins(7, b"\x0a\x01x\x12\x04Wait\xff"));
        assert!(!waits.joins(1, &wait(b"\x0a\x01d", 0)));
        assert!(waits.answered(1).is_empty());
        assert!(!waits.any());
    }
}
