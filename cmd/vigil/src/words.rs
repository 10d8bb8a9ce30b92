//! One wording for each value, for tables and JSON alike. What could not be
//! seen is `unknown`; a table shows it as `?`.

use std::fmt::Write as _;

use vigil_host::cgroup::Freeze;
use vigil_host::enact::status_of;
use vigil_journal::takeovers::{Takeover, Takeovers};
use vigil_model::{Moment, Phase, Status, Task, TaskEvent};
use vigil_reconcile::{Action, Boot, Group, Init, Present, RuncDelete};
use vigil_relay::cause::Cause;

use crate::pair::{Life, Lock, Seen};

/// For what could not be seen.
pub const UNKNOWN: &str = "unknown";

/// A value's word as a table shows it.
pub fn shown(word: &str) -> &str {
    if word == UNKNOWN { "?" } else { word }
}

/// A phase, without its data.
pub fn phase(phase: &Phase) -> &'static str {
    match phase {
        Phase::Empty => "none",
        Phase::Creating => "creating",
        Phase::Created { .. } => "created",
        Phase::Running { .. } => "running",
        Phase::Paused { .. } => "paused",
        Phase::Stopped { .. } => "stopped",
        Phase::Deleted { .. } => "deleted",
    }
}

/// A phase with how it ended, if it did; why that is not known is for `show`.
pub fn recorded_shortly(task: &Task) -> String {
    let word = phase(&task.standing.phase);
    match &task.standing.phase {
        Phase::Stopped { exit, .. } | Phase::Deleted { exit, .. } => match exit.status {
            Status::Unknown(_) => format!("{word}, {UNKNOWN}"),
            status => format!("{word}, {status}"),
        },
        Phase::Empty
        | Phase::Creating
        | Phase::Created { .. }
        | Phase::Running { .. }
        | Phase::Paused { .. } => word.to_owned(),
    }
}

/// Init, as seen.
pub fn init(init: Init) -> &'static str {
    match init {
        Init::Unnamed => "unnamed",
        Init::Alive => "alive",
        Init::Dead => "dead",
        Init::Unknown => UNKNOWN,
    }
}

/// The cgroups, as seen.
pub fn group(group: Group) -> &'static str {
    match group {
        Group::Absent => "absent",
        Group::Empty => "empty",
        Group::Populated => "populated",
        Group::Foreign => "not ours",
        Group::Unknown => UNKNOWN,
    }
}

/// The freezer.
pub fn freeze(freeze: Freeze) -> &'static str {
    match freeze {
        Freeze::Thawed => "thawed",
        Freeze::Freezing => "freezing",
        Freeze::Frozen => "frozen",
    }
}

/// The boot of the record.
pub fn boot(boot: Boot) -> &'static str {
    match boot {
        Boot::Same => "same",
        Boot::Other => "other",
        Boot::Unknown => UNKNOWN,
    }
}

/// Whether a thing is there.
pub fn present(present: Present) -> &'static str {
    match present {
        Present::Yes => "there",
        Present::No => "absent",
        Present::Unknown => UNKNOWN,
    }
}

/// How far `runc delete` came; with its state gone, all the way.
pub fn runc_delete(came: RuncDelete, state: Present) -> &'static str {
    match (came, state) {
        (RuncDelete::NotTried, _) => "not called",
        (RuncDelete::Begun, Present::Yes | Present::Unknown) => "begun",
        (RuncDelete::Begun, Present::No) | (RuncDelete::Done, _) => "done",
    }
}

/// A pair.
pub fn life(life: Life) -> &'static str {
    match life {
        Life::Alive => "alive",
        Life::Ending => "ending",
        Life::Gone => "gone",
        Life::Unknown => UNKNOWN,
    }
}

/// Its lock.
pub fn lock(lock: Lock) -> &'static str {
    match lock {
        Lock::Held => "held",
        Lock::Free => "free",
        Lock::Missing => "missing",
        Lock::Unknown => UNKNOWN,
    }
}

/// A pair in one line.
pub fn pair(seen: &Seen) -> String {
    let mut text = format!("lock {}", shown(lock(seen.lock)));
    for (role, half) in [("reaper", seen.reaper), ("shim", seen.shim)] {
        if let Some(half) = half {
            let state = match half.alive {
                Some(true) => "alive",
                Some(false) => "dead",
                None => "?",
            };
            let _ = write!(text, ", {role} {state}");
        }
    }
    text
}

/// What an action does.
pub fn action(action: Action) -> &'static str {
    match action {
        Action::KillInit => "SIGKILL to init",
        Action::KillCgroup => "kill everything in its cgroup",
        Action::KillBelow => "SIGKILL to what descends from its reaper",
        Action::Thaw => "thaw its cgroup",
        Action::RuncDelete => "runc delete --force, with the poststop hooks",
        Action::Unmount => "unmount at and below its rootfs",
        Action::RemoveCgroups => "remove its cgroups",
        Action::RemoveRuncState => "remove runc's state of it",
        Action::UnlinkSocket => "unlink its socket",
        Action::Tombstone => "name in a tombstone what would not go, if anything",
        Action::WriteHistory => "write its line of history",
        Action::AnswerExit => "say how init ended, as far as anyone knows",
    }
}

/// Why one shim took over from another, in a few words.
pub fn cause(cause: &Cause) -> String {
    match cause {
        Cause::Died(raw) => match status_of(*raw) {
            Some(status) => format!("died: {status}"),
            None => format!("died: {raw:#x}"),
        },
        Cause::Stuck => "stuck".to_owned(),
        Cause::Asked => "asked to".to_owned(),
        Cause::Upgrade => "upgrade".to_owned(),
        Cause::Heir => "the reaper died".to_owned(),
        Cause::Refused(_) => "upgrade refused".to_owned(),
        Cause::Looping(times, _) => format!("crash-looping, {times} in a row"),
        Cause::Other(word) => word.clone(),
    }
}

/// When it was.
pub fn moment(at: Moment) -> String {
    format!("{} {} UTC", date(at), clock(at))
}

/// All takeovers of a pair in one cell: how many, and of the last why and when.
pub fn takeovers(told: &Takeovers) -> String {
    match told.last.back() {
        Some(last) => {
            let (cause, at) = (cause(&Cause::parse(&last.cause)), moment(taken(last)));
            format!("{}, {cause}, {at}", told.count)
        }
        None => "-".to_owned(),
    }
}

/// When a takeover was.
pub fn taken(one: &Takeover) -> Moment {
    Moment {
        secs: one.at_secs,
        nanos: one.at_nanos,
    }
}

/// What containerd was told.
pub fn event(event: &TaskEvent) -> String {
    match event {
        TaskEvent::Create { pid, .. } => format!("create, pid {pid}"),
        TaskEvent::Start { pid } => format!("start, pid {pid}"),
        TaskEvent::ExecAdded { exec } => format!("exec {exec} added"),
        TaskEvent::ExecStarted { exec, pid } => format!("exec {exec} started, pid {pid}"),
        TaskEvent::Oom => "out of memory".to_owned(),
        TaskEvent::Paused => "paused".to_owned(),
        TaskEvent::Resumed => "resumed".to_owned(),
        TaskEvent::Exit { who, exit, .. } => format!("exit of {who}, {}", exit.status),
        TaskEvent::Delete { exit, .. } => format!("delete, {}", exit.status),
    }
}

/// Time of day in UTC, to the millisecond.
pub fn clock(at: Moment) -> String {
    let day = at.secs.rem_euclid(86_400);
    let (hours, minutes, seconds) = (day / 3600, day / 60 % 60, day % 60);
    format!(
        "{hours:02}:{minutes:02}:{seconds:02}.{:03}",
        at.nanos / 1_000_000
    )
}

/// The date in UTC.
pub fn date(at: Moment) -> String {
    // Years of March to February, so that the leap day comes last; 400 of
    // them are 146097 days. Day 0 is 0000-03-01, 719468 days before 1970.
    let days = at.secs.div_euclid(86_400) + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    format!("{:04}-{month:02}-{day:02}", era * 400 + year + carry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (secs, expected) in [
            (0, "1970-01-01"),
            (-1, "1969-12-31"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_763_716_381, "2025-11-21"),
            (4_107_542_399, "2100-02-28"),
            (4_107_542_400, "2100-03-01"),
        ] {
            assert_eq!(date(Moment { secs, nanos: 0 }), expected);
        }
    }
}
