//! The blows of a life in which one of the pair dies at a time: each hits whoever has the
//! victim's place then, and is followed by one question, to see how long the container was
//! without an answer, and by a look whether there are two again.
//!
//! What is asked besides is the business of others; nobody waits for a blow here. A blow waits
//! for the last one to be made good if that, or it, is a reaper's: a shim that is not ready has
//! nothing to become a reaper with, and both at once is another soak.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use vigil_lab::{Task, by, until};

use crate::judge::Harm;
use crate::life::Life;
use crate::plan::Victims;
use crate::strike::Pair;

/// For an answer, whatever the machine does besides.
const PATIENCE: f64 = 20.0;

/// How long one death was felt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gap {
    /// From SIGKILL to the next answer.
    pub answer: Duration,
    /// And until there was seen to be a pair of two that live and serve.
    pub two: Duration,
    /// Whether it was the reaper's.
    pub reaper: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Blows<'a> {
    life: &'a Life,
    pair: &'a Pair,
    task: Task,
    victims: Victims,
    took: Mutex<Vec<Gap>>,
    number: AtomicU64,
    /// Whether the last blow was made good.
    whole: Mutex<bool>,
    changed: Condvar,
}

/// Asks after a blow that fell `at`: the answer's time, and that of two that serve again.
pub fn made_good(pair: &Pair, task: &Task, id: &str, at: Instant) -> Result<Gap, String> {
    let answer = task.connect_task(id).map_err(|e| format!("Connect: {e}"))?;
    drop(answer);
    let took = at.elapsed();
    let mut missing = String::new();
    until("", by(PATIENCE), || {
        let looked = pair.renew(task);
        missing = looked
            .as_ref()
            .err()
            .map_or(String::new(), |e| format!("{e:#}"));
        looked.ok()
    })
    .map_err(|_| format!("there are not two again: {missing}"))?;
    Ok(Gap {
        answer: took,
        two: at.elapsed(),
        reaper: false,
    })
}

impl<'a> Blows<'a> {
    /// Against `pair`, asking on a connection of its own.
    #[must_use]
    pub fn new(life: &'a Life, pair: &'a Pair, task: &Task) -> Self {
        Self {
            life,
            pair,
            task: task.patient(PATIENCE),
            victims: life.plan.blow.victims,
            took: Mutex::default(),
            number: AtomicU64::new(0),
            whole: Mutex::new(true),
            changed: Condvar::new(),
        }
    }

    /// One blow; `false` if there was nobody to hit.
    pub fn strike<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) -> bool {
        let number = self.number.load(Ordering::SeqCst) + 1;
        let reaper = self.victims.hits_the_reaper(number);
        if self.victims != Victims::Shim && !self.is_whole() {
            return false;
        }
        // Before it falls, so that what is answered then is not taken for unprovoked.
        self.life.kills.fetch_add(1, Ordering::SeqCst);
        let struck = if reaper {
            self.pair.strike_the_reaper(&self.life.story)
        } else {
            self.pair.strike_the_shim(&self.life.story)
        };
        let Some(at) = struck else {
            self.life.kills.fetch_sub(1, Ordering::SeqCst);
            return false;
        };
        self.number.store(number, Ordering::SeqCst);
        self.make_whole(false);
        scope.spawn(move || {
            self.ask(at, number, reaper);
            self.make_whole(true);
        });
        true
    }

    fn make_whole(&self, is: bool) {
        *self.whole.lock().unwrap_or_else(PoisonError::into_inner) = is;
        self.changed.notify_all();
    }

    /// Waits for it; whoever asks has said what is wrong if it does not come.
    fn is_whole(&self) -> bool {
        let whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        let longest = Duration::from_secs_f64(PATIENCE * 3.0);
        let waited = self
            .changed
            .wait_timeout_while(whole, longest, |whole| !*whole);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn ask(&self, at: Instant, number: u64, reaper: bool) {
        let answer = made_good(self.pair, &self.task, &self.life.id, at);
        let alone = self.number.load(Ordering::SeqCst) == number;
        match answer {
            // Another blow has fallen meanwhile: it is not this one that took so long.
            Ok(_) if !alone => {}
            Ok(gap) => {
                let Gap { answer, two, .. } = gap;
                let line = format!("answered again after {answer:?}, two after {two:?}");
                self.life.story.add(line);
                let mut all = self.took.lock().unwrap_or_else(PoisonError::into_inner);
                all.push(Gap { reaper, ..gap });
            }
            Err(_) if self.life.asked().shutdown || !alone => {}
            Err(error) => self
                .life
                .wrong(Harm::Lost, format!("after blow {number}: {error}")),
        }
    }

    /// How long each was felt.
    #[must_use]
    pub fn took(&self) -> Vec<Gap> {
        let took = self.took.lock().unwrap_or_else(PoisonError::into_inner);
        took.clone()
    }
}
