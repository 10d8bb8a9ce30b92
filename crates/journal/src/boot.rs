//! Which boot of the host a file belongs to.
//!
//! Owns nothing but 36 characters. A pid or a start time read back from a file
//! means something only in the boot it was written in, so every file carries it.

use std::fmt;

/// Length of `/proc/sys/kernel/random/boot_id`, without its newline.
pub const BOOT_ID_BYTES: usize = 36;

/// `/proc/sys/kernel/random/boot_id`: lower-case hex digits and dashes, new at each boot.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BootId([u8; BOOT_ID_BYTES]);

/// The text was not 36 hex digits and dashes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a boot id is 36 hex digits and dashes, these are {len} bytes of something else")]
pub struct BootIdError {
    /// How many bytes were given.
    pub len: usize,
}

impl BootId {
    /// Takes the text as the kernel gives it; one newline at its end is allowed.
    pub fn parse(text: &str) -> Result<Self, BootIdError> {
        let bare = text.strip_suffix('\n').unwrap_or(text);
        Self::from_bytes(bare.as_bytes()).ok_or(BootIdError { len: text.len() })
    }

    /// Takes exactly the 36 bytes a file holds.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; BOOT_ID_BYTES] = bytes.try_into().ok()?;
        bytes
            .iter()
            .all(|b| b.is_ascii_hexdigit() || *b == b'-')
            .then_some(Self(bytes))
    }

    /// The 36 bytes.
    pub fn as_bytes(&self) -> &[u8; BOOT_ID_BYTES] {
        &self.0
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{}", char::from(byte))?;
        }
        Ok(())
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BootId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REAL: &str = "0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d";

    #[test]
    fn the_kernels_text_is_taken_with_and_without_its_newline() {
        let bare = BootId::parse(REAL).unwrap();
        assert_eq!(BootId::parse(&format!("{REAL}\n")).unwrap(), bare);
        assert_eq!(bare.to_string(), REAL);
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in [
            "",
            &REAL[1..],
            &format!("{REAL}0"),
            &REAL.replace('a', "z"),
            &format!("{REAL}\n\n"),
        ] {
            assert!(BootId::parse(bad).is_err(), "{bad:?}");
        }
    }
}
