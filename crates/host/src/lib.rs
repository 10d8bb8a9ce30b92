//! Eyes and hands: looks at the host ([`observe`], read-only) and changes it
//! ([`enact`]). Decides nothing: what to do comes from `model` and
//! `reconcile`. Nothing here may sleep uninterruptibly on the caller's own
//! thread; what could goes into a [`worker`] process with a deadline.

pub mod bundle;
pub mod cgroup;
pub mod enact;
mod error;
pub mod kin;
pub mod observe;
pub mod proc;
pub mod rootfs;
pub mod runc;
pub mod starts;
pub mod stdio;
pub mod strays;
pub mod sweep;
pub mod worker;

pub use error::{Error, causes, chain, limit, scarcity};

/// What the functions of this crate return.
pub type Result<T> = std::result::Result<T, Error>;
