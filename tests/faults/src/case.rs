//! One case: a name that begins with its class, a title, and the function that tries it.

use anyhow::Result;
use vigil_lab::{Kit, Place};

/// What a case is tried with.
#[derive(Debug, Clone, Copy)]
pub enum Run {
    /// A shim, driven directly.
    Kit(fn(&Kit) -> Result<()>),
    /// A private containerd.
    Daemon(fn(&mut Place) -> Result<()>),
}

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Every shim there is.
    All,
    /// Ours alone: it needs something of ours.
    Ours,
}

/// One row of the suite.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Name of the function.
    pub name: &'static str,
    /// What must hold, in one line.
    pub title: &'static str,
    /// With what.
    pub run: Run,
    /// Of whom.
    pub asked: Asked,
    /// Nothing may run beside it.
    pub alone: bool,
}

impl Case {
    /// The class its name begins with, as the catalogue writes it: `F04`, `S5`.
    #[must_use]
    pub fn class(&self) -> String {
        class_of(self.name)
    }
}

/// The class a name begins with: letters and digits up to the first `_`; numbers after
/// `F` keep their zero, as in the catalogue.
#[must_use]
pub fn class_of(name: &str) -> String {
    let head = name.split('_').next().unwrap_or(name).to_uppercase();
    if head.starts_with('F') {
        return head;
    }
    let (letter, number) = head.split_at(head.len().min(1));
    format!("{letter}{}", number.trim_start_matches('0'))
}

/// Makes a table of cases, and so adds them to the suite. A case's name begins with its class (`f04_…`, `s05_…`); the row of the
/// final table is taken from there. Write one function in a file of `cases` (or a new
/// file, added to `cases/mod.rs`) and one line in the `cases!` table at its top:
///
/// ```text
/// cases! {
///     Kit    All  f04_delete_behind_a_stalled_upper "Delete is answered in 4 s though umount stalls";
///     Daemon Ours f05_exit_while_containerd_is_down "…" alone;
/// }
/// fn f04_delete_behind_a_stalled_upper(kit: &Kit) -> Result<()> { … }
/// fn f05_exit_while_containerd_is_down(place: &mut Place) -> Result<()> { … }
/// ```
///
/// * `Kit`: driven directly over ttrpc, the finest; after it, nothing of the kit's mark
///   may be left (`Kit::finish`). `Daemon`: a private containerd (Debian's for its own shim
///   and for ours, containerd 2 for the newer Go shim); after it, nothing of its namespace may be
///   left. A daemon with environment or several daemons: `Kit`-less cases can start their
///   own `Place`.
/// * `All`: Go's shims are asked too, and what they answer is told, not judged.
///   `Ours`: needs something of ours (a crash point, our files, our options).
/// * `alone`, at the end of the line: nothing runs beside it (clocks, limits of the whole
///   machine, times that matter).
/// * A case may take two minutes at most, and should take seconds.
/// * Not as asked, and known: a line in `differences.rs` with a reason (`differs` when it
///   is a decision, `open` when it is a fault that is not mended yet).
///
/// Run some: `cargo test -p vigil-faults -- f04` (all shims: `VIGIL_FAULTS=all`; one shim:
/// `VIGIL_ONLY=go-1`). Tools: `vigil_lab` (kit, place, residue, process), and
/// `vigil_hostile` (faulty runcs, options, pairs, traces).
#[macro_export]
macro_rules! cases {
    ($($with:ident $asked:ident $function:ident $title:literal $($alone:ident)?;)*) => {
        /// The cases of this room.
        pub const TABLE: &[$crate::Case] = &[
            $($crate::Case {
                name: stringify!($function),
                title: $title,
                run: $crate::Run::$with($function),
                asked: $crate::Asked::$asked,
                alone: $crate::cases!(@ $($alone)?),
            },)*
        ];
    };
    (@) => { false };
    (@ alone) => { true };
}

#[cfg(test)]
mod tests {
    #[test]
    fn classes_are_written_as_in_the_catalogue() {
        for (name, class) in [
            ("f04_delete", "F04"),
            ("s05_x", "S5"),
            ("s11b_y", "S11B"),
            ("e1_z", "E1"),
        ] {
            assert_eq!(super::class_of(name), class);
        }
    }
}
