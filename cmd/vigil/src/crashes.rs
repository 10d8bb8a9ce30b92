//! What the crashes of shims have left: for each a note of a page, written by
//! whoever came after it. Read only, and shown word for word.

use std::fmt::Write as _;
use std::path::Path;

use vigil_host::chain;
use vigil_host::enact::CrashNote;

use crate::words;

/// The notes that are wanted, oldest first; what cannot be read is noted.
pub fn read(
    run: &Path,
    notes: &mut Vec<String>,
    wanted: impl Fn(&CrashNote) -> bool,
) -> Vec<CrashNote> {
    let all = CrashNote::all(run).unwrap_or_else(|e| vec![Err(e)]);
    all.into_iter()
        .filter_map(|note| note.map_err(|e| notes.push(chain(&e))).ok())
        .filter(wanted)
        .collect()
}

/// The notes for people.
pub fn people(crashes: &[CrashNote]) -> String {
    let mut text = String::new();
    for note in crashes {
        let (date, clock) = (words::date(note.at), words::clock(note.at));
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\ncrash       {date} {clock}: {}", note.how);
        let _ = writeln!(text, "noted       by version {}", note.version);
        let said = note.words.as_deref().unwrap_or_default();
        for line in said.lines() {
            let _ = writeln!(text, "said        {}", plain(line));
        }
        for record in &note.records {
            let _ = writeln!(text, "record      {}", plain(record));
        }
    }
    text
}

/// Nothing that would move a terminal's cursor.
fn plain(line: &str) -> String {
    line.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Whose notes there are, for a table of lines.
pub fn hints(crashes: &[CrashNote]) -> Vec<String> {
    let mut seen: Vec<(&str, &str, usize)> = Vec::new();
    for note in crashes {
        let whose = (note.namespace.as_str(), note.id.as_str());
        match seen.iter_mut().find(|(n, i, _)| (*n, *i) == whose) {
            Some((_, _, count)) => *count += 1,
            None => seen.push((whose.0, whose.1, 1)),
        }
    }
    let hint = |(namespace, id, count): (&str, &str, usize)| match count {
        1 => format!("{namespace}/{id} left a note of a crash; `vigil show {id}` shows it"),
        n => format!("{namespace}/{id} left {n} notes of crashes; `vigil show {id}` shows them"),
    };
    seen.into_iter().map(hint).collect()
}
