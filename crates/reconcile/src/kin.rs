//! Who may be signalled: whether a process that is seen in a cgroup of the container's is the
//! container's. A cgroup says nothing by its name, and one that was ours alone may be somebody
//! else's as well by now. Whoever signals by a cgroup asks here first.

/// By what a cgroup is known to be the container's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Claimed {
    /// A record: nothing, or nobody, was there before, or the runtime's own state of this
    /// bundle names it.
    Recorded,
    /// Its name, or what a spec or convention say. That is a guess, and proves nothing.
    Guessed,
    /// Whatever it was: somebody else is in it now, and that one is there proves nothing.
    Shared,
}

/// What is at the top of a process's line of ancestors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Above {
    /// The pair of the container, or a process that is the container's.
    Ours,
    /// A living shim or monitor of somebody else.
    Others,
    /// Nobody who looks after it.
    Nobody,
}

/// A process's pid namespace, seen from the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PidNs {
    /// The one that init made: nobody else's processes are there.
    Inits,
    /// The host's, which the container shares.
    Hosts,
    /// One of another container that the container joined. Whose parent dies there becomes a
    /// child of that one's init, which is nobody who looks after it.
    Joined,
    /// One that is neither the host's nor the container's. Where the container has none of its
    /// own, one of its processes may have made it.
    Another,
    /// One that no process of the container's is in unless it descends from another of them:
    /// the host's where the container has its own, and any other than that.
    Outside,
    /// It cannot be compared.
    Unknown,
}

/// Whose children the container's processes become when their parents die.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Orphans {
    /// The reaper's, which lives and was there first: every process of the container descends
    /// from it.
    Reapers,
    /// Anybody's, as far as is known: that nobody is above one tells nothing.
    Anybodys,
}

/// What is known of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ties {
    /// It is init or an exec by a record, or bears the mark of a call of the runtime for this
    /// very container.
    pub named: bool,
    /// It lives in the root file system that is mounted in the container's bundle. With the name
    /// of its cgroup that is enough where nobody looks after it; alone it is not: two containers
    /// may be given the same directory.
    pub rooted: bool,
    /// It lives in the host's mount namespace, as no container's process does: somebody moved it
    /// into the cgroup.
    pub hosts: bool,
    /// Whose descendant it is.
    pub above: Above,
    /// What it means that nobody is above it.
    pub orphans: Orphans,
    /// Where it lives; of one in a namespace that one of the container's may have made, where
    /// the nearest of its ancestors lives that is in the cgroup and in no such namespace.
    pub pid_ns: PidNs,
    /// By what the cgroup it is in is known.
    pub claimed: Claimed,
}

/// Whose a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kin {
    /// The container's: it may be signalled.
    Ours,
    /// Somebody else's, as is seen while the reaper, or who looks after it, lives. The cgroup is
    /// given up: who comes back for it later could not tell any more.
    Others,
    /// Somebody else's by where it lives, whoever is alive, in a cgroup that is on record as the
    /// container's own: that is removed when it has gone.
    Stranger,
    /// Nobody can say; it is not signalled.
    Unproven,
}

impl Kin {
    /// Whether it is known to be none of the container's.
    pub fn is_anothers(self) -> bool {
        match self {
            Kin::Others | Kin::Stranger => true,
            Kin::Ours | Kin::Unproven => false,
        }
    }
}

/// Whose a process in a cgroup is.
#[expect(
    clippy::match_same_arms,
    reason = "each arm is a case argued by itself"
)]
pub fn kin(ties: &Ties) -> Kin {
    let Ties {
        named,
        rooted,
        hosts,
        above,
        orphans,
        pid_ns,
        claimed,
    } = *ties;
    match (above, orphans, pid_ns, claimed) {
        _ if named => Kin::Ours,
        (Above::Ours, ..) | (_, _, PidNs::Inits, _) => Kin::Ours,
        // The cgroup was made for the container and has to go: what was moved into it goes
        // with it, as where systemd or the kernel end a cgroup.
        (Above::Nobody, _, _, Claimed::Recorded) if hosts => Kin::Ours,
        // Somebody put it into the cgroup. It is not the container's when the reaper, and whose it
        // is, are dead either, so whoever comes back for the cgroup does not take it for that.
        (Above::Others | Above::Nobody, _, PidNs::Outside, Claimed::Recorded) => Kin::Stranger,
        (Above::Others, ..) => Kin::Others,
        // It would be below the reaper.
        (Above::Nobody, Orphans::Reapers, ..) => Kin::Others,
        (Above::Nobody, _, PidNs::Outside, Claimed::Shared) => Kin::Others,
        // Where the container lives is a guess as well.
        (Above::Nobody, _, PidNs::Outside, Claimed::Guessed) => Kin::Unproven,
        (Above::Nobody, _, _, Claimed::Guessed) if rooted => Kin::Ours,
        // Without its reaper an orphan is anybody's child; that the cgroup was ours alone is
        // what tells.
        (Above::Nobody, _, PidNs::Hosts | PidNs::Joined | PidNs::Unknown, Claimed::Recorded) => {
            Kin::Ours
        }
        // Another container has one too, and may have been given this cgroup.
        (Above::Nobody, _, PidNs::Another, Claimed::Recorded) => Kin::Unproven,
        (Above::Nobody, _, _, Claimed::Guessed | Claimed::Shared) => Kin::Unproven,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_combination() -> Vec<Ties> {
        let mut all = Vec::new();
        let namespaces = [
            PidNs::Inits,
            PidNs::Hosts,
            PidNs::Joined,
            PidNs::Another,
            PidNs::Outside,
            PidNs::Unknown,
        ];
        let orphans = [Orphans::Reapers, Orphans::Anybodys];
        let two = [false, true];
        for (named, (rooted, hosts)) in two
            .into_iter()
            .flat_map(|a| two.map(|b| two.map(|c| (a, (b, c)))).concat())
        {
            for above in [Above::Ours, Above::Others, Above::Nobody] {
                for (pid_ns, orphans) in namespaces.map(|ns| orphans.map(|o| (ns, o))).concat() {
                    for claimed in [Claimed::Recorded, Claimed::Guessed, Claimed::Shared] {
                        all.push(Ties {
                            named,
                            rooted,
                            hosts,
                            above,
                            orphans,
                            pid_ns,
                            claimed,
                        });
                    }
                }
            }
        }
        all
    }

    fn proven(ties: Ties) -> bool {
        ties.named || ties.above == Above::Ours || ties.pid_ns == PidNs::Inits
    }

    fn moved_in(ties: Ties) -> bool {
        ties.hosts && ties.claimed == Claimed::Recorded && ties.above == Above::Nobody
    }

    /// Five ways were found to have a stranger killed for the name of its cgroup.
    #[test]
    fn a_name_makes_nobody_ours() {
        for ties in every_combination() {
            if proven(ties) {
                assert_eq!(kin(&ties), Kin::Ours, "{ties:?}");
            } else if ties.claimed == Claimed::Guessed && !ties.rooted {
                assert_ne!(kin(&ties), Kin::Ours, "{ties:?}");
            }
        }
    }

    /// Two containers may be given the same cgroup, the second after the first was recorded.
    #[test]
    fn a_record_makes_nobody_ours_whom_another_shim_looks_after() {
        for ties in every_combination() {
            if ties.above == Above::Others && !proven(ties) {
                assert!(kin(&ties).is_anothers(), "{ties:?}");
            }
        }
    }

    /// And the same root file system beside the same cgroup.
    #[test]
    fn in_a_cgroup_that_is_others_too_each_is_known_by_itself_or_left_alone() {
        for ties in every_combination() {
            if ties.claimed == Claimed::Shared && !proven(ties) {
                assert_ne!(kin(&ties), Kin::Ours, "{ties:?}");
            }
        }
    }

    fn orphan() -> Ties {
        Ties {
            named: false,
            rooted: false,
            hosts: false,
            above: Above::Nobody,
            orphans: Orphans::Anybodys,
            pid_ns: PidNs::Hosts,
            claimed: Claimed::Recorded,
        }
    }

    /// `delete` after both deaths ends the children of an init that shared a pid namespace,
    /// the host's or a pod's.
    #[test]
    fn an_orphan_in_a_recorded_cgroup_is_ours() {
        assert_eq!(kin(&orphan()), Kin::Ours);
        let joined = Ties {
            pid_ns: PidNs::Joined,
            ..orphan()
        };
        assert_eq!(kin(&joined), Kin::Ours);
        let guessed = Ties {
            claimed: Claimed::Guessed,
            ..orphan()
        };
        assert_eq!(kin(&guessed), Kin::Unproven);
    }

    /// A container that runc alone had made, in the same cgroup and of the host's pid namespace,
    /// was killed though it was not below the reaper that lived.
    #[test]
    fn who_is_not_below_the_reaper_that_all_are_below_is_not_ours() {
        for ties in every_combination() {
            let apart = ties.above == Above::Nobody && ties.orphans == Orphans::Reapers;
            if apart && !proven(ties) && !moved_in(ties) {
                assert!(kin(&ties).is_anothers(), "{ties:?}");
            }
        }
    }

    /// The cgroup goes all the same, with what somebody moved into it, unless somebody else is
    /// there too.
    #[test]
    fn a_process_of_the_host_goes_with_a_cgroup_that_is_ours_alone() {
        for ties in every_combination() {
            let alone = ties.above == Above::Nobody && ties.pid_ns == PidNs::Outside;
            if alone && !proven(ties) {
                assert_eq!(kin(&ties) == Kin::Ours, moved_in(ties), "{ties:?}");
            }
        }
    }

    /// A cgroup with such a process in it was given up, and stayed for ever when that had gone.
    /// Who comes back for it may find the reaper dead, and is not to take it for the container's.
    #[test]
    fn a_stranger_is_one_whoever_of_both_pairs_lives() {
        let mut strangers = 0;
        for ties in every_combination() {
            if ties.hosts || kin(&ties) != Kin::Stranger {
                continue;
            }
            strangers += 1;
            assert_eq!(ties.claimed, Claimed::Recorded, "{ties:?}");
            for orphans in [Orphans::Reapers, Orphans::Anybodys] {
                for above in [Above::Others, Above::Nobody] {
                    let later = Ties {
                        above,
                        orphans,
                        ..ties
                    };
                    assert_eq!(kin(&later), Kin::Stranger, "{ties:?}");
                }
            }
        }
        assert!(strangers > 0);
    }

    /// A process with a pid namespace of its own, whose parent in a container of the host's had
    /// died, was called somebody else's: it outlived `delete`, and nobody said so.
    #[test]
    fn an_orphan_in_a_namespace_that_ours_may_have_made_is_not_called_anothers() {
        let elsewhere = Ties {
            pid_ns: PidNs::Another,
            ..orphan()
        };
        assert_eq!(kin(&elsewhere), Kin::Unproven);
    }
}
