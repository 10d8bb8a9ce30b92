//! What is known of a task as JSON, for scripts. Every key is always there;
//! what could not be seen is the string `unknown`, what there is none of is
//! null.

use serde_json::{Value, json};
use vigil_journal::takeovers::Takeovers;
use vigil_model::{Exit, Task};
use vigil_relay::cause::Cause;

use crate::ask::Belief;
use crate::look::Look;
use crate::pair::Half;
use crate::words;

/// One task.
pub fn task(look: &Look) -> Value {
    let facts = &look.seen.facts;
    let task = look.recorded.task.as_ref();
    json!({
        "namespace": look.found.namespace.as_str(),
        "id": look.found.id.as_str(),
        "bundle": look.found.bundle.display().to_string(),
        "moved_from": look.found.moved_from,
        "verdict": look.judgement.words,
        "wrong": look.wrong(),
        "row": look.row.map_or("no row", |row| row.name),
        "recorded": task.map_or(json!(words::UNKNOWN), recorded),
        "observed": {
            "boot": words::boot(facts.boot),
            "init": words::init(facts.init),
            "pid": look.seen.init.as_ref().map(|init| init.pid),
            "exit": look.seen.exit.map(exit),
            "cgroup": words::group(facts.group),
            "freezer": look.frozen.map(words::freeze),
            "runc_state": words::present(facts.runc_state),
            "mounts": words::present(facts.mounts),
            "socket": look.subject.socket.as_ref().map(|_| words::present(facts.socket)),
        },
        "pair": {
            "life": words::life(look.pair.life),
            "lock": words::lock(look.pair.lock),
            "reaper": look.pair.reaper.map(half),
            "shim": look.pair.shim.map(half),
            "stopped": look.pair.stopped,
        },
        "takeovers": look.recorded.takeovers.as_ref().map_or(json!(words::UNKNOWN), takeovers),
        "published": look.published.as_ref().map(|telling| json!({
            "events": telling.events,
            "waiting": telling.waiting,
            "dropped": telling.dropped,
            "last_taken": telling.last.as_ref().map(|event| words::event(&event.event)),
        })),
        "containerd": match &look.belief {
            Belief::Unknown(_) => words::UNKNOWN,
            belief @ (Belief::NotAsked | Belief::NoTask | Belief::Status(_)) => belief.words(),
        },
        "notes": look.notes,
    })
}

fn recorded(task: &Task) -> Value {
    let standing = &task.standing;
    json!({
        "phase": words::phase(&standing.phase),
        "pid": standing.phase.init().map(|init| init.pid),
        "exit": task.standing.phase.exit().map(exit),
        "under_way": under_way(task),
        "execs": standing.execs.len(),
        "ooms": standing.ooms,
    })
}

fn under_way(task: &Task) -> Option<String> {
    let verbs: Vec<String> = task.standing.verbs().map(|verb| verb.to_string()).collect();
    (!verbs.is_empty()).then(|| verbs.join(", "))
}

fn takeovers(told: &Takeovers) -> Value {
    let story = told.last.iter().map(|one| {
        let cause = Cause::parse(&one.cause);
        let why = match &cause {
            Cause::Refused(why) | Cause::Looping(_, why) => Some(why),
            _ => None,
        };
        json!({ "at": words::taken(one), "cause": words::cause(&cause), "why": why })
    });
    json!({ "count": told.count, "story": story.collect::<Vec<_>>() })
}

/// An exit, as the journal has it.
pub fn exit(exit: Exit) -> Value {
    serde_json::to_value(exit).unwrap_or(Value::Null)
}

fn half(half: Half) -> Value {
    json!({
        "pid": half.pid,
        "alive": half.alive.map_or(json!(words::UNKNOWN), Value::Bool),
    })
}

/// A document for stdout.
pub fn text(value: &Value) -> String {
    format!("{value:#}\n")
}
