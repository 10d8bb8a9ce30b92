//! From a verdict to what is done: actions in order, each of which may be
//! done again without harm, so that a plan cut short is simply made anew.

use crate::facts::{Facts, Group, Init, RuncDelete};
use crate::verdict::Verdict;

/// What the caller is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Goal {
    /// A takeover: what runs goes on running.
    Keep,
    /// `delete`, `repair`: nothing of the container is left.
    Gone,
}

/// One thing to do on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// SIGKILL to init through a pidfd whose incarnation was checked.
    KillInit,
    /// Kill everything in the container's own cgroup, until it is empty.
    KillCgroup,
    /// SIGKILL to what descends from the reaper: ours by construction, in
    /// whatever cgroup it hides.
    KillBelow,
    /// Thaw what is ours and frozen: on v1 a frozen process cannot die.
    Thaw,
    /// `runc delete --force`, which also runs the poststop hooks.
    RuncDelete,
    /// Unmount everything at and below the rootfs.
    Unmount,
    /// Remove the cgroup directories that are ours, in every hierarchy.
    RemoveCgroups,
    /// Remove runc's state directory, should runc have left it.
    RemoveRuncState,
    /// Remove the socket's file.
    UnlinkSocket,
    /// Name in a tombstone what did not go.
    Tombstone,
    /// Add the line that outlives the container.
    WriteHistory,
    /// Say how init ended, as far as anyone knows.
    AnswerExit,
}

impl Action {
    /// Whether it does something about the container, or only says something of it.
    pub fn acts(self) -> bool {
        match self {
            Self::KillInit
            | Self::KillCgroup
            | Self::KillBelow
            | Self::Thaw
            | Self::RuncDelete
            | Self::Unmount
            | Self::RemoveCgroups
            | Self::RemoveRuncState => true,
            // By itself a name that anybody may take away.
            Self::UnlinkSocket | Self::Tombstone | Self::WriteHistory | Self::AnswerExit => false,
        }
    }
}

/// The actions for a verdict, in order. Empty: leave everything as it is.
#[expect(
    clippy::match_same_arms,
    reason = "each arm is a case argued by itself"
)]
pub fn plan(verdict: Verdict, facts: &Facts, goal: Goal) -> Vec<Action> {
    let mut actions = Vec::new();
    match (verdict, goal) {
        // What runs is left alone, the shim adopts it; what cannot be seen is
        // looked at again; somebody else's is somebody else's.
        (
            Verdict::StillRunning
            | Verdict::NeverRan
            | Verdict::Unclear
            | Verdict::NothingLeft
            | Verdict::NotOurs,
            Goal::Keep,
        ) => {}
        // The shim knows the end, or that nobody does, and tells it in its
        // own order; only what runs on without its init is stopped here.
        (Verdict::ExitNotTold | Verdict::DiedUnseen | Verdict::Stragglers, Goal::Keep) => {
            kill(facts, &mut actions);
        }
        // A half-made container is undone so that the id can be used again,
        // traces are in the way of the next Create; pair and socket stay.
        (Verdict::HalfCreated | Verdict::Leftovers, Goal::Keep) => {
            kill(facts, &mut actions);
            remove(facts, &mut actions);
        }
        // History: nothing is signalled, and runc, which signals, is not run.
        (Verdict::OtherBoot, Goal::Keep) => sweep(facts, &mut actions),
        (Verdict::OtherBoot, Goal::Gone) => {
            sweep(facts, &mut actions);
            finish(facts, &mut actions);
        }

        (
            Verdict::StillRunning
            | Verdict::ExitNotTold
            | Verdict::Stragglers
            | Verdict::DiedUnseen
            | Verdict::HalfCreated
            | Verdict::NeverRan
            | Verdict::Leftovers
            // What is ours by its cgroup goes even if init could not be
            // looked at; what stays is in the tombstone.
            | Verdict::Unclear,
            Goal::Gone,
        ) => {
            kill(facts, &mut actions);
            remove(facts, &mut actions);
            finish(facts, &mut actions);
        }
        (Verdict::NothingLeft, Goal::Gone) => finish(facts, &mut actions),

        // Somebody else's container: only what this pair put there goes.
        (Verdict::NotOurs, Goal::Gone) => {
            if facts.socket.possible() {
                actions.push(Action::UnlinkSocket);
            }
            actions.push(Action::AnswerExit);
        }
        // Touch nothing; the report names the row.
        (Verdict::Impossible, Goal::Keep | Goal::Gone) => {}
    }
    actions
}

fn kill(facts: &Facts, actions: &mut Vec<Action>) {
    match facts.init {
        Init::Alive | Init::Unknown => actions.push(Action::KillInit),
        Init::Unnamed | Init::Dead => {}
    }
    if facts.below.possible() {
        match facts.group {
            // On v1 a frozen process does not die, and what is below is waited for.
            Group::Populated | Group::Unknown | Group::Empty => actions.push(Action::Thaw),
            Group::Absent | Group::Foreign => {}
        }
        actions.push(Action::KillBelow);
    }
    match facts.group {
        Group::Populated | Group::Unknown => {
            actions.push(Action::KillCgroup);
            actions.push(Action::Thaw);
        }
        // A frozen cgroup may look empty to a reader that cannot see into it.
        Group::Empty => actions.push(Action::Thaw),
        Group::Absent | Group::Foreign => {}
    }
}

fn remove(facts: &Facts, actions: &mut Vec<Action>) {
    if facts.runc_state.possible() {
        match facts.runc_delete {
            RuncDelete::NotTried | RuncDelete::Begun => actions.push(Action::RuncDelete),
            RuncDelete::Done => {}
        }
    }
    if facts.mounts.possible() {
        actions.push(Action::Unmount);
    }
    match facts.group {
        Group::Empty | Group::Populated | Group::Unknown => actions.push(Action::RemoveCgroups),
        Group::Absent | Group::Foreign => {}
    }
    // While init or the cgroup could not be looked at, something may live on:
    // runc's state is what names it, and what the hooks are run from. The next
    // look needs it. If runc could delete the container, it is gone already.
    let unseen = facts.init == Init::Unknown || facts.group == Group::Unknown;
    if facts.runc_state.possible() && !unseen {
        actions.push(Action::RemoveRuncState);
    }
}

/// Removal of what another boot left, as far as nothing runs in it.
fn sweep(facts: &Facts, actions: &mut Vec<Action>) {
    if facts.mounts.possible() {
        actions.push(Action::Unmount);
    }
    match facts.group {
        Group::Empty => actions.push(Action::RemoveCgroups),
        Group::Absent | Group::Populated | Group::Foreign | Group::Unknown => {}
    }
    if facts.runc_state.possible() {
        actions.push(Action::RemoveRuncState);
    }
}

fn finish(facts: &Facts, actions: &mut Vec<Action>) {
    if facts.socket.possible() {
        actions.push(Action::UnlinkSocket);
    }
    actions.push(Action::Tombstone);
    actions.push(Action::WriteHistory);
    actions.push(Action::AnswerExit);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{Boot, Exit, Present, Said};
    use crate::table::decide;

    fn quiet() -> Facts {
        Facts {
            boot: Boot::Same,
            said: Said::Live,
            init: Init::Alive,
            exit: Exit::NotKnown,
            group: Group::Populated,
            below: Present::No,
            runc_delete: RuncDelete::NotTried,
            runc_state: Present::Yes,
            mounts: Present::Yes,
            socket: Present::Yes,
        }
    }

    #[test]
    fn a_takeover_leaves_what_runs_alone() {
        let facts = quiet();
        assert_eq!(plan(decide(&facts), &facts, Goal::Keep), []);
    }

    #[test]
    fn delete_kills_before_it_removes_and_answers_last() {
        let facts = quiet();
        assert_eq!(
            plan(decide(&facts), &facts, Goal::Gone),
            [
                Action::KillInit,
                Action::KillCgroup,
                Action::Thaw,
                Action::RuncDelete,
                Action::Unmount,
                Action::RemoveCgroups,
                Action::RemoveRuncState,
                Action::UnlinkSocket,
                Action::Tombstone,
                Action::WriteHistory,
                Action::AnswerExit,
            ]
        );
    }

    /// Found by the soak: `delete` of a paused container with an exec waited for
    /// frozen processes to die until it had no time left to thaw them.
    #[test]
    fn who_is_waited_for_is_thawed_first() {
        for (group, thawed) in [
            (Group::Populated, true),
            (Group::Unknown, true),
            (Group::Empty, true),
            (Group::Foreign, false),
            (Group::Absent, false),
        ] {
            let facts = Facts {
                group,
                below: Present::Yes,
                ..quiet()
            };
            let mut actions = Vec::new();
            kill(&facts, &mut actions);
            let at = |action| actions.iter().position(|a| *a == action);
            let (thaw, below) = (at(Action::Thaw), at(Action::KillBelow));
            assert_eq!(thaw.is_some_and(|at| Some(at) < below), thawed, "{group:?}");
        }
    }

    #[test]
    fn a_cgroup_that_is_not_ours_is_neither_killed_nor_removed() {
        let facts = Facts {
            group: Group::Foreign,
            ..quiet()
        };
        let actions = plan(decide(&facts), &facts, Goal::Gone);
        assert!(actions.contains(&Action::KillInit));
        assert!(!actions.contains(&Action::KillCgroup));
        assert!(!actions.contains(&Action::RemoveCgroups));
    }

    #[test]
    fn runc_delete_is_not_called_again_once_it_returned() {
        for (before, again) in [
            (RuncDelete::NotTried, true),
            (RuncDelete::Begun, true),
            (RuncDelete::Done, false),
        ] {
            let facts = Facts {
                said: Said::Ended,
                init: Init::Dead,
                exit: Exit::Known,
                runc_delete: before,
                ..quiet()
            };
            let actions = plan(decide(&facts), &facts, Goal::Gone);
            assert_eq!(actions.contains(&Action::RuncDelete), again, "{before:?}");
        }
    }

    #[test]
    fn the_impossible_and_the_foreign_are_not_touched() {
        let facts = Facts {
            exit: Exit::Known,
            ..quiet()
        };
        assert_eq!(decide(&facts), Verdict::Impossible);
        assert_eq!(plan(decide(&facts), &facts, Goal::Gone), []);
        let facts = Facts {
            said: Said::Nothing,
            ..quiet()
        };
        assert_eq!(
            plan(decide(&facts), &facts, Goal::Gone),
            [Action::UnlinkSocket, Action::AnswerExit]
        );
    }

    #[test]
    fn another_boots_processes_are_not_signalled() {
        for group in [Group::Populated, Group::Unknown, Group::Empty] {
            for goal in [Goal::Keep, Goal::Gone] {
                let facts = Facts {
                    boot: Boot::Other,
                    init: Init::Unknown,
                    group,
                    below: Present::Yes,
                    ..quiet()
                };
                let expected = if group == Group::Empty {
                    Verdict::OtherBoot
                } else {
                    Verdict::NotOurs
                };
                assert_eq!(decide(&facts), expected);
                for action in plan(decide(&facts), &facts, goal) {
                    assert!(
                        !matches!(
                            action,
                            Action::KillInit
                                | Action::KillCgroup
                                | Action::KillBelow
                                | Action::RuncDelete
                                | Action::Thaw
                        ),
                        "{action:?}"
                    );
                }
            }
        }
    }

    /// Found by the simulator: `delete` out of descriptors could not look at
    /// init, which slept uninterruptibly; runc's state, the only thing that
    /// named it, was removed, and the next `delete` told its end.
    #[test]
    fn what_names_a_container_that_was_not_seen_is_kept() {
        for (boot, said, init, group) in [
            (Boot::Unknown, Said::Creating, Init::Unknown, Group::Foreign),
            (Boot::Same, Said::Creating, Init::Unknown, Group::Foreign),
            (Boot::Same, Said::Unreadable, Init::Unknown, Group::Empty),
            (Boot::Same, Said::Creating, Init::Alive, Group::Unknown),
            (Boot::Same, Said::Live, Init::Dead, Group::Unknown),
        ] {
            let facts = Facts {
                boot,
                said,
                init,
                group,
                ..quiet()
            };
            let actions = plan(decide(&facts), &facts, Goal::Gone);
            assert!(actions.contains(&Action::RuncDelete), "{facts:?}");
            assert!(!actions.contains(&Action::RemoveRuncState), "{facts:?}");
        }
    }

    /// Doing a plan and looking again must come to rest.
    #[test]
    fn a_plan_carried_out_leaves_nothing_to_do() {
        for start in [
            quiet(),
            Facts {
                init: Init::Dead,
                ..quiet()
            },
            Facts {
                said: Said::Creating,
                init: Init::Unnamed,
                ..quiet()
            },
        ] {
            let mut facts = start;
            for action in plan(decide(&facts), &facts, Goal::Gone) {
                match action {
                    Action::KillInit => {
                        facts.init = Init::Dead;
                        facts.exit = Exit::Known;
                    }
                    Action::KillBelow => facts.below = Present::No,
                    Action::KillCgroup => facts.group = Group::Empty,
                    Action::RemoveCgroups => facts.group = Group::Absent,
                    Action::RuncDelete => facts.runc_delete = RuncDelete::Done,
                    Action::RemoveRuncState => facts.runc_state = Present::No,
                    Action::Unmount => facts.mounts = Present::No,
                    Action::UnlinkSocket => facts.socket = Present::No,
                    Action::AnswerExit => facts.said = Said::Gone,
                    Action::Thaw | Action::Tombstone | Action::WriteHistory => {}
                }
            }
            assert_eq!(decide(&facts), Verdict::NothingLeft, "{start:?}");
            assert_eq!(
                plan(decide(&facts), &facts, Goal::Gone),
                [Action::Tombstone, Action::WriteHistory, Action::AnswerExit]
            );
        }
    }
}
