//! Exec and Update with something wrong in them. The exec is refused by name, the
//! container runs on, and the same exec id serves afterwards.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::{ExecProcessRequest, UpdateTaskRequest};
use protobuf::Message;
use serde_json::{Value, json};
use vigil_hostile::{FaultyRunc, Trace, refused, trial};
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::{Container, exec_spec};
use vigil_lab::process::Process;
use vigil_lab::task::{V2, any};
use vigil_lab::{GENEROUS, Kit, Spec, by, until};

const UNKNOWN: i32 = 2;
const INVALID: i32 = 3;
const LATE: i32 = 4;
const MISSING: i32 = 5;
const EXISTS: i32 = 6;

const RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// One process and no more, so that whatever else is there came from an exec.
fn running(kit: &Kit) -> Result<Container> {
    settled(kit.running(&Spec::args(&["sleep", "1000"]))?)
}

/// Start answers before runc's init has become the program.
fn settled(container: Container) -> Result<Container> {
    let pid = i32::try_from(container.pid)?;
    until("init to become its program", by(5.0), || {
        (Process::read(pid)?.cmdline == "sleep 1000").then_some(())
    })?;
    Ok(container)
}

fn request(container: &Container, exec: &str, spec: Option<Vec<u8>>) -> ExecProcessRequest {
    ExecProcessRequest {
        id: container.id.clone(),
        exec_id: exec.into(),
        spec: spec.map(|bytes| any(PROCESS, bytes)).into(),
        ..Default::default()
    }
}

/// The container is as it was, and an exec with this id runs.
fn as_ever(kit: &Kit, container: &Container, exec: &str) -> Result<()> {
    let task = container.task();
    ensure!(task.state(&container.id, "")?.pid == container.pid);
    let made = kit.exec(container, exec, &Spec::sh("echo hello; exit 4"))?;
    task.start(&container.id, exec)?;
    ensure!(task.wait(&container.id, exec)?.exit_status == 4);
    made.stdout.expect("hello", by(5.0))?;
    task.delete(&container.id, exec)?;
    for name in ["stdin", "stdout", "stderr"] {
        let path = format!("state/{}-{exec}.{name}", container.id);
        let _ = fs::remove_file(kit.scratch.path(&path));
    }
    Ok(())
}

/// Start of `exec` fails so, leaves nothing, and the id serves after Delete.
fn start_fails(
    kit: &Kit,
    container: &Container,
    asked: &ExecProcessRequest,
    code: i32,
    says: &[&str],
) -> Result<()> {
    let (task, exec) = (container.task(), asked.exec_id.as_str());
    let before = Trace::of(kit.scratch.mark(), &container.bundle.dir);
    task.exec(asked)?;
    refused(task.start(&container.id, exec), code, says)?;
    before.expect_back()?;
    let deleted = task.delete(&container.id, exec);
    deleted.with_context(|| format!("Delete of exec {exec}, which failed to start"))?;
    refused(task.state(&container.id, exec), MISSING, &[exec])?;
    as_ever(kit, container, exec)
}

#[test]
fn a_binary_that_is_not_there() {
    trial(40, |kit| {
        let container = running(kit)?;
        let spec = |arg: &str| Some(Spec::args(&[arg]).process().to_string().into_bytes());
        for (arg, cause) in [
            ("/no/such/binary", "/no/such/binary"),
            ("no-such-name", "no-such-name"),
            ("/etc", "/etc"),
        ] {
            let asked = request(&container, "e1", spec(arg));
            start_fails(kit, &container, &asked, UNKNOWN, &[cause])
                .with_context(|| arg.to_owned())?;
        }
        let mut process = Spec::args(&["true"]).process();
        process["cwd"] = json!("/no/such/cwd");
        let asked = request(&container, "e2", Some(process.to_string().into_bytes()));
        start_fails(kit, &container, &asked, UNKNOWN, &["/no/such/cwd"])
    });
}

#[test]
fn a_spec_that_is_none() {
    trial(40, |kit| {
        let container = running(kit)?;
        let specs: [Option<Vec<u8>>; 7] = [
            None,
            Some(Vec::new()),
            Some(b"{".to_vec()),
            Some(b"[1,2]".to_vec()),
            Some(b"null".to_vec()),
            Some(b"\xff\xfe".to_vec()),
            Some(b"{\"args\": 7}".to_vec()),
        ];
        for (number, spec) in specs.into_iter().enumerate() {
            let exec = format!("bad{number}");
            let asked = request(&container, &exec, spec);
            let before = Trace::of(kit.scratch.mark(), &container.bundle.dir);
            let task = container.task();
            // Refused when registered, or when started; either way by name.
            let registered = task.exec(&asked);
            if registered.is_ok() {
                let started = task.start(&container.id, &exec);
                ensure!(started.is_err(), "spec {number} was started: {started:?}");
                task.delete(&container.id, &exec)?;
            } else {
                refused(registered, INVALID, &[&exec]).with_context(|| format!("spec {number}"))?;
            }
            before.expect_back()?;
            as_ever(kit, &container, &exec)?;
        }
        // Args that are a number get as far as runc, which says what it does not like.
        let asked = request(
            &container,
            "odd",
            Some(b"{\"args\": 7, \"cwd\": \"/\"}".to_vec()),
        );
        start_fails(kit, &container, &asked, UNKNOWN, &["args"])
    });
}

#[test]
fn ids_that_are_taken_or_none() {
    trial(40, |kit| {
        let container = running(kit)?;
        let task = container.task();
        let spec = Some(Spec::sleeper().process().to_string().into_bytes());
        let asked = request(&container, "twice", spec.clone());
        task.exec(&asked)?;
        refused(task.exec(&asked), EXISTS, &["twice"])?;
        task.start(&container.id, "twice")?;
        refused(task.exec(&asked), EXISTS, &["twice"])?;
        let again = task.start(&container.id, "twice");
        ensure!(again.is_err(), "started twice: {again:?}");
        task.kill(&container.id, "twice", 9, false)?;
        ensure!(task.wait(&container.id, "twice")?.exit_status == 137);
        refused(task.exec(&asked), EXISTS, &["twice"])?;
        task.delete(&container.id, "twice")?;
        as_ever(kit, &container, "twice")?;
        let long = "x".repeat(77);
        for exec in ["a/b", "..", ".", "a b", "../../e", long.as_str()] {
            let before = Trace::of(kit.scratch.mark(), &container.bundle.dir);
            let shown = if exec == long { "77" } else { exec };
            refused(
                task.exec(&request(&container, exec, spec.clone())),
                INVALID,
                &[shown],
            )
            .with_context(|| format!("exec {exec:?}"))?;
            before.expect_back()?;
        }
        refused(task.start(&container.id, "never"), MISSING, &["never"])?;
        refused(
            task.kill(&container.id, "never", 9, false),
            MISSING,
            &["never"],
        )?;
        refused(task.delete(&container.id, "never"), MISSING, &["never"])?;
        refused(
            task.wait(&container.id, "never").map(drop),
            MISSING,
            &["never"],
        )
    });
}

#[test]
fn streams_that_cannot_be_opened() {
    trial(40, |kit| {
        let container = running(kit)?;
        let dir = kit.scratch.path("a-directory");
        fs::create_dir(&dir)?;
        let dir = dir.to_str().unwrap().to_owned();
        let missing = kit
            .scratch
            .path("nowhere/fifo")
            .to_str()
            .unwrap()
            .to_owned();
        let spec = Some(Spec::args(&["true"]).process().to_string().into_bytes());
        for path in [&dir, &missing] {
            let mut asked = request(&container, "e", spec.clone());
            asked.stdout.clone_from(path);
            start_fails(kit, &container, &asked, UNKNOWN, &[path])?;
            let mut asked = request(&container, "e", spec.clone());
            asked.stdin.clone_from(path);
            start_fails(kit, &container, &asked, UNKNOWN, &[path])?;
        }
        Ok(())
    });
}

#[test]
fn runc_exec_that_fails_or_hangs() {
    trial(60, |kit| {
        kit.caller
            .env
            .push(("VIGIL_DEADLINE_EXEC_MS".into(), "500".into()));
        let runc = FaultyRunc::new(kit.scratch.dir(), "none", "none")?;
        let container = kit.prepared(&Spec::args(&["sleep", "1000"]), Stdio::Output)?;
        let mut create = container.bundle.create_request();
        create.options = Some(runc.options()).into();
        let pid = container.task().create(&create)?.pid;
        let container = Container { pid, ..container };
        container.start()?;
        let container = settled(container)?;
        let path = runc.path().to_str().unwrap().to_owned();
        let process = exec_spec(&Spec::args(&["sleep", "1000"]));
        for (fault, code, says) in [
            ("exit-1", UNKNOWN, path.as_str()),
            ("logs", UNKNOWN, "out of sorts"),
            ("crashes", UNKNOWN, "signal 11"),
            ("floods", UNKNOWN, path.as_str()),
            ("no-pid", UNKNOWN, "exec-e.pid"),
            ("torn-pid", UNKNOWN, "exec-e.pid"),
            ("hangs", LATE, path.as_str()),
            ("hangs-deaf", LATE, path.as_str()),
            // The process is there: nobody will ever ask for it, so it must go.
            ("done-then-fails", UNKNOWN, path.as_str()),
            ("done-then-hangs", LATE, path.as_str()),
        ] {
            runc.commit("exec", fault)?;
            let before = Trace::of(kit.scratch.mark(), &container.bundle.dir);
            let asked = ExecProcessRequest {
                spec: Some(process.clone()).into(),
                ..request(&container, "e", None)
            };
            let task = container.task();
            task.exec(&asked)?;
            let began = Instant::now();
            refused(task.start(&container.id, "e"), code, &[says])
                .with_context(|| fault.to_owned())?;
            ensure!(began.elapsed() < GENEROUS, "{fault}: {:?}", began.elapsed());
            before.expect_back().with_context(|| fault.to_owned())?;
            task.delete(&container.id, "e")?;
            runc.commit("none", "none")?;
            as_ever(kit, &container, "e").with_context(|| format!("after {fault}"))?;
        }
        Ok(())
    });
}

#[test]
fn an_update_that_gets_stuck_half_way_leaves_nothing_frozen() {
    trial(60, |kit| {
        kit.caller
            .env
            .push(("VIGIL_DEADLINE_UPDATE_MS".into(), "500".into()));
        let runc = FaultyRunc::new(kit.scratch.dir(), "update", "freezes-and-hangs")?;
        let script = "while :; do echo tick; sleep 0.05; done";
        let container = kit.prepared(&Spec::sh(script), Stdio::Output)?;
        let mut request = container.bundle.create_request();
        request.options = Some(runc.options()).into();
        let (task, id) = (container.task(), &container.id);
        task.create(&request)?;
        task.start(id, "")?;
        container.out()?.expect("tick", by(10.0))?;
        let told = task.update(id, &json!({}));
        ensure!(told.is_err(), "it was not stuck");
        let before = container.out()?.so_far().len();
        until("the container to run on", by(10.0), || {
            (container.out().ok()?.so_far().len() > before + 100).then_some(())
        })?;
        task.kill(id, "", 9, false)?;
        Ok(())
    });
}

#[test]
fn resources_that_are_none() {
    trial(40, |kit| {
        let container = running(kit)?;
        let task = container.task();
        let wrong: [(Value, &str); 4] = [
            (json!([1, 2]), ""),
            (json!({"memory": "much"}), "memory"),
            (json!({"memory": {"limit": "much"}}), "limit"),
            (json!("text"), ""),
        ];
        for (resources, says) in wrong {
            let told = task.update(&container.id, &resources);
            ensure!(told.is_err(), "Update with {resources} was taken");
            let text = told.unwrap_err().to_string();
            ensure!(
                text.contains("code 2") || text.contains("code 3"),
                "{resources}: {text}"
            );
            ensure!(text.contains(says), "{says} is not named in: {text}");
        }
        // Bytes that are no JSON at all, and none.
        for bytes in [&b"{\"memory\": "[..], b"\xff\xfe", b""] {
            let request = UpdateTaskRequest {
                id: container.id.clone(),
                resources: Some(any(RESOURCES, bytes)).into(),
                ..Default::default()
            };
            let told = task
                .client()
                .call(V2, "Update", request.write_to_bytes()?, by(10.0));
            ensure!(told.is_err(), "Update with {bytes:?} was taken");
        }
        let none = UpdateTaskRequest {
            id: container.id.clone(),
            ..Default::default()
        };
        let told = task
            .client()
            .call(V2, "Update", none.write_to_bytes()?, by(10.0));
        refused(told, INVALID, &["resources"])?;
        // A limit below what is in use: the kernel's no, not ours.
        let small = task.update(&container.id, &json!({"memory": {"limit": 4096}}));
        if let Err(error) = small {
            ensure!(error.to_string().contains("memory"), "{error}");
        }
        as_ever(kit, &container, "e")
    });
}

#[test]
fn nothing_of_our_environment_reaches_the_container() {
    trial(40, |kit| {
        kit.caller
            .env
            .push(("VIGIL_IDLE_MS".into(), "60000".into()));
        kit.caller
            .env
            .push(("NOTIFY_SOCKET".into(), "/no/such".into()));
        let container = kit.running(&Spec::sh("env; sleep 1000"))?;
        let exec = kit.exec(&container, "e", &Spec::args(&["env"]))?;
        container.task().start(&container.id, "e")?;
        ensure!(container.task().wait(&container.id, "e")?.exit_status == 0);
        let (bytes, _) = exec.stdout.to_end(by(5.0))?;
        container.out()?.expect("TERM=xterm", by(5.0))?;
        for bytes in [bytes, container.out()?.so_far()] {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            ensure!(text.contains("TERM=xterm"), "{text}");
            for name in ["VIGIL_", "NOTIFY_SOCKET", "TTRPC_ADDRESS", "GOMAXPROCS"] {
                ensure!(!text.contains(name), "{name} is in:\n{text}");
            }
        }
        Ok(())
    });
}
