//! Calls of the real runc (and crun, where it is installed), and of scripts
//! that misbehave in the ways runc has been seen to.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vigil_sys::{Errno, fd, mount, pidfd};

use super::*;
use crate::worker::{Outcome, Worker};

const LONG: Duration = Duration::from_mins(1);
const GRACE: Duration = Duration::from_millis(300);

/// A bundle with a busybox in it; whatever was made of it is taken away again,
/// also when the test fails.
struct Container {
    dir: tempfile::TempDir,
    runtime: Runtime,
    id: String,
}

impl Container {
    fn new(program: &str, args: &[&str]) -> Container {
        let dir = tempfile::Builder::new()
            .prefix("vigil-runc-")
            .tempdir()
            .unwrap();
        let bin = dir.path().join("rootfs/bin");
        fs::create_dir_all(&bin).unwrap();
        for directory in ["proc", "dev", "sys"] {
            fs::create_dir(dir.path().join("rootfs").join(directory)).unwrap();
        }
        fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
        for name in ["sh", "sleep", "echo", "cat", "ls"] {
            std::os::unix::fs::symlink("busybox", bin.join(name)).unwrap();
        }
        let id = dir
            .path()
            .file_name()
            .unwrap()
            .to_string_lossy()
            .into_owned();
        let spec = serde_json::json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false,
                "user": {"uid": 0, "gid": 0},
                "args": args,
                "env": ["PATH=/bin"],
                "cwd": "/",
            },
            "root": {"path": "rootfs", "readonly": true},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {
                "cgroupsPath": format!("/{id}"),
                "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}],
            },
        });
        fs::write(dir.path().join("config.json"), spec.to_string()).unwrap();
        let runtime = Runtime {
            program: program.into(),
            root: dir.path().join("state"),
            systemd_cgroup: false,
        };
        Container { dir, runtime, id }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn call(&self, call: Call<'_>, streams: Streams<'_>) -> Result<(), Failure> {
        let running = Invocation::new(&self.runtime, call)
            .streams(streams)
            .spawn()?;
        running.wait(LONG, GRACE)
    }

    fn create(&self, streams: Streams<'_>) -> Result<OwnedFd, Failure> {
        let pid_file = self.path("init.pid");
        let call = Call::Create {
            id: &self.id,
            bundle: self.dir.path(),
            pid_file: &pid_file,
            console_socket: None,
            no_pivot: false,
            no_new_keyring: true,
        };
        self.call(call, streams)?;
        Ok(watch(&pid_file))
    }

    fn exec(&self, spec: &[u8], name: &str, streams: Streams<'_>) -> Result<OwnedFd, Failure> {
        let pid_file = self.path(name);
        let process = process_document(spec, false).unwrap();
        let call = Call::Exec {
            id: &self.id,
            process: &process,
            pid_file: &pid_file,
            console_socket: None,
        };
        self.call(call, streams)?;
        Ok(watch(&pid_file))
    }

    fn delete(&self, force: bool) -> Result<(), Failure> {
        self.call(
            Call::Delete {
                id: &self.id,
                force,
            },
            Streams::default(),
        )
    }

    /// Names in the bundle that no test put there.
    fn strangers(&self) -> Vec<String> {
        let known = ["rootfs", "config.json", "state", "init.pid", "exec.pid"];
        let names = fs::read_dir(self.dir.path()).unwrap().flatten();
        let names = names.map(|e| e.file_name().to_string_lossy().into_owned());
        names.filter(|n| !known.contains(&n.as_str())).collect()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.delete(true);
    }
}

/// A pidfd of the process whose number runc wrote down just now.
fn watch(pid_file: &Path) -> OwnedFd {
    let pid = fs::read_to_string(pid_file).unwrap().parse().unwrap();
    pidfd::open(pid).unwrap()
}

fn gone(process: &OwnedFd) -> bool {
    fd::wait_readable(process, LONG).unwrap()
}

fn content(file: &OwnedFd) -> String {
    let file = fs::File::from(fd::duplicate(file).unwrap());
    let mut bytes = vec![0; 1 << 16];
    let count = file.read_at(&mut bytes, 0).unwrap();
    String::from_utf8_lossy(&bytes[..count]).into_owned()
}

/// Runs `test` for runc, and for crun where it is installed. crun refuses
/// hosts with both kinds of cgroups; it gets a mount namespace in which there
/// is only the second.
fn for_each_program(test: impl Fn(&str) + std::panic::RefUnwindSafe) {
    assert!(
        find_program("runc".as_ref()).is_ok(),
        "these tests need runc"
    );
    test("runc");
    if find_program("crun".as_ref()).is_err() {
        return;
    }
    let worker = Worker::start("crun", || {
        let unified = Path::new("/sys/fs/cgroup/unified");
        if unified.exists() {
            let onto = Path::new("/sys/fs/cgroup");
            mount::unshare_private()
                .and_then(|()| {
                    let flags = mount::Flags::MS_BIND;
                    mount::mount(Some(unified.as_os_str()), onto, None, flags, None)
                })
                .map_err(|e| e.to_string())?;
        }
        std::panic::catch_unwind(|| test("crun")).map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.unwrap_or_else(|| "assertion failed".into())
        })
    })
    .unwrap();
    assert_eq!(worker.wait(LONG).unwrap(), Outcome::Done);
}

/// A script in a directory of its own, as a runtime.
fn script(text: &str) -> (tempfile::TempDir, Runtime) {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("runc");
    fs::write(&program, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let runtime = Runtime {
        program: program.into(),
        root: dir.path().join("state"),
        systemd_cgroup: false,
    };
    (dir, runtime)
}

fn start_of(runtime: &Runtime, deadline: Duration) -> Result<(), Failure> {
    Invocation::new(runtime, Call::Start { id: "c" })
        .spawn()?
        .wait(deadline, GRACE)
}

#[test]
fn a_container_from_create_to_delete() {
    for_each_program(|program| {
        let container = Container::new(
            program,
            &[
                "sh",
                "-c",
                "echo out; echo err >&2; ls /proc/self/fd; sleep 600",
            ],
        );
        let (out, err) = (fd::memfd(c"out").unwrap(), fd::memfd(c"err").unwrap());
        let streams = Streams {
            stdin: None,
            stdout: Some(out.as_fd()),
            stderr: Some(err.as_fd()),
        };
        let init = container.create(streams).unwrap();
        assert_eq!(content(&out), "", "{program}: runs before start");
        container
            .call(Call::Start { id: &container.id }, Streams::default())
            .unwrap();

        let said = fd::memfd(c"said").unwrap();
        let spec = br#"{"args":["sh","-c","echo $X; ls /proc/self/fd"],"env":["PATH=/bin","X=exec"],"cwd":"/","terminal":true}"#;
        let streams = Streams {
            stdin: None,
            stdout: Some(said.as_fd()),
            stderr: None,
        };
        let process = container.exec(spec, "exec.pid", streams).unwrap();
        assert!(gone(&process));
        // Neither log nor document nor anything else of ours came through; 3
        // is ls's own.
        assert_eq!(content(&said), "exec\n0\n1\n2\n3\n", "{program}");

        let limits = br#"{"pids":{"limit":77}}"#;
        let update = Call::Update {
            id: &container.id,
            resources: limits,
        };
        let updated = container.call(update, Streams::default());
        let v1 = Path::new("/sys/fs/cgroup/pids")
            .join(&container.id)
            .join("pids.max");
        let v2 = Path::new("/sys/fs/cgroup")
            .join(&container.id)
            .join("pids.max");
        if let Some(limit) = [v1, v2].into_iter().find(|p| p.exists()) {
            updated.unwrap();
            assert_eq!(fs::read_to_string(limit).unwrap().trim(), "77", "{program}");
        } else {
            // A host without the controller: it has read what was asked.
            let failure = updated.unwrap_err();
            assert!(failure.message.contains("pids"), "{program}: {failure}");
        }

        let refused = container.delete(false).unwrap_err();
        assert_eq!(
            (refused.class, refused.verb),
            (Class::Refused, Verb::Delete),
            "{program}"
        );
        assert!(
            refused.to_string().starts_with("failed to delete task: "),
            "{refused}"
        );
        assert!(refused.message.len() > 10, "{refused}");

        pidfd::send_signal(&init, 9).unwrap();
        assert!(gone(&init));
        assert_eq!(content(&out), "out\n0\n1\n2\n3\n", "{program}");
        assert_eq!(content(&err), "err\n", "{program}");
        container.delete(true).unwrap();
        assert!(!container.runtime.root.join(&container.id).exists());
        assert_eq!(container.strangers(), [""; 0], "{program}");
    });
}

#[test]
fn what_a_killed_call_left_is_not_in_the_way() {
    for_each_program(|program| {
        let container = Container::new(program, &["sleep", "600"]);
        // runc makes the first, writes it, and renames it to the second.
        fs::write(container.path(".init.pid"), "").unwrap();
        fs::write(container.path("init.pid"), "1").unwrap();
        container.create(Streams::default()).unwrap();
        assert_eq!(container.strangers(), Vec::<String>::new(), "{program}");
    });
}

#[test]
fn the_message_is_that_of_this_call() {
    for_each_program(|program| {
        let container = Container::new(program, &["/no/such/program"]);
        // Both look for the program before they say that it is created.
        let Err(failure) = container.create(Streams::default()) else {
            panic!("{program} created it");
        };
        assert_eq!(
            (failure.class, failure.verb),
            (Class::Refused, Verb::Create),
            "{failure}"
        );
        assert!(
            failure
                .to_string()
                .starts_with("OCI runtime create failed: "),
            "{failure}"
        );
        assert!(
            failure.message.contains("/no/such/program"),
            "{program}: {failure}"
        );
        let failure = container
            .call(Call::Start { id: "other" }, Streams::default())
            .unwrap_err();
        assert!(
            !failure.message.contains("/no/such/program"),
            "{program}: {failure}"
        );
        assert!(failure.message.len() > 5, "{program}: {failure}");
        assert_eq!(container.strangers(), [""; 0], "{program}");
    });
}

#[test]
fn an_exec_that_cannot_be_is_an_error_and_the_container_lives() {
    for_each_program(|program| {
        let container = Container::new(program, &["sleep", "600"]);
        let init = container.create(Streams::default()).unwrap();
        container
            .call(Call::Start { id: &container.id }, Streams::default())
            .unwrap();
        let spec = br#"{"args":["/missing"],"env":["PATH=/bin"],"cwd":"/"}"#;
        let failure = container
            .exec(spec, "exec.pid", Streams::default())
            .unwrap_err();
        assert!(
            failure.to_string().starts_with("OCI runtime exec failed: "),
            "{failure}"
        );
        assert!(failure.message.contains("/missing"), "{program}: {failure}");
        assert!(!pidfd::is_dead(&init).unwrap(), "{program}");
    });
}

#[test]
fn what_a_program_tells_of_itself_is_read() {
    let runtime = Runtime {
        program: "runc".into(),
        root: "/nowhere".into(),
        systemd_cgroup: false,
    };
    let version = Invocation::new(&runtime, Call::Version)
        .run(LONG, GRACE)
        .unwrap();
    let version = String::from_utf8(version).unwrap();
    assert!(version.starts_with("runc version "), "{version}");
}

#[test]
fn a_program_that_cannot_run_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let class = |program: &Path| {
        let program = OsString::from(program);
        let runtime = Runtime {
            program,
            root: dir.path().into(),
            systemd_cgroup: false,
        };
        let failure = start_of(&runtime, LONG).unwrap_err();
        let name = runtime.program.to_string_lossy().into_owned();
        assert!(failure.to_string().contains(&name), "{failure}");
        assert!(matches!(failure.exit, Ended::NotStarted(_)));
        failure.class
    };
    assert_eq!(class(Path::new("no-such-runtime")), Class::NotFound);
    assert_eq!(class(&dir.path().join("missing")), Class::NotFound);
    assert_eq!(class(dir.path()), Class::NotExecutable);
    let plain = dir.path().join("plain");
    fs::write(&plain, "\x7fELF").unwrap();
    assert_eq!(class(&plain), Class::NotExecutable);
    fs::set_permissions(&plain, PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(class(&plain), Class::NotExecutable);
    fs::write(&plain, "#!/no/such/interpreter\n").unwrap();
    assert_eq!(class(&plain), Class::NotFound);
}

#[test]
fn exit_codes_and_words() {
    let (_dir, silent) = script("exit 1");
    let failure = start_of(&silent, LONG).unwrap_err();
    assert_eq!(
        (failure.class, failure.exit),
        (Class::Refused, Ended::Code(1))
    );
    assert_eq!(
        failure.to_string(),
        format!(
            "OCI runtime start failed: {} start exited with 1 and said nothing",
            Path::new(&silent.program).display()
        )
    );
    let (_dir, talks) = script("echo no luck today >&2; exit 3");
    assert_eq!(start_of(&talks, LONG).unwrap_err().message, "no luck today");
    let (_dir, logs) = script(
        r#"echo '{"level":"error","msg":"from the log"}' >> /proc/self/fd/3; echo noise >&2; exit 1"#,
    );
    assert_eq!(start_of(&logs, LONG).unwrap_err().message, "from the log");
    let (_dir, half) = script(r#"printf '{"level":"error","msg":"ha' >&3; echo whole >&2; exit 1"#);
    assert_eq!(start_of(&half, LONG).unwrap_err().message, "whole");
}

#[test]
fn a_crash_is_no_refusal() {
    let (_dir, crashes) = script("kill -SEGV $$");
    let failure = start_of(&crashes, LONG).unwrap_err();
    assert_eq!(
        (failure.class, failure.exit),
        (Class::Died, Ended::Signal(11))
    );
    assert!(failure.message.contains("signal 11"), "{failure}");
}

#[test]
fn a_flood_of_words_stops_nothing_and_costs_little() {
    let (_dir, floods) =
        script("head -c 1048576 /dev/zero | tr '\\0' x >&2 2>/dev/null; echo >&2; exit 5");
    let running = Invocation::new(&floods, Call::Start { id: "c" })
        .spawn()
        .unwrap();
    let failure = running.wait(LONG, GRACE).unwrap_err();
    assert_eq!(failure.exit, Ended::Code(5));
    let kept = fs::File::from(fd::duplicate(&running.printed).unwrap());
    assert!(kept.metadata().unwrap().len() <= 256 * 1024);
    assert!(running.printed().len() > 100 * 1024);
    assert!(failure.message.len() < 5000);
}

/// `hang.pids` beside the script holds the pids of what it started.
fn started(dir: &Path) -> Vec<OwnedFd> {
    let begun = Instant::now();
    loop {
        let text = fs::read_to_string(dir.join("hang.pids")).unwrap_or_default();
        if let Some(pids) = text.strip_suffix("end\n") {
            return pids
                .lines()
                .map(|p| pidfd::open(p.parse().unwrap()).unwrap())
                .collect();
        }
        assert!(begun.elapsed() < LONG, "script did not get there");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_hang_ends_with_its_group() {
    for (ignore, least) in [("", Duration::ZERO), ("trap '' TERM", GRACE)] {
        let (dir, hangs) = script(&format!(
            "{ignore}\nsleep 600 & a=$!\nsh -c '{ignore}\nsleep 601; true' & b=$!\n\
             printf '%s\\n' $$ $a $b end > {}/hang.pids\nwait; sleep 602",
            "${0%/*}",
        ));
        let running = Invocation::new(&hangs, Call::Start { id: "c" })
            .spawn()
            .unwrap();
        let processes = started(dir.path());
        assert_eq!(processes.len(), 3);
        assert!(running.ended().is_none());
        let begun = Instant::now();
        let failure = running.wait(Duration::from_millis(100), GRACE).unwrap_err();
        assert_eq!(failure.class, Class::Overdue);
        assert!(begun.elapsed() >= Duration::from_millis(100) + least);
        assert!(
            failure
                .message
                .contains("runc start did not finish within 0."),
            "{failure}"
        );
        assert!(failure.message.contains("sleep"), "says where: {failure}");
        for process in &processes {
            assert!(gone(process), "{ignore}: something is left");
        }
    }
}

#[test]
fn what_a_failed_call_leaves_in_its_group_is_killed_a_good_ones_is_not() {
    for (code, dies) in [(1, true), (0, false)] {
        let (dir, leaves) = script(&format!(
            "sleep 600 >/dev/null 2>&1 &\nprintf '%s\\n' $! end > ${{0%/*}}/hang.pids; exit {code}"
        ));
        assert_eq!(start_of(&leaves, LONG).is_err(), dies);
        let processes = started(dir.path());
        if dies {
            assert!(gone(&processes[0]));
        } else {
            assert!(!pidfd::is_dead(&processes[0]).unwrap());
            pidfd::send_signal(&processes[0], 9).unwrap();
        }
    }
}

#[test]
fn a_finished_call_is_not_signalled_again() {
    let (_dir, quick) = script("exit 0");
    let running = Invocation::new(&quick, Call::Start { id: "c" })
        .spawn()
        .unwrap();
    assert_eq!(running.wait(LONG, GRACE), Ok(()));
    assert_eq!(running.kill_group(), Ok(()));
    assert_eq!(pidfd::send_signal(running.pidfd(), 0), Err(Errno::ESRCH));
    // Asked again, it is not known, and not success.
    assert_eq!(
        running.ended().expect("it ended").unwrap_err().exit,
        Ended::Unknown
    );
}

#[test]
fn what_is_addressed_to_us_is_not_handed_on() {
    let ours = [
        "PATH",
        "NOTIFY_SOCKET",
        "LISTEN_FDS",
        "VIGIL_X",
        "NOTIFY_SOCKETS",
    ];
    let ours = ours
        .into_iter()
        .map(|n| (OsString::from(n), OsString::from("v")));
    let kept: Vec<OsString> = super::run::environment(ours).map(|(n, _)| n).collect();
    assert_eq!(kept, ["PATH", "NOTIFY_SOCKETS"]);
}

#[test]
fn every_verb_has_a_deadline_below_what_its_client_waits() {
    let deadlines = Deadlines::default();
    assert!(deadlines.of(Verb::Create) < Duration::from_mins(2));
    for verb in [
        Verb::Start,
        Verb::Exec,
        Verb::Delete,
        Verb::Update,
        Verb::Version,
    ] {
        assert!(deadlines.of(verb) > Duration::ZERO && deadlines.of(verb) < Duration::from_mins(2));
    }
}
