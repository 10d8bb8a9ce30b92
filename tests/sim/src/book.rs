//! The auditor's book: what was told to whom, held against what was told
//! before and against the truth. Judges only; it never changes the world.

use std::collections::BTreeMap;

use vigil_model::audit::audit;
use vigil_model::{Exit, Published, Status, TaskEvent};

use crate::host::{Host, Seen};

/// One process for good: pid and start.
pub type Key = (u32, u64);

/// See the module.
#[derive(Debug, Default)]
pub struct Book {
    /// What was broken, in words.
    pub violations: Vec<String>,
    told: BTreeMap<Key, (Exit, String)>,
    heard: Vec<Published>,
    heard_audited: usize,
    /// The process each published exit is about.
    pub subjects: BTreeMap<u64, Key>,
    /// What was recorded may have been lost by something outside the fault
    /// model of the journal: then *unknown* may follow a known end, never
    /// another end.
    pub amnesia: bool,
    /// Recording had failed: then a known end may follow an unknown one.
    pub late: bool,
}

/// What a wait status says.
pub fn status_of(raw: i32) -> Option<Status> {
    let byte = |n: i32| u8::try_from(n & 0xff).ok();
    match (raw, raw & 0x7f) {
        (..0, _) => None,
        (_, 0) => byte(raw >> 8).map(Status::Exited),
        (_, signal) => byte(signal).map(Status::Signalled),
    }
}

impl Book {
    /// Notes a broken invariant.
    pub fn wrong(&mut self, what: impl Into<String>) {
        self.violations.push(what.into());
    }

    /// Somebody was told that this process ended so.
    pub fn tell(&mut self, host: &Host, process: Key, exit: &Exit, by: &str) {
        let truth = host.truth.get(&process).copied();
        match (exit.status, truth) {
            (Status::Unknown(_), None) if host.init == Some(process) => {
                if host.look(&host.named(process.0, process.1)) == Seen::Alive {
                    self.wrong(format!("I1: {by} tells the end of init, which runs"));
                }
            }
            (Status::Unknown(_), _) => {}
            (Status::Exited(_) | Status::Signalled(_), None) => {
                self.wrong(format!(
                    "I1: {by} tells {exit:?} of {process:?}, which runs"
                ));
            }
            (Status::Exited(_) | Status::Signalled(_), Some(raw)) => {
                if status_of(raw) != Some(exit.status) {
                    self.wrong(format!(
                        "I2: {by} tells {exit:?} of {process:?}, whose status was {raw:#x}"
                    ));
                }
            }
        }
        let unknown = matches!(exit.status, Status::Unknown(_));
        match self.told.get(&process) {
            Some((before, _)) if before == exit => {}
            Some(_) if self.amnesia && unknown => {}
            // When it began is lost with the journal, and an end is not dated before that.
            Some((before, _)) if self.amnesia && before.status == exit.status => {}
            Some((before, _))
                if (self.amnesia || self.late) && matches!(before.status, Status::Unknown(_)) => {}
            Some((before, first)) => {
                let first = first.clone();
                self.wrong(format!(
                    "I2: {by} tells {exit:?} of {process:?}, {first} told {before:?}"
                ));
            }
            None => {
                self.told.insert(process, (*exit, by.to_owned()));
            }
        }
    }

    /// What was told of a process first.
    pub fn said_of(&self, process: Key) -> Option<Exit> {
        self.told.get(&process).map(|(exit, _)| *exit)
    }

    /// containerd has got an event.
    pub fn hear(&mut self, host: &Host, event: &Published) {
        if let Some(last) = self.heard.last()
            && last.seq == event.seq
        {
            if last != event {
                self.wrong(format!(
                    "I3: event {} is repeated in other words",
                    event.seq
                ));
            }
            return;
        }
        if let (TaskEvent::Exit { exit, .. } | TaskEvent::Delete { exit, .. }, Some(process)) =
            (&event.event, self.subjects.get(&event.seq).copied())
        {
            self.tell(host, process, exit, "an event");
        }
        self.heard.push(event.clone());
    }

    /// The events containerd has got.
    pub fn heard(&self) -> &[Published] {
        &self.heard
    }

    /// Audits the story so far, if it has grown.
    pub fn audit(&mut self) {
        if self.heard.len() == self.heard_audited {
            return;
        }
        self.heard_audited = self.heard.len();
        for violation in audit(&self.heard) {
            self.wrong(format!("I3: {violation}"));
        }
    }
}
