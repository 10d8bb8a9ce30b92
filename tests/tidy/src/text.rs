//! Rules about text: each takes one file and gives the places that break it.

/// Longest file of Rust.
pub const LONGEST: usize = 800;
/// Lines of code of the reaper's sources, its tests apart: read in ten minutes. `DESIGN` §1 says
/// 600; starting a successor and handing over took another 350.
pub const REAPER: usize = 950;
/// Of those beside them by which one process becomes the reaper after another: [`HEIRS`].
pub const HEIR: usize = 400;
/// Their files, read by whoever asks that.
pub const HEIRS: [&str; 3] = ["ends.rs", "heir.rs", "renew.rs"];

/// Names of modules and types that name nothing.
const EMPTY_WORDS: [&str; 9] = [
    "manager", "handler", "helper", "helpers", "util", "utils", "info", "infos", "data",
];

/// The code of a line: without string literals and without its comment. Good for one line
/// at a time; a string over several lines is taken for code, which errs on the strict side.
fn code(line: &str) -> String {
    let mut kept = String::new();
    let (mut quoted, mut escaped, mut last) = (false, false, ' ');
    for c in line.chars() {
        if quoted {
            quoted = escaped || c != '"';
            escaped = !escaped && c == '\\';
        } else if c == '"' && last != '\'' {
            quoted = true;
        } else if c == '/' && last == '/' {
            kept.pop();
            break;
        } else {
            kept.push(c);
        }
        last = c;
    }
    kept
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|w| !w.is_empty())
}

/// Breaks names into lower-case words: `TaskInfo`, `task_info` → task, info.
fn parts(name: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    for c in name.chars() {
        if c == '_' || c == '-' || c == '.' {
            parts.push(String::new());
        } else if c.is_uppercase() {
            parts.push(c.to_lowercase().collect());
        } else if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts
}

fn empty_word(name: &str) -> Option<String> {
    // The name of a command-line flag, hence of the module that answers it.
    if name == "info" {
        return None;
    }
    parts(name)
        .into_iter()
        .find(|part| EMPTY_WORDS.contains(&part.as_str()))
}

/// A file that is too long.
#[must_use]
pub fn too_long(path: &str, text: &str) -> Option<String> {
    let lines = text.lines().count();
    (lines > LONGEST).then(|| format!("{path}: {lines} lines, at most {LONGEST}"))
}

/// A Rust file that does not begin with a `//!` that says something. (Two to six lines are
/// the aim: what it owns, what it must never do, why it exists; fifteen are a chapter.)
#[must_use]
pub fn header(path: &str, text: &str) -> Option<String> {
    let lines = text.lines().take_while(|l| l.starts_with("//!")).count();
    let first = text.lines().next().unwrap_or_default();
    if !(1..=15).contains(&lines) {
        return Some(format!("{path}: {lines} lines of header"));
    }
    (first.trim_start_matches("//!").trim().len() < 10)
        .then(|| format!("{path}: a header that says nothing: {first}"))
}

/// Modules, files and types named by a word that names nothing.
#[must_use]
pub fn empty_names(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for component in path.trim_end_matches(".rs").split('/') {
        if let Some(word) = empty_word(component) {
            found.push(format!("{path}: `{word}` in a file name"));
        }
    }
    for (at, line) in text.lines().enumerate() {
        let code = code(line);
        let words: Vec<&str> = words(&code).collect();
        for pair in words.windows(2) {
            let [kind, name] = pair else { continue };
            let declares = ["struct", "enum", "trait", "type", "mod", "union"].contains(kind);
            if let (true, Some(word)) = (declares, empty_word(name)) {
                found.push(format!("{path}:{}: `{word}` in `{kind} {name}`", at + 1));
            }
        }
    }
    found
}

/// Uses of `unsafe`, and of `libc` or `nix` as a path.
#[must_use]
pub fn kernel_words(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let code = code(line);
        for word in words(&code) {
            let direct = word == "unsafe";
            let through =
                (word == "libc" || word == "nix") && (code.contains(&format!("{word}::")));
            if direct || through {
                found.push(format!("{path}:{}: `{word}`: {}", at + 1, line.trim()));
            }
        }
    }
    found.dedup();
    found
}

/// Public functions that ask something of their callers in words: a contract that is not a type,
/// not checked, and not `unsafe` either.
#[must_use]
pub fn contracts_in_words(path: &str, text: &str) -> Vec<String> {
    let asks = |doc: &str| {
        let doc = doc.to_lowercase();
        let word = ["must", "safety", "contract", "caller", "callers"];
        let phrase = [
            "only for ",
            "for processes ",
            "for a process ",
            "only if the ",
            "only when the ",
        ];
        words(&doc).any(|w| word.contains(&w)) || phrase.iter().any(|p| doc.contains(p))
    };
    let mut found = Vec::new();
    let mut doc = String::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(said) = line.strip_prefix("///") {
            doc.push(' ');
            doc.push_str(said.trim());
        } else if !line.starts_with("#[") {
            let code = code(line);
            let declared: Vec<&str> = words(&code).take_while(|w| *w != "fn").collect();
            let safe =
                code.starts_with("pub") && code.contains("fn ") && !declared.contains(&"unsafe");
            if safe && asks(&doc) {
                found.push(format!("{path}:{}: {line}\n   {}", at + 1, doc.trim()));
            }
            doc.clear();
        }
    }
    found
}

/// Places where a decision is taken by somebody's words: by a piece of a text, or by the name a
/// process gives itself. What stands in a `#[cfg(test)] mod` is not looked at.
#[must_use]
pub fn decided_by_words(path: &str, text: &str) -> Vec<String> {
    let asks = [
        ".contains(",
        ".starts_with(",
        ".ends_with(",
        ".find(",
        ".matches(",
    ];
    let lines: Vec<&str> = text.lines().collect();
    // More attributes may stand between.
    let tests = lines.windows(3).position(|three| {
        three[0] == "#[cfg(test)]"
            && three[1..]
                .iter()
                .any(|line| line.starts_with("mod ") && line.ends_with('{'))
    });
    let own = lines[..tests.unwrap_or(lines.len())].iter().enumerate();
    own.filter(|(_, line)| {
        let said = line.trim_start();
        let by_text = asks.iter().any(|ask| {
            let mut after = said.split(ask).skip(1);
            after.any(|rest| rest.starts_with('"') || rest.starts_with("&format!"))
        });
        let compared = [
            "==",
            "!=",
            ".starts_with",
            ".split",
            ".eq",
            "matches!",
            ".as_str",
        ];
        let by_name = code(said).contains(".comm") && {
            let after = said.split(".comm").nth(1).unwrap_or_default().trim_start();
            compared.iter().any(|c| after.starts_with(c)) || said.contains("matches!(")
        };
        !said.starts_with("//") && (by_text || by_name)
    })
    .map(|(at, line)| format!("{path}:{}: {}", at + 1, line.trim()))
    .collect()
}

/// Marks of unfinished work.
#[must_use]
pub fn unfinished(path: &str, text: &str) -> Vec<String> {
    let marks = [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("FIX", "ME"),
        concat!("X", "XX:"),
    ];
    let lines = text.lines().enumerate();
    lines
        .filter(|(_, line)| marks.iter().any(|mark| line.contains(mark)))
        .map(|(at, line)| format!("{path}:{}: {}", at + 1, line.trim()))
        .collect()
}

/// Traces of the machine it was written on: its paths, a package mirror's address.
#[must_use]
pub fn machine(path: &str, text: &str) -> Vec<String> {
    let places = [
        concat!("/wo", "rk/"),
        concat!("/ho", "me/"),
        concat!("arti", "factory"),
        concat!("/fa", "rm/"),
    ];
    let mut found = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let mirror = line.split("://").skip(1).any(|rest| {
            let mut parts = rest.split(['/', ' ', '"', ')', '>']);
            let _host = parts.next();
            matches!(parts.next(), Some("debian" | "debian-security" | "apt"))
        });
        if mirror || places.iter().any(|p| line.contains(p)) {
            found.push(format!("{path}:{}: {}", at + 1, line.trim()));
        }
    }
    found
}

/// Lines of code of a source file: no blank ones and no comments, so that nobody saves on
/// those; and not its tests, which begin at a `#[cfg(test)]` in the first column.
#[must_use]
pub fn own_lines(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    // `mod tests;` beside its file is two lines; `mod tests {` is the rest of the file.
    let tests = lines
        .windows(2)
        .position(|pair| pair[0] == "#[cfg(test)]" && pair[1].ends_with('{'));
    let own = lines[..tests.unwrap_or(lines.len())]
        .iter()
        .map(|line| line.trim());
    own.filter(|line| !line.is_empty() && !line.starts_with("//"))
        .count()
}
