//! What can go wrong between containerd and us, by operation.
//!
//! Each variant names what was being read or made; the cause stays its source
//! and is not repeated in the text.

use std::{io, path::PathBuf};

use vigil_model::{IdError, Kind, Refusal};

/// A failure of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An argument of the command line is not UTF-8.
    #[error("argument {argument:?} is not UTF-8")]
    ArgumentNotUtf8 {
        /// The argument, with what could not be read replaced.
        argument: String,
    },
    /// Three dashes, or no name before `=`.
    #[error("bad flag syntax: {argument}")]
    FlagSyntax {
        /// The argument.
        argument: String,
    },
    /// No such flag.
    #[error("flag provided but not defined: -{flag}")]
    FlagUnknown {
        /// Its name without dashes.
        flag: String,
    },
    /// The flag wants a value and the command line ends.
    #[error("flag needs an argument: -{flag}")]
    FlagValueMissing {
        /// Its name without dashes.
        flag: &'static str,
    },
    /// A switch was given something that is neither true nor false.
    #[error("invalid boolean value {value:?} for -{flag}")]
    FlagNotBoolean {
        /// Its name without dashes.
        flag: &'static str,
        /// What was given.
        value: String,
    },
    /// `-namespace` is missing, empty or malformed.
    #[error("-namespace cannot be used")]
    NamespaceUnusable {
        /// Why.
        #[source]
        source: IdError,
    },
    /// `-id` is missing, empty or malformed.
    #[error("-id cannot be used")]
    IdUnusable {
        /// Why.
        #[source]
        source: IdError,
    },
    /// No action was given.
    #[error("no action given: start or delete")]
    ActionMissing,
    /// The first positional argument is no action.
    #[error("unknown action {action:?}: start or delete")]
    ActionUnknown {
        /// What was given.
        action: String,
    },
    /// stdin could not be read.
    #[error("reading stdin")]
    StdinRead {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// stdin is longer than containerd ever sends.
    #[error("stdin is longer than {limit} bytes")]
    StdinTooLong {
        /// Bytes allowed.
        limit: u64,
    },
    /// stdin is neither empty, nor options, nor bootstrap parameters.
    #[error("{length} bytes on stdin are neither runtime options nor bootstrap parameters")]
    StdinGarbage {
        /// How many bytes came.
        length: usize,
    },
    /// Bootstrap parameters, but for another container.
    #[error(
        "the bootstrap parameters on stdin are for {instance:?} in namespace {namespace:?}, the command line is not"
    )]
    StdinForAnother {
        /// `instance_id`, shortened.
        instance: String,
        /// `namespace`, shortened.
        namespace: String,
    },
    /// Options of a type nobody here knows.
    #[error("runtime options of unknown type {name:?}")]
    OptionsType {
        /// The type's name, shortened.
        name: String,
    },
    /// The bytes are not a message of the type they claim.
    #[error("{name} cannot be decoded: {says}")]
    OptionsDecode {
        /// The type's name.
        name: &'static str,
        /// Where it broke.
        says: &'static str,
    },
    /// The text is not TOML. The parser's own display draws a picture of
    /// several lines; ours is one.
    #[error("runtime options of {origin} are not TOML: line {line}: {says}")]
    OptionsToml {
        /// `config_body` or the file's path.
        origin: String,
        /// Where it broke, from 1.
        line: usize,
        /// What is wrong there.
        says: String,
    },
    /// A key has a value of another type than it should.
    #[error("runtime option {key} of {origin} must be {wanted}, it is {found}")]
    OptionsKey {
        /// `config_body` or the file's path.
        origin: String,
        /// The key.
        key: &'static str,
        /// The type it should have.
        wanted: &'static str,
        /// The type it has.
        found: &'static str,
    },
    /// The file named by `config_path` could not be read.
    #[error("reading runtime options from {}", path.display())]
    OptionsRead {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file named by `config_path` is not one that can hold options.
    #[error("{} cannot hold runtime options: {says}", path.display())]
    OptionsFile {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        says: &'static str,
    },
    /// The directory for sockets is not absolute.
    #[error("socket directory {dir:?} is not absolute")]
    SocketDirRelative {
        /// As given.
        dir: String,
    },
    /// The path does not fit into a socket address.
    #[error("socket path {path} has {length} bytes, {limit} are allowed")]
    SocketPathTooLong {
        /// The path.
        path: String,
        /// Its length.
        length: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// A message could not be encoded (longer than 2 GiB, or out of memory).
    #[error("encoding {message}")]
    Encode {
        /// Its name.
        message: &'static str,
        /// Why.
        #[source]
        source: protobuf::Error,
    },
    /// The ttrpc server could not be started.
    #[error("starting the Task service")]
    ServerStart {
        /// Why.
        #[source]
        source: ttrpc::Error,
    },
    /// A connection could not be handed to the server.
    #[error("taking a connection into the Task service")]
    ServerAdd {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The server's accept task has ended.
    #[error("the Task service has ended")]
    ServerEnded,
}

impl Error {
    /// The whole story in one line: this error and its causes.
    pub fn story(&self) -> String {
        let mut story = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(next) = cause {
            story.push_str(": ");
            story.push_str(&next.to_string());
            cause = next.source();
        }
        story
    }

    /// The refusal of a request that carried this.
    pub(crate) fn refusal(&self, of: &str) -> Refusal {
        Refusal::new(
            Kind::InvalidArgument,
            format!("{of}: {}", self.story().trim_end()),
        )
    }
}

/// A peer's text, short enough to be shown in an error.
pub(crate) fn shown(text: &str) -> String {
    const MOST: usize = 100;
    if text.chars().count() <= MOST {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(MOST).collect();
    cut.push('…');
    cut
}
