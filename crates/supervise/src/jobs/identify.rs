//! From a number in a pid file to a process: pinned with the reaper first, so
//! that its death cannot be missed, then looked at.

use std::path::Path;

use vigil_host::cgroup::Cgroup;
use vigil_host::proc;
use vigil_model::{Claim, Incarnation, Kind, Refusal};

use super::Tools;

/// A process whose death will be found in slot `pin`.
#[derive(Debug)]
pub(crate) struct Identified {
    pub(crate) process: Incarnation,
    pub(crate) pin: usize,
}

/// The pid runc wrote.
pub(crate) fn pid_in(path: &Path) -> Result<u32, Refusal> {
    let text = std::fs::read_to_string(path).map_err(|source| {
        super::refusal(&vigil_host::Error::File {
            op: "read pid file",
            path: path.to_owned(),
            source,
        })
    })?;
    match text.trim().parse() {
        Ok(pid) if pid > 1 => Ok(pid),
        Ok(_) | Err(_) => Err(Refusal::new(
            Kind::Unknown,
            format!(
                "pid file {} holds no pid: {:?}",
                path.display(),
                text.get(..32).unwrap_or(&text)
            ),
        )),
    }
}

/// Finds out which process this pid means: one that was started after `since`
/// (a place in the ring of deaths) and is, or was, a child of our reaper. When
/// that is dead it may be a child of whoever inherited it: then it is known by
/// being in what is ours of the cgroups of these `claims`.
///
/// The order makes it free of races: the pin comes first; if it holds no death
/// after /proc was read, no process of that number was reaped before, so what
/// /proc described is the one.
pub(crate) async fn identify(
    tools: &Tools,
    claims: &[Claim],
    pid: u32,
    since: u64,
) -> Result<Identified, Refusal> {
    let pin = tools
        .control
        .register(pid, 0, since)
        .await
        .map_err(|error| super::refusal(&error))?;
    let outcome = describe(tools, claims, pid, pin);
    if outcome.is_err() {
        // Nothing will ever be asked of this pin.
        if let Err(error) = tools.control.unregister(pin).await {
            log::warn!("pin of process {pid} not given back: {error}");
        }
    }
    outcome
}

fn describe(tools: &Tools, claims: &[Claim], pid: u32, pin: usize) -> Result<Identified, Refusal> {
    let seen = proc::incarnation(pid).map_err(|error| super::refusal(&error))?;
    let below = is_below(tools, claims, pid)?;
    if let Some(death) = tools.exits.pinned(pin) {
        if below
            && let Some(now) = &seen
            && !death.is_of(pid, now.start_ticks)
        {
            return Err(Refusal::new(
                Kind::Unknown,
                format!(
                    "process number {pid} changed hands while the runtime ran; nobody can say whom it meant"
                ),
            ));
        }
        let boot = proc::boot_id().map_err(|error| super::refusal(&error))?;
        let pid_ns = proc::pid_namespace().map_err(|error| super::refusal(&error))?;
        let start_ticks = death.start_ticks;
        let process = Incarnation {
            pid,
            start_ticks,
            pid_ns,
            boot,
            pidfd_inode: None,
        };
        return Ok(Identified { process, pin });
    }
    let Some(process) = seen else {
        return Err(Refusal::new(
            Kind::Unknown,
            format!("process {pid} is gone and its end was not recorded"),
        ));
    };
    // One that has ended already has left its cgroup, and hangs below whoever inherited it if its
    // reaper is dead; a signal can hit nobody there.
    let ended = || proc::stat(pid).is_ok_and(|stat| stat.is_none_or(|stat| stat.ended()));
    if !below && !ended() {
        return Err(Refusal::new(
            Kind::Unknown,
            format!("process {pid}, named in the runtime's pid file, is none of this container's"),
        ));
    }
    Ok(Identified { process, pin })
}

/// Whether our runc can have started it. What lives, is not below our reaper and not in a cgroup
/// that is ours alone is a stranger, and the first Kill would hit it. What was made before this
/// reaper is in the cgroup only.
pub(crate) fn is_below(tools: &Tools, claims: &[Claim], pid: u32) -> Result<bool, Refusal> {
    let below = proc::descends(pid, tools.place.reaper);
    Ok(below.map_err(|error| super::refusal(&error))? || is_in(tools, claims, pid))
}

fn is_in(tools: &Tools, claims: &[Claim], pid: u32) -> bool {
    let known = tools.hierarchies.read();
    let pids = known.and_then(|known| {
        let cgroup = Cgroup::open(known, claims)?;
        if cgroup.is_ours() && !cgroup.is_shared() {
            cgroup.pids()
        } else {
            Ok(Vec::new())
        }
    });
    match pids {
        Ok(pids) => pids.contains(&pid),
        Err(error) => {
            log::warn!("no cgroup to look into: {}", vigil_host::chain(&error));
            false
        }
    }
}
