//! What happened in one life, with times: told when something was wrong.

use std::fmt::Write;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// A list of lines that any thread of a life may add to.
#[derive(Debug)]
pub struct Story {
    began: Instant,
    lines: Mutex<Vec<(u128, String)>>,
}

impl Default for Story {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            lines: Mutex::default(),
        }
    }
}

impl Story {
    /// One more line.
    pub fn add(&self, line: impl Into<String>) {
        let at = self.began.elapsed().as_micros();
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push((at, line.into()));
    }

    /// All of it.
    #[must_use]
    pub fn text(&self) -> String {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = lines.iter().map(|(at, line)| {
            let (ms, us) = (at / 1000, at % 1000);
            format!("  {ms:>6}.{us:03} ms  {line}\n")
        });
        lines.collect()
    }
}

/// Numbered lines, as those who speak in a life say them.
#[must_use]
pub fn lines_of(word: &str, numbers: Range<u64>) -> String {
    numbers.fold(String::new(), |mut text, number| {
        // A String takes everything.
        let _ = writeln!(text, "{word} {number}");
        text
    })
}
