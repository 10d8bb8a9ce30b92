//! The whole of the rules as one table, compared with `tests/golden/`: every
//! standing a task can have, every event. Reviewers read the difference.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::fmt::Write as _;

use vigil_model::{Event, step};

const GOLDEN: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/golden/model-table.txt"
);

fn one_line(value: &impl std::fmt::Debug) -> String {
    let text = format!("{value:?}");
    // Pids and times are noise here; who and what are not.
    let noise = ["ExecId(\"x\")", "Exec(x)"];
    let mut text = text.replace(noise[0], "x");
    for (long, short) in [
        (
            "Incarnation { pid: 1, start_ticks: 10, pid_ns: 1, boot: BootId(\"b\"), pidfd_inode: None }",
            "#1",
        ),
        (
            "Incarnation { pid: 2, start_ticks: 20, pid_ns: 1, boot: BootId(\"b\"), pidfd_inode: None }",
            "#2",
        ),
        (
            "Exit { status: Exited(7), at: Moment { secs: 9, nanos: 0 } }",
            "exit 7",
        ),
        (
            "Exit { status: Exited(3), at: Moment { secs: 9, nanos: 0 } }",
            "exit 3",
        ),
        (
            "ExecPlan { stdio: Stdio { stdin: \"\", stdout: \"\", stderr: \"\", terminal: false }, spec: \"{}\", file: None }",
            "plan",
        ),
    ] {
        text = text.replace(long, short);
    }
    if let Some(start) = text.find("(Plan {") {
        text.truncate(start);
        text.push_str("(plan)");
    }
    text
}

#[test]
fn every_phase_meets_every_event_as_the_golden_table_says() {
    let mut table = String::from(
        "What every event does in every standing. Made by crates/model/tests/table.rs;\n\
         rewritten by UPDATE_GOLDEN=1, read by people. Refusals stand behind '!'.\n",
    );
    for (name, life) in common::all_tasks() {
        writeln!(table, "\n== {name}").unwrap();
        for (event, what) in common::all_events() {
            let event_at = Event {
                at: common::at(99),
                asked: None,
                what,
            };
            let line = match step(&life.task, event_at) {
                Err(refusal) => format!("! {:?}: {}", refusal.kind, refusal.says),
                Ok(step) => {
                    let mut parts = Vec::new();
                    if let Some(record) = step.record() {
                        parts.extend(record.changes.iter().map(one_line));
                        for told in &record.publish {
                            let event = one_line(&told.event);
                            let end = event.find(" { bundle").unwrap_or(event.len());
                            parts.push(format!("<{}>", &event[..end]));
                        }
                    }
                    let effects: Vec<String> = step.intended().iter().map(one_line).collect();
                    if parts.is_empty() && effects.is_empty() {
                        "-".to_owned()
                    } else {
                        format!("{} => {}", parts.join(", "), effects.join(", "))
                    }
                }
            };
            writeln!(table, "{event:18} {line}").unwrap();
        }
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(GOLDEN, &table).unwrap();
    }
    let golden = std::fs::read_to_string(GOLDEN).unwrap_or_default();
    if golden != table {
        for (old, new) in golden.lines().zip(table.lines()) {
            assert_eq!(
                old, new,
                "first difference; UPDATE_GOLDEN=1 takes the new table over"
            );
        }
        panic!(
            "the table grew or shrank: {} -> {} lines",
            golden.lines().count(),
            table.lines().count()
        );
    }
}
