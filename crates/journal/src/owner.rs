//! Whose a file is.
//!
//! Owns the answer that every file of Vigil's gives: a namespace, an id, and the salt of one
//! life of that container. A file that was copied from elsewhere says so; a reader that
//! expects another owner refuses it and names both. It must never decide what to do then.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};

use crate::crc32c::{crc32c, crc32c_append};
use crate::pair::Pair;
use crate::{exits, names};

/// Longest namespace, and longest id: containerd's bound for both.
pub const NAME_BYTES_MAX: usize = 76;

/// One life of one container.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Owner {
    /// containerd namespace, at most [`NAME_BYTES_MAX`] bytes.
    pub namespace: String,
    /// The container's id, as long.
    pub id: String,
    /// Drawn by `start`, the same in every file of that life. 0: not known, which is for who
    /// expects; nobody writes it.
    pub salt: u64,
}

/// The file is another's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: this file belongs to {found}, and {expected} was expected; it is not used")]
pub struct NotOurs {
    /// The file.
    pub path: PathBuf,
    /// Whose it is.
    pub found: Box<Owner>,
    /// Whose it was to be.
    pub expected: Box<Owner>,
}

/// A salt nobody else has: drawn at random, never 0.
pub fn draw_salt() -> u64 {
    // The standard library's keys for its maps come from the kernel's random numbers.
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u64(u64::from(std::process::id()));
    hasher.finish().max(1)
}

impl Owner {
    /// Of this container, whichever of its lives.
    pub fn of(namespace: &str, id: &str) -> Self {
        Self::with_salt(namespace, id, 0)
    }

    /// Of this life of this container.
    pub fn with_salt(namespace: &str, id: &str, salt: u64) -> Self {
        let cut = |name: &str| name[..name.floor_char_boundary(NAME_BYTES_MAX)].to_owned();
        Self {
            namespace: cut(namespace),
            id: cut(id),
            salt,
        }
    }

    /// Whether `found` is the same container, and the same life as far as both are known.
    pub fn is(&self, found: &Owner) -> bool {
        let same_life = self.salt == found.salt || self.salt == 0 || found.salt == 0;
        same_life && (&self.namespace, &self.id) == (&found.namespace, &found.id)
    }

    /// Of this container, in the life that this bundle's pair and exit records both tell of;
    /// of whichever, if they do not.
    pub fn of_bundle(bundle: &Path, namespace: &str, id: &str) -> Self {
        let own = Self::of(namespace, id);
        let pair = Pair::read_any(&bundle.join(names::PAIR)).ok();
        let pair = pair.and_then(|(_, owner)| owner);
        let exits = exits::read(&bundle.join(names::EXITS), &own).ok();
        let exits = exits.and_then(|snapshot| snapshot.exits().ok()?.owner());
        match (pair, exits) {
            (Some(pair), Some(exits)) if pair == exits && own.is(&pair) => pair,
            _ => own,
        }
    }

    /// An error unless `found` is this owner. Files of version 1 do not say (`None`), and pass.
    pub fn claims(&self, path: &Path, found: Option<&Owner>) -> Result<(), NotOurs> {
        match found {
            Some(found) if !self.is(found) => Err(NotOurs {
                path: path.to_owned(),
                found: Box::new(found.clone()),
                expected: Box::new(self.clone()),
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// Of all of it, for the seed of a checksum.
    pub(crate) fn sum(&self) -> u32 {
        let sum = crc32c(&self.salt.to_le_bytes());
        let sum = crc32c_append(sum, self.namespace.as_bytes());
        crc32c_append(crc32c_append(sum, b"/"), self.id.as_bytes())
    }

    /// A line of text: `owner <namespace>/<id> <salt>`, without its newline.
    pub fn line(&self) -> String {
        format!("owner {self} {:016x}", self.salt)
    }

    /// Takes exactly what [`Owner::line`] gives.
    pub fn parse_line(line: &str) -> Option<Self> {
        let (names, salt) = line.strip_prefix("owner ")?.rsplit_once(' ')?;
        let (namespace, id) = names.split_once('/')?;
        let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if salt.len() != 16 || !salt.bytes().all(digit) {
            return None;
        }
        let salt = u64::from_str_radix(salt, 16).ok()?;
        let owner = Self::checked(namespace.as_bytes(), id.as_bytes(), salt)?;
        (owner.line() == line).then_some(owner)
    }

    /// From the bytes of a file: names of printable ASCII without space or slash.
    pub(crate) fn checked(namespace: &[u8], id: &[u8], salt: u64) -> Option<Self> {
        let name = |bytes: &[u8]| {
            let plain = bytes.iter().all(|b| b.is_ascii_graphic() && *b != b'/');
            let fits = (1..=NAME_BYTES_MAX).contains(&bytes.len());
            (plain && fits).then(|| String::from_utf8_lossy(bytes).into_owned())
        };
        (salt != 0).then_some(Self {
            namespace: name(namespace)?,
            id: name(id)?,
            salt,
        })
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.id)
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_back_and_nothing_else_does() {
        let owner = Owner::with_salt("k8s.io", "a-b_c.d", 0xfeed);
        assert_eq!(Owner::parse_line(&owner.line()), Some(owner.clone()));
        for bad in [
            "owner k8s.io/a 0000000000000000",
            "owner k8s.io/a 1",
            "owner k8s.io/a  000000000000feed",
            "owner /a 000000000000feed",
            "owner a/b/c 000000000000feed",
            "owner a/b c 000000000000feed",
            "owner k8s.io/a 000000000000FEED",
            "k8s.io/a 000000000000feed",
        ] {
            assert_eq!(Owner::parse_line(bad), None, "{bad}");
        }
    }

    #[test]
    fn another_container_and_another_life_are_others() {
        let own = Owner::with_salt("n", "c", 7);
        assert!(own.is(&own) && Owner::of("n", "c").is(&own));
        for other in [
            Owner::with_salt("n", "c", 8),
            Owner::with_salt("n", "d", 7),
            Owner::with_salt("m", "c", 7),
        ] {
            assert!(!own.is(&other), "{other:?}");
            assert!(own.claims(std::path::Path::new("f"), Some(&other)).is_err());
        }
        assert!(own.claims(std::path::Path::new("f"), None).is_ok());
    }

    #[test]
    fn salts_differ() {
        let salts: std::collections::BTreeSet<u64> = (0..100).map(|_| draw_salt()).collect();
        assert_eq!(salts.len(), 100);
    }
}
