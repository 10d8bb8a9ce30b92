//! What a client does, act by act. Each act waits for everything that must come of it, so
//! that a blow in it is judged in it, or by those that follow.

use anyhow::Result;

use crate::stage::{CODE, Kind, Stage};

/// One thing a client does, and all that comes of it.
#[derive(Debug)]
pub struct Act {
    /// Its name in scripts.
    pub name: &'static str,
    /// Whether each of its system calls is tried in this story; what only leads there is
    /// tried in another.
    pub tried: bool,
    /// Does and judges it.
    pub run: fn(&mut Stage) -> Result<()>,
}

/// Acts in order, from Create to Shutdown.
#[derive(Debug)]
pub struct Story {
    /// Its name in scripts.
    pub name: &'static str,
    /// See [`Act`].
    pub acts: &'static [Act],
}

macro_rules! acts {
    ($($mark:ident $name:literal $run:expr;)+) => {
        &[$(Act { name: $name, tried: acts!(@ $mark), run: $run },)+]
    };
    (@ tried) => { true };
    (@ passed) => { false };
}

/// Init's life: its streams, its own end with more words than a pipe holds.
const LIFE: &[Act] = acts! {
    tried "create" Stage::create;
    tried "start" |s| s.start("");
    tried "echo" |s| s.talk("");
    tried "look" Stage::look;
    tried "end" |s| s.finish("", CODE);
    tried "delete" Stage::delete;
    tried "shutdown" Stage::shutdown;
};

/// An exec with three pipes, killed; and one whose stdin is closed.
const EXEC: &[Act] = acts! {
    passed "create" Stage::create;
    passed "start" |s| s.start("");
    tried "add" |s| s.add("x", Kind::Parrot);
    tried "run" |s| s.start("x");
    tried "echo" |s| s.talk("x");
    tried "look" Stage::look;
    tried "kill" |s| s.kill("x");
    tried "remove" |s| s.remove("x", 137);
    passed "add-cat" |s| s.add("c", Kind::Cat);
    passed "run-cat" |s| s.start("c");
    tried "close" |s| { s.close("c")?; s.ended("c", 4) };
    passed "remove-cat" |s| s.remove("c", 4);
    tried "kill-init" |s| s.kill("");
    passed "delete" Stage::delete;
    passed "shutdown" Stage::shutdown;
};

/// A terminal.
const TERMINAL: &[Act] = acts! {
    passed "create" Stage::create;
    passed "start" |s| s.start("");
    passed "add" |s| s.add("t", Kind::Terminal);
    tried "run" |s| s.start("t");
    tried "resize" |s| s.resize("t", 101, 37);
    tried "echo" |s| s.talk("t");
    tried "end" |s| s.finish("t", 6);
    passed "remove" |s| s.remove("t", 6);
    passed "kill-init" |s| s.kill("");
    passed "delete" Stage::delete;
    passed "shutdown" Stage::shutdown;
};

/// What changes a running container; and its end while an exec runs.
const CHANGES: &[Act] = acts! {
    passed "create" Stage::create;
    passed "start" |s| s.start("");
    passed "add" |s| s.add("y", Kind::Listener);
    passed "run" |s| s.start("y");
    tried "pause" Stage::pause;
    tried "resume" Stage::resume;
    tried "update" Stage::update;
    tried "signal" |s| s.signal("y");
    tried "kill-all" |s| s.kill_with("y");
    tried "delete" Stage::delete;
    passed "shutdown" Stage::shutdown;
};

/// A second client.
const VISIT: &[Act] = acts! {
    passed "create" Stage::create;
    passed "start" |s| s.start("");
    tried "visit" Stage::visit;
    passed "kill-init" |s| s.kill("");
    passed "delete" Stage::delete;
    passed "shutdown" Stage::shutdown;
};

/// All of it, in one life.
const WHOLE: &[Act] = acts! {
    passed "create" Stage::create;
    passed "start" |s| s.start("");
    passed "echo" |s| s.talk("");
    passed "add" |s| s.add("x", Kind::Parrot);
    passed "run" |s| s.start("x");
    passed "echo-x" |s| s.talk("x");
    passed "add-tty" |s| s.add("t", Kind::Terminal);
    passed "run-tty" |s| s.start("t");
    passed "resize" |s| s.resize("t", 101, 37);
    passed "echo-tty" |s| s.talk("t");
    passed "add-y" |s| s.add("y", Kind::Listener);
    passed "run-y" |s| s.start("y");
    passed "signal" |s| s.signal("y");
    passed "look" Stage::look;
    passed "pause" Stage::pause;
    passed "resume" Stage::resume;
    passed "update" Stage::update;
    passed "echo-again" |s| { s.talk("")?; s.talk("x")?; s.talk("t") };
    passed "kill" |s| s.kill("x");
    passed "remove" |s| s.remove("x", 137);
    passed "end-tty" |s| s.finish("t", 6);
    passed "remove-tty" |s| s.remove("t", 6);
    passed "add-cat" |s| s.add("c", Kind::Cat);
    passed "run-cat" |s| s.start("c");
    passed "close" |s| { s.close("c")?; s.ended("c", 4) };
    passed "kill-y" |s| s.kill("y");
    passed "end" |s| s.finish("", CODE);
    passed "delete" Stage::delete;
    passed "shutdown" Stage::shutdown;
};

/// All of them.
pub const STORIES: &[Story] = &[
    Story {
        name: "life",
        acts: LIFE,
    },
    Story {
        name: "exec",
        acts: EXEC,
    },
    Story {
        name: "terminal",
        acts: TERMINAL,
    },
    Story {
        name: "changes",
        acts: CHANGES,
    },
    Story {
        name: "visit",
        acts: VISIT,
    },
    Story {
        name: "whole",
        acts: WHOLE,
    },
];
