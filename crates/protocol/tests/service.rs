//! The Task service through a real ttrpc client over a socketpair, under both
//! of its names: what arrives at the owner, what comes back byte for byte, and
//! what is refused at the edge.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{V2, V3, call, client, code, exit, message, packed, run, served};
use ttrpc::Code;
use vigil_model::{
    Answer, Because, ExecId, Kind, Mount, Options, Refusal, Request, Status, Stdio, Who, metrics,
    request::{Checkpoint, Create, PidOf, Shown, State},
};

fn exec() -> ExecId {
    ExecId::new("e1").unwrap()
}

/// Method, payload, what the model sees, what it says, the answer's bytes.
type Row = (&'static str, Vec<u8>, Request, Answer, Vec<u8>);

const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
const RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

fn table() -> Vec<Row> {
    let init = b"\x0a\x02c1".to_vec();
    let of_exec = b"\x0a\x02c1\x12\x02e1".to_vec();
    let mount = message(&[
        (1, b"bind"),
        (2, b"/s"),
        (3, b"t"),
        (4, b"ro"),
        (4, b"rbind"),
    ]);
    let options = packed("containerd.runc.v1.Options", b"\x32\x04crun");
    let create = [
        message(&[(1, b"c1"), (2, b"/b"), (3, &mount)]),
        b"\x20\x01".to_vec(),
        message(&[
            (5, b"/i"),
            (6, b"/o"),
            (7, b"/e"),
            (8, b"/c"),
            (9, b"/p"),
            (10, &options),
        ]),
    ]
    .concat();
    let stdio = Stdio {
        stdin: "/i".to_owned(),
        stdout: "/o".to_owned(),
        stderr: "/e".to_owned(),
        terminal: true,
    };
    let state = |shown, exit| {
        Answer::State(Box::new(State {
            id: "c1".to_owned(),
            bundle: "/b".to_owned(),
            pid: 42,
            shown,
            stdio: stdio.clone(),
            exit,
        }))
    };
    let shown = |status: u8, end: &[u8]| {
        [
            &b"\x0a\x02c1\x12\x02/b\x18\x2a\x20"[..],
            &[status],
            b"\x2a\x02/i\x32\x02/o\x3a\x02/e\x40\x01",
            end,
        ]
        .concat()
    };
    // Go's zero time: -62135596800 as a varint.
    let never = &b"\x52\x0b\x08\x80\x92\xb8\xc3\x98\xfe\xff\xff\xff\x01"[..];
    let ended = &b"\x48\x89\x01\x52\x04\x08\x05\x10\x06"[..];
    let process = packed(PROCESS, b"{\"args\": 1}");
    let resources = packed(RESOURCES, b"{\"memory\": 1}");
    let checkpoint = packed("containerd.runc.v1.CheckpointOptions", b"\x08\x01");
    let killed = exit(Status::Signalled(9));
    let lost = exit(Status::Unknown(Because::ReaperGone));
    vec![
        (
            "Create",
            create,
            Request::Create(Box::new(Create {
                bundle: "/b".to_owned(),
                rootfs: vec![Mount {
                    kind: "bind".to_owned(),
                    source: "/s".to_owned(),
                    target: "t".to_owned(),
                    options: vec!["ro".to_owned(), "rbind".to_owned()],
                }],
                stdio: stdio.clone(),
                checkpoint: "/c".to_owned(),
                parent_checkpoint: "/p".to_owned(),
                options: Options {
                    binary_name: "crun".to_owned(),
                    ..Options::default()
                },
            })),
            Answer::Pid(300),
            b"\x08\xac\x02".to_vec(),
        ),
        (
            "Start",
            init.clone(),
            Request::Start(Who::Init),
            Answer::Pid(42),
            b"\x08\x2a".to_vec(),
        ),
        (
            "Start",
            of_exec.clone(),
            Request::Start(Who::Exec(exec())),
            Answer::Pid(43),
            b"\x08\x2b".to_vec(),
        ),
        (
            "Exec",
            [
                of_exec.clone(),
                b"\x18\x01".to_vec(),
                message(&[(4, b"/i"), (5, b"/o"), (6, b"/e"), (7, &process)]),
            ]
            .concat(),
            Request::Exec {
                exec: exec(),
                stdio: stdio.clone(),
                spec: b"{\"args\": 1}".to_vec(),
            },
            Answer::Done,
            Vec::new(),
        ),
        (
            "State",
            init.clone(),
            Request::State(Who::Init),
            state(Shown::Running, None),
            shown(2, never),
        ),
        (
            "State",
            of_exec.clone(),
            Request::State(Who::Exec(exec())),
            state(Shown::Stopped, Some(killed)),
            shown(3, ended),
        ),
        (
            "State",
            init.clone(),
            Request::State(Who::Init),
            state(Shown::Created, None),
            shown(1, never),
        ),
        (
            "State",
            init.clone(),
            Request::State(Who::Init),
            state(Shown::Paused, None),
            shown(4, never),
        ),
        (
            "State",
            init.clone(),
            Request::State(Who::Init),
            state(Shown::Pausing, None),
            shown(5, never),
        ),
        (
            "Pids",
            init.clone(),
            Request::Pids,
            Answer::Pids(vec![
                PidOf {
                    pid: 42,
                    exec: None,
                },
                PidOf {
                    pid: 43,
                    exec: Some(exec()),
                },
            ]),
            [
                b"\x0a\x02\x08\x2a\x0a\x2d\x08\x2b\x12\x29".to_vec(),
                packed("containerd.runc.v1.ProcessDetails", b"\x0a\x02e1"),
            ]
            .concat(),
        ),
        (
            "Kill",
            b"\x0a\x02c1\x18\x0f\x20\x01".to_vec(),
            Request::Kill {
                who: Who::Init,
                signal: 15,
                all: true,
            },
            Answer::Done,
            Vec::new(),
        ),
        (
            "Kill",
            b"\x0a\x02c1\x12\x02e1\x18\x40\x20\x01".to_vec(),
            Request::Kill {
                who: Who::Exec(exec()),
                signal: 64,
                all: false,
            },
            Answer::Done,
            Vec::new(),
        ),
        (
            "Pause",
            init.clone(),
            Request::Pause,
            Answer::Done,
            Vec::new(),
        ),
        (
            "Resume",
            init.clone(),
            Request::Resume,
            Answer::Done,
            Vec::new(),
        ),
        (
            "Delete",
            init.clone(),
            Request::Delete(Who::Init),
            Answer::Deleted {
                pid: 42,
                exit: Some(exit(Status::Exited(7))),
            },
            b"\x08\x2a\x10\x07\x1a\x04\x08\x05\x10\x06".to_vec(),
        ),
        (
            "Delete",
            of_exec.clone(),
            Request::Delete(Who::Exec(exec())),
            Answer::Deleted {
                pid: 43,
                exit: Some(lost),
            },
            b"\x08\x2b\x10\xff\x01\x1a\x04\x08\x05\x10\x06".to_vec(),
        ),
        (
            "Delete",
            of_exec.clone(),
            Request::Delete(Who::Exec(exec())),
            Answer::Deleted { pid: 0, exit: None },
            b"\x1a\x0b\x08\x80\x92\xb8\xc3\x98\xfe\xff\xff\xff\x01".to_vec(),
        ),
        (
            "CloseIO",
            b"\x0a\x02c1\x12\x02e1".to_vec(),
            Request::CloseStdin(Who::Exec(exec())),
            Answer::Done,
            Vec::new(),
        ),
        (
            "ResizePty",
            b"\x0a\x02c1\x18\x50\x20\xff\xff\x03".to_vec(),
            Request::Resize {
                who: Who::Init,
                width: 80,
                height: 65535,
            },
            Answer::Done,
            Vec::new(),
        ),
        (
            "Update",
            [init.clone(), message(&[(2, &resources)])].concat(),
            Request::Update(b"{\"memory\": 1}".to_vec()),
            Answer::Done,
            Vec::new(),
        ),
        (
            "Wait",
            init.clone(),
            Request::Wait(Who::Init),
            Answer::Exit(lost),
            b"\x08\xff\x01\x12\x04\x08\x05\x10\x06".to_vec(),
        ),
        (
            "Wait",
            of_exec,
            Request::Wait(Who::Exec(exec())),
            Answer::Exit(exit(Status::Exited(0))),
            b"\x12\x04\x08\x05\x10\x06".to_vec(),
        ),
        (
            "Stats",
            init.clone(),
            Request::Stats,
            Answer::Stats(Box::new(metrics::Metrics::V1(Box::default()))),
            message(&[(1, &message(&[(1, b"io.containerd.cgroups.v1.Metrics")]))]),
        ),
        (
            "Checkpoint",
            [init.clone(), message(&[(2, b"/img"), (3, &checkpoint)])].concat(),
            Request::Checkpoint(Box::new(Checkpoint {
                path: "/img".to_owned(),
                exit: true,
                ..Checkpoint::default()
            })),
            Answer::Done,
            Vec::new(),
        ),
        (
            "Connect",
            init.clone(),
            Request::Connect,
            Answer::Connected {
                shim_pid: 9,
                task_pid: 42,
            },
            b"\x08\x09\x10\x2a".to_vec(),
        ),
        (
            "Connect",
            b"\x0a\x05a/../".to_vec(),
            Request::Connect,
            Answer::Connected {
                shim_pid: 9,
                task_pid: 0,
            },
            b"\x08\x09".to_vec(),
        ),
        (
            "Shutdown",
            b"\x0a\x02c1\x10\x01".to_vec(),
            Request::Shutdown,
            Answer::Done,
            Vec::new(),
        ),
    ]
}

#[test]
fn every_method_under_both_names() {
    run(async {
        let (owner, server) = served().await;
        let client = client(&server).await;
        let mut methods = Vec::new();
        for (method, payload, request, answer, bytes) in table() {
            for service in [V2, V3] {
                owner.say(Ok(answer.clone()));
                owner.ends.notify_one();
                let said = call(&client, service, method, &payload).await;
                assert_eq!(said.as_ref(), Ok(&bytes), "{service}/{method}");
                let (id, asked) = owner.last();
                assert_eq!(asked, request, "{service}/{method}");
                assert_eq!(
                    id,
                    if payload.contains(&b'/') && method == "Connect" {
                        "a/../"
                    } else {
                        "c1"
                    }
                );
            }
            methods.push(method);
        }
        methods.sort_unstable();
        methods.dedup();
        assert_eq!(methods.len(), 17);
    });
}

#[test]
fn unknown_services_and_methods_are_unimplemented() {
    run(async {
        let (owner, server) = served().await;
        let client = client(&server).await;
        for service in [
            "containerd.runtime.sandbox.v1.Sandbox",
            "containerd.task.v4.Task",
            "containerd.task.v2",
            "x",
        ] {
            for payload in [&b""[..], &vec![7; 1 << 20]] {
                let (code, says) = call(&client, service, "State", payload).await.unwrap_err();
                assert_eq!(code, Code::UNIMPLEMENTED, "{service}: {says}");
                assert!(says.contains(service), "{says}");
            }
        }
        for method in ["Nope", "state", "", "Stat"] {
            let said = call(&client, V3, method, b"\x0a\x02c1").await;
            assert_eq!(code(said), Code::UNIMPLEMENTED, "{method}");
        }
        assert!(owner.asked_nothing());
        // The connection is as good as before.
        assert_eq!(
            call(&client, V2, "Pause", b"\x0a\x02c1").await,
            Ok(Vec::new())
        );
    });
}

#[test]
fn refusals_have_their_codes_and_sentences() {
    run(async {
        let (owner, server) = served().await;
        let client = client(&server).await;
        for (kind, wanted) in [
            (Kind::NotFound, Code::NOT_FOUND),
            (Kind::AlreadyExists, Code::ALREADY_EXISTS),
            (Kind::FailedPrecondition, Code::FAILED_PRECONDITION),
            (Kind::InvalidArgument, Code::INVALID_ARGUMENT),
            (Kind::Unimplemented, Code::UNIMPLEMENTED),
            (Kind::DeadlineExceeded, Code::DEADLINE_EXCEEDED),
            (Kind::ResourceExhausted, Code::RESOURCE_EXHAUSTED),
            (Kind::Unavailable, Code::UNAVAILABLE),
            (Kind::Unknown, Code::UNKNOWN),
            (Kind::Later, Code::UNKNOWN),
        ] {
            owner.say(Err(Refusal::new(kind, "because")));
            let said = call(&client, V2, "Pause", b"\x0a\x02c1").await;
            assert_eq!(said, Err((wanted, "because".to_owned())), "{kind:?}");
        }
        // An answer that does not fit its request is our fault, and said.
        owner.say(Ok(Answer::Pids(Vec::new())));
        for method in ["Create", "State", "Kill", "Delete", "Stats", "Connect"] {
            let said = call(&client, V2, method, b"\x0a\x02c1").await;
            assert_eq!(code(said), Code::UNKNOWN, "{method}");
        }
    });
}

#[test]
fn wrong_requests_do_not_get_past_the_edge() {
    run(async {
        let (owner, server) = served().await;
        let client = client(&server).await;
        let long = "x".repeat(77);
        let path = message(&[(1, b"c1")])
            .into_iter()
            .chain(big(2, 4096))
            .collect();
        let uri = message(&[(1, b"c1")])
            .into_iter()
            .chain(big(6, 16 << 10))
            .collect();
        let exec = |spec: &[u8]| message(&[(1, b"c1"), (2, b"e1"), (7, spec)]);
        let kill = |exec: &[u8]| message(&[(1, b"c1"), (2, exec)]);
        let rows: Vec<(&str, Vec<u8>, Code, &str)> = vec![
            (
                "Create",
                b"\xff\xff".to_vec(),
                Code::INVALID_ARGUMENT,
                "CreateTaskRequest",
            ),
            (
                "Create",
                b"\x0a\x02\xff\xfe".to_vec(),
                Code::INVALID_ARGUMENT,
                "decoded",
            ),
            ("Create", Vec::new(), Code::INVALID_ARGUMENT, "empty"),
            (
                "Create",
                message(&[(1, b"a/b")]),
                Code::INVALID_ARGUMENT,
                "a/b",
            ),
            (
                "Create",
                message(&[(1, b"..")]),
                Code::INVALID_ARGUMENT,
                "..",
            ),
            (
                "Create",
                message(&[(1, long.as_bytes())]),
                Code::INVALID_ARGUMENT,
                "77",
            ),
            ("Create", path, Code::INVALID_ARGUMENT, "bundle"),
            ("Create", uri, Code::INVALID_ARGUMENT, "stdout"),
            (
                "Create",
                message(&[(1, b"c1"), (2, b"/b\0c")]),
                Code::INVALID_ARGUMENT,
                "bundle",
            ),
            (
                "Create",
                message(&[(1, b"c1"), (10, &packed("foo.Options", b""))]),
                Code::INVALID_ARGUMENT,
                "foo.Options",
            ),
            (
                "Create",
                message(&[
                    (
                        10,
                        &packed("runtimeoptions.v1.Options", b"\x1a\x08Root = 1"),
                    ),
                    (1, b"c1"),
                ]),
                Code::INVALID_ARGUMENT,
                "Root of config_body must be a string, it is an integer",
            ),
            ("State", message(&[(1, b"a/b")]), Code::NOT_FOUND, "a/b"),
            ("Pids", Vec::new(), Code::NOT_FOUND, "task"),
            ("Start", kill(b"../x"), Code::NOT_FOUND, "../x"),
            ("Wait", kill(long.as_bytes()), Code::NOT_FOUND, "77"),
            (
                "Kill",
                b"\x0a\x02c1\x18\x41".to_vec(),
                Code::INVALID_ARGUMENT,
                "65",
            ),
            (
                "Kill",
                b"\x0a\x02c1\x18\xff\xff\xff\xff\x0f".to_vec(),
                Code::INVALID_ARGUMENT,
                "4294967295",
            ),
            (
                "ResizePty",
                b"\x0a\x02c1\x18\x80\x80\x04".to_vec(),
                Code::INVALID_ARGUMENT,
                "width",
            ),
            (
                "ResizePty",
                b"\x0a\x02c1\x20\x80\x80\x04".to_vec(),
                Code::INVALID_ARGUMENT,
                "height",
            ),
            (
                "Exec",
                message(&[(1, b"c1"), (2, b"e1")]),
                Code::INVALID_ARGUMENT,
                "spec of exec e1 is missing",
            ),
            (
                "Exec",
                message(&[(1, b"c1")]),
                Code::INVALID_ARGUMENT,
                "exec",
            ),
            (
                "Exec",
                exec(&packed("foo.Process", b"{}")),
                Code::INVALID_ARGUMENT,
                "foo.Process",
            ),
            (
                "Exec",
                exec(&packed("xopencontainers/runtime-spec/1/Process", b"{}")),
                Code::INVALID_ARGUMENT,
                "xopencontainers",
            ),
            (
                "Exec",
                exec(&packed(RESOURCES, b"{}")),
                Code::INVALID_ARGUMENT,
                "LinuxResources",
            ),
            (
                "Exec",
                message(&[(1, b"c1"), (2, b"a b"), (7, &packed(PROCESS, b"{}"))]),
                Code::INVALID_ARGUMENT,
                "a b",
            ),
            (
                "Update",
                message(&[(1, b"c1")]),
                Code::INVALID_ARGUMENT,
                "resources is missing",
            ),
            (
                "Update",
                message(&[(1, b"c1"), (2, &packed(PROCESS, b"{}"))]),
                Code::INVALID_ARGUMENT,
                "LinuxResources",
            ),
            (
                "Checkpoint",
                message(&[(1, b"c1"), (3, &packed("containerd.runc.v1.Options", b""))]),
                Code::INVALID_ARGUMENT,
                "containerd.runc.v1.Options",
            ),
        ];
        for (method, payload, wanted, word) in rows {
            let (code, says) = call(&client, V2, method, &payload).await.unwrap_err();
            assert_eq!(code, wanted, "{method}: {says}");
            assert!(says.contains(word), "{method}: {says}");
            assert!(owner.asked_nothing(), "{method}: {says}");
        }
    });
}

/// One string field of `length` bytes.
fn big(number: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![
        number << 3 | 2,
        u8::try_from(length & 0x7f).unwrap() | 0x80,
        u8::try_from(length >> 7 & 0x7f).unwrap() | 0x80,
        u8::try_from(length >> 14).unwrap(),
    ];
    bytes.resize(4 + length, b'x');
    bytes
}

#[test]
fn twenty_thousand_pids_fit() {
    run(async {
        let (owner, server) = served().await;
        let client = client(&server).await;
        owner.say(Ok(Answer::Pids(
            (1..=20_000)
                .map(|pid| PidOf {
                    pid: pid + 100_000,
                    exec: (pid % 100 == 0).then(|| ExecId::new(format!("exec-{pid}")).unwrap()),
                })
                .collect(),
        )));
        let bytes = call(&client, V3, "Pids", b"\x0a\x02c1").await.unwrap();
        let answer: containerd_shim_protos::api::PidsResponse =
            protobuf::Message::parse_from_bytes(&bytes).unwrap();
        assert_eq!(answer.processes.len(), 20_000);
        assert_eq!(answer.processes[19_999].pid, 120_000);
        assert!(answer.processes[99].info.value.ends_with(b"exec-100"));
        assert!(answer.processes[98].info.is_none());
    });
}
