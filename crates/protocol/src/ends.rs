//! How the end of a process is said on the wire.
//!
//! The one place where *Unknown* becomes a number. It never makes one up
//! anywhere else, and nothing of ours ever reads it back.

use protobuf::{MessageField, well_known_types::timestamp::Timestamp};
use vigil_model::{Exit, Moment, Status};

/// Seconds of Go's zero `time.Time`: what *never ended* looks like to containerd.
const GO_ZERO: i64 = -62_135_596_800;

/// What containerd is told for a status nobody saw.
const UNKNOWN: u32 = 255;

/// The exit status as containerd counts: the code, or 128 and the signal.
pub(crate) fn status(exit: &Exit) -> u32 {
    match exit.status {
        Status::Exited(code) => u32::from(code),
        Status::Signalled(signal) => 128 + u32::from(signal),
        Status::Unknown(_) => UNKNOWN,
    }
}

/// A moment as a timestamp.
pub(crate) fn timestamp(at: Moment) -> MessageField<Timestamp> {
    MessageField::some(Timestamp {
        seconds: at.secs,
        // Nanoseconds within a second fit; what does not is not a time.
        nanos: i32::try_from(at.nanos).unwrap_or(0),
        ..Timestamp::default()
    })
}

/// The time of an end, or Go's zero time.
pub(crate) fn ended(exit: Option<&Exit>) -> MessageField<Timestamp> {
    timestamp(exit.map_or(
        Moment {
            secs: GO_ZERO,
            nanos: 0,
        },
        |exit| exit.at,
    ))
}

#[cfg(test)]
mod tests {
    use vigil_model::Because;

    use super::*;

    #[test]
    fn every_status_has_its_number() {
        let at = Moment { secs: 1, nanos: 2 };
        for (said, number) in [
            (Status::Exited(0), 0),
            (Status::Exited(7), 7),
            (Status::Exited(255), 255),
            (Status::Signalled(9), 137),
            (Status::Signalled(15), 143),
            (Status::Unknown(Because::ReaperGone), 255),
            (Status::Unknown(Because::NeverRan), 255),
        ] {
            assert_eq!(status(&Exit { status: said, at }), number, "{said}");
        }
    }
}
