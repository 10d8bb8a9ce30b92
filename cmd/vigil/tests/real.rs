//! The tool beside the real shim under a real containerd: what it says while a
//! container runs, what it finds after SIGKILL of both processes with
//! containerd stopped, and that its repair leaves nothing and is believed by
//! the containerd that comes back.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::Command;

use vigil_lab::containerd::IMAGE;
use vigil_lab::place::kill_at_once;
use vigil_lab::process::{Process, signal_if};
use vigil_lab::{Containerd, Residue, ShimBinary, Version, by, until};

struct Ran {
    code: i32,
    out: String,
}

/// Runs the tool over the private containerd's directories.
fn vigil(containerd: &Containerd, args: &[&str]) -> Ran {
    let out = Command::new(env!("CARGO_BIN_EXE_vigil"))
        .args(args)
        .env("VIGIL_CONTAINERD_STATE", containerd.scratch.path("state"))
        .env("VIGIL_RUN", containerd.scratch.path("vigil"))
        .env("CONTAINERD_ADDRESS", containerd.address())
        .env_remove("CONTAINERD_NAMESPACE")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let err = String::from_utf8_lossy(&out.stderr);
    Ran {
        code: out.status.code().unwrap(),
        out: format!("{text}{err}"),
    }
}

impl Ran {
    #[track_caller]
    fn expect(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{}", self.out);
        for word in words {
            assert!(self.out.contains(word), "no {word:?} in:\n{}", self.out);
        }
    }
}

/// SIGKILLs both processes of every pair so that neither can react to the other's death.
fn kill_pairs(containerd: &Containerd) {
    let flag = format!("-namespace {} ", containerd.namespace());
    let pairs = || -> Vec<Process> {
        Process::marked(containerd.namespace())
            .into_iter()
            .filter(|p| p.cmdline.contains("containerd-shim") && p.cmdline.contains(&flag))
            .collect()
    };
    let all = pairs();
    assert!(all.len() >= 2, "{all:?}");
    kill_at_once(&all).unwrap();
    until("the pairs to die", by(5.0), || {
        pairs().is_empty().then_some(())
    })
    .unwrap();
}

#[test]
fn from_running_through_repair_to_nothing() {
    let Some(shim) = ShimBinary::vigil() else {
        panic!("no shim: run `make build`");
    };
    let mut containerd = Containerd::start(Version::Debian, Some(&shim)).unwrap();
    for id in ["c", "d"] {
        let args = [
            "run",
            "-d",
            "--runtime",
            "io.containerd.vigil.v2",
            IMAGE,
            id,
        ];
        let script = ["sh", "-c", "sleep 1000 & sleep 1000"];
        containerd.ctr(&[&args[..], &script[..]].concat()).unwrap();
    }

    // While both run, and containerd knows.
    let ran = vigil(&containerd, &["ps", "--ask"]);
    ran.expect(
        0,
        &["running", "alive", "populated", "RUNNING", "still running"],
    );
    vigil(&containerd, &["show", "c"]).expect(0, &["started", "lock held", "populated, thawed"]);
    vigil(&containerd, &["repair", "--all", "--write"]).expect(0, &["its pair is alive"]);
    // Other shims take over; containerd's connections and what it believes stay.
    let binary = shim.path.to_str().unwrap();
    let ran = vigil(&containerd, &["upgrade", "--all", "--binary", binary]);
    ran.expect(0, &["upgraded"]);
    assert_eq!(ran.out.matches(" upgraded ").count(), 2, "{}", ran.out);
    vigil(&containerd, &["ps", "--ask"]).expect(0, &["1, upgrade, ", "RUNNING"]);
    containerd.ctr(&["tasks", "pause", "c"]).unwrap();
    vigil(&containerd, &["ps", "--ask"]).expect(0, &["paused", "frozen", "PAUSED"]);
    containerd
        .ctr(&["tasks", "kill", "-s", "SIGKILL", "d"])
        .unwrap();
    until("d to be seen stopped", by(10.0), || {
        let ran = vigil(&containerd, &["ps"]);
        (ran.code == 0 && ran.out.contains("stopped, signal 9")).then_some(())
    })
    .unwrap();

    // Nobody is left to tell.
    containerd.stop(15).unwrap();
    let ran = vigil(&containerd, &["ps"]);
    ran.expect(0, &["paused", "frozen", "still running"]);
    kill_pairs(&containerd);
    let ran = vigil(&containerd, &["ps", "--ask"]);
    ran.expect(
        3,
        &["gone", "still running", "its pair is gone", "was not heard"],
    );
    vigil(&containerd, &["show", "c"]).expect(3, &["lock free", "reaper dead", "frozen"]);

    // A plan changes nothing; the repair leaves nothing.
    let plan = vigil(&containerd, &["repair"]);
    plan.expect(3, &["SIGKILL to init", "runc delete", "--write carries"]);
    vigil(&containerd, &["ps"]).expect(3, &["frozen"]);
    let ran = vigil(&containerd, &["repair", "--all", "--write"]);
    ran.expect(
        0,
        &["done: kill everything", "its end: signal 9", "on record"],
    );
    vigil(&containerd, &["repair"]).expect(0, &["nothing to do"]);
    vigil(&containerd, &["ps"]).expect(0, &["deleted, signal 9"]);
    vigil(&containerd, &["history"]).expect(0, &["still running", "signal 9"]);
    let runc = format!("file /run/containerd/runc/{}", containerd.namespace());
    let mark = containerd.scratch.mark().to_owned();
    Residue::expect_none(&mark, by(5.0), |line| {
        line == runc || line.starts_with("cgroup ") && line.ends_with(&mark)
    })
    .unwrap();

    // containerd asks the bundles that were left for it, and believes them.
    containerd.launch().unwrap();
    for id in ["c", "d"] {
        until("the task to be gone", by(10.0), || {
            containerd.task_status(id).ok()?.is_none().then_some(())
        })
        .unwrap();
        assert!(
            !containerd.bundle(id).exists(),
            "the bundle of {id} is left"
        );
        containerd.ctr(&["containers", "rm", id]).unwrap();
        // What its `delete` found is what the repair had written down.
        let mark = ["-n", &mark, "--run", "/run/vigil", "--last", "1"];
        let ran = vigil(&containerd, &[&["history", id], &mark[..]].concat());
        ran.expect(0, &["deleted", "signal 9"]);
    }
    vigil(&containerd, &["ps"]).expect(0, &[]);
    containerd.expect_clean().unwrap();
}

/// SIGKILL of the shim first and the reaper then sometimes left a new shim, alone, and the
/// container alive.
#[test]
fn kill_ends_both_of_a_pair_and_their_container() {
    let Some(shim) = ShimBinary::vigil() else {
        panic!("no shim: run `make build`");
    };
    let mut containerd = Containerd::start(Version::Debian, Some(&shim)).unwrap();
    let run = |id: &str| {
        let args = ["run", "-d", "--runtime", "io.containerd.vigil.v2", IMAGE];
        let script = [id, "sh", "-c", "sleep 1000 & sleep 1000"];
        containerd.ctr(&[&args[..], &script[..]].concat()).unwrap();
    };
    let mark = containerd.scratch.mark().to_owned();
    let flag = format!("-namespace {} ", containerd.namespace());
    let pairs = || {
        Process::marked(&mark)
            .into_iter()
            .filter(|p| p.cmdline.contains("containerd-shim") && p.cmdline.contains(&flag))
            .count()
    };
    run("c");
    run("d");
    // Beside a containerd, whose `delete` comes in between.
    vigil(&containerd, &["kill", "c"]).expect(0, &["killed "]);
    until("containerd to see it", by(10.0), || {
        containerd.task_status("c").ok()?.is_none().then_some(())
    })
    .unwrap();
    // Its bundle goes a moment after its task.
    let again = until("the bundle to be gone", by(10.0), || {
        let ran = vigil(&containerd, &["kill", "c"]);
        (ran.code != 0).then_some(ran)
    })
    .unwrap();
    again.expect(4, &["no bundle below"]);
    // And with nobody there.
    containerd.stop(15).unwrap();
    vigil(&containerd, &["kill", "d"]).expect(0, &["killed ", "its end: signal 9"]);
    vigil(&containerd, &["kill", "d"]).expect(0, &["its pair was dead"]);
    until("the pairs to be gone", by(5.0), || {
        (pairs() == 0).then_some(())
    })
    .unwrap();
    let runc = format!("file /run/containerd/runc/{}", containerd.namespace());
    Residue::expect_none(&mark, by(5.0), |line| {
        line == runc || line.starts_with("cgroup ") && line.ends_with(&mark)
    })
    .unwrap();
}

/// With a real kubelet: bundles of living containers were removed, their pairs stayed, and
/// `vigil repair` said that there was nothing.
#[test]
fn a_pair_without_a_bundle_is_seen_and_repaired() {
    let Some(shim) = ShimBinary::vigil() else {
        panic!("no shim: run `make build`");
    };
    let mut containerd = Containerd::start(Version::Debian, Some(&shim)).unwrap();
    let args = ["run", "-d", "--runtime", "io.containerd.vigil.v2", IMAGE];
    let script = ["c", "sh", "-c", "sleep 1000 & sleep 1000"];
    containerd.ctr(&[&args[..], &script[..]].concat()).unwrap();
    containerd.stop(9).unwrap();
    let mark = containerd.scratch.mark().to_owned();
    let flag = format!("-namespace {} ", containerd.namespace());
    let pair: Vec<Process> = Process::marked(&mark)
        .into_iter()
        .filter(|p| p.cmdline.contains("containerd-shim") && p.cmdline.contains(&flag))
        .collect();
    assert_eq!(pair.len(), 2, "{pair:?}");
    // It would leave by itself. The reaper first: it would start another shim.
    for process in &pair {
        signal_if(process.pid, 19, |now| now.cmdline == process.cmdline);
    }
    let bundle = containerd.bundle("c");
    let address = std::fs::read_to_string(bundle.join("address")).unwrap();
    let rootfs = bundle.join("rootfs");
    while vigil_sys::mount::umount(&rootfs, vigil_sys::mount::UmountFlags::MNT_DETACH).is_ok() {}
    std::fs::remove_dir_all(&bundle).unwrap();
    let says = "its bundle is gone and its pair lives";
    vigil(&containerd, &["ps"]).expect(3, &[says]);
    vigil(&containerd, &["show", "c"]).expect(3, &[says]);
    vigil(&containerd, &["repair"]).expect(3, &[says, "--write carries"]);
    vigil(&containerd, &["repair", "c", "--write"]).expect(0, &["done: "]);
    vigil(&containerd, &["ps"]).expect(0, &[]);
    let socket = std::path::Path::new(address.trim().trim_start_matches("unix://"));
    assert!(!socket.exists(), "its socket's file is left");
    let runc = format!("file /run/containerd/runc/{}", containerd.namespace());
    Residue::expect_none(&mark, by(5.0), |line| {
        line == runc
            || line.contains("listening socket")
            || line.starts_with("cgroup ") && line.ends_with(&mark)
    })
    .unwrap();
}

/// `rm lock pair` in the bundle of a living pair: nothing there said any more that it lives, and
/// `vigil repair --write` ended its container under it.
#[test]
fn a_pair_that_its_bundle_does_not_name_is_a_living_pair() {
    let Some(shim) = ShimBinary::vigil() else {
        panic!("no shim: run `make build`");
    };
    let containerd = Containerd::start(Version::Debian, Some(&shim)).unwrap();
    let args = ["run", "-d", "--runtime", "io.containerd.vigil.v2", IMAGE];
    let script = ["c", "sh", "-c", "trap 'exit 7' TERM; sleep 1000 & wait"];
    containerd.ctr(&[&args[..], &script[..]].concat()).unwrap();
    let mark = containerd.scratch.mark().to_owned();
    let flag = format!("-namespace {} ", containerd.namespace());
    let pair = || -> Vec<i32> {
        Process::marked(&mark)
            .into_iter()
            .filter(|p| p.cmdline.contains("containerd-shim") && p.cmdline.contains(&flag))
            .map(|p| p.pid)
            .collect()
    };
    let before = pair();
    assert_eq!(before.len(), 2, "{before:?}");
    let bundle = containerd.bundle("c");
    for name in ["lock", "pair"] {
        std::fs::remove_file(bundle.join(name)).unwrap();
        let pids: Vec<String> = before.iter().map(ToString::to_string).collect();
        let pids: Vec<&str> = pids.iter().map(String::as_str).collect();
        vigil(&containerd, &["ps"]).expect(0, &["running"]);
        vigil(&containerd, &["show", "c"]).expect(0, &pids);
        let left = "nothing to do; its pair is alive";
        vigil(&containerd, &["repair"]).expect(0, &[left]);
        vigil(&containerd, &["repair", "c", "--write"]).expect(0, &[left]);
        vigil(&containerd, &["repair", "--all", "--write"]).expect(0, &[left]);
        assert_eq!(pair(), before, "without {name}");
    }
    // It is what it was, and `vigil kill` finds it too.
    containerd
        .ctr(&["tasks", "exec", "--exec-id", "e", "c", "true"])
        .unwrap();
    vigil(&containerd, &["kill", "c"]).expect(0, &["killed"]);
    // containerd runs a `delete` of its own meanwhile.
    until("nobody to be left", by(20.0), || {
        pair().is_empty().then_some(())
    })
    .unwrap();
}

/// k3s and RKE2 have a state directory of their own: `ps` was empty there and all well, `show` said
/// of a living container that it is gone, `kill` that there is none, and no word which flag is
/// wanted.
#[test]
fn containers_of_another_state_directory_are_told_of() {
    let Some(shim) = ShimBinary::vigil() else {
        panic!("no shim: run `make build`");
    };
    let containerd = Containerd::start(Version::Debian, Some(&shim)).unwrap();
    let run = |id: &str, script: &str| {
        let args = ["run", "-d", "--runtime", "io.containerd.vigil.v2", IMAGE];
        let script = [id, "sh", "-c", script];
        containerd.ctr(&[&args[..], &script[..]].concat()).unwrap();
    };
    run("c", "sleep 1000");
    let (state, empty) = (
        containerd.scratch.path("state"),
        containerd.scratch.path("empty"),
    );
    std::fs::create_dir(&empty).unwrap();
    let elsewhere = |args: &[&str]| {
        let flags = ["--state", empty.to_str().unwrap()];
        vigil(&containerd, &[args, &flags].concat())
    };
    let namespace = containerd.namespace();
    let flag = format!("--state {}", state.display());
    let lives = format!("{namespace}/c lives");
    for verb in [&["ps"][..], &["repair"], &["upgrade", "--all"]] {
        elsewhere(verb).expect(0, &["1 pair lives whose bundle", &flag]);
    }
    for verb in ["show", "repair", "kill", "upgrade"] {
        elsewhere(&[verb, "c"]).expect(4, &[&lives, &flag]);
        elsewhere(&[verb, "d"]).expect(4, &["no such container"]);
    }
    // Of an earlier one of its id there is a line.
    vigil(&containerd, &["kill", "c"]).expect(0, &[]);
    until("containerd to forget it", by(20.0), || {
        containerd.task_status("c").ok()?.is_none().then_some(())
    })
    .unwrap();
    containerd.ctr(&["containers", "rm", "c"]).unwrap();
    run("c", "sleep 1000");
    let told = ["--run", "/run/vigil", "-n", namespace];
    let shown = elsewhere(&[&["show", "c"], &told[..]].concat());
    shown.expect(4, &[&lives, &flag, "earlier"]);
    assert!(!shown.out.contains("is gone"), "{}", shown.out);
    // In another namespace it is found, too.
    let ran = vigil(&containerd, &["kill", "c", "-n", "no-such"]);
    ran.expect(4, &["in namespace no-such", &format!("one in {namespace}")]);
    // What is said to be called next has the flags of this call.
    vigil(&containerd, &["show", "c"]).expect(0, &[&format!("vigil kill c -n {namespace} {flag}")]);
}

/// Beside a containerd both cleaned up: it had two lines of history, of which one knew no end, and
/// containerd's `delete` found the lock taken.
#[test]
fn a_containerd_that_sees_the_pair_die_comes_before_kill() {
    let Some(shim) = ShimBinary::vigil() else {
        panic!("no shim: run `make build`");
    };
    let containerd = Containerd::start(Version::Debian, Some(&shim)).unwrap();
    let namespace = containerd.namespace();
    for id in ["c1", "c2", "c3", "c4", "c5", "c6"] {
        let args = ["run", "-d", "--runtime", "io.containerd.vigil.v2", IMAGE];
        let script = [id, "sh", "-c", "sleep 1000 & sleep 1000"];
        containerd.ctr(&[&args[..], &script[..]].concat()).unwrap();
        let ran = vigil(&containerd, &["kill", id]);
        ran.expect(0, &["killed ", "containerd has deleted it"]);
        assert!(!containerd.bundle(id).exists(), "{id}: its bundle stays");
        let told = [
            "history",
            id,
            "-n",
            namespace,
            "--run",
            "/run/vigil",
            "--json",
        ];
        let history = vigil(&containerd, &told);
        history.expect(0, &["\"signalled\": 9"]);
        let lines: serde_json::Value = serde_json::from_str(&history.out).unwrap();
        assert_eq!(
            lines["lines"].as_array().unwrap().len(),
            1,
            "{}",
            history.out
        );
    }
}

/// Frozen from above, as by a freezer of a group of containers: no signal ends it before that one
/// is thawed.
struct Frozen(std::path::PathBuf);

impl Frozen {
    fn all_of(namespace: &str) -> Option<Self> {
        let group = std::path::Path::new("/sys/fs/cgroup/freezer").join(namespace);
        let state = group.join("freezer.state");
        std::fs::write(&state, "FROZEN").ok()?;
        Some(Self(state))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = std::fs::write(&self.0, "THAWED");
    }
}

/// One that no signal ends held the lock for as long as `kill` tried. containerd's `delete` failed
/// by that, so that it forgot the container and nobody removed the bundle: the id was dead.
#[test]
fn what_kill_cannot_end_is_finished_when_it_can_be() {
    let Some(shim) = ShimBinary::vigil() else {
        panic!("no shim: run `make build`");
    };
    for stopped in [false, true] {
        let mut containerd = Containerd::start(Version::Debian, Some(&shim)).unwrap();
        let run = |containerd: &Containerd| {
            let args = ["run", "-d", "--runtime", "io.containerd.vigil.v2", IMAGE];
            let script = ["c", "sh", "-c", "sleep 1000 & sleep 1000"];
            containerd.ctr(&[&args[..], &script[..]].concat()).unwrap();
        };
        run(&containerd);
        let namespace = containerd.namespace().to_owned();
        let Some(frozen) = Frozen::all_of(&namespace) else {
            eprintln!("no freezer of cgroup v1: nothing is tested");
            return;
        };
        // The pair is at it, and has done what it can.
        vigil(&containerd, &["ps"]).expect(0, &["still running"]);
        containerd
            .ctr(&["tasks", "kill", "-s", "SIGKILL", "c"])
            .unwrap();
        vigil(&containerd, &["ps"]).expect(3, &["SIGKILL was sent to init"]);
        if stopped {
            containerd.stop(15).unwrap();
        }
        let told = ["kill", "c", "--run", "/run/vigil"];
        let ran = vigil(&containerd, &told);
        ran.expect(3, &["killed ", "left: ", "process "]);
        vigil(
            &containerd,
            &["ps", "--run", "/run/vigil", "-n", &namespace],
        )
        .expect(3, &[]);
        drop(frozen);
        let stone = format!("/run/vigil/tombstones/{namespace}+c.json");
        until("the waiter to finish", by(40.0), || {
            let done = !std::path::Path::new(&stone).exists();
            (done && (stopped || !containerd.bundle("c").exists())).then_some(())
        })
        .unwrap();
        if stopped {
            containerd.launch().unwrap();
        }
        until("containerd to forget it", by(20.0), || {
            (containerd.task_status("c").ok()?.is_none() && !containerd.bundle("c").exists())
                .then_some(())
        })
        .unwrap();
        containerd.ctr(&["containers", "rm", "c"]).unwrap();
        run(&containerd);
    }
}
