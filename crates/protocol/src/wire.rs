//! A reader of protobuf fields, for the few messages that are not generated.
//!
//! Owns nothing but the syntax: it borrows the bytes, allocates nothing and
//! uses no reflection. A message it reads may have any unknown fields.

use crate::Error;

/// One field's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// A number or a bool.
    Number(u64),
    /// A string, bytes or a message.
    Bytes(&'a [u8]),
    /// Fixed width; no message read here has one.
    Fixed,
}

/// The fields of one message in the order they were written.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    name: &'static str,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Reads `bytes` as a message called `name` in errors.
    pub(crate) fn new(name: &'static str, bytes: &'a [u8]) -> Self {
        Self { name, rest: bytes }
    }

    /// The next field's number and value, `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<(u32, Value<'a>)>, Error> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).unwrap_or(0);
        if number == 0 {
            return Err(self.broken("a field has no valid number"));
        }
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return Err(self.broken("a field has an unknown wire type")),
        };
        Ok(Some((number, value)))
    }

    /// A value that must be a bool.
    pub(crate) fn switch(&self, value: Value<'a>) -> Result<bool, Error> {
        match value {
            Value::Number(number) => Ok(number != 0),
            Value::Bytes(_) | Value::Fixed => Err(self.broken("a switch is not a number")),
        }
    }

    /// A value that must be a `uint32`; the upper half is cut as protobuf does.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the rule of protobuf for a varint too long for its field"
    )]
    pub(crate) fn number(&self, value: Value<'a>) -> Result<u32, Error> {
        match value {
            Value::Number(number) => Ok(number as u32),
            Value::Bytes(_) | Value::Fixed => Err(self.broken("a number is not a number")),
        }
    }

    /// A value that must be a string.
    pub(crate) fn text(&self, value: Value<'a>) -> Result<String, Error> {
        std::str::from_utf8(self.bytes(value)?)
            .map(str::to_owned)
            .map_err(|_| self.broken("a string is not UTF-8"))
    }

    fn bytes(&self, value: Value<'a>) -> Result<&'a [u8], Error> {
        match value {
            Value::Bytes(bytes) => Ok(bytes),
            Value::Number(_) | Value::Fixed => Err(self.broken("a string is a number")),
        }
    }

    fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0_u64;
        for (at, byte) in self.rest.iter().take(10).enumerate() {
            // The tenth byte has one bit left to give; the rest is cut.
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[at + 1..];
                return Ok(value);
            }
        }
        Err(self.broken("a number has no end"))
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], Error> {
        let split = usize::try_from(length)
            .ok()
            .and_then(|length| self.rest.split_at_checked(length));
        let Some((taken, rest)) = split else {
            return Err(self.broken("a field is longer than the message"));
        };
        self.rest = rest;
        Ok(taken)
    }

    fn broken(&self, says: &'static str) -> Error {
        Error::OptionsDecode {
            name: self.name,
            says,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_protobuf_writes() {
        let bytes =
            b"\x08\x96\x01\x12\x07testing\x1d\x01\x02\x03\x04\x21\x01\x02\x03\x04\x05\x06\x07\x08";
        let mut fields = Fields::new("x", bytes);
        assert_eq!(fields.next().unwrap(), Some((1, Value::Number(150))));
        assert_eq!(fields.next().unwrap(), Some((2, Value::Bytes(b"testing"))));
        assert_eq!(fields.next().unwrap(), Some((3, Value::Fixed)));
        assert_eq!(fields.next().unwrap(), Some((4, Value::Fixed)));
        assert_eq!(fields.next().unwrap(), None);
    }

    #[test]
    fn broken_bytes_are_named() {
        for bytes in [
            &b"\x08"[..],
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x12\x05ab",
            b"\x00\x01",
            b"\x0b",
            b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        ] {
            let mut fields = Fields::new("x", bytes);
            assert!(
                matches!(fields.next(), Err(Error::OptionsDecode { name: "x", .. })),
                "{bytes:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn ends_on_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut fields = Fields::new("x", &bytes);
            let mut seen = 0;
            while let Ok(Some(_)) = fields.next() {
                seen += 1;
                prop_assert!(seen <= bytes.len());
            }
        }
    }
}
