//! Processes of a container that are known one by one: execs on record, and
//! what runc was making when it was cut short. Both matter where the cgroup is
//! shared: there nothing may be killed by its place. Read-only; what may hang
//! on somebody else's memory is asked in a worker.

use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vigil_model::Incarnation;
use vigil_reconcile::Said;
use vigil_sys::pidfd;

use super::{Subject, note};
use crate::proc::{self, Checked};
use crate::runc::find_program;
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

/// Those of these processes, which are in cgroups and not known to be ours, whose environment
/// says that the runtime made them for this container and has not handed them over to the
/// user's program yet. `true`: one may be among them that could not be asked.
pub(super) fn marked(
    subject: &Subject,
    heard: Said,
    mut pids: Vec<u32>,
    notes: &mut Vec<String>,
) -> (Vec<Incarnation>, bool) {
    let expected = match heard {
        Said::Unreadable | Said::Creating | Said::HalfMade | Said::Live | Said::Ended => true,
        Said::Nothing | Said::Gone => false,
    };
    if !expected || pids.is_empty() {
        return (Vec::new(), false);
    }
    // Who sleeps uninterruptibly may hold its memory, and is asked last.
    pids.sort_by_key(|pid| sleeps(*pid));
    let dir = subject.runc_dir();
    let Some((found, asked)) = note(ask(&dir, &pids, notes), notes) else {
        return (Vec::new(), may_be_runtime(&pids, subject, notes));
    };
    let unsure = may_be_runtime(&pids[asked..], subject, notes);
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

/// Whether one of these, who could not be asked, may be the runtime, or what it is before it
/// is the user's program. Who cannot be seen may be.
fn may_be_runtime(pids: &[u32], subject: &Subject, notes: &mut Vec<String>) -> bool {
    if pids.is_empty() {
        return false;
    }
    let program = find_program(subject.runtime.program.as_ref()).ok();
    let these = pids.to_vec();
    let worker = Worker::start_noting("programs", move |words| {
        let program = program.and_then(|path| std::fs::metadata(path).ok());
        for pid in these {
            words.doing(&format!("look at the program of process {pid}"));
            let runtime = runs(pid, program.as_ref());
            words.tell(&Seen { pid, runtime });
        }
        Ok(())
    });
    let Some(worker) = note(worker, notes) else {
        return true;
    };
    match note(worker.wait(MARKS), notes) {
        Some(Outcome::Done) | None => {}
        Some(Outcome::Failed(why)) => notes.push(why),
        Some(Outcome::Overdue { doing, .. }) => notes.push(format!(
            "not every program in the shared cgroup could be looked at: {doing}"
        )),
    }
    let told: Vec<Seen> = worker.told();
    told.len() < pids.len() || told.iter().any(|seen| seen.runtime)
}

/// Whether a process runs this program, or may run a copy of it. By the file, never by its
/// name, which a container chooses: inside of it a runtime runs a copy of itself, that has no
/// name at all or lies on another file system; it has the same length. May wait for a file
/// system that stalls: only in a worker.
fn runs(pid: u32, program: Option<&Metadata>) -> bool {
    let its = match std::fs::metadata(format!("/proc/{pid}/exe")) {
        Ok(its) => its,
        // It has ended, or the kernel's own thread has none.
        Err(error) => return error.kind() != ErrorKind::NotFound,
    };
    its.nlink() == 0 || program.is_none_or(|program| program.len() == its.len())
}

/// One whose program was looked at.
#[derive(Debug, Serialize, Deserialize)]
struct Seen {
    pid: u32,
    /// It may be the runtime's.
    runtime: bool,
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    fn started(path: &Path, name: &str) -> Child {
        // A shell that calls itself as it likes and then waits for us.
        let child = Command::new(path)
            .args(["-c", "printf %s \"$0\" >/proc/$$/comm; read never", name])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        while proc::stat(child.id()).unwrap().unwrap().comm != name {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(1));
        }
        child
    }

    /// A process in uninterruptible sleep in a cgroup that is shared was taken for the runtime
    /// if it called itself `runc`, and not if the runtime had another name.
    #[test]
    fn who_may_be_the_runtime_is_told_by_the_file_it_runs() {
        let dir = tempfile::tempdir().unwrap();
        let shell = std::fs::canonicalize("/bin/sh").unwrap();
        // A shell that is one program of many goes by its name.
        let (copy, gone) = (dir.path().join("copy/sh"), dir.path().join("gone/sh"));
        for path in [&copy, &gone] {
            std::fs::create_dir(path.parent().unwrap()).unwrap();
            std::fs::copy(&shell, path).unwrap();
        }
        let other = std::fs::metadata("/proc/self/exe").unwrap();
        let runtime = std::fs::metadata(&shell).unwrap();
        let mut all = [
            started(Path::new("/bin/sh"), "runc"),
            started(&copy, "app"),
            started(&gone, "app"),
        ];
        std::fs::remove_file(&gone).unwrap();
        let [stranger, sealed, nameless] = [all[0].id(), all[1].id(), all[2].id()];
        // By its own name it is a runtime, by its program it is none.
        assert!(!runs(stranger, Some(&other)));
        for pid in [stranger, sealed, nameless] {
            assert!(runs(pid, Some(&runtime)), "{pid}");
        }
        assert!(runs(nameless, Some(&other)));
        assert!(runs(stranger, None), "nothing is known of the runtime");
        for child in &mut all {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(!runs(stranger, Some(&runtime)), "it has ended");
    }
}
