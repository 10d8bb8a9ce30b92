//! Who waits for which answer. Nothing is decided here: the rules say when an
//! answer is due, this says to whom and with what.

use std::collections::{BTreeMap, VecDeque};

use vigil_model::{Answer, ExecId, Kind, Refusal, Request, RequestId, Verb, Who};

use crate::desk::Reply;

/// Requests waiting for a verb under way; more are refused, but for a Delete.
const DEFERRED_MAX: usize = 128;
/// Pending Waits for one process; more are refused. Those of one connection are
/// one, so this many connections have asked.
const WAITERS_MAX: usize = 64 << 10;

/// Fewest of them that are looked through for those whose client went away.
const WAITERS_LOOK: usize = 16;

/// What a finished effect will be answered with, kept until the rules say
/// that the answer is due.
pub(crate) type Outcome = Result<Answer, Refusal>;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Replies {
    pub(crate) create: Option<Reply>,
    pub(crate) create_outcome: Option<Outcome>,
    verbs: BTreeMap<Verb, (Option<Reply>, Option<Outcome>)>,
    execs: BTreeMap<ExecId, (Option<Reply>, Option<Outcome>)>,
    waiters: BTreeMap<Who, Waiters>,
    deferred: VecDeque<(Request, Option<RequestId>, Reply)>,
}

/// Who waits for the end of one process.
#[derive(Debug, Default)]
struct Waiters {
    replies: Vec<Reply>,
    /// At so many, those whose client went away are looked for.
    look_at: usize,
}

/// Sends an answer; a client that went away is no concern of ours.
pub(crate) fn answer(reply: Option<Reply>, outcome: Outcome) {
    if let Some(reply) = reply {
        let _ = reply.send(outcome);
    }
}

fn unexplained(what: &str) -> Outcome {
    Err(Refusal::new(
        Kind::Unknown,
        format!("{what} ended without an outcome"),
    ))
}

impl Replies {
    pub(crate) fn answer_create(&mut self) {
        let outcome = self
            .create_outcome
            .take()
            .unwrap_or_else(|| unexplained("create"));
        answer(self.create.take(), outcome);
    }

    pub(crate) fn expect_verb(&mut self, verb: Verb, reply: Reply) {
        self.verbs.insert(verb, (Some(reply), None));
    }

    /// Whether somebody waits for the Create under way.
    pub(crate) fn awaits_create(&self) -> bool {
        self.create.is_some()
    }

    pub(crate) fn verb_outcome(&mut self, verb: Verb, outcome: Outcome) {
        self.verbs.entry(verb).or_default().1 = Some(outcome);
    }

    pub(crate) fn answer_verb(&mut self, verb: Verb) {
        if let Some((reply, outcome)) = self.verbs.remove(&verb) {
            answer(reply, outcome.unwrap_or_else(|| unexplained("the verb")));
        }
    }

    pub(crate) fn expect_exec(&mut self, exec: ExecId, reply: Reply) {
        self.execs.insert(exec, (Some(reply), None));
    }

    pub(crate) fn exec_outcome(&mut self, exec: &ExecId, outcome: Outcome) {
        if let Some(entry) = self.execs.get_mut(exec) {
            entry.1 = Some(outcome);
        }
    }

    pub(crate) fn answer_exec(&mut self, exec: &ExecId) {
        if let Some((reply, outcome)) = self.execs.remove(exec) {
            let outcome = outcome.unwrap_or_else(|| {
                let says = format!("init ended while exec {exec} was being started");
                Err(Refusal::new(Kind::FailedPrecondition, says))
            });
            answer(reply, outcome);
        }
    }

    pub(crate) fn wait(&mut self, who: Who, reply: Reply) {
        let Waiters { replies, look_at } = self.waiters.entry(who).or_default();
        // Those whose client went away make room, now and then: looking at all
        // of them each time would take longer with each.
        if replies.len() >= *look_at {
            replies.retain(|waiter| !waiter.is_closed());
            *look_at = (replies.len() * 2).clamp(WAITERS_LOOK, WAITERS_MAX);
        }
        if replies.len() >= WAITERS_MAX {
            let refusal = Refusal::new(Kind::ResourceExhausted, "too many waits are pending");
            answer(Some(reply), Err(refusal));
            return;
        }
        replies.push(reply);
    }

    pub(crate) fn answer_waiters(&mut self, who: &Who, outcome: &Outcome) {
        for waiter in self.waiters.remove(who).unwrap_or_default().replies {
            answer(Some(waiter), outcome.clone());
        }
    }

    pub(crate) fn defer(&mut self, request: Request, from: Option<RequestId>, reply: Reply) {
        // What ends a process, or a container, is never turned away.
        let ends = matches!(request, Request::Delete(_));
        if !ends && self.deferred.len() >= DEFERRED_MAX {
            let refusal = Refusal::new(Kind::ResourceExhausted, "too many requests are waiting");
            answer(Some(reply), Err(refusal));
            return;
        }
        self.deferred.push_back((request, from, reply));
    }

    /// All deferred requests, to be presented again in their order.
    pub(crate) fn take_deferred(&mut self) -> VecDeque<(Request, Option<RequestId>, Reply)> {
        std::mem::take(&mut self.deferred)
    }
}
