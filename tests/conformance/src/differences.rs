//! Where a shim departs from the suite, and why. A listed difference must *be* one: if
//! the behaviour passes after all, the suite fails, so that this page stays true.

use vigil_lab::suite::{Difference, differs, may_differ};

/// All of them.
pub const DIFFERENCES: &[Difference] = &[
    differs(
        "vigil",
        "second_start_same_address",
        "DESIGN §1: one shim per container; `start` on a live task is a named error",
    ),
    differs(
        "vigil",
        "lone_stdout",
        "a stream that is not set is /dev/null; nobody needs the failure",
    ),
    differs(
        "vigil",
        "delete_twice_not_found",
        "F04, I10: a repeated Delete answers the same until Shutdown; the first answer may have come too late",
    ),
    differs(
        "vigil",
        "wait_after_delete_not_found",
        "the end stays known until Shutdown, and a Wait that comes late hears it",
    ),
    // Protocols of another time.
    differs(
        "go-1",
        "init_dies_while_an_exec_starts",
        "its Start of an exec keeps every other call waiting until runc is done",
    ),
    differs(
        "go-1",
        "serves_v3",
        "the v3 service came with containerd 2.0",
    ),
    differs("go-1", "info_flag", "-info came with containerd 2.0"),
    differs(
        "go-1",
        "bootstrap_params",
        "BootstrapParams came with containerd 2.3",
    ),
    differs(
        "go-2",
        "bootstrap_params",
        "BootstrapParams came with containerd 2.3",
    ),
    differs(
        "go-2",
        "serves_v2",
        "it announces v3 and serves nothing else",
    ),
    differs(
        "go-2",
        "newer_environment",
        "it answers JSON with version 3, whatever MAX_SHIM_VERSION says",
    ),
    differs(
        "go-2",
        "address_file",
        "containerd 2 writes bootstrap.json itself",
    ),
    // What Go leaves to containerd.
    differs(
        "go-1",
        "hostile_ids",
        "containerd checks ids before it calls; the shim itself does not",
    ),
    differs(
        "go-2",
        "hostile_ids",
        "containerd checks ids before it calls; the shim itself does not",
    ),
    differs(
        "go-2",
        "garbage_on_stdin",
        "its start does not read the options",
    ),
    may_differ(
        "go-1",
        "garbage_on_stdin",
        "start may have bound the socket and started the server when it reads the options",
    ),
    may_differ(
        "go-1",
        "sink_gone",
        "after Shutdown it stays until its publisher has given up",
    ),
    may_differ(
        "go@2",
        "events_in_order",
        "it exits without waiting for its publisher; the last event may be lost",
    ),
    // Weaknesses of Go's shims (contract §3.4, §8.4), and what this suite has seen.
    differs("go-1", "options_of_a_wrong_type", "it panics"),
    differs("go-2", "options_of_a_wrong_type", "it panics"),
    differs(
        "go-1",
        "unknown_exec_not_found",
        "CloseIO answers Unknown for an unknown exec",
    ),
    differs(
        "go-2",
        "unknown_exec_not_found",
        "CloseIO answers Unknown for an unknown exec",
    ),
    differs(
        "go-1",
        "exec_start_after_init_exit",
        "FailedPrecondition since 1.6.36; Unknown before",
    ),
    differs(
        "go-2",
        "exec_start_twice_refused",
        "after a refused second Start it waits for that exec for ever and withholds init's exit",
    ),
    may_differ(
        "go-2",
        "file_uri",
        "stdout and stderr share one file; the second stream is lost now and then",
    ),
    may_differ(
        "go-1",
        "file_uri",
        "stdout and stderr share one file; the second stream is lost now and then",
    ),
    differs(
        "go-1",
        "delete_reports_the_true_status",
        "always 137 and the time of delete",
    ),
    differs(
        "go-2",
        "delete_reports_the_true_status",
        "always 137 and the time of delete",
    ),
    may_differ(
        "go-1",
        "frozen_nested_dies_with_init",
        "on cgroup v1 it thaws the container's own cgroup only",
    ),
    may_differ(
        "go-2",
        "frozen_nested_dies_with_init",
        "on cgroup v1 it thaws the container's own cgroup only",
    ),
    may_differ(
        "go-1",
        "delete_with_nested_frozen",
        "on cgroup v1 it thaws the container's own cgroup only",
    ),
    may_differ(
        "go-2",
        "delete_with_nested_frozen",
        "on cgroup v1 it thaws the container's own cgroup only",
    ),
    may_differ(
        "go-1",
        "old_ooms_are_not_told",
        "on cgroup v2 it takes the counter's first value for news",
    ),
    may_differ(
        "go-2",
        "old_ooms_are_not_told",
        "on cgroup v2 it takes the counter's first value for news",
    ),
    may_differ(
        "go-1",
        "oom_in_nested",
        "on cgroup v2 it may miss a kill further down",
    ),
    differs(
        "go-1",
        "delete_of_nothing",
        "a missing `runtime` file is fatal before 2.1",
    ),
    differs(
        "go-1",
        "delete_removes_the_socket",
        "delete does not unlink the socket",
    ),
    differs(
        "go-2",
        "delete_removes_the_socket",
        "delete does not unlink the socket",
    ),
    differs(
        "go@1",
        "killed_shim_leaves_nothing",
        "delete does not unlink the socket",
    ),
    differs(
        "go@2",
        "killed_shim_leaves_nothing",
        "delete does not unlink the socket",
    ),
    differs(
        "go@2",
        "exit_while_containerd_is_down",
        "Pids of a stopped task is empty, so containerd takes it for leaked (contract §2.3)",
    ),
];
