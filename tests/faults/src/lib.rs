//! What goes wrong in the field, made to go wrong on purpose: every class of the fault
//! catalogue one machine can produce, and the crash-point matrix, against real containers.
//!
//! How to add a case. Its name begins with its class (`f04_…`, `s05_…`); the row of the
//! final table is taken from there. Write one function in a file of `cases` (or a new
//! file, added to `cases/mod.rs`) and one line in the `cases!` table at its top:
//!
//! ```text
//! cases! {
//!     Kit    All  f04_delete_behind_a_stalled_upper "Delete is answered in 4 s though umount stalls";
//!     Daemon Ours f05_exit_while_containerd_is_down "…" alone;
//! }
//! fn f04_delete_behind_a_stalled_upper(kit: &Kit) -> Result<()> { … }
//! fn f05_exit_while_containerd_is_down(place: &mut Place) -> Result<()> { … }
//! ```
//!
//! * `Kit`: driven directly over ttrpc, the finest; after it, nothing of the kit's mark
//!   may be left (`Kit::finish`). `Daemon`: a private containerd (1.6.20 for Debian's shim
//!   and for ours, 2.1.9 for the newer Go shim); after it, nothing of its namespace may be
//!   left. A daemon with environment or several daemons: `Kit`-less cases can start their
//!   own `Place`.
//! * `All`: Go's shims are asked too, and what they answer is told, not judged.
//!   `Ours`: needs something of ours (a crash point, our files, our options).
//! * `alone`, at the end of the line: nothing runs beside it (clocks, limits of the whole
//!   machine, times that matter).
//! * A case may take two minutes at most, and should take seconds.
//! * Not as asked, and known: a line in `differences.rs` with a reason (`differs` when it
//!   is a decision, `open` when it is a fault that is not mended yet).
//!
//! Run some: `cargo test -p vigil-faults -- f04` (all shims: `VIGIL_FAULTS=all`; one shim:
//! `VIGIL_ONLY=go-1.6.20`). Tools: `vigil_lab` (kit, place, residue, process), and
//! `vigil_hostile` (faulty runcs, options, pairs, traces).

pub mod case;
pub mod cases;
pub mod differences;
pub mod elsewhere;
pub mod ice;
pub mod matrix;
pub mod rest;
pub mod runner;
pub mod stall;
pub mod table;
pub mod watch;
pub mod world;

pub use case::{Asked, Case, Run};
