//! The rows: where the pair dies, how it is brought there, and what must be so after.

use anyhow::Result;
use vigil_sys::points::Point;

use super::Variant::{
    self, ContainerdLater, ContainerdToo, OneAlone, OneOfThree, Plain, ReaperAlone, StateFull,
    TornRecord,
};
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
    /// It runs; `ctr tasks kill` with SIGKILL.
    Kill,
    /// It has ended with 7 and the pair is killed: `delete` itself dies at the gate.
    Lose,
}

/// Who dies there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dies {
    /// Reaper and shim. `start`, if it still runs, lives on.
    Pair,
    /// `start` and what it has made so far. containerd runs no `delete` for a `start` that
    /// failed, so nobody is left to remove a socket until the id is used again.
    StartToo,
    /// `start` alone: the pair does not know that nobody has heard of it.
    StartAlone,
    /// `delete` at the gate, after reaper and shim.
    Delete,
}

/// One row.
#[derive(Debug)]
pub struct Gate {
    /// Begins with the row's name in the catalogue.
    pub name: &'static str,
    /// Where the process stops.
    pub point: Point,
    /// How it gets there.
    pub act: Act,
    /// Who dies.
    pub dies: Dies,
    /// What must be so after, beside what must always be so.
    pub end: fn(&Seen) -> Result<()>,
    /// With what else going wrong.
    pub variants: &'static [Variant],
    /// Where runc stops too (see `tests/programs/gated-runc`).
    pub runc: Option<&'static str>,
}

impl Gate {
    /// Whether there was a task, whose end containerd tells in any case.
    #[must_use]
    pub fn tells_an_end(&self) -> bool {
        self.act != Act::Run || self.point == Point::StartedNotJournaled
    }

    /// Whether it is the reaper that stops there.
    #[must_use]
    pub fn reaper_is_there(&self) -> bool {
        matches!(self.point, Point::DeathNotRecorded | Point::DeathNotReaped)
    }
}

const ONE: &[Variant] = &[Plain, ContainerdToo];
const TWO: &[Variant] = &[Plain, OneAlone, ReaperAlone, ContainerdToo];
const SOLO: &[Variant] = &[
    Plain,
    OneAlone,
    ReaperAlone,
    ContainerdToo,
    TornRecord,
    StateFull,
];
const MANY: &[Variant] = &[
    Plain,
    OneAlone,
    ReaperAlone,
    ContainerdToo,
    OneOfThree,
    TornRecord,
    StateFull,
];
const EVERY: &[Variant] = &[
    Plain,
    OneAlone,
    ReaperAlone,
    ContainerdToo,
    ContainerdLater,
    OneOfThree,
    TornRecord,
    StateFull,
];

macro_rules! gates {
    ($($name:ident $point:ident $act:ident $dies:ident $end:ident $variants:ident $($runc:literal)?;)+) => {
        /// All of them.
        pub const GATES: &[Gate] = &[
            $(Gate {
                name: stringify!($name),
                point: Point::$point,
                act: Act::$act,
                dies: Dies::$dies,
                end: ends::$end,
                variants: $variants,
                runc: gates!(@ $($runc)?),
            },)+
        ];
    };
    (@) => { None };
    (@ $runc:literal) => { Some($runc) };
}

gates! {
    s01_before_bind           StartBeforeBind     Run    StartToo   nothing_told        ONE;
    s02_pair_not_ready        PairNotReady        Run    StartToo   nothing_told        ONE;
    s02_start_lives           PairNotReady        Run    Pair       nothing_told        TWO;
    s02_address_not_printed   AddressNotPrinted   Run    StartToo   nothing_told        ONE;
    s02_start_alone_dies      AddressNotPrinted   Run    StartAlone nothing_told        ONE;
    s03_before_create         BeforeCreate        Run    Pair       no_task             TWO;
    s04_rootfs_mounted        RootfsMounted       Run    Pair       no_task             MANY;
    s04_fifos_opened          FifosOpened         Run    Pair       no_task             TWO;
    s05_runc_without_state    RuncCreateCalled    Run    Pair       no_task             MANY "no-state";
    s06_runc_without_pid_file RuncCreateCalled    Run    Pair       no_task             TWO  "no-pid-file";
    s07_runc_create_done      RuncCreateDone      Run    Pair       no_task             TWO;
    s07_created_not_journaled CreatedNotJournaled Run    Pair       no_task             TWO;
    s08_created_not_told      CreatedNotTold      Run    Pair       created_then_killed SOLO;
    s09_started_not_journaled StartedNotJournaled Run    Pair       killed              EVERY;
    s10_death_not_recorded    DeathNotRecorded    Exit   Pair       exited_7_or_unknown TWO;
    s10_death_not_reaped      DeathNotReaped      Exit   Pair       exited_7_again      SOLO;
    s11_exit_journaled        ExitJournaled       Exit   Pair       exited_7            EVERY;
    s11_exit_not_sent         ExitNotSent         Exit   Pair       exited_7            TWO;
    s12_exit_sent             ExitSent            Exit   Pair       exited_7_again      SOLO;
    s13_delete_drained        DeleteDrained       Remove Pair       exited_7_again      TWO;
    s14_runc_delete_done      RuncDeleteDone      Remove Pair       exited_7_again      MANY;
    s15_deleted_not_journaled DeletedNotJournaled Remove Pair       exited_7_again      TWO;
    s15_deleted_not_told      DeletedNotTold      Remove Pair       exited_7_again      SOLO;
    s16_before_shutdown       BeforeShutdown      Remove Pair       deleted_7           TWO;
    s17_socket_removed        SocketRemoved       Remove Pair       deleted_7           TWO;
    e1_runc_exec_done         RuncExecDone        Exec   Pair       killed              TWO;
    e2_exec_started           ExecStartedNotTold  Exec   Pair       killed              TWO;
    e3_exec_exited            ExecExitJournaled   Exec   Pair       killed              TWO;
    e4_exec_deleted           ExecDeletedNotTold  Exec   Pair       killed              TWO;
    p1_frozen_not_journaled   PausedNotJournaled  Pause  Pair       killed              MANY;
    p2_thaw_half_done         ThawAsked           Resume Pair       killed              TWO;
    k1_signal_not_sent        SignalNotSent       Kill   Pair       killed              TWO;
    k2_signal_sent            SignalSent          Kill   Pair       killed              TWO;
    o1_ended_not_released     EndedNotReleased    Exec   Pair       killed              TWO;
    d0_delete_begun           DeleteBegun         Lose   Delete     exited_7_again      ONE;
    d1_delete_locked          DeleteLocked        Lose   Delete     exited_7_again      ONE;
    d2_delete_not_recorded    DeleteNotRecorded   Lose   Delete     exited_7_again      ONE;
    d3_delete_not_printed     DeleteNotPrinted    Lose   Delete     exited_7_again      ONE;
}
