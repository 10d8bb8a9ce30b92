//! Who keeps a mount busy, as far as `/proc` tells: a name for the log and the
//! tombstone, never a target. One that sleeps uninterruptibly is not asked for
//! its files; looking is bounded, since it is done for people only.

use std::fs;
use std::path::Path;

use crate::proc;

/// Descriptors looked at in all.
const FDS_MAX: usize = 20_000;

/// The first process found with its working directory, root, program or an
/// open file at or below `path`, in words.
pub(super) fn holder(path: &Path) -> Option<String> {
    let mut budget = FDS_MAX;
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        let Ok(Some(stat)) = proc::stat(pid) else {
            continue;
        };
        if stat.state == 'D' || stat.ended() {
            continue;
        }
        let of = entry.path();
        let within = |link: &Path| fs::read_link(link).is_ok_and(|to| to.starts_with(path));
        let how = [
            ("cwd", "its cwd"),
            ("root", "its root"),
            ("exe", "its program"),
        ]
        .into_iter()
        .find(|(name, _)| within(&of.join(name)))
        .map(|(_, how)| how)
        .or_else(|| {
            let open = fs::read_dir(of.join("fd")).ok()?;
            let mut open = open.flatten().take(budget).inspect(|_| budget -= 1);
            open.any(|fd| within(&fd.path())).then_some("an open file")
        });
        if let Some(how) = how {
            return Some(format!("process {pid} ({}), by {how}", stat.comm));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn who_has_a_file_open_or_stands_in_it_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(holder(dir.path()), None);
        let open = fs::File::create(dir.path().join("f")).unwrap();
        let us = std::process::id();
        let found = holder(dir.path()).unwrap();
        assert!(found.starts_with(&format!("process {us} ")), "{found}");
        assert!(found.ends_with("by an open file"), "{found}");
        drop(open);
        let mut there = std::process::Command::new("sleep")
            .arg("60")
            .current_dir(dir.path())
            .spawn()
            .unwrap();
        let found = holder(dir.path());
        there.kill().unwrap();
        there.wait().unwrap();
        assert_eq!(
            found.unwrap(),
            format!("process {} (sleep), by its cwd", there.id())
        );
    }
}
