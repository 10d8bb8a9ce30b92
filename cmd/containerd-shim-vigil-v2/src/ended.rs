//! What `delete` has answered, where the journal could not keep it. A second `delete` of the
//! same life then says the same; so does one that comes after a repair.

use std::path::Path;

use anyhow::{Context, Result};
use vigil_host::enact::Ended;
use vigil_journal::ended::{self, EndedError};
use vigil_journal::{Owner, names};

/// What was told before; anything but a whole and fitting one of this owner is none.
pub fn read(bundle: &Path, owner: &Owner) -> Option<Ended> {
    match ended::read(bundle, owner) {
        Ok(line) => Ended::parse(&line?, ended::life(bundle)),
        Err(error @ (EndedError::NotOurs { .. } | EndedError::Read { .. })) => {
            eprintln!("warning: {}", vigil_host::chain(&error));
            None
        }
        Err(EndedError::NotIt { .. } | EndedError::NotAFile { .. }) => None,
    }
}

/// Keeps what is about to be told, whole or not at all.
pub fn write(bundle: &Path, owner: &Owner, end: &Ended) -> Result<()> {
    let line = end.line(ended::life(bundle))?;
    ended::write(bundle, owner, &line)
        .with_context(|| format!("cannot write {}", bundle.join(names::ENDED).display()))
}
