//! What the cases of F26 to F51 make the world of: a scripted runc, a stranger with a
//! chosen pid, a small `/run`, and looks at the host that no shim is asked for.
//!
//! Everything made here ends by itself: strangers are short sleeps, mounts live in a
//! namespace that dies with its last process.

mod small;
mod stranger;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::{DeleteResponse, Status};
use protobuf::well_known_types::any::Any;
use vigil_hostile::runc_options;
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::process::{Process, alive};
use vigil_lab::{Kit, Residue, Spec, by, until};

pub use small::{Medium, SmallRun, in_small_run};
pub use stranger::{Stranger, with_pid};

/// `usual` of something, or `whole` with `VIGIL_LONG=1`: as many as fit into a case's time.
#[must_use]
pub fn times(usual: usize, whole: usize) -> usize {
    if std::env::var_os("VIGIL_LONG").is_some_and(|v| v == "1") {
        whole
    } else {
        usual
    }
}

/// Whether this host has cgroup v2 alone.
#[must_use]
pub fn unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.procs").exists()
}

/// The directories of a container's cgroup that exist: one on v2, one a hierarchy on v1.
#[must_use]
pub fn cgroups(mark: &str, id: &str) -> Vec<PathBuf> {
    let base = Path::new("/sys/fs/cgroup");
    let below = format!("{mark}/{id}");
    let mut places = vec![base.join(&below)];
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            places.push(entry.path().join(&below));
        }
    }
    places.retain(|p| p.is_dir());
    places
}

/// runc's own directory for a container.
#[must_use]
pub fn runc_state(kit: &Kit, id: &str) -> PathBuf {
    Path::new("/run/containerd/runc")
        .join(kit.scratch.mark())
        .join(id)
}

/// A runc that does `body` first, a piece of sh. It finds `$verb`, `$id`, `$log`,
/// `$pid_file` and `$dir` (a directory of its own); what it does not end with `exit`
/// goes on as runc itself.
pub fn scripted(kit: &Kit, name: &str, body: &str) -> Result<(PathBuf, Any)> {
    use std::os::unix::fs::PermissionsExt;

    let dir = kit.scratch.path(name);
    fs::create_dir_all(&dir)?;
    let path = dir.join("runc");
    let script = format!(
        "#!/bin/sh\nverb=; log=; pid_file=; id=; last=; dir={}\n\
         for argument; do\n\
         case $last in --log) log=$argument ;; --pid-file) pid_file=$argument ;; esac\n\
         case $argument in create|start|exec|delete|update|checkpoint|restore|kill|pause|resume|state|ps|events|list|features)\n\
         verb=${{verb:-$argument}} ;; esac\nlast=$argument; id=$argument\ndone\n{body}\nexec runc \"$@\"\n",
        dir.display()
    );
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    let options = runc_options(&path.to_string_lossy());
    Ok((dir, options))
}

/// A created container whose runtime is `options`.
pub fn created_under(kit: &Kit, spec: &Spec, options: &Any) -> Result<Container> {
    let mut container = kit.prepared(spec, Stdio::Output)?;
    let mut request = container.bundle.create_request();
    request.options = Some(options.clone()).into();
    let answer = container.task().create(&request);
    container.pid = answer
        .with_context(|| format!("Create; log: {}", container.bundle.log_text()))?
        .pid;
    Ok(container)
}

/// The same, started.
pub fn running_under(kit: &Kit, spec: &Spec, options: &Any) -> Result<Container> {
    let container = created_under(kit, spec, options)?;
    container.start().context("Start")?;
    Ok(container)
}

/// The pid of init as the kernel counts.
pub fn pid(container: &Container) -> Result<i32> {
    i32::try_from(container.pid).context("a pid")
}

/// Reaper and shim; Go's one process is both. What else runs under the shim's name, a worker
/// or a sweeper, is neither.
pub fn reaper_and_shim(container: &Container) -> Result<(i32, i32)> {
    let reaper = container.task().connect_task(&container.id)?.shim_pid;
    let reaper = i32::try_from(reaper)?;
    let serves = |p: &Process| p.pid != reaper && p.cmdline.ends_with(" serve");
    let shim = container.shim.processes().into_iter().find(serves);
    Ok((reaper, shim.map_or(reaper, |shim| shim.pid)))
}

/// Waits until init is gone, whoever ended it.
pub fn init_gone(container: &Container, seconds: f64) -> Result<()> {
    let pid = pid(container)?;
    until(&format!("init {pid} to be gone"), by(seconds), || {
        (!alive(pid)).then_some(())
    })
}

/// State of init (or of an exec) as the shim tells it.
pub fn status(container: &Container, exec: &str) -> Result<Status> {
    let state = container.task().patient(2.0).state(&container.id, exec)?;
    state
        .status
        .enum_value()
        .map_err(|n| anyhow::anyhow!("status {n}"))
}

/// `delete` as containerd runs it, with its five seconds; it must exit 0 and say something.
pub fn deleted(container: &Container) -> Result<DeleteResponse> {
    container
        .shim
        .delete()
        .context("delete")?
        .ok()
        .context("delete")
}

/// Nothing of the container but its bundle is on the host.
pub fn nothing_left(kit: &Kit, id: &str) -> Result<()> {
    let name = format!("{}/{id}", kit.scratch.mark());
    let (rootfs, arguments) = (format!("{name}/rootfs"), format!("-id {id} "));
    let mut left = Vec::new();
    let clean = until("", by(5.0), || {
        left = Residue::marked(kit.scratch.mark())
            .lines()
            .filter(|line| match line.split_once(' ') {
                Some(("mount", point)) => point.ends_with(&rootfs),
                Some(("process", rest)) => {
                    rest.contains(&arguments)
                        || rest.contains(&format!("{name}]"))
                        || rest.ends_with(&name)
                        || rest.contains(&format!("{name}/"))
                }
                Some(("cgroup", path)) => {
                    path.ends_with(&name) || path.contains(&format!("{name}/"))
                }
                Some(("file", path)) => path.ends_with(&name),
                _ => false,
            })
            .map(str::to_owned)
            .collect();
        left.is_empty().then_some(())
    });
    ensure!(clean.is_ok(), "left of {id}:\n    {}", left.join("\n    "));
    Ok(())
}

/// Another connection to the same shim is answered within two seconds.
pub fn serves(container: &Container) -> Result<()> {
    let state = container.task().patient(2.0).state(&container.id, "");
    state.map(drop).context("State")
}

/// Fails unless the call ended with an answer, a good or a bad one, and not with silence.
pub fn answered<T>(answer: Result<T, vigil_lab::CallError>, what: &str) -> Result<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(vigil_lab::CallError::Status { .. }) => Ok(None),
        Err(error) => Err(error).with_context(|| what.to_owned()),
    }
}

/// Zombies whose parent is one of `parents`: pid and name.
#[must_use]
pub fn zombies(parents: &[i32]) -> Vec<(i32, String)> {
    let stat = |pid: i32| fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    Process::all()
        .into_iter()
        .filter(|p| p.state == 'Z')
        .filter_map(|p| {
            let text = stat(p.pid)?;
            let (name, rest) = text.rsplit_once(") ")?;
            let parent: i32 = rest.split(' ').nth(1)?.parse().ok()?;
            parents.contains(&parent).then(|| (p.pid, name.to_owned()))
        })
        .collect()
}

/// Bytes and number of all files below `directories`.
#[must_use]
pub fn weight(directories: &[&Path]) -> (u64, usize) {
    let mut sum = (0, 0);
    let mut todo: Vec<PathBuf> = directories.iter().map(|p| (*p).to_owned()).collect();
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            // The container's own files are not the runtime's, and the journal has a length of
            // its own that says nothing of what is in it.
            if entry.file_name() == "rootfs" || entry.file_name() == "journal" {
                continue;
            }
            if meta.is_dir() {
                todo.push(entry.path());
            } else if meta.is_file() {
                sum = (sum.0 + meta.len(), sum.1 + 1);
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_that_was_hurt_is_seen() -> Result<()> {
        for signal in [9, 19] {
            let mut stranger = Stranger::new()?;
            let pid = i32::try_from(stranger.pid())?;
            until("it to sleep", by(5.0), || stranger.unhurt().ok())?;
            ensure!(vigil_lab::process::signal_if(pid, signal, |_| true));
            until("it to be seen", by(5.0), || {
                stranger.unhurt().is_err().then_some(())
            })?;
        }
        Ok(())
    }

    #[test]
    fn a_stranger_gets_the_pid_that_was_asked_for() -> Result<()> {
        let number = Stranger::new()?.pid();
        let stranger = with_pid(number)?;
        ensure!(stranger.pid() == number);
        ensure!(with_pid(number).is_err(), "one number, two processes");
        Ok(())
    }

    #[test]
    fn zombies_of_a_parent_are_seen_until_they_are_reaped() -> Result<()> {
        let me = i32::try_from(std::process::id())?;
        let mut child = std::process::Command::new("true").spawn()?;
        let number = i32::try_from(child.id())?;
        let seen = || zombies(&[me]).iter().any(|(pid, _)| *pid == number);
        until("a zombie", by(5.0), || seen().then_some(()))?;
        child.wait()?;
        ensure!(!seen(), "it was reaped");
        Ok(())
    }

    #[test]
    fn files_are_weighed_and_a_containers_own_are_not() -> Result<()> {
        let scratch = vigil_lab::Scratch::new()?;
        fs::create_dir_all(scratch.path("rootfs/below"))?;
        fs::create_dir_all(scratch.path("a/b"))?;
        fs::write(scratch.path("rootfs/below/file"), "not ours")?;
        ensure!(weight(&[scratch.dir()]) == (0, 0));
        fs::write(scratch.path("a/b/file"), "12345")?;
        ensure!(weight(&[scratch.dir()]) == (5, 1));
        Ok(())
    }
}
