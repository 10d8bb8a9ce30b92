//! Counters of cgroup v2: every controller in one directory.

use std::fs::File;

use vigil_model::metrics::{
    CpuV2, HugeTlb, Io, IoEntry, MemoryEvents, MemoryStatV2, MemoryUse, MemoryV2, Pids, Pressure,
    Pressures, V2,
};

use super::v1::page_sizes;
use super::{Keys, limit, number, rdma};
use crate::Result;
use crate::cgroup::{Cgroup, tree};

pub(super) fn read(cgroup: &Cgroup) -> Result<Option<V2>> {
    let Some(dir) = cgroup.groups.first().map(|g| &g.dir) else {
        return Ok(None);
    };
    let all = V2 {
        pids: pids(dir)?,
        cpu: cpu(dir)?,
        memory: memory(dir)?,
        memory_events: Keys::read(dir, "memory.events")?.map(|keys| MemoryEvents {
            low: keys.get("low"),
            high: keys.get("high"),
            max: keys.get("max"),
            oom: keys.get("oom"),
            oom_kill: keys.get("oom_kill"),
            oom_group_kill: keys.get("oom_group_kill"),
        }),
        rdma: rdma(dir)?,
        io: io(dir)?,
        hugetlb: hugetlb(dir)?,
    };
    // Nothing at all could be read: it is gone, not idle.
    Ok((all != V2::default()).then_some(all))
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

fn cpu(dir: &File) -> Result<Option<CpuV2>> {
    // `cpu.stat` is there without the controller too, with times only.
    let Some(keys) = Keys::read(dir, "cpu.stat")? else {
        return Ok(None);
    };
    Ok(Some(CpuV2 {
        usage_usec: keys.get("usage_usec"),
        user_usec: keys.get("user_usec"),
        system_usec: keys.get("system_usec"),
        nr_periods: keys.get("nr_periods"),
        nr_throttled: keys.get("nr_throttled"),
        throttled_usec: keys.get("throttled_usec"),
        nr_bursts: keys.get("nr_bursts"),
        burst_usec: keys.get("burst_usec"),
        psi: pressures(dir, "cpu.pressure")?,
    }))
}

fn memory(dir: &File) -> Result<Option<MemoryV2>> {
    let Some(keys) = Keys::read(dir, "memory.stat")? else {
        return Ok(None);
    };
    Ok(Some(MemoryV2 {
        stat: memory_stat(&keys),
        memory: memory_use(dir, "memory")?,
        swap: memory_use(dir, "memory.swap")?,
        psi: pressures(dir, "memory.pressure")?,
    }))
}

fn memory_stat(keys: &Keys) -> MemoryStatV2 {
    let get = |key: &str| keys.get(key);
    // Split into anonymous and file pages since Linux 5.9.
    let both = |key: &str| {
        keys.find(key).unwrap_or_else(|| {
            get(&format!("{key}_anon")).saturating_add(get(&format!("{key}_file")))
        })
    };
    MemoryStatV2 {
        anon: get("anon"),
        file: get("file"),
        kernel_stack: get("kernel_stack"),
        slab: get("slab"),
        sock: get("sock"),
        shmem: get("shmem"),
        file_mapped: get("file_mapped"),
        file_dirty: get("file_dirty"),
        file_writeback: get("file_writeback"),
        anon_thp: get("anon_thp"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        slab_reclaimable: get("slab_reclaimable"),
        slab_unreclaimable: get("slab_unreclaimable"),
        pgfault: get("pgfault"),
        pgmajfault: get("pgmajfault"),
        workingset_refault: both("workingset_refault"),
        workingset_activate: both("workingset_activate"),
        workingset_nodereclaim: get("workingset_nodereclaim"),
        pgrefill: get("pgrefill"),
        pgscan: get("pgscan"),
        pgsteal: get("pgsteal"),
        pgactivate: get("pgactivate"),
        pgdeactivate: get("pgdeactivate"),
        pglazyfree: get("pglazyfree"),
        pglazyfreed: get("pglazyfreed"),
        thp_fault_alloc: get("thp_fault_alloc"),
        thp_collapse_alloc: get("thp_collapse_alloc"),
    }
}

fn memory_use(dir: &File, prefix: &str) -> Result<Option<MemoryUse>> {
    let Some(usage) = number(dir, &format!("{prefix}.current"))? else {
        return Ok(None);
    };
    Ok(Some(MemoryUse {
        usage,
        limit: limit(dir, &format!("{prefix}.max"))?,
        max: number(dir, &format!("{prefix}.peak"))?,
    }))
}

fn io(dir: &File) -> Result<Option<Io>> {
    let usage = tree::read(dir, "io.stat")?;
    let psi = pressures(dir, "io.pressure")?;
    if usage.is_none() && psi.is_none() {
        return Ok(None);
    }
    Ok(Some(Io {
        usage: io_lines(&usage.unwrap_or_default()),
        psi,
    }))
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`
fn io_lines(text: &str) -> Vec<IoEntry> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (major, minor) = words.next()?.split_once(':')?;
            let mut entry = IoEntry {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
                ..IoEntry::default()
            };
            for (key, value) in words.filter_map(|word| word.split_once('=')) {
                let value = value.parse().unwrap_or(0);
                match key {
                    "rbytes" => entry.rbytes = value,
                    "wbytes" => entry.wbytes = value,
                    "rios" => entry.rios = value,
                    "wios" => entry.wios = value,
                    _ => {}
                }
            }
            Some(entry)
        })
        .collect()
}

fn hugetlb(dir: &File) -> Result<Vec<HugeTlb>> {
    let mut all = Vec::new();
    for pagesize in page_sizes(dir, ".current") {
        let of = |name: &str| number(dir, &format!("hugetlb.{pagesize}.{name}"));
        if let Some(usage) = of("current")? {
            let events = Keys::read(dir, &format!("hugetlb.{pagesize}.events"))?;
            all.push(HugeTlb {
                usage,
                max: limit(dir, &format!("hugetlb.{pagesize}.max"))?,
                failcnt: events.map_or(0, |keys| keys.get("max")),
                pagesize,
            });
        }
    }
    Ok(all)
}

/// A pressure file; also absent where the kernel has them switched off and
/// refuses to read them.
fn pressures(dir: &File, file: &str) -> Result<Option<Pressures>> {
    match tree::read(dir, file) {
        Ok(text) => Ok(text.map(|text| pressure_lines(&text))),
        Err(crate::Error::File { source, .. })
            if source.raw_os_error() == Some(vigil_sys::Errno::EOPNOTSUPP as i32) =>
        {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`
fn pressure_lines(text: &str) -> Pressures {
    let mut all = Pressures::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let kind = words.next();
        let mut it = Pressure::default();
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            match key {
                "avg10" => it.avg10 = value.parse().unwrap_or(0.0),
                "avg60" => it.avg60 = value.parse().unwrap_or(0.0),
                "avg300" => it.avg300 = value.parse().unwrap_or(0.0),
                "total" => it.total = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        match kind {
            Some("some") => all.some = Some(it),
            Some("full") => all.full = Some(it),
            _ => {}
        }
    }
    all
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn io_and_pressure_lines() {
        let io = io_lines("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n9:1 \nbad\n");
        assert_eq!(io.len(), 2);
        assert_eq!((io[0].rbytes, io[0].wios), (1, 4));
        let psi = pressure_lines("some avg10=1.50 avg60=0.25 avg300=0.00 total=77\n");
        assert_eq!(psi.some.unwrap().total, 77);
        assert!((psi.some.unwrap().avg10 - 1.5).abs() < 1e-9);
        assert!(psi.full.is_none());
    }

    #[test]
    fn split_counters_are_added_up() {
        let keys = Keys("workingset_refault_anon 2\nworkingset_refault_file 3\n".to_owned());
        assert_eq!(memory_stat(&keys).workingset_refault, 5);
        let keys = Keys("workingset_refault 9\n".to_owned());
        assert_eq!(memory_stat(&keys).workingset_refault, 9);
    }

    /// A real directory of plain files: what is not there stays `None`.
    #[test]
    fn files_become_counters_and_absence_stays_absence() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("pids.current", "3\n");
        write("pids.max", "max\n");
        write("memory.stat", "anon 4096\nfile 1\n");
        write("memory.current", "8192\n");
        write("memory.max", "16384\n");
        write("memory.events", "low 0\noom_kill 2\n");
        write("hugetlb.2MB.current", "0\n");
        write("hugetlb.2MB.max", "max\n");
        write("hugetlb.2MB.rsvd.current", "0\n");
        let open = File::open(dir.path()).unwrap();
        assert_eq!(pids(&open).unwrap().unwrap().limit, None);
        let memory = memory(&open).unwrap().unwrap();
        assert_eq!(memory.memory.unwrap().limit, Some(16384));
        assert!(memory.swap.is_none() && memory.psi.is_none());
        assert!(cpu(&open).unwrap().is_none() && io(&open).unwrap().is_none());
        assert_eq!(hugetlb(&open).unwrap().len(), 1);
    }
}
