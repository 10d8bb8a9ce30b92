//! What is kept of the crash of a shim: its last words, written by itself while
//! it dies, and the note that whoever comes after it writes: the next shim, or
//! `delete`. Best effort: without room there is less of both, and nothing fails.

use std::fs::{self, OpenOptions};
use std::io::{Cursor, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use vigil_host::enact::{CrashNote, RUN};
use vigil_journal::takeovers::{Takeover, Takeovers};
use vigil_journal::{Replayed, names};
use vigil_model::{KIND_RECORD, Moment, Namespace, Record, TaskId};
use vigil_relay::cause::Cause;
use vigil_sys::wait;

use crate::owner::Place;

/// Longest last words, bytes.
const WORDS_MAX: usize = 1024;
/// Records of the journal that a note tells of.
const RECORDS: usize = 12;

/// Has a panic leave its message at `path` before the process aborts. It may be
/// that nothing can be allocated then, so nothing is but what std does.
pub fn keep_last_words(path: PathBuf) {
    std::panic::set_hook(Box::new(move |panic| {
        let mut text = Cursor::new([0; WORDS_MAX]);
        // What does not fit is cut off.
        let _ = write!(text, "{panic}");
        let length = usize::try_from(text.position()).unwrap_or(WORDS_MAX);
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&path);
        let _ = file.and_then(|mut file| file.write_all(&text.get_ref()[..length]));
    }));
}

/// Takes the last words that lie there, if any.
fn last_words(bundle: &Path) -> Option<String> {
    let path = bundle.join(names::PANIC);
    if !fs::symlink_metadata(&path).ok()?.is_file() {
        return None;
    }
    let mut words = Vec::new();
    let file = fs::File::open(&path).ok()?;
    let read = file.take(WORDS_MAX as u64).read_to_end(&mut words);
    let _ = fs::remove_file(&path);
    read.ok()?;
    let words = String::from_utf8_lossy(&words).trim().to_owned();
    (!words.is_empty()).then_some(words)
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
pub fn tell(
    bundle: &Path,
    (namespace, id): (&Namespace, &TaskId),
    at: Moment,
    how: String,
    gist: &[String],
) {
    let note = CrashNote {
        id: id.to_string(),
        namespace: namespace.to_string(),
        at,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        how,
        words: last_words(bundle),
        records: gist.to_vec(),
    };
    if let Err(error) = note.append(Path::new(RUN)) {
        log::warn!("no note of the crash: {}", vigil_host::chain(&error));
    }
}

/// Leaves a note of the shim before this one, if it crashed, was stuck, or was
/// of a program that did not do; the reaper knows.
pub(crate) fn tell_of_the_one_before(place: &Place, gist: &[String]) {
    let told = Takeovers::read(&place.bundle.join(names::TAKEOVERS));
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
        Cause::Asked | Cause::Upgrade | Cause::Other(_) => return,
    };
    log::warn!("the shim before ended: {how}");
    let at = Moment {
        secs: at_secs,
        nanos: at_nanos,
    };
    tell(&place.bundle, (&place.namespace, &place.id), at, how, gist);
}
