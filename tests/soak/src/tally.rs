//! The numbers of a soak, summed over all lives.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::plan::Step;

/// What one life adds.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// The step in which the blow fell.
    pub step: Option<Step>,
    /// Whether those who were to be killed still lived.
    pub struck: bool,
    /// Whether Create had been answered.
    pub made: bool,
    /// What `delete` said.
    pub said: Option<u32>,
    /// Whether that is unknown.
    pub unseen: bool,
    /// What the kernel says.
    pub truth: Option<u32>,
    /// How long the first `delete` took.
    pub delete_took: Duration,
    /// Answers of State that were judged.
    pub states: u64,
    /// Whether the id lived again.
    pub again: bool,
    /// Which containerd had a part in it, if one had.
    pub daemon: Option<&'static str>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Tally {
    lives: u64,
    kills: u64,
    failed: u64,
    again: u64,
    states: u64,
    steps: BTreeMap<String, u64>,
    daemons: BTreeMap<&'static str, u64>,
    own: u64,
    killed: u64,
    unknown_made: u64,
    unknown_unmade: u64,
    witnessed: u64,
    deletes: Vec<Duration>,
}

impl Tally {
    /// Adds a life that went well or not.
    pub fn add(&mut self, outcome: &Outcome, failed: bool) {
        self.lives += 1;
        self.kills += u64::from(outcome.struck);
        self.failed += u64::from(failed);
        self.again += u64::from(outcome.again);
        self.states += outcome.states;
        if let (true, Some(step)) = (outcome.struck, outcome.step) {
            let name = format!("{step:?}");
            let end = name.find([' ', '(']).unwrap_or(name.len());
            *self.steps.entry(name[..end].to_owned()).or_default() += 1;
        }
        if let Some(daemon) = outcome.daemon {
            *self.daemons.entry(daemon).or_default() += 1;
        }
        self.witnessed += u64::from(outcome.truth.is_some());
        match outcome.said {
            Some(_) if outcome.unseen && outcome.made => self.unknown_made += 1,
            Some(_) if outcome.unseen => self.unknown_unmade += 1,
            Some(137) => self.killed += 1,
            Some(_) => self.own += 1,
            None => {}
        }
        if outcome.daemon.is_none() {
            self.deletes.push(outcome.delete_took);
        }
    }

    /// Adds something wrong that belongs to no single life.
    pub fn add_failure(&mut self) {
        self.failed += 1;
    }

    /// Kills that hit.
    #[must_use]
    pub fn kills(&self) -> u64 {
        self.kills
    }

    /// Lives in which something was wrong.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut deletes = self.deletes.clone();
        deletes.sort_unstable();
        let at = |percent: usize| {
            let index = deletes.len().saturating_sub(1) * percent / 100;
            deletes.get(index).copied().unwrap_or_default().as_millis()
        };
        let made = self.own + self.killed + self.unknown_made;
        let share = |part: u64| part * 1000 / made.max(1);
        let share = share(self.unknown_made);
        writeln!(
            f,
            "lives {}, kills that hit {}, violations {}",
            self.lives, self.kills, self.failed
        )?;
        writeln!(f, "  in {:?}", self.steps)?;
        writeln!(
            f,
            "  through containerd {:?}; the same id again {}",
            self.daemons, self.again
        )?;
        writeln!(
            f,
            "  answers of State judged {}; inits whose end the kernel told us {}",
            self.states, self.witnessed
        )?;
        writeln!(
            f,
            "  `delete` said: its own code {}, 137 {}, unknown of a container {} ({}.{} %), unknown where Create was never answered {}",
            self.own,
            self.killed,
            self.unknown_made,
            share / 10,
            share % 10,
            self.unknown_unmade
        )?;
        write!(
            f,
            "  `delete` took {} ms (median), {} ms (p99), {} ms (most)",
            at(50),
            at(99),
            at(100)
        )
    }
}
