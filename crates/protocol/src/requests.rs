//! Requests of the Task service, from the wire to the model.
//!
//! Owns the checks at the edge: ids, signals, sizes, types of what is carried.
//! It knows no task; whether a request fits the phase is decided elsewhere.

use containerd_shim_protos::{api, types};
use protobuf::{Message, MessageField, well_known_types::any::Any};
use vigil_model::{
    ExecId, IdError, Kind, Mount, Options, Refusal, Request, Stdio, TaskId, Who, request::Create,
};

use crate::{
    error::shown,
    options::{self, Told},
};

/// A request with the id of the container it is for, as sent.
pub(crate) type Asked = Result<(String, Request), Refusal>;

/// Longest path taken, in bytes, its end included: Linux takes no longer one.
const PATH_MAX: usize = 4096;
/// Longest name of a stream, in bytes: a `binary://` URI carries arguments.
const STREAM_MAX: usize = 16 << 10;
/// Highest signal number of Linux.
const SIGNAL_MAX: u32 = 64;

/// What `spec` of an Exec must carry, behind any prefix.
const PROCESS: &str = "opencontainers/runtime-spec/1/Process";
/// What `resources` of an Update must carry, behind any prefix.
const RESOURCES: &str = "opencontainers/runtime-spec/1/LinuxResources";

fn parse<M: Message>(bytes: &[u8]) -> Result<M, Refusal> {
    M::parse_from_bytes(bytes)
        .map_err(|error| invalid(format!("the {} cannot be decoded: {error}", M::NAME)))
}

fn invalid(says: impl Into<String>) -> Refusal {
    Refusal::new(Kind::InvalidArgument, says)
}

/// An id that no task can have cannot be found.
fn known(id: String) -> Result<String, Refusal> {
    match TaskId::new(id.as_str()) {
        Ok(_) => Ok(id),
        Err(error) => Err(no_such("task", &id, &error)),
    }
}

/// Init for an empty `exec_id`; an exec that cannot exist cannot be found.
fn who(exec: &str) -> Result<Who, Refusal> {
    if exec.is_empty() {
        return Ok(Who::Init);
    }
    match ExecId::new(exec) {
        Ok(exec) => Ok(Who::Exec(exec)),
        Err(error) => Err(no_such("exec", exec, &error)),
    }
}

fn no_such(what: &str, id: &str, error: &IdError) -> Refusal {
    Refusal::new(
        Kind::NotFound,
        format!("no {what} {:?} can exist: {error}", shown(id)),
    )
}

fn bounded(name: &str, text: &str, most: usize) -> Result<(), Refusal> {
    if text.len() >= most {
        return Err(invalid(format!(
            "{name} has {} bytes, fewer than {most} are allowed",
            text.len()
        )));
    }
    if text.contains('\0') {
        return Err(invalid(format!("{name} contains a zero byte")));
    }
    Ok(())
}

fn stdio(stdin: String, stdout: String, stderr: String, terminal: bool) -> Result<Stdio, Refusal> {
    bounded("stdin", &stdin, STREAM_MAX)?;
    bounded("stdout", &stdout, STREAM_MAX)?;
    bounded("stderr", &stderr, STREAM_MAX)?;
    Ok(Stdio {
        stdin,
        stdout,
        stderr,
        terminal,
    })
}

/// The value of a field that must be there and of one type.
fn carried(of: &str, field: MessageField<Any>, wanted: &str) -> Result<Vec<u8>, Refusal> {
    let Some(any) = field.into_option() else {
        return Err(invalid(format!("{of} is missing")));
    };
    let fits = any
        .type_url
        .strip_suffix(wanted)
        .is_some_and(|prefix| prefix.is_empty() || prefix.ends_with('/'));
    if !fits {
        return Err(invalid(format!(
            "{of} is of type {:?}, it must be {wanted}",
            shown(&any.type_url)
        )));
    }
    Ok(any.value)
}

pub(crate) fn create(bytes: &[u8]) -> Asked {
    let wire: api::CreateTaskRequest = parse(bytes)?;
    TaskId::new(wire.id.as_str())
        .map_err(|error| invalid(format!("the id of the task: {error}")))?;
    bounded("bundle", &wire.bundle, PATH_MAX)?;
    bounded("checkpoint", &wire.checkpoint, PATH_MAX)?;
    bounded("parent_checkpoint", &wire.parent_checkpoint, PATH_MAX)?;
    let options = match wire.options.as_ref() {
        None => Options::default(),
        Some(any) => {
            let Told { options, warnings } =
                options::decode(any).map_err(|error| error.refusal("Create"))?;
            for warning in warnings {
                log::warn!("{}: {warning}", wire.id);
            }
            options
        }
    };
    let create = Create {
        bundle: wire.bundle,
        rootfs: wire.rootfs.into_iter().map(mount).collect(),
        stdio: stdio(wire.stdin, wire.stdout, wire.stderr, wire.terminal)?,
        checkpoint: wire.checkpoint,
        parent_checkpoint: wire.parent_checkpoint,
        options,
    };
    Ok((wire.id, Request::Create(Box::new(create))))
}

fn mount(wire: types::mount::Mount) -> Mount {
    Mount {
        kind: wire.type_,
        source: wire.source,
        target: wire.target,
        options: wire.options,
    }
}

pub(crate) fn exec(bytes: &[u8]) -> Asked {
    let wire: api::ExecProcessRequest = parse(bytes)?;
    let exec = ExecId::new(wire.exec_id)
        .map_err(|error| invalid(format!("the id of the exec: {error}")))?;
    let spec = carried(&format!("the spec of exec {exec}"), wire.spec, PROCESS)?;
    let request = Request::Exec {
        exec,
        stdio: stdio(wire.stdin, wire.stdout, wire.stderr, wire.terminal)?,
        spec,
    };
    Ok((known(wire.id)?, request))
}

pub(crate) fn start(bytes: &[u8]) -> Asked {
    let wire: api::StartRequest = parse(bytes)?;
    Ok((known(wire.id)?, Request::Start(who(&wire.exec_id)?)))
}

pub(crate) fn state(bytes: &[u8]) -> Asked {
    let wire: api::StateRequest = parse(bytes)?;
    Ok((known(wire.id)?, Request::State(who(&wire.exec_id)?)))
}

pub(crate) fn delete(bytes: &[u8]) -> Asked {
    let wire: api::DeleteRequest = parse(bytes)?;
    Ok((known(wire.id)?, Request::Delete(who(&wire.exec_id)?)))
}

pub(crate) fn wait(bytes: &[u8]) -> Asked {
    let wire: api::WaitRequest = parse(bytes)?;
    Ok((known(wire.id)?, Request::Wait(who(&wire.exec_id)?)))
}

/// The `stdin` flag is not looked at: no other stream could be meant.
pub(crate) fn close_io(bytes: &[u8]) -> Asked {
    let wire: api::CloseIORequest = parse(bytes)?;
    Ok((known(wire.id)?, Request::CloseStdin(who(&wire.exec_id)?)))
}

pub(crate) fn kill(bytes: &[u8]) -> Asked {
    let wire: api::KillRequest = parse(bytes)?;
    if wire.signal > SIGNAL_MAX {
        return Err(invalid(format!(
            "signal {} is above {SIGNAL_MAX}",
            wire.signal
        )));
    }
    let who = who(&wire.exec_id)?;
    let request = Request::Kill {
        // For an exec the flag means nothing (the Go shim's rule).
        all: wire.all && who == Who::Init,
        who,
        signal: wire.signal,
    };
    Ok((known(wire.id)?, request))
}

pub(crate) fn resize(bytes: &[u8]) -> Asked {
    let wire: api::ResizePtyRequest = parse(bytes)?;
    let side = |name: &str, size: u32| {
        u16::try_from(size)
            .map_err(|_| invalid(format!("{name} {size} of a terminal is above {}", u16::MAX)))
    };
    let request = Request::Resize {
        who: who(&wire.exec_id)?,
        width: side("width", wire.width)?,
        height: side("height", wire.height)?,
    };
    Ok((known(wire.id)?, request))
}

pub(crate) fn update(bytes: &[u8]) -> Asked {
    let wire: api::UpdateTaskRequest = parse(bytes)?;
    let resources = carried("resources", wire.resources, RESOURCES)?;
    Ok((known(wire.id)?, Request::Update(resources)))
}

pub(crate) fn checkpoint(bytes: &[u8]) -> Asked {
    let wire: api::CheckpointTaskRequest = parse(bytes)?;
    let checkpoint = options::checkpoint(wire.path, wire.options.as_ref())
        .map_err(|error| error.refusal("Checkpoint"))?;
    bounded("path", &checkpoint.path, PATH_MAX)?;
    bounded("work_path", &checkpoint.work_path, PATH_MAX)?;
    bounded("parent_path", &checkpoint.parent_path, PATH_MAX)?;
    Ok((known(wire.id)?, Request::Checkpoint(Box::new(checkpoint))))
}

pub(crate) fn pids(bytes: &[u8]) -> Asked {
    let wire: api::PidsRequest = parse(bytes)?;
    Ok((known(wire.id)?, Request::Pids))
}

pub(crate) fn pause(bytes: &[u8]) -> Asked {
    let wire: api::PauseRequest = parse(bytes)?;
    Ok((known(wire.id)?, Request::Pause))
}

pub(crate) fn resume(bytes: &[u8]) -> Asked {
    let wire: api::ResumeRequest = parse(bytes)?;
    Ok((known(wire.id)?, Request::Resume))
}

pub(crate) fn stats(bytes: &[u8]) -> Asked {
    let wire: api::StatsRequest = parse(bytes)?;
    Ok((known(wire.id)?, Request::Stats))
}

/// Never fails for an id, whatever it is.
pub(crate) fn connect(bytes: &[u8]) -> Asked {
    let wire: api::ConnectRequest = parse(bytes)?;
    Ok((wire.id, Request::Connect))
}

/// Never fails for an id; `now` is not looked at (the Go shim's rule).
pub(crate) fn shutdown(bytes: &[u8]) -> Asked {
    let wire: api::ShutdownRequest = parse(bytes)?;
    Ok((wire.id, Request::Shutdown))
}
