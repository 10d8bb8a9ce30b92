//! The invariants, stated apart from the rules that keep them: tests, the
//! simulator and the operator's tool all ask this one function.

use std::collections::BTreeMap;

use crate::{ExecId, Exit, Published, TaskEvent, Who};

/// What one event broke.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Places do not grow.
    #[error("event {seq} follows event {before}")]
    Disorder {
        /// The earlier one.
        before: u64,
        /// The later one.
        seq: u64,
    },
    /// Something came before the event it depends on, or after the last one.
    #[error("event {seq}: {what}")]
    Misplaced {
        /// Which.
        seq: u64,
        /// What is wrong with its place.
        what: &'static str,
    },
    /// A process ended twice.
    #[error("event {seq}: {who} ended twice")]
    EndedTwice {
        /// Which event.
        seq: u64,
        /// Which process.
        who: String,
    },
    /// Delete told another end than Exit.
    #[error("event {seq}: delete tells another end than exit")]
    OtherEnd {
        /// Which event.
        seq: u64,
    },
}

/// Lists what is wrong with the story containerd was told (invariants I2, I3:
/// create before start before exit before delete; added before started before
/// exit; every exec's exit before init's; nothing after delete; one end each).
pub fn audit(told: &[Published]) -> Vec<Violation> {
    let mut wrong = Vec::new();
    let mut last = 0;
    let (mut created, mut started, mut deleted) = (false, false, false);
    let mut ended: Option<Exit> = None;
    // false: added; true: started and not ended
    let mut execs: BTreeMap<&ExecId, bool> = BTreeMap::new();
    for Published { seq, event, .. } in told {
        let seq = *seq;
        if seq <= last {
            wrong.push(Violation::Disorder { before: last, seq });
        }
        last = seq;
        let mut misplaced = |what| wrong.push(Violation::Misplaced { seq, what });
        if deleted {
            misplaced("something after delete");
        }
        match event {
            TaskEvent::Create { .. } => {
                if created {
                    misplaced("a second create");
                }
                created = true;
            }
            TaskEvent::Start { .. } => {
                if !created || started || ended.is_some() {
                    misplaced("start without create, twice, or after exit");
                }
                started = true;
            }
            TaskEvent::ExecAdded { exec } => {
                if !created {
                    misplaced("exec added before create");
                }
                execs.insert(exec, false);
            }
            TaskEvent::ExecStarted { exec, .. } => {
                if ended.is_some() {
                    misplaced("exec started after init's exit");
                }
                execs.insert(exec, true);
            }
            TaskEvent::Oom | TaskEvent::Paused | TaskEvent::Resumed => {
                if !created || ended.is_some() {
                    misplaced("not between create and exit");
                }
            }
            TaskEvent::Exit {
                who: Who::Exec(exec),
                ..
            } => {
                if ended.is_some() {
                    misplaced("exec's exit after init's");
                }
                if execs.insert(exec, false) != Some(true) {
                    wrong.push(Violation::EndedTwice {
                        seq,
                        who: exec.to_string(),
                    });
                }
            }
            TaskEvent::Exit {
                who: Who::Init,
                exit,
                ..
            } => {
                if !created {
                    misplaced("exit before create");
                }
                if execs.values().any(|running| *running) {
                    misplaced("init's exit before an exec's");
                }
                if ended.replace(*exit).is_some() {
                    wrong.push(Violation::EndedTwice {
                        seq,
                        who: "init".to_owned(),
                    });
                }
            }
            TaskEvent::Delete { exit, .. } => {
                if !created || deleted {
                    misplaced("delete without create, or twice");
                }
                if ended.is_some_and(|told| told != *exit) {
                    wrong.push(Violation::OtherEnd { seq });
                }
                deleted = true;
            }
        }
    }
    wrong
}
