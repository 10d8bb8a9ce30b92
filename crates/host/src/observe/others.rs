//! Processes of a container that are known one by one: execs on record, and
//! what runc was making when it was cut short. Both matter where the cgroup is
//! shared: there nothing may be killed by its place. Read-only; what may hang
//! on somebody else's memory is asked in a worker.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vigil_model::Incarnation;
use vigil_reconcile::Said;
use vigil_sys::pidfd;

use super::{Subject, note};
use crate::cgroup::Cgroup;
use crate::proc::{self, Checked};
use crate::strays;
use crate::worker::{Outcome, Worker};

/// For reading the environments of those in the cgroup.
const MARKS: Duration = Duration::from_millis(300);

/// Recorded execs that live. One that cannot be looked at is among them: it is
/// looked at again when it is to be killed.
pub(super) fn execs(subject: &Subject, notes: &mut Vec<String>) -> Vec<Incarnation> {
    let living = |process: &&Incarnation| match note(proc::open_checked(process), notes) {
        Some(Checked::Same(fd)) => !pidfd::is_dead(&fd).unwrap_or(false),
        Some(Checked::Gone | Checked::Reused(_) | Checked::Elsewhere) => false,
        None => true,
    };
    subject.execs.iter().filter(living).cloned().collect()
}

/// Processes in a cgroup that is not ours alone whose environment says that
/// the runtime made them for this container and has not handed them over to
/// the user's program yet. `true`: one may be among them that could not be asked.
pub(super) fn marked(
    subject: &Subject,
    cgroup: Option<&Cgroup>,
    notes: &mut Vec<String>,
) -> (Vec<Incarnation>, bool) {
    let expected = match subject.said {
        Said::Unreadable | Said::Creating | Said::HalfMade | Said::Live | Said::Ended => true,
        Said::Nothing | Said::Gone => false,
    };
    // What is in a cgroup of ours is killed with it.
    let Some(cgroup) = cgroup.filter(|cgroup| expected && cgroup.is_shared()) else {
        return (Vec::new(), false);
    };
    let Some(mut pids) = note(cgroup.pids(), notes) else {
        return (Vec::new(), true);
    };
    if pids.is_empty() {
        return (Vec::new(), false);
    }
    // Who sleeps uninterruptibly may hold its memory, and is asked last.
    pids.sort_by_key(|pid| sleeps(*pid));
    let dir = subject.runc_dir();
    let Some((found, asked)) = note(ask(&dir, &pids, notes), notes) else {
        return (Vec::new(), pids.iter().any(|pid| is_runtime(*pid, subject)));
    };
    let unsure = pids[asked..].iter().any(|pid| is_runtime(*pid, subject));
    let incarnations = found.into_iter().filter_map(|(pid, start_ticks)| {
        let now = note(proc::incarnation(pid), notes).flatten()?;
        (now.start_ticks == start_ticks).then_some(now)
    });
    (incarnations.collect(), unsure)
}

fn sleeps(pid: u32) -> bool {
    proc::stat(pid)
        .ok()
        .flatten()
        .is_some_and(|stat| stat.state == 'D')
}

/// Whether a process has the name of the runtime, or of what it is before it
/// is the user's program: `runc:[2:INIT]`.
fn is_runtime(pid: u32, subject: &Subject) -> bool {
    let program = Path::new(&subject.runtime.program).file_name();
    let program = program.map(|name| name.to_string_lossy().into_owned());
    proc::stat(pid).ok().flatten().is_some_and(|stat| {
        let name = stat.comm.split(':').next().unwrap_or_default();
        matches!(name, "runc" | "crun") || program.is_some_and(|p| p.starts_with(&stat.comm))
    })
}

/// One that could be asked.
#[derive(Debug, Serialize, Deserialize)]
struct Asked {
    pid: u32,
    /// When it started, if it has the mark.
    made: Option<u64>,
}

/// Those with the mark, and how many could be asked.
fn ask(
    runc_dir: &Path,
    pids: &[u32],
    notes: &mut Vec<String>,
) -> crate::Result<(Vec<(u32, u64)>, usize)> {
    let dir = runc_dir.to_owned();
    let worker = Worker::start_noting("marks", move |words| {
        for &pid in pids {
            words.doing(&format!("read the environment of process {pid}"));
            let made = strays::made_for(pid, &dir);
            words.tell(&Asked { pid, made });
        }
        Ok(())
    })?;
    match worker.wait(MARKS)? {
        Outcome::Done => {}
        Outcome::Failed(why) => notes.push(why),
        Outcome::Overdue { doing, .. } => notes.push(format!(
            "not everybody in the shared cgroup could be looked at: {doing}"
        )),
    }
    let told: Vec<Asked> = worker.told();
    let pairs = told.iter().filter_map(|one| Some((one.pid, one.made?)));
    Ok((pairs.collect(), told.len().min(pids.len())))
}
