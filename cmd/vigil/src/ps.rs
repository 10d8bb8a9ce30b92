//! `vigil ps`: one line for each task of the node, each column a source of its
//! own. A source that could not be read is a `?` and a note, never a guess.

use anyhow::Result;
use clap::Args as ClapArgs;
use serde_json::json;
use vigil_host::chain;
use vigil_host::enact::Tombstone;

use crate::ask::{Ask, Asking, Belief};
use crate::look::Look;
use crate::place::{self, Node};
use crate::processes::{self, Loose};
use crate::table::{Cell, Colour, Paint, render};
use crate::{Answer, Code, json, words};

/// Arguments of `vigil ps`.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Only this containerd namespace.
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// JSON instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ask: Ask,
    #[command(flatten)]
    node: Node,
}

/// Lists the tasks.
pub fn run(args: &Args) -> Result<Answer> {
    let only = args
        .namespace
        .as_deref()
        .map(place::namespace)
        .transpose()?;
    let bundles = args.node.bundles(only.as_ref())?;
    let mut notes = bundles.notes;
    let mut wrong = !notes.is_empty();
    notes.extend(bundles.strange);
    let mut asking = Asking::new(&args.ask);
    let mut looks = Vec::new();
    for found in &bundles.ours {
        let belief = asking.belief(found.namespace.as_str(), found.id.as_str());
        let look = Look::at(found, &args.node.runc_root, &belief);
        // Deleted while we looked: then nothing of it is to be said.
        if look.found.bundle.exists() {
            looks.push(look);
        }
    }
    // The same for every task of its namespace: told once.
    for look in &mut looks {
        if let Belief::Unknown(why) = &look.belief {
            look.notes.retain(|note| note != why);
            if !notes.contains(why) {
                notes.push(why.clone());
            }
        }
    }
    wrong |= looks.iter().any(|look| look.wrong().is_some());
    let before = notes.len();
    let mut stones = stones(&args.node, &mut notes)?;
    stones.retain(|stone| {
        only.as_ref()
            .is_none_or(|only| only.as_str() == stone.namespace)
    });
    // One that cannot be read may tell of something left.
    wrong |= !stones.is_empty() || notes.len() > before;
    let loose: Vec<Loose> = processes::loose(&args.node)?
        .into_iter()
        .filter(|pair| {
            only.as_ref()
                .is_none_or(|only| *only == pair.found.namespace)
        })
        .collect();
    wrong |= !loose.is_empty();
    let nothing = looks.is_empty() && loose.is_empty();
    notes.extend(args.node.abroad(only.as_ref(), nothing)?);
    let text = if args.json {
        json::text(&json!({
            "pairs_without_bundle": loose.iter().map(Loose::value).collect::<Vec<_>>(),
            "tasks": looks.iter().map(json::task).collect::<Vec<_>>(),
            "tombstones": stones,
            "of_other_runtimes": bundles.others,
            "notes": notes,
        }))
    } else {
        people(
            &looks,
            &stones,
            &loose,
            bundles.others,
            &notes,
            Colour::of_stdout(),
        )
    };
    let code = if wrong { Code::Wrong } else { Code::Done };
    Ok(Answer { text, code })
}

/// What is left of containers whose bundles are gone.
fn stones(node: &Node, notes: &mut Vec<String>) -> Result<Vec<Tombstone>> {
    let all = Tombstone::all(&node.kept.run).unwrap_or_else(|e| vec![Err(e)]);
    place::all_may_be_read(all.iter().filter_map(|stone| stone.as_ref().err()))?;
    let read = all.into_iter();
    let read = read.filter_map(|stone| stone.map_err(|e| notes.push(chain(&e))).ok());
    Ok(read.collect())
}

fn people(
    looks: &[Look],
    stones: &[Tombstone],
    loose: &[Loose],
    others: usize,
    notes: &[String],
    colour: Colour,
) -> String {
    let titles = [
        "NAMESPACE",
        "ID",
        "RECORDED",
        "INIT",
        "CGROUP",
        "PAIR",
        "TAKEOVERS",
        "CONTAINERD",
        "VERDICT",
    ];
    let rows: Vec<Vec<Cell>> = looks.iter().map(row).collect();
    let mut text = render(&titles, &rows, colour);
    let mut line = |text_of: &str, paint| {
        text.push_str(&colour.paint(text_of, paint));
        text.push('\n');
    };
    for look in looks {
        let name = format!("{}/{}", look.found.namespace, look.found.id);
        if let Some(wrong) = look.wrong() {
            line(&format!("{name}: {wrong}"), Paint::Bad);
        }
        for note in &look.notes {
            line(&format!("{name}: note: {note}"), Paint::Plain);
        }
    }
    for stone in stones {
        let (namespace, id) = (&stone.namespace, &stone.id);
        let left = stone.left.join("; ");
        let tried = match stone.tries {
            0 => String::new(),
            tries => format!(", swept in vain {tries} times"),
        };
        line(
            &format!("{namespace}/{id}: tombstone{tried}, left of it: {left}"),
            Paint::Bad,
        );
    }
    for pair in loose {
        let (namespace, id) = (&pair.found.namespace, &pair.found.id);
        line(&format!("{namespace}/{id}: {}", pair.words()), Paint::Bad);
    }
    for note in notes {
        line(&format!("note: {note}"), Paint::Plain);
    }
    if others > 0 {
        line(
            &format!("{others} more without a file of Vigil's: other runtimes', or all is lost"),
            Paint::Faint,
        );
    }
    text
}

fn row(look: &Look) -> Vec<Cell> {
    let facts = &look.seen.facts;
    let recorded = look
        .recorded
        .task
        .as_ref()
        .map_or_else(|| "?".to_owned(), words::recorded_shortly);
    let init = match &look.seen.init {
        Some(init) => format!("{} {}", init.pid, words::shown(words::init(facts.init))),
        None => "-".to_owned(),
    };
    let group = match look.frozen {
        Some(freeze) if words::freeze(freeze) != "thawed" => {
            format!("{}, {}", words::group(facts.group), words::freeze(freeze))
        }
        Some(_) | None => words::shown(words::group(facts.group)).to_owned(),
    };
    let takeovers = look.recorded.takeovers.as_ref();
    let takeovers = takeovers.map_or_else(|| "?".to_owned(), words::takeovers);
    let paint = if look.wrong().is_some() {
        Paint::Bad
    } else {
        Paint::Good
    };
    vec![
        Cell::of(look.found.namespace.as_str()),
        Cell::of(look.found.id.as_str()),
        Cell::of(recorded),
        Cell::of(init),
        Cell::of(group),
        Cell::of(words::shown(words::life(look.pair.life))),
        Cell::of(takeovers),
        Cell::of(look.belief.words()),
        Cell(look.judgement.words.to_owned(), paint),
    ]
}
