//! What cases ask of a container and of its pair while both live: who is in it, what is
//! left of it, whether it answers soon.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use protobuf::well_known_types::any::Any;
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::process::Process;
use vigil_lab::task::{V2, V3};
use vigil_lab::{CallError, FifoReader, Kit, Residue, Shim, Spec, Task, by, until};

use crate::world::unified;

/// Nothing of the container is on the host but its bundle, its pair and the pair's socket.
pub fn nothing_but_the_pair(kit: &Kit, id: &str) -> Result<()> {
    nothing_but_the_pair_by(kit, id, 5.0)
}

/// The same, waited for so many seconds.
pub fn nothing_but_the_pair_by(kit: &Kit, id: &str, seconds: f64) -> Result<()> {
    let mark = kit.scratch.mark();
    let name = format!("{mark}/{id}");
    let rootfs = format!("{name}/rootfs");
    let mut left = Vec::new();
    let clean = until("", by(seconds), || {
        left = Residue::marked(mark)
            .lines()
            .filter(|line| match line.split_once(' ') {
                Some(("mount", point)) => point.contains(&rootfs),
                Some(("process", rest)) => {
                    !rest.contains("containerd-shim")
                        && (rest.ends_with(&name) || rest.contains(&format!("{name}/")))
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

/// A shim with this further environment, and its readers, before Create.
pub fn prepared_with(
    kit: &Kit,
    spec: &Spec,
    stdio: Stdio,
    env: &[(&str, &str)],
) -> Result<Container> {
    let bundle = kit.bundle(spec, stdio)?;
    let mut caller = kit.caller.clone();
    let env = env.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
    caller.env.extend(env);
    let shim = kit.adopt(Shim::start(&caller, &bundle)?)?;
    let reader = |path: &String| {
        let some = !path.is_empty();
        some.then(|| FifoReader::open(path.as_ref())).transpose()
    };
    let (stdout, stderr) = (reader(&bundle.stdio[1])?, reader(&bundle.stdio[2])?);
    Ok(Container {
        id: bundle.id.clone(),
        bundle,
        shim,
        stdout,
        stderr,
        pid: 0,
    })
}

/// Create with `options`; the pid is noted.
pub fn create(container: &mut Container, options: Option<&Any>) -> Result<()> {
    let mut request = container.bundle.create_request();
    request.options = options.cloned().into();
    let answer = container.task().create(&request);
    container.pid = answer
        .with_context(|| format!("Create; log: {}", container.bundle.log_text()))?
        .pid;
    Ok(())
}

/// A second connection to its shim.
pub fn another_connection(container: &Container) -> Result<Task> {
    let service = if container.shim.reply.version >= 3 {
        V3
    } else {
        V2
    };
    Ok(Task::connect(&container.shim.reply.socket, service)?)
}

/// The call is answered within a second, by whatever; silence and lateness fail.
pub fn soon<T>(what: &str, call: impl FnOnce() -> Result<T, CallError>) -> Result<Option<T>> {
    let at = Instant::now();
    let answer = call();
    let took = at.elapsed();
    ensure!(took < Duration::from_secs(1), "{what} took {took:?}");
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(CallError::Status { .. }) => Ok(None),
        Err(error) => bail!("{what}: {error}"),
    }
}

/// The container's own cgroup, where it is frozen.
#[must_use]
pub fn freezer(kit: &Kit, id: &str) -> PathBuf {
    let hierarchy = if unified() { "" } else { "freezer" };
    Path::new("/sys/fs/cgroup")
        .join(hierarchy)
        .join(kit.scratch.mark())
        .join(id)
}

/// Living members of the container's cgroup and of those below it.
#[must_use]
pub fn members(kit: &Kit, id: &str) -> Vec<Process> {
    let name = format!("/{}/{id}", kit.scratch.mark());
    let inside = |line: &str| {
        let path = line.splitn(3, ':').nth(2).unwrap_or_default();
        path == name || path.starts_with(&format!("{name}/"))
    };
    Process::all()
        .into_iter()
        .filter(|p| p.state != 'Z' && p.cgroup.lines().any(inside))
        .collect()
}
