//! The blows of a life whose shim dies alone: each hits whoever serves then, and is
//! followed by one question, to see how long the container was without an answer.
//!
//! What is asked besides is the business of others; nobody waits for a blow here.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use vigil_lab::Task;

use crate::judge::Harm;
use crate::life::Life;
use crate::strike::Pair;

/// For an answer, whatever the machine does besides.
const PATIENCE: f64 = 20.0;

/// See the module.
#[derive(Debug)]
pub struct Blows<'a> {
    life: &'a Life,
    pair: &'a Pair,
    task: Task,
    took: Mutex<Vec<Duration>>,
    number: AtomicU64,
}

impl<'a> Blows<'a> {
    /// Against the shims of `pair`, asking on a connection of its own.
    #[must_use]
    pub fn new(life: &'a Life, pair: &'a Pair, task: &Task) -> Self {
        Self {
            life,
            pair,
            task: task.patient(PATIENCE),
            took: Mutex::default(),
            number: AtomicU64::new(0),
        }
    }

    /// One blow; `false` if there was nobody to hit.
    pub fn strike<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) -> bool {
        // Before it falls, so that what is answered then is not taken for unprovoked.
        self.life.kills.fetch_add(1, Ordering::SeqCst);
        let Some(at) = self.pair.strike_the_shim(&self.life.story) else {
            self.life.kills.fetch_sub(1, Ordering::SeqCst);
            return false;
        };
        let number = self.number.fetch_add(1, Ordering::SeqCst) + 1;
        scope.spawn(move || self.ask(at, number));
        true
    }

    fn ask(&self, at: Instant, number: u64) {
        let answer = self.task.connect_task(&self.life.id);
        let took = at.elapsed();
        let alone = self.number.load(Ordering::SeqCst) == number;
        match answer {
            // Another blow has fallen meanwhile: it is not this one that took so long.
            Ok(_) if !alone => {}
            Ok(_) => {
                self.life
                    .story
                    .add(format!("answered again after {took:?}"));
                let mut all = self.took.lock().unwrap_or_else(PoisonError::into_inner);
                all.push(took);
            }
            Err(_) if self.life.asked().shutdown => {}
            Err(error) => self
                .life
                .wrong(Harm::Lost, format!("Connect, after blow {number}: {error}")),
        }
    }

    /// How long each took until there was an answer.
    #[must_use]
    pub fn took(&self) -> Vec<Duration> {
        let took = self.took.lock().unwrap_or_else(PoisonError::into_inner);
        took.clone()
    }
}
