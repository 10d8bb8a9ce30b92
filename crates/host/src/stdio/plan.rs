//! What the four strings of a request mean. Pure: opens nothing, looks at
//! nothing. The rules are containerd's: the scheme of *stdout* decides for all
//! three streams, none means a path, and only `binary` and `file` carry a URI.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use vigil_model::Stdio;

/// Where the streams of a process go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// One console instead of three streams.
    pub terminal: bool,
    /// A fifo, or a file or device to read from.
    pub stdin: Option<PathBuf>,
    /// What becomes of the output.
    pub output: Output,
}

/// What becomes of the output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// To fifos (or files, or devices); what has none is discarded.
    Paths {
        /// Also a terminal's output.
        stdout: Option<PathBuf>,
        /// Never with a terminal.
        stderr: Option<PathBuf>,
    },
    /// Both appended to this file.
    File(PathBuf),
    /// Both to a program.
    Logger(LoggerPlan),
}

/// A program that takes the output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggerPlan {
    /// Absolute path.
    pub program: PathBuf,
    /// `k v` for each key of the query, in its order.
    pub args: Vec<OsString>,
    /// `binary-v2`: ending without the ready byte is a failure.
    pub must_say_ready: bool,
}

/// Why the strings mean nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No such scheme here.
    #[error(
        "stdout {uri:?}: unknown scheme {scheme:?} (fifo, binary, binary-v2 and file are known)"
    )]
    UnknownScheme {
        /// The scheme.
        scheme: String,
        /// All of it.
        uri: String,
    },
    /// A URI without an absolute path.
    #[error("stdout {uri:?} names no absolute path")]
    NoPath {
        /// All of it.
        uri: String,
    },
    /// The part between `//` and the path is a host; there are none here.
    #[error("stdout {uri:?} names a host; three slashes are wanted")]
    Host {
        /// All of it.
        uri: String,
    },
    /// `%` without two hexadecimal digits, or a nul.
    #[error("stdout {uri:?} is not properly escaped")]
    Escape {
        /// All of it.
        uri: String,
    },
    /// A terminal cannot go to a `file://`.
    #[error("stdout {uri:?}: a terminal cannot be appended to a file")]
    TerminalToFile {
        /// All of it.
        uri: String,
    },
}

impl Plan {
    /// Reads the streams of a request.
    pub fn of(asked: &Stdio) -> Result<Plan, PlanError> {
        let output = match scheme(&asked.stdout) {
            None | Some(("fifo", _)) => Output::Paths {
                stdout: bare(&asked.stdout),
                stderr: if asked.terminal {
                    None
                } else {
                    bare(&asked.stderr)
                },
            },
            Some(("file", rest)) => {
                let (path, _) = parse(&asked.stdout, rest)?;
                if asked.terminal {
                    return Err(PlanError::TerminalToFile {
                        uri: asked.stdout.clone(),
                    });
                }
                Output::File(path)
            }
            Some((name @ ("binary" | "binary-v2"), rest)) => {
                let (program, query) = parse(&asked.stdout, rest)?;
                Output::Logger(LoggerPlan {
                    program,
                    args: arguments(&asked.stdout, query)?,
                    must_say_ready: name == "binary-v2",
                })
            }
            Some((other, _)) => {
                return Err(PlanError::UnknownScheme {
                    scheme: other.to_owned(),
                    uri: asked.stdout.clone(),
                });
            }
        };
        // A logger takes no input, except with a terminal.
        let deaf = matches!(output, Output::Logger(_)) && !asked.terminal;
        let stdin = if deaf { None } else { bare(&asked.stdin) };
        Ok(Plan {
            terminal: asked.terminal,
            stdin,
            output,
        })
    }

    /// Nothing goes anywhere.
    pub fn is_empty(&self) -> bool {
        self.stdin.is_none()
            && self.output
                == Output::Paths {
                    stdout: None,
                    stderr: None,
                }
    }
}

/// A path, `fifo://` or not; clients send bare ones.
fn bare(text: &str) -> Option<PathBuf> {
    let path = text.strip_prefix("fifo://").unwrap_or(text);
    (!path.is_empty()).then(|| PathBuf::from(path))
}

/// RFC 3986: a letter, then letters, digits, `+`, `-`, `.`, up to the first
/// colon. What is left begins after the colon.
fn scheme(text: &str) -> Option<(&str, &str)> {
    let (name, rest) = text.split_once(':')?;
    let mut letters = name.chars();
    let first = letters.next()?;
    let good = first.is_ascii_alphabetic()
        && letters.all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    good.then_some((name, rest))
}

/// Path and query of what follows the colon.
fn parse<'t>(uri: &str, rest: &'t str) -> Result<(PathBuf, &'t str), PlanError> {
    let owned = || uri.to_owned();
    let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = match path.strip_prefix("//") {
        Some(path) if path.starts_with('/') => path,
        Some("") => return Err(PlanError::NoPath { uri: owned() }),
        Some(_) => return Err(PlanError::Host { uri: owned() }),
        None if path.starts_with('/') => path,
        None => return Err(PlanError::NoPath { uri: owned() }),
    };
    let path = unescape(path, false).ok_or_else(|| PlanError::Escape { uri: owned() })?;
    Ok((PathBuf::from(path), query))
}

/// `k v` for each key; a key given twice counts once, with its first value.
fn arguments(uri: &str, query: &str) -> Result<Vec<OsString>, PlanError> {
    let mut args: Vec<OsString> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decoded = unescape(key, true).zip(unescape(value, true));
        let (key, value) = decoded.ok_or_else(|| PlanError::Escape {
            uri: uri.to_owned(),
        })?;
        if !args.iter().step_by(2).any(|known| *known == key) {
            args.extend([key, value]);
        }
    }
    Ok(args)
}

/// Takes `%XX` (and, in a query, `+`) back; no nul may come of it.
fn unescape(text: &str, query: bool) -> Option<OsString> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let high = char::from(rest.next()?).to_digit(16)?;
                let low = char::from(rest.next()?).to_digit(16)?;
                u8::try_from(high * 16 + low).ok()?
            }
            b'+' if query => b' ',
            other => other,
        });
    }
    (!bytes.contains(&0)).then(|| OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(stdout: &str) -> Stdio {
        Stdio {
            stdout: stdout.into(),
            stderr: "/e".into(),
            stdin: "/i".into(),
            terminal: false,
        }
    }

    fn paths(stdout: Option<&str>, stderr: Option<&str>) -> Output {
        Output::Paths {
            stdout: stdout.map(PathBuf::from),
            stderr: stderr.map(PathBuf::from),
        }
    }

    #[test]
    fn a_path_is_a_path_whatever_is_in_it() {
        for path in ["/run/a%zz/b?c#d", "relative", "/with:colon"] {
            for prefix in ["", "fifo://"] {
                let plan = Plan::of(&asked(&format!("{prefix}{path}"))).ok();
                let output = plan.as_ref().map(|p| p.output.clone());
                assert_eq!(output, Some(paths(Some(path), Some("/e"))));
                assert_eq!(plan.and_then(|p| p.stdin), Some(PathBuf::from("/i")));
            }
        }
        assert!(Plan::of(&Stdio::default()).is_ok_and(|p| p.is_empty()));
        let only_stderr = Plan::of(&asked(""));
        assert_eq!(only_stderr.map(|p| p.output), Ok(paths(None, Some("/e"))));
    }

    #[test]
    fn a_terminal_has_no_stderr_and_no_file() {
        let mut tty = asked("/o");
        tty.terminal = true;
        assert_eq!(
            Plan::of(&tty).map(|p| p.output),
            Ok(paths(Some("/o"), None))
        );
        tty.stdout = "file:///log".into();
        assert!(matches!(
            Plan::of(&tty),
            Err(PlanError::TerminalToFile { .. })
        ));
        tty.stdout = "binary:///log".into();
        assert_eq!(
            Plan::of(&tty).map(|p| p.stdin),
            Ok(Some(PathBuf::from("/i")))
        );
    }

    #[test]
    fn a_logger_gets_its_query_as_arguments_in_order() {
        let plan = Plan::of(&asked(
            "binary:///usr/bin/log%20er?z=1&a=b%2Fc+d&z=2&flag#x",
        ));
        let logger = LoggerPlan {
            program: "/usr/bin/log er".into(),
            args: ["z", "1", "a", "b/c d", "flag", ""]
                .map(OsString::from)
                .into(),
            must_say_ready: false,
        };
        let expected = Plan {
            terminal: false,
            stdin: None,
            output: Output::Logger(logger),
        };
        assert_eq!(plan, Ok(expected));
        let v2 = Plan::of(&asked("binary-v2:///l"));
        let v2 = v2.map(|p| matches!(p.output, Output::Logger(l) if l.must_say_ready));
        assert_eq!(v2, Ok(true));
    }

    #[test]
    fn a_file_takes_both() {
        let plan = Plan::of(&asked("file:///var/log/a%25b.log"));
        assert_eq!(
            plan.map(|p| p.output),
            Ok(Output::File("/var/log/a%b.log".into()))
        );
    }

    #[test]
    fn what_means_nothing_is_named() {
        let of = |uri: &str| Plan::of(&asked(uri));
        let uri = "ttrpc+unix:///run/s.sock?streaming_id=x";
        let unknown = PlanError::UnknownScheme {
            scheme: "ttrpc+unix".into(),
            uri: uri.into(),
        };
        assert_eq!(of(uri), Err(unknown));
        for uri in ["binary://", "file:relative", "binary:"] {
            assert_eq!(of(uri), Err(PlanError::NoPath { uri: uri.into() }));
        }
        assert_eq!(
            of("binary://x/y"),
            Err(PlanError::Host {
                uri: "binary://x/y".into()
            })
        );
        for uri in ["file:///a%2", "file:///a%00", "binary:///x?a=%gg"] {
            assert_eq!(of(uri), Err(PlanError::Escape { uri: uri.into() }));
        }
    }
}
