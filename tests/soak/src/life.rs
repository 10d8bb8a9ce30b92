//! One life of a container: what every thread that takes part in it shares, and the
//! verdict at its end. How it is lived is `direct` and `daemon`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vigil_lab::{CallError, Code, Task};

use crate::judge::{Asked, Harm, Known, UNKNOWN, impossible, impossible_error, wrong_status};
use crate::plan::Plan;
use crate::story::Story;
use crate::truth::Witness;

/// See the module.
#[derive(Debug)]
pub struct Life {
    /// Container id, found in nothing else on the machine.
    pub id: String,
    /// What it shall be.
    pub plan: Plan,
    /// What happened.
    pub story: Story,
    /// Whether the blow has begun.
    pub struck: AtomicBool,
    /// Answers of State that were judged.
    pub states: AtomicU64,
    /// Whether the runtime was made to believe that the kernel does not say how one ended that is
    /// no child of the reaper's.
    pub mute: bool,
    /// Blows to one of a pair whose other lives on.
    pub kills: AtomicU64,
    asked: Mutex<Asked>,
    kill_sent: AtomicBool,
    witness: Mutex<Option<Witness>>,
    recorded: AtomicBool,
    for_delete: AtomicBool,
    told: Mutex<Vec<(String, u32)>>,
    waited: Mutex<Option<u32>>,
    faults: Mutex<Vec<(Harm, String)>>,
    /// What must not have been if the pair has outlived the blow.
    doubts: Mutex<Vec<(Harm, String)>>,
    healed: AtomicBool,
}

/// Between two questions.
const LOOK: Duration = Duration::from_millis(4);

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Life {
    /// A life to be lived.
    #[must_use]
    pub fn new(id: String, plan: Plan, mute: bool) -> Self {
        let story = Story::default();
        story.add(plan.to_string());
        Self {
            id,
            plan,
            story,
            mute,
            struck: AtomicBool::new(false),
            states: AtomicU64::new(0),
            kills: AtomicU64::new(0),
            asked: Mutex::default(),
            kill_sent: AtomicBool::new(false),
            witness: Mutex::default(),
            recorded: AtomicBool::new(false),
            for_delete: AtomicBool::new(false),
            told: Mutex::default(),
            waited: Mutex::default(),
            faults: Mutex::default(),
            doubts: Mutex::default(),
            healed: AtomicBool::new(false),
        }
    }

    /// Whether the blow has begun.
    #[must_use]
    pub fn is_struck(&self) -> bool {
        self.struck.load(Ordering::SeqCst)
    }

    /// Something that must not be.
    pub fn fault(&self, what: impl Into<String>) {
        self.wrong(Harm::Other, what);
    }

    /// The same, of a kind that is counted.
    pub fn wrong(&self, harm: Harm, what: impl Into<String>) {
        let what = what.into();
        self.story.add(format!("WRONG, {harm:?}: {what}"));
        held(&self.faults).push((harm, what));
    }

    /// Something that is right if the blow was the pair's end, and wrong if it was not.
    pub fn doubt(&self, harm: Harm, what: impl Into<String>) {
        let what = what.into();
        self.story
            .add(format!("unless it is over, {harm:?}: {what}"));
        held(&self.doubts).push((harm, what));
    }

    /// The pair has outlived the blow.
    pub fn lives_on(&self) {
        self.healed.store(true, Ordering::SeqCst);
        for (harm, what) in std::mem::take(&mut *held(&self.doubts)) {
            self.wrong(harm, format!("though the pair lives on: {what}"));
        }
    }

    /// What must not have been, so far.
    #[must_use]
    pub fn faults(&self) -> Vec<(Harm, String)> {
        held(&self.faults).clone()
    }

    /// Notes what is asked or answered.
    pub fn note(&self, change: impl FnOnce(&mut Asked)) {
        change(&mut held(&self.asked));
    }

    /// What is asked and answered so far.
    #[must_use]
    pub fn asked(&self) -> Asked {
        *held(&self.asked)
    }

    /// Notes that a signal which ends init is on its way.
    pub fn kill_is_sent(&self) {
        self.kill_sent.store(true, Ordering::SeqCst);
        self.note(|a| a.may_end = true);
    }

    /// Somebody said that init ended with `status`.
    pub fn tell(&self, who: &str, status: u32) {
        self.note(|a| a.told = true);
        held(&self.told).push((who.to_owned(), status));
    }

    /// From now on init is watched, if it is still there to be.
    pub fn watch(&self, pid: u32) {
        let mut witness = held(&self.witness);
        if witness.is_none() && pid != 0 {
            *witness = Witness::of(pid, &self.id);
            let seen = witness.is_some();
            self.story.add(format!("init is {pid}, watched: {seen}"));
        }
    }

    /// Whether a witness saw init dead.
    #[must_use]
    pub fn init_dead(&self) -> Option<bool> {
        held(&self.witness).as_ref().map(Witness::dead)
    }

    /// To be called before the first signal of the blow.
    pub fn blow_begins(&self) {
        let status = held(&self.witness).as_ref().and_then(Witness::status);
        self.recorded.store(status.is_some(), Ordering::SeqCst);
        self.story.add(format!(
            "the blow; {:?}; init dead: {:?}, reaped with: {status:?}",
            self.asked(),
            self.init_dead()
        ));
        self.struck.store(true, Ordering::SeqCst);
    }

    /// To be called before `delete` is run for the first time.
    pub fn delete_begins(&self) {
        let lives = self.init_dead() == Some(false);
        let killed = self.kill_sent.load(Ordering::SeqCst);
        self.for_delete.store(lives && !killed, Ordering::SeqCst);
        self.story.add(format!("delete; init lives: {lives}"));
    }

    /// What is known of init's end, when all is over.
    #[must_use]
    pub fn known(&self) -> Known {
        Known {
            truth: held(&self.witness).as_ref().and_then(Witness::final_status),
            recorded: self.recorded.load(Ordering::SeqCst),
            for_delete: self.for_delete.load(Ordering::SeqCst),
            code: self.plan.code,
            start: self.asked().start,
        }
    }

    /// Wait was answered.
    pub fn waited(&self, status: u32) {
        *held(&self.waited) = Some(status);
    }

    /// Whether Wait told that init ended by itself: then all its output has been delivered.
    #[must_use]
    pub fn waited_for_own_code(&self) -> bool {
        *held(&self.waited) == Some(self.plan.code)
    }

    /// Holds everything that was said of the exit against what is known of it.
    pub fn judge_told(&self, known: &Known) {
        let told = held(&self.told).clone();
        let named = told
            .iter()
            .find(|(who, status)| who != "delete" && *status != UNKNOWN);
        for (who, status) in &told {
            let status = *status;
            if let Some(why) = wrong_status(status, known) {
                self.wrong(Harm::Exit, format!("{who} said {status}: {why}"));
            } else if status == UNKNOWN && who != "delete" && !self.mute {
                let what = format!("{who} said unknown, and the kernel knows");
                self.wrong(Harm::Exit, what);
            } else if let (UNKNOWN, Some((other, known))) = (status, named)
                && self.plan.blow.victims.one_lives_on()
            {
                let what = format!("{who} said unknown, and {other} {known}");
                self.wrong(Harm::Exit, what);
            }
        }
    }

    /// Asks State over and over until the pair is gone or `stop` is set, and judges each answer.
    /// `exits` says whether the exit was published.
    pub fn ask_state(&self, task: &Task, stop: &AtomicBool, exits: impl Fn() -> bool) {
        let task = task.patient(5.0);
        let mut dead_since: Option<Instant> = None;
        while !stop.load(Ordering::SeqCst) {
            if exits() {
                self.note(|a| a.told = true);
            }
            if self.init_dead() == Some(true) && dead_since.is_none() {
                dead_since = Some(Instant::now());
            }
            let mut before = self.asked();
            before.long_dead = dead_since.is_some_and(|at| at.elapsed() > Duration::from_secs(1));
            let answer = task.state(&self.id, "");
            let after = self.asked();
            match answer {
                Ok(state) => {
                    let status = state.status.value();
                    self.states.fetch_add(1, Ordering::Relaxed);
                    if let Some(why) = impossible(status, &before, &after) {
                        let harm = if status == 3 { Harm::Lost } else { Harm::Other };
                        self.wrong(harm, format!("State says {:?}: {why}", state.status));
                    }
                    self.watch(state.pid);
                    if status == 3 {
                        self.note(|a| a.told = true);
                        held(&self.told).push(("State".into(), state.exit_status));
                    }
                }
                Err(error) => {
                    if let Some(why) = impossible_error(&error, &before, &after, false) {
                        let closed = error == CallError::Closed || error.is(Code::NotFound);
                        let harm = if closed { Harm::Lost } else { Harm::Other };
                        let what = format!("State fails, {error}: {why}");
                        if impossible_error(&error, &before, &after, self.is_struck()).is_some() {
                            self.wrong(harm, what);
                        } else {
                            self.doubt(harm, what);
                        }
                    }
                    if error == CallError::Closed {
                        return;
                    }
                }
            }
            std::thread::sleep(LOOK);
        }
    }
}
