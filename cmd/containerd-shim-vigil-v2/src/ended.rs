//! What `delete` has answered, where the journal could not keep it: it is
//! missing, corrupt, another version's, or does not name init. A second
//! `delete` of the same life then says the same. One small file in the bundle.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use vigil_journal::names;
use vigil_model::Exit;

/// Its name in the bundle.
const NAME: &str = "ended";
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

/// What was told before; anything but a whole and fitting one is none.
pub fn read(bundle: &Path) -> Option<Ended> {
    let path = bundle.join(NAME);
    let meta = fs::symlink_metadata(&path).ok()?;
    if !meta.is_file() || meta.len() > LEN_MAX {
        return None;
    }
    let (told_of, pid, exit): (Option<u64>, u32, Exit) =
        serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
    (told_of == life(bundle)).then_some(Ended { pid, exit })
}

/// Keeps what is about to be told, whole or not at all.
pub fn write(bundle: &Path, ended: &Ended) -> Result<()> {
    let text = serde_json::to_vec(&(life(bundle), ended.pid, ended.exit))?;
    let path = bundle.join(NAME);
    let side = bundle.join(format!("{NAME}.{}", std::process::id()));
    let written = fs::write(&side, text).and_then(|()| fs::rename(&side, &path));
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
        let outcome = std::panic::catch_unwind(|| {
            assert_eq!(read(&dir), None);
            write(&dir, &ended).unwrap();
            assert_eq!(read(&dir), Some(ended));
            fs::write(dir.join(names::JOURNAL), "new").unwrap();
            assert_eq!(read(&dir), None);
            write(&dir, &ended).unwrap();
            assert_eq!(read(&dir), Some(ended));
            fs::write(dir.join(NAME), "[null, 7").unwrap();
            assert_eq!(read(&dir), None);
            assert_eq!(fs::read_dir(&dir).unwrap().count(), 2, "a side file");
        });
        fs::remove_dir_all(&dir).unwrap();
        outcome.unwrap();
    }
}
