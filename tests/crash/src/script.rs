//! Where the blows of one life fall, as text, so that a life can be named in a report and be
//! lived again: `exec:run.37b,kill.2a` kills the shim before the 37th system call of the act
//! `run` of the story `exec`, and after the 2nd of its act `kill`. `@S4` is a named point,
//! `^112b` a call of whoever takes over next, `%echo.9b` one of the reaper's in the act `echo`. Pure.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use vigil_sys::points::Point;

use crate::story::{STORIES, Story};

/// On which side of a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Edge {
    /// It is not carried out.
    Before,
    /// It is, and its answer is not seen.
    After,
}

/// Whose system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Whom {
    /// The shim that serves when the act begins.
    Serving,
    /// One that takes over during it.
    Successor,
}

/// One blow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    /// Where the shim comes past this, the first time after `start`.
    Point(Point),
    /// At a call of an act: its number in the story, the call from 1.
    Call {
        /// Index into [`Story::acts`].
        act: usize,
        /// From 1.
        call: u32,
        /// Before or after.
        edge: Edge,
    },
    /// At a call of the reaper in an act; alone in its life, since another is the reaper then.
    Reaper {
        /// Index into [`Story::acts`].
        act: usize,
        /// From 1.
        call: u32,
        /// Before or after.
        edge: Edge,
    },
    /// At a call of the next shim, from its birth; right after the blow before.
    Takeover {
        /// From 1.
        call: u32,
        /// Before or after.
        edge: Edge,
    },
}

/// One life's story and blows.
#[derive(Debug, Clone)]
pub struct Script {
    /// What is done.
    pub story: &'static Story,
    /// In the order in which they fall.
    pub blows: Vec<Blow>,
}

impl fmt::Display for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Before => "b",
            Self::After => "a",
        })
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.story.name)?;
        for (at, blow) in self.blows.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            match blow {
                Blow::Point(point) => write!(f, "{comma}@{}", point.code())?,
                Blow::Call { act, call, edge } => {
                    write!(f, "{comma}{}.{call}{edge}", self.story.acts[*act].name)?;
                }
                Blow::Reaper { act, call, edge } => {
                    write!(f, "{comma}%{}.{call}{edge}", self.story.acts[*act].name)?;
                }
                Blow::Takeover { call, edge } => write!(f, "{comma}^{call}{edge}")?,
            }
        }
        Ok(())
    }
}

/// `37b` as a number and a side.
fn place(text: &str) -> Result<(u32, Edge)> {
    let edge = match text.chars().last() {
        Some('b') => Edge::Before,
        Some('a') => Edge::After,
        _ => bail!("{text:?} does not end with b or a"),
    };
    let call = text[..text.len() - 1].parse().context("a call's number")?;
    Ok((call, edge))
}

fn blow(story: &Story, text: &str) -> Result<Blow> {
    if let Some(code) = text.strip_prefix('@') {
        let point = Point::ALL.iter().find(|point| point.code() == code);
        return Ok(Blow::Point(*point.context("no such point")?));
    }
    if let Some(rest) = text.strip_prefix('^') {
        let (call, edge) = place(rest)?;
        return Ok(Blow::Takeover { call, edge });
    }
    let (of_reaper, text) = match text.strip_prefix('%') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (name, rest) = text.split_once('.').context("neither @, ^ nor ACT.CALL")?;
    let act = story.acts.iter().position(|act| act.name == name);
    let act = act.with_context(|| format!("{} has no act {name}", story.name))?;
    let (call, edge) = place(rest)?;
    Ok(if of_reaper {
        Blow::Reaper { act, call, edge }
    } else {
        Blow::Call { act, call, edge }
    })
}

impl FromStr for Script {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, rest) = text.split_once(':').context("no STORY:")?;
        let story = STORIES.iter().find(|story| story.name == name);
        let story = story.with_context(|| format!("no story {name}"))?;
        let blows = rest.split(',').filter(|blow| !blow.is_empty());
        let blows: Vec<Blow> = blows.map(|text| blow(story, text)).collect::<Result<_>>()?;
        let mut last = 0;
        for blow in &blows {
            if let Blow::Call { act, .. } = blow {
                ensure!(*act >= last, "{text}: the acts are not in order");
                last = *act;
            }
        }
        let script = Self { story, blows };
        ensure!(
            !script.hits_the_reaper() || script.blows.len() == 1,
            "{text}: a reaper's death is alone in its life"
        );
        Ok(script)
    }
}

impl Script {
    /// Whether it is the reaper that dies.
    #[must_use]
    pub fn hits_the_reaper(&self) -> bool {
        let is = |blow: &Blow| matches!(blow, Blow::Reaper { .. });
        self.blows.iter().any(is)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for text in [
            "exec:run.37b,kill.2a",
            "whole:@S4,^112b,^112a",
            "life:",
            "life:echo.1b,^3b",
            "visit:%visit.7a",
        ] {
            assert_eq!(text.parse::<Script>().unwrap().to_string(), text);
        }
        for wrong in [
            "life:%echo.1b,%echo.2b",
            "exec",
            "no:run.1b",
            "exec:run.b",
            "exec:kill.1b,run.1b",
        ] {
            assert!(wrong.parse::<Script>().is_err(), "{wrong}");
        }
    }
}
