//! A decision in the making: the changes so far, tried out on a copy of the
//! standing, so that a later rule of the same step sees what an earlier one
//! decided.

use crate::phase::{ExecPhase, ExecPlan, Plan, Standing, Task};
use crate::record::{Change, Record};
use crate::{Effect, ExecId, Exit, Moment, Published, RequestId, TaskEvent};

/// Events kept for a containerd that does not take them; beyond it, those
/// that may be dropped are dropped and counted.
pub const OUTBOX_MAX: usize = 1024;

/// Bytes an exec takes in a snapshot at most, besides its id, twice, and its plan.
const EXEC_LEN: usize = 360;

pub(crate) fn exec_len(exec: &ExecId, plan: &ExecPlan) -> usize {
    2 * exec.as_str().len() + EXEC_LEN + plan.len()
}

/// See the module.
pub(crate) struct Draft<'a> {
    task: &'a Task,
    now: Standing,
    at: Moment,
    asked: Option<RequestId>,
    changes: Vec<Change>,
    publish: Vec<Published>,
    effects: Vec<Effect>,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(task: &'a Task, at: Moment, asked: Option<RequestId>) -> Self {
        Self {
            task,
            now: task.standing.clone(),
            at,
            asked,
            changes: Vec::new(),
            publish: Vec::new(),
            effects: Vec::new(),
        }
    }

    /// The standing with the changes so far.
    pub(crate) fn now(&self) -> &Standing {
        &self.now
    }

    pub(crate) fn at(&self) -> Moment {
        self.at
    }

    /// See [`Task::dated`].
    pub(crate) fn dated(&self, exit: Exit) -> Exit {
        self.task.dated(exit)
    }

    pub(crate) fn asked(&self) -> Option<RequestId> {
        self.asked
    }

    pub(crate) fn plan(&self) -> Option<&Plan> {
        self.task.plan.as_deref()
    }

    /// Bytes that the execs take in a snapshot, about.
    pub(crate) fn execs_len(&self) -> usize {
        let execs = self.task.exec_plans.iter();
        execs.map(|(exec, plan)| exec_len(exec, plan)).sum()
    }

    pub(crate) fn exec_phase(&self, exec: &ExecId) -> Option<&ExecPhase> {
        self.now.execs.get(exec).map(|exec| &exec.phase)
    }

    pub(crate) fn change(&mut self, change: Change) {
        self.now.apply(&change, self.at);
        self.changes.push(change);
    }

    pub(crate) fn effect(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// Puts an event into the outbox, in order.
    pub(crate) fn publish(&mut self, event: TaskEvent) {
        // One that was not taken yet says the same; a container that runs out
        // of memory in a loop must not fill the outbox.
        let last = self.publish.last().or_else(|| self.task.outbox.back());
        if event == TaskEvent::Oom && last.is_some_and(|last| last.event == TaskEvent::Oom) {
            return;
        }
        if event.droppable() && self.task.outbox.len() + self.publish.len() >= OUTBOX_MAX {
            self.changes.push(Change::EventDropped);
            return;
        }
        let seq = self.task.next_seq + self.publish.len() as u64;
        self.publish.push(Published {
            seq,
            at: self.at,
            event,
        });
    }

    pub(crate) fn finish(mut self) -> (Option<Record>, Vec<Effect>) {
        if !self.publish.is_empty() {
            self.effects.push(Effect::Publish);
        }
        let silent = self.changes.is_empty() && self.publish.is_empty();
        // What a request has begun is known by its id, should it come again.
        if let Some(asked) = self.asked.filter(|_| !silent) {
            self.changes.push(Change::Took(asked));
        }
        let record = Record {
            at: self.at,
            changes: self.changes,
            publish: self.publish,
        };
        ((!silent).then_some(record), self.effects)
    }
}
