//! The table: named rows of what is known, each with how a host gets there,
//! and the verdict. Exactly one row fits any combination of facts; a test
//! tries them all. `decide` is the only reader.

use crate::facts::{Boot, Exit, Facts, Group, Init, Said};
use crate::verdict::Verdict;

/// What a row asks of one fact.
#[derive(Debug, Clone, Copy)]
enum Is<T: 'static> {
    /// Anything.
    Any,
    /// One of these.
    In(&'static [T]),
}

impl<T: PartialEq> Is<T> {
    fn fits(&self, value: &T) -> bool {
        match self {
            Is::Any => true,
            Is::In(values) => values.contains(value),
        }
    }
}

/// One row.
#[derive(Debug)]
pub struct Row {
    /// Its name, for logs, tombstones and the tool.
    pub name: &'static str,
    /// How a host gets there.
    pub how: &'static str,
    boot: Is<Boot>,
    said: Is<Said>,
    init: Is<Init>,
    exit: Is<Exit>,
    group: Is<Group>,
    residue: Is<bool>,
    /// What it means.
    pub verdict: Verdict,
}

impl Row {
    fn fits(&self, facts: &Facts) -> bool {
        self.boot.fits(&facts.boot)
            && self.said.fits(&facts.said)
            && self.init.fits(&facts.init)
            && self.exit.fits(&facts.exit)
            && self.group.fits(&facts.group)
            && self.residue.fits(&facts.residue())
    }
}

use Is::{Any, In};

/// Processes of ours may be in the cgroup.
const BUSY: Is<Group> = In(&[Group::Populated, Group::Unknown]);
/// None are, as far as it is ours.
const CALM: Is<Group> = In(&[Group::Absent, Group::Empty, Group::Foreign]);
const SAME: Is<Boot> = In(&[Boot::Same]);
const KNOWN: Is<Exit> = In(&[Exit::Known]);
const NOT_KNOWN: Is<Exit> = In(&[Exit::NotKnown]);

/// Shorthand: all columns in order.
#[expect(clippy::too_many_arguments, reason = "one argument a column")]
const fn row_of(
    name: &'static str,
    boot: Is<Boot>,
    said: Is<Said>,
    init: Is<Init>,
    exit: Is<Exit>,
    group: Is<Group>,
    residue: Is<bool>,
    verdict: Verdict,
    how: &'static str,
) -> Row {
    Row {
        name,
        how,
        boot,
        said,
        init,
        exit,
        group,
        residue,
        verdict,
    }
}

#[rustfmt::skip]
static ROWS: &[Row] = &[
    // Not of this boot, or not to be told.
    row_of("another boot",
        In(&[Boot::Other]), Any, In(&[Init::Unnamed, Init::Dead, Init::Unknown]), Any, CALM, Any,
        Verdict::OtherBoot,
        "The bundle survived a restart of the host, or its pid namespace is gone and its processes with it."),
    row_of("another pid namespace",
        In(&[Boot::Other]), Any, In(&[Init::Unnamed, Init::Dead, Init::Unknown]), Any, BUSY, Any,
        Verdict::NotOurs,
        "Somebody looks from inside a container at one that runs outside, whose numbers mean nothing here."),
    row_of("alive across boots",
        In(&[Boot::Other]), Any, In(&[Init::Alive]), Any, Any, Any,
        Verdict::Impossible,
        "An incarnation carries its boot id; it cannot have been checked under another one."),
    row_of("boot unread",
        In(&[Boot::Unknown]), Any, In(&[Init::Unnamed, Init::Unknown]), Any, Any, Any,
        Verdict::Unclear,
        "/proc is not mounted, or we are out of descriptors."),
    row_of("checked without a boot",
        In(&[Boot::Unknown]), Any, In(&[Init::Alive, Init::Dead]), Any, Any, Any,
        Verdict::Impossible,
        "No incarnation can be checked while the boot id cannot be read."),

    // Init runs.
    row_of("still running",
        SAME, In(&[Said::Live]), In(&[Init::Alive]), NOT_KNOWN, Any, Any,
        Verdict::StillRunning,
        "The shim died, or both did; the container noticed nothing."),
    row_of("running without a record",
        SAME, In(&[Said::Unreadable]), In(&[Init::Alive]), NOT_KNOWN, Any, Any,
        Verdict::StillRunning,
        "The journal was torn or replaced; runc's state names an init whose start time fits, or a process has runc's mark for it."),
    row_of("killed inside create",
        SAME, In(&[Said::Creating]), In(&[Init::Alive, Init::Dead, Init::Unnamed, Init::Unknown]), NOT_KNOWN, Any, Any,
        Verdict::HalfCreated,
        "runc create was begun and its outcome never recorded: it may have run wholly, partly or not at all."),
    row_of("a create not undone",
        SAME, In(&[Said::HalfMade]), Any, Any, Any, Any,
        Verdict::HalfCreated,
        "A create or a restore failed, and its init slept uninterruptibly, or runc delete was killed, or a restore's end was recorded without a process."),
    row_of("alive under our id",
        SAME, In(&[Said::Nothing]), In(&[Init::Alive]), NOT_KNOWN, Any, Any,
        Verdict::NotOurs,
        "Another runtime made a container of this id below the same root; we never recorded a Create."),
    row_of("ended without an exit",
        SAME, In(&[Said::Ended]), In(&[Init::Alive, Init::Dead, Init::Unnamed, Init::Unknown]), NOT_KNOWN, Any, Any,
        Verdict::Impossible,
        "The record of init's end is its exit; one is not written without the other."),
    row_of("deleted but alive",
        SAME, In(&[Said::Gone]), In(&[Init::Alive]), Any, Any, Any,
        Verdict::Impossible,
        "Deleted is recorded after init was seen dead."),
    row_of("dead but alive",
        SAME, In(&[Said::Unreadable, Said::Nothing, Said::Creating, Said::Live, Said::Ended]), In(&[Init::Alive]), KNOWN, Any, Any,
        Verdict::Impossible,
        "One incarnation has one end; if it runs, what was recorded is not its exit."),

    // Init is gone, its end is known.
    row_of("exit not yet told",
        SAME, In(&[Said::Live, Said::Ended, Said::Creating, Said::Unreadable]), In(&[Init::Dead, Init::Unknown]), KNOWN, CALM, Any,
        Verdict::ExitNotTold,
        "Init ended while no shim served, or the shim died between the record and the event."),
    row_of("stragglers",
        SAME, In(&[Said::Live, Said::Ended, Said::Creating, Said::Unreadable]), In(&[Init::Dead, Init::Unknown]), KNOWN, BUSY, Any,
        Verdict::Stragglers,
        "Init ended in a shared pid namespace, or execs of it have not died yet."),
    row_of("ended without a name",
        SAME, In(&[Said::Ended]), In(&[Init::Unnamed]), KNOWN, CALM, Any,
        Verdict::ExitNotTold,
        "Who asks knows that it ended, and not any more which process it was."),
    row_of("ended without a name, others left",
        SAME, In(&[Said::Ended]), In(&[Init::Unnamed]), KNOWN, BUSY, Any,
        Verdict::Stragglers,
        "As above, and others of its container run on."),
    row_of("an exit of nobody",
        SAME, In(&[Said::Unreadable, Said::Nothing, Said::Creating, Said::Live]), In(&[Init::Unnamed]), KNOWN, Any, Any,
        Verdict::Impossible,
        "Exits are kept by incarnation; without one there is nothing to find."),
    row_of("an exit without a task",
        SAME, In(&[Said::Nothing]), In(&[Init::Dead, Init::Unknown]), KNOWN, Any, Any,
        Verdict::Impossible,
        "A process is registered for its exit only after Create was recorded."),

    // Init is gone, its end is not known.
    row_of("died unseen",
        SAME, In(&[Said::Live]), In(&[Init::Dead]), NOT_KNOWN, Any, Any,
        Verdict::DiedUnseen,
        "The reaper was dead when init ended, and the kernel keeps no status."),
    row_of("died unseen, without a record",
        SAME, In(&[Said::Unreadable]), In(&[Init::Dead]), NOT_KNOWN, Any, Any,
        Verdict::DiedUnseen,
        "Journal and reaper are lost; runc's state names an init that is gone."),
    row_of("a checkpoint not yet restored",
        SAME, In(&[Said::Live]), In(&[Init::Unnamed]), NOT_KNOWN, Any, Any,
        Verdict::NeverRan,
        "Create of a restore has no process until Start."),
    row_of("remains of a stranger",
        SAME, In(&[Said::Nothing]), In(&[Init::Dead]), NOT_KNOWN, Any, Any,
        Verdict::Leftovers,
        "Something of this id was killed without being deleted, by whoever made it."),

    // Nobody can say.
    row_of("not to be checked",
        SAME, In(&[Said::Live, Said::Unreadable, Said::Nothing]), In(&[Init::Unknown]), NOT_KNOWN, Any, Any,
        Verdict::Unclear,
        "Init's incarnation is known, but there are no descriptors, or no permission, to look at it."),

    // Nothing runs and nothing is known of an init.
    row_of("never created",
        SAME, In(&[Said::Nothing, Said::Unreadable]), In(&[Init::Unnamed]), NOT_KNOWN, Any, In(&[false]),
        Verdict::NothingLeft,
        "start was answered and Create never came, or everything is cleaned up and the journal with it."),
    row_of("traces without a record",
        SAME, In(&[Said::Nothing, Said::Unreadable]), In(&[Init::Unnamed]), NOT_KNOWN, Any, In(&[true]),
        Verdict::Leftovers,
        "A Create was undone halfway, the journal was lost, or only the socket is left."),
    row_of("deleted, traces left",
        SAME, In(&[Said::Gone]), In(&[Init::Dead, Init::Unnamed, Init::Unknown]), Any, Any, In(&[true]),
        Verdict::Leftovers,
        "Something would not go when it was deleted, and is gone or movable now."),
    row_of("deleted",
        SAME, In(&[Said::Gone]), In(&[Init::Dead, Init::Unnamed, Init::Unknown]), Any, Any, In(&[false]),
        Verdict::NothingLeft,
        "Delete was answered and Shutdown not; the normal case of the delete command."),
];

/// All rows, for the tool and the golden page.
pub fn rows() -> &'static [Row] {
    ROWS
}

/// The row that fits. `None` cannot happen while the table's test passes; the
/// caller treats it as [`Verdict::Impossible`].
pub fn row(facts: &Facts) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.fits(facts))
}

/// What is true of the container.
pub fn decide(facts: &Facts) -> Verdict {
    row(facts).map_or(Verdict::Impossible, |row| row.verdict)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{Present, RuncDelete};
    use std::collections::BTreeMap;

    const PRESENT: [Present; 3] = [Present::Yes, Present::No, Present::Unknown];

    fn pairs() -> impl Iterator<Item = (Present, Present)> {
        PRESENT
            .into_iter()
            .flat_map(|a| PRESENT.into_iter().map(move |b| (a, b)))
    }

    fn every_combination() -> Vec<Facts> {
        let mut all = Vec::new();
        for boot in [Boot::Same, Boot::Other, Boot::Unknown] {
            for said in [
                Said::Unreadable,
                Said::Nothing,
                Said::Creating,
                Said::HalfMade,
                Said::Live,
                Said::Ended,
                Said::Gone,
            ] {
                for init in [Init::Unnamed, Init::Alive, Init::Dead, Init::Unknown] {
                    for exit in [Exit::Known, Exit::NotKnown] {
                        for group in [
                            Group::Absent,
                            Group::Empty,
                            Group::Populated,
                            Group::Foreign,
                            Group::Unknown,
                        ] {
                            for runc_delete in
                                [RuncDelete::NotTried, RuncDelete::Begun, RuncDelete::Done]
                            {
                                for (below, runc_state) in pairs() {
                                    for mounts in PRESENT {
                                        for socket in PRESENT {
                                            all.push(Facts {
                                                boot,
                                                said,
                                                init,
                                                exit,
                                                group,
                                                below,
                                                runc_delete,
                                                runc_state,
                                                mounts,
                                                socket,
                                            });
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
        all
    }

    #[test]
    fn exactly_one_row_fits_every_combination() {
        let mut used: BTreeMap<&str, usize> = BTreeMap::new();
        let all = every_combination();
        assert_eq!(all.len(), 3 * 7 * 4 * 2 * 5 * 3 * 81);
        for facts in all {
            let fitting: Vec<_> = ROWS.iter().filter(|r| r.fits(&facts)).collect();
            assert_eq!(
                fitting.len(),
                1,
                "{facts:?} fits {:?}",
                fitting.iter().map(|r| r.name).collect::<Vec<_>>()
            );
            *used.entry(fitting[0].name).or_default() += 1;
        }
        for row in ROWS {
            assert!(used.contains_key(row.name), "no host fits {:?}", row.name);
        }
        assert_eq!(used.len(), ROWS.len(), "two rows share a name");
    }

    #[test]
    fn every_row_says_how_a_host_gets_there() {
        for row in ROWS {
            assert!(row.how.ends_with('.') && row.how.len() > 20, "{}", row.name);
        }
    }

    #[test]
    fn a_checked_live_init_is_never_called_gone() {
        for facts in every_combination() {
            if facts.init == Init::Alive {
                assert!(
                    matches!(
                        decide(&facts),
                        Verdict::StillRunning
                            | Verdict::HalfCreated
                            | Verdict::NotOurs
                            | Verdict::Impossible
                    ),
                    "{facts:?}"
                );
            }
        }
    }
}
