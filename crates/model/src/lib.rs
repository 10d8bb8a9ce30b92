//! The rules: what a task is, what can happen to it, and what follows.
//!
//! Pure. This crate knows no clock, path lookup, process, thread or async
//! runtime; time comes inside the event. Everything a task can do is decided
//! by [`step()`], everything it remembers is a [`Record`], and a decision gives
//! up its effects only after its record is down.

#![forbid(unsafe_code)]
#![deny(clippy::wildcard_enum_match_arm)]

pub mod audit;
pub mod cgroup;
mod draft;
pub mod effect;
pub mod event;
pub mod exit;
pub mod id;
pub mod metrics;
pub mod options;
pub mod phase;
pub mod published;
pub mod record;
pub mod refusal;
pub mod request;
pub mod show;
pub mod step;
mod takeover;

pub use cgroup::{Before, Claim, Driver};
pub use effect::Effect;
pub use event::{Event, What};
pub use exit::{Because, Exit, Moment, Status};
pub use id::{BootId, ExecId, IdError, Incarnation, Namespace, RequestId, TaskId, Who};
pub use options::Options;
pub use phase::{
    Exec, ExecPhase, ExecPlan, Milestone, Phase, Plan, Signalling, Standing, Task, Verb,
};
pub use published::{Published, TaskEvent};
pub use record::{Change, CodecError, KIND_RECORD, KIND_SNAPSHOT, Record};
pub use refusal::{Kind, Refusal};
pub use request::{Answer, Mount, Request, Stdio};
pub use show::waited;
pub use step::{Ledger, Step, step};
pub use takeover::{forgotten, outstanding, started};
