//! Where a shim departs from a case, and why: decisions (`differs`), races that may also
//! go well (`may_differ`), and faults that are known and not mended (`open`). One that
//! holds after all fails the suite, so that this page stays true.

use vigil_lab::suite::Difference;
#[allow(unused_imports, reason = "not every kind occurs at all times")]
use vigil_lab::suite::{differs, may_differ};

/// Begins the reason of what is to be mended.
pub const OPEN: &str = "open: ";

/// A fault of ours that is known: the reason begins with "open: ".
#[must_use]
pub const fn open(trial: &'static str, reason: &'static str) -> Difference {
    assert!(
        reason.len() > OPEN.len() && reason.as_bytes()[0] == b'o' && reason.as_bytes()[4] == b':',
        "it begins with \"open: \""
    );
    differs("vigil", trial, reason)
}

/// All of them.
pub const DIFFERENCES: &[Difference] = &[];
