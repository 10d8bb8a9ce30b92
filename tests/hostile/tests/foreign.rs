//! Every file that Vigil keeps, damaged or another's, and everybody who reads it: nobody else
//! is hurt, a container is kept while its pair lives, the truth is told, nothing hangs, and
//! nothing is left. The files and what is done to them: `vigil_hostile::harm`; whoever reads
//! them is a test here, and takes each row with each harm.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, setrlimit};
use serde_json::Value;
use vigil_faults::world::{Medium, cgroups, in_small_run, runc_state};
use vigil_hostile::harm::{HARMS, Harm, ROWS, clear, place, sound};
use vigil_hostile::{Pair, successor, trial};
use vigil_lab::kit::Container;
use vigil_lab::process::{Process, alive};
use vigil_lab::{Kit, Spec, by, shim, until};

const KILL: i32 = 9;
/// What nobody who reads a file without an end may take of the machine, bytes.
const MEMORY: u64 = 8 << 30;

/// A host whose `/run` is the test's own, and somebody on it who has nothing to do with it.
struct Ground<'a> {
    kit: &'a Kit,
    bystander: Container,
    /// The bystander's files, each with what it said.
    files: Vec<(&'static str, PathBuf, Vec<u8>, i64)>,
}

impl<'a> Ground<'a> {
    fn new(kit: &'a Kit) -> Result<Self> {
        // The tool finds bundles where containerd has them.
        let tasks = kit.scratch.path("by-state/io.containerd.runtime.v2.task");
        fs::create_dir_all(kit.scratch.path("by-state"))?;
        symlink(kit.scratch.path("state"), &tasks)?;
        let bystander = kit.running(&Spec::sleeper())?;
        // One that has been taken over has every file.
        let pair = Pair::of(&bystander.shim)?;
        vigil_hostile::succeeded(&bystander.shim, &pair)?;
        kit.exec(&bystander, "x", &Spec::sh("exit 3"))?;
        let dir = kit.scratch.path("theirs");
        fs::create_dir(&dir)?;
        let mut files = Vec::new();
        for name in ROWS.iter().flat_map(|row| *row) {
            // Not in use by it, and not where it would be used.
            let path = match name.strip_prefix('/') {
                Some(below) => dir.join(below),
                None => place(name, &bystander, "x"),
            };
            if let Some(sound) = sound(name, &bystander).filter(|_| !path.exists()) {
                fs::write(&path, sound)?;
            }
            let said = fs::read(&path).unwrap_or_default();
            let at = fs::metadata(&path).map_or(0, |meta| meta.mtime());
            files.push((*name, path, said, at));
        }
        Ok(Self {
            kit,
            bystander,
            files,
        })
    }

    /// A container that has every file, each as it is in health; its exec is not started.
    fn container(&self, script: &str) -> Result<(Container, Pair)> {
        let container = self.kit.running(&Spec::sh(script))?;
        let pair = Pair::of(&container.shim)?;
        Ok((container, pair))
    }

    /// Harms each file of a row.
    fn harm(&self, container: &Container, row: &[&str], harm: Harm, exec: &str) -> Result<()> {
        for name in row {
            let path = place(name, container, exec);
            if let Some(sound) = sound(name, container) {
                clear(&path)?;
                fs::create_dir_all(path.parent().context("no parent")?)?;
                fs::write(&path, sound)?;
            }
            let theirs = self.files.iter().find(|(its, ..)| its == name);
            harm.to(name, &path, &theirs.context("not in the table")?.1)?;
        }
        Ok(())
    }

    fn unhurt(&self) -> Result<()> {
        let it = &self.bystander;
        let state = it.task().state(&it.id, "")?.status.value();
        ensure!(state == 2, "the bystander's state is {state}");
        ensure!(alive(i32::try_from(it.pid)?), "its init died");
        ensure!(it.shim.reply.socket.exists(), "its socket is gone");
        for (name, path, before, at) in &self.files {
            let now = fs::read(path).unwrap_or_default();
            // Its journal goes on when its State is asked.
            let same = *name == "journal" || now == *before;
            ensure!(same, "the bystander's {name} was written to");
            let now = fs::metadata(path).map_or(0, |meta| meta.mtime());
            let same = *name == "journal" || now == *at;
            ensure!(same, "the bystander's {name} was touched");
        }
        Ok(())
    }

    /// Runs the tool: how it ended, and what it said.
    fn vigil(&self, args: &[&str]) -> Result<(i32, String)> {
        let mut command = Command::new(self.kit.binary.path.with_file_name("vigil"));
        command
            .args(args)
            .env("VIGIL_CONTAINERD_STATE", self.kit.scratch.path("by-state"))
            .env_remove("CONTAINERD_NAMESPACE");
        let ran = shim::run(&mut command, &[], true, by(10.0))?;
        let said = String::from_utf8_lossy(&ran.stdout).into_owned();
        ensure!(!said.contains("panicked"), "{args:?}: {said}");
        Ok((ran.status.code().context("killed")?, said))
    }

    /// What it says of a container, as JSON; how it ended.
    fn asked(&self, container: &Container, verb: &str) -> Result<(i32, Value)> {
        let args: &[&str] = match verb {
            "ps" => &["ps", "--json"],
            _ => &[verb, &container.id, "--json"],
        };
        let (code, said) = self.vigil(args)?;
        let value: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
        let rows = match verb {
            "ps" => &value["tasks"],
            "show" => return Ok((code, value)),
            _ => &value["cases"],
        };
        let own = rows.as_array().context("no rows")?.iter();
        let own = own.filter(|row| row["id"] == container.id.as_str() && row["tombstone"] != true);
        let own = own.clone().next().cloned();
        Ok((code, own.with_context(|| format!("not there: {said}"))?))
    }

    /// Nothing of it is on the host but its bundle, which is removed as containerd does.
    fn nothing_left(&self, container: &Container) -> Result<()> {
        let (kit, id) = (self.kit, &container.id);
        let name = format!("{}/{id}", kit.scratch.mark());
        let left = || {
            let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
            let mounted = mounts.contains(&format!("{name}/rootfs"));
            let living = Process::marked(&name);
            let mut living = living.iter().filter(|p| p.cgroup.contains(&name));
            let pair = container.shim.processes();
            let socket = &container.shim.reply.socket;
            [
                (mounted, "a mount".to_owned()),
                (living.next().is_some(), "a process".to_owned()),
                (!pair.is_empty(), format!("{pair:?}")),
                (
                    !cgroups(kit.scratch.mark(), id).is_empty(),
                    "a cgroup".to_owned(),
                ),
                (runc_state(kit, id).exists(), "runc's state".to_owned()),
                (socket.exists(), "its socket".to_owned()),
            ]
            .into_iter()
            .find_map(|(left, what)| left.then_some(what))
        };
        let gone = until("nothing to be left", by(10.0), || {
            left().is_none().then_some(())
        });
        gone.with_context(|| format!("left: {:?}", left()))?;
        container.bundle.remove()
    }
}

/// Runs `column` with each row, a ground for all of them, and ends the bystander.
fn column(seconds: u64, rows: fn(&[&str]) -> bool, column: fn(&Ground<'_>, &[&str]) -> Result<()>) {
    trial(seconds, move |kit| {
        setrlimit(Resource::RLIMIT_AS, MEMORY, MEMORY)?;
        in_small_run(kit, Medium::Tmpfs("size=256m"), |_| {
            let ground = Ground::new(kit)?;
            let only = std::env::var("VIGIL_TEST_ROW").ok();
            let only = |row: &[&str]| {
                only.as_ref()
                    .is_none_or(|name| row.contains(&name.as_str()))
            };
            let taken = ROWS.iter().filter(|row| rows(row) && only(row));
            all(taken, |row| column(&ground, row))?;
            ground.unhurt()?;
            ground.bystander.shim.kill_all()?;
            ground.bystander.shim.delete()?.ok()?;
            ground.nothing_left(&ground.bystander)
        })
    });
}

/// Tries each, and fails with what was wrong of any.
fn all<T: std::fmt::Debug>(
    of: impl IntoIterator<Item = T>,
    each: impl Fn(T) -> Result<()>,
) -> Result<()> {
    let tried = of.into_iter().map(|one| {
        let told = format!("{one:?}");
        each(one).context(told)
    });
    let wrong = tried.filter_map(|tried| tried.map_err(|e| format!("{e:#}")).err());
    let wrong: Vec<String> = wrong.collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Both of a pair die while init lives, a file is another's or damaged.
fn dead(ground: &Ground<'_>, row: &[&str], harm: Harm) -> Result<(Container, i32)> {
    let (container, pair) = ground.container("sleep 99 & wait")?;
    if row.contains(&"exec-*.asked") {
        ground.kit.exec(&container, "x", &Spec::sh("exit 3"))?;
    }
    let pair = if row.contains(&"takeovers") {
        vigil_hostile::succeeded(&container.shim, &pair)?
    } else {
        pair
    };
    container.shim.kill_all()?;
    pair.gone(10.0)?;
    ground.harm(&container, row, harm, "x")?;
    let init = i32::try_from(container.pid)?;
    ensure!(alive(init), "init died with its pair");
    Ok((container, init))
}

/// Removes what a test has put below `/run/vigil`.
fn tidied(container: &Container, row: &[&str]) -> Result<()> {
    for name in row.iter().filter(|name| name.starts_with('/')) {
        clear(&place(name, container, "x"))?;
    }
    Ok(())
}

/// Both of a pair die, one of the files is another's or damaged, and `delete` comes: another
/// container's journal once had it kill the other container.
#[test]
fn delete_hurts_nobody_else_whatever_lies_in_the_bundle() {
    column(120, any, |ground, row| {
        all(HARMS, |harm| deleted(ground, row, *harm))
    });
}

fn deleted(ground: &Ground<'_>, row: &[&str], harm: Harm) -> Result<()> {
    let (container, init) = dead(ground, row, harm)?;
    let deleted = container.shim.delete()?;
    let says = String::from_utf8_lossy(&deleted.ran.stderr).into_owned();
    let told = deleted.ok()?;
    until("init to be dead", by(10.0), || (!alive(init)).then_some(()))
        .with_context(|| says.clone())?;
    ensure!(told.exit_status == 137, "{told:?}; {says}");
    if harm == Harm::Foreign && row == ["journal"] {
        let whose = &ground.bystander.id;
        ensure!(says.contains(&format!("/{whose}, and")), "{says}");
    }
    let again = container.shim.delete()?.ok()?;
    ensure!(again.exit_status == 137, "again: {again:?}; {says}");
    // A sweeper that `delete` has left is known by its arguments.
    ground.nothing_left(&container)?;
    tidied(&container, row)?;
    ground.unhurt()
}

/// The tool looks at what a dead pair has left, plans its repair, does it, and containerd comes
/// back and asks: init runs, and nobody says that nothing is wrong or nothing is there. After a
/// repair without a journal `delete` said 255.
#[test]
fn the_tool_tells_the_truth_of_a_dead_pair_and_repairs_it() {
    column(120, any, |ground, row| {
        all(HARMS, |harm| repaired(ground, row, *harm))
    });
}

fn repaired(ground: &Ground<'_>, row: &[&str], harm: Harm) -> Result<()> {
    let (container, init) = dead(ground, row, harm)?;
    for verb in ["show", "ps"] {
        let (code, said) = ground.asked(&container, verb)?;
        ensure!(code == 3, "{verb} ends with {code}: {said}");
        ensure!(said["wrong"].is_string(), "{verb}: {said}");
        ensure!(said["pair"]["life"] == "gone", "{verb}: {said}");
        ensure!(said["observed"]["init"] == "alive", "{verb}: {said}");
    }
    let (code, said) = ground.asked(&container, "repair")?;
    ensure!(code == 3, "repair ends with {code}: {said}");
    ensure!(said["plan"] != serde_json::json!([]), "{said}");
    ensure!(alive(init), "a plan killed init");
    let (code, said) = ground.vigil(&["repair", &container.id, "--write"])?;
    ensure!(!alive(init), "{code}: {said}");
    // A stone that cannot be read may be of it.
    let wanted = code == 0 || code == 3 && row.contains(&"/stone");
    ensure!(wanted && !said.contains("failed:"), "{code}: {said}");
    let told = container.shim.delete()?.ok()?;
    ensure!(told.exit_status == 137, "{told:?}; {said}");
    ground.nothing_left(&container)?;
    tidied(&container, row)?;
    ground.unhurt()
}

fn any(_: &[&str]) -> bool {
    true
}

/// One of the files is another's, damaged or gone, the tool looks and repairs, and the shim
/// dies: the pair lived on without a shim or left, and a journal cut in half said CREATED of a
/// running task. Now the tool leaves it to its pair, and the next shim goes on.
#[test]
fn a_living_pair_goes_on_whatever_becomes_of_its_files() {
    column(120, any, |ground, row| {
        let (container, mut pair) = ground.container("trap 'exit 7' TERM; sleep 99 & wait")?;
        let (task, id) = (container.task(), &container.id);
        let aside = ground.kit.scratch.path(&format!("state/lock-of-{id}"));
        for (at, harm) in HARMS.iter().enumerate() {
            let cell = || format!("{harm:?}");
            let exec = format!("x{at}");
            ground.kit.exec(&container, &exec, &Spec::sh("exit 3"))?;
            // The lock is a file nobody makes anew.
            let lock = container.bundle.dir.join("lock");
            fs::hard_link(&lock, &aside)?;
            if row.contains(&"lock") {
                fs::remove_file(&lock)?;
                fs::write(&lock, "")?;
            }
            ground
                .harm(&container, row, *harm, &exec)
                .with_context(cell)?;
            for verb in ["show", "ps", "repair"] {
                let (code, said) = ground.asked(&container, verb).with_context(cell)?;
                ensure!([0, 3].contains(&code), "{harm:?}: {verb}: {code}: {said}");
                let lives = said["pair"]["life"] == "alive" || said["pair_alive"] == true;
                ensure!(lives, "{harm:?}: {verb}: {said}");
                let plan = said["plan"].as_array().is_none_or(Vec::is_empty);
                ensure!(plan, "{harm:?}: {said}");
            }
            let (code, said) = ground.vigil(&["repair", id, "--write"])?;
            ensure!([0, 3].contains(&code), "{harm:?}: {code}: {said}");
            ensure!(pair.lives(), "{harm:?}: {said}");
            pair.signal(pair.shim, KILL)?;
            let next = successor(&container.shim, &pair);
            pair = next.with_context(|| format!("{harm:?}: {}", container.bundle.log_text()))?;
            let state = task.state(id, "")?.status.value();
            ensure!(state == 2, "{harm:?}: state {state}");
            // Asked for before its file was harmed.
            match task.start(id, &exec) {
                Ok(_) => {
                    let status = task.wait(id, &exec).with_context(cell)?.exit_status;
                    ensure!(status == 3, "{harm:?}: status {status}");
                }
                Err(error) => ensure!(row.contains(&"exec-*.asked"), "{harm:?}: {error}"),
            }
            task.delete(id, &exec).with_context(cell)?;
            if row.contains(&"journal") {
                let kept = fs::symlink_metadata(container.bundle.dir.join("journal"))?;
                ensure!(kept.is_file(), "{harm:?}: not written anew");
            }
            ground.unhurt().with_context(cell)?;
            if row.contains(&"lock") {
                clear(&lock)?;
                fs::hard_link(&aside, &lock)?;
            }
            fs::remove_file(&aside)?;
            tidied(&container, row)?;
        }
        task.kill(id, "", 15, false)?;
        let status = container.exit_status()?;
        ensure!(status == 7, "status {status}");
        let exits = fs::symlink_metadata(container.bundle.dir.join("exits"))?;
        ensure!(
            exits.len() == 40_960 && exits.is_file(),
            "exits: not made anew"
        );
        let deleted = task.delete(id, "")?;
        ensure!(deleted.exit_status == 7, "{deleted:?}");
        task.shutdown(id)?;
        pair.gone(10.0)?;
        ensure!(container.shim.delete()?.ok()?.exit_status == 7, "delete");
        ground.nothing_left(&container)
    });
}

/// A user who may not read the files: the tool said that something was wrong with a healthy
/// container, or that there was none.
#[test]
fn who_may_not_read_is_told_so_and_nothing_else() {
    column(
        60,
        |row| row == ["journal"],
        |ground, _| {
            use std::os::unix::fs::PermissionsExt;
            let (kit, container) = (ground.kit, &ground.bystander);
            let state = kit.scratch.path("by-state");
            // Whoever it is may run it.
            let tool = kit.scratch.path("vigil");
            fs::copy(kit.binary.path.with_file_name("vigil"), &tool)?;
            let nobody = |args: &[&str]| {
                let mut command = Command::new("setpriv");
                command
                    .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
                    .arg(&tool)
                    .args(args)
                    .env("VIGIL_CONTAINERD_STATE", &state)
                    .env_remove("CONTAINERD_NAMESPACE")
                    .current_dir("/");
                let ran = shim::run(&mut command, &[], true, by(10.0))?;
                let said = String::from_utf8_lossy(&ran.stdout).into_owned();
                let code = ran.status.code();
                ensure!(code == Some(1), "{args:?}: {code:?}: {said}");
                ensure!(said.contains("Permission denied"), "{args:?}: {said}");
                ensure!(said.contains("root can"), "{args:?}: {said}");
                Ok(())
            };
            let (bundle, id) = (&container.bundle.dir, &container.id);
            let tasks = kit.scratch.path("state");
            let by_path = bundle.to_str().context("a path")?;
            fs::create_dir_all("/run/vigil/tombstones")?;
            fs::write("/run/vigil/history", "")?;
            fs::set_permissions("/run/vigil/history", fs::Permissions::from_mode(0o600))?;
            // As containerd makes them, as some versions do, and with the parent closed as well.
            for (path, mode) in [
                (bundle, 0o700),
                (bundle, 0o711),
                (&tasks, 0o711),
                (&tasks, 0o700),
            ] {
                fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
                for verb in ["show", "repair", "kill"] {
                    nobody(&[verb, id]).with_context(|| format!("{mode:o}"))?;
                    nobody(&[verb, by_path]).with_context(|| format!("{mode:o}"))?;
                }
                nobody(&["ps"]).with_context(|| format!("{mode:o}"))?;
                nobody(&["repair"]).with_context(|| format!("{mode:o}"))?;
            }
            // Nobody can say that there is none, or that nothing is left.
            fs::set_permissions(&tasks, fs::Permissions::from_mode(0o755))?;
            for verb in ["show", "kill", "repair", "upgrade"] {
                nobody(&[verb, "no-such"])?;
            }
            nobody(&["history"])?;
            for words in [&["ps"][..], &["repair"], &["upgrade", "--all"]] {
                nobody(&[words, &["--namespace", "no-such"]].concat())?;
            }
            Ok(())
        },
    );
}

/// Somebody removes `lock` and `pair` under a living pair, and the id is started again: the pair
/// stays, and no second one is made beside it.
#[test]
fn a_pair_that_its_bundle_does_not_name_keeps_its_place() {
    trial(60, |kit| {
        let container = kit.running(&Spec::sleeper())?;
        let pair = Pair::of(&container.shim)?;
        for name in ["lock", "pair"] {
            fs::remove_file(container.bundle.dir.join(name))?;
            let ran = kit.caller.run_start(&container.id, &container.bundle.dir)?;
            ensure!(!ran.status.success(), "another pair was made");
            ensure!(Pair::of(&container.shim)? == pair, "another pair");
            let state = container.task().state(&container.id, "")?.status.value();
            ensure!(state == 2, "state {state}");
        }
        Ok(())
    });
}
