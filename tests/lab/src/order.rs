//! The order in which a container's events may come: create, start, its execs, their
//! ends, init's end, deletion; nothing after that.
//!
//! Delivery is *at least once*: an event may be said again as long as nothing else was
//! said between. What never came is no matter of order and not looked at here.

use std::collections::{BTreeMap, BTreeSet};

use crate::events::{Event, Fact};

/// The container an event is about; none for events nobody knows.
#[must_use]
pub fn container(event: &Event) -> Option<&str> {
    Some(match &event.fact {
        Fact::Create(e) => &e.container_id,
        Fact::Start(e) => &e.container_id,
        Fact::Exit(e) => &e.container_id,
        Fact::Delete(e) => &e.container_id,
        Fact::ExecAdded(e) => &e.container_id,
        Fact::ExecStarted(e) => &e.container_id,
        Fact::Oom(e) => &e.container_id,
        Fact::Paused(e) => &e.container_id,
        Fact::Resumed(e) => &e.container_id,
        Fact::Other(_) => return None,
    })
}

/// The pid of init, if the event says it.
fn init(event: &Event) -> Option<u32> {
    match &event.fact {
        Fact::Create(e) => Some(e.pid),
        Fact::Start(e) => Some(e.pid),
        Fact::Exit(e) if e.id == e.container_id => Some(e.pid),
        Fact::Delete(e) => Some(e.pid),
        _ => None,
    }
}

/// Every breach of the order, in words.
///
/// An id may live again: a creation with another pid begins another story, and what
/// names a pid belongs to the story of that pid.
#[must_use]
pub fn breaches(events: &[Event]) -> Vec<String> {
    let mut stories: BTreeMap<(&str, usize), Vec<String>> = BTreeMap::new();
    let mut lives: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for event in events {
        if let Some(id) = container(event) {
            let pids = lives.entry(id).or_default();
            let known = init(event).and_then(|pid| pids.iter().rposition(|p| *p == pid));
            if let (Fact::Create(created), None) = (&event.fact, known) {
                pids.push(created.pid);
            }
            let life = known.unwrap_or(pids.len().saturating_sub(1));
            let story = stories.entry((id, life)).or_default();
            let short = event.short();
            if story.last() != Some(&short) {
                story.push(short);
            }
        }
    }
    let mut found = Vec::new();
    for ((id, _), story) in stories {
        if let Err(breach) = walk(&story) {
            found.push(format!("events of {id}: {breach} in {story:?}"));
        }
    }
    found
}

fn walk(story: &[String]) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for event in story {
        // An exec that has ended, or never ran, may be deleted, which nobody tells, and its
        // id used again.
        if let Some(exec) = event.strip_prefix("exec-added ") {
            let (started, exit) = (format!("exec-started {exec}"), format!("exit {exec}"));
            if !seen.contains(&started) || seen.contains(&exit) {
                for old in [event, &started, &exit] {
                    seen.remove(old);
                }
            }
        }
        let after = |other: &str| seen.contains(other);
        let exec = event.split_once(' ').map(|(_, exec)| exec);
        // Told again with something between: another life could have been meant.
        let repeated = !matches!(event.as_str(), "oom" | "paused" | "resumed") && after(event);
        let wrong = match (event.as_str(), exec) {
            _ if repeated => Some("told twice"),
            _ if after("delete") => Some("told after its deletion"),
            ("delete", _) => None,
            _ if after("exit") => Some("told after init's end"),
            ("create", _) => (!seen.is_empty()).then_some("not told first"),
            (started, Some(exec)) if started.starts_with("exec-started") => {
                (!after(&format!("exec-added {exec}"))).then_some("told before it was added")
            }
            (exit, Some(exec)) if exit.starts_with("exit ") => {
                (!after(&format!("exec-started {exec}"))).then_some("told before its start")
            }
            _ => None,
        };
        if let Some(wrong) = wrong {
            return Err(format!("{event:?} was {wrong}"));
        }
        seen.insert(event.clone());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::events::task::{TaskCreate, TaskDelete, TaskExit};

    use super::{breaches, walk};
    use crate::events::{Event, Fact};

    fn event(topic: &str, fact: Fact) -> Event {
        Event {
            topic: format!("/tasks/{topic}"),
            namespace: "n".to_owned(),
            timestamp: None,
            fact,
        }
    }

    fn life(pid: u32) -> [Event; 3] {
        let id = "c".to_owned();
        let create = TaskCreate {
            container_id: id.clone(),
            pid,
            ..Default::default()
        };
        let exit = TaskExit {
            container_id: id.clone(),
            id: id.clone(),
            pid,
            ..Default::default()
        };
        let delete = TaskDelete {
            container_id: id,
            pid,
            ..Default::default()
        };
        [
            event("create", Fact::Create(create)),
            event("exit", Fact::Exit(exit)),
            event("delete", Fact::Delete(delete)),
        ]
    }

    #[test]
    fn an_id_may_live_again() {
        let [first, second] = [life(7), life(8)];
        let whole = [&first[..], &second[..]].concat();
        assert_eq!(breaches(&whole), Vec::<String>::new());
        // Its runtime was killed, and nobody told of its end.
        let cut = [&first[..1], &second[..]].concat();
        assert_eq!(breaches(&cut), Vec::<String>::new());
        let late = [&first[..], &second[..1], &first[1..2], &second[1..]].concat();
        assert_eq!(breaches(&late).len(), 1, "an exit after its deletion");
        let twice = [&first[..2], &first[..1]].concat();
        assert_eq!(breaches(&twice).len(), 1, "the same creation twice");
    }

    fn story(text: &str) -> Vec<String> {
        text.split(", ").map(str::to_owned).collect()
    }

    #[test]
    fn orders_that_are_right() {
        for right in [
            "create, start, exec-added e, exec-started e, exit e, oom, exit, delete",
            "create, exit, delete",
            "create, start, paused, resumed, paused, resumed, exit, delete",
            "exit, delete",
            "create, start, exec-added e, exec-added e, exec-started e, exit e, exec-added e, exit, delete",
        ] {
            assert_eq!(walk(&story(right)), Ok(()), "{right}");
        }
    }

    #[test]
    fn each_breach_is_found() {
        for wrong in [
            "start, create",
            "create, start, exit, exit e",
            "create, start, exec-started e",
            "create, start, exec-added e, exit e",
            "create, start, exec-added e, exec-started e, exec-added e",
            "create, start, exit, oom",
            "create, start, exit, delete, exit",
            "create, start, delete, exit",
            "create, start, exit, delete, delete, create",
        ] {
            assert!(walk(&story(wrong)).is_err(), "{wrong}");
        }
    }
}
