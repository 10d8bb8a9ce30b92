//! Found by the simulator: a Wait on an exec that was never started had no
//! end, neither when the exec was deleted nor when its container was.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use common::{Life, at, exec, exec_plan, exit, plan, process};
use vigil_model::{Effect, ExecPhase, Kind, Phase, Verb, What, Who, request::Shown, show, waited};

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

/// Init dies while an exec is being started: until that start is over the container counts
/// as running, as the Go shim has it, whatever deadline goes by; what comes up then is
/// killed, and told before init's end.
#[test]
fn init_s_end_is_told_after_the_start_that_was_under_way() {
    let mut life = with_exec();
    let x = || exec("x");
    life.live(What::ExecStartAsked(x())).unwrap();
    let who = Who::Init;
    life.live(What::Exited { who, exit: exit(0) }).unwrap();
    let shown = |life: &Life| show::state(&life.task, "c", &Who::Init).unwrap().shown;
    for what in [
        What::RestGone,
        What::Drained(Who::Init),
        What::Overdue,
        What::ExecAsked {
            exec: exec("y"),
            plan: exec_plan(),
        },
    ] {
        life.live(what).unwrap();
        assert_eq!(shown(&life), Shown::Running);
        assert_eq!(waited(&life.task, &Who::Init, at(1)), Ok(None));
    }
    let effects = life.live(What::ExecStartDone {
        exec: x(),
        process: process(2),
    });
    let effects = effects.unwrap();
    let killed = |effect: &Effect| matches!(effect, Effect::Discard { .. });
    assert!(effects.iter().any(killed), "{effects:?}");
    assert!(effects.contains(&Effect::ArmOverdue), "{effects:?}");
    assert_eq!(waited(&life.task, &Who::Init, at(1)), Ok(None));
    life.live(What::Overdue).unwrap();
    assert!(matches!(
        life.task.standing.execs[&x()].phase,
        ExecPhase::Stopped { told: true, .. }
    ));
    assert_eq!(shown(&life), Shown::Stopped);
    assert_eq!(waited(&life.task, &Who::Init, at(1)), Ok(Some(exit(0))));
}
