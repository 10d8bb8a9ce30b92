//! A request that an earlier shim had begun and that comes again, since it was
//! not answered: never done twice. What is under way gets somebody to answer
//! to; what is done is answered as it would have been; what the earlier one
//! undid, or never came to, is done now.

use vigil_model::{Answer, ExecPhase, Kind, Phase, Refusal, Request, RequestId, Verb, Who};

use crate::desk::Reply;
use crate::jobs::resume::died_at_it;
use crate::owner::Owner;
use crate::replies::answer;

impl Owner {
    pub(crate) fn ask_again(&mut self, request: Request, from: RequestId, reply: Reply) {
        let now = &self.task.standing;
        let phase = &now.phase;
        let init = phase.init().map(|init| init.pid);
        let done = match &request {
            Request::Create(_) => match phase {
                Phase::Creating if !self.replies.awaits_create() => {
                    self.replies.create = Some(reply);
                    return;
                }
                Phase::Empty | Phase::Creating => None,
                Phase::Created { .. }
                | Phase::Running { .. }
                | Phase::Paused { .. }
                | Phase::Stopped { .. }
                | Phase::Deleted { .. } => Some(Answer::Pid(init.unwrap_or(0))),
            },
            Request::Start(Who::Init) if now.busy == Some(Verb::Start) => {
                return self.replies.expect_verb(Verb::Start, reply);
            }
            Request::Start(Who::Init) => vigil_model::started(&self.task).map(Answer::Pid),
            Request::Start(Who::Exec(exec)) => match now.execs.get(exec).map(|exec| &exec.phase) {
                Some(ExecPhase::Starting) => {
                    return self.replies.expect_exec(exec.clone(), reply);
                }
                Some(ExecPhase::Running { process } | ExecPhase::Stopped { process, .. }) => {
                    Some(Answer::Pid(process.pid))
                }
                Some(ExecPhase::Added | ExecPhase::Failed) | None => None,
            },
            Request::Exec { exec, .. } => now.execs.contains_key(exec).then_some(Answer::Done),
            Request::Delete(Who::Exec(exec)) if !now.execs.contains_key(exec) => {
                let gone = self.task.gone.iter().rev();
                let mut gone = gone.filter(|(gone, ..)| gone == exec);
                gone.next().map(|(_, pid, exit)| Answer::Deleted {
                    pid: *pid,
                    exit: exit.of_a_life(),
                })
            }
            Request::Delete(Who::Init) if now.busy == Some(Verb::Delete) => {
                return self.replies.expect_verb(Verb::Delete, reply);
            }
            Request::Pause if now.busy == Some(Verb::Pause) => {
                return self.replies.expect_verb(Verb::Pause, reply);
            }
            Request::Resume if now.busy == Some(Verb::Resume) => {
                return self.replies.expect_verb(Verb::Resume, reply);
            }
            Request::Pause => matches!(phase, Phase::Paused { .. }).then_some(Answer::Done),
            Request::Resume => matches!(phase, Phase::Running { .. }).then_some(Answer::Done),
            Request::Kill { who, signal, .. } => {
                let (who, signal) = (who.clone(), *signal);
                return self.kill_again(&who, signal, from, reply);
            }
            Request::Update(_) if self.resumed == Some((Verb::Update, true)) => Some(Answer::Done),
            // Never twice: the first may have ended the container.
            Request::Checkpoint(_) if now.busy != Some(Verb::Checkpoint) => {
                if self.resumed != Some((Verb::Checkpoint, true)) {
                    return answer(Some(reply), Err(died_at_it()));
                }
                Some(Answer::Done)
            }
            Request::Update(_)
            | Request::Checkpoint(_)
            | Request::Delete(_)
            | Request::CloseStdin(_)
            | Request::Resize { .. }
            | Request::Shutdown
            | Request::State(_)
            | Request::Pids
            | Request::Wait(_)
            | Request::Stats
            | Request::Connect => None,
        };
        match done {
            Some(done) => answer(Some(reply), Ok(done)),
            None => self.ask(request, reply),
        }
    }

    /// SIGKILL was sent again when this shim took over. Any other signal may or
    /// may not have been delivered, if its outcome is not recorded; twice would
    /// be worse than not knowing. It stays open, since the next shim may be asked again.
    fn kill_again(&mut self, who: &Who, signal: u32, from: RequestId, reply: Reply) {
        let signalling = &self.task.standing.signalling;
        let open = signalling.iter().any(|s| s.asked == Some(from));
        if !open {
            return answer(Some(reply), Ok(Answer::Done));
        }
        let says = format!(
            "the shim died while it sent signal {signal} to {who}; whether it was delivered is not known"
        );
        answer(Some(reply), Err(Refusal::new(Kind::Unknown, says)));
    }
}
