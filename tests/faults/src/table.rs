//! What holds for whom, side by side: one row a class, one column a shim.

use std::collections::BTreeMap;
use std::fmt::Write;

use vigil_lab::ShimBinary;
use vigil_lab::suite::{Ended, Outcome};

use crate::case::class_of;
use crate::differences::OPEN;

/// The shims, as columns.
const COLUMNS: [&str; 3] = ["go-1", "go-2", "vigil"];

/// What became of the cases of one class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    holds: usize,
    differs: usize,
    fails: usize,
}

impl Tally {
    fn add(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Holds => self.holds += 1,
            Outcome::Differs(reason) if !reason.starts_with(OPEN) => self.differs += 1,
            Outcome::Differs(_) | Outcome::Fails(_) => self.fails += 1,
        }
    }
}

impl Tally {
    fn share(self) -> String {
        let all = self.holds + self.differs + self.fails;
        match (all, self.holds) {
            (0, _) => String::new(),
            (all, holds) if all == holds => format!("**{holds}**"),
            (all, holds) => format!("{holds} of {all}"),
        }
    }
}

impl std::fmt::Display for Tally {
    /// `holds`, `fails 1 of 3`, `differs 1 of 2`; `–` when nothing was asked.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all = self.holds + self.differs + self.fails;
        let word = |f: &mut std::fmt::Formatter<'_>, word, count| {
            if count == all {
                write!(f, "{word}")
            } else {
                write!(f, "{word} {count} of {all}")
            }
        };
        match (all, self.fails, self.differs) {
            (0, ..) => f.write_str("–"),
            (_, 0, 0) => f.write_str("holds"),
            (_, 0, differs) => word(f, "differs", differs),
            (_, fails, _) => word(f, "fails", fails),
        }
    }
}

/// Classes in the catalogue's order: by letter as it comes there, then by number.
fn order(class: &str) -> (usize, u32, String) {
    let letter = class.chars().next().unwrap_or('Z');
    let digits: String = class[1..]
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    (
        "FSEPD".find(letter).unwrap_or(9),
        digits.parse().unwrap_or(0),
        class.to_owned(),
    )
}

type Rows = BTreeMap<(usize, u32, String), [Tally; 3]>;

fn rows(ended: &[Ended]) -> Rows {
    let mut rows = Rows::new();
    for one in ended {
        if let Some(column) = COLUMNS.iter().position(|shim| *shim == one.shim) {
            let row = rows.entry(order(&class_of(&one.name))).or_default();
            row[column].add(&one.outcome);
        }
    }
    rows
}

/// The table as Markdown, which is readable as it is.
#[must_use]
pub fn text(ended: &[Ended]) -> String {
    let mut out = String::new();
    let mut line = |class: &str, cells: [String; 3]| {
        let [a, b, c] = cells;
        let _ = writeln!(out, "| {class:5} | {a:14} | {b:14} | {c:14} |");
    };
    line("class", COLUMNS.map(ShimBinary::title));
    line("-----", std::array::from_fn(|_| "-".repeat(14)));
    for ((_, _, class), tallies) in rows(ended) {
        line(&class, tallies.map(|tally| tally.to_string()));
    }
    out
}

/// The same for a page that has other things to tell: two classes a line, a fraction of
/// cases that hold, nothing where nothing was asked.
#[must_use]
pub fn compact(ended: &[Ended]) -> String {
    let cells: Vec<String> = rows(ended)
        .into_iter()
        .map(|((_, _, class), tallies)| {
            let shares = tallies.map(Tally::share);
            format!("| {class} | {} ", shares.join(" | "))
        })
        .collect();
    let titles = COLUMNS.map(ShimBinary::title).join(" | ");
    let head = format!("| class | {titles} ");
    let mut out = format!("{head}{head}|\n|{}\n", "---|".repeat(8));
    let half = cells.len().div_ceil(2);
    for at in 0..half {
        let right = cells.get(half + at).map_or("| | | | ", String::as_str);
        let _ = writeln!(out, "{}{right}|", cells[at]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_row_a_class_a_column_a_shim() {
        let ended = |shim: &str, name: &str, outcome| Ended {
            shim: shim.to_owned(),
            name: name.to_owned(),
            outcome,
            took: Duration::ZERO,
        };
        let ended = [
            ended("vigil", "s10_x", Outcome::Holds),
            ended("vigil", "s09_x", Outcome::Differs("open: later")),
            ended("vigil", "f02_x", Outcome::Holds),
            ended("vigil", "f02_y", Outcome::Differs("a decision")),
            ended("go-1", "f02_x", Outcome::Fails(String::new())),
        ];
        let text = text(&ended);
        let rows: Vec<Vec<&str>> = text
            .lines()
            .skip(2)
            .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
            .collect();
        assert_eq!(
            rows,
            [
                ["F02", "fails", "–", "differs 1 of 2"],
                ["S9", "–", "–", "fails"],
                ["S10", "–", "–", "holds"],
            ]
        );
        let compact = compact(&ended);
        let lines: Vec<&str> = compact.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "| F02 | 0 of 1 |  | 1 of 2 | S10 |  |  | **1** |",
                "| S9 |  |  | 0 of 1 | | | | |",
            ]
        );
    }
}
