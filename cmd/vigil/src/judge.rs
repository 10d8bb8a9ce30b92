//! From the reconciler's verdict to what an operator is told: the same row
//! means something else beside a living pair, which is at work on it, than
//! after the pair's death. Pure.

use vigil_reconcile::{Said, Verdict};

use crate::pair::Life;

/// What is true of a task, in words, and whether somebody should look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// What is true.
    pub words: &'static str,
    /// What is wrong, if anything.
    pub wrong: Option<&'static str>,
}

/// What there is to judge by.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// The verdict.
    pub verdict: Verdict,
    /// Name of its row.
    pub row: &'static str,
    /// The pair.
    pub pair: Life,
    /// What the journal says.
    pub said: Said,
    /// The journal is there and cannot be believed.
    pub unreadable: bool,
    /// Whether anything but files in the bundle may be left of it.
    pub residue: bool,
    /// containerd has taken the event of init's end.
    pub told: bool,
    /// The shim is still at what init left behind.
    pub settling: bool,
}

/// Judges.
pub fn judge(case: Case) -> Judgement {
    match case.pair {
        Life::Alive => beside_a_pair(case),
        Life::Gone => Judgement {
            words: after_a_pair(case),
            wrong: match case.verdict {
                Verdict::NothingLeft if case.unreadable => {
                    Some("its journal cannot be read, and nothing of it is seen")
                }
                Verdict::NothingLeft => None,
                Verdict::OtherBoot if is_history(case) => None,
                Verdict::ExitNotTold | Verdict::DiedUnseen if is_bare(case) => Some(
                    "its journal is lost, and nothing is left but the bundle, containerd's to remove",
                ),
                Verdict::Impossible => Some("the facts contradict each other; nothing is touched"),
                Verdict::NotOurs => Some("something alive carries its id and is not ours"),
                Verdict::Unclear => Some("its pair is gone, and init could not be looked at"),
                Verdict::OtherBoot => Some("it belongs to another boot of this host"),
                Verdict::StillRunning
                | Verdict::ExitNotTold
                | Verdict::Stragglers
                | Verdict::DiedUnseen
                | Verdict::HalfCreated
                | Verdict::NeverRan
                | Verdict::Leftovers => {
                    Some("its pair is gone; containerd's `delete` or `vigil repair` finishes it")
                }
            },
        },
        Life::Ending => Judgement {
            words: after_a_pair(case),
            wrong: Some("its pair is gone, and another process is at what it left"),
        },
        Life::Unknown => Judgement {
            words: case.row,
            wrong: Some("its pair could not be looked at"),
        },
    }
}

/// Another boot's, and brought to its end in this one.
pub fn is_history(case: Case) -> bool {
    case.verdict == Verdict::OtherBoot && case.said == Said::Gone && !case.residue
}

/// Nothing is left of it and there is no journal to record that in.
pub fn is_bare(case: Case) -> bool {
    let dead = matches!(case.verdict, Verdict::ExitNotTold | Verdict::DiedUnseen);
    dead && case.said == Said::Unreadable && !case.residue
}

/// What is said when nothing is left, which is not always that there was
/// nothing.
fn nothing(case: Case) -> &'static str {
    match case.said {
        Said::Gone => "deleted",
        Said::Nothing => "not created",
        Said::Unreadable => "nothing recorded, nothing left",
        Said::Creating | Said::HalfMade | Said::Live | Said::Ended => case.row,
    }
}

fn after_a_pair(case: Case) -> &'static str {
    if case.verdict == Verdict::NothingLeft {
        nothing(case)
    } else if case.verdict == Verdict::ExitNotTold && case.told {
        "stopped"
    } else {
        case.row
    }
}

fn beside_a_pair(case: Case) -> Judgement {
    let fine = |words| Judgement { words, wrong: None };
    let wrong = |why| Judgement {
        words: case.row,
        wrong: Some(why),
    };
    match case.verdict {
        Verdict::StillRunning if case.said == Said::Unreadable => {
            wrong("it runs, and its journal cannot be read")
        }
        Verdict::ExitNotTold if case.told => fine("stopped"),
        Verdict::StillRunning | Verdict::ExitNotTold | Verdict::NeverRan => fine(case.row),
        Verdict::HalfCreated if case.said == Said::HalfMade && case.told => fine("stopped"),
        Verdict::HalfCreated if case.said == Said::HalfMade => {
            wrong("its create failed, and what it made did not all go")
        }
        Verdict::HalfCreated => fine("being created"),
        Verdict::Stragglers if case.settling => fine("stopping"),
        Verdict::Stragglers => wrong("init ended, and others of its container run on"),
        Verdict::DiedUnseen => wrong("init is gone and its reaper has no record of its end"),
        Verdict::NothingLeft if case.unreadable => Judgement {
            words: nothing(case),
            wrong: Some("its journal cannot be read"),
        },
        Verdict::NothingLeft => fine(nothing(case)),
        Verdict::Leftovers => wrong("nothing of it runs, and something of it lies about"),
        Verdict::OtherBoot => wrong("it belongs to another boot of this host"),
        Verdict::NotOurs => wrong("something alive carries its id and is not ours"),
        Verdict::Unclear => wrong("init could not be looked at"),
        Verdict::Impossible => wrong("the facts contradict each other"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vigil_reconcile::rows;

    fn case(verdict: Verdict, pair: Life) -> Case {
        Case {
            verdict,
            row: "a row",
            pair,
            said: Said::Live,
            unreadable: false,
            residue: false,
            told: false,
            settling: false,
        }
    }

    #[test]
    fn without_a_pair_everything_but_nothing_is_wrong() {
        for row in rows() {
            let judgement = judge(case(row.verdict, Life::Gone));
            let nothing = row.verdict == Verdict::NothingLeft;
            assert_eq!(judgement.wrong.is_none(), nothing, "{}", row.name);
            assert!(judge(case(row.verdict, Life::Unknown)).wrong.is_some());
        }
    }

    #[test]
    fn a_journal_that_cannot_be_read_is_never_called_never_created() {
        for life in [Life::Gone, Life::Alive, Life::Unknown] {
            let bad = Case {
                said: Said::Unreadable,
                unreadable: true,
                ..case(Verdict::NothingLeft, life)
            };
            assert!(judge(bad).wrong.is_some(), "{life:?}");
        }
        let missing = Case {
            said: Said::Unreadable,
            ..case(Verdict::NothingLeft, Life::Gone)
        };
        assert_eq!(judge(missing).words, "nothing recorded, nothing left");
        assert_eq!(judge(missing).wrong, None);
    }

    #[test]
    fn what_no_repair_can_record_is_wrong_and_bare() {
        let bare = Case {
            said: Said::Unreadable,
            ..case(Verdict::ExitNotTold, Life::Gone)
        };
        assert!(is_bare(bare) && judge(bare).wrong.is_some());
        assert_ne!(
            judge(bare).wrong,
            judge(case(Verdict::ExitNotTold, Life::Gone)).wrong
        );
        for other in [
            Case {
                residue: true,
                ..bare
            },
            Case {
                verdict: Verdict::StillRunning,
                ..bare
            },
            Case {
                said: Said::Live,
                ..bare
            },
        ] {
            assert!(!is_bare(other), "{other:?}");
        }
    }

    #[test]
    fn another_boots_task_is_wrong_until_it_is_deleted_whole() {
        let other = case(Verdict::OtherBoot, Life::Gone);
        let gone = Case {
            said: Said::Gone,
            ..other
        };
        let residue = Case {
            residue: true,
            ..gone
        };
        assert!(judge(other).wrong.is_some() && judge(residue).wrong.is_some());
        assert_eq!(judge(gone).wrong, None);
    }

    #[test]
    fn beside_a_pair_what_it_is_at_is_not_wrong() {
        let words = |case| {
            let Judgement { words, wrong } = judge(case);
            assert_eq!(wrong, None);
            words
        };
        let alive = |verdict| case(verdict, Life::Alive);
        assert_eq!(words(alive(Verdict::StillRunning)), "a row");
        assert_eq!(words(alive(Verdict::HalfCreated)), "being created");
        let told = Case {
            told: true,
            ..alive(Verdict::ExitNotTold)
        };
        assert_eq!(words(told), "stopped");
        let settling = Case {
            settling: true,
            ..alive(Verdict::Stragglers)
        };
        assert_eq!(words(settling), "stopping");
        assert!(judge(alive(Verdict::Stragglers)).wrong.is_some());
        let unread = Case {
            said: Said::Unreadable,
            ..alive(Verdict::StillRunning)
        };
        assert!(judge(unread).wrong.is_some());
    }
}
