//! Found by the simulator: a Wait on an exec that was never started had no
//! end, neither when the exec was deleted nor when its container was.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use common::{Life, at, exec, exec_plan, exit, plan, process};
use vigil_model::{Effect, Kind, Phase, Verb, What, Who, waited};

/// A running container with exec `x` added and not started.
fn with_exec() -> Life {
    let mut life = Life::default();
    let x = exec("x");
    for what in [
        What::CreateAsked(plan()),
        What::CreateDone {
            init: Some(process(1)),
            claims: Vec::new(),
        },
        What::Asked(Verb::Start),
        What::Done {
            verb: Verb::Start,
            init: None,
        },
        What::ExecAsked {
            exec: x.clone(),
            plan: exec_plan(),
        },
    ] {
        life.live(what).unwrap();
    }
    assert_eq!(waited(&life.task, &Who::Exec(x), at(1)), Ok(None));
    life
}

fn answer() -> Effect {
    Effect::AnswerWaiters(Who::Exec(exec("x")))
}

fn refused(life: &Life) -> Kind {
    let x = Who::Exec(exec("x"));
    waited(&life.task, &x, at(1)).expect_err("it waits").kind
}

#[test]
fn a_wait_on_an_exec_ends_when_the_exec_is_deleted_unstarted() {
    let mut life = with_exec();
    let effects = life.live(What::ExecDeleteAsked(exec("x"))).unwrap();
    assert!(effects.contains(&answer()), "{effects:?}");
    assert_eq!(refused(&life), Kind::NotFound);
}

#[test]
fn a_wait_on_an_unstarted_exec_ends_with_its_container() {
    let mut life = with_exec();
    life.live(What::Exited {
        who: Who::Init,
        exit: exit(0),
    })
    .unwrap();
    life.live(What::Overdue).unwrap();
    life.live(What::Asked(Verb::Delete)).unwrap();
    let deleted = What::Done {
        verb: Verb::Delete,
        init: None,
    };
    let effects = life.live(deleted).unwrap();
    assert!(matches!(life.task.standing.phase, Phase::Deleted { .. }));
    assert!(effects.contains(&answer()), "{effects:?}");
    assert_eq!(refused(&life), Kind::NotFound);
}
