//! `--stalls`: how fast is what must always be answered, while one thing about the
//! container stands still. One column a shim; a call that is not answered in seconds is
//! called blocked, since that is what its client would call it.

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use containerd_shim_protos::api;
use protobuf::Message;
use vigil_faults::stall::{Stall, Stalled};
use vigil_lab::task::{V2, V3};
use vigil_lab::{Kit, ShimBinary};

use crate::clock::Series;
use crate::line::Line;
use crate::table::COLUMNS;

/// Not answered by then is not answered.
const BLOCKED: Duration = Duration::from_secs(3);
/// What all calls of one kind may take together; a slow shim is asked less often.
const ALTOGETHER: Duration = Duration::from_secs(4);
/// What ours must reach, in milliseconds: median and 99th percentile.
const TARGETS: (f64, f64) = (1.0, 10.0);
/// A window was resized: nobody is hurt by it.
const HARMLESS: u32 = 28;

/// What is asked, in this order.
const CALLS: [&str; 6] = ["State", "Pids", "Stats", "Kill", "Pause", "Resume"];

/// One figure of the table.
#[derive(Debug, Clone, Copy)]
enum Figure {
    /// Median and 99th percentile in milliseconds, and whether every answer was a refusal.
    Answered(f64, f64, bool),
    /// One was not answered.
    Blocked,
    /// The shim hung up.
    HungUp,
    /// It could not be measured: the container was not to be had.
    Missing,
}

impl Figure {
    fn text(self) -> String {
        match self {
            Self::Answered(median, p99, false) => format!("{median:.2} / {p99:.2}"),
            Self::Answered(median, p99, true) => format!("{median:.2} / {p99:.2} refused"),
            Self::Blocked => "blocked".into(),
            Self::HungUp => "hung up".into(),
            Self::Missing => "-".into(),
        }
    }

    fn met(self) -> bool {
        matches!(self, Self::Answered(median, p99, _) if median <= TARGETS.0 && p99 <= TARGETS.1)
    }
}

/// One line of the table: a stall and a call.
#[derive(Debug)]
pub struct Answers {
    stall: String,
    call: &'static str,
    figures: [Figure; COLUMNS],
}

/// Measures all stalls with all shims, `rounds` calls of each kind.
pub fn measure(binaries: &[ShimBinary; COLUMNS], rounds: usize) -> Vec<Answers> {
    let mut lines = Vec::new();
    for stall in Stall::ALL {
        eprintln!("bench: {}", stall.name());
        let columns: Vec<[Figure; CALLS.len()]> = binaries
            .iter()
            .map(|binary| {
                of_one(binary, stall, rounds).unwrap_or_else(|error| {
                    eprintln!("note: {} while {}: {error:#}", binary.name, stall.name());
                    [Figure::Missing; CALLS.len()]
                })
            })
            .collect();
        for (at, call) in CALLS.into_iter().enumerate() {
            lines.push(Answers {
                stall: stall.name(),
                call,
                figures: std::array::from_fn(|column| columns[column][at]),
            });
        }
    }
    lines
}

fn of_one(binary: &ShimBinary, stall: Stall, rounds: usize) -> Result<[Figure; CALLS.len()]> {
    let mut kit = Kit::new(binary)?;
    let stalled = stall.make(&mut kit).context("making it stand still")?;
    let mut figures = [Figure::Missing; CALLS.len()];
    for (figure, call) in figures.iter_mut().zip(CALLS).take(4) {
        *figure = ask(&stalled, &[call], rounds)?[0];
    }
    // A container that is paused already is not paused again.
    let both = ask(&stalled, &["Pause", "Resume"], rounds)?;
    (figures[4], figures[5]) = (both[0], both[1]);
    drop(stalled.over());
    // Its drop ends the rest, also what Go's shims would leave.
    drop(kit);
    Ok(figures)
}

/// Asks `calls` in turn, over and over.
fn ask(stalled: &Stalled, calls: &[&str], rounds: usize) -> Result<Vec<Figure>> {
    let mut series = vec![Series::default(); calls.len()];
    let mut granted = vec![false; calls.len()];
    let mut ended: Vec<Option<Figure>> = vec![None; calls.len()];
    let mut line = open(stalled)?;
    let began = Instant::now();
    for _ in 0..rounds {
        for (at, call) in calls.iter().enumerate() {
            if ended[at].is_some() {
                continue;
            }
            stalled.renew()?;
            let at_call = Instant::now();
            let answered = line.try_call(call, &request(call, stalled), BLOCKED);
            let took = at_call.elapsed();
            match answered {
                Ok(Some(ok)) => {
                    series[at].push(took);
                    granted[at] |= ok;
                }
                Ok(None) => {
                    ended[at] = Some(Figure::Blocked);
                    line = open(stalled)?;
                }
                Err(_) => {
                    ended[at] = Some(Figure::HungUp);
                    match open(stalled) {
                        Ok(again) => line = again,
                        Err(_) => return Ok(vec![Figure::HungUp; calls.len()]),
                    }
                }
            }
        }
        if began.elapsed() > ALTOGETHER || ended.iter().all(Option::is_some) {
            break;
        }
    }
    let figures = series.iter().zip(granted).zip(ended);
    Ok(figures
        .map(|((series, granted), ended)| {
            ended.unwrap_or_else(|| match (series.percentile(50), series.percentile(99)) {
                (Some(median), Some(p99)) => Figure::Answered(median, p99, !granted),
                _ => Figure::Missing,
            })
        })
        .collect())
}

fn open(stalled: &Stalled) -> Result<Line> {
    let reply = &stalled.container.shim.reply;
    Line::open(&reply.socket, if reply.version >= 3 { V3 } else { V2 })
}

fn request(call: &str, stalled: &Stalled) -> Vec<u8> {
    let id = stalled.container.id.clone();
    let bytes = match call {
        // Field 1 is the id in all of them.
        "Kill" => api::KillRequest {
            id,
            signal: HARMLESS,
            ..Default::default()
        }
        .write_to_bytes(),
        _ => api::StateRequest {
            id,
            ..Default::default()
        }
        .write_to_bytes(),
    };
    bytes.unwrap_or_default()
}

/// How many of ours miss their target.
pub fn missed(lines: &[Answers]) -> usize {
    lines
        .iter()
        .filter(|l| !l.figures[COLUMNS - 1].met())
        .count()
}

/// The table, aligned or as Markdown.
pub fn table(columns: [&str; COLUMNS], lines: &[Answers], markdown: bool) -> String {
    let mut rows = vec![vec![
        "median / p99, ms".to_owned(),
        String::new(),
        columns[0].to_owned(),
        columns[1].to_owned(),
        columns[2].to_owned(),
        format!("≤ {} / {}", TARGETS.0, TARGETS.1),
    ]];
    let mut last = "";
    for line in lines {
        let first = if line.stall == last { "" } else { &line.stall };
        let mut row = vec![first.to_owned(), line.call.to_owned()];
        row.extend(line.figures.iter().map(|figure| figure.text()));
        let met = line.figures[COLUMNS - 1].met();
        row.push(if met { "met" } else { "MISSED" }.to_owned());
        rows.push(row);
        last = &line.stall;
    }
    let mut out = String::new();
    for (at, row) in rows.iter().enumerate() {
        if markdown {
            let _ = writeln!(out, "| {} |", row.join(" | "));
            if at == 0 {
                let _ = writeln!(out, "|{}", "---|".repeat(row.len()));
            }
            continue;
        }
        let mut written = String::new();
        for (cell, text) in row.iter().enumerate() {
            let width = rows.iter().map(|row| row[cell].chars().count()).max();
            let pad = " ".repeat(width.unwrap_or(0) - text.chars().count());
            let _ = write!(written, "{text}{pad}  ");
        }
        let _ = writeln!(out, "{}", written.trim_end());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_quick_answer_meets_the_target() {
        assert!(Figure::Answered(0.2, 3.0, true).met());
        for bad in [
            Figure::Answered(0.2, 11.0, false),
            Figure::Answered(2.0, 3.0, false),
            Figure::Blocked,
            Figure::HungUp,
            Figure::Missing,
        ] {
            assert!(!bad.met(), "{bad:?}");
        }
    }
}
