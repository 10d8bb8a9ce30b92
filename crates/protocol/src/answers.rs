//! Answers of the Task service, from the model to the wire.
//!
//! Owns the shapes containerd expects. An answer that does not fit its request
//! is a fault of ours and is said as one.

#![expect(
    clippy::needless_pass_by_value,
    reason = "one signature for the table of methods; some take the answer apart"
)]

use containerd_shim_protos::{
    api,
    shim::oci::ProcessDetails,
    types::task::{ProcessInfo, Status},
};
use protobuf::{EnumOrUnknown, Message, MessageField, well_known_types::any::Any};
use vigil_model::{
    Answer, ExecId, Kind, Refusal,
    request::{PidOf, Shown, State},
};

use crate::{delete, ends, metrics};

/// The bytes of an answer.
pub(crate) type Said = Result<Vec<u8>, Refusal>;

/// The bare name under which containerd knows the details of a process.
const DETAILS: &str = "containerd.runc.v1.ProcessDetails";

pub(crate) fn encode(message: &impl Message) -> Said {
    message
        .write_to_bytes()
        .map_err(|error| unencodable(&error))
}

fn unencodable(error: &protobuf::Error) -> Refusal {
    Refusal::new(Kind::Unknown, format!("encoding the answer: {error}"))
}

fn misfit(to: &str) -> Refusal {
    Refusal::new(
        Kind::Unknown,
        format!("the shim's own answer does not fit {to}"),
    )
}

/// `google.protobuf.Empty`.
pub(crate) fn empty(answer: Answer) -> Said {
    match answer {
        Answer::Done => Ok(Vec::new()),
        _ => Err(misfit("a request that is answered with nothing")),
    }
}

/// `CreateTaskResponse` and `StartResponse`: one field, the same in both.
pub(crate) fn pid(answer: Answer) -> Said {
    match answer {
        Answer::Pid(pid) => encode(&api::CreateTaskResponse {
            pid,
            ..api::CreateTaskResponse::default()
        }),
        _ => Err(misfit("Create or Start")),
    }
}

pub(crate) fn deleted(answer: Answer) -> Said {
    match answer {
        Answer::Deleted { pid, exit } => encode(&delete::message(pid, exit.as_ref())),
        _ => Err(misfit("Delete")),
    }
}

pub(crate) fn exit(answer: Answer) -> Said {
    match answer {
        Answer::Exit(exit) => encode(&api::WaitResponse {
            exit_status: ends::status(&exit),
            exited_at: ends::ended(Some(&exit)),
            ..api::WaitResponse::default()
        }),
        _ => Err(misfit("Wait")),
    }
}

pub(crate) fn state(answer: Answer) -> Said {
    let Answer::State(state) = answer else {
        return Err(misfit("State"));
    };
    let State {
        id,
        bundle,
        pid,
        shown,
        stdio,
        exit,
    } = *state;
    encode(&api::StateResponse {
        id,
        bundle,
        pid,
        status: EnumOrUnknown::new(status(shown)),
        stdin: stdio.stdin,
        stdout: stdio.stdout,
        stderr: stdio.stderr,
        terminal: stdio.terminal,
        exit_status: exit.as_ref().map_or(0, ends::status),
        exited_at: ends::ended(exit.as_ref()),
        ..api::StateResponse::default()
    })
}

fn status(shown: Shown) -> Status {
    match shown {
        Shown::Created => Status::CREATED,
        Shown::Running => Status::RUNNING,
        Shown::Stopped => Status::STOPPED,
        Shown::Paused => Status::PAUSED,
        Shown::Pausing => Status::PAUSING,
    }
}

pub(crate) fn pids(answer: Answer) -> Said {
    let Answer::Pids(pids) = answer else {
        return Err(misfit("Pids"));
    };
    let mut wire = api::PidsResponse::default();
    wire.processes.reserve_exact(pids.len());
    for PidOf { pid, exec } in pids {
        let mut process = ProcessInfo {
            pid,
            ..ProcessInfo::default()
        };
        if let Some(exec) = exec {
            process.info = MessageField::some(details(exec)?);
        }
        wire.processes.push(process);
    }
    encode(&wire)
}

fn details(exec: ExecId) -> Result<Any, Refusal> {
    Ok(Any {
        type_url: DETAILS.to_owned(),
        value: encode(&ProcessDetails {
            exec_id: exec.into(),
            ..ProcessDetails::default()
        })?,
        ..Any::default()
    })
}

pub(crate) fn connected(answer: Answer) -> Said {
    match answer {
        Answer::Connected { shim_pid, task_pid } => encode(&api::ConnectResponse {
            shim_pid,
            task_pid,
            ..api::ConnectResponse::default()
        }),
        _ => Err(misfit("Connect")),
    }
}

pub(crate) fn stats(answer: Answer) -> Said {
    match answer {
        Answer::Stats(counters) => {
            let stats = metrics::encode(&counters).map_err(|error| unencodable(&error))?;
            encode(&api::StatsResponse {
                stats: MessageField::some(stats),
                ..api::StatsResponse::default()
            })
        }
        _ => Err(misfit("Stats")),
    }
}
