//! A life as a file: its conditions, then one action a line. Written when an
//! invariant breaks, shortened as far as that is simple, lived through again.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use crate::action::{Action, Mood, choose};
use crate::rng::Rng;
use crate::world::{Life, World};

/// Longest life, in actions.
const LIFE_MAX: usize = 2000;

/// See the module.
#[derive(Debug, Clone)]
pub struct History {
    /// What it was lived with.
    pub life: Life,
    /// What happened.
    pub actions: Vec<Action>,
}

/// What a run came to.
#[derive(Debug, Default)]
pub struct Run {
    /// Actions that did something.
    pub steps: u64,
    /// Lives that came to their end.
    pub lives: u64,
    /// The first life that broke an invariant, and what it broke.
    pub failed: Option<(History, Vec<String>)>,
}

impl History {
    /// Lives through it; what it breaks.
    pub fn live(&self) -> Vec<String> {
        let mut world = World::new(self.life);
        for action in &self.actions {
            world.apply(action);
        }
        world.book.violations
    }

    /// The same with fewer actions, as long as the same kind of thing breaks.
    #[must_use]
    pub fn shortened(&self) -> Self {
        let kind = |broken: &[String]| {
            let first = broken.first()?;
            Some(first.split(':').next()?.to_owned())
        };
        let wanted = kind(&self.live());
        let mut best = self.clone();
        let mut chunk = best.actions.len().next_power_of_two();
        while chunk > 0 {
            let mut at = 0;
            while at < best.actions.len() {
                let mut less = best.clone();
                let end = (at + chunk).min(less.actions.len());
                less.actions.drain(at..end);
                if kind(&less.live()) == wanted {
                    best = less;
                } else {
                    at += chunk;
                }
            }
            chunk /= 2;
        }
        best
    }

    /// The file's text.
    pub fn encode(&self) -> Result<String> {
        let mut text = serde_json::to_string(&self.life)?;
        for action in &self.actions {
            write!(text, "\n{}", serde_json::to_string(action)?)?;
        }
        text.push('\n');
        Ok(text)
    }

    /// Reads it back.
    pub fn decode(text: &str) -> Result<Self> {
        let mut lines = text.lines().filter(|line| !line.is_empty());
        let life = lines.next().context("an empty history")?;
        let life = serde_json::from_str(life).context("line 1")?;
        let actions = lines
            .enumerate()
            .map(|(at, line)| {
                serde_json::from_str(line).with_context(|| format!("line {}", at + 2))
            })
            .collect::<Result<_>>()?;
        Ok(Self { life, actions })
    }

    /// Writes it to a file.
    pub fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.encode()?).with_context(|| path.display().to_string())
    }
}

/// One life after another on the same host until so many steps are done or
/// something breaks. `bend` changes a life's conditions before it begins.
pub fn run(seed: u64, steps: u64, bend: impl Fn(&mut Life)) -> Run {
    let mut rng = Rng::new(seed);
    let mut run = Run::default();
    let (mut next_pid, mut ticks) = (100, 10);
    while run.steps < steps {
        let mut life = Life::draw(&mut rng, next_pid, ticks);
        bend(&mut life);
        let mood = Mood::draw(&mut rng);
        let mut world = World::new(life);
        let mut actions = Vec::new();
        while !world.over {
            let action = if actions.len() < LIFE_MAX {
                choose(&world, &mood, &mut rng)
            } else {
                Action::Calm
            };
            // What did nothing is kept too: time goes on, and it is cheap.
            run.steps += u64::from(world.apply(&action));
            actions.push(action);
        }
        run.lives += 1;
        next_pid = world.host.next_pid();
        ticks = world.host.ticks;
        if !world.book.violations.is_empty() {
            run.failed = Some((History { life, actions }, world.book.violations));
            return run;
        }
    }
    run
}
