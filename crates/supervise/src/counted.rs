//! What is looked up on the host for those who ask: counters and processes. What could not be
//! looked at, for want of something, is refused and never taken for absent.

use vigil_model::{Answer, Kind, Phase, Refusal, What, show};

use crate::jobs;
use crate::owner::Owner;
use crate::replies::Outcome;

impl Owner {
    pub(crate) fn look_at_ooms(&mut self) {
        let count = self
            .hands
            .oom
            .as_mut()
            .and_then(vigil_host::cgroup::OomWatch::count);
        if let Some(count) = count
            && count > self.task.standing.ooms
        {
            self.happen(What::Oom { count });
        }
    }

    pub(crate) fn pids(&mut self) -> Outcome {
        self.look_at_exits();
        let phase = &self.task.standing.phase;
        let init = match phase {
            Phase::Empty | Phase::Creating | Phase::Deleted { .. } => {
                return Err(Refusal::new(Kind::NotFound, "container not created"));
            }
            Phase::Created { .. }
            | Phase::Running { .. }
            | Phase::Paused { .. }
            | Phase::Stopped { .. } => phase.init().map(|init| init.pid),
        };
        let alive = phase.live_init().is_some();
        let mut pids = match self.hands.cgroup.clone().filter(|_| alive) {
            Some(cgroup) => match self.hands.without_spares(|| cgroup.pids()) {
                Ok(pids) => pids,
                // Not for the container's being small: it could not be looked at.
                Err(error) if vigil_host::scarcity(&error).is_some() => {
                    return Err(jobs::refusal(&error));
                }
                Err(_) => Vec::new(),
            },
            None => Vec::new(),
        };
        // Never empty: containerd takes that for a leaked shim, and a stopped
        // task whose end it has not heard of would be lost.
        if let Some(init) = init
            && !pids.contains(&init)
        {
            pids.insert(0, init);
        }
        let execs = show::exec_pids(&self.task);
        let labelled = pids.into_iter().map(|pid| vigil_model::request::PidOf {
            pid,
            exec: execs.get(&pid).cloned(),
        });
        Ok(Answer::Pids(labelled.collect()))
    }

    pub(crate) fn stats(&mut self) -> Outcome {
        match &self.task.standing.phase {
            Phase::Empty | Phase::Creating | Phase::Deleted { .. } => {
                return Err(Refusal::new(Kind::NotFound, "container not created"));
            }
            Phase::Created { .. }
            | Phase::Running { .. }
            | Phase::Paused { .. }
            | Phase::Stopped { .. } => {}
        }
        match self.hands.stats()? {
            Some(metrics) => Ok(Answer::Stats(Box::new(metrics))),
            None => Err(Refusal::new(Kind::NotFound, "cgroup does not exist")),
        }
    }
}
