//! What `delete` prints: the last word on a container, one message and
//! nothing else. It decides nothing; the pid and the end come from the caller.

use containerd_shim_protos::api::DeleteResponse;
use protobuf::Message;
use vigil_model::Exit;

use crate::{Error, ends};

/// The bytes for stdout: init's pid (0 if there never was one) and its end.
pub fn response(pid: u32, exit: &Exit) -> Result<Vec<u8>, Error> {
    message(pid, Some(exit))
        .write_to_bytes()
        .map_err(|source| Error::Encode {
            message: "DeleteResponse",
            source,
        })
}

/// Without an end: status 0 at Go's zero time, as the Go shim says of an exec
/// that never ran. containerd's clients take any other status for its failure.
pub(crate) fn message(pid: u32, exit: Option<&Exit>) -> DeleteResponse {
    DeleteResponse {
        pid,
        exit_status: exit.map_or(0, ends::status),
        exited_at: ends::ended(exit),
        ..DeleteResponse::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use vigil_model::{Because, Moment, Status};

    use super::*;

    #[test]
    fn the_bytes_containerd_reads() {
        let exit = Exit {
            status: Status::Signalled(9),
            at: Moment {
                secs: 1_700_000_000,
                nanos: 5,
            },
        };
        assert_eq!(
            response(300, &exit).unwrap(),
            b"\x08\xac\x02\x10\x89\x01\x1a\x08\x08\x80\xe2\xcf\xaa\x06\x10\x05"
        );
        let unknown = Exit {
            status: Status::Unknown(Because::NoRecord),
            at: Moment { secs: 1, nanos: 0 },
        };
        assert_eq!(
            response(0, &unknown).unwrap(),
            b"\x10\xff\x01\x1a\x02\x08\x01"
        );
    }
}
