//! Aligned columns for people, and colour where a terminal is. Width is
//! counted without the colour.

use std::io::IsTerminal;

/// How a cell looks on a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    /// As it is.
    Plain,
    /// A title.
    Title,
    /// All is well.
    Good,
    /// Something is wrong.
    Bad,
    /// Something is not known, or of little weight.
    Faint,
}

/// Whether to colour at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Colour(bool);

impl Colour {
    /// Only on a terminal, and not where NO_COLOR asks for none.
    pub fn of_stdout() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self(!unwanted && std::io::stdout().is_terminal())
    }

    /// The text, painted.
    pub fn paint(self, text: &str, paint: Paint) -> String {
        let code = match paint {
            Paint::Title => "1",
            Paint::Good => "32",
            Paint::Bad => "31",
            Paint::Faint => "2",
            Paint::Plain => "",
        };
        if !self.0 || code.is_empty() || text.is_empty() {
            return text.to_owned();
        }
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// One cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell(pub String, pub Paint);

impl Cell {
    /// Plain text; `?` and `-` are faint, so that what is known stands out.
    pub fn of(text: impl Into<String>) -> Self {
        let text = text.into();
        let paint = match text.as_str() {
            "?" | "-" | "not asked" => Paint::Faint,
            _ => Paint::Plain,
        };
        Self(text, paint)
    }
}

/// Rows of cells, the first of them titles, in aligned columns.
pub fn render(titles: &[&str], rows: &[Vec<Cell>], colour: Colour) -> String {
    let titles = titles
        .iter()
        .map(|title| Cell((*title).to_owned(), Paint::Title))
        .collect();
    let all: Vec<&Vec<Cell>> = std::iter::once(&titles).chain(rows).collect();
    let mut widths = vec![0; titles.len()];
    for row in &all {
        for (width, cell) in widths.iter_mut().zip(*row) {
            *width = (*width).max(cell.0.chars().count());
        }
    }
    let mut text = String::new();
    for row in all {
        let mut line = String::new();
        let mut owed = 0;
        for (cell, width) in row.iter().zip(&widths) {
            // Nothing is printed behind the last cell that says something.
            if !cell.0.is_empty() {
                line.push_str(&" ".repeat(owed));
                line.push_str(&colour.paint(&cell.0, cell.1));
                owed = 0;
            }
            owed += width - cell.0.chars().count() + 2;
        }
        text.push_str(&line);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_moves_no_column() {
        let row = |a: &str, b: &str| vec![Cell::of(a), Cell(b.to_owned(), Paint::Bad)];
        let rows = [row("x", "y"), row("longer", ""), row("", "z")];
        let plain = render(&["A", "B"], &rows, Colour(false));
        assert_eq!(plain, "A       B\nx       y\nlonger\n        z\n");
        let painted = render(&["A", "B"], &rows, Colour(true));
        assert!(painted.contains("x       \x1b[31my\x1b[0m\n"));
        let mut bare = painted;
        for code in ["\x1b[1m", "\x1b[31m", "\x1b[0m"] {
            bare = bare.replace(code, "");
        }
        assert_eq!(bare, plain);
    }
}
