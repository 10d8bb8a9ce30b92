//! The rows: where the pair dies, how it is brought there, and what must be so after.

use vigil_sys::points::Point;

use super::Variant::{self, ContainerdToo, OneOfThree, Plain, StateFull, TornRecord};
use super::ends::{self, Seen};

/// How container `c` is brought to the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// `ctr run -d`.
    Run,
    /// It runs; its init ends with 7.
    Exit,
    /// It has ended with 7; `ctr tasks rm`.
    Remove,
    /// It runs; `ctr tasks exec`, which ends with 4.
    Exec,
    /// It runs; `ctr tasks pause`.
    Pause,
    /// It is paused; `ctr tasks resume`.
    Resume,
    /// It has ended with 7 and the pair is killed: `delete` itself dies at the gate.
    Lose,
}

/// Who dies there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dies {
    /// Everything of the runtime that works for this container.
    All,
    /// The process that is at the gate, by its own hand; the others live on.
    Itself,
}

/// One row.
#[derive(Debug)]
pub struct Gate {
    /// Begins with the row's name in the catalogue.
    pub name: &'static str,
    /// Where the process stops that is then killed.
    pub point: Option<Point>,
    /// Where runc stops (see `tests/programs/gated-runc`).
    pub runc: Option<&'static str>,
    /// How it gets there.
    pub act: Act,
    /// Who dies.
    pub dies: Dies,
    /// What must be so after, beside what must always be so.
    pub end: fn(&Seen) -> anyhow::Result<()>,
    /// With what else going wrong.
    pub variants: &'static [Variant],
}

const BOTH: &[Variant] = &[Plain, ContainerdToo];
const ALL: &[Variant] = &[Plain, ContainerdToo, OneOfThree, TornRecord, StateFull];
const RECORDS: &[Variant] = &[Plain, ContainerdToo, TornRecord, StateFull];

const fn gate(
    name: &'static str,
    point: Point,
    act: Act,
    end: fn(&Seen) -> anyhow::Result<()>,
    variants: &'static [Variant],
) -> Gate {
    Gate {
        name,
        point: Some(point),
        runc: None,
        act,
        dies: Dies::All,
        end,
        variants,
    }
}

/// All of them.
pub const GATES: &[Gate] = &[
    gate(
        "s01_before_bind",
        Point::StartBeforeBind,
        Act::Run,
        ends::nothing_told,
        BOTH,
    ),
    gate(
        "s02_pair_not_ready",
        Point::PairNotReady,
        Act::Run,
        ends::nothing_told,
        BOTH,
    ),
    gate(
        "s02_address_not_printed",
        Point::AddressNotPrinted,
        Act::Run,
        ends::nothing_told,
        BOTH,
    ),
    Gate {
        dies: Dies::Itself,
        ..gate(
            "s02_start_alone_dies",
            Point::AddressNotPrinted,
            Act::Run,
            ends::nothing_told,
            BOTH,
        )
    },
    gate(
        "s03_before_create",
        Point::BeforeCreate,
        Act::Run,
        ends::no_task,
        BOTH,
    ),
    gate(
        "s04_rootfs_mounted",
        Point::RootfsMounted,
        Act::Run,
        ends::no_task,
        ALL,
    ),
    Gate {
        runc: Some("no-state"),
        ..gate(
            "s05_runc_without_state",
            Point::RuncCreateCalled,
            Act::Run,
            ends::no_task,
            ALL,
        )
    },
    Gate {
        point: None,
        runc: Some("no-pid-file"),
        ..gate(
            "s06_runc_without_pid_file",
            Point::RuncCreateCalled,
            Act::Run,
            ends::no_task,
            BOTH,
        )
    },
    gate(
        "s07_runc_create_done",
        Point::RuncCreateDone,
        Act::Run,
        ends::no_task,
        BOTH,
    ),
    gate(
        "s07_created_not_journaled",
        Point::CreatedNotJournaled,
        Act::Run,
        ends::no_task,
        BOTH,
    ),
    gate(
        "s08_created_not_told",
        Point::CreatedNotTold,
        Act::Run,
        ends::created_then_killed,
        RECORDS,
    ),
    gate(
        "s09_started_not_journaled",
        Point::StartedNotJournaled,
        Act::Run,
        ends::killed,
        ALL,
    ),
    gate(
        "s10_death_not_recorded",
        Point::DeathNotRecorded,
        Act::Exit,
        ends::end_unknown,
        BOTH,
    ),
    gate(
        "s10_death_not_reaped",
        Point::DeathNotReaped,
        Act::Exit,
        ends::exited_7,
        RECORDS,
    ),
    gate(
        "s11_exit_journaled",
        Point::ExitJournaled,
        Act::Exit,
        ends::exited_7,
        ALL,
    ),
    gate(
        "s11_exit_not_sent",
        Point::ExitNotSent,
        Act::Exit,
        ends::exited_7,
        BOTH,
    ),
    gate(
        "s12_exit_sent",
        Point::ExitSent,
        Act::Exit,
        ends::exited_7_again,
        RECORDS,
    ),
    gate(
        "s13_delete_drained",
        Point::DeleteDrained,
        Act::Remove,
        ends::exited_7_again,
        BOTH,
    ),
    gate(
        "s14_runc_delete_done",
        Point::RuncDeleteDone,
        Act::Remove,
        ends::exited_7_again,
        ALL,
    ),
    gate(
        "s15_deleted_not_journaled",
        Point::DeletedNotJournaled,
        Act::Remove,
        ends::exited_7_again,
        BOTH,
    ),
    gate(
        "s15_deleted_not_told",
        Point::DeletedNotTold,
        Act::Remove,
        ends::exited_7_again,
        RECORDS,
    ),
    gate(
        "s16_before_shutdown",
        Point::BeforeShutdown,
        Act::Remove,
        ends::deleted_7,
        BOTH,
    ),
    gate(
        "s17_socket_removed",
        Point::SocketRemoved,
        Act::Remove,
        ends::deleted_7,
        BOTH,
    ),
    gate(
        "e1_runc_exec_done",
        Point::RuncExecDone,
        Act::Exec,
        ends::killed,
        BOTH,
    ),
    gate(
        "e2_exec_started",
        Point::ExecStartedNotTold,
        Act::Exec,
        ends::killed,
        BOTH,
    ),
    gate(
        "e3_exec_exited",
        Point::ExecExitJournaled,
        Act::Exec,
        ends::killed,
        BOTH,
    ),
    gate(
        "e4_exec_deleted",
        Point::ExecDeletedNotTold,
        Act::Exec,
        ends::killed,
        BOTH,
    ),
    gate(
        "p1_frozen_not_journaled",
        Point::PausedNotJournaled,
        Act::Pause,
        ends::killed,
        ALL,
    ),
    gate(
        "p2_thaw_half_done",
        Point::ThawAsked,
        Act::Resume,
        ends::killed,
        BOTH,
    ),
    gate_of_delete("d1_delete_locked", Point::DeleteLocked),
    gate_of_delete("d2_delete_not_recorded", Point::DeleteNotRecorded),
    gate_of_delete("d3_delete_not_printed", Point::DeleteNotPrinted),
];

/// Killed in `delete`: the next `delete` says the same.
const fn gate_of_delete(name: &'static str, point: Point) -> Gate {
    Gate {
        dies: Dies::Itself,
        ..gate(name, point, Act::Lose, ends::exited_7_again, BOTH)
    }
}
