//! The clocks of the loop: wall time for what is told, never for decisions.

use std::time::{SystemTime, UNIX_EPOCH};

use vigil_model::Moment;

/// Now, for records and events.
pub fn now() -> Moment {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Moment {
        secs: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos(),
    }
}
