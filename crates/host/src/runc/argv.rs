//! The command lines, one variant a verb. Pure. What a verb needs beside its
//! arguments (a document, streams) is named here too, so that a call cannot be
//! made without it.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use vigil_model::request::Checkpoint;

/// Descriptor at which a call finds its log.
pub(super) const LOG_FD: u16 = 3;
/// Descriptor at which a call finds its document.
pub(super) const DOCUMENT_FD: u16 = 4;

/// Which program, and the arguments before the verb.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// Name (searched in `PATH`) or path.
    pub program: OsString,
    /// `--root`: state directory, the containerd namespace included.
    pub root: PathBuf,
    /// `--systemd-cgroup`.
    pub systemd_cgroup: bool,
}

/// What is asked of runc, without the arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// `create`
    Create,
    /// `start`
    Start,
    /// `exec`
    Exec,
    /// `delete`, with or without `--force`
    Delete,
    /// `update`
    Update,
    /// `checkpoint`
    Checkpoint,
    /// `restore`
    Restore,
    /// `features`
    Features,
    /// `--version`
    Version,
}

impl Verb {
    /// As on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Verb::Create => "create",
            Verb::Start => "start",
            Verb::Exec => "exec",
            Verb::Delete => "delete",
            Verb::Update => "update",
            Verb::Checkpoint => "checkpoint",
            Verb::Restore => "restore",
            Verb::Features => "features",
            Verb::Version => "--version",
        }
    }

    /// How a message about its failure begins; clients know these words from
    /// containerd's own shim.
    pub fn prefix(self) -> &'static str {
        match self {
            Verb::Create => "OCI runtime create failed",
            Verb::Start => "OCI runtime start failed",
            Verb::Exec => "OCI runtime exec failed",
            Verb::Delete => "failed to delete task",
            Verb::Update => "OCI runtime update failed",
            Verb::Checkpoint => "OCI runtime checkpoint failed",
            Verb::Restore => "OCI runtime restore failed",
            Verb::Features => "OCI runtime features failed",
            Verb::Version => "OCI runtime version failed",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// One call with its arguments.
#[derive(Debug, Clone, Copy)]
pub enum Call<'a> {
    /// Make the container; its init waits for `Start`.
    Create {
        /// Container id.
        id: &'a str,
        /// Bundle directory.
        bundle: &'a Path,
        /// Where runc writes init's pid.
        pid_file: &'a Path,
        /// Where runc sends the pty, for a terminal.
        console_socket: Option<&'a Path>,
        /// `--no-pivot`
        no_pivot: bool,
        /// `--no-new-keyring`
        no_new_keyring: bool,
    },
    /// Let init run.
    Start {
        /// Container id.
        id: &'a str,
    },
    /// Start one more process in the container.
    Exec {
        /// Container id.
        id: &'a str,
        /// JSON of the process, from [`super::process_document`].
        process: &'a [u8],
        /// Where runc writes its pid.
        pid_file: &'a Path,
        /// Where runc sends the pty, for a terminal.
        console_socket: Option<&'a Path>,
    },
    /// Forget a stopped container, its cgroup and its state.
    Delete {
        /// Container id.
        id: &'a str,
        /// Kill it first; and an unknown id is success.
        force: bool,
    },
    /// Change its limits.
    Update {
        /// Container id.
        id: &'a str,
        /// JSON of OCI `LinuxResources`.
        resources: &'a [u8],
    },
    /// Dump it.
    Checkpoint {
        /// Container id.
        id: &'a str,
        /// CRIU's work directory.
        work: &'a Path,
        /// What and how.
        how: &'a Checkpoint,
    },
    /// Make and start it from a dump.
    Restore {
        /// Container id.
        id: &'a str,
        /// Bundle directory.
        bundle: &'a Path,
        /// The dump.
        image: &'a Path,
        /// CRIU's work directory.
        work: &'a Path,
        /// Where runc writes init's pid.
        pid_file: &'a Path,
        /// Where runc sends the pty, for a terminal.
        console_socket: Option<&'a Path>,
        /// `--no-pivot`
        no_pivot: bool,
    },
    /// What this program can do, as JSON.
    Features,
    /// Which program this is.
    Version,
}

impl Call<'_> {
    /// Its verb.
    pub fn verb(&self) -> Verb {
        match self {
            Call::Create { .. } => Verb::Create,
            Call::Start { .. } => Verb::Start,
            Call::Exec { .. } => Verb::Exec,
            Call::Delete { .. } => Verb::Delete,
            Call::Update { .. } => Verb::Update,
            Call::Checkpoint { .. } => Verb::Checkpoint,
            Call::Restore { .. } => Verb::Restore,
            Call::Features => Verb::Features,
            Call::Version => Verb::Version,
        }
    }

    /// The container it is about.
    pub fn id(&self) -> Option<&str> {
        match *self {
            Call::Create { id, .. }
            | Call::Start { id }
            | Call::Exec { id, .. }
            | Call::Delete { id, .. }
            | Call::Update { id, .. }
            | Call::Checkpoint { id, .. }
            | Call::Restore { id, .. } => Some(id),
            Call::Features | Call::Version => None,
        }
    }

    /// Where it writes the number of the process it makes.
    pub fn pid_file(&self) -> Option<&Path> {
        match *self {
            Call::Create { pid_file, .. }
            | Call::Exec { pid_file, .. }
            | Call::Restore { pid_file, .. } => Some(pid_file),
            Call::Start { .. }
            | Call::Delete { .. }
            | Call::Update { .. }
            | Call::Checkpoint { .. }
            | Call::Features
            | Call::Version => None,
        }
    }

    /// Whether the container inherits the streams this call is given.
    pub fn hands_on_streams(&self) -> bool {
        match self {
            Call::Create { console_socket, .. }
            | Call::Exec { console_socket, .. }
            | Call::Restore { console_socket, .. } => console_socket.is_none(),
            Call::Start { .. }
            | Call::Delete { .. }
            | Call::Update { .. }
            | Call::Checkpoint { .. }
            | Call::Features
            | Call::Version => false,
        }
    }

    /// What it reads from [`DOCUMENT_FD`].
    pub(super) fn document(&self) -> Option<&[u8]> {
        match self {
            Call::Exec { process, .. } => Some(process),
            Call::Update { resources, .. } => Some(resources),
            _ => None,
        }
    }

    /// All arguments after the program's name.
    pub fn arguments(&self, runtime: &Runtime) -> Vec<OsString> {
        let mut line = Line(Vec::with_capacity(16));
        let word = self.verb().word();
        if let Call::Version = self {
            line.word(word);
            return line.0;
        }
        line.pair("--root", &runtime.root);
        line.pair("--log", open_file(LOG_FD))
            .pair("--log-format", "json");
        line.flag(runtime.systemd_cgroup, "--systemd-cgroup");
        line.word(word);
        match *self {
            Call::Create {
                id,
                bundle,
                pid_file,
                console_socket,
                no_pivot,
                no_new_keyring,
            } => line
                .pair("--bundle", bundle)
                .pair("--pid-file", pid_file)
                .maybe("--console-socket", console_socket)
                .flag(no_pivot, "--no-pivot")
                .flag(no_new_keyring, "--no-new-keyring")
                .word(id),
            Call::Start { id } => line.word(id),
            Call::Exec {
                id,
                process: _,
                pid_file,
                console_socket,
            } => line
                .pair("--process", open_file(DOCUMENT_FD))
                .maybe("--console-socket", console_socket)
                .word("--detach")
                .pair("--pid-file", pid_file)
                .word(id),
            Call::Delete { id, force } => line.flag(force, "--force").word(id),
            Call::Update { id, resources: _ } => {
                line.pair("--resources", open_file(DOCUMENT_FD)).word(id)
            }
            Call::Checkpoint { id, work, how } => line
                .pair("--image-path", &how.path)
                .pair("--work-path", work)
                .maybe(
                    "--parent-path",
                    Some(&how.parent_path).filter(|p| !p.is_empty()),
                )
                .flag(how.open_tcp, "--tcp-established")
                .flag(how.external_unix_sockets, "--ext-unix-sk")
                .flag(how.terminal, "--shell-job")
                .flag(how.file_locks, "--file-locks")
                .each("--empty-ns", &how.empty_namespaces)
                .flag(!how.exit, "--leave-running")
                .word(id),
            Call::Restore {
                id,
                bundle,
                image,
                work,
                pid_file,
                console_socket,
                no_pivot,
            } => line
                .pair("--image-path", image)
                .pair("--work-path", work)
                .word("--detach")
                .pair("--pid-file", pid_file)
                .maybe("--console-socket", console_socket)
                .flag(no_pivot, "--no-pivot")
                .word("--no-subreaper")
                .pair("--bundle", bundle)
                .word(id),
            Call::Features | Call::Version => &mut line,
        };
        line.0
    }
}

/// An open descriptor by path: nothing on disk to be left behind, and no room
/// on it needed.
fn open_file(number: u16) -> String {
    format!("/proc/self/fd/{number}")
}

struct Line(Vec<OsString>);

impl Line {
    fn word(&mut self, word: &str) -> &mut Self {
        self.0.push(word.into());
        self
    }

    fn flag(&mut self, on: bool, word: &str) -> &mut Self {
        if on { self.word(word) } else { self }
    }

    fn pair(&mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> &mut Self {
        self.word(name).0.push(value.as_ref().into());
        self
    }

    fn maybe(&mut self, name: &str, value: Option<impl AsRef<std::ffi::OsStr>>) -> &mut Self {
        match value {
            Some(value) => self.pair(name, value),
            None => self,
        }
    }

    fn each(&mut self, name: &str, values: &[String]) -> &mut Self {
        values
            .iter()
            .fold(self, |line, value| line.pair(name, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(call: Call<'_>, systemd_cgroup: bool) -> String {
        let runtime = Runtime {
            program: "runc".into(),
            root: "/r/ns".into(),
            systemd_cgroup,
        };
        let words = call.arguments(&runtime);
        words
            .iter()
            .map(|w| w.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ")
    }

    const GLOBAL: &str = "--root /r/ns --log /proc/self/fd/3 --log-format json";

    #[test]
    fn the_lines_are_those_of_the_contract() {
        let path = Path::new;
        let (bundle, pid_file) = (path("/b"), path("/b/p"));
        let create = Call::Create {
            id: "c",
            bundle,
            pid_file,
            console_socket: Some(path("/s")),
            no_pivot: true,
            no_new_keyring: true,
        };
        assert_eq!(
            line(create, true),
            format!(
                "{GLOBAL} --systemd-cgroup create --bundle /b --pid-file /b/p \
                 --console-socket /s --no-pivot --no-new-keyring c"
            ),
        );
        assert!(!create.hands_on_streams());
        let exec = Call::Exec {
            id: "c",
            process: b"{}",
            pid_file,
            console_socket: None,
        };
        assert_eq!(
            line(exec, false),
            format!("{GLOBAL} exec --process /proc/self/fd/4 --detach --pid-file /b/p c"),
        );
        assert!(exec.hands_on_streams());
        assert_eq!(
            line(Call::Start { id: "c" }, false),
            format!("{GLOBAL} start c")
        );
        let delete = |force| line(Call::Delete { id: "c", force }, false);
        assert_eq!(delete(true), format!("{GLOBAL} delete --force c"));
        assert_eq!(delete(false), format!("{GLOBAL} delete c"));
        assert_eq!(
            line(
                Call::Update {
                    id: "c",
                    resources: b"{}"
                },
                false
            ),
            format!("{GLOBAL} update --resources /proc/self/fd/4 c"),
        );
        assert_eq!(line(Call::Version, true), "--version");
    }

    #[test]
    fn checkpoints_carry_every_option() {
        let how = Checkpoint {
            path: "/i".into(),
            exit: true,
            open_tcp: true,
            external_unix_sockets: true,
            terminal: true,
            file_locks: true,
            empty_namespaces: vec!["network".into(), "uts".into()],
            work_path: String::new(),
            parent_path: "/old".into(),
        };
        let call = |how| Call::Checkpoint {
            id: "c",
            work: Path::new("/w"),
            how,
        };
        assert_eq!(
            line(call(&how), false),
            format!(
                "{GLOBAL} checkpoint --image-path /i --work-path /w --parent-path /old \
                 --tcp-established --ext-unix-sk --shell-job --file-locks \
                 --empty-ns network --empty-ns uts c"
            ),
        );
        let plain = Checkpoint {
            path: "/i".into(),
            ..Checkpoint::default()
        };
        assert_eq!(
            line(call(&plain), false),
            format!("{GLOBAL} checkpoint --image-path /i --work-path /w --leave-running c"),
        );
        let restore = Call::Restore {
            id: "c",
            bundle: Path::new("/b"),
            image: Path::new("/i"),
            work: Path::new("/w"),
            pid_file: Path::new("/b/p"),
            console_socket: None,
            no_pivot: false,
        };
        assert_eq!(
            line(restore, false),
            format!(
                "{GLOBAL} restore --image-path /i --work-path /w --detach --pid-file /b/p \
                 --no-subreaper --bundle /b c"
            ),
        );
    }
}
