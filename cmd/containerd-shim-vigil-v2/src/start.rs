//! `start`: makes the pair for one container and prints its address.
//!
//! Nothing of what it starts inherits its stdout or stderr: containerd reads
//! both to their end, and one byte on stderr beside the address corrupts it.
//! Whatever fails, nothing is left behind.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use vigil_host::cgroup::{self, Hierarchies};
use vigil_host::enact::{RUN, Tombstone};
use vigil_host::{starts, sweep};
use vigil_journal::owner::draw_salt;
use vigil_journal::{Owner, exits, lock, names};
use vigil_model::Options;
use vigil_protocol::Flags;
use vigil_protocol::address::Address;
use vigil_protocol::bootstrap::{self, Stdin};
use vigil_protocol::probe::{Probe, probe};
use vigil_reaper::Config;
use vigil_sys::points::{self, Point};
use vigil_sys::{Errno, fd, fork, listen, process};

use crate::{leave, waiter};

/// Environment in which the shim finds the options of `start`, as JSON.
pub const OPTIONS: &str = "VIGIL_OPTIONS";
/// Environment in which it finds what to warn of, a line each.
pub const WARNINGS: &str = "VIGIL_WARNINGS";
/// Environment in which it finds where the bundle is, for when that is gone.
pub const BUNDLE: &str = "VIGIL_BUNDLE";

/// Environment in which it finds the soft limit of open files that runc is to have.
pub const OPEN_FILES: &str = "VIGIL_OPEN_FILES";

/// What a pair needs at least, to serve one container and to start another shim when one dies:
/// with less `start` would promise what nobody could keep.
const OPEN_FILES_MIN: u64 = 64;

/// How long the pair may take to be ready. containerd waits as long as its
/// client does; this is for nobody but a person who runs `start` by hand.
const READY_WAIT: Duration = Duration::from_secs(10);
/// How long an old pair gets to say whether it has a task.
const PROBE_WAIT: Duration = Duration::from_millis(500);
/// For a `delete` of the same id, which has little longer for its work.
const DELETE_WAIT: Duration = Duration::from_secs(4);
/// For seeing whether anybody listens at all.
const CONNECT_WAIT: Duration = Duration::from_millis(100);

/// What is to be removed again if the pair does not come to be.
#[derive(Default)]
struct Made(Vec<PathBuf>);

impl Made {
    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in self.0.drain(..).rev() {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Makes the pair and prints the address.
pub fn run(flags: &Flags) -> Result<()> {
    // The reaper is a fork of this process and lives as long as the container.
    fork::close_inherited().context("cannot close what was inherited")?;
    // containerd's unit leaves 1024, which some hundred execs use up; ours is what is allowed.
    let open_files = process::raise_open_files().ok();
    if let Some((_, hard)) = open_files.filter(|(_, hard)| *hard < OPEN_FILES_MIN) {
        bail!(
            "the limit of open files is {hard} and a container needs {OPEN_FILES_MIN}: \
             raise RLIMIT_NOFILE (LimitNOFILE of containerd's unit)"
        );
    }
    let bytes = bootstrap::read(std::io::stdin().lock())?;
    let mut stdin = bootstrap::understand(&bytes, &flags.namespace, &flags.id)?;
    drop(bytes);
    let bundle = std::env::current_dir().context("cannot see the bundle")?;
    let socket_dir = stdin
        .params
        .as_ref()
        .and_then(|params| params.socket_dir.clone());
    let address = if flags.socket.is_empty() {
        Address::new(
            &flags.address,
            &flags.namespace,
            &flags.id,
            socket_dir.as_deref(),
        )?
    } else {
        Address::given(&flags.socket)?
    };
    let reply = stdin.reply(&address)?;

    await_delete(flags)?;
    let mut first = Made::default();
    let lock = hold(flags, &bundle, Path::new(address.path()), &mut first)?;
    // Below the lock, so that a failure removes what was made before it lets go of it.
    let mut made = first;
    points::reach(Point::StartBeforeBind);
    let own = (flags.namespace.as_str(), flags.id.as_str());
    // Without it the socket's file may be left of a pair that dies before anybody calls.
    let noted = starts::note(Path::new(RUN), own, &bundle, Path::new(address.path()));
    made.0.extend(noted);
    let listener = bind(flags, Path::new(address.path()), &mut made)?;
    let exits_path = bundle.join(names::EXITS);
    // A file from an earlier life: nobody holds the lock, so nobody writes it.
    let _ = std::fs::remove_file(&exits_path);
    made.0.push(exits_path);
    let exits = fd::memfd_capped(c"vigil-exits", exits::BYTES);
    write(
        &bundle.join(names::ADDRESS),
        address.uri().as_bytes(),
        &mut made,
    )?;
    // Itself, whatever becomes of its name.
    let program = fd::hold(Path::new("/proc/self/exe")).context("cannot hold its own program")?;
    write_binary_path(&bundle, &mut made)?;

    leave_journal_behind(&bundle)?;
    constrain(&mut stdin)?;
    let (heard, ready) = fd::pipe().context("cannot make the ready pipe")?;
    let config = Config {
        owner: Owner::with_salt(flags.namespace.as_str(), flags.id.as_str(), draw_salt()),
        listener,
        lock,
        exits: exits.context("cannot make memory for the exit records")?,
        memory: fd::memfd(c"vigil-journal").context("cannot make memory for the journal")?,
        bundle: bundle.clone(),
        program,
        arg0: std::env::args_os()
            .next()
            .unwrap_or_else(|| "containerd-shim-vigil-v2".into()),
        args: arguments(flags, &address),
        env: environment(&stdin, open_files.map(|(soft, _)| soft), &bundle),
        name: c"containerd-shim".to_owned(),
    };
    made.0.push(bundle.join(names::PAIR));
    made.0.push(bundle.join(names::JOURNAL));
    let reaper = match fork::fork() {
        Ok(fork::Fork::Child) => {
            drop(heard);
            vigil_reaper::run(&config, ready)
        }
        Ok(fork::Fork::Parent { child }) => child,
        Err(error) => {
            drop(made);
            return Err(error).context("cannot fork the reaper");
        }
    };
    drop(ready);
    drop(config);
    if let Err(error) = await_ready(heard) {
        let error = error.context(format!("no shim for container {}", flags.id));
        // One that hangs is not left behind either; one that failed is gone. Whoever has the
        // lock by now has taken its place, and what lies here is theirs.
        return Err(match leave::end_child(&bundle, reaper) {
            Ok(Some(lock)) => {
                drop(made);
                drop(lock);
                error
            }
            Ok(None) => {
                made.keep();
                error.context("another `start` has taken its place")
            }
            Err(stays) => error.context(format!("its pair stays: {stays:#}")),
        });
    }
    points::reach(Point::AddressNotPrinted);
    made.keep();
    let mut out = std::io::stdout();
    out.write_all(&reply)
        .and_then(|()| out.flush())
        .context("cannot write the address to stdout")?;
    // What other containers left, now that the answer is out. It neither holds our streams
    // nor says anything on them.
    let _ = starts::deserted(Path::new(RUN), true);
    let _ = sweep::start(Path::new(RUN), Some(own), &waiter::Dead);
    Ok(())
}

/// One that was killed left its work to a process that may be at it still: two lives of one id
/// have their socket, runc's state and mounts under the same names. Its end is near, unless it is
/// held up; then it is ended, and what it could not do is done by Create.
fn await_delete(flags: &Flags) -> Result<()> {
    let stone = Tombstone::of_id(flags.namespace.as_str(), flags.id.as_str(), Path::new(RUN));
    let Ok(stone) = stone else {
        return Ok(());
    };
    let Some(process) = stone.worked_on() else {
        return Ok(());
    };
    if fd::wait_readable(&process, DELETE_WAIT).unwrap_or(false) {
        return Ok(());
    }
    leave::end_delete(&stone)
}

/// The lock of the bundle; an old pair that is in the way and has no task is
/// made to leave first.
fn hold(flags: &Flags, bundle: &Path, socket: &Path, made: &mut Made) -> Result<OwnedFd> {
    let path = bundle.join(names::LOCK);
    match lock::hold(&path) {
        Ok(file) => {
            made.0.push(path);
            Ok(file.into())
        }
        Err(lock::LockError::Held { .. }) => {
            let owner = Owner::of(flags.namespace.as_str(), flags.id.as_str());
            refuse_if_busy(flags, socket, || leave::anyone_of(bundle, &owner))?;
            let file = leave::take_lock(bundle, &owner)?;
            made.0.push(path);
            Ok(file.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Fails if whoever listens there has a task that was not deleted, or does not
/// say and has processes.
fn refuse_if_busy(
    flags: &Flags,
    socket: &Path,
    has_processes: impl FnOnce() -> Result<bool>,
) -> Result<()> {
    let has = match probe(socket, &flags.id, PROBE_WAIT) {
        Probe::Task => "with a task that was not deleted",
        Probe::Silent if has_processes()? => "that does not answer and has processes",
        Probe::NoTask | Probe::Silent => return Ok(()),
    };
    bail!(
        "container {} in namespace {} already has a running shim {has} (socket {})",
        flags.id,
        flags.namespace,
        socket.display()
    );
}

fn bind(flags: &Flags, path: &Path, made: &mut Made) -> Result<OwnedFd> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot make socket directory {}", dir.display()))?;
    let bound = match listen::bind(path) {
        Err(Errno::EADDRINUSE) => {
            if let Ok(connection) = listen::connect(path, CONNECT_WAIT) {
                let listener = leave::listener_of(&connection);
                let busy = || listener.map_or(Ok(false), leave::anyone_below);
                refuse_if_busy(flags, path, busy)?;
                leave::dismiss_listener(&connection, flags, &|| Ok(()))?;
            }
            // Nobody listens there any more.
            std::fs::remove_file(path)
                .with_context(|| format!("cannot remove stale socket {}", path.display()))?;
            listen::bind(path)
        }
        bound => bound,
    };
    let listener = bound.with_context(|| format!("cannot bind socket {}", path.display()))?;
    made.0.push(path.to_owned());
    Ok(listener)
}

fn write(path: &Path, content: &[u8], made: &mut Made) -> Result<()> {
    // By a side name, so that nobody ever reads half of it.
    let side = path.with_extension("new");
    if let Err(error) = std::fs::write(&side, content).and_then(|()| std::fs::rename(&side, path)) {
        let _ = std::fs::remove_file(&side);
        return Err(error).with_context(|| format!("cannot write {}", path.display()));
    }
    made.0.push(path.to_owned());
    Ok(())
}

/// containerd writes `shim-binary-path` only after `start` and not always; a
/// bundle without it is cleaned up by whatever runtime the name resolves to.
fn write_binary_path(bundle: &Path, made: &mut Made) -> Result<()> {
    let path = bundle.join("shim-binary-path");
    if path.exists() {
        return Ok(());
    }
    // The name containerd knows, not where this build lies: an upgrade
    // replaces the file under that name.
    let Some(program) = std::env::args_os()
        .next()
        .map(PathBuf::from)
        .filter(|p| p.is_absolute())
    else {
        return Ok(());
    };
    write(&path, program.as_os_str().as_encoded_bytes(), made)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot set the mode of {}", path.display()))
}

/// A journal of an earlier life in this bundle is set aside, not continued:
/// its container is not the one about to be made.
fn leave_journal_behind(bundle: &Path) -> Result<()> {
    let path = bundle.join(names::JOURNAL);
    if std::fs::symlink_metadata(&path).is_err() {
        return Ok(());
    }
    vigil_journal::set_aside(&path)?;
    Ok(())
}

/// Cgroup, OOM score and core scheduling of the pair, set before it exists.
fn constrain(stdin: &mut Stdin) -> Result<()> {
    let shim_cgroup = &stdin.options.shim_cgroup;
    if !shim_cgroup.is_empty() {
        join(shim_cgroup).with_context(|| format!("cannot join shim cgroup {shim_cgroup}"))?;
    }
    if let Err(error) = adjust_oom_score() {
        stdin
            .warnings
            .push(format!("OOM score not adjusted: {error:#}"));
    }
    if std::env::var_os("SCHED_CORE").is_some_and(|value| !value.is_empty()) {
        process::new_core_scheduling_group().context("cannot enable core scheduling")?;
    }
    Ok(())
}

/// Joins an existing cgroup: one path, in every hierarchy there is.
fn join(path: &str) -> Result<()> {
    let hierarchies = Hierarchies::read()?;
    for hierarchy in &hierarchies.list {
        if hierarchies.mode == cgroup::Mode::V1 && hierarchy.name.is_empty() {
            continue;
        }
        let dir = hierarchy.mount.join(path.trim_start_matches('/'));
        let procs = dir.join("cgroup.procs");
        // Only existing cgroups are joined, so only an existing file is written.
        std::fs::OpenOptions::new()
            .write(true)
            .open(&procs)
            .and_then(|mut file| file.write_all(b"0"))
            .with_context(|| format!("cannot write {}", procs.display()))?;
    }
    Ok(())
}

/// One more than containerd's, so that the kernel takes us before it.
fn adjust_oom_score() -> Result<()> {
    let parent = format!("/proc/{}/oom_score_adj", process::parent_pid());
    let score: i32 = std::fs::read_to_string(&parent)
        .with_context(|| format!("cannot read {parent}"))?
        .trim()
        .parse()
        .with_context(|| format!("{parent} holds no number"))?;
    let score = (score + 1).clamp(-1000, 1000);
    std::fs::write("/proc/self/oom_score_adj", score.to_string())
        .with_context(|| format!("cannot set it to {score}"))
}

fn arguments(flags: &Flags, address: &Address) -> Vec<OsString> {
    let mut argv: Vec<OsString> = vec![
        "-namespace".into(),
        flags.namespace.as_str().into(),
        "-id".into(),
        flags.id.as_str().into(),
        "-address".into(),
        flags.address.clone().into(),
        "-socket".into(),
        address.path().into(),
    ];
    if flags.debug {
        argv.push("-debug".into());
    }
    argv.push("serve".into());
    argv
}

fn environment(stdin: &Stdin, open_files: Option<u64>, bundle: &Path) -> Vec<(OsString, OsString)> {
    let mut env: Vec<(OsString, OsString)> = std::env::vars_os()
        .filter(|(key, _)| {
            key != OPTIONS && key != WARNINGS && key != OPEN_FILES && key != "NOTIFY_SOCKET"
        })
        .collect();
    let mut set = |key: &str, value: String| {
        env.retain(|(known, _)| known != key);
        env.push((key.into(), value.into()));
    };
    if let Some(params) = &stdin.params
        && !params.ttrpc_address.is_empty()
    {
        set("TTRPC_ADDRESS", params.ttrpc_address.clone());
    }
    if stdin.options != Options::default()
        && let Ok(text) = serde_json::to_string(&stdin.options)
    {
        set(OPTIONS, text);
    }
    set(BUNDLE, bundle.to_string_lossy().into_owned());
    if let Some(open_files) = open_files {
        set(OPEN_FILES, open_files.to_string());
    }
    if !stdin.warnings.is_empty() {
        set(WARNINGS, stdin.warnings.join("\n"));
    }
    env
}

/// Waits for *journal open, listener polled*, or for the reason why not.
fn await_ready(heard: OwnedFd) -> Result<()> {
    if !fd::wait_readable(&heard, READY_WAIT).context("cannot wait for the pair")? {
        bail!("the pair was not ready within {} s", READY_WAIT.as_secs());
    }
    let mut heard = std::fs::File::from(heard);
    let mut said = [0; 1];
    match heard.read(&mut said).context("cannot hear from the pair")? {
        1 if said[0] == b'R' => return Ok(()),
        0 => bail!("the pair ended before it was ready and said nothing"),
        _ => {}
    }
    let mut text = Vec::new();
    // Both of them hold the other end until they are gone, so its end says
    // that nothing is left of them.
    let deadline = Instant::now() + READY_WAIT;
    let mut piece = [0; 1024];
    while text.len() < 64 * 1024 {
        let left = deadline.saturating_duration_since(Instant::now());
        if !fd::wait_readable(&heard, left).unwrap_or(false) {
            break;
        }
        match heard.read(&mut piece) {
            Ok(count) if count > 0 => text.extend_from_slice(&piece[..count]),
            Ok(_) | Err(_) => break,
        }
    }
    let text = String::from_utf8_lossy(&text)
        .trim_end()
        .replace("\nE", "; ");
    bail!("{text}")
}
