//! What containers cost while nothing happens: memory by the kernel's own accounts, and
//! threads.

use std::fs;

use anyhow::{Context, Result};
use vigil_lab::process::Process;

/// The proportional share of one process, KiB.
pub fn pss(process: &Process) -> Result<u64> {
    let path = format!("/proc/{}/smaps_rollup", process.pid);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    field(&text, "Pss").with_context(|| format!("no Pss in {path}"))
}

/// What processes and files in memory take, and what the kernel takes for them. Not
/// MemAvailable: the page cache moves it by megabytes a second, whoever is measured.
const ACCOUNTS: [&str; 5] = ["AnonPages", "Shmem", "Slab", "KernelStack", "PageTables"];

/// Memory taken on this machine, KiB.
pub fn taken() -> Result<i64> {
    let text = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let account =
        |name: &&str| field(&text, name).with_context(|| format!("no {name} in /proc/meminfo"));
    let kib: u64 = ACCOUNTS.iter().map(account).sum::<Result<u64>>()?;
    Ok(i64::try_from(kib)?)
}

/// Programs that ran or wanted to in the last minute, as `uptime` shows them.
pub fn load() -> Option<f64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// Open descriptors of some processes.
pub fn descriptors(processes: &[Process]) -> Result<u64> {
    let mut sum = 0;
    for process in processes {
        let path = format!("/proc/{}/fd", process.pid);
        let open = fs::read_dir(&path).with_context(|| format!("reading {path}"))?;
        sum += u64::try_from(open.count())?;
    }
    Ok(sum)
}

/// Threads of one process.
pub fn threads(process: &Process) -> Option<u64> {
    process.field("Threads")?.parse().ok()
}

/// Context switches of all threads of a process so far, voluntary or not.
pub fn switches(process: &Process) -> Result<u64> {
    let directory = format!("/proc/{}/task", process.pid);
    let mut sum = 0;
    for thread in fs::read_dir(&directory).with_context(|| format!("reading {directory}"))? {
        let path = thread?.path().join("status");
        // A thread that has ended meanwhile switches no more.
        let Ok(text) = fs::read_to_string(path) else {
            continue;
        };
        for name in ["voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"] {
            sum += field(&text, name).unwrap_or(0);
        }
    }
    Ok(sum)
}

/// The number behind `name:` at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::field;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "Rss:  900 kB\nPss:  12 kB\nPss_Dirty:  7 kB\n";
        assert_eq!(field(text, "Pss"), Some(12));
        assert_eq!(field(text, "Pss_Dirty"), Some(7));
        assert_eq!(field(text, "ss"), None);
    }
}
