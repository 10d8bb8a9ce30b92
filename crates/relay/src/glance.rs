//! What the relay reads of a request's payload, and no more: how long its
//! client waits for the answer, and the name of the method, for the one kind of
//! request that is never answered in a shim's stead. Must never fail: what cannot be read is nobody's in particular.

use std::time::Duration;

use crate::frame::HEADER_LEN;

/// What a request says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Glance<'a> {
    method: &'a [u8],
    /// How long its client waits; `None`: as long as it takes.
    pub(crate) timeout: Option<Duration>,
}

impl Glance<'_> {
    /// It asks to be told of an end, however late.
    pub(crate) fn waits(&self) -> bool {
        self.method == b"Wait"
    }

    /// Without it nobody could look at a container, or get rid of it.
    pub(crate) fn is_urgent(&self) -> bool {
        let urgent: [&[u8]; 4] = [b"State", b"Kill", b"Delete", b"Shutdown"];
        urgent.contains(&self.method)
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Looks at a whole frame. ttrpc's `Request`: `service` = 1, `method` = 2,
/// `payload` = 3, `timeout_nano` = 4, `metadata` = 5.
pub(crate) fn glance(frame: &[u8]) -> Glance<'_> {
    let mut seen = Glance::default();
    let mut rest = frame.get(HEADER_LEN..).unwrap_or_default();
    while let Some(tag) = varint(&mut rest) {
        let field = match tag & 7 {
            0 => match varint(&mut rest) {
                Some(value) if tag >> 3 == 4 && value > 0 && value <= i64::MAX.unsigned_abs() => {
                    seen.timeout = Some(Duration::from_nanos(value));
                    continue;
                }
                Some(_) => continue,
                None => break,
            },
            1 => rest.split_at_checked(8),
            2 => varint(&mut rest)
                .and_then(|len| usize::try_from(len).ok())
                .and_then(|len| rest.split_at_checked(len)),
            5 => rest.split_at_checked(4),
            _ => None,
        };
        let Some((value, after)) = field else { break };
        if tag == (2 << 3 | 2) {
            seen.method = value;
        }
        rest = after;
    }
    seen
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The payload of a request of that method, with that time-out.
    pub(crate) fn payload(method: &str, timeout: Option<Duration>) -> Vec<u8> {
        let mut out = vec![0x0a, 1, b's', 0x12];
        out.push(u8::try_from(method.len()).unwrap_or(0));
        out.extend(method.as_bytes());
        out.extend([0x1a, 2, 0x20, 1]);
        if let Some(timeout) = timeout {
            out.push(0x20);
            let mut nanos = timeout.as_nanos();
            while nanos >= 0x80 {
                out.push(u8::try_from(nanos & 0x7f).unwrap_or(0) | 0x80);
                nanos >>= 7;
            }
            out.push(u8::try_from(nanos).unwrap_or(0));
        }
        out
    }

    fn seen(payload: &[u8]) -> (String, Option<Duration>) {
        let frame = [&[0; HEADER_LEN], payload].concat();
        let seen = glance(&frame);
        let method = String::from_utf8_lossy(seen.method).into_owned();
        (method, seen.timeout)
    }

    #[test]
    fn method_and_time_out_are_read_and_nothing_else_is_taken_for_them() {
        let ten = Some(Duration::from_secs(10));
        assert_eq!(seen(&payload("Kill", ten)), ("Kill".to_owned(), ten));
        assert_eq!(seen(&payload("Wait", None)), ("Wait".to_owned(), None));
        assert_eq!(seen(b""), (String::new(), None));
        let whole = payload("State", ten);
        for at in 0..whole.len() {
            let (_, timeout) = seen(&whole[..at]);
            assert_eq!(timeout, None, "cut at {at}");
        }
        // A length beyond the end, a time-out below nought, a group.
        for bytes in [
            &[0x12, 200, 1][..],
            &[0x20, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1],
            &[0x23, 1, 2],
        ] {
            assert_eq!(seen(bytes), (String::new(), None), "{bytes:?}");
        }
    }
}
