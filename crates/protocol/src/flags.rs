//! The command line containerd gives us, in the syntax of Go's `flag` package.
//!
//! Owns the meaning of argv. It prints nothing and reads nothing else; what is
//! not understood is a typed error, never a default.

use std::ffi::OsString;

use vigil_model::{Namespace, TaskId};

use crate::Error;

/// What the program was asked to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invocation {
    /// `-v`, `-version`: print the version for people.
    Version,
    /// `-info`: print what this runtime is, for containerd ≥ 2.0.
    Info,
    /// One of the actions, for one container.
    Run {
        /// Which.
        action: Action,
        /// For whom.
        flags: Box<Flags>,
    },
}

/// The first positional argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// containerd: make the pair and print its address.
    Start,
    /// containerd: the last word on a container.
    Delete,
    /// Ours: what the reaper starts as the shim.
    Serve,
}

/// The flags of an action. An empty string means *not given*.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flags {
    /// `-namespace`
    pub namespace: Namespace,
    /// `-id`
    pub id: TaskId,
    /// `-address`: containerd's gRPC socket; it is part of the socket's name.
    pub address: String,
    /// `-publish-binary`: containerd's program; not used, kept for argv.
    pub publish_binary: String,
    /// `-bundle`: only sent with `delete`.
    pub bundle: String,
    /// `-debug`: containerd logs at debug or trace.
    pub debug: bool,
    /// `-socket`: listen here instead of at the computed path.
    pub socket: String,
    /// `-debug-socket`: accepted and not used.
    pub debug_socket: String,
}

/// The flags as text, before anything is checked.
#[derive(Default)]
struct Raw {
    texts: [String; TEXTS.len()],
    switches: [bool; SWITCHES.len()],
}

const TEXTS: [&str; 7] = [
    "namespace",
    "id",
    "address",
    "publish-binary",
    "bundle",
    "socket",
    "debug-socket",
];
const SWITCHES: [&str; 4] = ["debug", "info", "v", "version"];

/// Reads argv without the program's name.
///
/// As Go does: `-x v`, `-x=v`, `--x`; a switch takes a value only after `=`;
/// the last of several wins; flags end at `--`, at `-` or at the first
/// positional argument, which is the action; what follows it is ignored.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Invocation, Error> {
    let mut args = args.into_iter().map(|argument| {
        argument
            .into_string()
            .map_err(|raw| Error::ArgumentNotUtf8 {
                argument: raw.to_string_lossy().into_owned(),
            })
    });
    let mut raw = Raw::default();
    let action = loop {
        let Some(argument) = args.next().transpose()? else {
            break None;
        };
        if argument == "--" {
            break args.next().transpose()?;
        }
        let Some(name) = argument.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
            break Some(argument);
        };
        let name = name.strip_prefix('-').unwrap_or(name);
        if name.starts_with(['-', '=']) {
            return Err(Error::FlagSyntax { argument });
        }
        let (name, value) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (name, None),
        };
        if let Some(at) = SWITCHES.iter().position(|flag| *flag == name) {
            raw.switches[at] = match value {
                None => true,
                Some(value) => boolean(SWITCHES[at], value)?,
            };
        } else if let Some(at) = TEXTS.iter().position(|flag| *flag == name) {
            raw.texts[at] = match value {
                Some(value) => value,
                None => args
                    .next()
                    .transpose()?
                    .ok_or(Error::FlagValueMissing { flag: TEXTS[at] })?,
            };
        } else {
            return Err(Error::FlagUnknown {
                flag: crate::error::shown(name),
            });
        }
    };
    check(raw, action.as_deref())
}

fn check(raw: Raw, action: Option<&str>) -> Result<Invocation, Error> {
    let [debug, info, v, version] = raw.switches;
    if v || version {
        return Ok(Invocation::Version);
    }
    if info {
        return Ok(Invocation::Info);
    }
    let [
        namespace,
        id,
        address,
        publish_binary,
        bundle,
        socket,
        debug_socket,
    ] = raw.texts;
    let namespace =
        Namespace::new(namespace).map_err(|source| Error::NamespaceUnusable { source })?;
    let action = match action {
        Some("start") => Action::Start,
        Some("delete") => Action::Delete,
        Some("serve") => Action::Serve,
        Some(other) => {
            return Err(Error::ActionUnknown {
                action: crate::error::shown(other),
            });
        }
        None => return Err(Error::ActionMissing),
    };
    let id = TaskId::new(id).map_err(|source| Error::IdUnusable { source })?;
    Ok(Invocation::Run {
        action,
        flags: Box::new(Flags {
            namespace,
            id,
            address,
            publish_binary,
            bundle,
            debug,
            socket,
            debug_socket,
        }),
    })
}

/// The words Go's `strconv.ParseBool` knows.
fn boolean(flag: &'static str, value: String) -> Result<bool, Error> {
    match value.as_str() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(Error::FlagNotBoolean { flag, value }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::os::unix::ffi::OsStringExt;

    use proptest::prelude::*;

    use super::*;

    fn line(text: &str) -> Result<Invocation, Error> {
        parse(text.split_whitespace().map(OsString::from))
    }

    fn run(text: &str) -> (Action, Flags) {
        match line(text).unwrap() {
            Invocation::Run { action, flags } => (action, *flags),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_containerd_sends() {
        let (action, flags) = run(
            "-namespace k8s.io -address /run/containerd/containerd.sock \
             -publish-binary /usr/bin/containerd -id abc -debug start",
        );
        assert_eq!(action, Action::Start);
        assert_eq!(
            flags,
            Flags {
                namespace: Namespace::new("k8s.io").unwrap(),
                id: TaskId::new("abc").unwrap(),
                address: "/run/containerd/containerd.sock".to_owned(),
                publish_binary: "/usr/bin/containerd".to_owned(),
                bundle: String::new(),
                debug: true,
                socket: String::new(),
                debug_socket: String::new(),
            }
        );
        let (action, flags) =
            run("-namespace n -address a -publish-binary p -id i -bundle /b delete");
        assert_eq!(action, Action::Delete);
        assert_eq!(flags.bundle, "/b");
        assert!(!flags.debug);
    }

    #[test]
    fn every_spelling_of_go() {
        for text in [
            "-namespace n -id i start",
            "--namespace n --id i start",
            "-namespace=n -id=i start",
            "--namespace=n -id i -debug=false start",
            "-namespace x -namespace n -id i start",
            "-namespace n -id i -- start",
            "-namespace n -id i start -not-a-flag",
        ] {
            let (action, flags) = run(text);
            assert_eq!(action, Action::Start, "{text}");
            assert_eq!(flags.namespace.as_str(), "n", "{text}");
            assert!(!flags.debug, "{text}");
        }
        let (_, flags) = run("-namespace n -id i -address=a=b -socket -x -debug=T serve");
        assert_eq!(flags.address, "a=b");
        assert_eq!(flags.socket, "-x");
        assert!(flags.debug);
    }

    #[test]
    fn questions_need_no_namespace() {
        assert_eq!(line("-v").unwrap(), Invocation::Version);
        assert_eq!(line("-version").unwrap(), Invocation::Version);
        assert_eq!(line("-info").unwrap(), Invocation::Info);
        assert_eq!(line("-debug -info").unwrap(), Invocation::Info);
        assert!(matches!(
            line("-info=0 start"),
            Err(Error::NamespaceUnusable { .. })
        ));
    }

    #[test]
    fn wrong_lines_are_named() {
        let error = |text: &str| line(text).unwrap_err();
        assert!(matches!(error("-wat 1 start"), Error::FlagUnknown { flag } if flag == "wat"));
        assert!(matches!(
            error("-namespace"),
            Error::FlagValueMissing { flag: "namespace" }
        ));
        assert!(matches!(error("---id x"), Error::FlagSyntax { .. }));
        assert!(matches!(error("-=x"), Error::FlagSyntax { .. }));
        assert!(matches!(error("--=x"), Error::FlagSyntax { .. }));
        assert!(matches!(
            error("-debug=maybe start"),
            Error::FlagNotBoolean { flag: "debug", .. }
        ));
        assert!(matches!(error("start"), Error::NamespaceUnusable { .. }));
        assert!(matches!(
            error("-namespace= -id i start"),
            Error::NamespaceUnusable { .. }
        ));
        assert!(matches!(
            error("-namespace n start"),
            Error::IdUnusable { .. }
        ));
        assert!(matches!(
            error("-namespace n -id ../x start"),
            Error::IdUnusable { .. }
        ));
        assert!(matches!(
            error("-namespace n -id a/b start"),
            Error::IdUnusable { .. }
        ));
        let long = "x".repeat(77);
        assert!(matches!(
            error(&format!("-namespace n -id {long} start")),
            Error::IdUnusable { .. }
        ));
        assert!(matches!(error("-namespace n -id i"), Error::ActionMissing));
        assert!(matches!(
            error("-namespace n -id i - start"),
            Error::ActionUnknown { .. }
        ));
        assert!(matches!(
            error("-namespace n -id i stop"),
            Error::ActionUnknown { .. }
        ));
        let raw = OsString::from_vec(vec![b'-', 0xff]);
        assert!(matches!(parse([raw]), Err(Error::ArgumentNotUtf8 { .. })));
    }

    proptest! {
        #[test]
        fn never_panics(args in proptest::collection::vec("[-=a-z]{0,12}", 0..8)) {
            let _ = parse(args.into_iter().map(OsString::from));
        }
    }
}
