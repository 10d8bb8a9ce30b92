//! `scripts/setup` on machines whose suites have other versions than today's: it runs here
//! with an apt and a dpkg that are scripts, so that nothing is fetched and nothing installed.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

fn program(at: &Path, text: &str) {
    fs::write(at, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(at, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A checkout of `scripts/setup` alone, and the answers of a suite that has `versions` of
/// containerd, of which those that begin with `2.9` cannot be started on this machine.
fn setup(versions: &[&str]) -> (tempfile::TempDir, Output) {
    let dir = tempfile::tempdir().unwrap();
    let (scripts, bin) = (dir.path().join("scripts"), dir.path().join("bin"));
    fs::create_dir_all(&scripts).unwrap();
    fs::create_dir_all(&bin).unwrap();
    fs::copy(
        vigil_tidy::root().join("scripts/setup"),
        scripts.join("setup"),
    )
    .unwrap();
    let rows: Vec<String> = versions
        .iter()
        .map(|version| format!("echo 'containerd | {version} | a suite'"))
        .collect();
    program(&bin.join("apt-cache"), &rows.join("\n"));
    program(
        &bin.join("apt-get"),
        r#"for a; do case "$a" in containerd=*) echo "${a#*=}" >containerd_x.deb ;; esac; done"#,
    );
    program(
        &bin.join("dpkg"),
        r#"v=$(cat "$2"); mkdir -p "$3/usr/bin"; cd "$3/usr/bin"
           case "$v" in 2.9*) does='exit 1' ;; *) does="echo containerd module $v" ;; esac
           for p in containerd containerd-shim-runc-v2 ctr; do
               printf '#!/bin/sh\n%s\n' "$does" >$p; chmod 755 $p
           done"#,
    );
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let out = Command::new(scripts.join("setup"))
        .arg("containerd")
        .env("PATH", path)
        .output()
        .unwrap();
    (dir, out)
}

fn unpacked(dir: &Path) -> String {
    let program = dir.join(".lab/containerd-2/usr/bin/containerd");
    let out = Command::new(program).arg("--version").output().unwrap();
    String::from_utf8(out.stdout).unwrap()
}

/// It wanted 2.1.9 by name, so every fresh machine failed on the day the suite moved on.
#[test]
fn the_newest_containerd_2_that_runs_here_is_taken() {
    let suite = ["1.7.24-1", "2.1.9-5", "2.10.0-1", "2.9.3-1", "3.0.0-1"];
    let (dir, out) = setup(&suite);
    assert!(out.status.success(), "{out:?}");
    assert_eq!(unpacked(dir.path()), "containerd module 2.10.0-1\n");

    let (dir, out) = setup(&["2.9.4-1", "2.3.1-2", "2.9.3-1", "2.2.0-1"]);
    assert!(out.status.success(), "{out:?}");
    assert_eq!(unpacked(dir.path()), "containerd module 2.3.1-2\n");
}

#[test]
fn what_was_tried_is_named_when_none_runs() {
    let (dir, out) = setup(&["2.9.4-1", "1.7.24-1"]);
    assert!(!out.status.success());
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("2.9.4-1 does not run here"), "{said}");
    assert!(!dir.path().join(".lab/containerd-2").exists());
}
