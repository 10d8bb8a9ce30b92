//! What runc says went wrong: the last error entry of the log of *this* call.
//! A log can be anything, half a line of JSON included, and of any length;
//! reading it takes little memory and never fails, it only finds nothing.

use std::io::{BufRead, BufReader, Read};

use serde::Deserialize;

/// A line longer than this is not one runc meant for a person. What it quotes may be
/// all of a request, which has 4 MiB at most.
const LINE: usize = 8 * 1024 * 1024;
/// What is read of a log at most.
const LOG: u64 = 64 * 1024 * 1024;
/// What a message may have, in characters: half of them its beginning, half its end.
/// Callers of callers look for the reason, and it stands at the end.
const MESSAGE: usize = 4096;
const CUT: &str = " […] ";

/// runc and crun both write these; other fields do not matter.
#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    level: String,
    #[serde(default)]
    msg: String,
}

/// The message of the last entry of level `error` (or `fatal`, `panic`).
/// `None`: there is no such entry.
pub fn last_error(log: impl Read) -> Option<String> {
    let mut log = BufReader::with_capacity(4096, log.take(LOG));
    let mut last = None;
    let mut line = Vec::new();
    while let Some(whole) = next_line(&mut log, &mut line) {
        if !whole {
            continue;
        }
        if let Ok(entry) = serde_json::from_slice::<Entry>(&line)
            && matches!(entry.level.as_str(), "error" | "fatal" | "panic")
            && !entry.msg.trim().is_empty()
        {
            last = Some(shorten(entry.msg.trim()));
        }
    }
    last
}

/// Text of a program, fit for a message: what is too long loses its middle.
pub(super) fn shorten(text: &str) -> String {
    if text.char_indices().nth(MESSAGE).is_none() {
        return text.to_owned();
    }
    let half = MESSAGE / 2;
    let end_of_head = text.char_indices().nth(half);
    let start_of_tail = text.char_indices().rev().nth(half - 1);
    let (Some((head, _)), Some((tail, _))) = (end_of_head, start_of_tail) else {
        return text.to_owned();
    };
    [&text[..head], CUT, &text[tail..]].concat()
}

/// Reads one line; true if all of it is in `line`. `None`: the end.
fn next_line(log: &mut impl BufRead, line: &mut Vec<u8>) -> Option<bool> {
    line.clear();
    let mut whole = true;
    let mut any = false;
    loop {
        let part = log.fill_buf().ok()?;
        if part.is_empty() {
            return any.then_some(whole);
        }
        any = true;
        let end = part.iter().position(|b| *b == b'\n');
        let text = &part[..end.unwrap_or(part.len())];
        if line.len() + text.len() > LINE {
            whole = false;
        } else {
            line.extend_from_slice(text);
        }
        let used = end.map_or(part.len(), |e| e + 1);
        log.consume(used);
        if end.is_some() {
            return Some(whole);
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// Each log of the corpus beside what must be found in it.
    #[test]
    fn the_corpus_is_read_as_expected() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/runc-log");
        let mut seen = 0;
        for file in std::fs::read_dir(corpus).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_none_or(|e| e != "log") {
                continue;
            }
            let expected = std::fs::read_to_string(path.with_extension("expected")).unwrap();
            let found = last_error(std::fs::File::open(&path).unwrap());
            let expected = expected.trim_end_matches('\n');
            assert_eq!(
                found.as_deref().unwrap_or("(nothing)"),
                expected,
                "{}",
                path.display()
            );
            seen += 1;
        }
        assert!(seen >= 8, "{seen} logs");
    }

    #[test]
    fn an_endless_line_is_passed_over_in_little_memory() {
        let before = br#"{"level":"error","msg":"first"}"#;
        let mut log = before.to_vec();
        log.extend_from_slice(b"\n{\"level\":\"error\",\"msg\":\"");
        log.resize(log.len() + 20 * 1024 * 1024, b'x');
        assert_eq!(
            last_error(&log[..]).as_deref(),
            Some("first"),
            "without an end"
        );
        log.extend_from_slice(b"\"}\n{\"level\":\"error\",\"msg\":\"after\"}\n");
        assert_eq!(last_error(&log[..]).as_deref(), Some("after"));
    }

    /// `docker run` exits 127 only if it reads *executable file not found*, which
    /// comes after the name, however long that is.
    #[test]
    fn a_long_message_keeps_its_end_where_the_reason_is() {
        for name in [3000, 5000, 100_000, 3_900_000] {
            let log = format!(
                "{{\"level\":\"error\",\"msg\":\"exec: {}: executable file not found in $PATH\"}}",
                "x".repeat(name)
            );
            let found = last_error(log.as_bytes()).unwrap();
            assert!(found.starts_with("exec: xxx"), "{name}");
            let reason = "x: executable file not found in $PATH";
            assert!(found.ends_with(reason), "{name}");
            assert!(found.chars().count() <= MESSAGE + CUT.len(), "{name}");
            assert_eq!(found.contains(CUT), name > MESSAGE, "{name}");
        }
    }

    #[test]
    fn a_long_message_is_cut_at_characters() {
        let log = format!("{{\"level\":\"error\",\"msg\":\"{}\"}}", "ü".repeat(5000));
        let found = last_error(log.as_bytes()).unwrap();
        let half = "ü".repeat(MESSAGE / 2);
        assert_eq!(found, format!("{half}{CUT}{half}"));
    }
}
