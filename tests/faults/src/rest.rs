//! What cases ask of a container and of its pair while both live: who is in it, what is
//! left of it, whether it answers soon.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use containerd_shim_protos::api::Status;
use protobuf::well_known_types::any::Any;
use serde_json::Value;
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::process::{Process, signal_if};
use vigil_lab::task::{V2, V3};
use vigil_lab::{
    CallError, Code, Fact, FifoReader, GENEROUS, Kit, Residue, Shim, Spec, Task, by, until,
};

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
    ensure!(took < GENEROUS, "{what} took {took:?}");
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

/// Init has died; State says so within a second, and never RUNNING after that.
pub fn stopped_within_a_second(container: &Container) -> Result<()> {
    let task = another_connection(container)?.patient(2.0);
    until("State to say that it has ended", by(1.0), || {
        let state = task.state(&container.id, "").ok()?;
        (state.status.enum_value() == Ok(Status::STOPPED)).then_some(())
    })
}

/// Sends a signal to init, whose incarnation nobody else can have: it was not reaped.
pub fn signal_init(container: &Container, signal: i32) -> Result<()> {
    let pid = i32::try_from(container.pid)?;
    let mark = container.bundle.dir.display().to_string();
    let ours = |p: &Process| {
        let name = mark.rsplit('/').take(2).collect::<Vec<_>>();
        p.cgroup.contains(&format!("/{}/{}", name[1], name[0]))
    };
    ensure!(signal_if(pid, signal, ours), "no init {pid} to signal");
    Ok(())
}

/// One exit event of init, with what Wait and Delete say.
pub fn one_exit(kit: &Kit, container: &Container, status: u32) -> Result<()> {
    let waited = container.task().wait(&container.id, "").context("Wait")?;
    ensure!(waited.exit_status == status, "Wait says {waited:?}");
    let told = kit
        .sink
        .wait("the exit of init", by(8.0), |e| match &e.fact {
            Fact::Exit(exit) if exit.id == container.id && exit.container_id == container.id => {
                Some(exit.clone())
            }
            _ => None,
        })?;
    ensure!(
        told.exit_status == status && told.pid == container.pid,
        "the event says {told:?}"
    );
    ensure!(
        told.exited_at == waited.exited_at,
        "the event says {told:?}, Wait {waited:?}"
    );
    let deleted = container
        .task()
        .delete(&container.id, "")
        .context("Delete")?;
    ensure!(
        deleted.exit_status == status
            && deleted.pid == container.pid
            && deleted.exited_at == waited.exited_at,
        "Delete says {deleted:?}, Wait {waited:?}"
    );
    let exits = kit.sink.all().into_iter().filter(
        |e| matches!(&e.fact, Fact::Exit(x) if x.id == container.id && x.container_id == container.id),
    );
    ensure!(
        exits.count() == 1,
        "told more than once: {:?}",
        kit.sink.story()
    );
    Ok(())
}

/// Moves a process to the cgroup this test is in, in every hierarchy.
pub fn move_out(pid: i32) -> Result<()> {
    for line in fs::read_to_string("/proc/self/cgroup")?.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let names = fields.next().unwrap_or_default();
        let path = fields.next().unwrap_or_default();
        let base = Path::new("/sys/fs/cgroup");
        let places: Vec<PathBuf> = if names.is_empty() {
            vec![base.join("unified"), base.to_owned()]
        } else {
            vec![base.join(names.trim_start_matches("name="))]
        };
        for place in places {
            let procs = place
                .join(path.trim_start_matches('/'))
                .join("cgroup.procs");
            if procs.exists() {
                fs::write(&procs, pid.to_string())
                    .with_context(|| format!("moving {pid} into {}", procs.display()))?;
            }
        }
    }
    Ok(())
}

/// Changes the bundle's `config.json` before Create.
pub fn configure(container: &Container, change: impl FnOnce(&mut Value)) -> Result<()> {
    let path = container.bundle.dir.join("config.json");
    let mut config = serde_json::from_slice(&fs::read(&path)?)?;
    change(&mut config);
    Ok(fs::write(&path, serde_json::to_vec(&config)?)?)
}

/// Whether the client's patience ended before an answer came. The server counts it too,
/// and may be the first to say so.
pub fn out_of_patience<T>(answer: &Result<T, CallError>) -> bool {
    match answer {
        Err(CallError::Deadline) => true,
        Err(error) => error.is(Code::DeadlineExceeded),
        Ok(_) => false,
    }
}

/// Makes a tombstone's next try due: each one in vain, and other tests' sweepers try too,
/// makes the pause before the next one longer.
pub fn due(kit: &Kit, id: &str) -> Result<()> {
    let stone = format!("{}+{id}.json", kit.scratch.mark());
    let stone = Path::new("/run/vigil/tombstones").join(stone);
    match fs::File::options().write(true).open(stone) {
        Ok(file) => Ok(file.set_modified(std::time::SystemTime::now())?),
        // Somebody has finished it already.
        Err(_) => Ok(()),
    }
}
