//! Counters of cgroup v1: one controller, one hierarchy, one directory.

use std::fs::File;

use vigil_model::metrics::{
    BlkIo, BlkIoEntry, CpuUsage, HugeTlb, MemoryEntry, MemoryStatV1, MemoryV1, OomControl, Pids,
    Throttling, V1,
};

use super::{Keys, limit, number, rdma};
use crate::Result;
use crate::cgroup::{Cgroup, tree};

/// Nanoseconds of one tick of `cpuacct.stat`: `USER_HZ` is 100 on every
/// architecture containerd runs on.
const TICK_NS: u64 = 10_000_000;

pub(super) fn read(cgroup: &Cgroup) -> Result<Option<V1>> {
    let mut all = V1::default();
    if let Some(dir) = cgroup.with("pids").map(|g| &g.dir) {
        all.pids = pids(dir)?;
    }
    if let Some(dir) = cgroup.with("cpuacct").map(|g| &g.dir) {
        all.cpu_usage = cpu_usage(dir)?;
    }
    if let Some(dir) = cgroup.with("cpu").map(|g| &g.dir) {
        all.throttling = Keys::read(dir, "cpu.stat")?.map(|keys| Throttling {
            periods: keys.get("nr_periods"),
            throttled_periods: keys.get("nr_throttled"),
            throttled_time: keys.get("throttled_time"),
        });
    }
    if let Some(dir) = cgroup.with("memory").map(|g| &g.dir) {
        all.memory = memory(dir)?;
        all.oom_control = Keys::read(dir, "memory.oom_control")?.map(|keys| OomControl {
            oom_kill_disable: keys.get("oom_kill_disable"),
            under_oom: keys.get("under_oom"),
            oom_kill: keys.find("oom_kill"),
        });
    }
    if let Some(dir) = cgroup.with("blkio").map(|g| &g.dir) {
        all.blkio = blkio(dir)?;
    }
    if let Some(dir) = cgroup.with("rdma").map(|g| &g.dir) {
        all.rdma = rdma(dir)?;
    }
    if let Some(dir) = cgroup.with("hugetlb").map(|g| &g.dir) {
        all.hugetlb = hugetlb(dir)?;
    }
    // Nothing at all could be read: it is gone, not idle.
    Ok((all != V1::default()).then_some(all))
}

fn pids(dir: &File) -> Result<Option<Pids>> {
    let Some(current) = number(dir, "pids.current")? else {
        return Ok(None);
    };
    Ok(Some(Pids {
        current,
        limit: limit(dir, "pids.max")?,
    }))
}

fn cpu_usage(dir: &File) -> Result<Option<CpuUsage>> {
    let Some(total) = number(dir, "cpuacct.usage")? else {
        return Ok(None);
    };
    let ticks = Keys::read(dir, "cpuacct.stat")?;
    let tick = |key| {
        ticks
            .as_ref()
            .map_or(0, |keys| keys.get(key).saturating_mul(TICK_NS))
    };
    let per_cpu = tree::read(dir, "cpuacct.usage_percpu")?.unwrap_or_default();
    Ok(Some(CpuUsage {
        total,
        kernel: tick("system"),
        user: tick("user"),
        per_cpu: per_cpu
            .split_ascii_whitespace()
            .filter_map(|n| n.parse().ok())
            .collect(),
    }))
}

fn memory(dir: &File) -> Result<Option<MemoryV1>> {
    let Some(keys) = Keys::read(dir, "memory.stat")? else {
        return Ok(None);
    };
    Ok(Some(MemoryV1 {
        own: memory_stat(|key| keys.get(key)),
        total: memory_stat(|key| keys.get(&format!("total_{key}"))),
        hierarchical_memory_limit: keys.get("hierarchical_memory_limit"),
        hierarchical_swap_limit: keys.find("hierarchical_memsw_limit"),
        usage: memory_entry(dir, "memory")?,
        swap: memory_entry(dir, "memory.memsw")?,
        kernel: memory_entry(dir, "memory.kmem")?,
        kernel_tcp: memory_entry(dir, "memory.kmem.tcp")?,
    }))
}

fn memory_stat(get: impl Fn(&str) -> u64) -> MemoryStatV1 {
    MemoryStatV1 {
        cache: get("cache"),
        rss: get("rss"),
        rss_huge: get("rss_huge"),
        mapped_file: get("mapped_file"),
        dirty: get("dirty"),
        writeback: get("writeback"),
        pgpgin: get("pgpgin"),
        pgpgout: get("pgpgout"),
        pgfault: get("pgfault"),
        pgmajfault: get("pgmajfault"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
    }
}

fn memory_entry(dir: &File, prefix: &str) -> Result<Option<MemoryEntry>> {
    let Some(usage) = number(dir, &format!("{prefix}.usage_in_bytes"))? else {
        return Ok(None);
    };
    let of = |name: &str| number(dir, &format!("{prefix}.{name}")).map(Option::unwrap_or_default);
    Ok(Some(MemoryEntry {
        usage,
        limit: of("limit_in_bytes")?,
        max: of("max_usage_in_bytes")?,
        failcnt: of("failcnt")?,
    }))
}

fn hugetlb(dir: &File) -> Result<Vec<HugeTlb>> {
    let mut all = Vec::new();
    for pagesize in page_sizes(dir, ".usage_in_bytes") {
        let of = |name: &str| number(dir, &format!("hugetlb.{pagesize}.{name}"));
        if let Some(usage) = of("usage_in_bytes")? {
            all.push(HugeTlb {
                usage,
                max: of("max_usage_in_bytes")?,
                failcnt: of("failcnt")?.unwrap_or(0),
                pagesize,
            });
        }
    }
    Ok(all)
}

/// The page sizes for which there is a `hugetlb.SIZE` file with this ending.
pub(super) fn page_sizes(dir: &File, ending: &str) -> Vec<String> {
    let mut sizes: Vec<String> = std::fs::read_dir(tree::path(dir, ""))
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let size = name.strip_prefix("hugetlb.")?.strip_suffix(ending)?;
            (!size.contains('.')).then(|| size.to_owned())
        })
        .collect();
    sizes.sort_unstable();
    sizes
}

/// The I/O scheduler in use decides which files count: CFQ's (before Linux
/// 5.0), BFQ's, or only the throttling layer's, which sees everything.
fn blkio(dir: &File) -> Result<Option<BlkIo>> {
    let devices = Devices::default();
    for prefix in ["blkio", "blkio.bfq", "blkio.throttle"] {
        let of = |name: &str| -> Result<Option<Vec<BlkIoEntry>>> {
            let text = tree::read(dir, &format!("{prefix}.{name}"))?;
            Ok(text.map(|text| entries(&text, &devices)))
        };
        let some = |name: &str| of(name).map(Option::unwrap_or_default);
        let Some(serviced) = of("io_serviced_recursive")? else {
            continue;
        };
        if serviced.is_empty() && prefix != "blkio.throttle" {
            continue;
        }
        return Ok(Some(BlkIo {
            service_bytes: some("io_service_bytes_recursive")?,
            serviced,
            queued: some("io_queued_recursive")?,
            service_time: some("io_service_time_recursive")?,
            wait_time: some("io_wait_time_recursive")?,
            merged: some("io_merged_recursive")?,
            time: some("time_recursive")?,
            sectors: some("sectors_recursive")?,
        }));
    }
    // Before Linux 4.17 the throttling layer had no recursive files.
    let of = |name: &str| tree::read(dir, &format!("blkio.throttle.{name}"));
    let Some(serviced) = of("io_serviced")? else {
        return Ok(None);
    };
    Ok(Some(BlkIo {
        serviced: entries(&serviced, &devices),
        service_bytes: entries(&of("io_service_bytes")?.unwrap_or_default(), &devices),
        ..BlkIo::default()
    }))
}

/// Device names by number, read when the first is asked for.
#[derive(Default)]
struct Devices(std::cell::OnceCell<String>);

impl Devices {
    fn name(&self, major: u64, minor: u64) -> String {
        let text = self
            .0
            .get_or_init(|| std::fs::read_to_string("/proc/diskstats").unwrap_or_default());
        text.lines()
            .find_map(|line| {
                let mut words = line.split_ascii_whitespace();
                let same = words.next()?.parse() == Ok(major) && words.next()?.parse() == Ok(minor);
                same.then(|| words.next().map(|name| format!("/dev/{name}")))?
            })
            .unwrap_or_default()
    }
}

/// `8:0 Read 4096`, or `8:0 4096`; the line of totals is left out.
fn entries(text: &str, devices: &Devices) -> Vec<BlkIoEntry> {
    text.lines()
        .filter_map(|line| {
            let words: Vec<_> = line.split_ascii_whitespace().collect();
            let (device, op, value) = match words[..] {
                [device, op, value] => (device, op, value),
                [device, value] => (device, "", value),
                _ => return None,
            };
            let (major, minor) = device.split_once(':')?;
            let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
            Some(BlkIoEntry {
                op: op.to_owned(),
                device: devices.name(major, minor),
                major,
                minor,
                value: value.parse().ok()?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_lines_with_and_without_an_operation() {
        let text = "259:1 Read 4096\n259:1 Total 4096\nTotal 4096\n8:0 7\n8:x Read 1\n";
        let found = entries(text, &Devices::default());
        assert_eq!(found.len(), 3);
        assert_eq!((found[0].op.as_str(), found[0].value), ("Read", 4096));
        assert_eq!((found[2].major, found[2].minor, found[2].value), (8, 0, 7));
        assert_eq!(found[2].op, "");
    }
}
