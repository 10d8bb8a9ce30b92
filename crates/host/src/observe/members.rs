//! Who is in the container's cgroups and whose each of them is. What holds somebody else's is
//! given up; those in it that are the container's are then known one by one.

use std::collections::{BTreeMap, BTreeSet};

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
    let mut strangers = not_ours(cgroup, &family, claimed, notes);
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
        strangers = not_ours(cgroup, &family, claimed, notes);
    }
    let own: BTreeSet<u32> = note(cgroup.our_pids(), notes)
        .unwrap_or_default()
        .into_iter()
        .collect();
    let theirs: BTreeSet<u32> = strangers.keys().copied().collect();
    if let Some(first) = theirs.first() {
        notes.push(format!(
            "the cgroup is others' too, process {first} among them"
        ));
        note(cgroup.share_with(&theirs), notes);
    }
    // Where somebody else is too, that it was ours alone tells nothing any more: of who is
    // there each is known by itself, or is left alone. One of whom nobody can say whose it is
    // is not somebody else.
    let alone = claimed == Claimed::Recorded && !strangers.values().any(|kin| *kin == Kin::Others);
    let apart = note(cgroup.others_pids(), notes).and_then(|pids| {
        let mut judged = note(family.judge(&pids, Claimed::Shared), notes)?;
        if alone {
            let own: Vec<u32> = own.iter().copied().collect();
            judged.extend(note(family.judge(&own, claimed), notes)?);
        }
        Some(judged)
    });
    let Some(apart) = apart else {
        found.unproven = true;
        return found;
    };
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

/// Those in what is ours who are not. Of whom nobody can say, everybody is not.
fn not_ours(
    cgroup: &Cgroup,
    family: &Family,
    claimed: Claimed,
    notes: &mut Vec<String>,
) -> BTreeMap<u32, Kin> {
    let Some(pids) = note(cgroup.our_pids(), notes) else {
        return BTreeMap::new();
    };
    let Some(mut judged) = note(family.judge(&pids, claimed), notes) else {
        return pids.into_iter().map(|pid| (pid, Kin::Unproven)).collect();
    };
    judged.retain(|_, kin| *kin != Kin::Ours);
    judged
}
