//! The numbers of a soak, summed over all lives.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::blows::Gap;
use crate::elder::Grown;
use crate::judge::Harm;
use crate::plan::{BURST, Step};
use crate::standing::Standing;

/// What one life adds.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// The step in which the blow, or the first of them, fell.
    pub step: Option<Step>,
    /// Blows that hit: those who were to be killed still lived.
    pub kills: u64,
    /// How long each death was felt.
    pub took: Vec<Gap>,
    /// Whether there were two again after the death of both.
    pub healed: bool,
    /// How long it took until that, or the end, was there.
    pub decided: Option<Duration>,
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

type Readings = fn(&Grown) -> &[Standing];

/// See the module.
#[derive(Debug, Default)]
pub struct Tally {
    lives: u64,
    kills: u64,
    failed: u64,
    again: u64,
    bursts: u64,
    healed: u64,
    decided: Vec<Duration>,
    states: u64,
    steps: BTreeMap<String, u64>,
    daemons: BTreeMap<&'static str, u64>,
    harms: BTreeMap<Harm, u64>,
    own: u64,
    killed: u64,
    unknown_made: u64,
    unknown_unmade: u64,
    witnessed: u64,
    deletes: Vec<Duration>,
    took: Vec<Gap>,
    elders: Vec<Grown>,
}

impl Tally {
    /// Adds a life, with what was wrong in it.
    pub fn add(&mut self, outcome: &Outcome, failed: bool, harms: &[Harm]) {
        self.lives += 1;
        self.kills += outcome.kills;
        self.failed += u64::from(failed);
        self.again += u64::from(outcome.again);
        self.bursts += u64::from(outcome.kills > u64::from(BURST));
        self.states += outcome.states;
        self.healed += u64::from(outcome.healed);
        self.decided.extend(outcome.decided);
        self.took.extend(&outcome.took);
        for harm in harms {
            *self.harms.entry(*harm).or_default() += 1;
        }
        if let (1.., Some(step)) = (outcome.kills, outcome.step) {
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

    /// Adds one that lived throughout.
    pub fn add_elder(&mut self, grown: Grown) {
        self.lives += 1;
        self.kills += grown.kills;
        self.took.extend(&grown.took);
        self.elders.push(grown);
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

    fn write_takeovers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.took.is_empty() {
            return Ok(());
        }
        for (victim, reaper) in [("a shim", false), ("a reaper", true)] {
            let of = self.took.iter().filter(|gap| gap.reaper == reaper);
            let gaps: Vec<_> = of.collect();
            if gaps.is_empty() {
                continue;
            }
            let write = |f: &mut fmt::Formatter<'_>, what: &str, of: fn(&Gap) -> Duration| {
                let mut took: Vec<_> = gaps.iter().map(|gap| of(gap)).collect();
                took.sort_unstable();
                let ms = |permille: usize| {
                    let index = (took.len() - 1) * permille / 1000;
                    took[index].as_secs_f64() * 1e3
                };
                writeln!(
                    f,
                    "  | from SIGKILL of {victim} to {what}, of {} | median {:.1} ms, p99 {:.1} ms, most {:.1} ms |",
                    took.len(),
                    ms(500),
                    ms(990),
                    ms(1000)
                )
            };
            write(f, "the next answer", |gap| gap.answer)?;
            write(f, "two again", |gap| gap.two)?;
        }
        let grew = self.elders.iter().filter(|elder| elder.reaper.len() > 1);
        let grew: Vec<_> = grew.collect();
        if grew.is_empty() {
            return Ok(());
        }
        let takeovers: usize = grew.iter().map(|elder| elder.reaper.len() - 1).sum();
        // From the beginning, or of the second half only.
        let most = |who: Readings, of: fn(&Standing) -> u64, part: usize| {
            let drifts = grew.iter().map(|elder| {
                let all = who(elder);
                Grown::drift(&all[all.len() * (part - 1) / 2..], of)
            });
            drifts.max_by_key(|drift| drift.abs()).unwrap_or(0)
        };
        let (reaper, shim): (Readings, Readings) = (|elder| &elder.reaper, |elder| &elder.shim);
        writeln!(
            f,
            "  | {} pairs that lived throughout | {takeovers} takeovers after the first of each |",
            grew.len()
        )?;
        for (name, who) in [("reaper", reaper), ("shim", shim)] {
            let last = grew.iter().filter_map(|elder| who(elder).last()).max();
            writeln!(
                f,
                "  | drift of the {name}, from the first takeover and from the middle one to the last: most of one pair | {} and {} fds, {} and {} KiB private, {} and {} KiB PSS; at the end {} |",
                most(who, |s| s.fds, 1),
                most(who, |s| s.fds, 2),
                most(who, |s| s.private, 1),
                most(who, |s| s.private, 2),
                most(who, |s| s.pss, 1),
                most(who, |s| s.pss, 2),
                last.map_or_else(String::new, ToString::to_string)
            )?;
        }
        Ok(())
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
        let share = self.unknown_made * 1000 / made.max(1);
        let harm = |harm| self.harms.get(&harm).copied().unwrap_or(0);
        writeln!(f, "  | kills that hit | {} |", self.kills)?;
        writeln!(f, "  | lives | {} |", self.lives)?;
        writeln!(
            f,
            "  | of them with {} kills | {} |",
            BURST + 1,
            self.bursts
        )?;
        if let Some(most) = self.decided.iter().max() {
            writeln!(
                f,
                "  | deaths of both after which there were two again | {} of {}; that, or the end, within {} ms |",
                self.healed,
                self.decided.len(),
                most.as_millis()
            )?;
        }
        writeln!(f, "  | of them through containerd | {:?} |", self.daemons)?;
        writeln!(f, "  | first blow in | {:?} |", self.steps)?;
        writeln!(f, "  | violations | {} |", self.failed)?;
        writeln!(f, "  | containers lost | {} |", harm(Harm::Lost))?;
        writeln!(f, "  | exits lost or wrong | {} |", harm(Harm::Exit))?;
        writeln!(f, "  | effects doubled | {} |", harm(Harm::Doubled))?;
        writeln!(f, "  | output lost or wrong | {} |", harm(Harm::Output))?;
        writeln!(f, "  | residue | {} |", harm(Harm::Residue))?;
        writeln!(f, "  | anything else | {} |", harm(Harm::Other))?;
        writeln!(
            f,
            "  | exit said: its own, 137, unknown of a container, unknown where Create was never answered | {}, {}, {} ({}.{} %), {} |",
            self.own,
            self.killed,
            self.unknown_made,
            share / 10,
            share % 10,
            self.unknown_unmade
        )?;
        writeln!(
            f,
            "  | answers of State judged; inits whose end the kernel told us; the same id again | {}; {}; {} |",
            self.states, self.witnessed, self.again
        )?;
        self.write_takeovers(f)?;
        write!(
            f,
            "  | `delete` took | median {} ms, p99 {} ms, most {} ms |",
            at(50),
            at(99),
            at(100)
        )
    }
}
