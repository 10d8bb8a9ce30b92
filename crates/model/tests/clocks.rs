//! Found by the fault suite: with the clock set back between start and exit, the end was
//! before the beginning, which clients take for the end of an earlier life.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use common::{Life, at, exit, plan, process};
use vigil_model::{Exit, Phase, Verb, What, Who};

/// A running container, begun at the times the common life gives its events.
fn running() -> Life {
    let mut life = Life::default();
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
    ] {
        life.live(what).unwrap();
    }
    life
}

fn ended(life: &Life) -> Exit {
    match life.task.standing.phase {
        Phase::Stopped { exit, .. } => exit,
        ref phase => panic!("{phase:?}"),
    }
}

fn ends(life: &mut Life, exit: Exit) {
    let who = Who::Init;
    life.live(What::Exited { who, exit }).unwrap();
}

#[test]
fn an_end_is_not_before_the_beginning() {
    let mut life = running();
    let began = life.task.story.back().unwrap().0;
    let early = Exit {
        at: at(began.secs - 3600),
        ..exit(7)
    };
    ends(&mut life, early);
    assert_eq!(ended(&life).status, early.status);
    assert_eq!(ended(&life).at, began);
    // What is on record is told as it is, whatever the clock says later.
    assert_eq!(life.task.dated(early), early);
}

#[test]
fn an_end_after_the_beginning_keeps_its_time() {
    let mut life = running();
    let began = life.task.story.back().unwrap().0;
    let late = Exit {
        at: at(began.secs + 3600),
        ..exit(7)
    };
    ends(&mut life, late);
    assert_eq!(ended(&life), late);
}
