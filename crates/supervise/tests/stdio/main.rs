//! The streams of real processes over real fifos, with a keeper that really
//! holds copies: every byte arrives, every end comes, nobody waits for ever.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod input;
mod logger;
mod output;
mod runc;
mod support;
mod takeover;
mod terminal;
