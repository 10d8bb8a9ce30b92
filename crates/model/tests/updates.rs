//! An update has a place of its own beside the other verbs; in journals from the time
//! when it had not, it is found all the same.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use common::Life;
use vigil_model::{Effect, Kind, Phase, Record, Task, Verb, What, outstanding};

const RUNNING: [&str; 4] = ["create asked", "create done", "start asked", "start done"];

fn running(more: &[&str]) -> Life {
    Life::through(&[&RUNNING[..], more].concat())
}

fn asked(life: &mut Life, verb: Verb) -> Result<Vec<Effect>, Kind> {
    life.live(What::Asked(verb)).map_err(|refusal| refusal.kind)
}

#[test]
fn pause_and_resume_pass_an_update_and_leave_it_under_way() {
    let mut life = running(&["update asked", "pause asked", "pause done"]);
    assert!(matches!(life.task.standing.phase, Phase::Paused { .. }));
    assert!(life.task.standing.updating);
    let effects = asked(&mut life, Verb::Resume).unwrap();
    assert_eq!(effects, [Effect::Run(Verb::Resume)]);
    // Both are to be taken up by whoever takes over.
    let undone = outstanding(&life.task);
    assert!(undone.contains(&Effect::Run(Verb::Resume)));
    assert!(undone.contains(&Effect::Run(Verb::Update)));
    life.live(What::Failed(Verb::Update)).unwrap();
    assert_eq!(
        life.task.standing.verbs().collect::<Vec<_>>(),
        [Verb::Resume]
    );
}

#[test]
fn what_the_runtime_writes_its_state_for_waits_for_the_update() {
    let mut created = Life::through(&["create asked", "create done", "update asked"]);
    assert_eq!(asked(&mut created, Verb::Start), Err(Kind::Later));
    let mut running = running(&["update asked"]);
    assert_eq!(asked(&mut running, Verb::Update), Err(Kind::Later));
    assert_eq!(asked(&mut running, Verb::Checkpoint), Err(Kind::Later));
    let mut other = self::running(&["checkpoint asked"]);
    for verb in [Verb::Pause, Verb::Resume, Verb::Update] {
        assert_eq!(asked(&mut other, verb), Err(Kind::Later), "{verb}");
    }
}

#[test]
fn a_delete_waits_for_no_update_and_each_is_answered() {
    let end = ["update asked", "init exited", "rest gone", "init drained"];
    let mut life = running(&end);
    let effects = asked(&mut life, Verb::Delete).unwrap();
    assert_eq!(effects, [Effect::Run(Verb::Delete)]);
    let verb = Verb::Delete;
    let effects = life.live(What::Done { verb, init: None }).unwrap();
    assert!(effects.contains(&Effect::AnswerVerb(Verb::Delete)));
    let effects = life.live(What::Failed(Verb::Update)).unwrap();
    assert_eq!(effects, [Effect::AnswerVerb(Verb::Update)]);
    assert_eq!(life.task.standing.verbs().next(), None);
}

/// A snapshot, and the records after it, as an earlier version wrote them.
#[test]
fn an_update_recorded_as_any_other_verb_is_read_as_one() {
    let life = running(&[]);
    let text = String::from_utf8(life.task.encode().unwrap()).unwrap();
    let old = text.replacen("\"busy\":null", "\"busy\":\"update\"", 1);
    assert_ne!(old, text);
    let mut task = Task::decode(old.as_bytes()).unwrap();
    assert_eq!(task.standing.verbs().collect::<Vec<_>>(), [Verb::Update]);
    assert!(outstanding(&task).contains(&Effect::Run(Verb::Update)));
    let at = r#""at":{"secs":5,"nanos":0}"#;
    let apply = |task: &mut Task, changes: &str| {
        let record = format!("{{{at},\"changes\":[{changes}]}}");
        task.apply(&Record::decode(record.as_bytes()).unwrap());
        task.standing.verbs().collect::<Vec<_>>()
    };
    assert_eq!(apply(&mut task, "\"idle\""), []);
    assert_eq!(apply(&mut task, "{\"busy\":\"update\"}"), [Verb::Update]);
    assert_eq!(apply(&mut task, "\"idle\""), []);
    assert_eq!(apply(&mut task, "{\"busy\":\"pause\"}"), [Verb::Pause]);
    assert_eq!(apply(&mut task, "\"idle\""), []);
}
