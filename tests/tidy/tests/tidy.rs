//! Holds the tree to the house rules, and each rule to a sample that breaks it: a rule
//! that cannot fail would be worse than none.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::Path;

use vigil_tidy::{edges, is_rust, text, tree};

fn none(found: &[String]) {
    assert!(
        found.is_empty(),
        "{} places:\n{}",
        found.len(),
        found.join("\n")
    );
}

/// Every Rust file but this crate's own, whose samples break the rules on purpose.
fn rust() -> Vec<(String, String)> {
    tree()
        .unwrap()
        .into_iter()
        .filter(|(path, _)| is_rust(path) && !path.starts_with("tests/tidy/"))
        .collect()
}

#[test]
fn rooms_use_only_what_they_may() {
    none(&edges::violations(&edges::graph().unwrap()));
}

#[test]
fn a_wrong_edge_is_seen() {
    let mut graph = edges::graph().unwrap();
    let mut add = |from: &str, to: &str| graph.get_mut(from).unwrap().insert(to.to_owned());
    add("vigil-model", "vigil-sys");
    add("vigil-host", "nix");
    add("vigil-journal", "tokio");
    add("vigil", "vigil-protocol");
    let found = edges::violations(&graph).join("\n");
    for expected in [
        "vigil-model → vigil-sys",
        "vigil-host uses nix",
        "vigil-journal links tokio",
        "`vigil` links tokio",
    ] {
        assert!(found.contains(expected), "{expected} not in:\n{found}");
    }
}

/// `make test` failed on a fresh machine, since cargo's graph was asked for every platform's
/// crates and a build had fetched this platform's alone. The graph is asked here of a
/// `CARGO_HOME` that holds just those, without a network.
#[test]
fn the_graph_needs_no_other_platforms_crates() {
    let here = edges::metadata(None, false).unwrap();
    let home = tempfile::tempdir().unwrap();
    let registry = home.path().join("registry");
    for package in here["packages"].as_array().unwrap() {
        // …/registry/src/INDEX/NAME-VERSION/Cargo.toml; what is ours is not there.
        let manifest = Path::new(package["manifest_path"].as_str().unwrap());
        let from = manifest.parent().unwrap();
        let index = from.parent().unwrap();
        let source = index.parent().unwrap();
        if package["source"].is_null() || !source.ends_with("registry/src") {
            continue;
        }
        let (index, source) = (index.file_name().unwrap(), source.parent().unwrap());
        let mut archive = from.file_name().unwrap().to_owned();
        archive.push(".crate");
        let indices = registry.join("index");
        std::fs::create_dir_all(&indices).unwrap();
        if !indices.join(index).exists() {
            symlink(source.join("index").join(index), indices.join(index)).unwrap();
        }
        for (kind, name) in [("src", from.file_name().unwrap()), ("cache", &archive)] {
            let into = registry.join(kind).join(index);
            std::fs::create_dir_all(&into).unwrap();
            let from = source.join(kind).join(index).join(name);
            symlink(from, into.join(name)).unwrap();
        }
    }
    let whole = edges::metadata(Some(home.path()), true);
    assert!(whole.is_err(), "the home has every platform's crates");
    let alone = edges::metadata(Some(home.path()), false).unwrap();
    assert_eq!(edges::parse(&alone).unwrap(), edges::parse(&here).unwrap());
}

#[test]
fn files_are_short() {
    none(
        &rust()
            .iter()
            .filter_map(|(path, text)| text::too_long(path, text))
            .collect::<Vec<_>>(),
    );
    assert!(text::too_long("a.rs", &"x\n".repeat(801)).is_some());
}

#[test]
fn the_reaper_can_be_read_in_ten_minutes() {
    let own = |path: &str| {
        path.starts_with("crates/reaper/src/")
            && !path.ends_with("tests.rs")
            && !path.contains("/tests/")
    };
    let sizes: Vec<(String, usize)> = rust()
        .into_iter()
        .filter(|(path, _)| own(path))
        .map(|(path, text)| (path, text::own_lines(&text)))
        .collect();
    let heirs = |path: &str| {
        text::HEIRS
            .iter()
            .any(|name| path.ends_with(&format!("/{name}")))
    };
    let (heir, own): (Vec<_>, Vec<_>) = sizes.iter().partition(|(path, _)| heirs(path));
    for (files, most) in [(own, text::REAPER), (heir, text::HEIR)] {
        let sum: usize = files.iter().map(|(_, lines)| lines).sum();
        assert!(
            sum > 0 && sum <= most,
            "{sum} lines, at most {most}: {files:?}"
        );
    }
}

#[test]
fn modules_say_what_they_are() {
    none(
        &rust()
            .iter()
            .filter_map(|(path, text)| text::header(path, text))
            .collect::<Vec<_>>(),
    );
    assert!(text::header("a.rs", "use std;\n").is_some());
    assert!(text::header("a.rs", "//!\n//! Says nothing in its first line.\n").is_some());
    assert!(text::header("a.rs", "//! Owns the thing.\n//! Never another.\n").is_none());
}

#[test]
fn names_name_something() {
    none(
        &rust()
            .iter()
            .flat_map(|(path, text)| text::empty_names(path, text))
            .collect::<Vec<_>>(),
    );
    assert_eq!(
        text::empty_names(
            "a.rs",
            "struct TaskInfo;\npub enum Manager {}\nmod utils;\n"
        )
        .len(),
        3
    );
    assert_eq!(
        text::empty_names("crates/x/src/helpers.rs", "mod info;").len(),
        1
    );
    assert!(
        text::empty_names(
            "a.rs",
            "fn info() { let data = 1; }\n// struct Info\nstruct Information;"
        )
        .is_empty()
    );
}

#[test]
fn the_kernel_is_spoken_to_in_sys_alone() {
    let apart = |path: &str| path.starts_with("crates/sys/");
    // Tests may use nix to set their scenes; nobody else writes `unsafe` either.
    let of_tests = |path: &str| path.starts_with("tests/") || path.contains("/tests/");
    let found: Vec<String> = rust()
        .iter()
        .filter(|(path, _)| !apart(path))
        .flat_map(|(path, text)| text::kernel_words(path, text))
        .filter(|place| !of_tests(place) || place.contains("`unsafe`"))
        .collect();
    none(&found);
    assert_eq!(
        text::kernel_words(
            "a.rs",
            "unsafe { x() }\nlibc::kill(1, 9);\n// unsafe\nlet nix = \"unsafe\";\n"
        )
        .len(),
        2
    );
}

/// `fork_worker`, `close_from` and their kin were safe functions whose docs said what a caller
/// must see to; a test that ran them in threads was the proof that nobody did.
#[test]
fn no_safe_function_of_sys_has_a_contract_in_words() {
    let found: Vec<String> = rust()
        .iter()
        .filter(|(path, _)| path.starts_with("crates/sys/src/"))
        .flat_map(|(path, text)| text::contracts_in_words(path, text))
        .collect();
    none(&found);
    let samples = [
        "/// Forks.\n/// For callers with one thread.\n#[must_use]\npub fn fork_worker() {}\n",
        "/// Closes. The others must not be in use.\npub(crate) const fn close() {}\n",
        "/// Only for a process with one thread.\npub fn unshare() {}\n",
    ];
    for sample in samples {
        assert_eq!(
            text::contracts_in_words("a.rs", sample).len(),
            1,
            "{sample}"
        );
    }
    let fine = "/// # Safety\n/// The caller has one thread.\npub unsafe fn f() {}\n/// Adds.\npub fn g() {}\n\
                /// Its callers must know.\nfn private() {}\n";
    assert!(text::contracts_in_words("a.rs", fine).is_empty());
}

/// Texts that are looked into, each a field whose form somebody has laid down, and why.
const LAID_DOWN: [(&str, &str, &str); 7] = [
    (
        "crates/host/src/rootfs/options.rs",
        "X-containerd.",
        "an option of a mount, named by containerd",
    ),
    (
        "crates/host/src/rootfs/options.rs",
        "lowerdir=",
        "an option of overlayfs",
    ),
    (
        "crates/host/src/cgroup/stats/v1.rs",
        "oom_kill",
        "a key of the kernel's",
    ),
    (
        "crates/host/src/cgroup/stats/v1.rs",
        "hierarchical_memsw_limit",
        "a key of the kernel's",
    ),
    (
        "crates/host/src/stdio/console.rs",
        "pty",
        "a directory that we have named ourselves",
    ),
    (
        "crates/host/src/proc.rs",
        "containerd-shim",
        "the file that a process of the host runs, laid down by containerd",
    ),
    (
        "crates/host/src/strays.rs",
        ".comm.starts_with(WORKER)",
        "of a process that was found to run our own program",
    ),
];

/// runc's, ctr's and CRIU's messages change with their versions, and what a process calls itself
/// is its own choice: neither decides anything.
#[test]
fn nothing_is_decided_by_words() {
    let of_the_product = |path: &str| {
        let place = path.split_once("/src/").map(|(room, _)| room);
        place.is_some_and(|room| room.starts_with("crates/") || room.starts_with("cmd/"))
            && !path.ends_with("tests.rs")
            && !path.contains("/tests/")
    };
    let found: Vec<String> = rust()
        .iter()
        .filter(|(path, _)| of_the_product(path))
        .flat_map(|(path, text)| text::decided_by_words(path, text))
        .collect();
    let listed = |place: &String| {
        LAID_DOWN
            .iter()
            .any(|(path, said, _)| place.starts_with(path) && place.contains(said))
    };
    let (known, new): (Vec<_>, Vec<_>) = found.into_iter().partition(listed);
    none(&new);
    assert_eq!(known.len(), LAID_DOWN.len(), "{known:#?}");
    for sample in [
        "if failure.message.contains(\"does not exist\") {",
        "let gone = stderr.ends_with(\"not found\");",
        "stat.comm == name",
        "matches!(stat.comm.as_str(), \"runc\" | \"crun\")",
        "let name = stat.comm.split(':').next();",
    ] {
        assert_eq!(text::decided_by_words("a.rs", sample).len(), 1, "{sample}");
    }
    for fine in [
        "pids.contains(&pid)",
        "// message.contains(\"x\")",
        "format!(\"process {pid} ({})\", stat.comm)",
        "#[cfg(test)]\nmod tests {\n    said.contains(\"x\");\n}\n",
    ] {
        assert!(text::decided_by_words("a.rs", fine).is_empty(), "{fine}");
    }
}

#[test]
fn nothing_is_unfinished() {
    none(
        &rust()
            .iter()
            .flat_map(|(path, text)| text::unfinished(path, text))
            .collect::<Vec<_>>(),
    );
    assert_eq!(
        text::unfinished(
            "a.rs",
            concat!("to", "do!()\n// FIX", "ME later\nlet todo = 1;\n")
        )
        .len(),
        2
    );
}

#[test]
fn the_tree_knows_no_machine() {
    let files = tree().unwrap();
    none(
        &files
            .iter()
            .flat_map(|(path, text)| text::machine(path, text))
            .collect::<Vec<_>>(),
    );
    let samples = [
        concat!("cd /wo", "rk/main"),
        concat!("URIs: https://mirror.example/", "debian"),
        concat!("deb http://ftp.example.org/", "debian bookworm main"),
    ];
    for sample in samples {
        assert_eq!(text::machine("a", sample).len(), 1, "{sample}");
    }
    assert!(text::machine("a", "see https://docs.rs/nix and /run/containerd/s").is_empty());
}

#[test]
fn every_room_is_there() {
    let files = tree().unwrap();
    let crates: BTreeSet<&str> = files
        .iter()
        .filter_map(|(path, _)| {
            path.strip_prefix("crates/")?
                .split_once('/')
                .map(|(name, _)| name)
        })
        .collect();
    let planned: BTreeSet<&str> = edges::ROOMS
        .iter()
        .filter_map(|(room, _)| room.strip_prefix("vigil-"))
        .collect();
    assert_eq!(
        crates, planned,
        "a room of the plan is missing, or one more has appeared"
    );
}
