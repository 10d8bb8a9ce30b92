//! The cgroup code on the kernel's own cgroups: private directories with
//! unique names in the hierarchies of this host, removed on failure too. The
//! v2 paths run on whatever v2 tree is mounted, beside v1 if need be.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use vigil_model::metrics::Metrics;
use vigil_model::{Before, Claim, TaskId};

use super::*;
use crate::kin::{Family, Known};
use vigil_reconcile::Init;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A container's place in a host's hierarchies, and the processes put there.
struct Place {
    hierarchies: Hierarchies,
    claims: Vec<Claim>,
    name: String,
    children: Vec<Child>,
}

/// The hosts that can be tested here: v1, and the v2 tree, wherever it is.
fn hosts() -> Vec<Hierarchies> {
    let host = Hierarchies::read().unwrap();
    let tree = host.named("").map(|h| h.mount.clone());
    let mut hosts = vec![host];
    if let Some(tree) = tree.filter(|_| hosts[0].mode == Mode::V1) {
        let mut alone = hosts[0].clone();
        // Without the idle v2 tree, so that v1 has to do it all.
        alone.list.retain(|h| !h.name.is_empty());
        hosts.push(alone);
        hosts.push(Hierarchies::read_at(&tree).unwrap());
    }
    hosts
}

impl Place {
    fn new(hierarchies: &Hierarchies) -> Self {
        let name = format!(
            "vigil-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let mut place = Self {
            hierarchies: hierarchies.clone(),
            claims: Vec::new(),
            name,
            children: Vec::new(),
        };
        place.claims = place.claim();
        place
    }

    fn claim(&self) -> Vec<Claim> {
        let id = TaskId::new("x").unwrap();
        let path = format!("/{}", self.name);
        let placement = place(&self.hierarchies, &id, &path, Some(false), false).unwrap();
        claims(&self.hierarchies, &placement)
    }

    fn dirs(&self) -> impl Iterator<Item = PathBuf> {
        self.claims.iter().map(|c| PathBuf::from(&c.path))
    }

    /// Makes the directories, and ones below, as runc and a workload do.
    fn make(&self, below: &str) {
        for dir in self.dirs() {
            fs::create_dir_all(dir.join(below)).unwrap();
            // cpuset takes no process before it has processors.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let mut at = dir.clone();
                for part in [""].into_iter().chain(below.split('/')) {
                    at.push(part);
                    if let Ok(all) = fs::read_to_string(dir.parent().unwrap().join(file)) {
                        fs::write(at.join(file), all).unwrap();
                    }
                }
            }
        }
    }

    /// Runs a shell script in the cgroups (below `below`) and waits until it
    /// is there.
    fn run(&mut self, below: &str, script: &str) -> u32 {
        let child = Command::new("sh")
            .args([
                "-c",
                "for f; do echo $$ > $f || exit 9; done; eval \"$SCRIPT\"",
                "sh",
            ])
            .args(self.dirs().map(|d| d.join(below).join("cgroup.procs")))
            .env("SCRIPT", script)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id();
        self.children.push(child);
        let last = self.dirs().last().unwrap().join(below).join("cgroup.procs");
        until("it joins the cgroup", || {
            fs::read_to_string(&last)
                .unwrap()
                .lines()
                .any(|l| l == pid.to_string())
        });
        pid
    }

    fn open(&self) -> Cgroup {
        Cgroup::open(&self.hierarchies, &self.claims).unwrap()
    }

    fn take(&mut self, init: u32) -> Cgroup {
        Cgroup::take(&self.hierarchies, &mut self.claims, init).unwrap()
    }

    fn gone(&self) -> bool {
        self.dirs().all(|d| !d.exists())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let all: Vec<_> = self
            .claim()
            .into_iter()
            .map(|claim| Claim {
                before: Before::Absent,
                inode: None,
                ..claim
            })
            .collect();
        // What is tested here may be broken: thaw by hand, or nothing dies.
        for dir in self.dirs() {
            for below in ["", "a"] {
                let _ = fs::write(dir.join(below).join("freezer.state"), "THAWED");
                let _ = fs::write(dir.join(below).join("cgroup.freeze"), "0");
            }
        }
        let end = Instant::now() + Duration::from_secs(3);
        let cgroup = Cgroup::open(&self.hierarchies, &all).unwrap();
        for child in &mut self.children {
            let _ = child.kill();
        }
        let _ = cgroup.kill_until(end);
        for child in &mut self.children {
            let _ = child.wait();
        }
        let _ = cgroup.remove_until(end);
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_mins(1);
    while !done() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_mins(1)
}

fn alive(pid: u32) -> bool {
    proc::stat(pid).unwrap().is_some_and(|s| !s.ended())
}

#[test]
fn what_was_absent_is_ours_and_goes_with_all_it_holds() {
    for host in hosts() {
        let mut place = Place::new(&host);
        assert!(place.claims.iter().all(|c| c.before == Before::Absent));
        place.make("a/b/c");
        let init = place.run("", "sleep 100 & sleep 100 & wait");
        let nested = place.run("a/b", "sleep 100 & exec sleep 100");
        let cgroup = place.take(init);
        assert!(place.claims.iter().all(|c| c.inode.is_some()));
        assert!(cgroup.is_ours() && !cgroup.is_shared());
        let mut pids = Vec::new();
        until("everyone is listed", || {
            pids = cgroup.pids().unwrap();
            pids.len() == 5
        });
        assert!(pids.contains(&init) && pids.contains(&nested));
        assert_eq!(cgroup.holdouts().unwrap().len(), 5);

        // A second handle, as a successor opens it from the journal.
        let cgroup = place.open();
        assert_eq!(cgroup.kill_until(soon()).unwrap(), Progress::Empty);
        assert!(!pids.iter().any(|&pid| alive(pid)));
        assert!(cgroup.pids().unwrap().is_empty());
        let removal = cgroup.remove_until(soon()).unwrap();
        assert_eq!(removal.left, [] as [PathBuf; 0]);
        assert!(place.gone());
        // Again, with nothing left: no error, nothing done.
        assert_eq!(cgroup.remove_step().unwrap(), Removal::default());
        assert_eq!(cgroup.kill_until(soon()).unwrap(), Progress::Empty);
        assert!(stats(&cgroup).unwrap().is_none());
        assert!(place.open().is_absent());
    }
}

#[test]
fn a_frozen_container_and_one_with_a_frozen_child_can_be_killed() {
    for host in hosts() {
        for frozen in ["", "a"] {
            let mut place = Place::new(&host);
            place.make("a");
            let init = place.run("", "exec sleep 100");
            place.run("a", "exec sleep 100");
            let cgroup = place.take(init);
            let dir = &cgroup.with("freezer").unwrap().path;
            let (file, text) = match host.mode {
                Mode::V1 => ("freezer.state", "FROZEN"),
                Mode::Unified => ("cgroup.freeze", "1"),
            };
            fs::write(dir.join(frozen).join(file), text).unwrap();
            assert_eq!(cgroup.kill_until(soon()).unwrap(), Progress::Empty);
            assert_eq!(cgroup.remove_until(soon()).unwrap().left.len(), 0);
            assert!(place.gone());
        }
    }
}

#[test]
fn a_container_that_forks_without_end_is_killed() {
    for host in hosts() {
        let mut place = Place::new(&host);
        place.make("");
        // Each generation starts the next and leaves; never more than a few.
        let script = "f() { sleep 100 & k=$!; (sleep 0.001; f) & sleep 0.002; kill $k; }; f";
        let init = place.run("", script);
        let cgroup = place.take(init);
        assert_eq!(cgroup.kill_until(soon()).unwrap(), Progress::Empty);
        assert_eq!(cgroup.remove_until(soon()).unwrap().left.len(), 0);
    }
}

#[test]
fn what_was_populated_before_is_never_touched() {
    for host in hosts() {
        let mut place = Place::new(&host);
        place.make("deep");
        let stranger = place.run("deep", "exec sleep 100");
        place.claims = place.claim();
        for claim in &place.claims {
            assert!(
                matches!(
                    claim.before,
                    Before::Existed {
                        populated: true,
                        ..
                    }
                ),
                "{claim:?}"
            );
        }
        let init = place.run("", "exec sleep 100");
        let cgroup = place.take(init);
        assert!(!cgroup.is_ours() && cgroup.is_shared());
        assert_eq!(cgroup.pids().unwrap().len(), 2);
        assert_eq!(cgroup.kill_until(soon()).unwrap(), Progress::Empty);
        assert_eq!(cgroup.signal_all(9).unwrap(), Sent::default());
        assert!(matches!(
            cgroup.request_freeze(true),
            Err(Error::NotOurs { .. })
        ));
        assert_eq!(cgroup.remove_step().unwrap(), Removal::default());
        assert!(alive(stranger) && alive(init));
    }
}

#[test]
fn what_holds_ourselves_is_populated_and_not_ours() {
    for host in hosts() {
        let id = TaskId::new("x").unwrap();
        for path in ["/", ".", "/."] {
            let placement = place(&host, &id, path, Some(false), false).unwrap();
            for claim in claims(&host, &placement) {
                assert!(!claim.ours(), "{claim:?}");
            }
        }
        // Even if a record says so.
        let claims: Vec<_> = host
            .list
            .iter()
            .map(|h| Claim {
                hierarchy: h.name.clone(),
                path: h.dir_of(&h.own).unwrap().to_string_lossy().into_owned(),
                before: Before::Absent,
                inode: None,
            })
            .collect();
        assert!(!Cgroup::open(&host, &claims).unwrap().is_ours());
    }
}

#[test]
fn a_directory_made_anew_is_another_one() {
    for host in hosts() {
        let mut place = Place::new(&host);
        place.make("");
        let init = place.run("", "exec sleep 100");
        let cgroup = place.take(init);
        assert_eq!(cgroup.kill_until(soon()).unwrap(), Progress::Empty);
        assert_eq!(cgroup.remove_until(soon()).unwrap().left.len(), 0);
        place.make("");
        let stranger = place.run("", "exec sleep 100");
        // Neither the old handle nor the old claims lead to it.
        assert_eq!(cgroup.kill_until(soon()).unwrap(), Progress::Empty);
        assert!(cgroup.pids().unwrap().is_empty());
        assert_eq!(cgroup.remove_step().unwrap(), Removal::default());
        assert!(place.open().is_absent());
        assert!(alive(stranger) && !place.gone());
    }
}

#[test]
fn init_elsewhere_than_claimed_makes_it_not_ours() {
    for host in hosts() {
        let mut real = Place::new(&host);
        real.make("");
        let init = real.run("", "exec sleep 100");
        let mut place = Place::new(&host);
        let cgroup = place.take(init);
        assert!(!cgroup.is_ours());
        assert!(cgroup.pids().unwrap().contains(&init));
        for (claim, real) in place.claims.iter().zip(real.dirs()) {
            assert_eq!(Path::new(&claim.path), real);
            assert_eq!(claim.before, Before::Unknown);
        }
    }
}

#[test]
fn a_signal_reaches_everyone_nested_ones_too() {
    for host in hosts() {
        let mut place = Place::new(&host);
        place.make("a");
        let init = place.run("", "exec sleep 100");
        place.run("a", "exec sleep 100");
        let cgroup = place.take(init);
        let before = cgroup.pids().unwrap().len();
        let sent = cgroup.signal_all(15).unwrap();
        assert!(sent.delivered >= before && sent.left_out == 0, "{sent:?}");
        until("all are gone", || !cgroup.populated().unwrap());
    }
}

#[test]
fn who_was_told_already_is_not_told_again() {
    for host in hosts() {
        let mut place = Place::new(&host);
        place.make("");
        let init = place.run("", "exec sleep 100");
        place.run("", "exec sleep 100");
        let cgroup = place.take(init);
        let process = crate::proc::incarnation(init).unwrap().unwrap();
        let family = Family::of(Known {
            init: Some(&process),
            init_is: Init::Alive,
            private_pid_ns: false,
            pid_ns: None,
            reaper: None,
            named: Vec::new(),
            bundle: None,
        });
        cgroup.signal_others(15, init, &family).unwrap();
        until("only init is left", || cgroup.pids().unwrap() == [init]);
    }
}

/// Of a chain of processes each line of ancestors was followed for each of them: the shim, which has
/// one thread, answered nobody for as long as that took.
#[test]
fn a_signal_to_a_long_chain_looks_at_each_a_few_times() {
    const LONG: usize = 80;
    for host in hosts() {
        let mut place = Place::new(&host);
        place.make("");
        let chain = "f() { [ $1 -eq 0 ] || { (f $(($1 - 1))) & }; sleep 100; }; f 80";
        let init = place.run("", chain);
        let cgroup = place.take(init);
        until("all are there", || cgroup.pids().unwrap().len() > 2 * LONG);
        let process = crate::proc::incarnation(init).unwrap().unwrap();
        let family = Family::of(Known {
            init: Some(&process),
            init_is: Init::Alive,
            private_pid_ns: false,
            pid_ns: None,
            reaper: None,
            named: Vec::new(),
            bundle: None,
        });
        let before = crate::proc::LOOKS.get();
        let sent = cgroup.signal_others(18, init, &family).unwrap();
        let looks = crate::proc::LOOKS.get() - before;
        assert!(sent.delivered > LONG, "{sent:?}");
        let many = sent.delivered * LONG / 4;
        assert!(looks < many, "{looks} looks at {sent:?}");
    }
}

#[test]
fn a_freeze_is_asked_for_and_read_back() {
    for host in hosts() {
        let mut place = Place::new(&host);
        place.make("");
        let init = place.run("", "while :; do :; done");
        let cgroup = place.take(init);
        assert_eq!(cgroup.freeze_state().unwrap(), Some(Freeze::Thawed));
        cgroup.request_freeze(true).unwrap();
        until("it is frozen", || {
            cgroup.freeze_state().unwrap() == Some(Freeze::Frozen)
        });
        // Twice is once.
        cgroup.request_freeze(true).unwrap();
        cgroup.request_freeze(false).unwrap();
        until("it is thawed", || {
            cgroup.freeze_state().unwrap() == Some(Freeze::Thawed)
        });
    }
}

#[test]
fn counters_are_read_and_absent_ones_are_absent() {
    for host in hosts() {
        let mut place = Place::new(&host);
        place.make("");
        let init = place.run("", "while :; do :; done");
        let cgroup = place.take(init);
        let used = || match stats(&cgroup).unwrap().unwrap() {
            Metrics::V1(it) => {
                assert_eq!(it.pids.unwrap().current, 1);
                assert_eq!(it.pids.unwrap().limit, None);
                let memory = it.memory.unwrap();
                assert!(memory.usage.unwrap().limit > 0);
                assert_eq!(it.oom_control.unwrap().oom_kill, Some(0));
                assert!(it.blkio.is_some() && it.throttling.is_some());
                if host.named("rdma").is_none() {
                    assert!(it.rdma.is_none());
                }
                it.cpu_usage.unwrap().total
            }
            Metrics::V2(it) => {
                let dir = Path::new(&place.claims[0].path);
                assert_eq!(it.pids.is_some(), dir.join("pids.current").exists());
                assert_eq!(it.memory.is_some(), dir.join("memory.stat").exists());
                it.cpu.unwrap().usage_usec
            }
        };
        until("it uses the processor", || used() > 0);
    }
}

#[test]
fn an_oom_kill_wakes_and_is_counted_and_kept() {
    for host in hosts() {
        let mut place = Place::new(&host);
        place.make("");
        let init = place.run("", "exec sleep 100");
        let cgroup = place.take(init);
        let Some(mut watch) = OomWatch::open(&cgroup).unwrap() else {
            // A v2 tree beside v1 has no memory controller.
            assert_eq!(host.mode, Mode::Unified);
            continue;
        };
        assert_eq!(watch.count(), Some(0));
        let dir = cgroup.with("memory").unwrap().path.clone();
        match host.mode {
            Mode::V1 => fs::write(dir.join("memory.limit_in_bytes"), "8388608").unwrap(),
            Mode::Unified => fs::write(dir.join("memory.max"), "8388608").unwrap(),
        }
        place.run("", "exec tail /dev/zero");
        let ready = || {
            let mut on = [match watch.wakes() {
                Wakes::Readable => vigil_sys::fd::Watch::reading(&watch),
                Wakes::Priority => vigil_sys::fd::Watch::priority(&watch),
            }];
            vigil_sys::fd::poll(&mut on, Duration::from_secs(10)).unwrap() > 0
        };
        assert!(ready(), "no wake-up");
        until("it is counted", || watch.count() == Some(1));
        assert_eq!(cgroup.kill_until(soon()).unwrap(), Progress::Empty);
        assert_eq!(cgroup.remove_until(soon()).unwrap().left.len(), 0);
        assert_eq!(watch.count(), Some(1), "gone is not zero");
    }
}

#[test]
fn what_an_earlier_life_lost_to_memory_is_not_counted_again() {
    for host in hosts() {
        let mut place = Place::new(&host);
        place.make("");
        let first = place.run("", "exec sleep 100");
        let memory = place.take(first);
        if OomWatch::open(&memory).unwrap().is_none() {
            // A v2 tree beside v1 has no memory controller.
            assert_eq!(host.mode, Mode::Unified);
            continue;
        }
        let dir = memory.with("memory").unwrap().path.clone();
        let limit = dir.join(match host.mode {
            Mode::V1 => "memory.limit_in_bytes",
            Mode::Unified => "memory.max",
        });
        let grow = |place: &mut Place| {
            fs::write(&limit, "8388608").unwrap();
            place.run("", "exec tail /dev/zero");
            let child = place.children.last_mut().unwrap();
            assert!(!child.wait().unwrap().success());
        };
        grow(&mut place);
        assert_eq!(memory.kill_until(soon()).unwrap(), Progress::Empty);
        for child in &mut place.children {
            let _ = child.wait();
        }

        place.claims = place.claim();
        let told = |claim: &Claim| match claim.before {
            Before::Existed {
                ooms, populated, ..
            } => (ooms, populated),
            Before::Absent | Before::Unknown => panic!("{claim:?}"),
        };
        assert_eq!(place.claims.iter().map(told).max(), Some((1, false)));
        let init = place.run("", "exec sleep 100");
        let cgroup = place.take(init);
        let mut watch = OomWatch::open(&cgroup).unwrap().unwrap();
        assert_eq!(watch.count(), Some(0));
        grow(&mut place);
        until("the new one is counted", || watch.count() == Some(1));
    }
}

#[test]
fn a_threaded_cgroup_lists_its_processes_too() {
    for host in hosts().iter().filter(|h| h.mode == Mode::Unified) {
        let mut place = Place::new(host);
        place.make("a");
        let init = place.run("", "exec sleep 100");
        let dir = PathBuf::from(&place.claims[0].path);
        fs::write(dir.join("a/cgroup.type"), "threaded").unwrap();
        fs::write(dir.join("a/cgroup.threads"), init.to_string()).unwrap();
        let cgroup = place.take(init);
        assert!(fs::read_to_string(dir.join("a/cgroup.procs")).is_err());
        assert_eq!(cgroup.pids().unwrap(), [init]);
        assert!(cgroup.populated().unwrap());
        let nested = fs::File::open(dir.join("a")).unwrap();
        assert_eq!(tree::pids(&nested).unwrap(), [init]);
        assert!(tree::populated(&nested).unwrap());
        assert_eq!(cgroup.kill_until(soon()).unwrap(), Progress::Empty);
        assert_eq!(cgroup.remove_until(soon()).unwrap().left.len(), 0);
    }
}

#[test]
fn nesting_deeper_than_a_path_is_listed_and_removed() {
    for host in hosts() {
        let place = {
            let mut place = Place::new(&host);
            // One hierarchy will do.
            place.claims.truncate(1);
            place
        };
        let name = "n".repeat(200);
        let mut dir = PathBuf::from(&place.claims[0].path);
        fs::create_dir(&dir).unwrap();
        // By descriptor, as no path is long enough.
        let mut open = fs::File::open(&dir).unwrap();
        let mut depth = 0;
        while depth < 30 {
            let next = tree::path(&open, &name);
            if fs::create_dir(&next).is_err() {
                break;
            }
            open = fs::File::open(&next).unwrap();
            dir.push(&name);
            depth += 1;
        }
        assert!(dir.as_os_str().len() > 4096, "only {depth} deep");
        let cgroup = place.open();
        assert!(cgroup.pids().unwrap().is_empty());
        // At the first attempt: deepest first.
        let removal = cgroup.remove_step().unwrap();
        assert_eq!((removal.removed, removal.left.len()), (depth + 1, 0));
        assert!(place.gone());
    }
}

#[test]
fn controllers_are_handed_down_to_the_parent_only() {
    for host in hosts().iter().filter(|h| h.mode == Mode::Unified) {
        let place = Place::new(host);
        let dir = PathBuf::from(&place.claims[0].path);
        fs::create_dir_all(dir.join("in")).unwrap();
        let mut claims = place.claims.clone();
        claims[0].path = dir.join("in").to_string_lossy().into_owned();
        let on = |at: &Path| fs::read_to_string(at.join("cgroup.subtree_control")).unwrap();
        let before = on(&host.list[0].mount);
        let cgroup = Cgroup::open(host, &claims).unwrap();
        cgroup.enable_controllers(host).unwrap();
        let all = fs::read_to_string(host.list[0].mount.join("cgroup.controllers")).unwrap();
        for name in all.split_ascii_whitespace() {
            assert!(on(&dir).contains(name), "{name}");
        }
        assert_eq!(on(&dir.join("in")).trim(), "");
        fs::remove_dir(dir.join("in")).unwrap();
        fs::remove_dir(&dir).unwrap();
        // Leave the host's root as it was.
        for name in all.split_ascii_whitespace().filter(|n| !before.contains(n)) {
            fs::write(
                host.list[0].mount.join("cgroup.subtree_control"),
                format!("-{name}"),
            )
            .unwrap();
        }
    }
}
