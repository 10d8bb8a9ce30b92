//! The end of a life: nothing goes wrong any more, and everything must come to
//! a good end. This is where liveness is judged.

use vigil_journal::crash::Stop;
use vigil_model::{Phase, TaskEvent, Verb, Who};

use crate::action::Ask;
use crate::recovery::Trouble;
use crate::world::World;

impl World {
    /// Nothing goes wrong any more: everything must come to a good end.
    pub(crate) fn calm(&mut self) {
        self.fuse = None;
        self.full = false;
        self.disk.limit_space(None);
        self.disk.stop_at(Stop {
            at: usize::MAX,
            torn: 0,
        });
        self.containerd = true;
        for pid in self.host.alive(|process| process.stuck) {
            self.host.wake(pid);
        }
        let whole = self
            .shim
            .as_ref()
            .is_some_and(|shim| shim.leaving.is_none());
        if whole && self.host.reaper {
            self.end_by_shutdown();
        } else {
            self.settle();
            self.leave();
            self.settle();
            self.leave();
        }
        self.end_by_delete();
        self.over = true;
    }

    /// Lets everything under way go on until nothing does.
    fn settle(&mut self) {
        for _ in 0..400 {
            let mut moved = false;
            for number in self.host.runcs.keys().copied().collect::<Vec<_>>() {
                moved |= self.host.advance_runc(number, true);
            }
            moved |= self.bury(u32::MAX, false) > 0;
            let jobs = self.shim.iter().flat_map(|shim| shim.jobs.keys());
            for number in jobs.copied().collect::<Vec<_>>() {
                moved |= !self.is_timer(number) && self.turn(|turn| turn.advance(number, true));
            }
            self.turn(|turn| turn.look_at_exits().map(|()| true));
            moved |= self.deliver(true);
            if !moved {
                return;
            }
        }
        self.book.wrong("liveness: it never comes to rest");
    }

    fn request(&mut self, ask: Ask) {
        self.turn(|turn| turn.ask(ask).map(|()| true));
        self.settle();
    }

    fn end_by_shutdown(&mut self) {
        self.settle();
        let phase = |world: &Self| {
            let shim = world.shim.as_ref();
            shim.map(|shim| shim.task.standing.phase.clone())
        };
        if let Some(Phase::Paused { .. }) = phase(self) {
            self.request(Ask::Verb(Verb::Resume));
        }
        if let Some(Phase::Running { .. } | Phase::Created { init: Some(_) }) = phase(self) {
            self.request(Ask::Wait(Who::Init));
            self.request(Ask::Kill {
                who: Who::Init,
                signal: 9,
                all: true,
            });
            if !matches!(phase(self), Some(Phase::Stopped { told: true, .. })) {
                let standing = self.shim.as_ref().map(|shim| &shim.task.standing);
                self.book.wrong(format!(
                    "liveness: killed, and its end is not told: {standing:?}"
                ));
                return;
            }
        }
        if !matches!(phase(self), Some(Phase::Empty | Phase::Deleted { .. })) {
            self.request(Ask::Verb(Verb::Delete));
            if !matches!(phase(self), Some(Phase::Deleted { .. })) {
                let standing = self.shim.as_ref().map(|shim| &shim.task.standing);
                self.book
                    .wrong(format!("liveness: it cannot be deleted: {standing:?}"));
                return;
            }
        }
        let Some(shim) = &self.shim else {
            self.book.wrong("liveness: the shim is gone in a calm");
            return;
        };
        let unanswered = shim.unanswered();
        if !unanswered.is_empty() {
            self.book
                .wrong(format!("liveness: never answered: {unanswered:?}"));
        }
        // Of a Create that was not undone containerd asks Delete, is refused,
        // and runs `delete`.
        let remains = shim.task.standing.remains;
        self.everything_told();
        self.request(Ask::Shutdown);
        if self.shim.is_some() || self.host.reaper {
            self.book.wrong("liveness: the pair does not leave");
        }
        if !remains && !self.host.tombstone {
            self.nothing_left(true);
        }
    }

    /// Every start was followed by an exit, every Create by a Delete.
    fn everything_told(&mut self) {
        let heard = self.book.heard();
        let count = |wanted: fn(&TaskEvent) -> bool| {
            heard.iter().filter(|told| wanted(&told.event)).count()
        };
        let starts = count(|e| matches!(e, TaskEvent::ExecStarted { .. }));
        let ends = count(|e| {
            matches!(
                e,
                TaskEvent::Exit {
                    who: Who::Exec(_),
                    ..
                }
            )
        });
        let creates = count(|e| matches!(e, TaskEvent::Create { .. }));
        let deletes = count(|e| matches!(e, TaskEvent::Delete { .. }));
        let started = count(|e| matches!(e, TaskEvent::Start { .. }));
        let exits = count(|e| matches!(e, TaskEvent::Exit { who: Who::Init, .. }));
        if starts != ends || creates != deletes || started > exits || exits > 1 {
            let story: Vec<_> = heard.iter().map(|told| &told.event).collect();
            self.book
                .wrong(format!("liveness: not all is told: {story:#?}"));
        }
    }

    /// `delete`, until it answers, and once more.
    fn end_by_delete(&mut self) {
        self.settle();
        for _ in 0..3 {
            self.answered = None;
            self.delete(Trouble::default());
            if self.answered.is_some() {
                break;
            }
        }
        if self.answered.is_none() {
            self.book.wrong("liveness: delete never succeeds");
        }
        self.delete(Trouble::default());
        self.host.tombstone = false;
        self.nothing_left(true);
        let hooks = self.host.hooks.clone();
        if hooks.poststop < hooks.create && !hooks.interrupted {
            self.book.wrong(format!("poststop never ran: {hooks:?}"));
        }
    }
}
