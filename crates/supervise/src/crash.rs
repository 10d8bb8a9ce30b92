//! What is kept of the crash of a shim: its last words, written by itself while
//! it dies, and the note that whoever comes after it writes: the next shim, or
//! `delete`. Best effort: without room there is less of both, and nothing fails.

use std::fs::{self, OpenOptions};
use std::io::{Cursor, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use vigil_host::enact::{CrashNote, RUN};
use vigil_journal::takeovers::{Takeover, Takeovers};
use vigil_journal::{Owner, Replayed, names, panic};
use vigil_model::{KIND_RECORD, Moment, Record};
use vigil_relay::cause::Cause;
use vigil_sys::wait;

use crate::owner::Place;

/// Longest last words, bytes.
const WORDS_MAX: usize = 1024;
/// Records of the journal that a note tells of.
const RECORDS: usize = 12;

/// Has a panic leave its message at `path`, below whose it is, before the process aborts. It
/// may be that nothing can be allocated then, so nothing is but what std does.
pub fn keep_last_words(path: PathBuf, owner: &Owner) {
    let head = panic::head(owner);
    std::panic::set_hook(Box::new(move |panic| {
        let mut text = Cursor::new([0; WORDS_MAX]);
        // What does not fit is cut off.
        let _ = write!(text, "{panic}");
        let length = usize::try_from(text.position()).unwrap_or(WORDS_MAX);
        // Whatever has the name: a file of our own is made, and nothing is followed.
        let _ = fs::remove_file(&path);
        let file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&path);
        let _ = file.and_then(|mut file| {
            file.write_all(head.as_bytes())?;
            file.write_all(&text.get_ref()[..length])
        });
    }));
}

/// Takes the last words that lie there, if any, and if they are this container's.
fn last_words(bundle: &Path, owner: &Owner) -> Option<String> {
    let path = bundle.join(names::PANIC);
    let words = panic::read(&path, owner);
    match words {
        Ok(words) => {
            let _ = fs::remove_file(&path);
            words
        }
        Err(error) => {
            log::warn!(
                "last words that are not used: {}",
                vigil_host::chain(&error)
            );
            None
        }
    }
}

/// The last records of a journal, each in a line.
pub fn gist(replayed: &Replayed) -> Vec<String> {
    let from = replayed.records.len().saturating_sub(RECORDS);
    let last = replayed.records[from..].iter();
    last.map(|record| {
        let gist = match record.kind {
            KIND_RECORD => Record::decode(&record.payload).map(|record| record.gist()),
            _ => Ok("snapshot".to_owned()),
        };
        let gist = gist.unwrap_or_else(|_| "not to be read".to_owned());
        format!("{}: {gist}", record.seq)
    })
    .collect()
}

/// Leaves a note of a shim that ended as `how` says.
pub fn tell(bundle: &Path, owner: &Owner, at: Moment, how: String, gist: &[String]) {
    let note = CrashNote {
        format: vigil_host::enact::FORMAT,
        id: owner.id.clone(),
        namespace: owner.namespace.clone(),
        salt: (owner.salt != 0).then(|| format!("{:016x}", owner.salt)),
        at,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        how,
        words: last_words(bundle, owner),
        records: gist.to_vec(),
    };
    if let Err(error) = note.append(Path::new(RUN)) {
        log::warn!("no note of the crash: {}", vigil_host::chain(&error));
    }
}

/// Leaves a note of the shim before this one, if it crashed, was stuck, or was
/// of a program that did not do; the reaper knows.
pub(crate) fn tell_of_the_one_before(place: &Place, salt: u64, gist: &[String]) {
    let owner = Owner::with_salt(place.namespace.as_str(), place.id.as_str(), salt);
    let told = Takeovers::read(&place.bundle.join(names::TAKEOVERS), &owner);
    let Ok(Some(last)) = told.map(|told| told.last.back().cloned()) else {
        return;
    };
    let Takeover {
        at_secs,
        at_nanos,
        cause,
    } = last;
    let how = match Cause::parse(&cause) {
        Cause::Died(status) => wait::describe(status),
        Cause::Looping(times, words) => format!("{words}, after {times} in a row"),
        Cause::Stuck => "it took nothing of what it was sent, and was ended".to_owned(),
        Cause::Refused(words) => format!("it was of another program, which was given up: {words}"),
        Cause::Asked | Cause::Heir | Cause::Upgrade | Cause::Other(_) => return,
    };
    log::warn!("the shim before ended: {how}");
    let at = Moment {
        secs: at_secs,
        nanos: at_nanos,
    };
    tell(&place.bundle, &owner, at, how, gist);
}
