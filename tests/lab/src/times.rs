//! How long each RPC took, of every task client of this process: asked for at the end.
//!
//! One table for all, since a suite runs many kits beside each other; a few numbers a
//! call, so that a long suite stays small.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::poll::GENEROUS;

/// What answers from memory must answer in this time, whatever the rest of the container
/// is at (the catalogue's I5). Milliseconds are usual, which the bench shows; here it only
/// must not wait for what is in the way.
pub const READING_LIMIT: Duration = GENEROUS;

/// The methods that only read.
pub const READING: [&str; 3] = ["State", "Pids", "Connect"];

static TOOK: Mutex<BTreeMap<(String, String), Vec<u32>>> = Mutex::new(BTreeMap::new());

/// Notes one answered call, in microseconds.
pub fn note(shim: &str, method: &str, took: Duration) {
    let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
    TOOK.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .entry((shim.to_owned(), method.to_owned()))
        .or_default()
        .push(micros);
}

/// The table: calls, median, 99th percentile and slowest, in milliseconds.
#[must_use]
pub fn table() -> String {
    let took = TOOK.lock().unwrap_or_else(PoisonError::into_inner);
    let mut out = String::new();
    if took.is_empty() {
        return out;
    }
    let _ = writeln!(
        out,
        "{:10} {:12} {:>6} {:>10} {:>10} {:>10}",
        "shim", "method", "calls", "median ms", "99 % ms", "slowest ms"
    );
    for ((shim, method), micros) in took.iter() {
        let mut sorted = micros.clone();
        sorted.sort_unstable();
        let at = |percent: usize| {
            let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
            f64::from(sorted.get(place).copied().unwrap_or(0)) / 1000.0
        };
        let _ = writeln!(
            out,
            "{shim:10} {method:12} {:6} {:10.1} {:10.1} {:10.1}",
            sorted.len(),
            at(50),
            at(99),
            at(100)
        );
    }
    out
}
