//! The result: rows of figures, one column a contender, with Vigil's targets and whether
//! they are met; as aligned text or as Markdown. Pure.

use std::fmt::Write;

/// Contenders, in the order of the columns.
pub const COLUMNS: usize = 3;
/// Which of them is ours.
pub const OURS: usize = 2;

/// How a figure is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// MiB, two places.
    Mebi,
    /// 10^6 bytes, two places.
    Mega,
    /// Milliseconds, two places.
    Millis,
    /// A number of things.
    Count,
}

/// One measure of all contenders.
#[derive(Debug, Clone)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// How to write it.
    pub unit: Unit,
    /// The figures; `None` where there is none.
    pub cells: [Option<f64>; COLUMNS],
    /// What ours must reach in this version.
    pub now: Option<f64>,
    /// What it must reach in the end.
    pub last: Option<f64>,
    /// What is written where there is no figure.
    pub none: &'static str,
}

impl Row {
    /// A row without targets.
    pub fn new(name: impl Into<String>, unit: Unit, cells: [Option<f64>; COLUMNS]) -> Self {
        Self {
            name: name.into(),
            unit,
            cells,
            now: None,
            last: None,
            none: "-",
        }
    }

    /// With the target of this version.
    pub fn now(self, target: f64) -> Self {
        Self {
            now: Some(target),
            ..self
        }
    }

    /// With the final target.
    pub fn last(self, target: f64) -> Self {
        Self {
            last: Some(target),
            ..self
        }
    }

    /// With these words where there is no figure.
    pub fn without(self, none: &'static str) -> Self {
        Self { none, ..self }
    }

    /// With a part of the best other contender as the final target.
    pub fn last_of_best(self, part: f64) -> Self {
        let others = self.cells[..OURS].iter().flatten().copied();
        let best = others.fold(f64::INFINITY, f64::min);
        Self {
            // A negative figure is the machine's noise, and no measure for others.
            last: (best.is_finite() && best > 0.0).then_some(best * part),
            ..self
        }
    }

    fn write(&self, value: Option<f64>) -> String {
        match (value, self.unit) {
            (None, _) => self.none.to_owned(),
            (Some(value), Unit::Mebi) => format!("{value:.2} MiB"),
            (Some(value), Unit::Mega) => format!("{value:.2} MB"),
            (Some(value), Unit::Millis) => format!("{value:.2} ms"),
            (Some(value), Unit::Count) => format!("{value:.0}"),
        }
    }

    fn verdict(&self, target: Option<f64>) -> String {
        let Some(limit) = target else {
            return String::new();
        };
        let met = match self.cells[OURS] {
            None => "?",
            Some(value) if value <= limit => "met",
            Some(_) => "MISSED",
        };
        format!("≤ {} {met}", self.write(target))
    }

    /// Whether a target of this version is missed.
    pub fn missed(&self) -> bool {
        matches!((self.now, self.cells[OURS]), (Some(limit), Some(value)) if value > limit)
    }

    fn texts(&self) -> Vec<String> {
        let mut texts = vec![self.name.clone()];
        texts.extend(self.cells.iter().map(|cell| self.write(*cell)));
        texts.push(self.verdict(self.now));
        texts.push(self.verdict(self.last));
        texts
    }
}

fn head(columns: [&str; COLUMNS]) -> Vec<String> {
    let mut head = vec![String::new()];
    head.extend(columns.map(str::to_owned));
    head.extend(["this version".to_owned(), "in the end".to_owned()]);
    head
}

/// Aligned text.
pub fn text(columns: [&str; COLUMNS], rows: &[Row]) -> String {
    let mut lines = vec![head(columns)];
    lines.extend(rows.iter().map(Row::texts));
    let width = |at: usize| {
        let widths = lines.iter().map(|line| line[at].chars().count());
        widths.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let mut out = String::new();
    for line in &lines {
        let mut written = String::new();
        for (at, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            // Names and verdicts from the left, figures from the right.
            let _ = if (1..=COLUMNS).contains(&at) {
                write!(written, "{pad}{cell}  ")
            } else {
                write!(written, "{cell}{pad}  ")
            };
        }
        let _ = writeln!(out, "{}", written.trim_end());
    }
    out
}

/// Markdown, for the README.
pub fn markdown(columns: [&str; COLUMNS], rows: &[Row]) -> String {
    let mut out = format!(
        "| {} |\n|---|{}---|---|\n",
        head(columns).join(" | "),
        "---:|".repeat(COLUMNS)
    );
    for row in rows {
        let _ = writeln!(out, "| {} |", row.texts().join(" | "));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_met_missed_or_open() {
        let row = |ours| Row::new("x", Unit::Millis, [Some(8.0), Some(4.0), ours]).now(2.0);
        assert_eq!(row(Some(2.0)).texts()[4], "≤ 2.00 ms met");
        assert_eq!(row(Some(2.1)).texts()[4], "≤ 2.00 ms MISSED");
        assert_eq!(row(None).texts()[4], "≤ 2.00 ms ?");
        assert!(row(Some(2.1)).missed() && !row(Some(2.0)).missed() && !row(None).missed());
        assert_eq!(row(None).last_of_best(0.25).last, Some(1.0));
    }

    #[test]
    fn all_lines_of_the_text_have_their_figures_below_each_other() {
        let rows = [
            Row::new("long name", Unit::Count, [Some(1.0), None, Some(300.0)]),
            Row::new("b", Unit::Mebi, [Some(1.0), Some(22.5), Some(0.4)]),
        ];
        let text = text(["one", "two", "three"], &rows);
        let ends: Vec<usize> = text
            .lines()
            .map(|line| line.trim_end().chars().count())
            .collect();
        assert_eq!(ends[1], ends[2], "{text}");
        assert!(text.lines().nth(1).unwrap_or_default().ends_with("300"));
        assert!(
            markdown(["one", "two", "three"], &rows)
                .contains("| b | 1.00 MiB | 22.50 MiB | 0.40 MiB |")
        );
    }
}
