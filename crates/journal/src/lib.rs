//! The memory: what survives the death of the process that wrote it.
//!
//! Owns the bytes of every file Vigil keeps in a bundle: the journal (written
//! by the shim alone), the exit records (written by the reaper alone), `pair`,
//! `takeovers`, `lock` and a file for each exec. It must never know what a record means, delete what it cannot
//! read, or map memory itself. Every byte is described in `FORMAT.md`.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod asked;
mod boot;
mod compact;
#[doc(hidden)]
pub mod crash;
mod crc32c;
pub mod ended;
mod error;
pub mod exits;
mod file;
mod frame;
pub mod lock;
mod mirror;
pub mod names;
pub mod owner;
pub mod pair;
pub mod panic;
mod replay;
mod storage;
pub mod takeovers;
mod writer;

pub use boot::{BOOT_ID_BYTES, BootId, BootIdError};
pub use error::{During, Error};
pub use file::{DiskFile, Folder};
pub use frame::{
    FILE_BYTES_MAX, FRAME_BYTES_MIN, HEADER_BYTES, HEADER_BYTES_V1, Header, HeaderFault, MAGIC,
    PAYLOAD_BYTES_MAX, VERSION,
};
pub use mirror::Mirror;
pub use owner::{NotOurs, Owner};
pub use replay::{Damage, Record, Replayed, Tail, replay, scan};
pub use storage::{Directory, Storage};
pub use writer::{Journal, Opened, PREALLOC_BYTES, Settings, set_aside};
