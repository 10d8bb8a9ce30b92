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
    CrashNote::all(run)
        .into_iter()
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

/// Hints at most: the table is what was asked for.
const HINTS_MAX: usize = 5;

/// Whose notes there are, for a table of lines; the newest [`HINTS_MAX`] by name.
pub fn hints(crashes: &[CrashNote]) -> Vec<String> {
    let mut seen: Vec<(&str, &str, usize)> = Vec::new();
    for note in crashes.iter().rev() {
        let whose = (note.namespace.as_str(), note.id.as_str());
        match seen.iter_mut().find(|(n, i, _)| (*n, *i) == whose) {
            Some((_, _, count)) => *count += 1,
            None => seen.push((whose.0, whose.1, 1)),
        }
    }
    let hint = |(namespace, id, count): &(&str, &str, usize)| {
        let left = match count {
            1 => "a note of a crash".to_owned(),
            n => format!("{n} notes of crashes"),
        };
        format!("{namespace}/{id} left {left}; see `vigil show -n {namespace} {id}`")
    };
    let mut hints: Vec<String> = seen.iter().take(HINTS_MAX).map(hint).collect();
    match seen.len().saturating_sub(HINTS_MAX) {
        0 => {}
        more => hints.push(format!("so did {more} more; `--json` tells of all")),
    }
    hints
}

#[cfg(test)]
mod tests {
    use super::*;
    use vigil_model::Moment;

    /// A node of many crashes once buried six lines of history below hundreds of hints.
    #[test]
    fn hints_are_few_and_the_newest() {
        let note = |number: usize| CrashNote {
            format: vigil_host::enact::FORMAT,
            salt: None,
            id: format!("c{number}"),
            namespace: "n".to_owned(),
            at: Moment { secs: 0, nanos: 0 },
            version: String::new(),
            how: String::new(),
            words: None,
            records: Vec::new(),
        };
        let mut all: Vec<_> = (0..20).map(note).collect();
        all.push(note(18));
        let said = hints(&all);
        assert_eq!(said.len(), 6);
        assert_eq!(
            said[0],
            "n/c18 left 2 notes of crashes; see `vigil show -n n c18`"
        );
        assert_eq!(said[5], "so did 15 more; `--json` tells of all");
        assert_eq!(hints(&all[..3]).len(), 3);
    }
}
