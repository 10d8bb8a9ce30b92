//! One behaviour: a name, where it is written, and the function that tries it.

use std::fmt::Debug;

use anyhow::{Result, bail, ensure};
use containerd_shim_protos::api::{StateResponse, Status};
use vigil_lab::kit::Container;
use vigil_lab::{CallError, Code, Kit};

/// One row of the suite.
#[derive(Debug, Clone, Copy)]
pub struct Behaviour {
    /// Name of the function.
    pub name: &'static str,
    /// Where it is written: a section of the shim contract and its sentence.
    pub source: &'static str,
    /// Tries it with a fresh kit. Whatever it leaves running, the kit ends and checks.
    pub run: fn(&Kit) -> Result<()>,
}

/// Makes a table out of `"source" function;` lines.
#[macro_export]
macro_rules! behaviours {
    ($($source:literal $function:ident;)*) => {
        /// The behaviours of this room.
        pub const TABLE: &[$crate::Behaviour] = &[
            $($crate::Behaviour { name: stringify!($function), source: $source, run: $function },)*
        ];
    };
}

/// All behaviours of the direct suite, in the order they run.
#[must_use]
pub fn all() -> Vec<Behaviour> {
    let rooms = [
        crate::bootstrap::TABLE,
        crate::lifecycle::TABLE,
        crate::exec::TABLE,
        crate::signals::TABLE,
        crate::stdio::TABLE,
        crate::events::TABLE,
        crate::resources::TABLE,
        crate::cgroups::TABLE,
        crate::ends::TABLE,
    ];
    rooms.concat()
}

/// Fails unless the call was answered with `code`.
pub fn refused<T: Debug>(answer: Result<T, CallError>, code: Code, what: &str) -> Result<()> {
    match answer {
        Err(error) if error.is(code) => Ok(()),
        Err(error) => bail!("{what}: {code:?} expected, got {error}"),
        Ok(value) => bail!("{what}: {code:?} expected, it was done: {value:?}"),
    }
}

/// Fails unless the call was answered with some error; a hang or a hang-up is none.
pub fn not_done<T: Debug>(answer: Result<T, CallError>, what: &str) -> Result<()> {
    match answer {
        Err(CallError::Status { message, .. }) => {
            ensure!(!message.is_empty(), "{what}: an error without words");
            Ok(())
        }
        Err(error) => bail!("{what}: an answer with an error expected, got {error}"),
        Ok(value) => bail!("{what}: an error expected, it was done: {value:?}"),
    }
}

/// Fails unless init (or the exec) is in `status`.
pub fn in_status(container: &Container, exec: &str, status: Status) -> Result<StateResponse> {
    let state = container.task().state(&container.id, exec)?;
    let got = state.status.enum_value();
    ensure!(
        got == Ok(status),
        "state of {:?} is {got:?}, not {status:?}",
        container.id
    );
    Ok(state)
}
