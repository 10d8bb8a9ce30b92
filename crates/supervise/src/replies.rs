//! Who waits for which answer. Nothing is decided here: the rules say when an
//! answer is due, this says to whom and with what.

use std::collections::{BTreeMap, VecDeque};

use vigil_model::{Answer, ExecId, Kind, Refusal, Request, RequestId, Verb, Who};

use crate::desk::Reply;

/// Requests waiting for a verb under way; more are refused. A Delete never is.
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
    deferred: VecDeque<Deferred>,
    /// Where in `deferred` the Deletes of one process are.
    deletes: BTreeMap<Who, usize>,
}

/// Whoever asked, and for whom.
pub(crate) type Asker = (Option<RequestId>, Reply);

/// Put off while a verb is under way. Deletes of the same process are one: of them the first
/// alone is looked at, and while it has to wait the others have to.
#[derive(Debug)]
pub(crate) struct Deferred {
    pub(crate) request: Request,
    pub(crate) askers: VecDeque<Asker>,
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
        if let Request::Delete(who) = &request {
            let last = self.deferred.len();
            let place = *self.deletes.entry(who.clone()).or_insert(last);
            if let Some(same) = self.deferred.get_mut(place) {
                same.askers.push_back((from, reply));
                return;
            }
        } else if self.deferred.len() - self.deletes.len() >= DEFERRED_MAX {
            let refusal = Refusal::new(Kind::ResourceExhausted, "too many requests are waiting");
            answer(Some(reply), Err(refusal));
            return;
        }
        let askers = VecDeque::from([(from, reply)]);
        self.deferred.push_back(Deferred { request, askers });
    }

    /// The others who ask for a Delete whose first has been put off once more: not looked at.
    /// Gives them back if it was not.
    pub(crate) fn defer_with_first(&mut self, mut others: Deferred) -> Option<Deferred> {
        let Request::Delete(who) = &others.request else {
            return Some(others);
        };
        let place = self.deletes.get(who).copied();
        let Some(same) = place.and_then(|place| self.deferred.get_mut(place)) else {
            return Some(others);
        };
        same.askers.append(&mut others.askers);
        None
    }

    /// All deferred requests, to be presented again in their order.
    pub(crate) fn take_deferred(&mut self) -> VecDeque<Deferred> {
        self.deletes.clear();
        std::mem::take(&mut self.deferred)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::sync::oneshot;

    use super::*;

    /// Three thousand Deletes of an exec that is being started were each looked at whenever
    /// anything happened, until the reaper took the shim for stuck. While the first waits, the
    /// others are not looked at; a Delete of another process, and what is no Delete, is.
    #[test]
    fn deletes_of_the_same_process_are_one_look() {
        let mut replies = Replies::default();
        let exec = |id: &str| Who::Exec(ExecId::new(id.to_owned()).unwrap());
        let mut heard = Vec::new();
        let mut defer = |replies: &mut Replies, request: Request| {
            let (reply, answered) = oneshot::channel();
            heard.push(answered);
            replies.defer(request, None, reply);
        };
        defer(&mut replies, Request::Start(exec("a")));
        for _ in 0..3000 {
            defer(&mut replies, Request::Delete(exec("a")));
        }
        defer(&mut replies, Request::Delete(exec("b")));
        let mut put_off = replies.take_deferred();
        let counts: Vec<usize> = put_off.iter().map(|one| one.askers.len()).collect();
        assert_eq!(counts, [1, 3000, 1]);
        // Put off once more: the others go with it.
        let mut same = put_off.remove(1).unwrap();
        let (from, reply) = same.askers.pop_front().unwrap();
        replies.defer(same.request.clone(), from, reply);
        assert!(replies.defer_with_first(same).is_none());
        let again = replies.take_deferred();
        assert_eq!((again.len(), again[0].askers.len()), (1, 3000));
        // The first was done: each of the others is asked.
        let same = Deferred {
            request: Request::Delete(exec("a")),
            askers: VecDeque::new(),
        };
        assert!(replies.defer_with_first(same).is_some());
    }

    #[test]
    fn only_what_is_no_delete_is_ever_too_much() {
        let mut replies = Replies::default();
        let mut heard = Vec::new();
        for _ in 0..=DEFERRED_MAX {
            for request in [Request::Delete(Who::Init), Request::Pause] {
                let (reply, answered) = oneshot::channel();
                heard.push(answered);
                replies.defer(request, None, reply);
            }
        }
        let refused = |one: &mut oneshot::Receiver<_>| one.try_recv().is_ok();
        assert_eq!(
            heard
                .iter_mut()
                .filter_map(|one| refused(one).then_some(()))
                .count(),
            1
        );
    }
}
