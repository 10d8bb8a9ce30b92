//! containerd is down while a container says its last words and ends: they and its exit
//! code are there when it comes back, under each containerd we know.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vigil_hostile::{shim, trial_under};
use vigil_lab::process::{Process, alive};
use vigil_lab::{FifoReader, Place, Version, by, until};

/// 10 KB that cannot be mistaken for another 10 KB.
fn words() -> String {
    let lines: Vec<_> = (0..1024).map(|line| format!("word {line:04}\n")).collect();
    lines.concat()
}

/// Ends with 7 once `/tmp/go` is there.
const SCRIPT: &str = "while ! [ -e /tmp/go ]; do sleep 0.05; done; \
     i=0; while [ $i -lt 1024 ]; do printf 'word %04d\\n' $i; i=$((i+1)); done; exit 7";

/// The fifo for stdout, as the pair holds it.
fn stdout_of(place: &Place) -> Result<PathBuf> {
    let pair = Process::marked(place.containerd.namespace());
    let pair = pair
        .iter()
        .filter(|p| p.cmdline.contains("containerd-shim"));
    let fds = pair.filter_map(|p| fs::read_dir(format!("/proc/{}/fd", p.pid)).ok());
    let paths = fds.flatten().flatten().map(|fd| fs::read_link(fd.path()));
    let found = paths
        .flatten()
        .find(|path| path.to_string_lossy().ends_with("c-stdout"));
    found.context("nobody holds a fifo for stdout")
}

fn speaks_while_down(place: &mut Place, signal: i32) -> Result<()> {
    place.detached("c", &["sh", "-c", SCRIPT])?;
    place.expect_status("c", "RUNNING")?;
    let init = place.pid("c")?;
    let stdout = stdout_of(place)?;
    place.containerd.stop(signal)?;
    fs::write(format!("/proc/{init}/root/tmp/go"), "").context("letting it go")?;
    until("init to end", by(20.0), || (!alive(init)).then_some(()))?;
    // What is lost is lost by now: the pair has had nothing more to do for a while.
    std::thread::sleep(Duration::from_millis(500));
    place.containerd.launch()?;
    place.expect_status("c", "STOPPED")?;
    // Not by `ctr tasks attach`, which throws away what it has not read when Wait answers.
    let (said, _) = FifoReader::open(&stdout)?.to_end(by(20.0))?;
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(
        said == words(),
        "{} bytes of {}: {:?} …",
        said.len(),
        words().len(),
        said.chars().take(60).collect::<String>()
    );
    let removed = place.containerd.try_ctr(&["tasks", "rm", "c"])?;
    let told = String::from_utf8_lossy(&removed.stderr).into_owned();
    ensure!(told.contains("exit code 7"), "ctr tasks rm said {told:?}");
    place.containerd.ctr(&["containers", "rm", "c"])?;
    place.containerd.expect_clean()
}

fn under(version: Version) {
    assert!(version.installed(), "no {version:?}: run scripts/setup");
    let outcome = shim().and_then(|shim| {
        let mut place = Place::start(version, &shim)?;
        let mark = place.containerd.namespace().to_owned();
        trial_under(120, &mark, move || {
            // Stopped in order, and killed.
            let spoken =
                speaks_while_down(&mut place, 15).and_then(|()| speaks_while_down(&mut place, 9));
            spoken.with_context(|| place.containerd.log_tail())
        })
    });
    if let Err(error) = outcome {
        panic!("{error:#}");
    }
}

#[test]
fn last_words_while_containerd_1_6_is_down() {
    under(Version::Debian);
}

#[test]
fn last_words_while_containerd_2_1_is_down() {
    under(Version::V2);
}
