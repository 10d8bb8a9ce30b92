//! Create with something wrong in the bundle, the request, the streams or runc. Whatever
//! it is, the answer names it, the host is as before, and the same id can be created
//! afterwards under the same shim.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio as Pipe};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::{CreateTaskRequest, Mount};
use protobuf::well_known_types::any::Any;
use vigil_hostile::{
    FaultyRunc, Trace, as_ever, exit_in_time, refused, runc_options, toml_options, trial,
};
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::process::mkfifo;
use vigil_lab::residue::mount_points;
use vigil_lab::task::any;
use vigil_lab::{GENEROUS, Kit, Spec, by};

const UNKNOWN: i32 = 2;
const INVALID: i32 = 3;
const LATE: i32 = 4;
const PRECONDITION: i32 = 9;

fn prepared(kit: &Kit) -> Result<Container> {
    kit.prepared(&Spec::sh("echo hello; exit 3"), Stdio::Output)
}

/// Create fails with `code` and these words, and leaves the host as it was.
fn fails(
    kit: &Kit,
    container: &Container,
    request: &CreateTaskRequest,
    code: i32,
    says: &[&str],
) -> Result<()> {
    let before = Trace::of(kit.scratch.mark(), &container.bundle.dir);
    let answer = container.task().patient(30.0).create(request);
    refused(answer, code, says)?;
    before.expect_back()?;
    // No task is left that would be in the way of Delete's NOT_FOUND (contract §2.4).
    let deleted = container.task().delete(&container.id, "");
    refused(deleted, 5, &[]).context("Delete of what was not created")
}

/// Once with the request changed, then as it should be.
fn fails_once(
    kit: &Kit,
    change: impl FnOnce(&mut CreateTaskRequest),
    code: i32,
    says: &[&str],
) -> Result<()> {
    let mut container = prepared(kit)?;
    let mut request = container.bundle.create_request();
    change(&mut request);
    fails(kit, &container, &request, code, says)?;
    as_ever(kit, &mut container, 3, "hello")
}

fn with_options(kit: &Kit, options: Any, code: i32, says: &[&str]) -> Result<()> {
    fails_once(
        kit,
        |request| request.options = Some(options).into(),
        code,
        says,
    )
}

#[test]
fn config_json_missing_truncated_huge_or_no_file() {
    trial(60, |kit| {
        type Spoil = fn(&Path) -> Result<()>;
        let spoilt: [(&str, Spoil); 8] = [
            ("No such file", |path| Ok(fs::remove_file(path)?)),
            ("not an OCI spec", |path| {
                let whole = fs::read(path)?;
                Ok(fs::write(path, &whole[..whole.len() / 2])?)
            }),
            ("not an OCI spec", |path| Ok(fs::write(path, "")?)),
            ("not an OCI spec", |path| Ok(fs::write(path, [0xff; 64])?)),
            ("10485760", |path| {
                let mut whole = fs::read(path)?;
                whole.resize((10 << 20) + 1, b' ');
                Ok(fs::write(path, whole)?)
            }),
            ("config.json", |path| {
                fs::remove_file(path)?;
                Ok(fs::create_dir(path)?)
            }),
            ("config.json", |path| {
                fs::remove_file(path)?;
                mkfifo(path)
            }),
            ("config.json", |path| {
                fs::remove_file(path)?;
                Ok(std::os::unix::fs::symlink("config.json", path)?)
            }),
        ];
        for (says, spoil) in spoilt {
            let mut container = prepared(kit)?;
            let path = container.bundle.dir.join("config.json");
            let whole = fs::read(&path)?;
            spoil(&path)?;
            let request = container.bundle.create_request();
            fails(
                kit,
                &container,
                &request,
                INVALID,
                &[path.to_str().unwrap(), says],
            )?;
            if path.is_dir() {
                fs::remove_dir(&path)?;
            } else {
                let _ = fs::remove_file(&path);
            }
            fs::write(&path, whole)?;
            as_ever(kit, &mut container, 3, "hello")?;
        }
        Ok(())
    });
}

#[test]
fn config_json_runc_does_not_like() {
    trial(30, |kit| {
        let mut container = prepared(kit)?;
        let path = container.bundle.dir.join("config.json");
        let whole = fs::read_to_string(&path)?;
        fs::write(&path, whole.replace("\"sh\"", "\"/no/such/program\""))?;
        let request = container.bundle.create_request();
        fails(
            kit,
            &container,
            &request,
            UNKNOWN,
            &["/no/such/program", "OCI runtime create failed"],
        )?;
        fs::write(&path, whole.replace("\"rootfs\"", "\"/no/such/root\""))?;
        fails(kit, &container, &request, UNKNOWN, &["/no/such/root"])?;
        fs::write(&path, &whole)?;
        as_ever(kit, &mut container, 3, "hello")
    });
}

#[test]
fn another_id_than_the_shims_own() {
    trial(20, |kit| {
        let mut container = prepared(kit)?;
        let request = CreateTaskRequest {
            id: "another".into(),
            ..container.bundle.create_request()
        };
        fails(
            kit,
            &container,
            &request,
            PRECONDITION,
            &["another", &container.id],
        )?;
        for id in ["..", "a/b", &"x".repeat(77)] {
            let request = CreateTaskRequest {
                id: id.into(),
                ..container.bundle.create_request()
            };
            let before = Trace::of(kit.scratch.mark(), &container.bundle.dir);
            let answer = container.task().create(&request);
            ensure!(answer.is_err(), "Create of {id:?}: {answer:?}");
            before.expect_back()?;
        }
        as_ever(kit, &mut container, 3, "hello")
    });
}

#[test]
fn options_of_a_type_nobody_knows() {
    trial(30, |kit| {
        with_options(
            kit,
            any("example.org/Unheard", vec![8, 1]),
            INVALID,
            &["Unheard"],
        )?;
        with_options(
            kit,
            any("containerd.runc.v1.Options", vec![0xff; 9]),
            INVALID,
            &["containerd.runc.v1.Options"],
        )?;
        with_options(
            kit,
            toml_options("IoUid = -1"),
            INVALID,
            &["IoUid", "config_body"],
        )
    });
}

#[test]
fn runc_missing_or_not_executable() {
    trial(30, |kit| {
        let missing = kit.scratch.path("no-such-runc");
        let missing = missing.to_str().unwrap();
        with_options(kit, runc_options(missing), UNKNOWN, &[missing, "not found"])?;
        let name = "vigil-no-such-runc";
        with_options(kit, runc_options(name), UNKNOWN, &[name, "not found"])?;
        let plain = kit.scratch.path("plain-runc");
        fs::write(&plain, "#!/bin/sh\n")?;
        let plain = plain.to_str().unwrap();
        with_options(
            kit,
            runc_options(plain),
            UNKNOWN,
            &[plain, "not executable"],
        )?;
        let dir = kit.scratch.dir().to_str().unwrap();
        with_options(kit, runc_options(dir), UNKNOWN, &[dir, "not executable"])?;
        // Executable, but nothing the kernel could run.
        let text = kit.scratch.path("text-runc");
        fs::write(&text, "no program\n")?;
        fs::set_permissions(&text, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let text = text.to_str().unwrap();
        with_options(kit, runc_options(text), UNKNOWN, &[text])
    });
}

#[test]
fn runc_that_fails_in_each_of_its_ways() {
    trial(90, |kit| {
        let mut container = prepared(kit)?;
        let runc = FaultyRunc::new(kit.scratch.dir(), "create", "exit-1")?;
        let mut request = container.bundle.create_request();
        request.options = Some(runc.options()).into();
        let path = runc.path().to_str().unwrap();
        let pid_file = container.bundle.dir.join("init.pid");
        let pid_file = pid_file.to_str().unwrap();
        for (fault, says) in [
            ("exit-1", &["create", path] as &[&str]),
            // What it prints goes to the container's own stderr, as with Go's shim.
            ("prints", &["create", path]),
            ("logs", &["this runc is out of sorts"]),
            ("half-log", &["create"]),
            ("floods-log", &["create"]),
            ("crashes", &["create", "signal 11"]),
            ("no-pid", &[pid_file]),
            ("empty-pid", &[pid_file]),
            ("torn-pid", &[pid_file]),
            ("done-then-torn", &[pid_file]),
            // It has made the container, and then says that it has not.
            ("done-then-fails", &["create"]),
        ] {
            runc.commit("create", fault)?;
            fails(kit, &container, &request, UNKNOWN, says).with_context(|| fault.to_owned())?;
        }
        as_ever(kit, &mut container, 3, "hello")
    });
}

#[test]
fn runc_that_writes_more_than_a_pipe_holds() {
    trial(40, |kit| {
        // Its stderr is the container's; a shim that copies only once runc has ended waits
        // for a runc that waits for the shim, to the deadline (fault F45).
        kit.caller
            .env
            .push(("VIGIL_DEADLINE_CREATE_MS".into(), "5000".into()));
        let mut container = prepared(kit)?;
        let runc = FaultyRunc::new(kit.scratch.dir(), "create", "floods")?;
        let mut request = container.bundle.create_request();
        request.options = Some(runc.options()).into();
        let path = runc.path().to_str().unwrap();
        fails(kit, &container, &request, UNKNOWN, &["create", path])?;
        let flood = container.stderr.as_ref().context("no stderr")?;
        let (bytes, _) = flood.to_end(by(5.0))?;
        // What is still in the pipe when runc has failed is runc's own, and discarded.
        let least = (1 << 20) - (64 << 10);
        ensure!(
            (least..=1 << 20).contains(&bytes.len()),
            "{} bytes of it",
            bytes.len()
        );
        as_ever(kit, &mut container, 3, "hello")
    });
}

#[test]
fn a_stranger_in_runcs_pid_file_lives_on() {
    trial(30, |kit| {
        // Ours, with a group of its own; it must survive being taken for a container.
        let mut stranger = Command::new("sleep")
            .arg("600")
            .stdin(Pipe::null())
            .stdout(Pipe::null())
            .stderr(Pipe::null())
            .spawn()?;
        let outcome = (|| {
            let mut container = prepared(kit)?;
            let runc = FaultyRunc::new(kit.scratch.dir(), "create", "stranger")?;
            runc.stranger(stranger.id())?;
            let mut request = container.bundle.create_request();
            request.options = Some(runc.options()).into();
            let number = stranger.id().to_string();
            fails(kit, &container, &request, UNKNOWN, &[&number])?;
            // The same with a container beside it, which has to go.
            runc.commit("create", "done-then-stranger")?;
            fails(kit, &container, &request, UNKNOWN, &[&number])?;
            let ended = stranger.try_wait()?;
            ensure!(ended.is_none(), "the stranger was killed: {ended:?}");
            as_ever(kit, &mut container, 3, "hello")
        })();
        let _ = stranger.kill();
        let _ = stranger.wait();
        outcome
    });
}

#[test]
fn runc_that_hangs_is_ended_at_its_deadline() {
    trial(60, |kit| {
        kit.caller
            .env
            .push(("VIGIL_DEADLINE_CREATE_MS".into(), "3000".into()));
        let mut container = prepared(kit)?;
        let runc = FaultyRunc::new(kit.scratch.dir(), "create", "hangs")?;
        let mut request = container.bundle.create_request();
        request.options = Some(runc.options()).into();
        for fault in ["hangs", "hangs-deaf", "done-then-hangs"] {
            runc.commit("create", fault)?;
            let began = Instant::now();
            let others = container.shim.task.clone();
            let id = container.id.clone();
            // Whoever asks meanwhile is answered at once.
            let asked = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(300));
                let connected = others.connect_task(&id).map(drop);
                (connected, Instant::now())
            });
            fails(
                kit,
                &container,
                &request,
                LATE,
                &["create", runc.path().to_str().unwrap()],
            )
            .with_context(|| fault.to_owned())?;
            let refused = Instant::now();
            let (connected, at) = asked.join().expect("the asking thread");
            connected.with_context(|| format!("Connect, {fault}"))?;
            ensure!(at < refused, "{fault}: Connect waited for Create");
            ensure!(began.elapsed() < GENEROUS, "{fault}: {:?}", began.elapsed());
        }
        as_ever(kit, &mut container, 3, "hello")
    });
}

#[test]
fn runc_that_hangs_in_start_and_delete() {
    trial(60, |kit| {
        for verb in ["START", "DELETE"] {
            kit.caller
                .env
                .push((format!("VIGIL_DEADLINE_{verb}_MS"), "500".into()));
        }
        let container = prepared(kit)?;
        let runc = FaultyRunc::new(kit.scratch.dir(), "start", "hangs-deaf")?;
        let path = runc.path().to_str().unwrap().to_owned();
        let mut request = container.bundle.create_request();
        request.options = Some(runc.options()).into();
        let (task, id) = (container.task(), &container.id);
        task.create(&request)?;
        refused(task.start(id, ""), LATE, &["start", &path])?;
        ensure!(task.state(id, "")?.status.value() == 1, "no longer CREATED");
        runc.commit("delete", "hangs-deaf")?;
        task.start(id, "")?;
        ensure!(exit_in_time(&container, 10.0)? == 3);
        // What its runc does not do, is done without it.
        let first = task.delete(id, "")?;
        ensure!(first.exit_status == 3);
        ensure!(task.delete(id, "")? == first, "a second Delete differs");
        Ok(())
    });
}

#[test]
fn runc_that_will_not_delete_leaves_nothing_all_the_same() {
    for fault in ["exit-1", "crashes", "floods"] {
        trial(60, move |kit| {
            let container = prepared(kit)?;
            let runc = FaultyRunc::new(kit.scratch.dir(), "delete", fault)?;
            let mut request = container.bundle.create_request();
            request.options = Some(runc.options()).into();
            let (task, id) = (container.task(), &container.id);
            task.create(&request)?;
            task.start(id, "")?;
            ensure!(exit_in_time(&container, 10.0)? == 3);
            ensure!(task.delete(id, "")?.exit_status == 3, "{fault}");
            Ok(())
        });
    }
}

#[test]
fn a_terminal_only_one_of_them_knows_of() {
    trial(40, |kit| {
        // runc brings no console; it is waited for, and then no longer.
        fails_once(kit, |r| r.terminal = true, UNKNOWN, &["console"])?;
        let container = kit.prepared(&Spec::sh("exit 3").on_terminal(), Stdio::Output)?;
        let mut request = container.bundle.create_request();
        request.terminal = false;
        fails(
            kit,
            &container,
            &request,
            UNKNOWN,
            &["OCI runtime create failed"],
        )
    });
}

#[test]
fn strings_longer_than_any_path() {
    trial(40, |kit| {
        let long = "/x".repeat(3000);
        fails_once(kit, |r| r.bundle.clone_from(&long), INVALID, &["bundle"])?;
        fails_once(
            kit,
            |r| r.stdout = "/x".repeat(100_000),
            INVALID,
            &["stdout"],
        )?;
        fails_once(kit, |r| r.checkpoint = long, INVALID, &["checkpoint"])?;
        fails_once(kit, |r| r.stdin = "/tmp/\0/x".into(), INVALID, &["stdin"])
    });
}

#[test]
fn a_mount_that_fails() {
    trial(40, |kit| {
        let extra = |kind: &str, source: &str, options: &[&str]| Mount {
            type_: kind.into(),
            source: source.into(),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
            ..Default::default()
        };
        // Each after one that succeeded and has to be undone.
        fails_once(
            kit,
            |r| r.rootfs.push(extra("bind", "/no/such/dir", &["rbind"])),
            UNKNOWN,
            &["/no/such/dir"],
        )?;
        fails_once(
            kit,
            |r| r.rootfs.push(extra("nosuchfs", "none", &[])),
            UNKNOWN,
            &["nosuchfs"],
        )?;
        fails_once(
            kit,
            |r| {
                r.rootfs
                    .push(extra("overlay", "overlay", &["lowerdir=/no/such/lower"]));
            },
            UNKNOWN,
            &["overlay"],
        )
    });
}

#[test]
fn a_mount_target_stays_below_the_rootfs() {
    trial(30, |kit| {
        let outside = kit.scratch.path("outside");
        fs::create_dir(&outside)?;
        std::os::unix::fs::symlink(&outside, kit.scratch.path("base/way-out"))?;
        for target in ["../../../etc", "way-out", "/etc"] {
            let container = prepared(kit)?;
            let mut request = container.bundle.create_request();
            request.rootfs.push(Mount {
                type_: "tmpfs".into(),
                source: "none".into(),
                target: target.into(),
                ..Default::default()
            });
            let before = mount_points();
            // Refused or mounted inside; only outside it must not be.
            let answer = container.task().create(&request);
            let rootfs = container.bundle.dir.join("rootfs").display().to_string();
            let strays = mount_points()
                .into_iter()
                .filter(|point| !before.contains(point) && point.contains(kit.scratch.mark()))
                .filter(|point| !point.starts_with(&rootfs))
                .collect::<Vec<_>>();
            ensure!(strays.is_empty(), "{target}: {strays:?}");
            ensure!(
                Path::new("/etc/passwd").exists() && fs::read_dir(&outside)?.next().is_none(),
                "{target}: something was mounted over the host's"
            );
            if answer.is_ok() {
                container.task().delete(&container.id, "")?;
            }
        }
        Ok(())
    });
}

/// It would be mounted where the link leads, over another container's rootfs for one, and never
/// be unmounted there. A bundle that itself lies below a link (`/var/run`) is no such case.
#[test]
fn a_rootfs_that_leads_elsewhere_is_refused() {
    trial(60, |kit| {
        type Spoil<'a> = &'a dyn Fn(&Path) -> Result<()>;
        let victim = kit.running(&Spec::sleeper())?;
        let theirs = victim.bundle.dir.join("rootfs");
        // The machine has others' tests too.
        let mounts = || {
            let mut points = mount_points();
            points.retain(|point| point.contains(kit.scratch.mark()));
            points
        };
        let before = mounts();
        let spoilt: [(&str, Spoil<'_>); 3] = [
            ("symbolic link", &|path| {
                Ok(std::os::unix::fs::symlink(&theirs, path)?)
            }),
            ("symbolic link", &|path| {
                Ok(std::os::unix::fs::symlink("nowhere", path)?)
            }),
            ("no directory", &|path| Ok(fs::write(path, "")?)),
        ];
        for (says, spoil) in spoilt {
            let mut container = prepared(kit)?;
            let rootfs = container.bundle.dir.join("rootfs");
            fs::remove_dir(&rootfs)?;
            spoil(&rootfs)?;
            let request = container.bundle.create_request();
            fails(kit, &container, &request, INVALID, &[says, "rootfs"])?;
            let now: Vec<String> = mounts();
            let here = container.bundle.dir.display().to_string();
            let strays = now.iter().filter(|point| point.starts_with(&here)).count();
            let of = |points: &[String], dir: &Path| {
                let dir = dir.display().to_string();
                points.iter().filter(|point| **point == dir).count()
            };
            ensure!(
                strays == 0 && of(&now, &theirs) == of(&before, &theirs),
                "{says}: {before:?}, then {now:?}"
            );
            fs::remove_file(&rootfs)?;
            fs::create_dir(&rootfs)?;
            as_ever(kit, &mut container, 3, "hello")?;
        }
        // Reached over a link, it is a directory all the same.
        let state = kit.scratch.path("state-by-link");
        std::os::unix::fs::symlink(kit.scratch.path("state"), &state)?;
        let mut container = prepared(kit)?;
        let mut request = container.bundle.create_request();
        let place = container
            .bundle
            .dir
            .strip_prefix(kit.scratch.path("state"))?;
        request.bundle = state.join(place).display().to_string();
        container.pid = container.task().create(&request)?.pid;
        container.start()?;
        Ok(())
    });
}

#[test]
fn streams_that_cannot_be_opened() {
    trial(60, |kit| {
        let dir = kit.scratch.path("a-directory");
        fs::create_dir(&dir)?;
        let dir = dir.to_str().unwrap().to_owned();
        let missing = kit
            .scratch
            .path("nowhere/fifo")
            .to_str()
            .unwrap()
            .to_owned();
        fails_once(kit, |r| r.stdout.clone_from(&missing), UNKNOWN, &[&missing])?;
        fails_once(kit, |r| r.stderr.clone_from(&missing), UNKNOWN, &[&missing])?;
        fails_once(kit, |r| r.stdin.clone_from(&missing), UNKNOWN, &[&missing])?;
        fails_once(kit, |r| r.stdout.clone_from(&dir), UNKNOWN, &[&dir])?;
        fails_once(
            kit,
            |r| r.stdout = "relative/path".into(),
            UNKNOWN,
            &["relative/path"],
        )?;
        fails_once(
            kit,
            |r| r.stdout = "gopher://host/x".into(),
            UNKNOWN,
            &["gopher"],
        )?;
        fails_once(
            kit,
            |r| {
                r.stdout = "file:///proc/no/such".into();
                r.stderr.clear();
            },
            UNKNOWN,
            &["/proc/no/such"],
        )?;
        let logger = "binary:///no/such/logger".to_owned();
        fails_once(
            kit,
            |r| {
                r.stdout = logger.clone();
                r.stderr = logger;
            },
            UNKNOWN,
            &["/no/such/logger"],
        )?;
        Ok(())
    });
}

#[test]
fn a_logger_that_ends_at_once_costs_the_output_not_the_container() {
    trial(40, |kit| {
        let logger = kit.scratch.path("logger");
        fs::write(&logger, "#!/bin/sh\nexit 1\n")?;
        fs::set_permissions(&logger, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let container =
            kit.prepared(&Spec::sh("head -c 1000000 /dev/zero; exit 3"), Stdio::Empty)?;
        let mut request = container.bundle.create_request();
        request.stdout = format!("binary://{}", logger.display());
        request.stderr.clone_from(&request.stdout);
        // Debian's shim takes the end of the ready pipe for "ready" too (contract §4).
        container.task().create(&request)?;
        container.start()?;
        ensure!(exit_in_time(&container, 10.0)? == 3);
        container.task().delete(&container.id, "")?;
        Ok(())
    });
}
