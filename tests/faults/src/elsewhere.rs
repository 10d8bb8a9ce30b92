//! What of the catalogue is tried in another suite already, and what no single machine of
//! ours can produce, with the reason. The table is complete only together with this.

use std::fmt::Write;

/// A test of another suite that is a case of a class.
#[derive(Debug, Clone, Copy)]
pub struct Covered {
    /// As in the catalogue.
    pub class: &'static str,
    /// File below `tests/`, without `.rs`; conformance is run against Go's shims too.
    pub file: &'static str,
    /// The function.
    pub test: &'static str,
}

/// What is not produced.
#[derive(Debug, Clone, Copy)]
pub struct Missing {
    /// As in the catalogue.
    pub class: &'static str,
    /// What of it.
    pub what: &'static str,
    /// Why.
    pub reason: &'static str,
}

const fn covered(class: &'static str, file: &'static str, test: &'static str) -> Covered {
    Covered { class, file, test }
}

const fn missing(class: &'static str, what: &'static str, reason: &'static str) -> Missing {
    Missing {
        class,
        what,
        reason,
    }
}

/// In the catalogue's order.
pub const COVERED: &[Covered] = &[
    covered(
        "F01",
        "hostile/tests/frames",
        "pids_of_twenty_thousand_processes",
    ),
    covered("F01", "conformance/src/exec", "exec_early_exits"),
    covered("F02", "hostile/tests/pair", "sigkill_of_both"),
    covered(
        "F02",
        "hostile/tests/pair",
        "no_number_of_deaths_of_a_shim_in_a_minute_is_the_last",
    ),
    covered(
        "F02",
        "hostile/tests/takeover",
        "a_container_runs_on_and_its_output_is_whole",
    ),
    covered(
        "F02",
        "hostile/tests/takeover",
        "a_wait_that_was_pending_hears_the_exit",
    ),
    covered(
        "F02",
        "hostile/tests/takeover",
        "what_was_under_way_is_finished_once",
    ),
    covered("F02", "hostile/tests/pair", "sigkill_of_the_reaper_first"),
    covered(
        "F02",
        "hostile/tests/orphan",
        "a_container_runs_on_and_takes_every_request",
    ),
    covered(
        "F02",
        "hostile/tests/orphan",
        "an_exit_is_told_with_its_status",
    ),
    covered(
        "F02",
        "hostile/tests/orphan",
        "what_nobody_saw_is_unknown_within_a_second",
    ),
    covered("F02", "conformance/src/ends", "delete_after_kill_cleans"),
    covered("F02", "conformance/src/ends", "delete_of_paused"),
    covered("F02", "conformance/src/ends", "delete_with_execs"),
    covered(
        "F02",
        "conformance/src/daemon",
        "killed_shim_leaves_nothing",
    ),
    covered(
        "F03",
        "hostile/tests/create",
        "runc_that_hangs_is_ended_at_its_deadline",
    ),
    covered(
        "F03",
        "hostile/tests/create",
        "runc_that_hangs_in_start_and_delete",
    ),
    covered("F03", "hostile/tests/exec", "runc_exec_that_fails_or_hangs"),
    covered(
        "F05",
        "conformance/src/daemon",
        "exit_while_containerd_is_down",
    ),
    covered(
        "F05",
        "conformance/src/daemon",
        "restart_with_running_container",
    ),
    covered(
        "F05",
        "hostile/tests/events",
        "a_containerd_that_comes_back_hears_everything_in_order",
    ),
    covered(
        "F05",
        "hostile/tests/events",
        "hang_ups_in_between_lose_nothing_and_keep_the_order",
    ),
    covered(
        "F05",
        "hostile/tests/events",
        "a_sink_that_never_answers_delays_nobody",
    ),
    covered(
        "F05",
        "hostile/tests/events",
        "a_thousand_events_wait_in_little_memory",
    ),
    covered("F06", "conformance/src/exec", "execs_die_with_init"),
    covered("F06", "conformance/src/exec", "exec_start_after_init_exit"),
    covered("F06", "conformance/src/events", "exec_exits_before_init"),
    covered("F07", "hostile/tests/midway", "in_the_middle_of_create"),
    covered(
        "F07",
        "hostile/tests/create",
        "runc_that_fails_in_each_of_its_ways",
    ),
    covered("F09", "conformance/src/signals", "leftovers_die_with_init"),
    covered("F09", "conformance/src/ends", "delete_with_host_pids"),
    covered(
        "F10",
        "hostile/tests/pair",
        "a_pair_that_hears_nothing_is_made_to_leave",
    ),
    covered("F11", "hostile/tests/pair", "a_pair_nobody_needs_leaves"),
    covered(
        "F11",
        "conformance/src/lifecycle",
        "shutdown_with_container_does_nothing",
    ),
    covered(
        "F11",
        "conformance/src/lifecycle",
        "shutdown_of_an_empty_shim",
    ),
    covered("F12", "conformance/src/stdio", "reader_may_come_back"),
    covered(
        "F12",
        "hostile/tests/create",
        "a_logger_that_ends_at_once_costs_the_output_not_the_container",
    ),
    covered(
        "F13",
        "conformance/src/stdio",
        "background_child_holds_output",
    ),
    covered(
        "F13",
        "hostile/tests/loops",
        "the_end_comes_with_a_slow_reader_and_with_a_child_that_holds_the_pipe",
    ),
    covered(
        "F14",
        "conformance/src/cgroups",
        "delete_with_nested_frozen",
    ),
    covered("F15", "hostile/tests/pair", "delete_without_a_bundle"),
    covered(
        "F15",
        "hostile/tests/pair",
        "delete_twice_and_by_four_at_once",
    ),
    covered("F15", "conformance/src/ends", "delete_prints_only_protobuf"),
    covered(
        "F15",
        "conformance/src/ends",
        "delete_reports_the_true_status",
    ),
    covered(
        "F16",
        "conformance/src/ends",
        "delete_reports_the_true_status",
    ),
    covered("F16", "conformance/src/ends", "program_missing"),
    covered("F16", "conformance/src/daemon", "run_rm_exit_status"),
    covered("F18", "hostile/tests/pair", "start_over_a_pair_with_a_task"),
    covered(
        "F18",
        "conformance/src/lifecycle",
        "failed_create_spares_a_stranger",
    ),
    covered(
        "F20",
        "conformance/src/cgroups",
        "frozen_nested_dies_with_init",
    ),
    covered("F21", "conformance/src/exec", "execs_do_not_mix"),
    covered("F22", "conformance/src/cgroups", "oom_of_init"),
    covered("F22", "conformance/src/cgroups", "oom_in_nested"),
    covered("F22", "conformance/src/cgroups", "oom_of_the_group"),
    covered("F22", "conformance/src/cgroups", "old_ooms_are_not_told"),
    covered("F23", "conformance/src/lifecycle", "serves_v2"),
    covered("F23", "conformance/src/lifecycle", "serves_v3"),
    covered("F23", "conformance/src/bootstrap", "bootstrap_params"),
    covered("F23", "conformance/src/bootstrap", "newer_environment"),
    covered("F24", "conformance/src/cgroups", "frozen_by_others"),
    covered("F24", "conformance/src/signals", "kill_of_paused"),
    covered("F24", "conformance/src/signals", "delete_of_paused_refused"),
    covered(
        "F26",
        "hostile/tests/pair",
        "delete_with_files_missing_torn_or_foreign",
    ),
    covered("F26", "conformance/src/ends", "delete_of_nothing"),
    covered("F28", "hostile/tests/start", "a_bundle_without_room"),
    covered("F29", "hostile/tests/pair", "a_pair_nobody_needs_leaves"),
    covered(
        "F30",
        "hostile/tests/create",
        "a_stranger_in_runcs_pid_file_lives_on",
    ),
    covered(
        "F32",
        "hostile/tests/pair",
        "sigterm_to_the_reaper_ends_both_and_not_the_container",
    ),
    covered(
        "F32",
        "hostile/tests/pair",
        "sigterm_with_a_deaf_sink_takes_a_second_and_twice_none",
    ),
    covered(
        "F32",
        "hostile/tests/pair",
        "sigterm_after_the_exit_keeps_its_status",
    ),
    covered("F33", "hostile/tests/loops", "execs_leave_a_shim_as_it_was"),
    covered(
        "F33",
        "hostile/tests/loops",
        "two_hundred_lives_leave_nothing_on_the_host",
    ),
    covered(
        "F33",
        "hostile/tests/frames",
        "pids_of_twenty_thousand_processes",
    ),
    covered(
        "F34",
        "hostile/tests/create",
        "streams_that_cannot_be_opened",
    ),
    covered("F34", "conformance/src/stdio", "detached_client_is_no_eof"),
    covered("F37", "conformance/src/ends", "delete_removes_the_socket"),
    covered(
        "F37",
        "hostile/tests/pair",
        "start_over_a_pair_without_a_task_replaces_it",
    ),
    covered(
        "F37",
        "hostile/tests/pair",
        "starts_of_one_id_at_the_same_time",
    ),
    covered(
        "F37",
        "conformance/src/lifecycle",
        "shutdown_after_delete_ends_all",
    ),
    covered("F38", "conformance/src/lifecycle", "early_exits_are_seen"),
    covered("F38", "conformance/src/events", "order_of_early_exit"),
    covered(
        "F38",
        "hostile/tests/loops",
        "a_burst_before_the_exit_arrives_whole_and_so_does_its_end",
    ),
    covered(
        "F38",
        "hostile/tests/loops",
        "a_burst_on_a_terminal_arrives_whole",
    ),
    covered("F39", "conformance/src/ends", "delete_of_created"),
    covered("F39", "conformance/src/lifecycle", "kill_of_created"),
    covered("F39", "conformance/src/events", "events_of_killed_created"),
    covered(
        "F40",
        "hostile/tests/create",
        "runc_that_fails_in_each_of_its_ways",
    ),
    covered("F40", "hostile/tests/create", "a_mount_that_fails"),
    covered(
        "F40",
        "hostile/tests/create",
        "streams_that_cannot_be_opened",
    ),
    covered(
        "F40",
        "hostile/tests/create",
        "a_logger_that_ends_at_once_costs_the_output_not_the_container",
    ),
    covered("F40", "conformance/src/ends", "program_missing"),
    covered(
        "F43",
        "conformance/src/signals",
        "kill_of_stopped_not_found",
    ),
    covered("F44", "conformance/src/cgroups", "nested_cgroups_count"),
    covered(
        "F45",
        "hostile/tests/create",
        "runc_that_writes_more_than_a_pipe_holds",
    ),
    covered(
        "F45",
        "hostile/tests/create",
        "runc_that_fails_in_each_of_its_ways",
    ),
    covered(
        "F45",
        "hostile/tests/create",
        "a_stranger_in_runcs_pid_file_lives_on",
    ),
    covered("F45", "hostile/tests/exec", "runc_exec_that_fails_or_hangs"),
    covered(
        "F46",
        "conformance/src/cgroups",
        "frozen_nested_dies_with_init",
    ),
    covered(
        "F46",
        "conformance/src/cgroups",
        "delete_with_nested_frozen",
    ),
    covered(
        "F48",
        "conformance/src/resources",
        "update_of_stopped_refused",
    ),
    covered("F50", "hostile/tests/loops", "execs_leave_a_shim_as_it_was"),
    covered(
        "F50",
        "hostile/tests/loops",
        "clients_that_come_and_go_leave_nothing",
    ),
    covered(
        "F50",
        "hostile/tests/events",
        "a_thousand_events_wait_in_little_memory",
    ),
];

/// In the catalogue's order.
pub const MISSING: &[Missing] = &[
    missing(
        "F01",
        "SIGCHLD held back by a debugger",
        "stopping the reaper holds it back too, and is tried",
    ),
    missing(
        "F02",
        "the shim killed for memory in a cgroup of its own",
        "to the pair it is SIGKILL, which is tried at every moment",
    ),
    missing(
        "F03",
        "NFS, D-Bus and drivers that make runc hang",
        "runc hangs by script, which looks the same from outside",
    ),
    missing(
        "F07",
        "a thread that retires and takes runc with it",
        "there are no threads, and runc is not tied to its parent's death",
    ),
    missing(
        "F10",
        "single requests that are never answered",
        "one loop answers all; who serves is stopped as a whole",
    ),
    missing(
        "F12",
        "chattr +i on the file of a file:// log",
        "the container writes to an open descriptor, which the attribute does not touch",
    ),
    missing(
        "F14",
        "a systemd scope that stays",
        "there is no systemd on these machines",
    ),
    missing(
        "F18",
        "a systemd scope that was left",
        "there is no systemd on these machines",
    ),
    missing(
        "F21",
        "a slow listener among many",
        "an exit has one reader; nothing is broadcast",
    ),
    missing(
        "F22",
        "the systemd driver",
        "there is no systemd on these machines",
    ),
    missing(
        "F23",
        "containerd 1.7 and 2.3 themselves",
        "not packaged for these machines; their ways of calling are tried",
    ),
    missing(
        "F25",
        "a stalled D-Bus under the systemd driver",
        "there is no systemd on these machines",
    ),
    missing(
        "F27",
        "a power cut under running containers",
        "needs a machine that may be switched off; the files it leaves are made by hand",
    ),
    missing(
        "F31",
        "`systemctl stop` of the scope",
        "there is no systemd on these machines",
    ),
    missing(
        "F32",
        "the reboot of a whole machine",
        "what reaches the pair is SIGTERM, which is tried",
    ),
    missing(
        "F36",
        "killing an exec when its client has gone",
        "not a shim's to decide: the stream's other end may come back (contract §4)",
    ),
    missing(
        "F41",
        "containerd as process 1",
        "its own orphans are its own to reap; ours are the reaper's",
    ),
    missing(
        "F43",
        "crun where v1 has the controllers and v2 is beside it",
        "crun refuses such hosts; tried on others",
    ),
    missing(
        "F47",
        "a panic in each request",
        "any panic aborts the process (panic = abort): tried as SIGABRT",
    ),
    missing(
        "F51",
        "the clock, on a machine of many",
        "tried with VIGIL_CLOCK=1 where the machine is the suite's own",
    ),
];

/// Both lists, to be printed below the table.
#[must_use]
pub fn text() -> String {
    let mut out = String::from("Tried in other suites:\n");
    for it in COVERED {
        let _ = writeln!(out, "  {:4} {}::{}", it.class, it.file, it.test);
    }
    out.push_str("Not produced:\n");
    for it in MISSING {
        let _ = writeln!(out, "  {:4} {}: {}", it.class, it.what, it.reason);
    }
    out
}

#[cfg(test)]
mod tests {
    use vigil_lab::kit::repository;

    use super::COVERED;

    #[test]
    fn what_is_named_is_there() {
        for it in COVERED {
            let path = repository()
                .join("tests")
                .join(it.file)
                .with_extension("rs");
            let text = std::fs::read_to_string(&path);
            let there = text.is_ok_and(|text| text.contains(&format!("fn {}(", it.test)));
            assert!(there, "no {} in {}", it.test, path.display());
        }
    }
}
