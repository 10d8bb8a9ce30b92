//! Who is in the container's cgroups and whose each of them is. What holds somebody else's is
//! given up; those in it that are the container's are then known one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use vigil_model::Incarnation;
use vigil_reconcile::{Claimed, Kin, Said};

use super::{Subject, note, others};
use crate::cgroup::Cgroup;
use crate::kin::Family;
use crate::proc;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// Those with the runtime's mark for this container.
    pub(super) marked: Vec<Incarnation>,
    /// Those that are the container's in a cgroup that is others' too.
    pub(super) kin: Vec<Incarnation>,
    /// Somebody is there of whom nobody can say whose it is.
    pub(super) unproven: bool,
    /// Those of them who are in what is on record as the container's own.
    pub(super) left: Vec<Incarnation>,
    /// What is on record as the container's own and is left alone as long as one is in it who is
    /// none of the container's by where he lives.
    pub(super) busy: Vec<(PathBuf, u32)>,
    /// Who is there could not be read.
    pub(super) unread: bool,
    /// A process may be among them that could not be asked for its mark.
    pub(super) unsure: bool,
}

/// Looks at them.
pub(super) fn of(
    (subject, heard): (&Subject, Said),
    cgroup: Option<&mut Cgroup>,
    mut family: Family,
    claimed: Claimed,
    notes: &mut Vec<String>,
) -> Members {
    let mut found = Members::default();
    let Some(cgroup) = cgroup else {
        return found;
    };
    // Until it is known who is there, all of them may be strangers.
    found.unread = true;
    let Some(mut strangers) = not_ours(cgroup, &family, claimed, notes) else {
        return found;
    };
    let elsewhere = if cgroup.is_shared() {
        note(cgroup.pids(), notes)
    } else {
        Some(Vec::new())
    };
    if let Some(elsewhere) = elsewhere {
        let mut asked: Vec<u32> = strangers.keys().copied().chain(elsewhere).collect();
        asked.sort_unstable();
        asked.dedup();
        (found.marked, found.unsure) = others::marked(subject, heard, asked, notes);
    } else {
        found.unsure = true;
    }
    for marked in &found.marked {
        family.add(marked.pid);
    }
    if !found.marked.is_empty() {
        match not_ours(cgroup, &family, claimed, notes) {
            Some(still) => strangers = still,
            None => return found,
        }
    }
    let Some(own) = note(cgroup.our_pids(), notes) else {
        return found;
    };
    let own: BTreeSet<u32> = own.into_iter().collect();
    let theirs: BTreeSet<u32> = strangers.keys().copied().collect();
    if let Some(first) = theirs.first() {
        notes.push(format!(
            "the cgroup is others' too, process {first} among them"
        ));
        let Some(given_up) = note(cgroup.share_with(&theirs), notes) else {
            return found;
        };
        // Who comes back for it is to know as well as we do that nobody in it is the container's.
        if !strangers.values().any(|kin| *kin == Kin::Others) {
            found.busy = given_up;
            let is_strange = |pid: &u32| strangers.get(pid) == Some(&Kin::Stranger);
            found.busy.retain(|(_, pid)| is_strange(pid));
        }
    }
    // Where somebody else is too, that it was ours alone tells nothing any more: of who is
    // there each is known by itself, or is left alone. One of whom nobody can say whose it is
    // is not somebody else.
    let alone = claimed == Claimed::Recorded && !strangers.values().any(|kin| kin.is_anothers());
    let Some(pids) = note(cgroup.others_pids(), notes) else {
        return found;
    };
    let apart = note(family.judge(&pids, Claimed::Shared), notes).and_then(|mut judged| {
        if alone {
            let own: Vec<u32> = own.iter().copied().collect();
            judged.extend(note(family.judge(&own, claimed), notes)?);
        }
        Some(judged)
    });
    let Some(apart) = apart else {
        return found;
    };
    found.unread = false;
    let mut those = |whose: Kin| -> Vec<Incarnation> {
        let these = apart.iter().filter(|(_, kin)| **kin == whose);
        let gone_or = |pid: &u32| note(proc::incarnation(*pid), notes).flatten();
        these.map(|(pid, _)| pid).filter_map(gone_or).collect()
    };
    found.kin = those(Kin::Ours);
    if claimed == Claimed::Recorded {
        found.left = those(Kin::Unproven);
        found.left.retain(|process| own.contains(&process.pid));
    }
    found.unproven = apart
        .values()
        .chain(strangers.values())
        .any(|kin| *kin == Kin::Unproven);
    found
}

/// Those in what is ours who are not; `None` if it cannot be read who is there, or whose they are.
fn not_ours(
    cgroup: &Cgroup,
    family: &Family,
    claimed: Claimed,
    notes: &mut Vec<String>,
) -> Option<BTreeMap<u32, Kin>> {
    let pids = note(cgroup.our_pids(), notes)?;
    let mut judged = note(family.judge(&pids, claimed), notes)?;
    judged.retain(|_, kin| *kin != Kin::Ours);
    Some(judged)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::path::Path;
    use std::time::{Duration, Instant};

    use vigil_model::{Before, Claim, Namespace, TaskId};
    use vigil_reconcile::{Goal, Group, Said};

    use crate::cgroup::{Hierarchies, Hierarchy, Mode};
    use crate::enact::reconcile_with;
    use crate::observe::Subject;

    /// A cgroup whose list of processes could not be read was taken for one without strangers,
    /// and whoever was in it was killed.
    #[test]
    fn a_cgroup_in_which_nobody_can_be_seen_is_not_emptied() {
        let host = tempfile::tempdir().unwrap();
        let mount = host.path().join("cgroup");
        let dir = mount.join("x");
        // No list can be read from a directory.
        fs::create_dir_all(dir.join("cgroup.procs")).unwrap();
        fs::write(dir.join("cgroup.events"), "populated 1\n").unwrap();
        let kill = dir.join("cgroup.kill");
        fs::write(&kill, "").unwrap();
        let hierarchies = Hierarchies {
            mode: Mode::Unified,
            list: vec![Hierarchy {
                name: String::new(),
                mount,
                root: "/".to_owned(),
                own: "/elsewhere".to_owned(),
                first: "/init.scope".to_owned(),
            }],
        };
        let subject = Subject {
            said: Said::Live,
            private_pid_ns: Some(true),
            claims: vec![Claim {
                hierarchy: String::new(),
                path: dir.to_string_lossy().into_owned(),
                before: Before::Absent,
                inode: None,
            }],
            ..Subject::unrecorded(
                TaskId::new("x").unwrap(),
                Namespace::new("n").unwrap(),
                host.path().join("bundle"),
                Path::new("/nonexistent"),
            )
        };
        let until = Instant::now() + Duration::from_secs(20);
        let report = reconcile_with(&subject, &hierarchies, Goal::Gone, host.path(), until);
        assert_eq!(fs::read_to_string(kill).unwrap(), "", "{report:?}");
        assert_eq!(report.facts.group, Group::Unknown);
        assert!(report.may_live(), "{report:?}");
    }
}
