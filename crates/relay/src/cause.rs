//! Why one shim took another's place, as the reaper knows it: a word of its own
//! language, kept in the bundle's `takeovers` and read back by the tool and by
//! the next shim, which may be other versions. Says nothing it did not see.

use std::fmt;

const TERM: i32 = 15;
const INT: i32 = 2;
const KILL: i32 = 9;

/// The signal in a raw wait status.
const fn signal_of(status: i32) -> i32 {
    status & 0x7f
}

/// Whether whoever ended so ended by its own fault, as far as that can be told:
/// SIGKILL, SIGTERM and SIGINT come from outside.
pub fn is_crash(status: i32) -> bool {
    ![TERM, INT, KILL].contains(&signal_of(status)) && status != 0
}

/// Why a shim was started in another's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// That one died, with this raw wait status.
    Died(i32),
    /// It took nothing of what it was sent, or never said that it served.
    Stuck,
    /// It was told to go (SIGTERM, SIGINT).
    Asked,
    /// It made room for another program.
    Upgrade,
    /// It was of another program and did not do; the one before it again.
    Refused(String),
    /// So many died by their own fault in a row that the next is started after a pause; of the
    /// last of them, how.
    Looping(u32, String),
    /// Its reaper died, and it became the reaper.
    Heir,
    /// A word of another version.
    Other(String),
}

impl Cause {
    /// Of a shim that ended with this raw wait status.
    pub(crate) fn of(status: i32) -> Cause {
        match signal_of(status) {
            TERM | INT => Cause::Asked,
            _ => Cause::Died(status),
        }
    }

    /// Reads what [`Cause`] displays; what is not known is kept as it is.
    pub fn parse(text: &str) -> Cause {
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        match (word, rest.parse()) {
            ("died", Ok(status)) => Cause::Died(status),
            ("stuck", _) => Cause::Stuck,
            ("asked", _) => Cause::Asked,
            ("upgrade", _) => Cause::Upgrade,
            ("heir", _) => Cause::Heir,
            ("refused", _) => Cause::Refused(rest.to_owned()),
            ("looping", _) => {
                let told = rest.split_once(' ').unwrap_or((rest, ""));
                match told.0.parse() {
                    Ok(times) => Cause::Looping(times, told.1.to_owned()),
                    Err(_) => Cause::Other(text.to_owned()),
                }
            }
            (_, _) => Cause::Other(text.to_owned()),
        }
    }
}

/// As it is kept.
impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Died(status) => write!(f, "died {status}"),
            Cause::Stuck => f.write_str("stuck"),
            Cause::Asked => f.write_str("asked"),
            Cause::Upgrade => f.write_str("upgrade"),
            Cause::Heir => f.write_str("heir"),
            Cause::Refused(words) => write!(f, "refused {words}"),
            Cause::Looping(times, words) => write!(f, "looping {times} {words}"),
            Cause::Other(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_comes_back() {
        for (cause, text) in [
            (Cause::Died(9), "died 9"),
            (Cause::Stuck, "stuck"),
            (Cause::Asked, "asked"),
            (Cause::Upgrade, "upgrade"),
            (
                Cause::Refused("exit status 1: no".to_owned()),
                "refused exit status 1: no",
            ),
            (
                Cause::Looping(5, "killed by signal 11".to_owned()),
                "looping 5 killed by signal 11",
            ),
            (
                Cause::Other("looping for ever".to_owned()),
                "looping for ever",
            ),
            (Cause::Other("eaten by moths".to_owned()), "eaten by moths"),
            (Cause::Other("died of age".to_owned()), "died of age"),
        ] {
            assert_eq!(cause.to_string(), text);
            assert_eq!(Cause::parse(text), cause);
        }
    }

    #[test]
    fn who_is_killed_did_not_crash() {
        for (status, crash) in [(9, false), (15, false), (2, false), (0, false)] {
            assert_eq!(is_crash(status), crash, "{status}");
        }
        for status in [11, 6, 0x86, 1 << 8, 127 << 8] {
            assert!(is_crash(status), "{status}");
        }
        assert_eq!(Cause::of(15), Cause::Asked);
        assert_eq!(Cause::of(6), Cause::Died(6));
    }
}
