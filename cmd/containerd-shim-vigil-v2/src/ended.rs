//! What `delete` has answered, where the journal could not keep it: it is
//! missing, corrupt, another's or another version's, or does not name init. A second
//! `delete` of the same life then says the same. One small file in the bundle, which says
//! whose it is.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result};
use vigil_journal::{Owner, names};
use vigil_model::Exit;
use vigil_sys::fd::{NO_LINK_NO_WAIT, create_private};

/// Its name in the bundle.
const NAME: &str = "ended";
/// Its first line.
const TITLE: &str = "vigil-ended 1";
/// Largest one read, bytes.
const LEN_MAX: u64 = 4096;

/// Init's pid and end, as told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Its pid; 0 if nobody knows.
    pub pid: u32,
    /// How it ended.
    pub exit: Exit,
}

/// Which life of the bundle it is about: a new one begins with a new journal.
fn life(bundle: &Path) -> Option<u64> {
    let journal = fs::symlink_metadata(bundle.join(names::JOURNAL)).ok()?;
    Some(journal.ino())
}

/// What was told before; anything but a whole and fitting one of this owner is none.
pub fn read(bundle: &Path, owner: &Owner) -> Option<Ended> {
    let path = bundle.join(NAME);
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(NO_LINK_NO_WAIT)
        .open(&path);
    let file = opened.ok()?;
    let meta = file.metadata().ok()?;
    if !meta.is_file() || meta.len() > LEN_MAX {
        return None;
    }
    let mut text = String::new();
    file.take(LEN_MAX).read_to_string(&mut text).ok()?;
    // Of the version before there was the third line alone.
    let value = match text.strip_prefix(TITLE) {
        None => text.as_str(),
        Some(rest) => {
            let (said, value) = rest.strip_prefix('\n')?.split_once('\n')?;
            if let Err(error) = owner.claims(&path, Some(&whose(said)?)) {
                eprintln!("warning: {error}");
                return None;
            }
            value
        }
    };
    let (told_of, pid, exit): (Option<u64>, u32, Exit) = serde_json::from_str(value).ok()?;
    (told_of == life(bundle)).then_some(Ended { pid, exit })
}

/// A `delete` may know no salt, and then writes none.
fn whose(line: &str) -> Option<Owner> {
    let unsalted = line.strip_suffix(" 0000000000000000");
    match unsalted {
        None => Owner::parse_line(line),
        Some(names) => {
            let (namespace, id) = names.strip_prefix("owner ")?.split_once('/')?;
            Some(Owner::of(namespace, id))
        }
    }
}

/// Keeps what is about to be told, whole or not at all.
pub fn write(bundle: &Path, owner: &Owner, ended: &Ended) -> Result<()> {
    let value = serde_json::to_string(&(life(bundle), ended.pid, ended.exit))?;
    let text = format!("{TITLE}\n{}\n{value}", owner.line());
    let path = bundle.join(NAME);
    let side = bundle.join(format!("{NAME}.{}", std::process::id()));
    let written = create_private(&side)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&side, &path));
    if written.is_err() {
        let _ = fs::remove_file(&side);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use vigil_model::{Moment, Status};

    #[test]
    fn what_was_told_is_read_again_by_the_same_life_only() {
        let dir = std::env::temp_dir().join(format!("vigil-ended-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let ended = Ended {
            pid: 7,
            exit: Exit {
                status: Status::Exited(3),
                at: Moment { secs: 5, nanos: 6 },
            },
        };
        let own = Owner::of("n", "c");
        let outcome = std::panic::catch_unwind(|| {
            assert_eq!(read(&dir, &own), None);
            write(&dir, &own, &ended).unwrap();
            assert_eq!(read(&dir, &own), Some(ended));
            assert_eq!(read(&dir, &Owner::of("n", "d")), None, "another's");
            fs::write(dir.join(names::JOURNAL), "new").unwrap();
            assert_eq!(read(&dir, &own), None);
            write(&dir, &own, &ended).unwrap();
            assert_eq!(read(&dir, &own), Some(ended));
            let salted = Owner::with_salt("n", "c", 7);
            write(&dir, &salted, &ended).unwrap();
            assert_eq!(read(&dir, &own), Some(ended));
            assert_eq!(read(&dir, &Owner::with_salt("n", "c", 8)), None);
            fs::write(dir.join(NAME), "[null, 7").unwrap();
            assert_eq!(read(&dir, &own), None);
            let before = serde_json::to_vec(&(life(&dir), 7, ended.exit)).unwrap();
            fs::write(dir.join(NAME), before).unwrap();
            assert_eq!(read(&dir, &own), Some(ended), "of the version before");
            assert_eq!(fs::read_dir(&dir).unwrap().count(), 2, "a side file");
        });
        fs::remove_dir_all(&dir).unwrap();
        outcome.unwrap();
    }
}
