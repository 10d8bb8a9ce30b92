//! Processes of a container that are known one by one: execs on record, and
//! what runc was making when it was cut short. Both matter where the cgroup is
//! shared: there nothing may be killed by its place. Read-only; what may hang
//! on somebody else's memory is asked in a worker.

use std::path::Path;
use std::time::Duration;

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
/// the user's program yet.
pub(super) fn marked(
    subject: &Subject,
    cgroup: Option<&Cgroup>,
    notes: &mut Vec<String>,
) -> Vec<Incarnation> {
    let expected = match subject.said {
        Said::Unreadable | Said::Creating | Said::HalfMade | Said::Live | Said::Ended => true,
        Said::Nothing | Said::Gone => false,
    };
    // What is in a cgroup of ours is killed with it.
    let Some(cgroup) = cgroup.filter(|cgroup| expected && cgroup.is_shared()) else {
        return Vec::new();
    };
    let Some(pids) = note(cgroup.pids(), notes).filter(|pids| !pids.is_empty()) else {
        return Vec::new();
    };
    let found = note(ask(&subject.runc_dir(), pids, notes), notes).unwrap_or_default();
    let incarnations = found.into_iter().filter_map(|(pid, start_ticks)| {
        let now = note(proc::incarnation(pid), notes).flatten()?;
        (now.start_ticks == start_ticks).then_some(now)
    });
    incarnations.collect()
}

fn ask(runc_dir: &Path, pids: Vec<u32>, notes: &mut Vec<String>) -> crate::Result<Vec<(u32, u64)>> {
    let dir = runc_dir.to_owned();
    let worker = Worker::start_noting("marks", move |words| {
        for pid in pids {
            words.doing(&format!("read the environment of process {pid}"));
            if let Some(start_ticks) = strays::made_for(pid, &dir) {
                words.say(&format!("{pid} {start_ticks}"));
            }
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
    let words = worker.notes();
    let pairs = words.iter().filter_map(|line| {
        let (pid, start_ticks) = line.split_once(' ')?;
        Some((pid.parse().ok()?, start_ticks.parse().ok()?))
    });
    Ok(pairs.collect())
}
