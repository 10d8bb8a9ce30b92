//! Task events as containerd reads them.
//!
//! Owns topics, type names (bare, as containerd registers them) and the
//! envelope. The same event always makes the same bytes, however often and
//! however late it is sent.

use containerd_shim_protos::{
    api::ForwardRequest, events::task as wire, shim::event::Envelope, types,
};
use protobuf::{Message, MessageField, well_known_types::any::Any};
use vigil_model::{Mount, Namespace, Published, TaskEvent, TaskId, Who};

use crate::{Error, ends};

/// One event in its envelope.
pub(crate) fn request(
    namespace: &Namespace,
    task: &TaskId,
    published: &Published,
) -> Result<ForwardRequest, Error> {
    let (topic, name, value) = event(task.as_str(), &published.event);
    let value = value.map_err(|source| Error::Encode {
        message: name,
        source,
    })?;
    Ok(ForwardRequest {
        envelope: MessageField::some(Envelope {
            timestamp: ends::timestamp(published.at),
            namespace: namespace.as_str().to_owned(),
            topic: topic.to_owned(),
            event: MessageField::some(Any {
                type_url: name.to_owned(),
                value,
                ..Any::default()
            }),
            ..Envelope::default()
        }),
        ..ForwardRequest::default()
    })
}

/// Topic, type and bytes of an event.
fn event(task: &str, event: &TaskEvent) -> (&'static str, &'static str, protobuf::Result<Vec<u8>>) {
    let container_id = task.to_owned();
    match event {
        TaskEvent::Create {
            bundle,
            rootfs,
            stdio,
            checkpoint,
            pid,
        } => said(
            "/tasks/create",
            "containerd.events.TaskCreate",
            &wire::TaskCreate {
                container_id,
                bundle: bundle.clone(),
                rootfs: rootfs.iter().map(mount).collect(),
                io: MessageField::some(wire::TaskIO {
                    stdin: stdio.stdin.clone(),
                    stdout: stdio.stdout.clone(),
                    stderr: stdio.stderr.clone(),
                    terminal: stdio.terminal,
                    ..wire::TaskIO::default()
                }),
                checkpoint: checkpoint.clone(),
                pid: *pid,
                ..wire::TaskCreate::default()
            },
        ),
        TaskEvent::Start { pid } => said(
            "/tasks/start",
            "containerd.events.TaskStart",
            &wire::TaskStart {
                container_id,
                pid: *pid,
                ..wire::TaskStart::default()
            },
        ),
        TaskEvent::ExecAdded { exec } => said(
            "/tasks/exec-added",
            "containerd.events.TaskExecAdded",
            &wire::TaskExecAdded {
                container_id,
                exec_id: exec.as_str().to_owned(),
                ..wire::TaskExecAdded::default()
            },
        ),
        TaskEvent::ExecStarted { exec, pid } => said(
            "/tasks/exec-started",
            "containerd.events.TaskExecStarted",
            &wire::TaskExecStarted {
                container_id,
                exec_id: exec.as_str().to_owned(),
                pid: *pid,
                ..wire::TaskExecStarted::default()
            },
        ),
        TaskEvent::Oom => said(
            "/tasks/oom",
            "containerd.events.TaskOOM",
            &wire::TaskOOM {
                container_id,
                ..wire::TaskOOM::default()
            },
        ),
        TaskEvent::Paused => said(
            "/tasks/paused",
            "containerd.events.TaskPaused",
            &wire::TaskPaused {
                container_id,
                ..wire::TaskPaused::default()
            },
        ),
        TaskEvent::Resumed => said(
            "/tasks/resumed",
            "containerd.events.TaskResumed",
            &wire::TaskResumed {
                container_id,
                ..wire::TaskResumed::default()
            },
        ),
        TaskEvent::Exit { who, pid, exit } => said(
            "/tasks/exit",
            "containerd.events.TaskExit",
            &wire::TaskExit {
                id: match who {
                    Who::Init => container_id.clone(),
                    Who::Exec(exec) => exec.as_str().to_owned(),
                },
                container_id,
                pid: *pid,
                exit_status: ends::status(exit),
                exited_at: ends::ended(Some(exit)),
                ..wire::TaskExit::default()
            },
        ),
        // Its `id` stays empty, as the Go shim leaves it.
        TaskEvent::Delete { pid, exit } => said(
            "/tasks/delete",
            "containerd.events.TaskDelete",
            &wire::TaskDelete {
                container_id,
                pid: *pid,
                exit_status: ends::status(exit),
                exited_at: ends::ended(Some(exit)),
                ..wire::TaskDelete::default()
            },
        ),
    }
}

fn said(
    topic: &'static str,
    name: &'static str,
    message: &impl Message,
) -> (&'static str, &'static str, protobuf::Result<Vec<u8>>) {
    (topic, name, message.write_to_bytes())
}

fn mount(mount: &Mount) -> types::mount::Mount {
    types::mount::Mount {
        type_: mount.kind.clone(),
        source: mount.source.clone(),
        target: mount.target.clone(),
        options: mount.options.clone(),
        ..types::mount::Mount::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use vigil_model::{Because, ExecId, Exit, Moment, Status, Stdio};

    use super::*;

    const AT: Moment = Moment { secs: 7, nanos: 9 };

    fn bytes(event: TaskEvent) -> Vec<u8> {
        request(
            &Namespace::new("ns").unwrap(),
            &TaskId::new("c1").unwrap(),
            &Published {
                seq: 1,
                at: AT,
                event,
            },
        )
        .unwrap()
        .write_to_bytes()
        .unwrap()
    }

    fn field(number: u8, value: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2];
        if value.len() >= 0x80 {
            bytes.push(u8::try_from(value.len() & 0x7f).unwrap() | 0x80);
            bytes.push(u8::try_from(value.len() >> 7).unwrap());
        } else {
            bytes.push(u8::try_from(value.len()).unwrap());
        }
        bytes.extend_from_slice(value);
        bytes
    }

    #[test]
    fn every_event_byte_for_byte() {
        let exec = || ExecId::new("e1").unwrap();
        let exit = Exit {
            status: Status::Signalled(9),
            at: Moment { secs: 5, nanos: 6 },
        };
        let unknown = Exit {
            status: Status::Unknown(Because::ReaperGone),
            at: Moment { secs: 5, nanos: 6 },
        };
        let create = TaskEvent::Create {
            bundle: "/b".to_owned(),
            rootfs: vec![Mount {
                kind: "bind".to_owned(),
                source: "/s".to_owned(),
                target: String::new(),
                options: vec!["ro".to_owned()],
            }],
            stdio: Stdio {
                stdin: "/i".to_owned(),
                stdout: "/o".to_owned(),
                stderr: String::new(),
                terminal: true,
            },
            checkpoint: "/c".to_owned(),
            pid: 42,
        };
        for (event, topic, name, value) in [
            (
                create,
                "/tasks/create",
                "TaskCreate",
                &b"\x0a\x02c1\x12\x02/b\x1a\x0e\x0a\x04bind\x12\x02/s\x22\x02ro\
                   \x22\x0a\x0a\x02/i\x12\x02/o\x20\x01\x2a\x02/c\x30\x2a"[..],
            ),
            (
                TaskEvent::Start { pid: 42 },
                "/tasks/start",
                "TaskStart",
                b"\x0a\x02c1\x10\x2a",
            ),
            (
                TaskEvent::ExecAdded { exec: exec() },
                "/tasks/exec-added",
                "TaskExecAdded",
                b"\x0a\x02c1\x12\x02e1",
            ),
            (
                TaskEvent::ExecStarted {
                    exec: exec(),
                    pid: 43,
                },
                "/tasks/exec-started",
                "TaskExecStarted",
                b"\x0a\x02c1\x12\x02e1\x18\x2b",
            ),
            (TaskEvent::Oom, "/tasks/oom", "TaskOOM", b"\x0a\x02c1"),
            (
                TaskEvent::Paused,
                "/tasks/paused",
                "TaskPaused",
                b"\x0a\x02c1",
            ),
            (
                TaskEvent::Resumed,
                "/tasks/resumed",
                "TaskResumed",
                b"\x0a\x02c1",
            ),
            (
                TaskEvent::Exit {
                    who: Who::Init,
                    pid: 42,
                    exit,
                },
                "/tasks/exit",
                "TaskExit",
                b"\x0a\x02c1\x12\x02c1\x18\x2a\x20\x89\x01\x2a\x04\x08\x05\x10\x06",
            ),
            (
                TaskEvent::Exit {
                    who: Who::Exec(exec()),
                    pid: 43,
                    exit: unknown,
                },
                "/tasks/exit",
                "TaskExit",
                b"\x0a\x02c1\x12\x02e1\x18\x2b\x20\xff\x01\x2a\x04\x08\x05\x10\x06",
            ),
            (
                TaskEvent::Delete { pid: 42, exit },
                "/tasks/delete",
                "TaskDelete",
                b"\x0a\x02c1\x10\x2a\x18\x89\x01\x22\x04\x08\x05\x10\x06",
            ),
        ] {
            let any = [
                field(1, format!("containerd.events.{name}").as_bytes()),
                field(2, value),
            ]
            .concat();
            let envelope = [
                field(1, b"\x08\x07\x10\x09"),
                field(2, b"ns"),
                field(3, topic.as_bytes()),
                field(4, &any),
            ]
            .concat();
            assert_eq!(bytes(event), field(1, &envelope), "{topic}");
        }
    }
}
