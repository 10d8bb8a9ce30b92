//! `vigil history`: the one line each container leaves when it is gone, oldest
//! first, and whether crashes of its shims left notes. Reads `history.old` and
//! `history`; a line that cannot be read is said and hides no other.

use anyhow::{Result, anyhow};
use clap::Args as ClapArgs;
use serde_json::json;
use vigil_host::chain;
use vigil_host::enact::Line;

use crate::place::{self, Kept};
use crate::table::{Cell, Colour, render};
use crate::{Answer, Code, Exit, crashes, json, words};

/// Arguments of `vigil history`.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Only the container of this id.
    id: Option<String>,
    /// Only this containerd namespace.
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// Only the newest so many.
    #[arg(long, value_name = "N")]
    last: Option<usize>,
    /// JSON instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    kept: Kept,
}

/// Prints the lines.
pub fn run(args: &Args) -> Result<Answer> {
    let mut notes = Vec::new();
    let all = Line::all(&args.kept.run);
    place::all_may_be_read(all.iter().filter_map(|line| line.as_ref().err()))?;
    let mut told = Vec::new();
    for line in all {
        match line {
            Ok(line) => told.push(line),
            // Not a line, but all of them.
            Err(e @ vigil_host::Error::File { .. }) => return Err(e.into()),
            Err(e) => notes.push(chain(&e)),
        }
    }
    let mut lines: Vec<Line> = told
        .into_iter()
        .filter(|line| args.id.as_ref().is_none_or(|id| *id == line.id))
        .filter(|line| {
            let wanted = args.namespace.as_ref();
            wanted.is_none_or(|namespace| *namespace == line.namespace)
        })
        .collect();
    if let Some(last) = args.last {
        lines.drain(..lines.len().saturating_sub(last));
    }
    let crashes = crashes::read(&args.kept.run, &mut notes, |note| {
        args.id.as_ref().is_none_or(|id| *id == note.id)
            && (args.namespace.as_ref()).is_none_or(|name| *name == note.namespace)
    });
    if let (Some(id), true) = (&args.id, lines.is_empty() && crashes.is_empty()) {
        return Err(anyhow!("nothing in {} is of it", args.kept.run.display())
            .context(id.clone())
            .context(Exit(Code::Nothing)));
    }
    let text = if args.json {
        json::text(&json!({ "lines": lines, "crashes": crashes, "notes": notes }))
    } else {
        notes.extend(crashes::hints(&crashes));
        people(&lines, &notes)
    };
    Ok(Answer {
        text,
        code: Code::Done,
    })
}

/// A table of lines.
pub fn people(lines: &[Line], notes: &[String]) -> String {
    let titles = [
        "ENDED (UTC)",
        "NAMESPACE",
        "ID",
        "EXIT",
        "FOUND",
        "TAKEOVERS",
        "DONE",
        "LEFT",
    ];
    let rows: Vec<Vec<Cell>> = lines.iter().map(row).collect();
    let mut text = render(&titles, &rows, Colour::of_stdout());
    for note in notes {
        text.push_str("note: ");
        text.push_str(note);
        text.push('\n');
    }
    text
}

fn row(line: &Line) -> Vec<Cell> {
    let list = |items: &[String], between| {
        if items.is_empty() {
            "-".to_owned()
        } else {
            items.join(between)
        }
    };
    let (ended, exit) = match &line.exit {
        Some(exit) => (
            format!("{} {}", words::date(exit.at), words::clock(exit.at)),
            exit.status.to_string(),
        ),
        None => ("?".to_owned(), "?".to_owned()),
    };
    let done: Vec<String> = line.done.iter().map(|name| spaced(name)).collect();
    vec![
        Cell::of(ended),
        Cell::of(&line.namespace),
        Cell::of(&line.id),
        Cell::of(exit),
        Cell::of(&line.found),
        Cell::of(line.takeovers.to_string()),
        Cell::of(list(&done, ", ")),
        Cell::of(list(&line.left, "; ")),
    ]
}

/// `KillInit` as `kill init`.
fn spaced(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !text.is_empty() {
            text.push(' ');
        }
        text.extend(c.to_lowercase());
    }
    text
}
